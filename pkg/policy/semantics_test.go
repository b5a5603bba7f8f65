package policy_test

import "testing"

// Two endpoints here and one elsewhere, as most states have them.
const (
	web = `kind: WorkloadEndpoint
metadata: {name: web, namespace: default, labels: {app: web}}
spec: {node: node-1, orchestrator: cni, workload: web, endpoint: eth0, interfaceName: cali1, ipNetworks: [10.0.0.1/32, "fd00::1/128"], profiles: [open], ports: [{name: http, protocol: TCP, port: 8080}]}
---
`
	db = `kind: WorkloadEndpoint
metadata: {name: db, namespace: default, labels: {app: db}}
spec: {node: node-1, orchestrator: cni, workload: db, endpoint: eth0, interfaceName: cali2, ipNetworks: [10.0.0.2/32, "fd00::2/128"], ports: [{name: sql, protocol: TCP, port: 5432}]}
---
`
	far = `kind: WorkloadEndpoint
metadata: {name: far, namespace: prod, labels: {app: web}}
spec: {node: node-2, orchestrator: cni, workload: far, endpoint: eth0, interfaceName: cali1, ipNetworks: [10.0.9.1/32, "fd00::9:1/128"], ports: [{name: http, protocol: TCP, port: 80}]}
---
`
	open = `kind: Profile
metadata: {name: open}
spec: {ingress: [{action: Allow}], egress: [{action: Allow}], labelsToApply: {role: front}}
---
`
)

func TestProfiles(t *testing.T) {
	runStates(t, []state{{
		name:      "no profile drops, an open one allows",
		resources: web + db + open,
		verdicts: `
			web ingress tcp [10.0.0.2]:1000 [10.0.0.1]:80 => Allow open[0]
			web egress tcp [fd00::1]:1000 [fd00::2]:80 => Allow open[0]
			db ingress tcp [10.0.0.1]:1000 [10.0.0.2]:80 => Deny end
			db egress udp [10.0.0.2]:1000 [8.8.8.8]:53 => Deny end`,
	}, {
		name:      "a missing profile drops at its place",
		resources: web,
		verdicts:  `web ingress tcp [10.0.0.2]:1000 [10.0.0.1]:80 => Deny open/end`,
		problems:  `Profile(open): does not exist`,
	}, {
		name: "the first profile that matches decides",
		resources: open + `kind: Profile
metadata: {name: ssh}
spec: {ingress: [{action: Log}, {action: Deny, protocol: TCP, destination: {ports: [22]}}, {action: Pass, protocol: UDP}, {action: Allow, protocol: UDP}]}
---
kind: WorkloadEndpoint
metadata: {name: web, namespace: default}
spec: {node: node-1, orchestrator: cni, ipNetworks: [10.0.0.1], profiles: [ssh, open, missing]}
`,
		verdicts: `
			web ingress tcp [10.0.0.2]:1000 [10.0.0.1]:22 => Log ssh[0], Deny ssh[1]
			web ingress tcp [10.0.0.2]:1000 [10.0.0.1]:80 => Log ssh[0], Allow open[0]
			web ingress udp [10.0.0.2]:1000 [10.0.0.1]:53 => Log ssh[0], Pass ssh[2], Allow open[0]
			web egress udp [10.0.0.1]:1000 [10.0.0.2]:53 => Allow open[0]`,
		problems: `Profile(missing): does not exist`,
	}, {
		name: "the built-in profile",
		resources: `kind: WorkloadEndpoint
metadata: {name: web, namespace: default}
spec: {node: node-1, orchestrator: cni, ipNetworks: [10.0.0.1], profiles: [projectcalico-default-allow]}
`,
		verdicts: `web ingress gre 10.0.0.2 10.0.0.1 => Allow projectcalico-default-allow[0]`,
	}})
}

// The labels of namespaces and service accounts come from profiles alone: no workload
// can say that it is in another namespace.
func TestWorkloadsDoNotLabelTheirNamespaces(t *testing.T) {
	resources := `kind: WorkloadEndpoint
metadata: {name: liar, namespace: default, labels: {pcns.env: prod, pcsa.level: "9", app: web}}
spec: {node: node-1, orchestrator: cni, ipNetworks: [10.0.0.3], profiles: [kns.default]}
---
kind: HostEndpoint
metadata: {name: eth0, labels: {pcns.env: prod}}
spec: {node: node-1, interfaceName: eth0, expectedIPs: [10.0.0.9]}
---
kind: Profile
metadata: {name: kns.default}
spec: {labelsToApply: {pcns.env: test}}
---
` + db + `kind: GlobalNetworkPolicy
metadata: {name: prod}
spec: {order: 1, namespaceSelector: env == 'prod', ingress: [{action: Allow}]}
---
kind: GlobalNetworkPolicy
metadata: {name: test}
spec: {order: 2, selector: pcns.env == 'test', ingress: [{action: Allow}]}
---
kind: GlobalNetworkPolicy
metadata: {name: db}
spec:
  order: 3
  selector: app == 'db'
  ingress: [{action: Allow, source: {namespaceSelector: env == 'prod'}}, {action: Allow, source: {serviceAccounts: {selector: level == '9'}}}, {action: Allow, source: {selector: pcsa.level == '9'}}]
`
	runStates(t, []state{{
		name:      "a workload's own labels of a namespace and of a service account count for nothing, a host endpoint's do",
		resources: resources,
		verdicts: `
			liar ingress gre 10.9.9.9 10.0.0.3 => Allow default/test[0]
			eth0 normal.ingress gre 10.9.9.9 10.0.0.9 => Allow default/prod[0]
			db ingress gre 10.0.0.9 10.0.0.2 => Allow default/db[0]
			db ingress gre 10.0.0.3 10.0.0.2 => Deny default/end`,
	}})
}

func TestTiers(t *testing.T) {
	tiers := `kind: Tier
metadata: {name: default}
spec: {order: 1000000, defaultAction: Deny}
---
kind: Tier
metadata: {name: first}
spec: {order: 10, defaultAction: Pass}
---
kind: Tier
metadata: {name: last}
spec: {order: 2000000}
---
`
	runStates(t, []state{{
		name: "no policy in a tier for this direction: the tier is not there",
		resources: web + open + tiers + `kind: GlobalNetworkPolicy
metadata: {name: a}
spec: {selector: app == 'web', egress: [{action: Allow, protocol: UDP}], types: [Egress]}
`,
		verdicts: `
			web ingress tcp [10.0.0.2]:1000 [10.0.0.1]:80 => Allow open[0]
			web egress udp [10.0.0.1]:1000 [10.0.0.2]:53 => Allow default/a[0]
			web egress tcp [10.0.0.1]:1000 [10.0.0.2]:53 => Deny default/end`,
	}, {
		name: "a tier passes what it does not match, and Pass leaves it",
		resources: web + open + tiers + `kind: GlobalNetworkPolicy
metadata: {name: first.a}
spec: {tier: first, selector: has(app), ingress: [{action: Pass, protocol: UDP}, {action: Deny, protocol: UDP}, {action: Log, protocol: TCP}, {action: Allow, protocol: TCP, destination: {ports: [80]}}]}
---
kind: NetworkPolicy
metadata: {name: b, namespace: default}
spec: {selector: app == 'web', ingress: [{action: Allow, protocol: UDP, destination: {ports: [53]}}, {action: Pass, protocol: TCP}]}
---
kind: NetworkPolicy
metadata: {name: b, namespace: prod}
spec: {selector: app == 'web'}
---
kind: StagedGlobalNetworkPolicy
metadata: {name: staged}
spec: {stagedAction: Set, selector: all(), order: 1, ingress: [{action: Deny}]}
`,
		verdicts: `
			web ingress udp [10.0.0.2]:1000 [10.0.0.1]:53 => Pass first/first.a[0], Allow default/default/b[0]
			web ingress udp [10.0.0.2]:1000 [10.0.0.1]:54 => Pass first/first.a[0], Deny default/end
			web ingress tcp [10.0.0.2]:1000 [10.0.0.1]:80 => Log first/first.a[2], Allow first/first.a[3]
			web ingress tcp [10.0.0.2]:1000 [10.0.0.1]:81 => Log first/first.a[2], Pass first/end, Pass default/default/b[1], Allow open[0]
			web ingress gre 10.0.0.2 10.0.0.1 => Pass first/end, Deny default/end`,
		staged: `
			StagedGlobalNetworkPolicy(staged)`,
	}, {
		name: "orders: number, then the name before kind and namespace; without a number last",
		resources: web + tiers + `kind: GlobalNetworkPolicy
metadata: {name: a}
spec: {ingress: [{action: Log}]}
---
kind: GlobalNetworkPolicy
metadata: {name: z}
spec: {order: 5, ingress: [{action: Log}]}
---
kind: NetworkPolicy
metadata: {name: x, namespace: default}
spec: {order: 5, ingress: [{action: Log}]}
---
kind: NetworkPolicy
metadata: {name: z, namespace: default}
spec: {order: 5, ingress: [{action: Log}]}
---
kind: GlobalNetworkPolicy
metadata: {name: last.early}
spec: {tier: last, order: -1, ingress: [{action: Allow}]}
---
kind: GlobalNetworkPolicy
metadata: {name: a.negative}
spec: {order: -1.5, ingress: [{action: Log}]}
`,
		verdicts: `web ingress gre 10.0.0.2 10.0.0.1 => Log default/a.negative[0], Log default/default/x[0], Log default/z[0], Log default/default/z[0], Log default/a[0], Deny default/end`,
		problems: `Profile(open): does not exist`,
	}, {
		name: "tiers: by order, then by name; without an order at 1,000,000, without a tier in the default one",
		resources: web + open + `kind: Tier
metadata: {name: after}
spec: {defaultAction: Pass, order: 1000000.5}
---
kind: Tier
metadata: {name: beside}
spec: {defaultAction: Pass}
---
kind: Tier
metadata: {name: eve}
spec: {defaultAction: Pass, order: 1000000}
---
kind: GlobalNetworkPolicy
metadata: {name: after.a}
spec: {tier: after, order: 1, ingress: [{action: Log}]}
---
kind: GlobalNetworkPolicy
metadata: {name: beside.a}
spec: {tier: beside, order: 2, ingress: [{action: Log}]}
---
kind: GlobalNetworkPolicy
metadata: {name: eve.a}
spec: {tier: eve, ingress: [{action: Log}]}
---
kind: GlobalNetworkPolicy
metadata: {name: b}
spec: {order: 3, ingress: [{action: Log}, {action: Pass}]}
`,
		verdicts: `web ingress gre 10.0.0.2 10.0.0.1 => Log beside/beside.a[0], Pass beside/end, Log default/b[0], Pass default/b[1], Log eve/eve.a[0], Pass eve/end, Log after/after.a[0], Pass after/end, Allow open[0]`,
	}, {
		name: "without types: what there are rules for, ingress if there are none",
		resources: web + open + `kind: GlobalNetworkPolicy
metadata: {name: both}
spec: {order: 1, ingress: [{action: Log}], egress: [{action: Log}]}
---
kind: GlobalNetworkPolicy
metadata: {name: in}
spec: {order: 2, ingress: [{action: Log}]}
---
kind: GlobalNetworkPolicy
metadata: {name: out}
spec: {order: 3, egress: [{action: Log}]}
---
kind: GlobalNetworkPolicy
metadata: {name: none}
spec: {order: 4, selector: app == 'nobody'}
`,
		verdicts: `
			web ingress gre 10.0.0.2 10.0.0.1 => Log default/both[0], Log default/in[0], Deny default/end
			web egress gre 10.0.0.1 10.0.0.2 => Log default/both[0], Log default/out[0], Deny default/end`,
	}, {
		name: "a policy without rules selects all the same",
		resources: web + open + `kind: NetworkPolicy
metadata: {name: none, namespace: default}
spec: {}
`,
		verdicts: `
			web ingress gre 10.0.0.2 10.0.0.1 => Deny default/end
			web egress gre 10.0.0.1 10.0.0.2 => Allow open[0]`,
	}, {
		name: "a policy of a tier that does not exist closes what it selects",
		resources: web + db + open + `kind: GlobalNetworkPolicy
metadata: {name: gone.a}
spec: {tier: gone, selector: app == 'web', ingress: [{action: Allow}]}
`,
		verdicts: `
			web ingress tcp [10.0.0.2]:1000 [10.0.0.1]:80 => Deny gone/gone.a/end
			web egress tcp [10.0.0.1]:1000 [10.0.0.2]:80 => Allow open[0]
			db ingress tcp [10.0.0.2]:1000 [10.0.0.1]:80 => Deny end`,
		problems: `GlobalNetworkPolicy(gone.a): spec.tier: "gone" does not exist`,
	}})
}

func TestSelectors(t *testing.T) {
	namespaces := `kind: Profile
metadata: {name: kns.prod}
spec: {labelsToApply: {pcns.env: live}}
---
kind: Profile
metadata: {name: ksa.prod.robot}
spec: {labelsToApply: {pcsa.role: robot}}
---
kind: WorkloadEndpoint
metadata: {name: bot, namespace: prod, labels: {app: bot}}
spec: {node: node-2, orchestrator: k8s, pod: bot, serviceAccountName: robot, ipNetworks: [10.0.9.2/32], profiles: [kns.prod, ksa.prod.robot]}
---
kind: GlobalNetworkSet
metadata: {name: world, labels: {app: web, outside: "true"}}
spec: {nets: [192.0.2.0/24, 198.51.100.7, "2001:db8::/32"]}
---
kind: NetworkSet
metadata: {name: partner, namespace: prod, labels: {partner: "true"}}
spec: {nets: [203.0.113.0/24]}
---
`
	policy := func(spec string) string {
		return web + db + far + namespaces + "kind: GlobalNetworkPolicy\nmetadata: {name: p}\nspec: {selector: app == 'db', ingress: " + spec + "}\n"
	}
	inNamespace := func(spec string) string {
		return web + db + far + namespaces + "kind: NetworkPolicy\nmetadata: {name: p, namespace: default}\nspec: {selector: app == 'db', ingress: " + spec + "}\n"
	}
	missing := `Profile(open): does not exist`
	runStates(t, []state{{
		name:      "a selector means endpoints and sets anywhere",
		resources: policy(`[{action: Allow, source: {selector: app == 'web'}}]`),
		verdicts: `
			db ingress gre 10.0.0.1 10.0.0.2 => Allow default/p[0]
			db ingress gre fd00::9:1 fd00::2 => Allow default/p[0]
			db ingress gre 192.0.2.200 10.0.0.2 => Allow default/p[0]
			db ingress gre 198.51.100.8 10.0.0.2 => Deny default/end
			db ingress gre 2001:db8:1:: fd00::2 => Allow default/p[0]
			db ingress gre 10.0.0.2 10.0.0.2 => Deny default/end`,
		problems: missing,
	}, {
		name:      "in a namespace only its own",
		resources: inNamespace(`[{action: Allow, source: {selector: app == 'web'}}]`),
		verdicts: `
			db ingress gre 10.0.0.1 10.0.0.2 => Allow default/default/p[0]
			db ingress gre fd00::9:1 fd00::2 => Deny default/end
			db ingress gre 192.0.2.200 10.0.0.2 => Deny default/end`,
		problems: missing,
	}, {
		name:      "unless a namespaceSelector says which",
		resources: inNamespace(`[{action: Allow, source: {namespaceSelector: env == 'live'}}]`),
		verdicts: `
			db ingress gre 10.0.0.1 10.0.0.2 => Deny default/end
			db ingress gre 10.0.9.1 10.0.0.2 => Deny default/end
			db ingress gre 10.0.9.2 10.0.0.2 => Allow default/default/p[0]
			db ingress gre 203.0.113.9 10.0.0.2 => Allow default/default/p[0]`,
		problems: missing,
	}, {
		name:      "all() and global() as namespaces",
		resources: inNamespace(`[{action: Log, source: {namespaceSelector: "!has(env) && all()"}}, {action: Allow, source: {namespaceSelector: all()}}, {action: Deny, source: {namespaceSelector: global()}}]`),
		verdicts: `
			db ingress gre 10.0.0.1 10.0.0.2 => Log default/default/p[0], Allow default/default/p[1]
			db ingress gre 203.0.113.9 10.0.0.2 => Allow default/default/p[1]
			db ingress gre 192.0.2.1 10.0.0.2 => Deny default/default/p[2]
			db ingress gre 8.8.8.8 10.0.0.2 => Deny default/end`,
		problems: missing,
	}, {
		name:      "notSelector alone lets strangers through, but not in a namespace",
		resources: policy(`[{action: Allow, source: {notSelector: has(app)}}]`),
		verdicts: `
			db ingress gre 10.0.0.1 10.0.0.2 => Deny default/end
			db ingress gre 8.8.8.8 10.0.0.2 => Allow default/p[0]`,
		problems: missing,
	}, {
		name:      "notSelector alone in a namespace",
		resources: inNamespace(`[{action: Allow, source: {notSelector: app == 'db'}}]`),
		verdicts: `
			db ingress gre 10.0.0.1 10.0.0.2 => Allow default/default/p[0]
			db ingress gre 10.0.0.2 10.0.0.2 => Deny default/end
			db ingress gre 8.8.8.8 10.0.0.2 => Deny default/end`,
		problems: missing,
	}, {
		name: "selector and notSelector are one match on one endpoint or set",
		resources: policy(`[{action: Allow, source: {selector: app == 'web', notSelector: has(outside)}}]`) + `---
kind: GlobalNetworkSet
metadata: {name: also, labels: {outside: "true"}}
spec: {nets: [10.0.0.0/24]}
`,
		verdicts: `
			db ingress gre 10.0.0.1 10.0.0.2 => Allow default/p[0]
			db ingress gre 192.0.2.1 10.0.0.2 => Deny default/end`,
		problems: missing,
	}, {
		name:      "service accounts",
		resources: policy(`[{action: Allow, source: {serviceAccounts: {names: [robot]}}}, {action: Allow, destination: {serviceAccounts: {selector: role == 'robot'}}}]`),
		verdicts: `
			db ingress gre 10.0.9.2 10.0.0.2 => Allow default/p[0]
			db ingress gre 10.0.0.1 10.0.9.2 => Allow default/p[1]
			db ingress gre 10.0.9.1 10.0.0.2 => Deny default/end`,
		problems: missing,
	}, {
		name: "labels of profiles, the endpoint's own above them",
		resources: web + open + `kind: WorkloadEndpoint
metadata: {name: back, namespace: default, labels: {role: back}}
spec: {node: node-2, orchestrator: cni, ipNetworks: [10.0.0.7], profiles: [open]}
---
kind: WorkloadEndpoint
metadata: {name: many, namespace: default}
spec: {node: node-2, orchestrator: cni, ipNetworks: [10.0.0.8], profiles: [other, open]}
---
kind: Profile
metadata: {name: other}
spec: {labelsToApply: {role: other}}
---
kind: GlobalNetworkPolicy
metadata: {name: p}
spec: {selector: role == 'front', ingress: [{action: Allow, source: {selector: role == 'front'}}, {action: Pass, source: {selector: role == 'other'}}]}
`,
		verdicts: `
			web ingress gre 10.0.0.1 10.0.0.1 => Allow default/p[0]
			web ingress gre 10.0.0.7 10.0.0.1 => Deny default/end
			web ingress gre 10.0.0.8 10.0.0.1 => Pass default/p[1], Allow open[0]`,
	}, {
		name: "a network set has its namespace's labels, a workload only if it lists the profile; the first profile's count",
		resources: web + open + `kind: Profile
metadata: {name: kns.prod}
spec: {labelsToApply: {pcns.env: live, zone: a}}
---
kind: Profile
metadata: {name: second}
spec: {labelsToApply: {zone: b}}
---
kind: NetworkSet
metadata: {name: lab, namespace: prod}
spec: {nets: [198.51.100.0/24]}
---
kind: WorkloadEndpoint
metadata: {name: loner, namespace: prod}
spec: {node: node-2, orchestrator: cni, ipNetworks: [10.0.9.8]}
---
kind: WorkloadEndpoint
metadata: {name: lister, namespace: prod}
spec: {node: node-2, orchestrator: cni, ipNetworks: [10.0.9.9], profiles: [kns.prod, second]}
---
kind: WorkloadEndpoint
metadata: {name: other, namespace: prod}
spec: {node: node-2, orchestrator: cni, ipNetworks: [10.0.9.10], profiles: [second, kns.prod]}
---
kind: GlobalNetworkPolicy
metadata: {name: p}
spec: {selector: app == 'web', ingress: [{action: Log, source: {namespaceSelector: env == 'live'}}, {action: Allow, source: {selector: zone == 'a'}}]}
`,
		verdicts: `
			web ingress gre 198.51.100.7 10.0.0.1 => Log default/p[0], Allow default/p[1]
			web ingress gre 10.0.9.8 10.0.0.1 => Deny default/end
			web ingress gre 10.0.9.9 10.0.0.1 => Log default/p[0], Allow default/p[1]
			web ingress gre 10.0.9.10 10.0.0.1 => Log default/p[0], Deny default/end`,
	}, {
		name: "a policy selects by namespace and service account",
		resources: web + open + `kind: Profile
metadata: {name: kns.default}
spec: {labelsToApply: {pcns.env: test}}
---
kind: WorkloadEndpoint
metadata: {name: bot, namespace: default}
spec: {node: node-1, orchestrator: k8s, pod: bot, serviceAccountName: robot, ipNetworks: [10.0.0.5], profiles: [kns.default, open]}
---
kind: GlobalNetworkPolicy
metadata: {name: p}
spec: {namespaceSelector: env == 'test', serviceAccountSelector: all(), ingress: [{action: Log}]}
`,
		verdicts: `
			web ingress gre 10.0.0.5 10.0.0.1 => Allow open[0]
			bot ingress gre 10.0.0.1 10.0.0.5 => Log default/p[0], Deny default/end`,
	}})
}
