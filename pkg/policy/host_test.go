package policy_test

import "testing"

func TestHostEndpoints(t *testing.T) {
	eth0 := `kind: HostEndpoint
metadata: {name: eth0, labels: {role: edge}}
spec: {node: node-1, interfaceName: eth0, expectedIPs: [192.0.2.1], profiles: [open], ports: [{name: ssh, protocol: TCP, port: 22}]}
---
`
	others := `kind: HostEndpoint
metadata: {name: all, labels: {role: inner}}
spec: {node: node-1, interfaceName: "*"}
---
kind: HostEndpoint
metadata: {name: elsewhere, labels: {role: edge}}
spec: {node: node-2, interfaceName: eth0}
---
`
	policy := func(name, spec string) string {
		return "kind: GlobalNetworkPolicy\nmetadata: {name: " + name + "}\nspec: " + spec + "\n---\n"
	}
	runStates(t, []state{{
		name:      "without policies profiles decide about the host's own packets, and nothing about others",
		resources: eth0 + others + open,
		verdicts: `
			eth0 untracked.ingress tcp [10.0.0.2]:9 [192.0.2.1]:80 => no policy
			eth0 preDNAT.ingress tcp [10.0.0.2]:9 [192.0.2.1]:80 => no policy
			eth0 forward.ingress tcp [10.0.0.2]:9 [10.0.0.1]:80 => no policy
			eth0 forward.egress tcp [10.0.0.1]:9 [10.0.0.2]:80 => no policy
			eth0 normal.ingress tcp [10.0.0.2]:9 [192.0.2.1]:80 => Allow open[0]
			eth0 normal.egress tcp [192.0.2.1]:9 [10.0.0.2]:80 => Allow open[0]
			all normal.ingress tcp [10.0.0.2]:9 [192.0.2.1]:80 => Deny end`,
	}, {
		name: "each policy at its stage",
		resources: eth0 + others + open +
			policy("a", `{order: 1, selector: role == 'edge', doNotTrack: true, applyOnForward: true, ingress: [{action: Allow, protocol: UDP, destination: {ports: [53]}}, {action: Deny, protocol: SCTP}], egress: [{action: Log}]}`) +
			policy("b", `{order: 2, selector: role == 'edge', preDNAT: true, applyOnForward: true, ingress: [{action: Deny, source: {nets: [198.51.100.0/24]}}, {action: Allow, protocol: TCP, destination: {ports: [80]}}]}`) +
			policy("c", `{order: 3, selector: role == 'edge', applyOnForward: true, ingress: [{action: Allow, protocol: TCP, destination: {ports: [443]}}, {action: Pass, protocol: UDP}]}`) +
			policy("d", `{order: 4, selector: all(), ingress: [{action: Allow, protocol: TCP, destination: {ports: [ssh]}}]}`),
		verdicts: `
			eth0 untracked.ingress udp [10.0.0.2]:9 [192.0.2.1]:53 => Allow default/a[0]
			eth0 untracked.ingress sctp [10.0.0.2]:9 [192.0.2.1]:53 => Deny default/a[1]
			eth0 untracked.ingress tcp [10.0.0.2]:9 [192.0.2.1]:53 => Continue end
			eth0 untracked.egress tcp [192.0.2.1]:9 [10.0.0.2]:9 => Log default/a[0], Continue end
			eth0 preDNAT.ingress tcp [198.51.100.9]:9 [192.0.2.1]:80 => Deny default/b[0]
			eth0 preDNAT.ingress tcp [10.0.0.2]:9 [192.0.2.1]:80 => Allow default/b[1]
			eth0 preDNAT.ingress tcp [10.0.0.2]:9 [192.0.2.1]:81 => Continue end
			eth0 forward.ingress tcp [10.0.0.2]:9 [10.0.0.1]:443 => Allow default/c[0]
			eth0 forward.ingress tcp [10.0.0.2]:9 [10.0.0.1]:22 => Deny default/end
			eth0 forward.ingress udp [10.0.0.2]:9 [10.0.0.1]:22 => Pass default/c[1], Allow end
			eth0 forward.egress tcp [10.0.0.1]:9 [10.0.0.2]:443 => no policy
			eth0 normal.ingress tcp [10.0.0.2]:9 [192.0.2.1]:22 => Allow default/d[0]
			eth0 normal.ingress tcp [10.0.0.2]:9 [192.0.2.1]:443 => Allow default/c[0]
			eth0 normal.ingress tcp [10.0.0.2]:9 [192.0.2.1]:80 => Deny default/end
			eth0 normal.ingress udp [10.0.0.2]:9 [192.0.2.1]:80 => Pass default/c[1], Allow open[0]
			eth0 normal.egress tcp [192.0.2.1]:9 [10.0.0.2]:80 => Allow open[0]
			all forward.ingress tcp [10.0.0.2]:9 [10.0.0.1]:443 => no policy
			all untracked.ingress udp [10.0.0.2]:9 [192.0.2.1]:53 => no policy
			all normal.ingress tcp [10.0.0.2]:9 [192.0.2.1]:22 => Allow default/d[0]
			all normal.egress tcp [192.0.2.1]:9 [10.0.0.2]:80 => Deny end`,
	}, {
		name: "tiers, at a stage without defaults too",
		resources: eth0 + open + `kind: Tier
metadata: {name: first}
spec: {order: 1}
---
` + policy("first.a", `{tier: first, selector: role == 'edge', preDNAT: true, applyOnForward: true, ingress: [{action: Pass, protocol: UDP}, {action: Deny, protocol: UDP}, {action: Log}]}`) +
			policy("b", `{selector: role == 'edge', preDNAT: true, applyOnForward: true, ingress: [{action: Deny, protocol: UDP, destination: {ports: [1]}}]}`) +
			policy("first.c", `{tier: first, selector: role == 'edge', applyOnForward: true, egress: [{action: Allow, protocol: TCP}], types: [Egress]}`),
		verdicts: `
			eth0 preDNAT.ingress udp [10.0.0.2]:9 [192.0.2.1]:1 => Pass first/first.a[0], Deny default/b[0]
			eth0 preDNAT.ingress udp [10.0.0.2]:9 [192.0.2.1]:2 => Pass first/first.a[0], Continue end
			eth0 preDNAT.ingress tcp [10.0.0.2]:9 [192.0.2.1]:2 => Log first/first.a[2], Continue end
			eth0 forward.egress tcp [10.0.0.2]:9 [192.0.2.1]:2 => Allow first/first.c[0]
			eth0 forward.egress udp [10.0.0.2]:9 [192.0.2.1]:2 => Deny first/end
			eth0 normal.ingress udp [10.0.0.2]:9 [192.0.2.1]:2 => Allow open[0]
			eth0 normal.egress udp [10.0.0.2]:9 [192.0.2.1]:2 => Deny first/end`,
	}, {
		name: "what cannot be read closes what it may be about at its stage",
		resources: eth0 + policy("a", `{selector: role == 'edge', doNotTrack: true, applyOnForward: true, ingress: [{action: Allow, protocol: UDP, destination: {selector: "=="}}]}`) +
			policy("gone.b", `{tier: gone, selector: role == 'edge', applyOnForward: true, egress: [{action: Allow}]}`) +
			policy("gone.d", `{tier: gone, selector: role == 'edge', applyOnForward: true, egress: [{action: Allow}]}`) +
			policy("c", `{selector: role == 'edge', preDNAT: true, applyOnForward: true, types: [Inbound]}`),
		verdicts: `
			eth0 untracked.ingress gre 10.0.0.2 192.0.2.1 => Continue end
			eth0 untracked.ingress udp [10.0.0.2]:1 [192.0.2.1]:1 => Deny default/a[0]
			eth0 preDNAT.ingress gre 10.0.0.2 192.0.2.1 => Deny default/c/end
			eth0 forward.ingress gre 10.0.0.2 192.0.2.1 => no policy
			eth0 forward.egress gre 10.0.0.2 192.0.2.1 => Deny gone/gone.b/end
			eth0 normal.ingress gre 10.0.0.2 192.0.2.1 => Deny open/end
			eth0 normal.egress gre 10.0.0.2 192.0.2.1 => Deny gone/gone.b/end`,
		problems: `
			GlobalNetworkPolicy(a): spec.ingress[0].destination.selector: selector "==": expected a label name at offset 0, near "=="
			GlobalNetworkPolicy(c): spec.types: "Inbound" is neither Ingress nor Egress
			GlobalNetworkPolicy(gone.b): spec.tier: "gone" does not exist
			GlobalNetworkPolicy(gone.d): spec.tier: "gone" does not exist
			Profile(open): does not exist`,
	}, {
		name: "host endpoints are peers like others, and workloads have no stages",
		resources: web + db + eth0 + open +
			policy("p", `{selector: app == 'db', applyOnForward: true, ingress: [{action: Allow, source: {selector: role == 'edge'}}, {action: Deny, protocol: TCP, source: {ports: [ssh]}}]}`) +
			policy("q", `{selector: all(), doNotTrack: true, applyOnForward: true, ingress: [{action: Deny}], egress: [{action: Deny}]}`) +
			policy("r", `{selector: all(), preDNAT: true, applyOnForward: true, ingress: [{action: Deny}]}`),
		verdicts: `
			db ingress gre 192.0.2.1 10.0.0.2 => Allow default/p[0]
			db ingress gre 192.0.2.2 10.0.0.2 => Deny default/end
			web ingress gre 192.0.2.1 10.0.0.1 => Allow open[0]`,
	}})
}
