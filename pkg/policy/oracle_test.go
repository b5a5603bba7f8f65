package policy_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/policy"
	"calico-xdp/pkg/policy/policytest"
)

var bothDirections = []string{"ingress", "egress"}

func rulesetIn(r policy.Rulesets, direction string) policy.RulesetID {
	if direction == "ingress" {
		return r.Ingress
	}
	return r.Egress
}

// wouldBe are the staged rulesets as if they were enforced.
func wouldBe(r policy.Rulesets) policy.Rulesets {
	return policy.Rulesets{Egress: r.StagedEgress, Ingress: r.StagedIngress}
}

func steps(t *policy.Tables, id policy.RulesetID, p policy.Packet) []policytest.Step {
	var out []policytest.Step
	for rule := range t.Matches(id, p) {
		out = append(out, policytest.Step{Action: rule.Action, Rule: rule.ID})
	}
	return out
}

// agree compares the tables with the oracle on n packets for each endpoint.
func agree(t *rapid.T, store *api.Store, tables *policy.Tables, seed uint64, n int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 0))
	oracle, staged := policytest.NewOracle(store), policytest.NewStagedOracle(store)
	for key, w := range api.All[*api.WorkloadEndpoint](store, api.KindWorkloadEndpoint) {
		rulesets, ok := tables.Endpoints[key]
		if local := w.Spec.Node == policytest.Node; ok != local {
			t.Fatalf("%s: in the tables: %t, local: %t", key, ok, local)
		}
		if !ok {
			continue
		}
		tooLong := slices.ContainsFunc(tables.Problems, func(p policy.Problem) bool { return p.Object == key })
		for i := range n {
			var local netip.Addr
			if own := w.Addresses(); len(own) > 0 && i%4 != 0 {
				local = own[i%len(own)]
			}
			for _, direction := range bothDirections {
				p := policytest.RandomPacket(rng, direction, local)
				id := rulesetIn(rulesets, direction)
				got := steps(tables, id, p)
				if tooLong && strings.Contains(problemText(tables, key), direction) {
					if action, _ := tables.Verdict(id, p); action != policy.Deny {
						t.Fatalf("%s %s is too long and does not deny", key, direction)
					}
					continue
				}
				if want := oracle.Judge(key, direction, p); !slices.Equal(got, want) {
					t.Fatalf("%s, %s of %+v:\n got %v\nwant %v\n%s", key, direction, p, got, want, dump(store))
				}
				id = rulesetIn(wouldBe(rulesets), direction)
				if differ := asksOthers(oracle, staged, key, "normal", direction); differ != (id != 0) {
					t.Fatalf("%s, %s has staged ruleset %d, staged policies differ: %t\n%s", key, direction, id, differ, dump(store))
				}
				if id == 0 {
					continue
				}
				if got, want := steps(tables, id, p), staged.Judge(key, direction, p); !slices.Equal(got, want) {
					t.Fatalf("%s, staged %s of %+v:\n got %v\nwant %v\n%s", key, direction, p, got, want, dump(store))
				}
			}
		}
	}
}

// asksOthers says whether two oracles ask different policies.
func asksOthers(a, b *policytest.Oracle, endpoint api.Key, stage, direction string) bool {
	_, x := a.Asked(endpoint, stage, direction)
	_, y := b.Asked(endpoint, stage, direction)
	return !maps.EqualFunc(x, y, slices.Equal)
}

// hostStages are the stages of host endpoints.
var hostStages = []string{"untracked", "preDNAT", "forward", "normal"}

// hostStage is the ruleset of a host endpoint for one stage.
func hostStage(r policy.HostRulesets, stage, direction string) policy.RulesetID {
	switch stage {
	case "untracked":
		return rulesetIn(r.Untracked, direction)
	case "preDNAT":
		if direction == "ingress" {
			return r.PreDNAT
		}
		return 0
	case "forward":
		return rulesetIn(r.Forward, direction)
	}
	return rulesetIn(r.Normal, direction)
}

// wouldBeHost are the staged rulesets of a host endpoint as if they were enforced.
func wouldBeHost(r policy.HostRulesets) policy.HostRulesets {
	return policy.HostRulesets{
		Untracked: wouldBe(r.Untracked), PreDNAT: r.StagedPreDNAT, Forward: wouldBe(r.Forward), Normal: wouldBe(r.Normal),
	}
}

// hostsAgree does the same for the host endpoints.
func hostsAgree(t *rapid.T, store *api.Store, tables *policy.Tables, seed uint64, n int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	oracle, staged := policytest.NewOracle(store), policytest.NewStagedOracle(store)
	for key, h := range api.All[*api.HostEndpoint](store, api.KindHostEndpoint) {
		rulesets, ok := tables.HostEndpoints[key]
		if local := h.Spec.Node == policytest.Node; ok != local {
			t.Fatalf("%s: in the tables: %t, local: %t", key, ok, local)
		}
		if !ok {
			continue
		}
		compare := func(oracle *policytest.Oracle, id policy.RulesetID, stage, direction string) {
			p := policytest.RandomPacket(rng, direction, netip.Addr{})
			want := oracle.JudgeHost(key, stage, direction, p)
			if (id == 0) != (want == nil) {
				t.Fatalf("%s, %s %s has ruleset %d, want %v\n%s", key, stage, direction, id, want, dump(store))
			}
			if got := steps(tables, id, p); !slices.Equal(got, want) {
				t.Fatalf("%s, %s %s of %+v:\n got %v\nwant %v\n%s", key, stage, direction, p, got, want, dump(store))
			}
			if id == 0 {
				return
			}
			if action, rule := tables.Verdict(id, p); action != want[len(want)-1].Action || rule != want[len(want)-1].Rule {
				t.Fatalf("%s, %s %s of %+v: verdict %v by %v, want %v", key, stage, direction, p, action, rule, want)
			}
		}
		for range n {
			for _, stage := range hostStages {
				for _, direction := range bothDirections {
					compare(oracle, hostStage(rulesets, stage, direction), stage, direction)
					id, differ := hostStage(wouldBeHost(rulesets), stage, direction), asksOthers(oracle, staged, key, stage, direction)
					if differ != (id != 0) {
						t.Fatalf("%s, %s %s has staged ruleset %d, staged policies differ: %t\n%s", key, stage, direction, id, differ, dump(store))
					}
					if id != 0 {
						compare(staged, id, stage, direction)
					}
				}
			}
		}
	}
}

func problemText(t *policy.Tables, key api.Key) string {
	var b strings.Builder
	for _, p := range t.Problems {
		if p.Object == key {
			b.WriteString(p.Err.Error() + "\n")
		}
	}
	return b.String()
}

func dump(store *api.Store) string {
	var b strings.Builder
	for _, kind := range []string{"Tier", "GlobalNetworkPolicy", "NetworkPolicy", "StagedGlobalNetworkPolicy", "StagedNetworkPolicy", "StagedKubernetesNetworkPolicy", "Profile", "GlobalNetworkSet", "NetworkSet", "HostEndpoint", "WorkloadEndpoint"} {
		for _, r := range api.All[api.Resource](store, kind) {
			data, err := api.Encode(r)
			if err != nil {
				b.WriteString(err.Error())
			}
			b.Write(append(data, '\n'))
		}
	}
	return b.String()
}

func TestTablesAgreeWithOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := policytest.Stores().Draw(t, "store")
		seed := rapid.Uint64().Draw(t, "seed")
		tables := policy.NewCompiler(policytest.Node).Compile(store, nil)
		agree(t, store, tables, seed, 40)
		hostsAgree(t, store, tables, seed, 20)
		attributed(t, store, tables)
	})
}

// attributed checks that every rule says where it comes from, and that the end of
// each tier knows the policies that were asked before.
func attributed(t *rapid.T, store *api.Store, tables *policy.Tables) {
	t.Helper()
	check := func(oracle *policytest.Oracle, staged bool, key api.Key, stage, direction string, id policy.RulesetID) {
		r := tables.Rulesets[id]
		if r == nil {
			return
		}
		at := fmt.Sprintf("%s %s %s, staged %t", key, stage, direction, staged)
		tiers, asked := oracle.Asked(key, stage, direction)
		tiers = slices.DeleteFunc(tiers, func(tier string) bool {
			return len(r.Segments) > 0 && !slices.ContainsFunc(r.Segments, func(s policy.Segment) bool { return s.Tier == tier })
		})
		for n, s := range r.Segments {
			if s.Tier == "" {
				if stage != "normal" || len(s.Policies) != 1 || s.Policies[0].Kind != api.KindProfile {
					t.Fatalf("%s: segment %+v", at, s)
				}
				continue
			}
			if n >= len(tiers) || s.Tier != tiers[n] || !slices.Equal(s.Policies, asked[s.Tier]) {
				t.Fatalf("%s: segment %+v, want %v of %v", at, s, asked[s.Tier], tiers)
			}
		}
		for i, rule := range r.Rules() {
			s := r.SegmentOf(i)
			if of, err := policy.ParseRuleID(rule.ID.String()); err != nil || of != rule.ID {
				t.Fatalf("%s: rule %+v as text is %s, %v", at, rule.ID, rule.ID, err)
			}
			if rule.ID.Direction != direction || rule.ID.Staged != (strings.HasPrefix(rule.ID.Policy.Kind, "Staged") || staged && rule.ID.Policy == (api.Key{})) {
				t.Fatalf("%s: rule %+v", at, rule)
			}
			switch {
			case s == nil:
				if i != r.Len()-1 || rule.ID != (policy.RuleID{Direction: direction, Index: -1, Staged: staged}) {
					t.Fatalf("%s: rule %d of %d, %+v, is of no segment", at, i, r.Len(), rule)
				}
			case rule.ID.Tier != s.Tier || rule.ID.Policy != (api.Key{}) && !slices.Contains(s.Policies, rule.ID.Policy):
				t.Fatalf("%s: rule %+v in segment %+v", at, rule, s)
			case rule.ID.Policy == (api.Key{}) && (i != s.To-1 || rule.ID.Index != -1):
				t.Fatalf("%s: rule %d, %+v, in segment %+v", at, i, rule, s)
			case rule.ID.Index >= 0 && rule.ID.Index >= rulesOf(store, rule.ID):
				t.Fatalf("%s: rule %+v", at, rule)
			}
		}
	}
	for n, oracle := range []*policytest.Oracle{policytest.NewOracle(store), policytest.NewStagedOracle(store)} {
		for key, r := range tables.Endpoints {
			if n == 1 {
				r = wouldBe(r)
			}
			check(oracle, n == 1, key, "normal", "ingress", r.Ingress)
			check(oracle, n == 1, key, "normal", "egress", r.Egress)
		}
		for key, r := range tables.HostEndpoints {
			if n == 1 {
				r = wouldBeHost(r)
			}
			for _, stage := range hostStages {
				for _, direction := range bothDirections {
					check(oracle, n == 1, key, stage, direction, hostStage(r, stage, direction))
				}
			}
		}
	}
}

// rulesOf is how many rules a policy or profile has in a direction.
func rulesOf(store *api.Store, id policy.RuleID) int {
	lists := [2]int{}
	switch r := store.Get(id.Policy).(type) {
	case nil:
		return 1 // the profile that allows everything
	case *api.Profile:
		lists = [2]int{len(r.Spec.Ingress), len(r.Spec.Egress)}
	case *api.StagedKubernetesNetworkPolicy:
		lists = [2]int{len(r.Spec.Ingress), len(r.Spec.Egress)}
	default:
		p, _ := api.PolicyOf(r)
		lists = [2]int{len(p.Ingress), len(p.Egress)}
	}
	if id.Direction == "egress" {
		return lists[1]
	}
	return lists[0]
}
