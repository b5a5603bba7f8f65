package whole

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"calico-xdp/pkg/maps"
	"calico-xdp/tools/testbed"
)

// rackRouter is BIRD on the hosts' router: it has AS 65100, announces the default route
// and, when told to, ten thousand others.
const rackRouter = `
log stderr { error, bug };
router id 10.10.1.1;
protocol device { }
protocol kernel { ipv4 { import none; export where source = RTS_BGP; }; }
protocol static ways { ipv4; route 0.0.0.0/0 blackhole; }
protocol static many {
  disabled;
  ipv4;
include "many.conf";
}
protocol bgp host1 {
  local 10.10.1.1 as 65100; neighbor 10.10.1.2 as 64512; password "tea"; graceful restart on;
  connect delay time 1; connect retry time 1; error wait time 1, 2;
  ipv4 { import all; export where source = RTS_STATIC; };
}
`

const manyRoutes = 10000

// TestRackRouter: a host whose way out is what its router tells it, and whose
// workloads the router learns of.
func TestRackRouter(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 1}})
	a, router := c.nodes[0], c.lab.Router
	secrets := filepath.Join(a.dir, "secrets", "rack")
	if err := os.MkdirAll(secrets, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(secrets, "router"), []byte("tea\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.stop()
	a.environ = append(a.environ, "CALICO_SECRETS_DIR="+filepath.Dir(secrets))
	a.MustRun(t, "ip", "route", "del", "default")
	a.restart()

	outside := netip.MustParseAddr("203.0.113.1")
	router.MustRun(t, "ip", "addr", "add", outside.String()+"/32", "dev", "lo")
	dir := t.TempDir()
	var many strings.Builder
	for i := range manyRoutes {
		fmt.Fprintf(&many, "route 100.%d.%d.%d/28 blackhole;\n", 64+i>>12, i>>4&255, i&15<<4)
	}
	for name, text := range map[string]string{"bird.conf": rackRouter, "many.conf": many.String()} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	control := filepath.Join(dir, "bird.ctl")
	bird := router.Start(t, "bird", "-f", "-c", filepath.Join(dir, "bird.conf"), "-s", control)
	birdc := func(words ...string) {
		t.Helper()
		if out, err := exec.Command("birdc", append([]string{"-s", control}, words...)...).CombinedOutput(); err != nil {
			t.Fatalf("birdc %s: %v: %s", words, err, out)
		}
	}

	client := c.attach(a, "plain", "client")
	c.settle()
	if (testbed.Probe{Count: 1}).Reaches(client.Namespace, outside) {
		t.Error("there is a way out without the router's word")
	}
	c.apply(`{apiVersion: projectcalico.org/v3, kind: BGPPeer, metadata: {name: rack}, spec: {
		node: host1, peerIP: 10.10.1.1, asNumber: 65100, password: {secretKeyRef: {name: rack, key: router}}}}`)
	if !c.eventually(func() bool { return (testbed.Probe{Count: 1}).Reaches(client.Namespace, outside) }) {
		t.Fatalf("no way out\n%s%s%s", a.MustRun(t, "ip", "route"), bird.Output(), c.ctl("", "node", "status", "--run-dir", a.dir+"/run"))
	}
	if got := a.MustRun(t, "ip", "route", "show", "default"); !strings.Contains(got, "via 10.10.1.1 dev eth0 proto 88") {
		t.Errorf("default route: %s", got)
	}

	tables, err := maps.Open(filepath.Join(a.pins, "v1", "maps"))
	if err != nil {
		t.Fatal(err)
	}
	defer tables.Close()
	count := func() (kernel, bpf int) {
		kernel = strings.Count(a.MustRun(t, "ip", "route", "show", "proto", "88"), "\n100.")
		if all, err := tables.Routes.Load(); err == nil {
			bpf = len(all)
		}
		return kernel, bpf
	}
	_, before := count()

	// The daemon dies and is back: the way out, and the router's way in, stay.
	type result struct{ received, sent int }
	pinged := make(chan result)
	go func() {
		received, sent := testbed.Probe{Count: 250, Interval: 20 * time.Millisecond}.Ping(client.Namespace, outside)
		pinged <- result{received, sent}
	}()
	for range 2 {
		a.daemon.Kill()
		time.Sleep(100 * time.Millisecond)
		a.restart()
	}
	if !c.eventually(func() bool {
		s, err := a.api().BGP(t.Context())
		if err != nil {
			return false
		}
		for _, p := range s.Peers {
			if p.Name == "rack" {
				return p.State == "up"
			}
		}
		return false
	}) {
		t.Error("the session with the router is not back")
	}
	if r := <-pinged; r.received != r.sent {
		t.Errorf("of %d pings through the router %d came back", r.sent, r.received)
	}

	// Ten thousand prefixes come and go, in the kernel and in BPF.
	for _, step := range []struct {
		verb string
		want int
	}{{"enable", manyRoutes}, {"disable", 0}} {
		begin := time.Now()
		birdc(step.verb, "many")
		kernel, bpf := 0, 0
		if !c.eventually(func() bool {
			kernel, bpf = count()
			return kernel == step.want && bpf == before+step.want
		}) {
			t.Errorf("%s: %d routes in the kernel, %d more than before in BPF, want %d", step.verb, kernel, bpf-before, step.want)
		}
		t.Logf("%s %s prefixes: in the kernel and in BPF after %s", step.verb, strconv.Itoa(manyRoutes), time.Since(begin).Round(10*time.Millisecond))
	}

	// What is no longer announced is gone.
	birdc("disable", "ways")
	if !c.eventually(func() bool { return a.MustRun(t, "ip", "route", "show", "default") == "" }) {
		t.Error("the default route stays")
	}
}
