package macro

import (
	"fmt"
	"net/netip"

	"calico-xdp/perf/bed"
	"calico-xdp/pkg/loader"
	"calico-xdp/tools/testbed"
)

// Packets per second of connections that are known: 64 bytes on the wire, 60 without
// the checksum that a veth does not have.

const frameBytes = 60

// packets are those scenarios.
func packets() []Scenario {
	out := []Scenario{{
		Name: "packets/local", About: "64-byte UDP packets from one workload to another one of the host",
		Quick: true, Figures: []Figure{{Unit: "packets/s", Goals: map[string]float64{"kernel": 1.6}}},
		Lanes: func(r *Run, t testbed.T) []lane {
			ways := []way{ours(nil), kernel(), bareRedirect()}
			out := lanes(t, ways, func(s *site) sampler { return r.udpBetween(t, s) })
			// No answer would get through: nothing of it is a conversation.
			return append(out, lane{"XDP_REDIRECT", r.udpFlood(t, newRedirecting(t), netip.AddrPortFrom(netip.MustParseAddr(aAddress), 4000))})
		},
	}}
	for _, n := range []int{10, 100, 1000, 10000} {
		s := Scenario{
			Name: fmt.Sprint("packets/rules/", n), Figures: []Figure{{Unit: "packets/s"}}, Quick: n == 1000,
			About: "64-byte packets of one TCP connection that the last rule allows; who keeps no state asks the rules for each",
			Lanes: func(r *Run, t testbed.T) []lane {
				rules := bed.Rules(n)
				return lanes(t, r.underRules(rules, false), func(s *site) sampler {
					return r.tcpUnderRules(t, s, rules[n-1])
				})
			},
		}
		if n == 1000 {
			s.Figures[0].Goals = map[string]float64{"iptables-nft": 5, "iptables-legacy": 5}
		}
		out = append(out, s)
	}
	return out
}

// bareRedirect is the least that a program can do: every packet of a goes to b, and
// the other way.
func bareRedirect() way {
	return way{"redirect_peer", func(t testbed.T) *site {
		s := newKernel(t, "redirect")
		a, b := s.host.Link(t, s.a.Interface).Attrs().Index, s.host.Link(t, s.b.Interface).Attrs().Index
		for from, to := range map[int]int{a: b, b: a} {
			p, err := loader.NewRedirectPeer(to)
			if err != nil {
				t.Fatalf("%v", err)
			}
			t.Cleanup(func() { p.Close() })
			if err := s.host.Do(func() error { return p.AttachIngress(from) }); err != nil {
				t.Fatalf("redirect_peer: %v", err)
			}
		}
		// The program takes ARP along.
		for _, w := range []*testbed.Workload{s.a, s.b} {
			w.MustRun(t, "ip", "neigh", "replace", testbed.WorkloadGateway, "dev", "eth0", "lladdr", testbed.HostMAC, "nud", "permanent")
		}
		return s
	}}
}

// newRedirecting is a site whose host sends every packet of a on to b in XDP: what can be
// done before the kernel has made anything of a packet.
func newRedirecting(t testbed.T) *site {
	t.Helper()
	s := newKernel(t, "xdp")
	receiveFrames(t, s.b.Namespace, "eth0")
	p, err := loader.NewXDPRedirect(s.host.Link(t, s.b.Interface).Attrs().Index)
	if err == nil {
		t.Cleanup(func() { p.Close() })
		from := s.host.Link(t, s.a.Interface).Attrs().Index
		err = s.host.Do(func() error { return p.AttachXDP(from) })
	}
	if err != nil {
		t.Fatalf("XDP_REDIRECT: %v", err)
	}
	return s
}

const udpPort = 5000

func (r *Run) udpBetween(t testbed.T, s *site) sampler {
	src := netip.AddrPortFrom(s.a.Addresses[0], 4000)
	greet(t, s.a.Namespace, src, s.b, udpPort)
	return r.udpFlood(t, s, src)
}

// udpFlood sends from a to b.
func (r *Run) udpFlood(t testbed.T, s *site, src netip.AddrPort) sampler {
	p := testbed.Ethernet(s.a.MAC.String(), testbed.HostMAC).IP(src.Addr(), s.b.Addresses[0]).UDP(src.Port(), udpPort).Payload(frameBytes - 42)
	f := newFlood(t, s.a.Namespace, p.Bytes(), loader.Variety{}, sink(t, s.b))
	return f.sampler(r.Sample)
}

// tcpUnderRules sends on one connection that the rule allows.
func (r *Run) tcpUnderRules(t testbed.T, s *site, rule bed.Rule) sampler {
	src := netip.AddrPortFrom(bed.Member(rule.Source, 0), 4000)
	s.world.AddAddress(t, "lo", netip.PrefixFrom(src.Addr(), 32).String())
	connect(t, s.world, src, s.b, rule.Port)
	p := s.fromWorld(t, src.Addr()).TCP(src.Port(), rule.Port, "A").Payload(frameBytes - 54)
	f := newFlood(t, s.world, p.Bytes(), loader.Variety{}, sink(t, s.b))
	return f.sampler(r.Sample)
}

// fromWorld starts a packet from the world to b.
func (s *site) fromWorld(t testbed.T, src netip.Addr) testbed.Packet {
	t.Helper()
	from, to := s.world.Link(t, "eth0").Attrs().HardwareAddr, s.host.Link(t, "eth0").Attrs().HardwareAddr
	return testbed.Ethernet(from.String(), to.String()).IP(src, s.b.Addresses[0])
}
