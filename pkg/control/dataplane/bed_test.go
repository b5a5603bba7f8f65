package dataplane

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/loader"
	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"
	"calico-xdp/tools/testbed"
)

// bed is one host with the tables of a small cluster, whose programs run on packets
// that nobody sends. Workload n has the addresses 192.168.1.n and fd01::n and sits
// behind the interface cali<n>; the other nodes are nodeOf's.
type bed struct {
	*Dataplane
	host  *testbed.Host
	state *desired.State
	index map[string]int // of the host's interfaces
}

const (
	node4, node6 = "10.10.1.2", "fd10:10:1::2" // this host
	vxlanMAC     = "66:00:00:00:00:01"

	// The other nodes, by how one gets to their workloads.
	plain4, plain6 = "10.10.2.3", "fd10:10:2::3" // 192.168.3.0/26 and fd03::/122
	ipip4          = "10.10.2.4"                 // 192.168.4.0/26
	vxlan4, vxlan6 = "10.10.2.5", "fd10:10:2::5" // 192.168.5.0/26 and fd05::/122
	lost4          = "10.99.0.6"                 // 192.168.6.0/26: the kernel has no route to the node
	peerVXLANMAC   = "66:00:00:00:00:05"
)

// What the workloads are.
const (
	first     = 1 // a veth with a known MAC that may do everything
	second    = 2 // another one
	plainLink = 3 // no veth, and no MAC is known
	shut      = 4 // may neither send nor receive
	sendOnly  = 5
	hearOnly  = 6
	workloads = 6
)

// Rulesets of the tables.
const (
	allow policy.RulesetID = 1
	deny  policy.RulesetID = 2
)

func key(n int) api.Key {
	return api.Key{Kind: "WorkloadEndpoint", Namespace: "default", Name: fmt.Sprint("w", n)}
}

func macOf(n int) string { return fmt.Sprintf("02:00:00:00:00:%02x", n) }

func newBed(t *testing.T) *bed {
	t.Helper()
	return bedOn(t, unhooked(t))
}

func bedOn(t *testing.T, d *Dataplane) *bed {
	t.Helper()
	h := testbed.NewHosts(t, 1).Hosts[0]
	h.MustRun(t, "ip", "route", "add", "unreachable", "10.99.0.0/16")
	b := &bed{Dataplane: d, host: h, index: map[string]int{"eth0": h.Link(t, "eth0").Attrs().Index}}
	w := desired.Dataplane{
		Node:      desired.NodeAddresses{IPv4: netip.MustParseAddr(node4), IPv6: netip.MustParseAddr(node6), VXLANMAC: desired.MAC{0x66, 0, 0, 0, 0, 1}},
		ToHost:    desired.ToHostReturn,
		Uplinks:   map[int]desired.Link{b.index["eth0"]: {Name: "eth0", Index: b.index["eth0"], Up: true}},
		Endpoints: make(map[api.Key]desired.Endpoint),
		VXLANPort: 4789, VXLANVNI: 4096,
		Policy: twoRulesets(),
	}
	for n := 1; n <= workloads; n++ {
		name := fmt.Sprintf("cali%d", n)
		testbed.Veth(t, h.Namespace, name, h.Namespace, "peer"+name)
		b.index[name] = h.Link(t, name).Attrs().Index
		e := desired.Endpoint{
			Key: key(n), Interface: name, Ifindex: b.index[name], Veth: n != plainLink,
			HostMAC: desired.MAC{0xee, 0xee, 0xee, 0xee, 0xee, 0xee},
			Addresses: []netip.Addr{
				netip.MustParseAddr(fmt.Sprint("192.168.1.", n)), netip.MustParseAddr(fmt.Sprint("fd01::", n)),
			},
		}
		if n != plainLink {
			e.MAC = desired.MAC{2, 0, 0, 0, 0, byte(n)}
		}
		w.Endpoints[e.Key] = e
		w.Policy.Endpoints[e.Key] = map[int]policy.Rulesets{
			shut: {Egress: deny, Ingress: deny}, sendOnly: {Egress: allow, Ingress: deny}, hearOnly: {Egress: deny, Ingress: allow},
		}[n]
		if w.Policy.Endpoints[e.Key] == (policy.Rulesets{}) {
			w.Policy.Endpoints[e.Key] = policy.Rulesets{Egress: allow, Ingress: allow}
		}
	}
	via := func(node string, encap desired.Encap) desired.Route {
		return desired.Route{Kind: desired.RouteWorkload, Via: netip.MustParseAddr(node), Encap: encap}
	}
	w.Routes = map[netip.Prefix]desired.Route{
		netip.MustParsePrefix(node4 + "/32"):    {Kind: desired.RouteHost},
		netip.MustParsePrefix(node6 + "/128"):   {Kind: desired.RouteHost},
		netip.MustParsePrefix("192.168.1.0/26"): {Kind: desired.RouteBlock},
		netip.MustParsePrefix("fd01::/122"):     {Kind: desired.RouteBlock},
		netip.MustParsePrefix("192.168.3.0/26"): via(plain4, desired.EncapNone),
		netip.MustParsePrefix("fd03::/122"):     via(plain6, desired.EncapNone),
		netip.MustParsePrefix("192.168.4.0/26"): via(ipip4, desired.EncapIPIP),
		netip.MustParsePrefix("192.168.5.0/26"): via(vxlan4, desired.EncapVXLAN),
		netip.MustParsePrefix("fd05::/122"):     via(vxlan6, desired.EncapVXLAN),
		netip.MustParsePrefix("192.168.6.0/26"): via(lost4, desired.EncapIPIP),
	}
	w.Peers = make(map[netip.Addr]desired.Peer)
	for _, node := range []string{plain4, plain6, ipip4, vxlan4, vxlan6, lost4} {
		w.Peers[netip.MustParseAddr(node)] = desired.Peer{VXLANMAC: desired.MAC{0x66, 0, 0, 0, 0, 5}}
		w.Routes[netip.PrefixFrom(netip.MustParseAddr(node), netip.MustParseAddr(node).BitLen())] = desired.Route{Kind: desired.RoutePeerHost}
	}
	b.state = &desired.State{Dataplane: w}
	b.sync(t)
	return b
}

// twoRulesets are tables in which all addresses and ports are alike.
func twoRulesets() *policy.Tables {
	everything := &policy.Dimension{Width: 1, Blocks: []policy.Block{{Stored: 1}}, Words: []uint64{1}}
	ruleset := func(a policy.Action) *policy.Ruleset {
		return &policy.Ruleset{
			Parts:   []policy.Part{{Run: &policy.Run{Rules: []policy.RunRule{{Action: a}}}}},
			Sources: everything, Destinations: everything, SourcePorts: everything, DestinationPorts: everything,
		}
	}
	return &policy.Tables{
		Peers:       map[netip.Prefix]policy.PeerClass{netip.MustParsePrefix("0.0.0.0/0"): 1},
		PeerClasses: 2,
		Rulesets:    map[policy.RulesetID]*policy.Ruleset{allow: ruleset(policy.Allow), deny: ruleset(policy.Deny)},
		Endpoints:   make(map[api.Key]policy.Rulesets),
	}
}

func (b *bed) sync(t testing.TB) {
	t.Helper()
	pretendAttached(b.Dataplane, b.state)
	if err := b.Ensure(context.Background(), b.state); err != nil {
		t.Fatal(err)
	}
	if err := b.Prune(context.Background(), b.state); err != nil {
		t.Fatal(err)
	}
}

// forget empties the flow tables.
func (b *bed) forget(t testing.TB) {
	t.Helper()
	empty(t, b.kernel.Flows)
	empty(t, b.kernel.NewFlows)
	empty(t, b.kernel.Fragments)
}

func empty[K, V comparable](t testing.TB, table kernel.Table[K, V]) {
	t.Helper()
	all, err := table.Load()
	if err != nil {
		t.Fatal(err)
	}
	for k := range all {
		if err := table.Delete(k); err != nil {
			t.Fatal(err)
		}
	}
}

// frame starts a packet that a workload, or the network, sends from src to dst.
func frame(src, dst string) testbed.Packet {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	mac := "02:00:00:00:99:99" // the uplink's neighbour
	if n := workloadOf(s); n > 0 {
		mac = macOf(n)
	}
	return testbed.Ethernet(mac, hostMAC).IP(s, d)
}

// workloadOf is the number of the workload with that address, else 0.
func workloadOf(a netip.Addr) int {
	b := a.As16()
	n := int(b[15])
	local := netip.MustParsePrefix("192.168.1.0/26").Contains(a) || netip.MustParsePrefix("fd01::/122").Contains(a)
	if !local || n > workloads {
		return 0
	}
	return n
}

// trial is a packet and what shall become of it at a hook.
type trial struct {
	name   string
	hook   loader.Program
	packet testbed.Packet
	edit   func([]byte) // what the builder cannot build
	raw    []byte       // instead of packet
	on     string       // the interface it is seen on; by default that of the workload, or the uplink
	after  []trial      // before it, in this order; want "" accepts everything
	from   string       // the interface it was received on; "" for the host's own
	mark   uint32
	want   string                             // what the program returns, and how it counts the packet
	out    string                             // how the packet leaves, as testbed.TextMAC has it; "" for unchanged
	check  func(t *testing.T, in, out []byte) // instead of out
}

var returns = map[int32]string{-1: "next", 0: "ok", 2: "shot", 7: "redirect"}

// run sends one packet and returns what the program did: "redirect pass_to_workload".
func (b *bed) run(t testing.TB, s trial) (did string, in, out []byte) {
	t.Helper()
	in = s.raw
	if in == nil {
		in = s.packet.Bytes()
	}
	if s.edit != nil {
		s.edit(in)
	}
	c := loader.Context{Ifindex: uint32(b.index[s.seenOn(in)]), Mark: s.mark, IngressIfindex: uint32(b.index[s.from])}
	before := b.counters(t)
	var r loader.Result
	err := b.host.Do(func() (err error) {
		r, err = b.programs.Run(s.hook, in, c)
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	var moved []string
	for c, n := range b.counters(t) {
		if d := n.Packets - before[c].Packets; d != 0 {
			line := fmt.Sprintf("%s %s", c.Hook, c.Reason)
			if c.Hook == string(s.hook) && d == 1 && n.Bytes-before[c].Bytes == uint64(len(in)) {
				line = c.Reason
			}
			moved = append(moved, line)
		}
	}
	slices.Sort(moved)
	return returns[r.Return] + " " + strings.Join(moved, ", "), in, r.Packet
}

// counters are the counters by hook and reason.
func (b *bed) counters(t testing.TB) map[kernel.Count]kernel.Counter {
	t.Helper()
	counts, err := b.kernel.Counters()
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[kernel.Count]kernel.Counter)
	for _, c := range counts {
		out[kernel.Count{Hook: c.Hook, Reason: c.Reason}] = kernel.Counter{Packets: c.Packets, Bytes: c.Bytes}
	}
	return out
}

func (s trial) seenOn(frame []byte) string {
	switch {
	case s.on != "":
		return s.on
	case s.hook == loader.FromNetwork || s.hook == loader.ToNetwork:
		return "eth0"
	}
	at, size := 26, 4 // the source address
	if frame[12] == 0x86 {
		at, size = 22, 16
	}
	if s.hook == loader.ToWorkload {
		at += size
	}
	if len(frame) < at+size {
		return "cali1"
	}
	a, _ := netip.AddrFromSlice(frame[at : at+size])
	if n := workloadOf(a); n > 0 {
		return fmt.Sprint("cali", n)
	}
	return "cali1"
}

// fire runs a table of packets, each on empty flow tables.
func (b *bed) fire(t *testing.T, table []trial) {
	t.Helper()
	for _, s := range table {
		t.Run(s.name, func(t *testing.T) {
			b.forget(t)
			b.expect(t, s)
		})
	}
}

// expect runs what comes before a packet, and it.
func (b *bed) expect(t *testing.T, s trial) {
	t.Helper()
	for _, earlier := range s.after {
		b.expect(t, earlier)
	}
	did, in, out := b.run(t, s)
	if s.want == "" {
		return
	}
	if did != s.want {
		t.Errorf("%s: %s: %s, want %s", s.hook, testbed.Text(in), did, s.want)
		return
	}
	if strings.Contains(did, "drop_") {
		return
	}
	if bad := testbed.BadChecksums(out); s.check == nil && len(bad) > 0 && len(testbed.BadChecksums(in)) == 0 {
		t.Errorf("%s: wrong checksums: %s", testbed.Text(out), bad)
	}
	switch {
	case s.check != nil:
		s.check(t, in, out)
	case s.out != "":
		if got := testbed.TextMAC(out); got != s.out {
			t.Errorf("%s left as\n%s, want\n%s", testbed.Text(in), got, s.out)
		}
	case !bytes.Equal(in, out):
		t.Errorf("%s was changed to %s", testbed.TextMAC(in), testbed.TextMAC(out))
	}
}
