package policytest

import (
	"math"
	"slices"
	"sort"
	"strings"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/policy"
)

// aPolicy is a policy of any kind.
type aPolicy struct {
	key       api.Key
	name      string // decides between policies of one order
	staged    bool
	tier      string
	order     float64
	selectors []func(labels map[string]string) bool
	stages    []string // at which it is asked
	rules     map[string][]aRule
}

// aRule is a rule, or what stands for one: what it does to a packet, 0 if it does not
// match.
type aRule struct {
	index int
	apply func(*Oracle, policy.Packet) policy.Action
}

// denyAll is the rules of a policy that cannot be read.
var denyAll = []aRule{{-1, func(*Oracle, policy.Packet) policy.Action { return policy.Deny }}}

func (p *aPolicy) selects(labels map[string]string) bool {
	if p.key.Namespace != "" && labels["projectcalico.org/namespace"] != p.key.Namespace {
		return false
	}
	for _, selects := range p.selectors {
		if !selects(labels) {
			return false
		}
	}
	return true
}

func (p *aPolicy) applies(stage, direction string) bool {
	_, applies := p.rules[direction]
	return applies && slices.Contains(p.stages, stage) && (stage != "preDNAT" || direction == "ingress")
}

// findPolicies returns the policies that count.
func (o *Oracle) findPolicies() []aPolicy {
	found := make(map[api.Key]aPolicy) // by the key of who is there if it is enforced
	for key, p := range api.All[*api.GlobalNetworkPolicy](o.store, "GlobalNetworkPolicy") {
		found[key] = newPolicy(key, p.Spec)
	}
	for key, p := range api.All[*api.NetworkPolicy](o.store, "NetworkPolicy") {
		found[key] = newPolicy(key, global(p.Spec))
	}
	if o.staged {
		var after []aPolicy
		stage := func(key, as api.Key, action v3.StagedAction, make func() aPolicy) {
			if action == "Ignore" {
				return
			}
			delete(found, as)
			if action != "Delete" {
				p := make()
				p.key, p.staged, p.name = key, true, nameOf(as)
				for direction := range p.rules {
					if action != "" && action != "Set" && action != "Learn" {
						p.rules[direction] = denyAll
					}
				}
				after = append(after, p)
			}
		}
		for key, p := range api.All[*api.StagedGlobalNetworkPolicy](o.store, "StagedGlobalNetworkPolicy") {
			as := api.Key{Kind: "GlobalNetworkPolicy", Name: key.Name}
			stage(key, as, p.Spec.StagedAction, func() aPolicy {
				_, spec := v3.ConvertStagedGlobalPolicyToEnforced(p)
				return newPolicy(key, spec.Spec)
			})
		}
		for key, p := range api.All[*api.StagedNetworkPolicy](o.store, "StagedNetworkPolicy") {
			as := api.Key{Kind: "NetworkPolicy", Namespace: key.Namespace, Name: key.Name}
			stage(key, as, p.Spec.StagedAction, func() aPolicy {
				_, spec := v3.ConvertStagedPolicyToEnforced(p)
				return newPolicy(key, global(spec.Spec))
			})
		}
		for key, p := range api.All[*api.StagedKubernetesNetworkPolicy](o.store, "StagedKubernetesNetworkPolicy") {
			as := api.Key{Kind: "NetworkPolicy", Namespace: key.Namespace, Name: "knp.default." + key.Name}
			stage(key, as, p.Spec.StagedAction, func() aPolicy { return newKubernetesPolicy(p) })
		}
		for _, p := range after {
			found[p.key] = p
		}
	}
	var out []aPolicy
	for _, p := range found {
		out = append(out, p)
	}
	sort.Slice(out, func(i, j int) bool {
		a, b := out[i], out[j]
		if a.order != b.order {
			return a.order < b.order
		}
		if a.name != b.name {
			return a.name < b.name
		}
		return a.key.Kind < b.key.Kind
	})
	return out
}

func nameOf(key api.Key) string { return key.Name + "/" + key.Namespace + "/" + key.Kind }

// global is the spec of a policy in a namespace as that of one in none.
func global(s v3.NetworkPolicySpec) v3.GlobalNetworkPolicySpec {
	return v3.GlobalNetworkPolicySpec{
		Tier: s.Tier, Order: s.Order, Selector: s.Selector, ServiceAccountSelector: s.ServiceAccountSelector,
		Types: s.Types, Ingress: s.Ingress, Egress: s.Egress,
	}
}

func newPolicy(key api.Key, s v3.GlobalNetworkPolicySpec) aPolicy {
	p := aPolicy{key: key, name: nameOf(key), tier: s.Tier, order: math.Inf(1), stages: []string{"normal"}, rules: make(map[string][]aRule)}
	if s.Order != nil {
		p.order = *s.Order
	}
	if s.Tier == "" {
		p.tier = "default"
	}
	switch {
	case s.DoNotTrack:
		p.stages = []string{"untracked"}
	case s.PreDNAT:
		p.stages = []string{"preDNAT"}
	case s.ApplyOnForward:
		p.stages = []string{"normal", "forward"}
	}

	// What cannot be read selects everything, and then the policy denies everything.
	closed := false
	selector := func(text string, selects func(labels map[string]string) bool) {
		if _, err := api.ParseSelector(text); err != nil {
			closed = true
			return
		}
		p.selectors = append(p.selectors, selects)
	}
	// all() is what the policy's namespaceSelector or serviceAccountSelector means by it.
	own, accounts := s.Selector, func(labels map[string]string) bool {
		return matchesScope(s.ServiceAccountSelector, "pcsa.", "projectcalico.org/serviceaccount", labels)
	}
	switch {
	case key.Namespace != "":
		accounts = func(labels map[string]string) bool { return matchesPrefixed(s.ServiceAccountSelector, "pcsa.", labels) }
	case s.NamespaceSelector != "":
		own = strings.ReplaceAll(own, "all()", "has(projectcalico.org/namespace)")
	case s.ServiceAccountSelector != "":
		own = strings.ReplaceAll(own, "all()", "has(projectcalico.org/serviceaccount)")
	}
	selector(s.Selector, func(labels map[string]string) bool { return matches(own, labels) })
	selector(s.NamespaceSelector, func(labels map[string]string) bool {
		return matchesScope(s.NamespaceSelector, "pcns.", "projectcalico.org/namespace", labels)
	})
	selector(s.ServiceAccountSelector, accounts)

	types := s.Types
	switch {
	case len(types) > 0:
	case len(s.Egress) == 0:
		types = []v3.PolicyType{"Ingress"}
	case len(s.Ingress) == 0:
		types = []v3.PolicyType{"Egress"}
	default:
		types = []v3.PolicyType{"Ingress", "Egress"}
	}
	odd := slices.ContainsFunc(types, func(t v3.PolicyType) bool { return t != "Ingress" && t != "Egress" })
	for direction, list := range map[string][]api.Rule{"ingress": s.Ingress, "egress": s.Egress} {
		named := slices.Contains(types, map[string]v3.PolicyType{"ingress": "Ingress", "egress": "Egress"}[direction])
		switch {
		case !named && !odd:
		case closed || !named:
			p.rules[direction] = denyAll
		default:
			p.rules[direction] = []aRule{}
			for i, rule := range list {
				p.rules[direction] = append(p.rules[direction], aRule{i, func(o *Oracle, packet policy.Packet) policy.Action {
					return o.apply(rule, key.Namespace, packet)
				}})
			}
		}
	}
	return p
}
