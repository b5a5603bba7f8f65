package policy_test

import (
	"fmt"
	"strings"
	"testing"
)

// badPolicy is a policy called bad that selects web, beside resources for it.
func badPolicy(spec string) string {
	return web + db + open + "kind: GlobalNetworkPolicy\nmetadata: {name: bad}\nspec: " + spec + "\n"
}

// A rule that cannot be read denies what it may be about, and nothing else.
func TestFaultyRules(t *testing.T) {
	rules := func(list string) string { return badPolicy("{selector: app == 'web', ingress: [" + list + "]}") }
	runStates(t, []state{{
		name: "the rules before it and what it cannot be about are as they were",
		resources: rules(`{action: Allow, protocol: TCP, destination: {ports: [80]}},
			{action: Allow, protocol: TCP, source: {nets: [10.0.0.0/8, 10.0.0.0/33]}}, {action: Allow}`),
		verdicts: `
			web ingress tcp [10.0.0.2]:9 [10.0.0.1]:80 => Allow default/bad[0]
			web ingress tcp [10.0.0.2]:9 [10.0.0.1]:81 => Deny default/bad[1]
			web ingress tcp [192.0.2.1]:9 [10.0.0.1]:81 => Deny default/bad[1]
			web ingress udp [10.0.0.2]:9 [10.0.0.1]:81 => Allow default/bad[2]
			web egress tcp [10.0.0.1]:9 [10.0.0.2]:1 => Allow open[0]
			db ingress tcp [10.0.0.1]:9 [10.0.0.2]:1 => Deny end`,
		problems: `GlobalNetworkPolicy(bad): spec.ingress[1].source.nets: "10.0.0.0/33" is no address or network`,
	}, {
		name:      "a rule of a policy that applies to nobody here",
		resources: badPolicy(`{selector: app == 'other', ingress: [{action: Allow, source: {selector: "=="}}]}`),
		verdicts:  `web ingress tcp [10.0.0.2]:9 [10.0.0.1]:1 => Allow open[0]`,
	}, {
		name:      "action",
		resources: rules(`{action: Drop, protocol: TCP}, {action: allow, protocol: UDP}, {action: Allow}`),
		verdicts: `
			web ingress tcp [10.0.0.2]:9 [10.0.0.1]:1 => Deny default/bad[0]
			web ingress udp [10.0.0.2]:9 [10.0.0.1]:1 => Deny default/bad[1]
			web ingress gre 10.0.0.2 10.0.0.1 => Allow default/bad[2]`,
		problems: `
			GlobalNetworkPolicy(bad): spec.ingress[0].action: "Drop" is none of Allow, Deny, Log, Pass
			GlobalNetworkPolicy(bad): spec.ingress[1].action: "allow" is none of Allow, Deny, Log, Pass`,
	}, {
		name:      "Log decides nothing, Pass might",
		resources: rules(`{action: Log, ipVersion: 5}, {action: Pass, protocol: TCP, ipVersion: 5}, {action: Allow}`),
		verdicts: `
			web ingress tcp [10.0.0.2]:9 [10.0.0.1]:1 => Deny default/bad[1]
			web ingress gre 10.0.0.2 10.0.0.1 => Allow default/bad[2]`,
		problems: `
			GlobalNetworkPolicy(bad): spec.ingress[0].ipVersion: 5 is neither 4 nor 6
			GlobalNetworkPolicy(bad): spec.ingress[1].ipVersion: 5 is neither 4 nor 6`,
	}, {
		name: "protocols",
		resources: rules(`{action: Allow, protocol: TPC, source: {nets: [10.0.1.0/24]}, destination: {ports: [80]}},
			{action: Allow, notProtocol: "300", source: {nets: [10.0.2.0/24]}}, {action: Deny, protocol: 0, source: {nets: [10.0.3.0/24]}, icmp: {type: 8}},
			{action: Deny, protocol: NONE, notProtocol: UDP, source: {nets: [10.0.4.0/24]}}, {action: Allow}`),
		verdicts: `
			web ingress udp [10.0.1.2]:9 [10.0.0.1]:1 => Deny default/bad[0]
			web ingress udp [10.0.2.2]:9 [10.0.0.1]:1 => Deny default/bad[1]
			web ingress udp [10.0.3.2]:9 [10.0.0.1]:1 => Deny default/bad[2]
			web ingress tcp [10.0.4.2]:9 [10.0.0.1]:1 => Deny default/bad[3]
			web ingress udp [10.0.4.2]:9 [10.0.0.1]:1 => Allow default/bad[4]`,
		problems: `
			GlobalNetworkPolicy(bad): spec.ingress[0].protocol: "TPC" is not known
			GlobalNetworkPolicy(bad): spec.ingress[1].notProtocol: "300" is not known
			GlobalNetworkPolicy(bad): spec.ingress[2].protocol: "0" is not known
			GlobalNetworkPolicy(bad): spec.ingress[3].protocol: "NONE" is not known`,
	}, {
		name: "ports",
		resources: rules(`{action: Allow, destination: {ports: [80, "90:91"]}, source: {nets: [10.0.1.0/24]}},
			{action: Allow, protocol: ICMP, source: {nets: [10.0.2.0/24], notPorts: [80]}},
			{action: Allow, notProtocol: TCP, destination: {ports: [80]}, source: {nets: [10.0.3.0/24]}}, {action: Allow}`),
		verdicts: `
			web ingress gre 10.0.1.2 10.0.0.1 => Deny default/bad[0]
			web ingress icmp 10.0.2.2 [10.0.0.1]:8.0 => Deny default/bad[1]
			web ingress tcp [10.0.2.2]:9 [10.0.0.1]:80 => Allow default/bad[3]
			web ingress tcp [10.0.3.2]:9 [10.0.0.1]:80 => Allow default/bad[3]
			web ingress udp [10.0.3.2]:9 [10.0.0.1]:80 => Deny default/bad[2]`,
		problems: `
			GlobalNetworkPolicy(bad): spec.ingress[0].destination.ports: 80,90-91: the rule's protocol is not one that has ports
			GlobalNetworkPolicy(bad): spec.ingress[1].source.notPorts: 80: the rule's protocol is not one that has ports
			GlobalNetworkPolicy(bad): spec.ingress[2].destination.ports: 80: the rule's protocol is not one that has ports`,
	}, {
		name: "ICMP",
		resources: rules(`{action: Allow, protocol: TCP, icmp: {type: 8}}, {action: Allow, protocol: ICMP, icmp: {code: 3}, notICMP: {type: 8}},
			{action: Allow, protocol: ICMPv6, notICMP: {type: 256}}, {action: Allow, protocol: SCTP, notICMP: {type: 1}}, {action: Allow}`),
		verdicts: `
			web ingress tcp [10.0.0.2]:9 [10.0.0.1]:1 => Deny default/bad[0]
			web ingress icmp 10.0.0.2 [10.0.0.1]:3.0 => Deny default/bad[1]
			web ingress icmp 10.0.0.2 [10.0.0.1]:8.0 => Allow default/bad[4]
			web ingress icmp6 fd00::2 [fd00::1]:1.0 => Deny default/bad[2]
			web ingress sctp [10.0.0.2]:9 [10.0.0.1]:1 => Deny default/bad[3]`,
		problems: `
			GlobalNetworkPolicy(bad): spec.ingress[0].icmp: the rule's protocol is neither ICMP nor ICMPv6
			GlobalNetworkPolicy(bad): spec.ingress[1].icmp.code: 3 without a type
			GlobalNetworkPolicy(bad): spec.ingress[2].notICMP.type: 256 is not in 0 to 255
			GlobalNetworkPolicy(bad): spec.ingress[3].notICMP: the rule's protocol is neither ICMP nor ICMPv6`,
	}, {
		name: "selectors",
		resources: rules(`{action: Deny, protocol: TCP, source: {selector: "a =="}}, {action: Allow, protocol: UDP, source: {selector: app == 'db', notSelector: "=="}},
			{action: Allow, protocol: SCTP, source: {namespaceSelector: "a b", notSelector: all()}}, {action: Allow, protocol: 47, source: {serviceAccounts: {selector: "("}}},
			{action: Allow, protocol: ICMP, source: {notNets: [10.0.0.0/30, ten]}}, {action: Allow}`),
		verdicts: `
			web ingress tcp [192.0.2.2]:9 [10.0.0.1]:1 => Deny default/bad[0]
			web ingress udp [10.0.0.2]:9 [10.0.0.1]:1 => Deny default/bad[1]
			web ingress udp [192.0.2.2]:9 [10.0.0.1]:1 => Allow default/bad[5]
			web ingress sctp [192.0.2.2]:9 [10.0.0.1]:1 => Deny default/bad[2]
			web ingress gre 10.0.0.2 10.0.0.1 => Deny default/bad[3]
			web ingress icmp 10.0.0.2 [10.0.0.1]:8.0 => Allow default/bad[5]
			web ingress icmp 10.0.0.4 [10.0.0.1]:8.0 => Deny default/bad[4]`,
		problems: `
			GlobalNetworkPolicy(bad): spec.ingress[0].source.selector: selector "a ==": expected a quoted value at the end
			GlobalNetworkPolicy(bad): spec.ingress[1].source.notSelector: selector "==": expected a label name at offset 0, near "=="
			GlobalNetworkPolicy(bad): spec.ingress[2].source.namespaceSelector: selector "a b": expected an operator at offset 2, near "b"
			GlobalNetworkPolicy(bad): spec.ingress[3].source.serviceAccounts.selector: selector "(": expected a label name at the end
			GlobalNetworkPolicy(bad): spec.ingress[4].source.notNets: "ten" is no address or network`,
	}, {
		name: "a profile, at its place",
		resources: db + `kind: Profile
metadata: {name: open}
spec: {ingress: [{action: Allow, protocol: TCP, icmp: {type: 8}}, {action: Allow, protocol: UDP}]}
---
` + web,
		verdicts: `
			web ingress tcp [10.0.0.2]:9 [10.0.0.1]:1 => Deny open[0]
			web ingress udp [10.0.0.2]:9 [10.0.0.1]:1 => Allow open[1]
			web egress tcp [10.0.0.1]:9 [10.0.0.2]:1 => Deny end`,
		problems: `Profile(open): spec.ingress[0].icmp: the rule's protocol is neither ICMP nor ICMPv6`,
	}})
}

// A policy that cannot be read denies at its place what it may be about.
func TestFaultyPolicies(t *testing.T) {
	first := `---
kind: GlobalNetworkPolicy
metadata: {name: first}
spec: {order: -1, types: [Ingress, Egress], ingress: [{action: Allow, protocol: TCP}], egress: [{action: Allow, protocol: TCP}]}
`
	runStates(t, []state{{
		name:      "no type that there is: both directions",
		resources: badPolicy(`{selector: app == 'web', types: [Sideways], ingress: [{action: Allow}]}`) + first,
		verdicts: `
			web ingress tcp [10.0.0.2]:9 [10.0.0.1]:1 => Allow default/first[0]
			web ingress udp [10.0.0.2]:9 [10.0.0.1]:1 => Deny default/bad/end
			web egress udp [10.0.0.1]:9 [10.0.0.2]:1 => Deny default/bad/end
			db ingress udp [10.0.0.1]:9 [10.0.0.2]:1 => Deny default/end`,
		problems: `GlobalNetworkPolicy(bad): spec.types: "Sideways" is neither Ingress nor Egress`,
	}, {
		name:      "one type that there is and one that there is not: that direction, and the other is closed",
		resources: badPolicy(`{selector: app == 'web', types: [Ingress, egress], ingress: [{action: Allow}]}`),
		verdicts: `
			web ingress udp [10.0.0.2]:9 [10.0.0.1]:1 => Allow default/bad[0]
			web egress udp [10.0.0.1]:9 [10.0.0.2]:1 => Deny default/bad/end
			db ingress udp [10.0.0.1]:9 [10.0.0.2]:1 => Deny end`,
		problems: `GlobalNetworkPolicy(bad): spec.types: "egress" is neither Ingress nor Egress`,
	}, {
		name:      "a type more than there are: nothing is unclear",
		resources: badPolicy(`{selector: app == 'web', types: [Ingress, Egress, Both], ingress: [{action: Allow}], egress: [{action: Allow}]}`),
		verdicts: `
			web ingress udp [10.0.0.2]:9 [10.0.0.1]:1 => Allow default/bad[0]
			web egress udp [10.0.0.1]:9 [10.0.0.2]:1 => Allow default/bad[0]`,
	}, {
		name:      "the selector: everything that the other selectors select, in the policy's directions",
		resources: badPolicy(`{selector: "app =", namespaceSelector: "projectcalico.org/name == 'x'", types: [Ingress], ingress: [{action: Allow}]}`),
		verdicts:  `web ingress udp [10.0.0.2]:9 [10.0.0.1]:1 => Allow open[0]`,
	}, {
		name:      "all selectors: everything",
		resources: badPolicy(`{selector: "app =", namespaceSelector: "app =", serviceAccountSelector: "!", types: [Ingress], ingress: [{action: Allow}]}`),
		verdicts: `
			web ingress udp [10.0.0.2]:9 [10.0.0.1]:1 => Deny default/bad/end
			web egress udp [10.0.0.1]:9 [10.0.0.2]:1 => Allow open[0]
			db ingress udp [10.0.0.1]:9 [10.0.0.2]:1 => Deny default/bad/end`,
		problems: `
			GlobalNetworkPolicy(bad): spec.namespaceSelector: selector "app =": expected an operator at offset 4, near "="
			GlobalNetworkPolicy(bad): spec.selector: selector "app =": expected an operator at offset 4, near "="
			GlobalNetworkPolicy(bad): spec.serviceAccountSelector: selector "!": expected a label name at the end`,
	}, {
		name: "the selector of a policy in a namespace: that namespace",
		resources: web + db + open + `kind: NetworkPolicy
metadata: {name: bad, namespace: prod}
spec: {selector: "app =", ingress: [{action: Allow}]}
---
kind: WorkloadEndpoint
metadata: {name: bot, namespace: prod, labels: {app: bot}}
spec: {node: node-1, orchestrator: k8s, pod: bot, ipNetworks: [10.0.9.2/32], profiles: [open]}
`,
		verdicts: `
			prod/bot ingress udp [10.0.0.2]:9 [10.0.9.2]:1 => Deny default/prod/bad/end
			web ingress udp [10.0.0.2]:9 [10.0.0.1]:1 => Allow open[0]`,
		problems: `NetworkPolicy(prod/bad): spec.selector: selector "app =": expected an operator at offset 4, near "="`,
	}})
}

func TestMoreThanOneWordOfRules(t *testing.T) {
	long := make([]string, 70)
	for i := range long {
		long[i] = fmt.Sprintf("{action: Allow, protocol: TCP, destination: {ports: [%d]}}", i+1)
	}
	runStates(t, []state{{
		name:      "70 rules",
		resources: web + db + "kind: GlobalNetworkPolicy\nmetadata: {name: p}\nspec: {selector: app == 'db', ingress: [" + strings.Join(long, ", ") + "]}\n",
		verdicts: `
			db ingress tcp [10.0.0.1]:9 [10.0.0.2]:1 => Allow default/p[0]
			db ingress tcp [10.0.0.1]:9 [10.0.0.2]:64 => Allow default/p[63]
			db ingress tcp [10.0.0.1]:9 [10.0.0.2]:70 => Allow default/p[69]
			db ingress tcp [10.0.0.1]:9 [10.0.0.2]:71 => Deny default/end`,
		problems: `Profile(open): does not exist`,
	}})
}
