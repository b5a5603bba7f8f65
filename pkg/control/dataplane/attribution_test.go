package dataplane

import (
	"maps"
	"slices"

	"pgregory.net/rapid"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"
)

// countedRule is a rule as it is counted.
type countedRule struct {
	id     policy.RuleID
	action policy.Action
}

// countsOf are the counters of rules by number.
func countsOf(t rapid.TB, d *Dataplane) []kernel.Counter {
	t.Helper()
	counts, err := d.kernel.RuleCounters.Load(len(d.classifier.rules.numbered))
	if err != nil {
		t.Fatal(err)
	}
	return counts
}

// moved is what has been counted in between, by rule.
func moved(t rapid.TB, d *Dataplane, before, after []kernel.Counter) map[countedRule]kernel.Counter {
	t.Helper()
	out := make(map[countedRule]kernel.Counter)
	for n, c := range after {
		if n < len(before) {
			c.Packets, c.Bytes = c.Packets-before[n].Packets, c.Bytes-before[n].Bytes
		}
		if c == (kernel.Counter{}) {
			continue
		}
		id, action, ok := d.Rule(uint32(n))
		if !ok {
			t.Fatalf("%d packets are counted for number %d, which is nobody's", c.Packets, n)
		}
		out[countedRule{id, action}] = c
	}
	return out
}

// attributed is what the first packet of a flow between two endpoints, either of which
// may be zero for none, has to be counted for: the rules that decide, the first ones
// that log, and what would decide with the staged policies.
func attributed(w *desired.Dataplane, from, to api.Key, p policy.Packet) map[countedRule]kernel.Counter {
	frame, _ := frameOf(p)
	out := make(map[countedRule]kernel.Counter)
	count := func(id policy.RuleID, a policy.Action) {
		c := out[countedRule{id, a}]
		out[countedRule{id, a}] = kernel.Counter{Packets: c.Packets + 1, Bytes: c.Bytes + uint64(len(frame))}
	}
	logs := 0
	ask := func(id, staged policy.RulesetID) policy.Action {
		action := policy.Deny
		for rule := range w.Policy.Matches(id, p) {
			switch rule.Action {
			case policy.Pass:
			case policy.Log:
				if logs++; logs <= 4 {
					count(rule.ID, rule.Action)
				}
			default:
				count(rule.ID, rule.Action)
				action = rule.Action
			}
		}
		if staged != 0 {
			would, rule := w.Policy.Verdict(staged, p)
			rule.Staged = true
			count(rule, would)
		}
		return action
	}
	if from != (api.Key{}) {
		ids := w.Policy.Endpoints[from]
		if ask(ids.Egress, ids.StagedEgress) != policy.Allow {
			return out
		}
	}
	if to != (api.Key{}) {
		ids := w.Policy.Endpoints[to]
		ask(ids.Ingress, ids.StagedIngress)
	}
	return out
}

// numbersAgree checks that the rules of all rulesets in the kernel have numbers, each
// that of this rule and no other.
func numbersAgree(t rapid.TB, d *Dataplane, tables *policy.Tables) {
	t.Helper()
	wanted := make(map[policy.RulesetID]bool)
	for _, r := range tables.Endpoints {
		wanted[r.Egress], wanted[r.Ingress], wanted[r.StagedEgress], wanted[r.StagedIngress] = true, true, true, true
	}
	for _, h := range tables.HostEndpoints {
		for _, id := range []policy.RulesetID{
			h.Untracked.Egress, h.Untracked.Ingress, h.PreDNAT, h.Forward.Egress, h.Forward.Ingress, h.Normal.Egress, h.Normal.Ingress,
		} {
			wanted[id] = true
		}
	}
	delete(wanted, 0)
	for id := range wanted {
		if d.classifier.live[id] == nil {
			t.Fatalf("ruleset %d is not in the kernel", id)
		}
	}
	names, err := d.kernel.RuleNames.Load()
	if err != nil {
		t.Fatal(err)
	}
	uses := make(map[uint32]int)
	rulesets := slices.Concat(slices.Collect(maps.Values(d.classifier.live)), d.classifier.leaving)
	for _, r := range d.classifier.extents.retired {
		rulesets = append(rulesets, r.ruleset)
	}
	for _, r := range rulesets {
		for i, n := range r.numbers() {
			uses[n]++
			if r.from == nil {
				continue // a former process's
			}
			want := r.from.Rule(i)
			want.ID.Staged = want.ID.Staged || r.staged
			id, action, ok := d.Rule(n)
			if !ok || id != want.ID || action != want.Action {
				t.Fatalf("number %d is %v %d, not %v %d", n, id, action, want.ID, want.Action)
			}
			if name := names[n]; name.String() != id.String() || name.Staged() != id.Staged || name.Action() != actions[action] {
				t.Fatalf("number %d of %v is called %q %d %v", n, id, name, name.Action(), name.Staged())
			}
		}
	}
	for n := range names {
		if uses[n] == 0 {
			t.Fatalf("number %d, %q, is nobody's", n, names[n])
		}
	}
	for n, x := range d.classifier.rules.numbered {
		if int(x.uses) != uses[uint32(n)] {
			t.Fatalf("number %d, %q, has %d uses and counts %d", n, names[uint32(n)], uses[uint32(n)], x.uses)
		}
	}
}
