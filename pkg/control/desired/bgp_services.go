package desired

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

// serviceNets are the nets that service addresses are announced from.
type serviceNets struct{ cluster, external, balancer []netip.Prefix }

func (n serviceNets) all() []netip.Prefix { return slices.Concat(n.cluster, n.external, n.balancer) }

// serviceNets reads BGPConfiguration's, and the environment's.
func (s *State) serviceNets(in Input, spec *v3.BGPConfigurationSpec) serviceNets {
	var n serviceNets
	parse := func(to *[]netip.Prefix, cidr string, fault func(error)) {
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			fault(err)
			return
		}
		*to = append(*to, p.Masked())
	}
	config := func(err error) { s.problem(bgpConfiguration("default"), err) }
	if env := in.Config.AdvertiseClusterIPs; env != "" {
		for cidr := range strings.SplitSeq(env, ",") {
			parse(&n.cluster, strings.TrimSpace(cidr), func(err error) {
				s.problem(EnvironmentObject, fmt.Errorf("CALICO_ADVERTISE_CLUSTER_IPS: %w", err))
			})
		}
	} else {
		for _, b := range spec.ServiceClusterIPs {
			parse(&n.cluster, b.CIDR, config)
		}
	}
	for _, b := range spec.ServiceExternalIPs {
		parse(&n.external, b.CIDR, config)
	}
	for _, b := range spec.ServiceLoadBalancerIPs {
		parse(&n.balancer, b.CIDR, config)
	}
	return n
}

// addServices announces the nets of services from every node, and single services
// from those nodes that should have their traffic.
func (r *bgpReader) addServices() {
	b := &r.State.BGP
	nets := r.serviceNets(r.in, &r.spec)
	// What others announce of them is passed on, by route reflectors above all, and
	// never used here: the services' addresses are local to every node.
	b.Passed = append(b.Passed, nets.all()...)
	if r.cluster.self.labels[excludeLabel] == "true" {
		return
	}
	b.Services = len(nets.all()) > 0
	apart := r.spec.ServiceLoadBalancerAggregation != nil && *r.spec.ServiceLoadBalancerAggregation == v3.ServiceLoadBalancerAggregationDisabled
	for _, p := range slices.Concat(nets.cluster, nets.external) {
		b.Advertise[p] = true
	}
	for _, p := range nets.balancer {
		// A net of one address is for services whose traffic not every node may get.
		if !p.IsSingleIP() && !apart {
			b.Advertise[p] = true
		}
	}
	for _, s := range r.in.Services {
		for _, a := range announced(s, nets, apart) {
			b.Advertise[single(a)] = true
		}
	}
}

// announced returns the service's addresses that this node announces one by one.
func announced(s Service, nets serviceNets, apart bool) []netip.Addr {
	in := func(nets []netip.Prefix, a netip.Addr, alone bool) bool {
		return slices.ContainsFunc(nets, func(p netip.Prefix) bool { return p.Contains(a) && (!alone || p.IsSingleIP()) })
	}
	// From where the service is to be reached, by the family of its address.
	here := func(is6 bool) bool { return is6 && s.Here6 || !is6 && s.Here4 }
	if !s.Local {
		balanced := func(alone bool) bool {
			return s.LoadBalancer && slices.ContainsFunc(s.BalancerIPs, func(a netip.Addr) bool { return in(nets.balancer, a, alone) })
		}
		external := slices.ContainsFunc(s.ExternalIPs, func(a netip.Addr) bool { return in(nets.external, a, true) })
		switch {
		case balanced(true) || external:
			here = func(bool) bool { return true }
		case apart && balanced(false):
			// Another cluster may have the same address: it takes over what nothing
			// answers here.
			here = func(is6 bool) bool { return is6 && s.Ready6 || !is6 && s.Ready4 }
		default:
			return nil // its nets are announced as a whole
		}
	}
	var out []netip.Addr
	add := func(addresses []netip.Addr, allowed func(netip.Addr) bool) {
		for _, a := range addresses {
			if allowed(a) && here(a.Is6()) {
				out = append(out, a)
			}
		}
	}
	add(s.ClusterIPs, func(netip.Addr) bool { return len(nets.cluster) > 0 })
	add(s.ExternalIPs, func(a netip.Addr) bool { return in(nets.external, a, false) })
	add(s.BalancerIPs, func(a netip.Addr) bool { return in(nets.balancer, a, false) })
	return out
}
