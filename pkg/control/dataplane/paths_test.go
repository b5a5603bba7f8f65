package dataplane_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/dataplane"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/tools/testbed"
)

// fleet is three nodes, the first two in one subnet and the third behind the router.
// Each has a workload with an address of each family: 192.168.n.1 and fd0n::1.
type fleet struct {
	*testbed.Lab
	nodes     []*node
	workloads []*testbed.Workload
}

const workloadMTU = 1430 // room for the largest outer header

func newFleet(t *testing.T, o dataplane.Options) *fleet {
	t.Helper()
	f := &fleet{Lab: testbed.NewHosts(t, 3, 1, 1, 2)}
	for i, h := range f.Hosts {
		n := newNode(t, h, o)
		f.nodes = append(f.nodes, n)
		f.workloads = append(f.workloads, n.workload(t, "calia", fmt.Sprintf("192.168.%d.1", i+1), fmt.Sprintf("fd0%d::1", i+1)))
		n.deliver(t, "calia", f.workloads[i].Addresses...)
	}
	// The kernel's routes, as the host part makes them. Encapsulated packets do not
	// need them; plain ones and the hosts' own do.
	for i, h := range f.Hosts {
		v4, v6 := fmt.Sprintf("192.168.%d.0/24", i+1), fmt.Sprintf("fd0%d::/64", i+1)
		for j, from := range f.Hosts {
			switch {
			case i == j:
			case from.Subnet == h.Subnet:
				route(t, from.Namespace, v4, h.IPv4.Addr())
				route(t, from.Namespace, v6, h.IPv6.Addr())
			default:
				route(t, from.Namespace, v4, from.Gateway4)
				route(t, from.Namespace, v6, from.Gateway6)
			}
		}
		eth := fmt.Sprintf("eth%d", h.Subnet)
		f.Router.AddRoute(t, v4, h.IPv4.Addr().String(), eth)
		f.Router.AddRoute(t, v6, h.IPv6.Addr().String(), eth)
	}
	return f
}

// route sends a prefix of workloads out of a host.
func route(t *testing.T, n *testbed.Namespace, prefix string, via netip.Addr) {
	t.Helper()
	n.MustRun(t, "ip", "route", "replace", prefix, "via", via.String(), "dev", "eth0", "mtu", fmt.Sprint(workloadMTU))
}

// deliver gives the host routes to a workload's addresses.
func (n *node) deliver(t *testing.T, iface string, addrs ...netip.Addr) {
	t.Helper()
	for _, a := range addrs {
		n.AddRoute(t, netip.PrefixFrom(a, a.BitLen()).String(), "", iface)
	}
}

// connect tells every node how to reach the workloads of the other two: same is for
// nodes in one subnet, other for nodes with a router between them.
func (f *fleet) connect(t *testing.T, same, other desired.Encap) {
	t.Helper()
	for _, n := range f.nodes {
		for _, m := range f.nodes {
			switch {
			case n == m:
			case n.Subnet == m.Subnet:
				n.knows(m, same)
			default:
				n.knows(m, other)
			}
		}
	}
	for _, n := range f.nodes {
		n.sync(t)
	}
}

func (f *fleet) log(t *testing.T) {
	t.Helper()
	for i, n := range f.nodes {
		t.Logf("node %d:\n%s", i+1, n.counts(t))
	}
}

// exchange sends ping, small UDP, UDP that fills the MTU, and a TCP stream to an address.
func exchange(t *testing.T, from, to *testbed.Namespace, addr netip.Addr) {
	t.Helper()
	// More than once because ICMP answers of the whole machine share one small buffer:
	// a busy kernel refuses some. UDP is where a lost packet counts.
	answered := func() bool {
		got, sent := testbed.Probe{Count: 3, Wait: silence}.Ping(from, addr)
		return got == 3 && sent == 3
	}
	if !testbed.Eventually(answered) {
		t.Errorf("ping %s: not all of 3 answered", addr)
		return
	}
	fills := workloadMTU - 28
	if addr.Is6() {
		fills -= 20
	}
	for _, size := range []int{8, fills} {
		flood := testbed.StartFlood(t, from, to, addr, testbed.FloodOptions{Protocol: "udp", Size: size})
		flood.Progresses(10)
		if r := flood.Stop(); r.Answered < 10 || r.Lost > 0 || r.Duplicated > 0 {
			t.Errorf("UDP of %d bytes to %s: %s", size, addr, r)
		}
	}
	stream(t, from, to, addr)
}

// stream sends a TCP stream to an address.
func stream(t *testing.T, from, to *testbed.Namespace, addr netip.Addr) {
	t.Helper()
	s := testbed.StartTCP(t, from, to, netip.AddrPortFrom(addr, 9000))
	if !s.Progresses(1e6) || s.Err() != nil {
		t.Errorf("TCP to %s: %d bytes: %v", addr, s.Acked(), s.Err())
	}
	s.Stop()
}

// onWire is how packets between two workloads look behind so many routers.
func onWire(from, to *node, encap desired.Encap, src, dst netip.Addr, routers int) string {
	inner, outer := fmt.Sprintf("IP %s > %s:", src, dst), fmt.Sprintf("IP %s > %s:", from.IPv4.Addr(), to.IPv4.Addr())
	if src.Is6() {
		inner, outer = fmt.Sprintf("IP6 %s > %s:", src, dst), fmt.Sprintf("IP6 %s > %s:", from.IPv6.Addr(), to.IPv6.Addr())
	}
	switch {
	case encap == desired.EncapVXLAN:
		return fmt.Sprintf("%s VXLAN %d ttl %d / %s", outer, vni, 64-routers, inner)
	case encap == desired.EncapIPIP && src.Is4():
		return fmt.Sprintf("%s IPIP ttl %d / %s", outer, 64-routers, inner)
	}
	return inner
}

// travels checks how all packets between two workloads looked at the first one's node,
// in both directions, and that large TCP left it in one piece.
func (f *fleet) travels(t *testing.T, wire *testbed.Capture, a, b int, encap desired.Encap) {
	t.Helper()
	for i, src := range f.workloads[a].Addresses {
		dst, routers := f.workloads[b].Addresses[i], 0
		if f.nodes[a].Subnet != f.nodes[b].Subnet {
			routers = 1
		}
		there, back := onWire(f.nodes[a], f.nodes[b], encap, src, dst, 0), onWire(f.nodes[b], f.nodes[a], encap, dst, src, routers)
		largest, seen := 0, 0
		for _, p := range wire.Packets() {
			line := p.String()
			switch {
			case strings.HasPrefix(line, there):
				seen++
				if !p.Outgoing && strings.Contains(line, "TCP") {
					largest = max(largest, len(p.Data))
				}
			case strings.HasPrefix(line, back):
				seen++
			case strings.Contains(line, fmt.Sprintf("%s > %s:", src, dst)) || strings.Contains(line, fmt.Sprintf("%s > %s:", dst, src)):
				t.Errorf("on the wire: %s, want %s …", line, there)
				return
			}
		}
		if seen == 0 {
			t.Errorf("on the wire: no %s …", there)
		}
		if largest < 4000 {
			t.Errorf("%s …: the largest TCP packet has %d bytes: no GSO", there, largest)
		}
	}
}

var modes = []struct {
	name        string
	same, other desired.Encap // between nodes in one subnet, and in two
}{
	{"plain", desired.EncapNone, desired.EncapNone},
	{"IPIP", desired.EncapIPIP, desired.EncapIPIP},
	{"VXLAN", desired.EncapVXLAN, desired.EncapVXLAN},
	{"IPIP across subnets", desired.EncapNone, desired.EncapIPIP},
	{"VXLAN across subnets", desired.EncapNone, desired.EncapVXLAN},
}

// Every way between two workloads. The modes follow one another on the same nodes, so
// each is also a change under flows that are known.
func TestPaths(t *testing.T) {
	f := newFleet(t, dataplane.Options{})
	a := f.workloads[0]
	local := f.nodes[0].workload(t, "calib", "192.168.1.2", "fd01::2")
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			f.connect(t, mode.same, mode.other)
			wire := testbed.StartCapture(t, f.Fabric, f.Hosts[0].Port)
			for i, to := range f.workloads[1:] {
				for j, addr := range to.Addresses {
					exchange(t, a.Namespace, to.Namespace, addr)
					exchange(t, to.Namespace, a.Namespace, a.Addresses[j])
				}
				f.travels(t, wire, 0, i+1, []desired.Encap{mode.same, mode.other}[i])
			}
			wire.Stop()
			if t.Failed() {
				f.log(t)
			}
		})
	}
	t.Run("local", func(t *testing.T) {
		for i, addr := range local.Addresses {
			exchange(t, a.Namespace, local.Namespace, addr)
			exchange(t, local.Namespace, a.Namespace, a.Addresses[i])
		}
	})
	t.Run("itself", func(t *testing.T) {
		for _, addr := range a.Addresses {
			exchange(t, a.Namespace, a.Namespace, addr)
		}
	})
}

// The other ways to attach the programs.
func TestPathsOnOtherHooks(t *testing.T) {
	for name, o := range map[string]dataplane.Options{
		"clsact": {Clsact: true},
		"XDP":    {XDP: true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, o)
			local := f.nodes[0].workload(t, "calib", "192.168.1.2", "fd01::2")
			for _, mode := range modes[:3] {
				t.Run(mode.name, func(t *testing.T) {
					f.connect(t, mode.same, mode.other)
					wire := testbed.StartCapture(t, f.Fabric, f.Hosts[0].Port)
					to := f.workloads[2]
					for i, addr := range to.Addresses {
						exchange(t, f.workloads[0].Namespace, to.Namespace, addr)
						exchange(t, to.Namespace, f.workloads[0].Namespace, f.workloads[0].Addresses[i])
					}
					f.travels(t, wire, 0, 2, mode.other)
					if t.Failed() {
						f.log(t)
					}
				})
			}
			for _, addr := range local.Addresses {
				exchange(t, f.workloads[0].Namespace, local.Namespace, addr)
			}
			f.attached(t, o)
		})
	}
}

// attached checks that the programs are where the options say.
func (f *fleet) attached(t *testing.T, o dataplane.Options) {
	t.Helper()
	filters := f.nodes[0].MustRun(t, "tc", "filter", "show", "dev", "eth0", "ingress")
	if got := strings.Contains(filters, "from_network"); got != o.Clsact {
		t.Errorf("from_network as a clsact filter: %v:\n%s", got, filters)
	}
	link := f.nodes[0].MustRun(t, "ip", "link", "show", "dev", "eth0")
	if got := strings.Contains(link, "prog/xdp"); got != o.XDP || strings.Contains(link, "xdpgeneric") {
		t.Errorf("XDP program on eth0: %v:\n%s", got, link)
	}
	if got := strings.Contains(f.nodes[0].counts(t), "xdp_network"); got != o.XDP {
		t.Errorf("xdp_network counts: %v", got)
	}
}

// What is known of a workload's interface differs.
func TestKindsOfInterfaces(t *testing.T) {
	f := newFleet(t, dataplane.Options{})
	a := f.nodes[0]
	local := a.workload(t, "calib", "192.168.1.2", "fd01::2")
	a.deliver(t, "calib", local.Addresses...)
	w, key := f.workloads[0], endpointKey("calia")
	known := a.state.Dataplane.Endpoints[key]
	for _, test := range []struct {
		name string
		veth bool
		mac  desired.MAC
	}{
		{"veth without MAC", true, desired.MAC{}},
		{"no veth", false, known.MAC},
		{"no veth and no MAC", false, desired.MAC{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := known
			e.Veth, e.MAC = test.veth, test.mac
			a.state.Dataplane.Endpoints[key] = e
			f.connect(t, desired.EncapIPIP, desired.EncapVXLAN)
			for i, addr := range w.Addresses {
				for _, other := range []*testbed.Workload{local, f.workloads[1], f.workloads[2]} {
					exchange(t, other.Namespace, w.Namespace, addr)
				}
				exchange(t, w.Namespace, local.Namespace, local.Addresses[i])
				exchange(t, a.Namespace, w.Namespace, addr)
			}
			if t.Failed() {
				f.log(t)
			}
		})
	}
}

// A workload with many addresses, some of which sit behind it.
func TestSeveralAddresses(t *testing.T) {
	f := newFleet(t, dataplane.Options{})
	a, to := f.nodes[0], f.workloads[2]
	w := a.workload(t, "calib", "192.168.1.10", "192.168.1.11", "192.168.1.12", "fd01::10", "fd01::11")
	local := f.workloads[0]
	behind := testbed.NewNamespace(t, "behind")
	nested := []netip.Addr{netip.MustParseAddr("192.168.1.20"), netip.MustParseAddr("fd01::20")}
	testbed.Veth(t, w.Namespace, "inner", behind, "eth0")
	w.Sysctl(t, "net.ipv4.ip_forward", "1")
	w.Sysctl(t, "net.ipv6.conf.all.forwarding", "1")
	w.AddAddress(t, "inner", "192.168.1.21/32")
	w.AddAddress(t, "inner", "fd01::21/128")
	for i, gateway := range []string{"192.168.1.21", "fd01::21"} {
		p := netip.PrefixFrom(nested[i], nested[i].BitLen()).String()
		behind.AddAddress(t, "eth0", p)
		behind.AddRoute(t, netip.PrefixFrom(netip.MustParseAddr(gateway), nested[i].BitLen()).String(), "", "eth0")
		behind.AddRoute(t, []string{"0.0.0.0/0", "::/0"}[i], gateway, "eth0")
		w.AddRoute(t, p, "", "inner")
	}
	behind.SetMTU(t, "eth0", workloadMTU)
	e := a.state.Dataplane.Endpoints[endpointKey("calib")]
	e.Addresses = append(e.Addresses, nested...)
	a.state.Dataplane.Endpoints[e.Key] = e
	a.deliver(t, "calib", e.Addresses...)
	for _, mode := range modes[1:3] {
		f.connect(t, mode.same, mode.other)
		for _, addr := range w.Addresses {
			other := 0
			if addr.Is6() {
				other = 1
			}
			exchange(t, to.Namespace, w.Namespace, addr)
			if !testbed.Eventually(func() bool {
				return testbed.Probe{From: addr, Wait: silence}.Reaches(w.Namespace, to.Addresses[other])
			}) {
				t.Errorf("%s: ping from %s: no answer", mode.name, addr)
			}
		}
		for i, addr := range nested {
			for _, from := range []*testbed.Workload{to, local} {
				exchange(t, from.Namespace, behind, addr)
				exchange(t, behind, from.Namespace, from.Addresses[i])
			}
		}
	}
	if t.Failed() {
		f.log(t)
	}
}

func endpointKey(name string) api.Key {
	return api.Key{Kind: "WorkloadEndpoint", Namespace: "default", Name: name}
}
