package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"calico-xdp/perf/report"
	"calico-xdp/perf/result"
)

// What packets cost across two machines that are reached by commands: ssh for virtual
// machines. Each has the project built, and perf/vagrant/node.sh.

const acrossUsage = `Usage: perf across [flags] ADDRESS1 ADDRESS2

Measures between workloads of two machines, in turns with the kernel's own forwarding and
its vxlan device. The machines are reached by --on1 and --on2, commands that take another
command; perf/vagrant/run.sh gives them those of Vagrant's machines.

`

// machine runs perf/vagrant/node.sh on one of the two.
type machine struct {
	reach   []string // the command in front of another one
	script  string
	address string
}

func (m machine) do(ctx context.Context, stdin string, args ...string) (string, error) {
	words := append(append(append([]string(nil), m.reach...), m.script), args...)
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s%s", strings.Join(words, " "), err, stderr.String(), stdout.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}

// crossing is a way between two namespaces on the two machines.
type crossing struct {
	name  string
	from  string // the namespace on the first machine
	to    string // the address in that of the second
	gbits []float64
	turns []float64 // us
	ours  bool
}

func across(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("perf across", flag.ContinueOnError)
	on1, on2 := f.String("on1", "", "`command` that runs another one on the first machine"), f.String("on2", "", "the same for the second")
	script := f.String("node", "/calico-xdp/perf/vagrant/node.sh", "where `node.sh` is there")
	repetitions, seconds := f.Int("repetitions", 5, "how often each has its turn"), f.Int("seconds", 2, "length of one")
	format := f.String("o", "table", "`format`: table or json")
	f.Usage = func() {
		io.WriteString(f.Output(), acrossUsage)
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 2 {
		f.Usage()
		return fmt.Errorf("across: want two addresses")
	}
	one := machine{strings.Fields(*on1), *script, f.Arg(0)}
	two := machine{strings.Fields(*on2), *script, f.Arg(1)}
	defer func() {
		// Also after an interrupt.
		for _, m := range []machine{two, one} {
			_, _ = m.do(context.WithoutCancel(ctx), "", "down")
		}
	}()
	ways, err := cross(ctx, one, two)
	if err != nil {
		return fmt.Errorf("across: %w", err)
	}
	for turn := range *repetitions {
		fmt.Fprintf(os.Stderr, "across: turn %d of %d\n", turn+1, *repetitions)
		for _, w := range ways {
			if err := w.measure(ctx, one, *seconds); err != nil {
				return fmt.Errorf("across: %s: %w", w.name, err)
			}
		}
	}
	results := crossed(ways)
	if *format == "json" {
		return printJSON(os.Stdout, results)
	}
	_, err = io.WriteString(os.Stdout, report.Table(results))
	return err
}

// pools are one for each way to carry packets.
const pools = `apiVersion: projectcalico.org/v3
kind: IPPoolList
items:
- {kind: IPPool, apiVersion: projectcalico.org/v3, metadata: {name: plain}, spec: {cidr: 10.90.0.0/16, ipipMode: Never, vxlanMode: Never}}
- {kind: IPPool, apiVersion: projectcalico.org/v3, metadata: {name: ipip}, spec: {cidr: 10.91.0.0/16, ipipMode: Always, vxlanMode: Never}}
- {kind: IPPool, apiVersion: projectcalico.org/v3, metadata: {name: vxlan}, spec: {cidr: 10.92.0.0/16, ipipMode: Never, vxlanMode: Always}}
`

// cross makes the ways.
func cross(ctx context.Context, one, two machine) (ways []*crossing, err error) {
	for i, m := range []machine{one, two} {
		other := []machine{two, one}[i]
		if _, err := m.do(ctx, "", "up", fmt.Sprint("node", i+1), m.address, one.address); err != nil {
			return nil, err
		}
		if _, err := m.do(ctx, "", "kernel", fmt.Sprint(i+1), m.address, other.address); err != nil {
			return nil, err
		}
	}
	if _, err := one.do(ctx, pools, "apply"); err != nil {
		return nil, err
	}
	for _, pool := range []string{"plain", "ipip", "vxlan"} {
		name := "perf-" + pool
		if _, err := one.do(ctx, "", "workload", name, pool); err != nil {
			return nil, err
		}
		to, err := two.do(ctx, "", "workload", name, pool)
		if err != nil {
			return nil, err
		}
		if _, err := two.do(ctx, "", "serve", name); err != nil {
			return nil, err
		}
		ways = append(ways, &crossing{name: pool, from: name, to: to, ours: true})
	}
	if _, err := two.do(ctx, "", "serve", "perf-kernel"); err != nil {
		return nil, err
	}
	return append(ways,
		&crossing{name: "kernel", from: "perf-kernel", to: "10.99.2.2"},
		&crossing{name: "kernel-vxlan", from: "perf-kernel", to: "10.97.2.2"}), nil
}

// measure has a stream and then single packets go there.
func (w *crossing) measure(ctx context.Context, one machine, seconds int) error {
	var text string
	var err error
	for range 20 { // routes may still be on their way
		if text, err = one.do(ctx, "", "inside", w.from, "iperf3", "-J", "-t", fmt.Sprint(seconds), "-c", w.to); err == nil || ctx.Err() != nil {
			break
		}
		time.Sleep(500 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	gbits, err := streamed(text)
	if err != nil {
		return err
	}
	if text, err = one.do(ctx, "", "inside", w.from, "ping", "-q", "-i", "0.01", "-c", "100", w.to); err != nil {
		return err
	}
	turn, err := answered(text)
	w.gbits, w.turns = append(w.gbits, gbits), append(w.turns, turn)
	return err
}

// streamed is the Gbit/s that iperf3 -J says have arrived.
func streamed(text string) (float64, error) {
	var report struct {
		Error string
		End   struct {
			SumReceived struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	if err := json.Unmarshal([]byte(text), &report); err != nil {
		return 0, fmt.Errorf("iperf3: %w", err)
	}
	if report.Error != "" || report.End.SumReceived.BitsPerSecond == 0 {
		return 0, fmt.Errorf("iperf3: nothing has arrived %s", report.Error)
	}
	return report.End.SumReceived.BitsPerSecond / 1e9, nil
}

// answered is the mean time of ping -q, there and back, in microseconds.
func answered(text string) (float64, error) {
	_, times, ok := strings.Cut(text, "min/avg/max/mdev = ")
	var least, mean float64
	if _, err := fmt.Sscanf(times, "%g/%g/", &least, &mean); !ok || err != nil {
		return 0, errors.New("ping: no times in " + text)
	}
	return 1000 * mean, nil
}

// crossed are ours beside the kernel's: what is encapsulated beside its vxlan device.
func crossed(ways []*crossing) (out []result.Result) {
	find := func(name string) *crossing {
		for _, w := range ways {
			if w.name == name {
				return w
			}
		}
		return nil
	}
	for _, w := range ways {
		if !w.ours {
			continue
		}
		peer := find("kernel-vxlan")
		if w.name == "plain" {
			peer = find("kernel")
		}
		figure := func(name, unit string, own, its []float64) {
			ratios := result.Ratios(own, its)
			out = append(out, result.Result{
				Name: "across/" + w.name + "/" + name, Unit: unit, Value: result.Median(own), Peer: peer.name,
				PeerValue: result.Median(its), Ratio: result.Median(ratios), Spread: result.Spread(ratios),
			})
		}
		figure("stream", "Gbit/s", w.gbits, peer.gbits)
		figure("ping", "us", w.turns, peer.turns)
	}
	return out
}
