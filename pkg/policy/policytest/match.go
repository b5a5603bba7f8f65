package policytest

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/policy"
)

// apply returns what a rule does to a packet; 0 if it does not match.
func (o *Oracle) apply(r *api.Rule, namespace string, p policy.Packet) policy.Action {
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
	in := func(nets []netip.Prefix) bool {
		return slices.ContainsFunc(nets, func(n netip.Prefix) bool { return n.Contains(a) })
	}
	if len(e.Nets) > 0 && !in(prefixes(e.Nets)) || in(prefixes(e.NotNets)) {
		return false
	}
	var there []object // what has the address
	for _, x := range o.known {
		if in(x.nets) {
			there = append(there, x)
		}
	}
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
	view := make(map[string]string)
	for k, v := range labels {
		if rest, ok := strings.CutPrefix(k, prefix); ok {
			view[rest] = v
		}
	}
	return matches(selector, view)
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

func prefixes(nets []string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range nets {
		if !strings.Contains(s, "/") {
			a := netip.MustParseAddr(s)
			s += "/" + strconv.Itoa(a.BitLen())
		}
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func protocol(p numorstring.Protocol) int {
	if n, ok := map[string]int{"TCP": 6, "UDP": 17, "ICMP": 1, "ICMPv6": 58, "SCTP": 132, "UDPLite": 136}[p.String()]; ok {
		return n
	}
	n, err := strconv.Atoi(p.String())
	if err != nil {
		panic(err)
	}
	return n
}
