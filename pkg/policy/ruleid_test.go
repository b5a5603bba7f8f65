package policy_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/policy"
	"calico-xdp/pkg/policy/policytest"
)

func TestRuleIDsAsText(t *testing.T) {
	key := func(kind, namespace, name string) api.Key {
		return api.Key{Kind: kind, Namespace: namespace, Name: name}
	}
	for text, id := range map[string]policy.RuleID{
		"default|GlobalNetworkPolicy|default.web|ingress|0": {Tier: "default", Policy: key("GlobalNetworkPolicy", "", "default.web"), Direction: "ingress"},
		"net|NetworkPolicy|blue/net.web|egress|65535":       {Tier: "net", Policy: key("NetworkPolicy", "blue", "net.web"), Direction: "egress", Index: 65535},
		"net|GlobalNetworkPolicy|net.bad|egress|-1":         {Tier: "net", Policy: key("GlobalNetworkPolicy", "", "net.bad"), Direction: "egress", Index: -1},
		"|Profile|kns.blue|ingress|3":                       {Policy: key("Profile", "", "kns.blue"), Direction: "ingress", Index: 3},
		"default|||ingress|-1":                              {Tier: "default", Direction: "ingress", Index: -1},
		"|||egress|":                                        {Direction: "egress", Index: -1},
		"default|Staged||ingress|-1":                        {Tier: "default", Direction: "ingress", Index: -1, Staged: true},
		"|Staged||egress|":                                  {Direction: "egress", Index: -1, Staged: true},
		"default|StagedNetworkPolicy|blue/p|egress|2":       {Tier: "default", Policy: key("StagedNetworkPolicy", "blue", "p"), Direction: "egress", Index: 2, Staged: true},
		"a%7Cb|GlobalNetworkPolicy|c%2Fd%25|egress|2":       {Tier: "a|b", Policy: key("GlobalNetworkPolicy", "", "c/d%"), Direction: "egress", Index: 2},
	} {
		if got := id.String(); got != text {
			t.Errorf("%+v is %s, want %s", id, got, text)
		}
		if got, err := policy.ParseRuleID(text); err != nil || got != id {
			t.Errorf("%s is %+v, %v, want %+v", text, got, err, id)
		}
	}
	for _, text := range []string{
		"", "||||", "|||ingress", "|||both|", "|||ingress|-1", "default|||ingress|", "default|||ingress|x", "default|||ingress|-2",
		"default|||ingress|01", "default|||ingress|-1|", "%|||ingress|-1", "%zz|||ingress|-1", "%7c|||ingress|-1", "a|b/c|||0",
	} {
		if got, err := policy.ParseRuleID(text); err == nil {
			t.Errorf("%q is %+v", text, got)
		}
	}
}

func TestRuleIDsOfAnyName(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringOf(rapid.SampledFrom([]rune("ab.-/|%2F7Cé")))
		id := policy.RuleID{
			Tier:      name.Draw(t, "tier"),
			Policy:    api.Key{Kind: "NetworkPolicy", Namespace: name.Draw(t, "namespace"), Name: name.Draw(t, "name")},
			Direction: rapid.SampledFrom(bothDirections).Draw(t, "direction"), Index: rapid.IntRange(-1, 65535).Draw(t, "index"),
		}
		if got, err := policy.ParseRuleID(id.String()); err != nil || got != id {
			t.Fatalf("%s is %+v, %v, want %+v", id, got, err, id)
		}
	})
}

// Rulesets that ask the same of packets but come from different policies are
// different ones: each says where its rules come from. Their vectors are one.
func TestRulesetsOfOtherPoliciesAreOthers(t *testing.T) {
	rules := "ingress: [{action: Allow, protocol: TCP, source: {nets: [10.0.0.0/8]}}]"
	s := state{resources: web + db + open + `kind: WorkloadEndpoint
metadata: {name: web2, namespace: default, labels: {app: web, more: labels}}
spec: {node: node-1, orchestrator: cni, ipNetworks: [10.0.0.3], profiles: [open]}
---
kind: HostEndpoint
metadata: {name: eth0, labels: {app: host}}
spec: {node: node-1, interfaceName: eth0}
---
kind: GlobalNetworkPolicy
metadata: {name: a}
spec: {selector: app == 'web', ` + rules + `}
---
kind: GlobalNetworkPolicy
metadata: {name: b}
spec: {selector: app == 'db', ` + rules + `}
---
kind: GlobalNetworkPolicy
metadata: {name: c}
spec: {selector: app == 'host', applyOnForward: true, ` + rules + `}
---
kind: StagedGlobalNetworkPolicy
metadata: {name: d}
spec: {selector: has(more), order: 99, types: [Ingress]}
`}
	tables := policy.NewCompiler(policytest.Node).Compile(s.store(t), nil)
	of := func(name string) policy.Rulesets {
		return tables.Endpoints[api.Key{Kind: "WorkloadEndpoint", Namespace: "default", Name: name}]
	}
	if of("web").Ingress != of("web2").Ingress || of("web").Egress != of("web2").Egress {
		t.Errorf("web has %+v, web2 %+v", of("web"), of("web2"))
	}
	host := tables.HostEndpoints[api.Key{Kind: "HostEndpoint", Name: "eth0"}]
	for what, ids := range map[string][]policy.RulesetID{
		"policies": {of("web").Ingress, of("db").Ingress}, "staged": {of("web2").Ingress, of("web2").StagedIngress},
	} {
		a, b := tables.Rulesets[ids[0]], tables.Rulesets[ids[1]]
		if ids[0] == ids[1] || slices.Equal(listOf(a), listOf(b)) {
			t.Errorf("%s: rulesets %v are %v and %v", what, ids, listOf(a), listOf(b))
		}
		if a.Len() == b.Len() && (a.Sources != b.Sources || a.DestinationPorts != b.DestinationPorts) {
			t.Errorf("%s: the vectors are not shared", what)
		}
	}
	if host.Normal.Ingress != host.Forward.Ingress {
		t.Errorf("the same policies and the same end at two stages: rulesets %d and %d", host.Normal.Ingress, host.Forward.Ingress)
	}
}
