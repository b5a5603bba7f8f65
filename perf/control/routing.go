package control

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"calico-xdp/pkg/maps"
	"calico-xdp/tools/testbed"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"
)

// rackRouter is BIRD on the host's router. It announces many prefixes when told to, and
// puts what it hears into its kernel.
const rackRouter = `
log stderr { error, bug };
router id 10.10.1.1;
protocol device { }
protocol kernel { ipv4 { import none; export where source = RTS_BGP; }; }
protocol static many { disabled; ipv4;
include "many.conf";
}
protocol bgp host1 {
  local 10.10.1.1 as 65100; neighbor 10.10.1.2 as 64512; graceful restart on;
  connect delay time 1; connect retry time 1; error wait time 1, 2;
  ipv4 { import all; export where source = RTS_STATIC; };
}
`

// router is that BIRD.
type router struct {
	*testbed.Namespace
	t       testbed.T
	control string
}

func startRouter(t testbed.T, at *testbed.Namespace, prefixes int) *router {
	t.Helper()
	dir, err := os.MkdirTemp("", "calico-xdp-perf-")
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var many strings.Builder
	for i := range prefixes {
		fmt.Fprintf(&many, "route 100.%d.%d.%d/28 blackhole;\n", 64+i>>12, i>>4&255, i&15<<4)
	}
	for name, text := range map[string]string{"bird.conf": rackRouter, "many.conf": many.String()} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatalf("%v", err)
		}
	}
	r := &router{at, t, filepath.Join(dir, "bird.ctl")}
	at.Start(t, "bird", "-f", "-c", filepath.Join(dir, "bird.conf"), "-s", r.control)
	return r
}

func (r *router) birdc(words ...string) {
	r.t.Helper()
	if out, err := exec.Command("birdc", append([]string{"-s", r.control}, words...)...).CombinedOutput(); err != nil {
		r.t.Fatalf("birdc %s: %v: %s", words, err, out)
	}
}

// knows says whether a route of the router's kernel leads to a prefix.
func (r *router) knows(prefix string) bool {
	out, err := r.Run("ip", "route", "show", "proto", "bird", prefix)
	return err == nil && strings.Contains(out, prefix)
}

// until waits for ok and returns since when that has been so, after begin.
func (n *node) until(what string, begin time.Time, ok func() bool) time.Duration {
	n.Helper()
	for !ok() {
		if time.Since(begin) > time.Minute {
			n.Fatalf("%s: not within a minute\n%s", what, n.daemon.Output())
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(begin)
}

// Routing measures how long routes take through BGP: what a router announces until it
// is in this host's kernel and in BPF, and a block of this host until the router's
// kernel has it, and the same for what goes.
func Routing(t testbed.T, o Options, prefixes, count int) []Figure {
	t.Helper()
	n := newNode(t, o)
	n.putBasics()
	peer := v3.NewBGPPeer()
	peer.Name = "router"
	peer.Spec = v3.BGPPeerSpec{PeerIP: n.Gateway4.String(), ASNumber: numorstring.ASNumber(65100)}
	n.put(peer)
	first := block(nodeName, localAddresses, 1)
	n.put(first)
	r := startRouter(t, n.router, prefixes)
	n.start()
	n.until("the router learns", time.Now(), func() bool { return r.knows(first.CIDR.String()) })

	tables, err := maps.Open(filepath.Join(n.pins, "v1", "maps"))
	n.must(err)
	defer tables.Close()
	before, err := tables.Routes.Load()
	n.must(err)
	have := func(want int) func() bool {
		return func() bool {
			out, err := n.Run("ip", "route", "show", "proto", "88")
			if err != nil || strings.Count(out, "\n100.") != want {
				return false
			}
			all, err := tables.Routes.Load()
			return err == nil && len(all) == len(before)+want
		}
	}
	var come, leave samples
	cpu := n.processorTime()
	for range max(count/20, 3) {
		begin := time.Now()
		r.birdc("enable", "many")
		come = append(come, n.until("prefixes come", begin, have(prefixes)))
		begin = time.Now()
		r.birdc("disable", "many")
		leave = append(leave, n.until("prefixes go", begin, have(0)))
	}
	cpu = (n.processorTime() - cpu) / time.Duration(2*len(come))

	var announced, withdrawn samples
	second := block(nodeName, after(localAddresses, 64), 1)
	key, value := n.encode(second)
	for range count {
		n.etcd.Put(key, value)
		announced = append(announced, n.until("block announced", time.Now(), func() bool { return r.knows(second.CIDR.String()) }))
		n.etcd.Delete(key)
		withdrawn = append(withdrawn, n.until("block withdrawn", time.Now(), func() bool { return !r.knows(second.CIDR.String()) }))
	}
	scenario := fmt.Sprintf("BGP, %d prefixes of a router", prefixes)
	out := []Figure{
		{scenario, "announced to in the kernel and in BPF, p50", come.percentile(50), "ms", 3000},
		{scenario, "announced to in the kernel and in BPF, worst", come.percentile(100), "ms", 3000},
		{scenario, "withdrawn to gone from both, p50", leave.percentile(50), "ms", 3000},
		{scenario, "withdrawn to gone from both, worst", leave.percentile(100), "ms", 3000},
		{scenario, "processor time of the daemon, each way", milliseconds(cpu), "ms", 0},
	}
	out = append(out, announced.figures(scenario, "a block of this host to the router's kernel", 1000, 1000)...)
	return append(out, withdrawn.figures(scenario, "a block's release to gone from the router's kernel", 1000, 1000)...)
}
