package control

import (
	"math"
	"strings"

	"calico-xdp/pkg/api"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

// standIn returns what takes the place of an object that is stored but cannot be
// read. A policy may have been there to deny, and nobody knows to whom: until it
// is repaired, it denies all that it could. Of other kinds nil is right: what
// needs them is closed without them.
func standIn(key api.Key) api.Resource {
	tier, _, named := strings.Cut(key.Name, ".")
	if !named {
		tier = api.DefaultTier
	}
	first := -math.MaxFloat64
	deny := []api.Rule{{Action: v3.Deny}}
	types := []v3.PolicyType{v3.PolicyTypeIngress, v3.PolicyTypeEgress}
	switch key.Kind {
	case api.KindGlobalNetworkPolicy:
		p := v3.NewGlobalNetworkPolicy()
		p.Name = key.Name
		p.Spec = v3.GlobalNetworkPolicySpec{Tier: tier, Order: &first, Selector: "all()", Types: types, Ingress: deny, Egress: deny}
		return p
	case api.KindNetworkPolicy:
		p := v3.NewNetworkPolicy()
		p.Namespace, p.Name = key.Namespace, key.Name
		p.Spec = v3.NetworkPolicySpec{Tier: tier, Order: &first, Selector: "all()", Types: types, Ingress: deny, Egress: deny}
		return p
	}
	return nil
}
