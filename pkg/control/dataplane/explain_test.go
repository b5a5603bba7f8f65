package dataplane

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/loader"
	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"
	"calico-xdp/pkg/policy/policytest"
)

// TestExplainAgreesWithPrograms asks about random packets before it gives them to the
// programs that judge real ones, and compares.
func TestExplainAgreesWithPrograms(t *testing.T) {
	d := unhooked(t)
	compiler := policy.NewCompiler(policytest.Node)
	pairs := 0
	rapid.Check(t, func(t *rapid.T) {
		store := policytest.Stores().Draw(t, "store")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		w := ensured(t, d, store, compiler.Compile(store, nil))
		var locals []netip.Addr
		for _, e := range w.Endpoints {
			locals = append(locals, e.Addresses...)
		}
		if len(locals) == 0 {
			return
		}
		slices.SortFunc(locals, netip.Addr.Compare)
		type trial struct {
			direction string
			packet    policy.Packet
			answer    Explanation
		}
		var trials []trial
		before := footprint(t, d)
		for range 40 {
			direction := []string{"egress", "ingress"}[rng.IntN(2)]
			p := policytest.RandomPacket(rng, direction, locals[rng.IntN(len(locals))])
			if !expressible(p) {
				continue
			}
			q := Question{Packet: p, Hook: HookFromWorkload, Ifindex: loopback, MAC: desired.MAC{2, 0, 0, 0, 0, 1}}
			if direction == "ingress" {
				q.Hook, q.From = HookToWorkload, loopback
			}
			x, err := d.Explain(q)
			if err != nil {
				t.Fatal(err)
			}
			trials = append(trials, trial{direction, p, x})
		}
		if after := footprint(t, d); after != before {
			t.Fatalf("explaining has changed\n%s\nto\n%s", before, after)
		}
		for _, x := range trials {
			verdict := policy.Allow
			if x.answer.Dropped {
				verdict = policy.Deny
			}
			if got := run(t, d, x.direction, x.packet); got != verdict {
				t.Fatalf("%s %+v: the program says %d, explain %+v", x.direction, x.packet, got, x.answer)
			}
			checkRules(t, w, x.packet, x.answer)
			pairs++
		}
	})
	t.Logf("%d pairs of policy and packet", pairs)
}

// checkRules compares the rules that an explanation names with what the compiled tables
// say.
func checkRules(t *rapid.T, w *desired.Dataplane, p policy.Packet, x Explanation) {
	t.Helper()
	tables := w.Policy
	if x.Reason == "drop_spoofed" || x.Reason == "drop_no_endpoint" {
		return
	}
	var want, logged []string
	for direction, a := range []netip.Addr{p.Source, p.Destination} {
		var key api.Key
		for k, e := range w.Endpoints {
			if slices.Contains(e.Addresses, a) {
				key = k
			}
		}
		id := [2]policy.RulesetID{tables.Endpoints[key].Egress, tables.Endpoints[key].Ingress}[direction]
		if key == (api.Key{}) || id == 0 {
			continue
		}
		denied := false
		for rule := range tables.Matches(id, p) {
			switch rule.Action {
			case policy.Log:
				logged = append(logged, rule.ID.String())
			case policy.Allow, policy.Deny:
				want = append(want, rule.ID.String())
				denied = rule.Action == policy.Deny
			}
		}
		if denied {
			break
		}
	}
	texts := func(rules []Rule) (out []string) {
		for _, r := range rules {
			out = append(out, r.ID.String())
		}
		return out
	}
	if got := texts(x.Rules); !slices.Equal(got, want) {
		t.Fatalf("%+v: explain has %q, the tables %q", p, got, want)
	}
	if got := texts(x.Logged); !slices.Equal(got, logged[:min(len(logged), 4)]) {
		t.Fatalf("%+v: explain has logged %q, the tables %q", p, got, logged)
	}
}

// fataler is a test or a part of a property test.
type fataler interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

// explained asks, and makes sure that nothing has changed for it.
func explained(t fataler, d *Dataplane, q Question) Explanation {
	t.Helper()
	before := footprint(t, d)
	x, err := d.Explain(q)
	if err != nil {
		t.Fatal(err)
	}
	if after := footprint(t, d); after != before {
		t.Fatalf("explaining has changed\n%s\nto\n%s", before, after)
	}
	return x
}

// footprint is all that packets leave behind.
func footprint(t fataler, d *Dataplane) string {
	t.Helper()
	counters, err := d.kernel.Counters()
	if err != nil {
		t.Fatal(err)
	}
	rules, err := d.kernel.RuleCounters.Load(4096)
	if err != nil {
		t.Fatal(err)
	}
	lost, err := d.kernel.EventsLost()
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintln(counters, rules, lost)
	for _, table := range []kernel.Table[kernel.FlowKey, kernel.Flow]{d.kernel.Flows, d.kernel.NewFlows} {
		flows, err := table.Load()
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range slices.SortedFunc(maps.Keys(flows), func(a, b kernel.FlowKey) int {
			return slices.Compare([]byte(fmt.Sprint(a)), []byte(fmt.Sprint(b)))
		}) {
			text += fmt.Sprintln(k, flows[k])
		}
	}
	return text
}

// TestExplain asks about each way that a packet can take, and end.
func TestExplain(t *testing.T) {
	b := newBed(t)
	packet := func(source, destination string) policy.Packet {
		return policy.Packet{
			Source: netip.MustParseAddr(source), Destination: netip.MustParseAddr(destination),
			Protocol: 6, SourcePort: 40000, DestinationPort: 80,
		}
	}
	for _, test := range []struct {
		name     string
		from, to string
		hook     Hook
		on       string
		tunnel   bool
		edit     func(*Question)
		want     string
	}{
		{"local", w1, w2, HookFromWorkload, "cali1", false, nil, "pass_not_ours, rules Allow Allow, local both, host"},
		{"local 6", x1, x2, HookFromWorkload, "cali1", false, nil, "pass_not_ours, rules Allow Allow, local both, host"},
		{"egress denied", w6, w1, HookFromWorkload, "cali6", false, nil, "drop_egress_policy, rules Deny, local both, host"},
		{"ingress denied", w1, w5, HookFromWorkload, "cali1", false, nil, "drop_ingress_policy, rules Allow Deny, local both, host"},
		{"another's address", w2, w1, HookFromWorkload, "cali1", false, nil, "drop_spoofed, rules Allow Allow, local both, host"},
		{"another's MAC", w1, w2, HookFromWorkload, "cali1", false, func(q *Question) { q.MAC = desired.MAC{2} },
			"drop_spoofed, rules Allow Allow, local both, host"},
		{"in IPIP", w1, "192.168.4.1", HookFromWorkload, "cali1", false, nil, "pass_not_ours, rules Allow, local source, IPIP to 10.10.2.4"},
		{"in VXLAN", w1, "192.168.5.1", HookFromWorkload, "cali1", false, nil, "pass_not_ours, rules Allow, local source, VXLAN to 10.10.2.5"},
		{"plain", w1, "192.168.3.1", HookFromWorkload, "cali1", false, nil, "pass_not_ours, rules Allow, local source, node to 10.10.2.3"},
		{"no way to the node", w1, "192.168.6.1", HookFromWorkload, "cali1", false, nil, "drop_no_next_hop, rules, local source, IPIP to 10.99.0.6"},
		{"outside", w1, outside4, HookFromWorkload, "cali1", false, nil, "pass_not_ours, rules Allow, local source, stack"},
		{"the host", w1, node4, HookFromWorkload, "cali1", false, nil, "pass_not_ours, rules Allow, local source, host"},
		{"nobody's address", w1, "192.168.1.60", HookFromWorkload, "cali1", false, nil, "drop_no_endpoint, rules Allow, local source, stack"},
		{"from a tunnel", "192.168.4.1", w1, HookFromNetwork, "eth0", true, nil, "pass_not_ours, rules Allow, local destination, IPIP to 10.10.2.4"},
		{"from outside", outside4, w4, HookFromNetwork, "eth0", false, nil, "drop_ingress_policy, rules Deny, local destination, stack"},
		{"from who lives here", w2, w1, HookFromNetwork, "eth0", false, nil, "drop_martian, rules Allow Allow, local both, host"},
		{"the host's own", node4, w4, HookToWorkload, "cali4", false, nil, "pass_not_ours, rules, local destination, host"},
		{"forwarded by the host", outside4, w4, HookToWorkload, "cali4", false, func(q *Question) { q.From = b.index["eth0"] },
			"drop_ingress_policy, rules Deny, local destination, stack"},
		{"multicast", w1, "224.0.0.1", HookFromWorkload, "cali1", false, nil, "drop_multicast, rules, local none, host"},
	} {
		t.Run(test.name, func(t *testing.T) {
			q := Question{Packet: packet(test.from, test.to), Hook: test.hook, Ifindex: b.index[test.on], Tunnel: test.tunnel}
			if n := workloadOf(q.Packet.Source); n > 0 && n != plainLink {
				q.MAC = desired.MAC{2, 0, 0, 0, 0, byte(n)}
			}
			if test.edit != nil {
				test.edit(&q)
			}
			var x Explanation
			if err := b.host.Do(func() error { x = explained(t, b.Dataplane, q); return nil }); err != nil {
				t.Fatal(err)
			}
			if got := explanationText(x); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
	// The programs run into what explain has not left behind.
	b.fire(t, []trial{{name: "after all", hook: loader.FromWorkload, packet: frame(w1, w5).TCP(40000, 80, "S"), want: "shot drop_ingress_policy"}})
}

func explanationText(x Explanation) string {
	text := x.Reason + ", rules"
	for _, r := range x.Rules {
		text += " " + map[policy.Action]string{policy.Allow: "Allow", policy.Deny: "Deny"}[r.Action]
	}
	text += ", local " + map[[2]bool]string{{}: "none", {true, false}: "source", {false, true}: "destination", {true, true}: "both"}[x.Local]
	text += ", " + [...]string{"host", "stack", "node", "IPIP", "VXLAN"}[x.NextHop.Forward]
	if x.NextHop.Node.IsValid() {
		text += " to " + x.NextHop.Node.String()
	}
	return text
}
