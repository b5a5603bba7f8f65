package policy

import (
	"cmp"
	"math"
	"slices"
	"strings"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"

	"calico-xdp/pkg/api"
)

const (
	ingress = iota
	egress
)

var directions = [...]string{"ingress", "egress"}

// defaultTier is where policies are that name no tier.
const defaultTier = "default"

// tier is the policies of one tier, in order.
type tier struct {
	name          string
	order         float64
	defaultAction Action
	exists        bool
	policies      []*policySource
}

// policySource is a policy as it was read from its resource.
type policySource struct {
	key       api.Key
	resource  api.Resource
	tier      string
	order     float64
	sortName  string // decides between policies of one order
	selects   *match
	applies   [2]bool // by direction
	host      bool    // never applies to workloads
	namespace string
	rules     [2][]api.Rule
	err       error // its selectors cannot be read

	set    *peerSet  // of what it selects
	blocks [2]*block // made when first needed
	used   uint64
}

// policyFields are the fields that both kinds of policy have.
type policyFields struct {
	tier                                  string
	order                                 *float64
	selector, namespaces, serviceAccounts string
	types                                 []v3.PolicyType
	ingress, egress                       []api.Rule
}

func newPolicy(key api.Key, r api.Resource, f policyFields) *policySource {
	p := &policySource{
		key: key, resource: r, namespace: key.Namespace,
		tier: cmp.Or(f.tier, defaultTier), order: math.Inf(1),
		sortName: key.Name + "/" + key.Namespace + "/" + key.Kind,
		rules:    [2][]api.Rule{f.ingress, f.egress},
	}
	if f.order != nil {
		p.order = *f.order
	}
	p.selects, p.err = policyMatch(key.Namespace, f.selector, f.namespaces, f.serviceAccounts)
	if p.err != nil {
		p.selects = &match{namespace: key.Namespace} // whatever it might mean is closed
	}
	p.applies[egress] = len(f.egress) > 0
	p.applies[ingress] = len(f.ingress) > 0 || !p.applies[egress]
	if len(f.types) > 0 {
		p.applies[ingress] = slices.Contains(f.types, v3.PolicyTypeIngress)
		p.applies[egress] = slices.Contains(f.types, v3.PolicyTypeEgress)
	}
	return p
}

// policies keeps what was read from each policy.
type policies map[api.Key]*policySource

// update makes the policies agree with the store and returns the tiers that have
// any, in order.
func (ps policies) update(store *api.Store, result uint64) []*tier {
	for key, r := range api.All[*api.GlobalNetworkPolicy](store, api.KindGlobalNetworkPolicy) {
		ps.put(key, r, result, func() *policySource {
			p := newPolicy(key, r, policyFields{
				r.Spec.Tier, r.Spec.Order, r.Spec.Selector, r.Spec.NamespaceSelector, r.Spec.ServiceAccountSelector,
				r.Spec.Types, r.Spec.Ingress, r.Spec.Egress,
			})
			p.host = r.Spec.DoNotTrack || r.Spec.PreDNAT
			return p
		})
	}
	for key, r := range api.All[*api.NetworkPolicy](store, api.KindNetworkPolicy) {
		ps.put(key, r, result, func() *policySource {
			return newPolicy(key, r, policyFields{
				r.Spec.Tier, r.Spec.Order, r.Spec.Selector, "", r.Spec.ServiceAccountSelector,
				r.Spec.Types, r.Spec.Ingress, r.Spec.Egress,
			})
		})
	}

	tiers := make(map[string]*tier)
	for key, r := range api.All[*api.Tier](store, api.KindTier) {
		t := &tier{name: key.Name, order: v3.DefaultTierOrder, defaultAction: Deny, exists: true}
		if r.Spec.Order != nil {
			t.order = *r.Spec.Order
		}
		if r.Spec.DefaultAction != nil && *r.Spec.DefaultAction == v3.Pass {
			t.defaultAction = Pass
		}
		tiers[t.name] = t
	}
	for key, p := range ps {
		if p.used != result {
			delete(ps, key)
			continue
		}
		if p.host {
			continue
		}
		t := tiers[p.tier]
		if t == nil {
			t = &tier{name: p.tier, order: v3.DefaultTierOrder, defaultAction: Deny, exists: p.tier == defaultTier}
			tiers[p.tier] = t
		}
		t.policies = append(t.policies, p)
	}

	var sorted []*tier
	for _, t := range tiers {
		if len(t.policies) == 0 {
			continue
		}
		slices.SortFunc(t.policies, func(a, b *policySource) int {
			return cmp.Or(cmp.Compare(a.order, b.order), strings.Compare(a.sortName, b.sortName))
		})
		sorted = append(sorted, t)
	}
	slices.SortFunc(sorted, func(a, b *tier) int {
		return cmp.Or(cmp.Compare(a.order, b.order), strings.Compare(a.name, b.name))
	})
	return sorted
}

func (ps policies) put(key api.Key, r api.Resource, result uint64, read func() *policySource) {
	p := ps[key]
	if p == nil || p.resource != r {
		p = read()
		ps[key] = p
	}
	p.used = result
}
