package policy_test

import (
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
	oracle := policytest.NewOracle(store)
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
	for _, kind := range []string{"Tier", "GlobalNetworkPolicy", "NetworkPolicy", "Profile", "GlobalNetworkSet", "NetworkSet", "HostEndpoint", "WorkloadEndpoint"} {
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
	})
}
