package dataplane

import (
	"net/netip"
	"testing"

	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/loader"
)

// What the host's stack has translated: its answers go back through the stack, and policy
// judges it as it is now.
func TestPacketsThatTheHostTranslates(t *testing.T) {
	b := newBed(t)
	const service4, service6 = "10.96.0.1", "fd96::1"
	from, to, out, in := loader.FromWorkload, loader.ToWorkload, loader.ToNetwork, loader.FromNetwork
	unchecked := func(*testing.T, []byte, []byte) {}
	stack, delivered := "next pass_to_stack", "next pass_to_workload"
	opens := func(name, source, service, server string) []trial {
		return []trial{
			{name: name, hook: from, packet: frame(source, service).TCP(4000, 80, "S"), want: stack},
			{name: name, hook: to, from: "cali1", packet: frame(source, server).TCP(4000, 9000, "S"), want: delivered},
		}
	}
	away := func(name, source, server, want string) []trial {
		return []trial{{name: name, hook: out, from: "cali1", packet: frame(source, server).TCP(4000, 9000, "S"), want: want, check: unchecked}}
	}
	b.fire(t, []trial{
		{name: "a local server answers", hook: from, packet: frame(w2, w1).TCP(9000, 4000, "SA"), want: stack, after: opens("S", w1, service4, w2)},
		{name: "a local server answers 6", hook: from, packet: frame(x2, x1).TCP(9000, 4000, "SA"), want: stack, after: opens("S", x1, service6, x2)},
		{name: "its answer is delivered", hook: to, from: "cali2", packet: frame(service4, w1).TCP(80, 4000, "SA"), want: delivered, after: opens("S", w1, service4, w2)},
		{name: "a server that hears nothing", hook: to, from: "cali1", packet: frame(w1, w5).TCP(4000, 9000, "S"), want: "shot drop_ingress_policy"},
		{name: "a client that may not send there", hook: to, from: "cali4", packet: frame(w4, w2).TCP(4000, 9000, "S"), want: "shot drop_egress_policy"},
		{name: "a remote server answers", hook: in, packet: frame(remotePlain4, w1).TCP(9000, 4000, "SA"), want: stack,
			after: away("S", w1, remotePlain4, "next pass_to_node")},
		{name: "a remote server answers 6", hook: in, packet: frame(remotePlain6, x1).TCP(9000, 4000, "SA"), want: stack,
			after: away("S", x1, remotePlain6, "next pass_to_node")},
		{name: "a remote server answers in IPIP", hook: in, packet: ipip(uplink(), ipip4, node4).IPv4(remoteIPIP4, w1).TCP(9000, 4000, "SA"), want: stack,
			check: unchecked, after: away("S", w1, remoteIPIP4, "next pass_ipip")},
		{name: "somebody in the world answers", hook: in, packet: frame(outside4, w1).TCP(9000, 4000, "SA"), want: stack,
			after: away("S", w1, outside4, "next pass_not_ours")},
		{name: "a client that may not send to a remote server", hook: out, from: "cali4", packet: frame(w4, remotePlain4).TCP(4000, 9000, "S"), want: "shot drop_egress_policy"},
		{name: "a client that may not send to the world", hook: out, from: "cali4", packet: frame(w4, outside4).TCP(4000, 9000, "S"), want: "shot drop_egress_policy"},
		{name: "the host's own port, from another node's workload", hook: from, packet: frame(w2, remoteIPIP4).TCP(9000, 4000, "SA"), want: stack,
			after: []trial{{hook: to, from: "eth0", packet: frame(remoteIPIP4, w2).TCP(4000, 9000, "S"), want: delivered}}},
		{name: "what went past the stack once does not stay so", hook: from, packet: frame(w2, w1).UDP(9000, 4000), want: stack, after: []trial{
			{hook: from, packet: frame(w1, w2).UDP(4000, 9000), want: "redirect pass_to_workload", check: unchecked},
			{hook: from, packet: frame(w2, w1).UDP(9000, 4000), want: "redirect pass_to_workload", check: unchecked},
			{hook: to, from: "cali1", packet: frame(w1, w2).UDP(4000, 9000), want: delivered},
		}},
	})
}

// Egress policy is about what a service leads to; until that is known the packet may go
// nowhere else.
func TestPacketsToServices(t *testing.T) {
	b := newBed(t)
	const service4, service6, mark = "10.96.0.1", "fd96::1", 0x20000
	b.state.Dataplane.NATNets = map[netip.Prefix]desired.NATNet{
		netip.MustParsePrefix("10.96.0.0/12"): {Service: true}, netip.MustParsePrefix("fd96::/64"): {Service: true},
	}
	b.state.Dataplane.UnjudgedMark = mark
	b.sync(t)
	from, to, out, in := loader.FromWorkload, loader.ToWorkload, loader.ToNetwork, loader.FromNetwork
	stack, denied := "next pass_to_stack", "shot drop_egress_policy"
	opens := []trial{{hook: from, packet: frame(w4, service4).TCP(4000, 80, "S"), want: stack}}
	b.fire(t, []trial{
		{name: "one who may not send", hook: from, packet: frame(w4, service4).TCP(4000, 80, "S"), want: stack},
		{name: "one who may not send 6", hook: from, packet: frame("fd01::4", service6).TCP(4000, 80, "S"), want: stack},
		{name: "to where no service is", hook: from, packet: frame(w4, outside4).TCP(4000, 80, "S"), want: denied},
		{name: "led nowhere", hook: out, from: "cali4", mark: mark, packet: frame(w4, service4).TCP(4000, 80, "S"), want: denied, after: opens},
		{name: "led nowhere, its flow forgotten", hook: out, from: "cali4", mark: mark, packet: frame(w4, service4).TCP(4000, 80, "S"), want: denied},
		{name: "led to a workload", hook: to, from: "cali4", mark: mark, packet: frame(w4, w2).TCP(4000, 9000, "S"), want: denied, after: opens},
		{name: "led to another node", hook: out, from: "cali4", mark: mark, packet: frame(w4, remoteIPIP4).TCP(4000, 9000, "S"), want: denied, after: opens},
		{name: "led to the world", hook: out, from: "cali4", mark: mark, packet: frame(w4, outside4).TCP(4000, 9000, "S"), want: denied, after: opens},
		{name: "masqueraded to a workload", hook: to, from: "cali4", mark: mark, packet: frame(node4, w2).TCP(4000, 9000, "S"), want: denied, after: opens},
		{name: "masqueraded to another node", hook: out, from: "cali4", mark: mark, packet: frame(node4, remoteIPIP4).TCP(4000, 9000, "S"), want: denied, after: opens},
		{name: "masqueraded to itself", hook: to, on: "cali4", from: "cali4", mark: mark, packet: frame(node4, w4).TCP(4000, 9000, "S"), want: denied, after: opens},
		{name: "another's, to itself", hook: to, on: "cali2", from: "cali2", packet: frame(node4, w2).TCP(4000, 9000, "S"), want: "next pass_to_workload"},
		{name: "a forged answer", hook: in, packet: frame(service4, w4).TCP(80, 4000, "SA"), want: "shot drop_martian", after: opens},
		{name: "an answer", hook: to, from: "cali2", packet: frame(service4, w4).TCP(80, 4000, "SA"), want: "next pass_to_workload", after: opens},
	})
	// It goes on with the packets behind the first one, which is marked like them.
	b.forget(t)
	for _, s := range []trial{
		opens[0],
		{hook: to, from: "cali2", packet: frame(service4, w4).TCP(80, 4000, "SA"), want: "next pass_to_workload"},
		{hook: from, packet: frame(w4, service4).TCP(4000, 80, "A"), want: stack},
		{hook: from, packet: frame(w4, service4).TCP(4000, 80, "A"), want: stack},
	} {
		b.expect(t, s)
		if err := b.endpoints.bump(0); err != nil {
			t.Fatal(err)
		}
	}
	b.state.Dataplane.NATNets, b.state.Dataplane.UnjudgedMark = nil, 0
	b.sync(t)
	b.expect(t, trial{hook: from, packet: frame(w4, service4).TCP(4000, 80, "A"), want: denied})
}
