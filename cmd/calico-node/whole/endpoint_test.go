package whole

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"calico-xdp/pkg/maps"
	"calico-xdp/tools/testbed"
)

const endpoints = "/calico/resources/v3/projectcalico.org/workloadendpoints/default/"

// script is an endpoint as a script puts it into etcd, in the form in which
// Calico's calicoctl writes it: no MAC address.
type script struct {
	n         *node
	iface     string
	role      string
	addresses []string
	mac       string
	closed    bool // has no profile
}

func (s script) key() string {
	return endpoints + s.n.name + "-libnetwork-libnetwork-" + s.iface
}

func (s script) put(c *cluster) {
	mac := ""
	if s.mac != "" {
		mac = fmt.Sprintf(`,"mac":%q`, s.mac)
	}
	profiles := `,"profiles":["open"]`
	if s.closed {
		profiles = ""
	}
	c.etcd.Put(s.key(), fmt.Sprintf(`{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{`+
		`"name":"%[1]s-libnetwork-libnetwork-%[2]s","namespace":"default","uid":"45c7afe6-faa7-4ea1-be49-4ade6d8267d2",`+
		`"creationTimestamp":"2026-11-21T08:14:57Z","labels":{"role":"%[3]s","projectcalico.org/namespace":"default",`+
		`"projectcalico.org/orchestrator":"libnetwork"}},"spec":{"orchestrator":"libnetwork","workload":"libnetwork","node":"%[1]s",`+
		`"endpoint":"%[2]s","ipNetworks":["%[4]s"],"interfaceName":"%[2]s"%[5]s%[6]s}}`,
		s.n.name, s.iface, s.role, strings.Join(s.addresses, `","`), mac, profiles))
	c.settle()
}

func (s script) delete(c *cluster) {
	c.etcd.Delete(s.key())
	c.settle()
}

// plug makes the interface and what is behind it.
func (s script) plug(c *cluster) *workload {
	w := &workload{name: s.iface, node: s.n}
	var all []netip.Addr
	for _, text := range s.addresses {
		a := netip.MustParsePrefix(text).Addr()
		all = append(all, a)
		if a.Is4() {
			w.v4 = a
		} else {
			w.v6 = a
		}
	}
	w.Namespace = s.n.AddWorkload(c, s.iface, all...).Namespace
	c.serve(w.Namespace, 80)
	return w
}

// state waits until the node says that of the interface's endpoint; "" is that
// there is none.
func (s script) state(want string) bool {
	return testbed.Eventually(func() bool {
		got := ""
		for _, e := range s.n.status().Endpoints {
			if e.Interface == s.iface {
				got = string(e.State)
			}
		}
		return got == want
	})
}

const openProfile = `
{apiVersion: projectcalico.org/v3, kind: Profile, metadata: {name: open}, spec: {ingress: [{action: Allow}], egress: [{action: Allow}]}}`

// TestScriptedEndpoints: the resource and the interface are all that an endpoint
// takes, in either order, whoever made them.
func TestScriptedEndpoints(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 1}})
	a, b := c.nodes[0], c.nodes[1]
	c.apply(openProfile)
	// Addresses are given by hand: no block leads to them.
	one := script{n: a, iface: "cali0one", role: "one", addresses: []string{"10.65.200.1/32", "fd67::200:1/128"}}
	two := script{n: b, iface: "cali0two", role: "two", addresses: []string{"10.65.200.2/32", "fd67::200:2/128"}}
	// Not called like a workload's.
	odd := script{n: a, iface: "tap0", role: "odd", addresses: []string{"10.65.200.3/32"}}

	// Resource first.
	one.put(c)
	if !one.state("waiting") {
		t.Errorf("endpoint without interface: %+v", a.status().Endpoints)
	}
	w1 := one.plug(c)
	// Interface first; without endpoint it is closed.
	w2 := two.plug(c)
	if !one.state("ready") {
		t.Errorf("interface that came later: %+v", a.status().Endpoints)
	}
	reach := func(when string, from, to *workload, want bool) {
		t.Helper()
		tries := []try{
			{from: from.Namespace, to: to.v4, want: want}, {from: from.Namespace, to: to.v4, port: 80, want: want},
			{from: to.Namespace, to: from.v4, port: 80, want: want}, {from: from.Namespace, to: to.v4, port: 80, udp: true, want: want},
		}
		if from.v6.IsValid() && to.v6.IsValid() {
			tries = append(tries, try{from: from.Namespace, to: to.v6, want: want}, try{from: to.Namespace, to: from.v6, port: 80, want: want})
		}
		c.tryAll(when, tries...)
	}
	reach("no endpoint yet", w1, w2, false)
	c.tryAll("no endpoint yet", try{from: w2.Namespace, to: b.IPv4.Addr()}, try{from: w2.Namespace, to: a.IPv4.Addr()})
	two.put(c)
	if !two.state("ready") {
		t.Errorf("endpoint that came later: %+v", b.status().Endpoints)
	}
	reach("both there", w1, w2, true)
	w3 := odd.plug(c)
	odd.put(c)
	if !odd.state("ready") {
		t.Errorf("tap0: %+v", a.status().Endpoints)
	}
	reach("local", w1, w3, true)
	reach("remote", w3, w2, true)

	// The interface goes and is made again: another number, another MAC address.
	traffic := &runs{c: c}
	traffic.run("ipip", w3, w2, false)
	for range 3 {
		if err := a.Netlink().LinkDel(a.Link(t, one.iface)); err != nil {
			t.Fatal(err)
		}
		if !one.state("waiting") {
			t.Errorf("interface gone: %+v", a.status().Endpoints)
		}
		w1 = one.plug(c)
		if !one.state("ready") {
			t.Errorf("interface made again: %+v", a.status().Endpoints)
		}
		reach("made again", w1, w2, true)
	}
	// Faster than the daemon may look.
	if err := a.Netlink().LinkDel(a.Link(t, one.iface)); err != nil {
		t.Fatal(err)
	}
	w1 = one.plug(c)
	if !testbed.Eventually(func() bool { return testbed.Probe{}.Reaches(w1.Namespace, w2.v4) }) {
		t.Error("made again at once: no way out")
	}
	reach("made again at once", w1, w2, true)
	// And while it is not there at all.
	a.daemon.Kill()
	if err := a.Netlink().LinkDel(a.Link(t, one.iface)); err != nil {
		t.Fatal(err)
	}
	w1 = one.plug(c)
	a.restart()
	reach("made again unseen", w1, w2, true)
	traffic.goOn("a neighbour changed")

	// A MAC address, once it is said, counts.
	right := w1.Link(t, "eth0").Attrs().HardwareAddr.String()
	one.mac = right
	one.put(c)
	reach("right MAC address", w1, w2, true)
	one.mac = "02:00:00:00:00:01"
	one.put(c)
	reach("wrong MAC address", w1, w2, false)
	one.mac = ""
	one.put(c)
	reach("no MAC address", w1, w2, true)

	traffic.goOn("a neighbour changed")
	traffic.end()

	// Deleted, its traffic stops and nothing of it remains.
	gone := &runs{c: c}
	gone.run("local", w1, w3, false)
	gone.run("ipip", w3, w2, false)
	gone.goOn("before")
	odd.delete(c)
	for i, f := range gone.floods {
		if !gone.streams[i].Stalls(quiet) {
			t.Errorf("stream %s goes on without endpoint", gone.names[i])
		}
		if r := f.Stop(); r.Lost == 0 {
			t.Errorf("ping %s goes on without endpoint: %s", gone.names[i], r)
		}
	}
	reach("deleted", w1, w3, false)
	reach("deleted, remote", w3, w2, false)
	one.delete(c)
	two.delete(c)
	reach("all deleted", w1, w2, false)
	for _, n := range c.nodes {
		if left := n.traces(c, "10.65.200.", "fd67::200"); len(left) != 0 {
			t.Errorf("left on %s: %v", n.name, left)
		}
		if s := n.status(); len(s.Endpoints) != 0 || s.Error != "" {
			t.Errorf("%s: %+v", n.name, s)
		}
		// Those of the uplink and of the interface that looks like a workload's and
		// is closed; none of tap0, none of interfaces that are gone.
		if pins, _ := filepath.Glob(n.pins + "/v1/links/*"); len(pins) != 4 {
			t.Errorf("%s: programs %v", n.name, pins)
		}
	}
	tap := a.Link(t, "tap0").Attrs().Index
	if pins, _ := filepath.Glob(fmt.Sprintf("%s/v1/links/*-%d", a.pins, tap)); len(pins) != 0 {
		t.Errorf("tap0 keeps its programs: %v", pins)
	}
}

// traces lists what the kernel has for addresses that begin like one of those.
func (n *node) traces(c *cluster, prefixes ...string) []string {
	c.Helper()
	k, err := maps.Open(n.pins + "/v1/maps")
	if err != nil {
		c.Fatal(err)
	}
	defer k.Close()
	var left []string
	testbed.Eventually(func() bool {
		left = nil
		note := func(what, entry string) {
			for _, p := range prefixes {
				if strings.HasPrefix(entry, p) {
					left = append(left, what+" "+entry)
				}
			}
		}
		workloads, e1 := k.Workloads.Load()
		routes, e2 := k.Routes.Load()
		classes, e3 := k.HostClasses.Load()
		if err := errors.Join(e1, e2, e3); err != nil {
			c.Fatal(err)
		}
		for a := range workloads {
			note("workload", a.String())
		}
		for p := range routes {
			note("route", p.String())
		}
		for a := range classes {
			note("class of", a.String())
		}
		for _, family := range []string{"-4", "-6"} {
			for line := range strings.Lines(n.MustRun(c, "ip", family, "route", "show", "table", "all")) {
				note("kernel route", strings.TrimPrefix(line, "blackhole "))
			}
		}
		return len(left) == 0
	})
	return left
}

// TestEndpointMoves: an address goes from one host to the other and back. Those
// who talk to it find it again, on both hosts, by the same flows.
func TestEndpointMoves(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 1}})
	a, b := c.nodes[0], c.nodes[1]
	c.apply(openProfile)
	here := script{n: a, iface: "cali0moves", role: "moves", addresses: []string{"10.65.200.1/32", "fd66::200:1/128"}}
	there := here
	there.n = b
	var floods []*testbed.Flood
	for i, n := range c.nodes {
		s := script{n: n, iface: "cali0stays", role: "stays", addresses: []string{fmt.Sprintf("10.65.200.1%d/32", i), fmt.Sprintf("fd66::200:1%d/128", i)}}
		w := s.plug(c)
		s.put(c)
		for _, to := range here.addresses {
			floods = append(floods, testbed.StartFlood(t, w.Namespace, nil, netip.MustParsePrefix(to).Addr(), testbed.FloodOptions{Interval: 5 * time.Millisecond}))
		}
	}
	here.plug(c)
	there.plug(c)
	goOn := func(when string) {
		t.Helper()
		for i, f := range floods {
			if !f.Progresses(20) {
				t.Errorf("%s: ping %d: %s", when, i, f.Report())
			}
		}
	}
	at, next := here, there
	at.put(c)
	goOn("at first")
	for round := range 4 {
		if round%2 == 0 {
			at.delete(c)
			next.put(c)
		} else { // for a moment both have it
			next.put(c)
			at.delete(c)
		}
		at, next = next, at
		goOn(fmt.Sprintf("round %d, on %s", round, at.n.name))
	}
	stopAll(floods)
}
