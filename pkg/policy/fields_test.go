package policy_test

import "testing"

func TestRuleFields(t *testing.T) {
	rules := func(list string) string {
		return web + db + far + open + "kind: GlobalNetworkPolicy\nmetadata: {name: p}\nspec: {selector: app == 'db', ingress: [" + list + "], types: [Ingress]}\n"
	}
	runStates(t, []state{{
		name: "ports and ranges, and the ones left out",
		resources: rules(`{action: Allow, protocol: TCP, destination: {ports: [80, "1000:2000"], notPorts: [1500]}},
			{action: Allow, protocol: UDP, source: {ports: [53]}},
			{action: Allow, protocol: SCTP, source: {notPorts: ["0:1023"]}}`),
		verdicts: `
			db ingress tcp [10.0.0.1]:9 [10.0.0.2]:80 => Allow default/p[0]
			db ingress tcp [10.0.0.1]:9 [10.0.0.2]:81 => Deny default/end
			db ingress tcp [10.0.0.1]:9 [10.0.0.2]:2000 => Allow default/p[0]
			db ingress tcp [10.0.0.1]:9 [10.0.0.2]:1500 => Deny default/end
			db ingress udp [10.0.0.1]:9 [10.0.0.2]:80 => Deny default/end
			db ingress udp [10.0.0.1]:53 [10.0.0.2]:80 => Allow default/p[1]
			db ingress sctp [10.0.0.1]:1023 [10.0.0.2]:80 => Deny default/end
			db ingress sctp [10.0.0.1]:1024 [10.0.0.2]:80 => Allow default/p[2]`,
	}, {
		name:      "a port name means another number at each endpoint",
		resources: rules(`{action: Log, protocol: TCP, destination: {ports: [http, sql, 22]}}, {action: Allow, protocol: TCP, source: {ports: [http]}}`),
		verdicts: `
			db ingress tcp [10.0.0.1]:9 [10.0.0.2]:5432 => Log default/p[0], Deny default/end
			db ingress tcp [10.0.0.1]:9 [10.0.0.2]:22 => Log default/p[0], Deny default/end
			db ingress tcp [10.0.0.1]:9 [10.0.0.2]:80 => Deny default/end
			db ingress tcp [10.0.0.1]:8080 [10.0.0.2]:1 => Allow default/p[1]
			db ingress tcp [10.0.9.1]:8080 [10.0.0.2]:1 => Deny default/end
			db ingress tcp [10.0.9.1]:80 [10.0.0.2]:1 => Allow default/p[1]
			db ingress tcp [fd00::9:1]:80 [fd00::2]:1 => Allow default/p[1]`,
	}, {
		name: "a port name left out, with and without numbers asked for",
		resources: rules(`{action: Allow, protocol: TCP, source: {selector: app == 'web', notPorts: [http]}},
			{action: Log, protocol: TCP, source: {ports: ["1:100"], notPorts: [http, 50]}}`),
		verdicts: `
			db ingress tcp [10.0.0.1]:8080 [10.0.0.2]:1 => Deny default/end
			db ingress tcp [10.0.0.1]:80 [10.0.0.2]:1 => Allow default/p[0]
			db ingress tcp [10.0.9.1]:80 [10.0.0.2]:1 => Deny default/end
			db ingress tcp [10.0.9.1]:8080 [10.0.0.2]:1 => Allow default/p[0]
			db ingress tcp [8.8.8.8]:8080 [10.0.0.2]:1 => Deny default/end
			db ingress tcp [8.8.8.8]:80 [10.0.0.2]:1 => Log default/p[1], Deny default/end
			db ingress tcp [8.8.8.8]:50 [10.0.0.2]:1 => Deny default/end`,
	}, {
		name: "protocols by name and number and all but one",
		resources: rules(`{action: Allow, protocol: 47}, {action: Log, notProtocol: TCP}, {action: Allow, protocol: "17", notProtocol: UDP},
			{action: Allow, protocol: UDP, notProtocol: TCP}`),
		verdicts: `
			db ingress gre 10.0.0.1 10.0.0.2 => Allow default/p[0]
			db ingress tcp [10.0.0.1]:9 [10.0.0.2]:9 => Deny default/end
			db ingress udp [10.0.0.1]:9 [10.0.0.2]:9 => Log default/p[1], Allow default/p[3]
			db ingress icmp 10.0.0.1 [10.0.0.2]:8.0 => Log default/p[1], Deny default/end`,
	}, {
		name: "ICMP",
		resources: rules(`{action: Allow, protocol: ICMP, icmp: {type: 8, code: 0}}, {action: Log, protocol: ICMP, icmp: {type: 8}},
			{action: Allow, protocol: ICMPv6, ipVersion: 6, notICMP: {type: 128}}, {action: Allow, protocol: ICMP, icmp: {type: 3}, notICMP: {type: 3, code: 4}}`),
		verdicts: `
			db ingress icmp 10.0.0.1 [10.0.0.2]:8.0 => Allow default/p[0]
			db ingress icmp 10.0.0.1 [10.0.0.2]:8.1 => Log default/p[1], Deny default/end
			db ingress icmp 10.0.0.1 [10.0.0.2]:3.3 => Allow default/p[3]
			db ingress icmp 10.0.0.1 [10.0.0.2]:3.4 => Deny default/end
			db ingress icmp6 fd00::1 [fd00::2]:128.0 => Deny default/end
			db ingress icmp6 fd00::1 [fd00::2]:129.0 => Allow default/p[2]`,
	}, {
		name: "ICMP by number, and the types of one family are none of the other's",
		resources: rules(`{action: Allow, protocol: 1, icmp: {type: 8}}, {action: Allow, protocol: "58", icmp: {type: 128, code: 1}},
			{action: Log, protocol: ICMP, notICMP: {type: 3, code: 1}}, {action: Log, protocol: ICMPv6, icmp: {}}`),
		verdicts: `
			db ingress icmp 10.0.0.1 [10.0.0.2]:8.7 => Allow default/p[0]
			db ingress icmp6 fd00::1 [fd00::2]:8.7 => Log default/p[3], Deny default/end
			db ingress icmp6 fd00::1 [fd00::2]:128.1 => Allow default/p[1]
			db ingress icmp 10.0.0.1 [10.0.0.2]:3.1 => Deny default/end
			db ingress icmp 10.0.0.1 [10.0.0.2]:3.2 => Log default/p[2], Deny default/end`,
	}, {
		name: "UDPLite and SCTP have ports of their own, and names for them",
		resources: rules(`{action: Allow, protocol: UDPLite, destination: {ports: ["5:7"], notPorts: [6]}}, {action: Allow, protocol: SCTP, source: {ports: [sig]}}`) + `---
kind: WorkloadEndpoint
metadata: {name: phone, namespace: default}
spec: {node: node-2, orchestrator: cni, ipNetworks: [10.0.0.9], ports: [{name: sig, protocol: SCTP, port: 2905}, {name: sig, protocol: TCP, port: 2906}]}
`,
		verdicts: `
			db ingress udplite [10.0.0.1]:1 [10.0.0.2]:5 => Allow default/p[0]
			db ingress udplite [10.0.0.1]:1 [10.0.0.2]:6 => Deny default/end
			db ingress udp [10.0.0.1]:1 [10.0.0.2]:5 => Deny default/end
			db ingress sctp [10.0.0.9]:2905 [10.0.0.2]:5 => Allow default/p[1]
			db ingress sctp [10.0.0.9]:2906 [10.0.0.2]:5 => Deny default/end
			db ingress tcp [10.0.0.9]:2905 [10.0.0.2]:5 => Deny default/end`,
	}, {
		name: "hints and annotations change nothing",
		resources: web + db + far + open + `kind: GlobalNetworkPolicy
metadata: {name: p, annotations: {some: note}}
spec: {selector: app == 'db', performanceHints: [AssumeNeededOnEveryNode], ingress: [{action: Allow, protocol: TCP, metadata: {annotations: {why: so}}}]}
`,
		verdicts: `
			db ingress tcp [10.0.0.1]:1 [10.0.0.2]:5 => Allow default/p[0]
			db ingress udp [10.0.0.1]:1 [10.0.0.2]:5 => Deny default/end`,
	}, {
		name: "families",
		resources: rules(`{action: Log, ipVersion: 6}, {action: Log, source: {notNets: [10.0.0.0/24]}}, {action: Log, ipVersion: 4, protocol: 47},
			{action: Allow, source: {nets: ["fd00::/16"]}}, {action: Allow, ipVersion: 6, source: {nets: [10.0.0.0/8]}}`),
		verdicts: `
			db ingress gre 10.0.0.1 10.0.0.2 => Log default/p[2], Deny default/end
			db ingress gre 10.0.1.1 10.0.0.2 => Log default/p[1], Log default/p[2], Deny default/end
			db ingress gre fd00::1 fd00::2 => Log default/p[0], Allow default/p[3]
			db ingress gre 2001:db8::1 fd00::2 => Log default/p[0], Deny default/end`,
	}, {
		name:      "nested nets, host bits, and what they leave out",
		resources: rules(`{action: Allow, source: {nets: [10.0.0.9/16, 10.0.0.0/24, 192.0.2.0/24], notNets: [10.0.0.0/25]}}`),
		verdicts: `
			db ingress gre 10.0.0.127 10.0.0.2 => Deny default/end
			db ingress gre 10.0.0.128 10.0.0.2 => Allow default/p[0]
			db ingress gre 10.0.255.255 10.0.0.2 => Allow default/p[0]
			db ingress gre 10.1.0.0 10.0.0.2 => Deny default/end
			db ingress gre 192.0.2.9 10.0.0.2 => Allow default/p[0]`,
	}, {
		name: "what cannot be enforced lets less through",
		resources: rules(`{action: Allow, protocol: TCP, http: {methods: [GET]}}, {action: Deny, protocol: UDP, source: {services: {name: s, namespace: shop}}},
			{action: Pass, protocol: SCTP, http: {methods: [GET]}}, {action: Log, http: {methods: [GET]}}, {action: Allow}`),
		verdicts: `
			db ingress tcp [10.0.0.1]:9 [10.0.0.2]:80 => Allow default/p[4]
			db ingress udp [10.0.0.1]:9 [10.0.0.2]:80 => Deny default/p[1]
			db ingress sctp [10.0.0.1]:9 [10.0.0.2]:80 => Deny default/p[2]
			db ingress gre 10.0.0.1 10.0.0.2 => Allow default/p[4]`,
		problems: `
			GlobalNetworkPolicy(p): spec.ingress[0].http: "GET" cannot be enforced
			GlobalNetworkPolicy(p): spec.ingress[1].source.services: "shop/s" cannot be enforced
			GlobalNetworkPolicy(p): spec.ingress[2].http: "GET" cannot be enforced
			GlobalNetworkPolicy(p): spec.ingress[3].http: "GET" cannot be enforced`,
	}})
}
