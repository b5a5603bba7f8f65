package dataplane

import (
	"fmt"
	"net/netip"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/loader"
	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"
	"calico-xdp/tools/testbed"
)

// dialog is what two local workloads say to each other: from port 4000 of the one
// that opens to port 80 of the other.
type dialog struct {
	*bed
	opener, other string
	protocol      uint8
}

const (
	fine = "redirect pass_to_workload"
	tcp  = 6
	udp  = 17
	icmp = 1
)

func (d dialog) packet(src, dst string, srcPort, dstPort uint16, what string) testbed.Packet {
	p := frame(src, dst)
	switch d.protocol {
	case tcp:
		return p.TCP(srcPort, dstPort, what)
	case udp:
		return p.UDP(srcPort, dstPort)
	case 132:
		return sctp(p, srcPort, dstPort)
	case icmp:
		if srcPort == 80 {
			return p.EchoReply(4000, 1)
		}
		return p.Echo(4000, 1)
	}
	return p.Protocol(d.protocol).Payload(20)
}

// there and back send one packet; what is the TCP flags.
func (d dialog) there(t testing.TB, what string) string {
	t.Helper()
	did, _, _ := d.run(t, trial{hook: loader.FromWorkload, packet: d.packet(d.opener, d.other, 4000, 80, what)})
	return did
}

func (d dialog) back(t testing.TB, what string) string {
	t.Helper()
	did, _, _ := d.run(t, trial{hook: loader.FromWorkload, packet: d.packet(d.other, d.opener, 80, 4000, what)})
	return did
}

func (d dialog) key() kernel.FlowKey {
	x, y := netip.MustParseAddr(d.opener), netip.MustParseAddr(d.other)
	switch d.protocol {
	case tcp, udp, 132:
		return kernel.NewFlowKey(netip.AddrPortFrom(x, 4000), netip.AddrPortFrom(y, 80), d.protocol)
	case icmp:
		return kernel.NewFlowKey(netip.AddrPortFrom(x, 4000), netip.AddrPortFrom(y, 4000), d.protocol)
	}
	return kernel.NewFlowKey(netip.AddrPortFrom(x, 0), netip.AddrPortFrom(y, 0), d.protocol)
}

// flow returns the flow and says where it is: "none", "waiting" or "established",
// and "denied" and "closed" if it is.
func (d dialog) flow(t testing.TB) (state string, f kernel.Flow) {
	t.Helper()
	established, known, err := d.kernel.Flows.Get(d.key())
	if err != nil {
		t.Fatal(err)
	}
	waits, waiting, err := d.kernel.NewFlows.Get(d.key())
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case known && waiting:
		return "in both tables", established
	case known:
		state, f = "established", established
	case waiting:
		state, f = "waiting", waits
	default:
		return "none", f
	}
	if known != (f.State&uint32(kernel.FlowConfirmed) != 0) {
		state += " but wrongly confirmed"
	}
	if f.State&uint32(kernel.FlowClosedA|kernel.FlowClosedB) != 0 {
		state += " closed"
	}
	if f.State&uint32(kernel.FlowDenied) != 0 {
		state += " denied"
	}
	return state, f
}

func (d dialog) want(t testing.TB, state string) {
	t.Helper()
	if got, _ := d.flow(t); got != state {
		t.Fatalf("the flow is %s, want %s", got, state)
	}
}

func want(t testing.TB, did, want string) {
	t.Helper()
	if did != want {
		t.Fatalf("%s, want %s", did, want)
	}
}

// establish opens the flow and lets both ends speak.
func (d dialog) establish(t testing.TB) {
	t.Helper()
	d.forget(t)
	want(t, d.there(t, "S"), fine)
	want(t, d.back(t, "SA"), fine)
	want(t, d.there(t, "A"), fine)
	d.want(t, "established")
}

// may sets the policy of a workload.
func (b *bed) may(t testing.TB, n int, egress, ingress policy.RulesetID) {
	t.Helper()
	b.state.Dataplane.Policy.Endpoints[key(n)] = policy.Rulesets{Egress: egress, Ingress: ingress}
	b.sync(t)
}

// A flow waits until both ends have proven that they exist.
func TestFlowsAreConfirmed(t *testing.T) {
	b := newBed(t)
	type step struct{ said, want string } // said: ">" there or "<" back, and TCP flags
	for _, test := range []struct {
		name     string
		protocol uint8
		steps    []step
	}{
		{"TCP", tcp, []step{{">S", "waiting"}, {">S", "waiting"}, {"<SA", "waiting"}, {"<SA", "waiting"}, {">A", "established"}, {"<A", "established"}}},
		{"TCP whose opener is forged", tcp, []step{{">S", "waiting"}, {"<SA", "waiting"}, {"<SA", "waiting"}, {"<A", "waiting"}}},
		{"TCP refused", tcp, []step{{">S", "waiting"}, {"<RA", "waiting closed"}, {">S", "waiting"}, {"<SA", "waiting"}, {">A", "established"}}},
		{"TCP reset by a forged opener", tcp, []step{{">S", "waiting"}, {"<SA", "waiting"}, {">R", "established closed"}}},
		{"TCP found in the middle", tcp, []step{{">A", "waiting"}, {"<A", "waiting"}, {">A", "established"}}},
		{"UDP", udp, []step{{">", "waiting"}, {">", "waiting"}, {"<", "established"}, {">", "established"}}},
		{"echo", icmp, []step{{">", "waiting"}, {"<", "established"}, {">", "established"}}},
		{"SCTP", 132, []step{{">", "waiting"}, {"<", "established"}}},
		{"without ports", 47, []step{{">", "waiting"}, {"<", "established"}}},
		{"FIN both ways", tcp, []step{{">S", "waiting"}, {"<SA", "waiting"}, {">A", "established"},
			{">FA", "established closed"}, {"<FA", "established closed"}, {">A", "established closed"}, {">S", "waiting"}, {"<SA", "waiting"}, {">A", "established"}}},
		{"RST", tcp, []step{{">S", "waiting"}, {"<SA", "waiting"}, {">A", "established"},
			{"<R", "established closed"}, {"<SA", "established closed"}, {">S", "waiting"}}},
		{"SYN on a living flow", tcp, []step{{">S", "waiting"}, {"<SA", "waiting"}, {">A", "established"}, {">S", "established"}, {"<S", "established"}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b.forget(t)
			d := dialog{b, w1, w2, test.protocol}
			for i, s := range test.steps {
				say := d.there
				if s.said[0] == '<' {
					say = d.back
				}
				if did := say(t, s.said[1:]); did != fine {
					t.Fatalf("step %d, %s: %s", i, s.said, did)
				}
				if state, _ := d.flow(t); state != s.want {
					t.Fatalf("step %d, %s: the flow is %s, want %s", i, s.said, state, s.want)
				}
			}
		})
	}
}

// Answers pass although their own direction is forbidden, and only answers do.
func TestAnswersAreNotJudgedAlone(t *testing.T) {
	b := newBed(t)
	for _, protocol := range []uint8{tcp, udp, icmp, 132, 47} {
		d := dialog{b, w5, w6, protocol} // w5 may only send, w6 only receive
		b.forget(t)
		want(t, d.back(t, "SA"), "shot drop_egress_policy")
		d.want(t, "none")
		d.establish(t)
		for range 2 {
			want(t, d.back(t, "A"), fine)
		}
		// Also when an answer is the first to come after a change.
		for _, n := range []int{5, 6} {
			if err := b.endpoints.bump(b.endpoints.slots[key(n)]); err != nil {
				t.Fatal(err)
			}
			want(t, d.back(t, "A"), fine)
			d.want(t, "established")
		}
	}
}

// A change of policy reaches the flows that are there.
func TestFlowsAreJudgedAgain(t *testing.T) {
	b := newBed(t)
	generations := func(d dialog) (have, judged [2]uint32) {
		_, f := d.flow(t)
		for i, s := range f.Slots {
			e, _, err := b.kernel.Endpoints.Get(s)
			if err != nil {
				t.Fatal(err)
			}
			have[i] = e.Generation
		}
		return have, f.Generations
	}
	for _, protocol := range []uint8{tcp, udp} {
		t.Run(fmt.Sprint("protocol ", protocol), func(t *testing.T) {
			b.may(t, first, allow, allow)
			b.may(t, second, allow, allow)
			d := dialog{b, w1, w2, protocol}
			d.establish(t)

			// Nothing changes: it is judged once more, and is as it was.
			if err := b.endpoints.bump(b.endpoints.slots[key(first)]); err != nil {
				t.Fatal(err)
			}
			if have, judged := generations(d); have == judged {
				t.Fatal("the flow is current after a bump")
			}
			_, before := d.flow(t)
			want(t, d.back(t, "A"), fine)
			have, judged := generations(d)
			if have != judged {
				t.Errorf("generations %v, judged under %v", have, judged)
			}
			_, after := d.flow(t)
			after.LastSeen, after.Generations = before.LastSeen, before.Generations
			if after != before {
				t.Errorf("was %+v, is %+v", before, after)
			}

			for _, change := range []struct {
				n               int
				egress, ingress policy.RulesetID
				reason          string
			}{
				{first, deny, allow, "shot drop_egress_policy"},
				{second, allow, deny, "shot drop_ingress_policy"},
			} {
				for _, sayFirst := range []func(testing.TB, string) string{d.there, d.back} {
					b.may(t, change.n, change.egress, change.ingress)
					want(t, sayFirst(t, "A"), change.reason)
					d.want(t, "established denied")
					want(t, d.there(t, "A"), change.reason)
					want(t, d.back(t, "A"), change.reason)
					b.may(t, change.n, allow, allow)
					want(t, sayFirst(t, "A"), fine)
					d.want(t, "established")
					want(t, d.there(t, "A"), fine)
					want(t, d.back(t, "A"), fine)
				}
				// The other direction's policy is no business of this flow.
				b.may(t, change.n, map[bool]policy.RulesetID{true: deny, false: allow}[change.ingress == deny],
					map[bool]policy.RulesetID{true: deny, false: allow}[change.egress == deny])
				want(t, d.back(t, "A"), fine)
				want(t, d.there(t, "A"), fine)
				b.may(t, change.n, allow, allow)
			}

			// A flow that waits for its answer.
			b.forget(t)
			want(t, d.there(t, "S"), fine)
			b.may(t, first, deny, allow)
			want(t, d.back(t, "SA"), "shot drop_egress_policy")
			d.want(t, "waiting denied")
			want(t, d.there(t, "A"), "shot drop_egress_policy")
			b.may(t, first, allow, allow)
			want(t, d.back(t, "SA"), fine)

			// What was never allowed is not remembered.
			b.forget(t)
			b.may(t, second, allow, deny)
			want(t, d.there(t, "S"), "shot drop_ingress_policy")
			d.want(t, "none")
			b.may(t, second, allow, allow)
		})
	}
}

// A closed flow that starts over is judged as a new one, in its new direction.
func TestClosedFlowsStartOver(t *testing.T) {
	b := newBed(t)
	d := dialog{b, w5, w6, tcp}
	for _, closing := range []string{"FA", "R"} {
		d.establish(t)
		want(t, d.there(t, closing), fine)
		want(t, d.back(t, "S"), "shot drop_egress_policy")
		d.want(t, "none")
		d.establish(t)
		want(t, d.back(t, closing), fine)
		d.want(t, "established closed")
		if err := b.endpoints.bump(b.endpoints.slots[key(5)]); err != nil {
			t.Fatal(err)
		}
		want(t, d.there(t, "S"), fine)
		d.want(t, "waiting")
		_, f := d.flow(t)
		if f.State&^uint32(kernel.FlowAOpened) != 0 {
			t.Errorf("starts over in state %#x", f.State)
		}
	}
}

// A route that changes takes its flows along.
func TestFlowsFollowRoutes(t *testing.T) {
	b := newBed(t)
	out := trial{hook: loader.FromWorkload, packet: frame(w1, remoteIPIP4).UDP(1, 2)}
	in := trial{hook: loader.FromNetwork, packet: ipip(uplink(), ipip4, node4).IPv4(remoteIPIP4, w1).UDP(2, 1)}
	say := func(s trial, wanted string) {
		t.Helper()
		did, _, _ := b.run(t, s)
		want(t, did, wanted)
	}
	say(out, "redirect pass_ipip")
	say(in, fine)
	say(out, "redirect pass_ipip")
	prefix := netip.MustParsePrefix("192.168.4.0/26")
	b.state.Dataplane.Routes[prefix] = desired.Route{Kind: desired.RouteWorkload, Via: netip.MustParseAddr(vxlan4), Encap: desired.EncapVXLAN}
	b.sync(t)
	say(out, "redirect pass_vxlan")
	say(in, "shot drop_wrong_node")
	delete(b.state.Dataplane.Routes, prefix)
	b.sync(t)
	say(out, "next pass_to_stack")
}

// An address that a new endpoint takes over, or its slot, brings no flow along.
func TestFlowsEndWithTheirEndpoint(t *testing.T) {
	b := newBed(t)
	d := dialog{b, w1, w2, udp}
	d.establish(t)
	slot := b.endpoints.slots[key(first)]
	generation := b.endpoints.records[slot].Generation

	old := b.state.Dataplane.Endpoints[key(first)]
	delete(b.state.Dataplane.Endpoints, key(first))
	delete(b.state.Dataplane.Policy.Endpoints, key(first))
	b.sync(t)
	want(t, d.back(t, ""), "shot drop_no_endpoint")
	want(t, d.there(t, ""), "shot drop_spoofed")

	// Somebody else in the slot.
	other := old
	other.Key = api.Key{Kind: "WorkloadEndpoint", Namespace: "default", Name: "other"}
	other.Addresses = []netip.Addr{netip.MustParseAddr("192.168.1.33")}
	b.state.Dataplane.Endpoints[other.Key] = other
	b.state.Dataplane.Policy.Endpoints[other.Key] = policy.Rulesets{Egress: allow, Ingress: allow}
	b.sync(t)
	if got := b.endpoints.slots[other.Key]; got != slot {
		t.Fatalf("slot %d, want the free one, %d", got, slot)
	}
	if b.endpoints.records[slot].Generation <= generation {
		t.Errorf("generation %d after %d", b.endpoints.records[slot].Generation, generation)
	}
	want(t, d.there(t, ""), "shot drop_spoofed")
	if did := d.back(t, ""); did == fine {
		t.Error("a packet for the former endpoint reaches the new one of its slot")
	}

	// Somebody else with the address, who may not.
	b.forget(t)
	delete(b.state.Dataplane.Endpoints, other.Key)
	delete(b.state.Dataplane.Policy.Endpoints, other.Key)
	b.state.Dataplane.Endpoints[key(first)] = old
	b.state.Dataplane.Policy.Endpoints[key(first)] = policy.Rulesets{Egress: allow, Ingress: allow}
	b.sync(t)
	d.establish(t)
	heir := old
	heir.Key = other.Key
	delete(b.state.Dataplane.Endpoints, key(first))
	delete(b.state.Dataplane.Policy.Endpoints, key(first))
	b.state.Dataplane.Endpoints[heir.Key] = heir
	b.state.Dataplane.Policy.Endpoints[heir.Key] = policy.Rulesets{Egress: deny, Ingress: deny}
	b.sync(t)
	want(t, d.there(t, ""), "shot drop_egress_policy")
	want(t, d.back(t, ""), "shot drop_egress_policy")
}
