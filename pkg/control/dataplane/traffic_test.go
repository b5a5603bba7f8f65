package dataplane_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/dataplane"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/policy"
	"calico-xdp/tools/testbed"
)

// node is one host with a dataplane of ours, and the state that it is told to be.
type node struct {
	*testbed.Host
	*dataplane.Dataplane
	state *desired.State
	pins  string
}

const vni = 4096

// allowAll compiles to tables that let everything through for the given endpoints.
func allowAll(keys ...api.Key) *policy.Tables {
	everything := &policy.Dimension{Width: 1, Blocks: []policy.Block{{Stored: 1}}, Words: []uint64{1}}
	t := &policy.Tables{
		Peers:       map[netip.Prefix]policy.PeerClass{netip.MustParsePrefix("0.0.0.0/0"): 1},
		PeerClasses: 3,
		Rulesets: map[policy.RulesetID]*policy.Ruleset{1: {
			Parts:   []policy.Part{{Run: &policy.Run{Rules: []policy.RunRule{{Action: policy.Allow}}}}},
			Sources: everything, Destinations: everything, SourcePorts: everything, DestinationPorts: everything,
		}},
		Endpoints: make(map[api.Key]policy.Rulesets),
	}
	for _, k := range keys {
		t.Endpoints[k] = policy.Rulesets{Egress: 1, Ingress: 1}
	}
	return t
}

func newNode(t *testing.T, h *testbed.Host, o dataplane.Options) *node {
	t.Helper()
	pins := filepath.Join("/sys/fs/bpf", "dp-"+h.Name)
	o.PinDir = pins
	n := &node{Host: h, pins: pins}
	uplink := h.Link(t, "eth0").Attrs()
	n.state = &desired.State{Dataplane: desired.Dataplane{
		Node:      desired.NodeAddresses{IPv4: h.IPv4.Addr(), IPv6: h.IPv6.Addr(), VXLANMAC: vxlanMAC(h)},
		ToHost:    desired.ToHostReturn,
		Uplinks:   map[int]desired.Link{uplink.Index: {Name: "eth0", Index: uplink.Index, Up: true}},
		Endpoints: make(map[api.Key]desired.Endpoint),
		Routes: map[netip.Prefix]desired.Route{
			netip.PrefixFrom(h.IPv4.Addr(), 32):  {Kind: desired.RouteHost},
			netip.PrefixFrom(h.IPv6.Addr(), 128): {Kind: desired.RouteHost},
		},
		Peers:     make(map[netip.Addr]desired.Peer),
		VXLANPort: 4789, VXLANVNI: vni,
		Policy: allowAll(),
	}}
	t.Cleanup(func() {
		if err := h.Do(func() error { _, err := dataplane.Detach(pins); return err }); err != nil {
			t.Error(err)
		}
	})
	n.start(t, o)
	return n
}

func (n *node) start(t *testing.T, o dataplane.Options) {
	t.Helper()
	err := n.Do(func() (err error) {
		n.Dataplane, err = dataplane.New(o, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Dataplane.Close() })
}

func vxlanMAC(h *testbed.Host) desired.MAC {
	a := h.IPv4.Addr().As4()
	return desired.MAC{0x66, 0, a[0], a[1], a[2], a[3]}
}

// workload adds a workload with its endpoint to the node.
func (n *node) workload(t *testing.T, name string, addresses ...string) *testbed.Workload {
	t.Helper()
	var addrs []netip.Addr
	for _, a := range addresses {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	w := n.AddWorkload(t, name, addrs...)
	w.SetMTU(t, "eth0", 1430) // room for the largest outer header
	link := n.Link(t, name).Attrs()
	e := desired.Endpoint{
		Key:       api.Key{Kind: "WorkloadEndpoint", Namespace: "default", Name: name},
		Interface: name, Ifindex: link.Index, Veth: true,
		MAC: desired.MAC(w.MAC), HostMAC: desired.MAC(link.HardwareAddr), Addresses: addrs,
	}
	n.state.Dataplane.Endpoints[e.Key] = e
	n.state.Dataplane.Policy.Endpoints[e.Key] = policy.Rulesets{Egress: 1, Ingress: 1}
	return w
}

// knows tells the node of another one and its workloads. There is no IPIP for IPv6:
// that stays plain.
func (n *node) knows(other *node, encap desired.Encap) {
	n.knowsHost(other.Host)
	for _, e := range other.state.Dataplane.Endpoints {
		for _, a := range e.Addresses {
			n.knowsPrefix(other.Host, netip.PrefixFrom(a, a.BitLen()), encap)
		}
	}
}

// knowsHost tells the node of another one, whatever it runs.
func (n *node) knowsHost(other *testbed.Host) {
	d := &n.state.Dataplane
	for _, a := range []netip.Addr{other.IPv4.Addr(), other.IPv6.Addr()} {
		d.Peers[a] = desired.Peer{VXLANMAC: vxlanMAC(other)}
		d.Routes[netip.PrefixFrom(a, a.BitLen())] = desired.Route{Kind: desired.RoutePeerHost}
	}
}

// knowsPrefix tells the node of workloads of another one.
func (n *node) knowsPrefix(other *testbed.Host, p netip.Prefix, encap desired.Encap) {
	r := desired.Route{Kind: desired.RouteWorkload, Via: other.IPv4.Addr(), Encap: encap}
	if p.Addr().Is6() {
		r.Via = other.IPv6.Addr()
		if encap == desired.EncapIPIP {
			r.Encap = desired.EncapNone
		}
	}
	n.state.Dataplane.Routes[p] = r
}

func (n *node) sync(t *testing.T) {
	t.Helper()
	err := n.Do(func() error {
		if err := n.Ensure(context.Background(), n.state); err != nil {
			return err
		}
		return n.Prune(context.Background(), n.state)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (n *node) counts(t *testing.T) string {
	t.Helper()
	counts, err := n.Maps().Counters()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, c := range counts {
		lines = append(lines, fmt.Sprintf("%s %s %d", c.Hook, c.Reason, c.Packets))
	}
	return strings.Join(lines, "\n")
}

func TestWorkloadsReachEachOther(t *testing.T) {
	for _, test := range []struct {
		name  string
		encap desired.Encap
		wire  []string // what the fabric must see
		v6    bool
	}{
		{"plain", desired.EncapNone, []string{"IP 192.168.1.1 > 192.168.2.1: ICMP"}, true},
		{"ipip", desired.EncapIPIP, []string{"IP 10.10.1.2 > 10.10.2.3: IPIP ttl 64 / IP 192.168.1.1 > 192.168.2.1: ICMP"}, false},
		{"vxlan", desired.EncapVXLAN, []string{
			"IP 10.10.1.2 > 10.10.2.3: VXLAN 4096 ttl 64 / IP 192.168.1.1 > 192.168.2.1: ICMP",
			"IP6 fd10:10:1::2 > fd10:10:2::3: VXLAN 4096 ttl 64 / IP6 fd01::1 > fd02::1: ICMP",
		}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			lab := testbed.NewHosts(t, 2, 1, 2)
			a, b := newNode(t, lab.Hosts[0], dataplane.Options{}), newNode(t, lab.Hosts[1], dataplane.Options{})
			wa := a.workload(t, "calia", "192.168.1.1", "fd01::1")
			wa2 := a.workload(t, "calia2", "192.168.1.2", "fd01::2")
			wb := b.workload(t, "calib", "192.168.2.1", "fd02::1")
			if test.encap == desired.EncapNone {
				lab.Router.AddRoute(t, "192.168.1.0/24", lab.Hosts[0].IPv4.Addr().String(), "eth1")
				lab.Router.AddRoute(t, "192.168.2.0/24", lab.Hosts[1].IPv4.Addr().String(), "eth2")
				lab.Router.AddRoute(t, "fd01::/64", lab.Hosts[0].IPv6.Addr().String(), "eth1")
				lab.Router.AddRoute(t, "fd02::/64", lab.Hosts[1].IPv6.Addr().String(), "eth2")
				// Plain routing crosses the router only with its routes.
				a.AddRoute(t, "192.168.2.0/24", lab.Hosts[0].Gateway4.String(), "eth0")
				b.AddRoute(t, "192.168.1.0/24", lab.Hosts[1].Gateway4.String(), "eth0")
			}
			a.knows(b, test.encap)
			b.knows(a, test.encap)
			a.sync(t)
			b.sync(t)
			wire := testbed.StartCapture(t, lab.Fabric, lab.Hosts[0].Port)
			targets := []*testbed.Workload{wa2, wb}
			for _, to := range targets {
				for _, addr := range to.Addresses {
					if addr.Is6() && !test.v6 && to == wb {
						continue
					}
					if got, sent := testbed.Ping(wa.Namespace, addr, 3); got != sent {
						t.Errorf("ping %s: %d of %d", addr, got, sent)
					}
					s := testbed.StartTCP(t, wa.Namespace, to.Namespace, netip.AddrPortFrom(addr, 9000))
					if !s.Progresses(4e6) {
						t.Errorf("tcp to %s: %d bytes: %v", addr, s.Acked(), s.Err())
					}
					s.Stop()
				}
			}
			for _, want := range test.wire {
				if !wire.Has(func(line string) bool { return strings.Contains(line, want) }) {
					t.Errorf("no %q on the wire:\n%s", want, strings.Join(first(wire.Lines(), 20), "\n"))
				}
			}
			if t.Failed() {
				t.Logf("a:\n%s\nb:\n%s", a.counts(t), b.counts(t))
			}
		})
	}
}

func first(lines []string, n int) []string { return slices.Clip(lines[:min(n, len(lines))]) }
