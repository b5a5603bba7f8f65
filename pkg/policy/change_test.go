package policy_test

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/policy"
	"calico-xdp/pkg/policy/policytest"
)

// halfway is the classes of addresses after some of the writes that lead from
// the old ones to the new ones, in the order that Tables asks for.
func halfway(rng *rand.Rand, old, fresh map[netip.Prefix]policy.PeerClass) map[netip.Prefix]policy.PeerClass {
	var added, changed, removed []netip.Prefix
	for prefix, class := range fresh {
		if was, ok := old[prefix]; !ok {
			added = append(added, prefix)
		} else if was != class {
			changed = append(changed, prefix)
		}
	}
	for prefix := range old {
		if _, ok := fresh[prefix]; !ok {
			removed = append(removed, prefix)
		}
	}
	slices.SortFunc(added, func(a, b netip.Prefix) int { return b.Bits() - a.Bits() })
	slices.SortFunc(removed, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() })
	out := maps.Clone(old)
	left := rng.IntN(len(added) + len(changed) + len(removed) + 1)
	for _, prefix := range slices.Concat(added, changed, removed) {
		if left--; left < 0 {
			break
		}
		if class, ok := fresh[prefix]; ok {
			out[prefix] = class
		} else {
			delete(out, prefix)
		}
	}
	return out
}

// mixed is the rules that a packet meets while the tables change from one result
// to the next: the vectors are the new ones, the rest is the old or the new as
// the dice say.
func mixed(rng *rand.Rand, old, fresh *policy.Tables, id policy.RulesetID, p policy.Packet) []policytest.Step {
	either := func() *policy.Tables {
		if rng.IntN(2) == 0 {
			return old
		}
		return fresh
	}
	return steps(&policy.Tables{
		Peers: halfway(rng, old.Peers, fresh.Peers), SourcePorts: either().SourcePorts,
		DestinationPorts: either().DestinationPorts, Rulesets: fresh.Rulesets,
	}, id, p)
}

func TestNoPacketSeesHalfAChange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := policytest.Stores().Draw(t, "store")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		compiler := policy.NewCompiler(policytest.Node)
		history := []*policy.Tables{snapshot(compiler.Compile(store, nil))}
		for range rapid.IntRange(1, 6).Draw(t, "steps") {
			rulesOnly := rapid.Bool().Draw(t, "rules only")
			changes := policytest.Changes().Draw(t, "changes")
			changes = slices.DeleteFunc(changes, func(c api.Change) bool {
				return rulesOnly && !strings.HasSuffix(c.Key.Kind, "NetworkPolicy") && c.Key.Kind != "Tier"
			})
			for _, c := range changes {
				store.Apply(c)
			}
			old, fresh := history[len(history)-1], snapshot(compiler.Compile(store, changes))
			tellsWhatChanged(t, old, fresh)
			agree(t, store, fresh, rng.Uint64(), 3)
			hostsAgree(t, store, fresh, rng.Uint64(), 2)
			for key, rulesets := range inUse(old) {
				for range 5 {
					for _, id := range rulesets {
						direction := bothDirections[rng.IntN(2)]
						p := policytest.RandomPacket(rng, direction, netip.Addr{})
						before := steps(old, id, p)

						// The old ruleset, the old classes, the new vectors.
						tables := *old
						tables.Rulesets = fresh.Rulesets
						if now := steps(&tables, id, p); !slices.Equal(before, now) {
							t.Fatalf("%s, %s of %+v: new vectors change the old ruleset %d from %v to %v", key, direction, p, id, before, now)
						}
						// The old ruleset while addresses and ports change their classes.
						if rulesOnly {
							if now := mixed(rng, old, fresh, id, p); !slices.Equal(before, now) {
								t.Fatalf("%s, %s of %+v: new classes change the old ruleset %d from %v to %v", key, direction, p, id, before, now)
							}
						}
						// Any address has its old class or its new one.
						classes := policy.Tables{Peers: halfway(rng, old.Peers, fresh.Peers)}
						if class := classes.PeerClass(p.Source); class != old.PeerClass(p.Source) && class != fresh.PeerClass(p.Source) {
							t.Fatalf("%s has class %d on the way from %d to %d", p.Source, class, old.PeerClass(p.Source), fresh.PeerClass(p.Source))
						}
						// The same ruleset after the change.
						after := steps(fresh, id, p)
						affected := fresh.Rulesets[id].Affected
						if !slices.Equal(before, after) &&
							!affected(old.PeerClass(p.Source), fresh.PeerClass(p.Source)) &&
							!affected(old.PeerClass(p.Destination), fresh.PeerClass(p.Destination)) {
							t.Fatalf("%s, %s of %+v: ruleset %d says %v, then %v, and is not affected", key, direction, p, id, before, after)
						}
					}
				}
			}
			history = append(history, fresh)
			numbersKeepTheirMeaning(t, history)
		}
		settles(t, compiler, store)
	})
}

// inUse are the rulesets that endpoints have, staged ones among them.
func inUse(t *policy.Tables) map[api.Key][]policy.RulesetID {
	out := make(map[api.Key][]policy.RulesetID)
	for key, r := range t.Endpoints {
		out[key] = []policy.RulesetID{r.Egress, r.Ingress, r.StagedEgress, r.StagedIngress}
	}
	for key, r := range t.HostEndpoints {
		for _, stage := range hostStages {
			for _, direction := range bothDirections {
				out[key] = append(out[key], hostStage(r, stage, direction), hostStage(wouldBeHost(r), stage, direction))
			}
		}
	}
	for key, ids := range out {
		out[key] = slices.DeleteFunc(ids, func(id policy.RulesetID) bool { return id == 0 })
	}
	return out
}

// numbersKeepTheirMeaning checks what the last result says about the numbers
// that were in use in the two before it.
func numbersKeepTheirMeaning(t *rapid.T, history []*policy.Tables) {
	t.Helper()
	last := history[len(history)-1]
	for _, old := range history[max(0, len(history)-3) : len(history)-1] {
		for _, rulesets := range inUse(old) {
			for _, id := range rulesets {
				was, is := old.Rulesets[id], last.Rulesets[id]
				if is == nil {
					continue
				}
				if !slices.Equal(listOf(was), listOf(is)) {
					t.Fatalf("ruleset %d: %v became %v", id, listOf(was), listOf(is))
				}
				for prefix, class := range old.Peers {
					if !sameVector(was.Sources, is.Sources, uint32(class)) || !sameVector(was.Destinations, is.Destinations, uint32(class)) {
						t.Fatalf("class %d of %s means something else", class, prefix)
					}
				}
				for r := range old.SourcePorts.Ranges() {
					if !sameVector(was.SourcePorts, is.SourcePorts, uint32(r.Class)) {
						t.Fatalf("class %d of source port %+v means something else", r.Class, r)
					}
				}
				for r := range old.DestinationPorts.Ranges() {
					if !sameVector(was.DestinationPorts, is.DestinationPorts, uint32(r.Class)) {
						t.Fatalf("class %d of destination port %+v means something else", r.Class, r)
					}
				}
			}
		}
	}
}

// settles compiles until retired numbers are gone: from then on nothing changes,
// and there is nothing left that a new compiler would not make.
func settles(t interface {
	Helper()
	Fatalf(string, ...any)
}, compiler *policy.Compiler, store *api.Store) *policy.Tables {
	t.Helper()
	var last, tables *policy.Tables
	for range 5 {
		last, tables = tables, snapshot(compiler.Compile(store, []api.Change{}))
	}
	if !same(last, tables) {
		t.Fatalf("the same store again gives\n%+v\nafter\n%+v", tables, last)
	}
	fresh := policy.NewCompiler(policytest.Node).Compile(store, nil)
	if len(fresh.Rulesets) != len(tables.Rulesets) || len(fresh.Peers) != len(tables.Peers) ||
		ranges(fresh.SourcePorts) != ranges(tables.SourcePorts) || ranges(fresh.DestinationPorts) != ranges(tables.DestinationPorts) {
		t.Fatalf("after changes\n%+v\nafresh\n%+v", tables, fresh)
	}
	return tables
}

func same(a, b *policy.Tables) bool {
	problems := func(t *policy.Tables) (out []string) {
		for _, p := range t.Problems {
			out = append(out, p.Object.String()+": "+p.Err.Error())
		}
		return out
	}
	return reflect.DeepEqual(a.Peers, b.Peers) && a.PeerClasses == b.PeerClasses &&
		reflect.DeepEqual(a.SourcePorts, b.SourcePorts) && reflect.DeepEqual(a.DestinationPorts, b.DestinationPorts) &&
		reflect.DeepEqual(a.Endpoints, b.Endpoints) && reflect.DeepEqual(a.HostEndpoints, b.HostEndpoints) && slices.Equal(problems(a), problems(b)) &&
		reflect.DeepEqual(keys(a.Rulesets), keys(b.Rulesets)) && sameRulesets(a, b)
}

func keys[K comparable, V any](m map[K]V) map[K]bool {
	out := make(map[K]bool)
	for k := range m {
		out[k] = true
	}
	return out
}

func sameRulesets(a, b *policy.Tables) bool {
	for id, r := range a.Rulesets {
		s := b.Rulesets[id]
		if !slices.Equal(listOf(r), listOf(s)) {
			return false
		}
		for class := range uint32(a.PeerClasses) {
			if !sameVector(r.Sources, s.Sources, class) || !sameVector(r.Destinations, s.Destinations, class) {
				return false
			}
		}
		for class := range portClasses(a.SourcePorts) {
			if !sameVector(r.SourcePorts, s.SourcePorts, class) {
				return false
			}
		}
		for class := range portClasses(a.DestinationPorts) {
			if !sameVector(r.DestinationPorts, s.DestinationPorts, class) {
				return false
			}
		}
	}
	return true
}

// portClasses is one more than the highest class of the ports.
func portClasses(t policy.PortTable) (n uint32) {
	for r := range t.Ranges() {
		n = max(n, uint32(r.Class)+1)
	}
	return max(n, 1)
}

func ranges(t policy.PortTable) (n int) {
	for range t.Ranges() {
		n++
	}
	return n
}

// sameVector compares the rows of one class.
// listOf is a ruleset's rules.
func listOf(r *policy.Ruleset) (list []policy.Rule) {
	for _, rule := range r.Rules() {
		list = append(list, rule)
	}
	return list
}

func sameVector(a, b *policy.Dimension, class uint32) bool {
	if a.Width != b.Width {
		return false
	}
	for w := range a.Width * 64 {
		if a.Word(class, w) != b.Word(class, w) {
			return false
		}
	}
	return true
}
