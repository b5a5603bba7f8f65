package policytest

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/projectcalico/api/pkg/lib/numorstring"

	"calico-xdp/pkg/api"
)

// readable returns a rule without what cannot be read in it, so that it matches all
// that it might mean, and whether there was any.
func readable(r api.Rule) (out api.Rule, faulty bool) {
	drop := func(is bool) bool {
		faulty = faulty || is
		return is
	}
	drop(!slices.Contains([]string{"Allow", "Deny", "Pass", "Log"}, string(r.Action)))
	if drop(r.IPVersion != nil && *r.IPVersion != 4 && *r.IPVersion != 6) {
		r.IPVersion = nil
	}
	if drop(r.Protocol != nil && protocol(*r.Protocol) <= 0) {
		r.Protocol = nil
		r.ICMP, r.NotICMP = nil, nil
		r.Source.Ports, r.Source.NotPorts, r.Destination.Ports, r.Destination.NotPorts = nil, nil, nil, nil
	}
	if drop(r.NotProtocol != nil && protocol(*r.NotProtocol) <= 0) {
		r.NotProtocol = nil
	}
	is := -1
	if r.Protocol != nil {
		is = protocol(*r.Protocol)
	}
	for _, f := range []**api.ICMPFields{&r.ICMP, &r.NotICMP} {
		if *f == nil {
			continue
		}
		kind, code := (*f).Type, (*f).Code
		odd := code != nil && (kind == nil || *code < 0 || *code > 255) || kind != nil && (*kind < 0 || *kind > 255)
		if drop(odd || is != 1 && is != 58) {
			*f = nil
		}
	}
	r.Source, r.Destination = readableSide(r.Source, is, drop), readableSide(r.Destination, is, drop)
	return r, faulty
}

func readableSide(e api.EntityRule, protocol int, drop func(bool) bool) api.EntityRule {
	oddNet := func(s string) bool { return len(prefixes([]string{s})) == 0 }
	if drop(slices.ContainsFunc(e.Nets, oddNet)) {
		e.Nets = nil
	}
	if drop(slices.ContainsFunc(e.NotNets, oddNet)) {
		// The good ones still leave addresses out, but do not tell the family.
		good := slices.DeleteFunc(slices.Clone(e.NotNets), oddNet)
		e.NotNets = append(good, "255.255.255.255/32", "ffff::/128")
	}
	positive, odd := false, false
	for _, s := range []*string{&e.Selector, &e.NamespaceSelector, accountsSelector(&e), &e.NotSelector} {
		if s == nil {
			continue
		}
		if _, err := api.ParseSelector(*s); drop(err != nil) {
			*s, odd = "", true
			if s == &e.NamespaceSelector {
				*s = "all() || !all()" // any namespace, not just the policy's
			}
		} else if *s != "" && s != &e.NotSelector {
			positive = true
		}
	}
	if a := e.ServiceAccounts; a != nil && len(a.Names) > 0 {
		positive = true
	}
	if odd && !positive {
		e.Selector, e.NotSelector, e.NamespaceSelector, e.ServiceAccounts = "", "", "", nil
	}
	oddPort := func(p numorstring.Port) bool { return p.MinPort > p.MaxPort || strings.ContainsAny(p.PortName, ":/ ") }
	if drop(len(e.Ports)+len(e.NotPorts) > 0 && !slices.Contains([]int{6, 17, 132, 136}, protocol)) {
		e.Ports, e.NotPorts = nil, nil
	}
	if drop(slices.ContainsFunc(e.Ports, oddPort)) {
		e.Ports = nil
	}
	drop(slices.ContainsFunc(e.NotPorts, oddPort))
	e.NotPorts = slices.DeleteFunc(slices.Clone(e.NotPorts), oddPort)
	return e
}

// accountsSelector is the selector of a side's service accounts, in a copy of its own.
func accountsSelector(e *api.EntityRule) *string {
	if e.ServiceAccounts == nil {
		return nil
	}
	a := *e.ServiceAccounts
	e.ServiceAccounts = &a
	return &a.Selector
}

// prefixes are those of the texts that are an address or a network.
func prefixes(nets []string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range nets {
		if a, err := netip.ParseAddr(s); err == nil {
			s += "/" + strconv.Itoa(a.BitLen())
		}
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// protocol is a protocol's number; below 1 if it has none.
func protocol(p numorstring.Protocol) int {
	if n, ok := map[string]int{"TCP": 6, "UDP": 17, "ICMP": 1, "ICMPv6": 58, "SCTP": 132, "UDPLite": 136}[p.String()]; ok {
		return n
	}
	n, err := strconv.Atoi(p.String())
	if err != nil || n > 255 {
		return -1
	}
	return n
}
