package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What iperf3 and ping print is read.
func TestReadings(t *testing.T) {
	gbits, err := streamed(`{"start": {}, "end": {"sum_sent": {"bits_per_second": 9e9}, "sum_received": {"bits_per_second": 4.5e9}}}`)
	if err != nil || gbits != 4.5 {
		t.Errorf("stream: %v %v", gbits, err)
	}
	for _, text := range []string{"", `{"error": "unable to connect"}`, `{"end": {}}`} {
		if _, err := streamed(text); err == nil {
			t.Errorf("stream: %q is no error", text)
		}
	}
	us, err := answered("100 packets transmitted, 100 received\nrtt min/avg/max/mdev = 0.021/0.035/0.101/0.008 ms\n")
	if err != nil || us != 35 {
		t.Errorf("ping: %v %v", us, err)
	}
	if _, err := answered("100 packets transmitted, 0 received, 100% packet loss\n"); err == nil {
		t.Error("ping: no answer is no error")
	}
}

// Two machines that only pretend: what is asked of them, and what comes of it.
func TestAcross(t *testing.T) {
	dir := t.TempDir()
	script, asked := filepath.Join(dir, "node.sh"), filepath.Join(dir, "asked")
	fake := `#!/bin/sh
echo "$@" >>` + asked + `
case "$1 $3" in
workload*) echo 10.90.0.1 ;;
"inside iperf3")
	rate=8e9
	test "$2" != perf-kernel || rate=4e9
	echo '{"end": {"sum_received": {"bits_per_second": '$rate'}}}' ;;
"inside ping") echo "rtt min/avg/max/mdev = 0.1/0.2/0.3/0.4 ms" ;;
esac
`
	if err := os.WriteFile(script, []byte(fake), 0o755); err != nil {
		t.Fatal(err)
	}
	one, two := machine{nil, script, "192.0.2.1"}, machine{[]string{"env"}, script, "192.0.2.2"}
	ways, err := cross(context.Background(), one, two)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, w := range ways {
			if err := w.measure(context.Background(), one, 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	results := crossed(ways)
	if len(results) != 6 {
		t.Errorf("%d results", len(results))
	}
	for _, r := range results {
		if want := map[string]float64{"Gbit/s": 2, "us": 1}[r.Unit]; r.Ratio != want || r.Peer == "" {
			t.Errorf("%+v, want a ratio of %v", r, want)
		}
		data, err := json.Marshal(r)
		for _, field := range []string{`"name"`, `"value"`, `"unit"`, `"peer"`, `"peer_value"`, `"ratio"`} {
			if err != nil || !strings.Contains(string(data), field) {
				t.Errorf("no %s in %s (%v)", field, data, err)
			}
		}
	}
	log, err := os.ReadFile(asked)
	if err != nil || !strings.Contains(string(log), "up node1 192.0.2.1 192.0.2.1") || !strings.Contains(string(log), "up node2 192.0.2.2 192.0.2.1") {
		t.Errorf("asked (%v):\n%s", err, log)
	}
}
