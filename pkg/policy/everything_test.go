package policy_test

import "testing"

// What all() means in a policy's own selectors, as Calico reads it: one thing in all
// of them.
func TestAllInAPolicysSelectors(t *testing.T) {
	host := `kind: HostEndpoint
metadata: {name: eth0, labels: {role: edge}}
spec: {node: node-1, interfaceName: eth0}
---
`
	bot := `kind: WorkloadEndpoint
metadata: {name: bot, namespace: default}
spec: {node: node-1, orchestrator: k8s, pod: bot, serviceAccountName: robot, ipNetworks: [10.0.0.5]}
---
`
	policy := func(spec string) string {
		return "kind: GlobalNetworkPolicy\nmetadata: {name: p}\nspec: " + spec + "\n---\n"
	}
	const selected, not = " => Allow default/p[0]", " => Deny end"
	verdicts := func(eth0, web, bot string) string {
		return "eth0 normal.ingress gre 10.9.9.9 192.0.2.1" + eth0 +
			"\nweb ingress gre 10.9.9.9 10.0.0.1" + web + "\nbot ingress gre 10.9.9.9 10.0.0.5" + bot
	}
	var states []state
	for _, c := range []struct{ spec, verdicts string }{
		{`{selector: all(), ingress: [{action: Allow}]}`, verdicts(selected, selected, selected)},
		{`{namespaceSelector: env != 'test', ingress: [{action: Allow}]}`, verdicts(selected, selected, selected)},
		{`{selector: all(), namespaceSelector: env != 'test', ingress: [{action: Allow}]}`, verdicts(not, selected, selected)},
		{`{selector: "has(role) || all()", namespaceSelector: env != 'test', ingress: [{action: Allow}]}`, verdicts(selected, selected, selected)},
		{`{selector: "!all()", namespaceSelector: env != 'test', ingress: [{action: Allow}]}`, verdicts(selected, not, not)},
		{`{selector: all(), namespaceSelector: "!all()", ingress: [{action: Allow}]}`, verdicts(not, not, not)},
		{`{serviceAccountSelector: level != '1', ingress: [{action: Allow}]}`, verdicts(selected, selected, selected)},
		{`{selector: all(), serviceAccountSelector: level != '1', ingress: [{action: Allow}]}`, verdicts(not, not, selected)},
		{`{selector: all(), namespaceSelector: env != 'test', serviceAccountSelector: level != '1', ingress: [{action: Allow}]}`, verdicts(not, selected, selected)},
		{`{selector: all(), namespaceSelector: all(), serviceAccountSelector: "!all()", ingress: [{action: Allow}]}`, verdicts(not, selected, not)},
	} {
		w := `kind: WorkloadEndpoint
metadata: {name: web, namespace: default}
spec: {node: node-1, orchestrator: cni, ipNetworks: [10.0.0.1]}
---
`
		states = append(states, state{name: c.spec, resources: host + w + bot + policy(c.spec), verdicts: c.verdicts})
	}
	runStates(t, states)
}

func TestAllInAPolicyOfANamespace(t *testing.T) {
	resources := `kind: WorkloadEndpoint
metadata: {name: web, namespace: default}
spec: {node: node-1, orchestrator: cni, ipNetworks: [10.0.0.1]}
---
kind: HostEndpoint
metadata: {name: eth0, labels: {projectcalico.org/namespace: default}}
spec: {node: node-1, interfaceName: eth0}
---
kind: NetworkPolicy
metadata: {name: p, namespace: default}
spec: {selector: all(), serviceAccountSelector: all(), ingress: [{action: Allow}]}
`
	runStates(t, []state{{
		name:      "all() is all, and a host endpoint that has the namespace's label forwards what it likes",
		resources: resources,
		verdicts: `
			web ingress gre 10.9.9.9 10.0.0.1 => Allow default/default/p[0]
			eth0 normal.ingress gre 10.9.9.9 192.0.2.1 => Allow default/default/p[0]
			eth0 forward.ingress gre 10.9.9.9 10.0.0.1 => no policy
			eth0 forward.egress gre 10.0.0.1 10.9.9.9 => no policy`,
	}})
}
