package policytest

import (
	"net/netip"
	"slices"
	"strings"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/policy"
)

// apply returns what a rule does to a packet; 0 if it does not match.
func (o *Oracle) apply(r api.Rule, namespace string, p policy.Packet) policy.Action {
	r, faulty := readable(r)
	family := 6
	if p.Source.Is4() {
		family = 4
	}
	if r.IPVersion != nil && *r.IPVersion != family {
		return 0
	}
	for _, nets := range [][]string{r.Source.Nets, r.Source.NotNets, r.Destination.Nets, r.Destination.NotNets} {
		ofFamily := func(n netip.Prefix) bool { return n.Addr().Is4() == (family == 4) }
		if len(nets) > 0 && !slices.ContainsFunc(prefixes(nets), ofFamily) {
			return 0
		}
	}
	if r.Protocol != nil && protocol(*r.Protocol) != int(p.Protocol) {
		return 0
	}
	if r.NotProtocol != nil && protocol(*r.NotProtocol) == int(p.Protocol) {
		return 0
	}
	icmpType, icmpCode := int(p.DestinationPort>>8), int(p.DestinationPort&255)
	if f := r.ICMP; f != nil && (f.Type != nil && *f.Type != icmpType || f.Code != nil && *f.Code != icmpCode) {
		return 0
	}
	if f := r.NotICMP; f != nil && f.Type != nil && *f.Type == icmpType && (f.Code == nil || *f.Code == icmpCode) {
		return 0
	}
	if !o.entity(&r.Source, namespace, p.Source, int(p.Protocol), p.SourcePort) ||
		!o.entity(&r.Destination, namespace, p.Destination, int(p.Protocol), p.DestinationPort) {
		return 0
	}
	action := map[v3.Action]policy.Action{"Allow": policy.Allow, "Deny": policy.Deny, "Pass": policy.Pass, "Log": policy.Log}[r.Action]
	if faulty && action == policy.Log {
		return 0
	}
	if faulty {
		return policy.Deny // of all that it might mean
	}
	if r.HTTP != nil || r.Source.Services != nil || r.Destination.Services != nil {
		// Not known whether it matches: let through less.
		if action == policy.Allow || action == policy.Log {
			return 0
		}
		return policy.Deny
	}
	return action
}

// entity says whether one side of a rule matches.
func (o *Oracle) entity(e *api.EntityRule, namespace string, a netip.Addr, proto int, number uint16) bool {
	if len(e.Nets) > 0 && !in(a, prefixes(e.Nets)) || in(a, prefixes(e.NotNets)) {
		return false
	}
	there := o.at(a)
	accounts := e.ServiceAccounts != nil && (e.ServiceAccounts.Selector != "" || len(e.ServiceAccounts.Names) > 0)
	positive := e.Selector != "" || e.NamespaceSelector != "" || accounts
	switch {
	case positive || namespace != "" && e.NotSelector != "":
		there = slices.DeleteFunc(there, func(x object) bool { return !selected(e, namespace, x.labels) })
		if len(there) == 0 {
			return false
		}
	case e.NotSelector != "":
		if slices.ContainsFunc(there, func(x object) bool { return matches(e.NotSelector, x.labels) }) {
			return false
		}
	}
	hasPort := func(list []numorstring.Port) bool {
		for _, want := range list {
			if want.PortName == "" && want.MinPort <= number && number <= want.MaxPort {
				return true
			}
			for _, x := range there {
				if want.PortName != "" && slices.Contains(x.ports, port{want.PortName, proto, number}) {
					return true
				}
			}
		}
		return false
	}
	return (len(e.Ports) == 0 || hasPort(e.Ports)) && !hasPort(e.NotPorts)
}

func in(a netip.Addr, nets []netip.Prefix) bool {
	return slices.ContainsFunc(nets, func(n netip.Prefix) bool { return n.Contains(a) })
}

// at returns what has an address.
func (o *Oracle) at(a netip.Addr) (there []object) {
	for _, x := range o.known {
		if in(a, x.nets) {
			there = append(there, x)
		}
	}
	return there
}

// selected says whether the selectors of one side, taken together, mean
// something with these labels.
func selected(e *api.EntityRule, namespace string, labels map[string]string) bool {
	if e.NamespaceSelector == "" && namespace != "" && labels["projectcalico.org/namespace"] != namespace {
		return false
	}
	if !matchesScope(e.NamespaceSelector, "pcns.", "projectcalico.org/namespace", labels) {
		return false
	}
	if sa := e.ServiceAccounts; sa != nil {
		if !matchesPrefixed(sa.Selector, "pcsa.", labels) {
			return false
		}
		name, ok := labels["projectcalico.org/serviceaccount"]
		if len(sa.Names) > 0 && (!ok || !slices.Contains(sa.Names, name)) {
			return false
		}
	}
	return matches(e.Selector, labels) && (e.NotSelector == "" || !matches(e.NotSelector, labels))
}

func matches(selector string, labels map[string]string) bool {
	s, err := api.ParseSelector(selector)
	if err != nil {
		panic(err)
	}
	return s.Matches(labels)
}

func matchesPrefixed(selector, prefix string, labels map[string]string) bool {
	return matches(selector, prefixed(labels, prefix))
}

// matchesScope is matchesPrefixed, where all() is whatever has the member label
// and global() what has not.
func matchesScope(selector, prefix, member string, labels map[string]string) bool {
	if selector == "" {
		return true
	}
	with := map[string]string{}
	for k, v := range labels {
		with[k] = v
	}
	if _, ok := labels[member]; ok {
		with[prefix+"member"] = ""
	}
	selector = strings.ReplaceAll(selector, "all()", "has(member)")
	selector = strings.ReplaceAll(selector, "global()", "!has(member)")
	return matchesPrefixed(selector, prefix, with)
}
