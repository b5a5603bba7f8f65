package policy_test

import "testing"

func TestStagedPolicies(t *testing.T) {
	global := func(kind, name, spec string) string {
		return "kind: " + kind + "\nmetadata: {name: " + name + "}\nspec: " + spec + "\n---\n"
	}
	enforced := global("GlobalNetworkPolicy", "a", `{selector: app == 'web', order: 1, ingress: [{action: Allow, protocol: TCP}, {action: Pass, protocol: UDP}]}`)
	base := web + db + open + enforced
	tiers := `kind: Tier
metadata: {name: first}
spec: {order: 10, defaultAction: Pass}
---
`
	runStates(t, []state{{
		name:      "none",
		resources: base,
		verdicts: `
			web would.ingress tcp [10.0.0.2]:9 [10.0.0.1]:1 => no policy
			web would.egress tcp [10.0.0.2]:9 [10.0.0.1]:1 => no policy`,
	}, {
		name:      "a new one, in front: the rest is as it is",
		resources: base + global("StagedGlobalNetworkPolicy", "b", `{selector: has(app), order: 0, ingress: [{action: Log}, {action: Deny, source: {nets: [10.0.0.0/30]}}]}`),
		verdicts: `
			web ingress tcp [10.0.0.2]:9 [10.0.0.1]:1 => Allow default/a[0]
			web would.ingress tcp [10.0.0.2]:9 [10.0.0.1]:1 => Log default/b[0] staged, Deny default/b[1] staged
			web would.ingress tcp [10.0.0.4]:9 [10.0.0.1]:1 => Log default/b[0] staged, Allow default/a[0]
			web would.ingress udp [10.0.0.4]:9 [10.0.0.1]:1 => Log default/b[0] staged, Pass default/a[1], Allow open[0]
			web would.ingress gre 10.0.0.4 10.0.0.1 => Log default/b[0] staged, Deny default/end staged
			web would.egress tcp [10.0.0.1]:9 [10.0.0.2]:1 => no policy
			db ingress tcp [10.0.0.1]:9 [10.0.0.2]:1 => Deny end
			db would.ingress tcp [10.0.0.4]:9 [10.0.0.2]:1 => Log default/b[0] staged, Deny default/end staged`,
		staged: `StagedGlobalNetworkPolicy(b)`,
	}, {
		name:      "in the place of one that selects others, and in another tier",
		resources: base + tiers + global("StagedGlobalNetworkPolicy", "a", `{tier: first, selector: app == 'db', ingress: [{action: Allow, protocol: UDP}]}`),
		verdicts: `
			web ingress tcp [10.0.0.2]:9 [10.0.0.1]:1 => Allow default/a[0]
			web would.ingress tcp [10.0.0.2]:9 [10.0.0.1]:1 => Allow open[0]
			db ingress udp [10.0.0.1]:9 [10.0.0.2]:1 => Deny end
			db would.ingress udp [10.0.0.1]:9 [10.0.0.2]:1 => Allow first/a[0] staged
			db would.ingress tcp [10.0.0.1]:9 [10.0.0.2]:1 => Pass first/end staged, Deny end staged`,
		staged: `StagedGlobalNetworkPolicy(a)`,
	}, {
		name:      "learned: as if set",
		resources: base + global("StagedGlobalNetworkPolicy", "a", `{stagedAction: Learn, selector: app == 'web', ingress: [{action: Deny}]}`),
		verdicts:  `web would.ingress tcp [10.0.0.2]:9 [10.0.0.1]:1 => Deny default/a[0] staged`,
		staged:    `StagedGlobalNetworkPolicy(a)`,
	}, {
		name:      "deleted",
		resources: base + global("StagedGlobalNetworkPolicy", "a", `{stagedAction: Delete}`),
		verdicts: `
			web ingress gre 10.0.0.2 10.0.0.1 => Deny default/end
			web would.ingress gre 10.0.0.2 10.0.0.1 => Allow open[0]
			db would.ingress gre 10.0.0.2 10.0.0.1 => no policy`,
		staged: `StagedGlobalNetworkPolicy(a)`,
	}, {
		name: "to delete one that is not there, and to be ignored",
		resources: base + global("StagedGlobalNetworkPolicy", "x", `{stagedAction: Delete}`) +
			global("StagedGlobalNetworkPolicy", "a", `{stagedAction: Ignore, selector: all(), ingress: [{action: Deny}]}`),
		verdicts: `
			web would.ingress gre 10.0.0.2 10.0.0.1 => no policy
			db would.ingress gre 10.0.0.2 10.0.0.1 => no policy`,
		staged: `
			StagedGlobalNetworkPolicy(a)
			StagedGlobalNetworkPolicy(x)`,
	}, {
		name: "in a namespace",
		resources: base + `kind: StagedNetworkPolicy
metadata: {name: a, namespace: default}
spec: {selector: app == 'web', types: [Egress], egress: [{action: Allow, destination: {selector: app == 'db'}}]}
---
kind: StagedNetworkPolicy
metadata: {name: a, namespace: prod}
spec: {types: [Egress]}
`,
		verdicts: `
			web would.ingress tcp [10.0.0.2]:9 [10.0.0.1]:1 => no policy
			web egress tcp [10.0.0.1]:9 [10.0.0.2]:1 => Allow open[0]
			web would.egress tcp [10.0.0.1]:9 [10.0.0.2]:1 => Allow default/default/a[0] staged
			web would.egress tcp [10.0.0.1]:9 [10.0.9.2]:1 => Deny default/end staged`,
		staged: `
			StagedNetworkPolicy(default/a)
			StagedNetworkPolicy(prod/a)`,
	}, {
		name:      "faults close the staged ruleset alone",
		resources: base + global("StagedGlobalNetworkPolicy", "b", `{tier: gone, selector: app == 'web'}`) + global("StagedGlobalNetworkPolicy", "c", `{stagedAction: Maybe, selector: app == 'db', types: [Egress]}`),
		verdicts: `
			web ingress tcp [10.0.0.2]:9 [10.0.0.1]:1 => Allow default/a[0]
			web would.ingress tcp [10.0.0.2]:9 [10.0.0.1]:1 => Deny gone/b/end staged
			db would.egress tcp [10.0.0.2]:9 [10.0.0.1]:1 => Deny default/c/end staged`,
		staged: `
			StagedGlobalNetworkPolicy(b)
			StagedGlobalNetworkPolicy(c)`,
		problems: `
			StagedGlobalNetworkPolicy(b): spec.tier: "gone" does not exist
			StagedGlobalNetworkPolicy(c): spec.stagedAction: "Maybe" is none of Set, Delete, Learn, Ignore`,
	}, {
		name: "at a host endpoint, stage by stage",
		resources: open + `kind: HostEndpoint
metadata: {name: eth0, labels: {role: edge}}
spec: {node: node-1, interfaceName: eth0, expectedIPs: [192.0.2.1], profiles: [open]}
---
` +
			global("GlobalNetworkPolicy", "a", `{selector: role == 'edge', applyOnForward: true, ingress: [{action: Allow, protocol: TCP}]}`) +
			global("StagedGlobalNetworkPolicy", "a", `{stagedAction: Delete}`) +
			global("StagedGlobalNetworkPolicy", "b", `{selector: role == 'edge', applyOnForward: true, preDNAT: true, ingress: [{action: Deny, protocol: UDP}]}`) +
			global("StagedGlobalNetworkPolicy", "c", `{selector: role == 'edge', applyOnForward: true, doNotTrack: true, egress: [{action: Allow, protocol: UDP}]}`),
		verdicts: `
			eth0 would.untracked.ingress gre 10.0.0.2 192.0.2.1 => no policy
			eth0 would.untracked.egress udp [192.0.2.1]:9 [10.0.0.2]:1 => Allow default/c[0] staged
			eth0 would.untracked.egress tcp [192.0.2.1]:9 [10.0.0.2]:1 => Continue end staged
			eth0 would.preDNAT.ingress udp [10.0.0.2]:9 [192.0.2.1]:1 => Deny default/b[0] staged
			eth0 forward.ingress udp [10.0.0.2]:9 [10.0.0.1]:1 => Deny default/end
			eth0 would.forward.ingress udp [10.0.0.2]:9 [10.0.0.1]:1 => Allow end staged
			eth0 would.forward.egress udp [10.0.0.2]:9 [10.0.0.1]:1 => no policy
			eth0 normal.ingress udp [10.0.0.2]:9 [192.0.2.1]:1 => Deny default/end
			eth0 would.normal.ingress udp [10.0.0.2]:9 [192.0.2.1]:1 => Allow open[0]
			eth0 would.normal.egress udp [192.0.2.1]:9 [10.0.0.2]:1 => no policy`,
		staged: `
			StagedGlobalNetworkPolicy(a)
			StagedGlobalNetworkPolicy(b)
			StagedGlobalNetworkPolicy(c)`,
	}})
}

func TestStagedKubernetesPolicies(t *testing.T) {
	pods := open + `kind: WorkloadEndpoint
metadata: {name: api, namespace: prod, labels: {app: api}}
spec: {node: node-1, orchestrator: k8s, pod: api, ipNetworks: [10.0.9.1], profiles: [kns.prod, open], ports: [{name: http, protocol: TCP, port: 8080}]}
---
kind: WorkloadEndpoint
metadata: {name: job, namespace: prod, labels: {app: job}}
spec: {node: node-2, orchestrator: k8s, pod: job, ipNetworks: [10.0.9.2], profiles: [kns.prod]}
---
kind: WorkloadEndpoint
metadata: {name: job, namespace: test, labels: {app: job}}
spec: {node: node-2, orchestrator: k8s, pod: job, ipNetworks: [10.0.9.3], profiles: [kns.test]}
---
kind: WorkloadEndpoint
metadata: {name: vm, namespace: prod, labels: {app: job}}
spec: {node: node-2, orchestrator: openstack, workload: vm, ipNetworks: [10.0.9.4]}
---
kind: Profile
metadata: {name: kns.prod}
spec: {labelsToApply: {pcns.env: live}}
---
kind: Profile
metadata: {name: kns.test}
spec: {labelsToApply: {pcns.env: test}}
---
`
	policy := func(spec string) string {
		return pods + "kind: StagedKubernetesNetworkPolicy\nmetadata: {name: np, namespace: prod}\nspec: " + spec + "\n"
	}
	staged := `StagedKubernetesNetworkPolicy(prod/np)`
	runStates(t, []state{{
		name: "peers and ports of each rule",
		resources: policy(`{podSelector: {matchLabels: {app: api}}, ingress: [
			{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}]},
			{from: [{podSelector: {matchLabels: {app: job}}}, {namespaceSelector: {matchExpressions: [{key: env, operator: In, values: [test]}]}}], ports: [{port: http}, {protocol: UDP}, {port: 9000, endPort: 9010}]}]}`),
		verdicts: `
			prod/api would.ingress gre 192.0.2.1 10.0.9.1 => Allow default/prod/np[0] staged
			prod/api would.ingress gre 192.0.2.129 10.0.9.1 => Deny default/end staged
			prod/api would.ingress tcp [10.0.9.2]:9 [10.0.9.1]:8080 => Allow default/prod/np[1] staged
			prod/api would.ingress tcp [10.0.9.3]:9 [10.0.9.1]:9010 => Allow default/prod/np[1] staged
			prod/api would.ingress udp [10.0.9.3]:9 [10.0.9.1]:1 => Allow default/prod/np[1] staged
			prod/api would.ingress tcp [10.0.9.3]:9 [10.0.9.1]:9011 => Deny default/end staged
			prod/api would.ingress udp [10.0.9.4]:9 [10.0.9.1]:1 => Deny default/end staged
			prod/api would.egress udp [10.0.9.1]:9 [10.0.9.2]:1 => no policy`,
		staged: staged,
	}, {
		name: "the types that it has, and in the place of the one that Kubernetes' controller has stored",
		resources: policy(`{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [api]}]}}], ports: [{protocol: SCTP, port: 5}]}]}`) + `---
kind: NetworkPolicy
metadata: {name: knp.default.np, namespace: prod}
spec: {order: 1000, selector: projectcalico.org/orchestrator == 'k8s', ingress: [{action: Allow, protocol: TCP}]}
`,
		verdicts: `
			prod/api ingress gre 10.0.9.2 10.0.9.1 => Deny default/end
			prod/api would.ingress gre 10.0.9.2 10.0.9.1 => Allow open[0]
			prod/api would.egress sctp [10.0.9.1]:9 [10.0.9.3]:5 => Allow default/prod/np[0] staged
			prod/api would.egress sctp [10.0.9.1]:9 [10.0.9.1]:5 => Deny default/end staged
			prod/api would.egress sctp [10.0.9.1]:9 [10.0.9.4]:5 => Deny default/end staged`,
		staged: staged,
	}, {
		name:      "deleted",
		resources: policy(`{stagedAction: Delete}`),
		verdicts:  `prod/api would.ingress gre 10.0.9.2 10.0.9.1 => no policy`,
		staged:    staged,
	}})
}
