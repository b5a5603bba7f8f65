package whole

import (
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"calico-xdp/pkg/nodeapi"
	"calico-xdp/tools/testbed"
)

// counter returns the sum of the metrics whose line has that beginning.
func (n *node) counter(begin string) float64 {
	n.c.Helper()
	code, body := n.get(metrics)
	if code != http.StatusOK {
		n.c.Fatalf("%s: metrics: %d %s", n.name, code, body)
	}
	sum := 0.0
	for _, m := range regexp.MustCompile(`(?m)^`+begin+`\S* (\S+)$`).FindAllStringSubmatch(body, -1) {
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			n.c.Fatalf("metrics: %s", m[0])
		}
		sum += v
	}
	return sum
}

// TestHealth: what the node says of itself is so.
func TestHealth(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 1}})
	a, b := c.nodes[0], c.nodes[1]
	client, far := c.attach(a, "ipip", "client"), c.attach(b, "ipip", "db-far")
	c.settle()

	// Counters move with packets.
	sent := `calico_xdp_packets_total\{hook="from_workload",reason="pass_ipip"`
	dropped := `calico_xdp_packets_total\{hook="from_network",reason="drop_ingress_policy"`
	before, droppedBefore := a.counter(sent), b.counter(dropped)
	if received, sent := testbed.Ping(client.Namespace, far.v4, 20); received != sent {
		t.Errorf("%d of %d", received, sent)
	}
	if n := a.counter(sent) - before; n < 20 || n > 25 {
		t.Errorf("20 pings are %v packets", n)
	}
	c.apply(policyFor(80))
	c.tryAll("policy", try{from: client.Namespace, to: far.v4, port: 5432})
	if b.counter(dropped) == droppedBefore {
		t.Error("a packet that policy drops is not counted")
	}
	for metric, want := range map[string]float64{
		"calico_xdp_in_sync": 1, `calico_xdp_workload_endpoints\{state="ready"\}`: 1, "calico_xdp_problems": 0,
	} {
		if got := a.counter(metric); got != want {
			t.Errorf("%s %v, want %v", metric, got, want)
		}
	}

	// Status, over the socket and as calicoctl prints it.
	s := a.status()
	if s.Node != "host1" || !s.InSync || s.PID != a.daemon.PID() || len(s.Endpoints) != 1 || s.Endpoints[0].State != nodeapi.EndpointReady ||
		s.Revision == 0 || s.WorkloadMTU != 1430 || len(s.Problems) != 0 || len(s.Addresses) != 2 {
		t.Errorf("status %+v", s)
	}
	if mtu, err := os.ReadFile(a.dir + "/mtu"); err != nil || string(mtu) != "1430" {
		t.Errorf("the file for other CNI plugins has the MTU %q, %v", mtu, err)
	}
	text := ""
	if !testbed.Eventually(func() bool {
		cmd := a.command("calicoctl", "node", "status")
		cmd.Env = append(cmd.Env, "CALICO_RUN_DIR="+a.dir+"/run")
		p := a.StartCmd(t, cmd)
		<-p.Exited()
		text = p.Output()
		return strings.Count(text, "Established") == 2
	}) {
		t.Errorf("no two sessions: %s", text)
	}
	b.daemon.Kill()
	if !testbed.Eventually(func() bool {
		s, err := a.api().BGP(t.Context())
		return err == nil && len(s.Peers) == 2 && s.Peers[0].State != "up" && s.Peers[1].State != "up"
	}) {
		t.Error("sessions with a dead daemon stay up")
	}
	// Inside the cluster, routes do not depend on sessions.
	c.tryAll("host2's daemon is dead", try{from: client.Namespace, to: far.v4, port: 80, want: true})

	// Not ready, and alive, until it has seen the datastore.
	b.gate.cut()
	b.start()
	var body string
	if !testbed.Eventually(func() bool {
		var code int
		code, body = b.get(readiness)
		return code == http.StatusServiceUnavailable
	}) {
		t.Errorf("without a datastore: %s", body)
	}
	if code, body := b.get(liveness); code != http.StatusOK {
		t.Errorf("liveness: %d %s", code, body)
	}
	if code, _ := b.get(metrics); code != http.StatusOK {
		t.Errorf("metrics: %d", code)
	}
	b.gate.mend()
	b.waitReady()
	c.settle()

	// A second daemon, by mistake: with the same tables, or just the same socket.
	if out, ok := a.finish(); ok || !strings.Contains(out, "another calico-node uses it") {
		t.Errorf("same pin directory: %v %s", ok, out)
	}
	c.Cleanup(func() { os.RemoveAll(a.pins + "-other") })
	if out, ok := a.finish("--pin-dir", a.pins+"-other"); ok || !strings.Contains(out, "another calico-node uses it") {
		t.Errorf("same run directory: %v %s", ok, out)
	}
	if s := a.status(); s.PID != a.daemon.PID() || s.Error != "" {
		t.Errorf("the first daemon: %+v", s)
	}
	c.tryAll("after all that", try{from: client.Namespace, to: far.v4, port: 80, want: true}, try{from: client.Namespace, to: far.v4, port: 5432})
}

// TestTwoUplinks: a host with two ways out. When its routes change the traffic
// follows, whether the first link goes down or just the route moves.
func TestTwoUplinks(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 2}})
	a, b := c.nodes[0], c.nodes[1]
	router := c.lab.Router
	// The second link is not called like an uplink.
	testbed.Veth(t, a.Namespace, "second", router, "tohost1")
	a.AddAddress(t, "second", "10.20.0.2/24")
	a.AddAddress(t, "second", "fd10:20::2/64")
	router.AddAddress(t, "tohost1", "10.20.0.1/24")
	router.AddAddress(t, "tohost1", "fd10:20::1/64")
	c.apply(`
{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: node.host1}, spec: {bpfDataIfacePattern: "^(eth0|second)$"}}
---
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: hosts}, spec: {selector: has(network), types: [Ingress], ingress: [
 {action: Allow, source: {selector: has(network)}}, {action: Allow, source: {nets: [10.65.0.0/16, 10.66.0.0/16]}}, {action: Allow, source: {nets: ["fd66::/16"]}}]}}`)

	// The host's own packets go into the tunnels from its addresses there.
	client, beside := c.attach(a, "ipip", "client"), c.attach(a, "vxlan", "client-vxlan")
	far, farVXLAN := c.attach(b, "ipip", "db"), c.attach(b, "vxlan", "db-vxlan")
	c.settle()
	flood := func(from, to *workload, ipv6 bool) *testbed.Flood {
		return testbed.StartFlood(t, from.Namespace, to.Namespace, to.address(ipv6), testbed.FloodOptions{Interval: 5 * time.Millisecond})
	}
	floods := []*testbed.Flood{flood(client, far, false), flood(beside, farVXLAN, false), flood(farVXLAN, beside, true)}
	stream := testbed.StartTCP(t, client.Namespace, far.Namespace, netip.AddrPortFrom(far.v4, 7000))
	goOn := func(when string, floods ...*testbed.Flood) {
		t.Helper()
		for i, f := range floods {
			if !f.Progresses(20) {
				t.Errorf("%s: ping %d: %s", when, i, f.Report())
			}
		}
		if !stream.Progresses(1<<18) || stream.Err() != nil {
			t.Errorf("%s: stream: %v", when, stream.Err())
		}
	}
	goOn("before", floods...)
	// leaves says whether packets to host2 of all three kinds leave through the link.
	leaves := func(link string) bool {
		w := testbed.StartCapture(t, a.Namespace, link)
		defer w.Stop()
		missing := []string{"> 10.10.2.3: IPIP", "> 10.10.2.3: VXLAN", "> fd10:10:2::3: VXLAN"}
		seen := 0
		return testbed.Eventually(func() bool {
			packets := w.Packets()
			for _, p := range packets[seen:] {
				if p.Outgoing && len(p.Data) < 300 {
					text := p.String()
					missing = slices.DeleteFunc(missing, func(want string) bool { return strings.Contains(text, want) })
				}
			}
			seen = len(packets)
			return len(missing) == 0
		})
	}
	// hostReaches: from the host itself. Packets that wait for neighbours which
	// routes no longer lead to are a burden on all namespaces' ICMP, so not at once.
	hostReaches := func(when string, to ...netip.Addr) {
		t.Helper()
		for _, to := range to {
			if !testbed.Eventually(func() bool { return testbed.Probe{Wait: silence}.Reaches(a.Namespace, to) }) {
				t.Errorf("%s: host1 does not reach %s", when, to)
			}
		}
	}
	if !leaves("eth0") {
		t.Error("not through eth0")
	}
	hostReaches("before", far.v4, farVXLAN.v4, farVXLAN.v6)
	// The routes move; both links stay up. host2's packets still come the old way.
	for _, link := range []string{"all", "eth0"} {
		a.Sysctl(t, "net.ipv4.conf."+link+".rp_filter", "0")
	}
	move := func(via4, via6, dev string) {
		t.Helper()
		a.MustRun(t, "ip", "route", "replace", "10.10.2.0/24", "via", via4, "dev", dev)
		a.MustRun(t, "ip", "-6", "route", "replace", "fd10:10:2::/64", "via", via6, "dev", dev)
	}
	move("10.20.0.1", "fd10:20::1", "second")
	if !leaves("second") {
		t.Error("the routes have moved, the traffic has not")
	}
	goOn("moved", floods...)
	hostReaches("moved", far.v4, farVXLAN.v4, farVXLAN.v6)
	move("10.10.1.1", "fd10:10:1::1", "eth0")
	if !leaves("eth0") {
		t.Error("the routes have moved back, the traffic has not")
	}
	goOn("moved back", floods...)

	// The first link dies; the network knows another way to the host's addresses.
	a.MustRun(t, "ip", "route", "add", "10.10.2.0/24", "via", "10.20.0.1", "dev", "second", "metric", "100")
	router.MustRun(t, "ip", "route", "add", "10.10.1.2/32", "via", "10.20.0.2")
	a.SetDown(t, "eth0")
	goOn("eth0 is down", floods[:2]...) // IPv4
	c.tryAll("eth0 is down",
		try{from: client.Namespace, to: far.v4, port: 80, want: true}, try{from: farVXLAN.Namespace, to: beside.v4, port: 80, want: true})
	hostReaches("eth0 is down", far.v4, farVXLAN.v4)
	// And comes back, as do the routes through it.
	a.SetUp(t, "eth0")
	router.MustRun(t, "ip", "route", "del", "10.10.1.2/32")
	move("10.10.1.1", "fd10:10:1::1", "eth0")
	a.MustRun(t, "ip", "route", "replace", "default", "via", "10.10.1.1")
	a.MustRun(t, "ip", "-6", "route", "replace", "default", "via", "fd10:10:1::1")
	if !leaves("eth0") {
		t.Error("eth0 is back, the traffic is not")
	}
	goOn("eth0 is back", floods...)
	stopAll(floods)
}
