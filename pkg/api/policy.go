package api

import (
	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

// Policy is what the four kinds of Calico policy have in common, so that they
// can be treated alike. The rules are those of the resource, not copies.
type Policy struct {
	Key          Key
	StagedAction v3.StagedAction // "" for a policy that is enforced

	Tier  string
	Order *float64 // nil: last in its tier
	Types []v3.PolicyType

	Selector               string // as written; also limited to Key.Namespace, if there is one
	NamespaceSelector      string // only global policies
	ServiceAccountSelector string

	Ingress, Egress []Rule
	// IngressFrom and EgressFrom say from which rule of the resource each rule is; nil:
	// they are the same.
	IngressFrom, EgressFrom []int

	DoNotTrack, PreDNAT, ApplyOnForward bool // only global policies
	PerformanceHints                    []v3.PolicyPerformanceHint
}

// PolicyOf returns r as a [Policy], false if it is none.
// StagedKubernetesNetworkPolicy is not: its rules are Kubernetes' own. See
// [KubernetesPolicyOf].
func PolicyOf(r Resource) (*Policy, bool) {
	p := &Policy{Key: KeyOf(r)}
	switch r := r.(type) {
	case *NetworkPolicy:
		s := &r.Spec
		p.Tier, p.Order, p.Types, p.Ingress, p.Egress = s.Tier, s.Order, s.Types, s.Ingress, s.Egress
		p.Selector, p.ServiceAccountSelector = s.Selector, s.ServiceAccountSelector
		p.PerformanceHints = s.PerformanceHints
	case *StagedNetworkPolicy:
		s := &r.Spec
		p.Tier, p.Order, p.Types, p.Ingress, p.Egress = s.Tier, s.Order, s.Types, s.Ingress, s.Egress
		p.Selector, p.ServiceAccountSelector = s.Selector, s.ServiceAccountSelector
		p.StagedAction, p.PerformanceHints = s.StagedAction, s.PerformanceHints
	case *GlobalNetworkPolicy:
		s := &r.Spec
		p.Tier, p.Order, p.Types, p.Ingress, p.Egress = s.Tier, s.Order, s.Types, s.Ingress, s.Egress
		p.Selector, p.NamespaceSelector, p.ServiceAccountSelector = s.Selector, s.NamespaceSelector, s.ServiceAccountSelector
		p.DoNotTrack, p.PreDNAT, p.ApplyOnForward = s.DoNotTrack, s.PreDNAT, s.ApplyOnForward
		p.PerformanceHints = s.PerformanceHints
	case *StagedGlobalNetworkPolicy:
		s := &r.Spec
		p.Tier, p.Order, p.Types, p.Ingress, p.Egress = s.Tier, s.Order, s.Types, s.Ingress, s.Egress
		p.Selector, p.NamespaceSelector, p.ServiceAccountSelector = s.Selector, s.NamespaceSelector, s.ServiceAccountSelector
		p.DoNotTrack, p.PreDNAT, p.ApplyOnForward = s.DoNotTrack, s.PreDNAT, s.ApplyOnForward
		p.StagedAction, p.PerformanceHints = s.StagedAction, s.PerformanceHints
	default:
		return nil, false
	}
	return p, true
}

// DefaultTypes returns the types of a policy that names none: Egress alone only
// if all its rules are egress rules, both if it has both, else Ingress.
func DefaultTypes(ingress, egress []Rule) []v3.PolicyType {
	switch {
	case len(egress) == 0:
		return []v3.PolicyType{v3.PolicyTypeIngress}
	case len(ingress) == 0:
		return []v3.PolicyType{v3.PolicyTypeEgress}
	}
	return []v3.PolicyType{v3.PolicyTypeIngress, v3.PolicyTypeEgress}
}
