package policy_test

import (
	"slices"
	"testing"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/policy"
	"calico-xdp/pkg/policy/policytest"
)

// A change of one policy makes a new ruleset, which has all but that policy's rules, and
// what they ask for, in common with the one before.
func TestRulesetsShareWhatIsNotChanged(t *testing.T) {
	store := cluster(200, 300, 100)
	store.Apply(change(longPolicy(5000, -1, 0)))
	c := policy.NewCompiler(policytest.Node)
	web := api.KeyOf(endpointOf(0, 100, "app-0"))
	ruleset := func(tables *policy.Tables) policy.Ruleset { return *tables.Rulesets[tables.Endpoints[web].Ingress] }
	before := ruleset(c.Compile(store, nil))

	p := policyOf(100, 443)
	p.Spec.Ingress[1].Action = v3.Deny
	after := ruleset(update(c, store, p))
	if before.Len() != after.Len() || len(before.Parts) != len(after.Parts) || len(before.Parts) < 5 {
		t.Fatalf("%d rules in %d parts became %d in %d", before.Len(), len(before.Parts), after.Len(), len(after.Parts))
	}
	for i := range before.Parts {
		was, is := before.Parts[i], after.Parts[i]
		mine := is.ID.Policy == api.KeyOf(p)
		if one := is.ID.Policy.Name != ""; one && (was.Run == is.Run) == mine {
			t.Errorf("part %d, of %v: new %v", i, is.ID, was.Run != is.Run)
		}
		if was.From != is.From || was.Next != is.Next || was.ID != is.ID || slices.Equal(was.Rules, is.Rules) == mine {
			t.Errorf("part %d: %+v became %+v", i, was, is)
		}
	}
	if before.Sources != after.Sources || before.DestinationPorts != after.DestinationPorts {
		t.Error("the vectors are not shared")
	}
	n := 0
	for i, rule := range after.Rules() {
		if i != n || rule != after.Rule(i) {
			t.Fatalf("rule %d of %d: %+v, %+v", i, n, rule, after.Rule(i))
		}
		n++
	}
	if n != after.Len() {
		t.Errorf("%d rules of %d", n, after.Len())
	}
}
