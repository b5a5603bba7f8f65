package desired

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/policy"
)

// AllInterfaces is the interfaceName of a host endpoint that stands for every
// interface of the host that no other one is on.
const AllInterfaces = "*"

// TunnelIndex is the key in Dataplane.HostEndpoints of what is on no interface:
// what comes out of, or goes into, a tunnel.
const TunnelIndex = 0

// bindings says which host endpoint is on which interface, by index.
type bindings struct {
	endpoints map[int]api.Key
	problems  []policy.Problem
}

// bindHostEndpoints puts this node's host endpoints on the host's interfaces.
// The result follows from the arguments alone: the host endpoints, the links,
// which of these are workloads', and which are to be left out.
//
// One with an interfaceName is on the interface of that name and on no other,
// whatever its addresses; one without, on each interface that has one of its
// expectedIPs. Where several could be, the first name in the alphabet is. What
// is left, all of it, is for the first "*". So it is in Calico.
func bindHostEndpoints(node string, all map[api.Key]*api.HostEndpoint, links []Link, isWorkload func(Link) bool, excluded []*regexp.Regexp) bindings {
	b := bindings{endpoints: make(map[int]api.Key)}
	candidates, everywhere := b.candidates(node, all)
	if len(candidates) == 0 && everywhere == nil {
		return b
	}
	links = slices.SortedFunc(slices.Values(links), func(a, b Link) int { return a.Index - b.Index })
	left := make(map[api.Key]string) // why a candidate did not get an interface
	bound := make(map[api.Key]bool)
	for _, l := range links {
		fitting := slices.DeleteFunc(slices.Clone(candidates), func(c candidate) bool { return !c.fits(l) })
		why := unguarded(l, isWorkload, excluded)
		switch {
		case why == "" && l.NoEthernet:
			why = fmt.Sprintf("interface %s carries packets without Ethernet headers: it is not guarded", l.Name)
			if everywhere != nil && len(fitting) == 0 && l.Up {
				b.problem(everywhere.key, errors.New(why))
			}
		case why == "" && len(fitting) > 0:
			b.endpoints[l.Index] = fitting[0].key
			bound[fitting[0].key] = true
			why = fmt.Sprintf("interface %s belongs to %s, whose name comes first", l.Name, fitting[0].key)
		case why == "" && everywhere != nil && !l.Port:
			b.endpoints[l.Index] = everywhere.key
		}
		for _, c := range fitting {
			left[c.key] = why
		}
	}
	for _, c := range candidates {
		switch why := left[c.key]; {
		case bound[c.key]:
		case why != "":
			b.problem(c.key, errors.New(why))
		case c.name != "":
			b.problem(c.key, fmt.Errorf("there is no interface %s yet", c.name))
		default:
			b.problem(c.key, errors.New("no interface has one of its expectedIPs yet"))
		}
	}
	if everywhere != nil {
		b.endpoints[TunnelIndex] = everywhere.key
	}
	return b
}

// candidate is a host endpoint for some interfaces.
type candidate struct {
	key       api.Key
	name      string       // of its interface; empty: any that has one of the addresses
	addresses []netip.Addr // without name only
}

func (c *candidate) fits(l Link) bool {
	if c.name != "" {
		return l.Name == c.name
	}
	return slices.ContainsFunc(l.Addresses, func(p netip.Prefix) bool { return slices.Contains(c.addresses, p.Addr()) })
}

// candidates returns this node's host endpoints by name, and the one for all
// interfaces.
func (b *bindings) candidates(node string, all map[api.Key]*api.HostEndpoint) (some []candidate, everywhere *candidate) {
	for key, h := range all {
		if h.Spec.Node != node {
			continue
		}
		c := candidate{key: key, name: h.Spec.InterfaceName}
		for _, text := range h.Spec.ExpectedIPs {
			a, err := parseEndpointAddress(text)
			if err != nil {
				b.problem(key, fmt.Errorf("expectedIPs: %w", err))
				continue
			}
			c.addresses = append(c.addresses, a)
		}
		some = append(some, c)
	}
	slices.SortFunc(some, func(a, b candidate) int { return compareKeys(a.key, b.key) })
	for i, c := range some {
		switch {
		case c.name != AllInterfaces:
		case everywhere == nil:
			everywhere = &some[i]
		default:
			b.problem(c.key, fmt.Errorf("all interfaces belong to %s, whose name comes first", everywhere.key))
		}
	}
	named := slices.DeleteFunc(slices.Clone(some), func(c candidate) bool { return c.name == AllInterfaces })
	return named, everywhere
}

func (b *bindings) problem(object api.Key, err error) {
	b.problems = append(b.problems, policy.Problem{Object: object, Err: err})
}

// unguarded says why no host endpoint can be on a link; empty if one can.
func unguarded(l Link, isWorkload func(Link) bool, excluded []*regexp.Regexp) string {
	switch {
	case l.Name == "lo":
		return "the loopback interface is not guarded"
	case isWorkload(l):
		return fmt.Sprintf("interface %s is a workload's", l.Name)
	case excludes(excluded, l.Name):
		return fmt.Sprintf("interface %s is left out by interfaceExclude", l.Name)
	}
	return ""
}

func excludes(excluded []*regexp.Regexp, name string) bool {
	return slices.ContainsFunc(excluded, func(re *regexp.Regexp) bool { return re.MatchString(name) })
}

// parseInterfaceExclude takes names separated by commas; /…/ is a regular
// expression.
func parseInterfaceExclude(text string) ([]*regexp.Regexp, error) {
	var out []*regexp.Regexp
	if strings.EqualFold(text, none) {
		return nil, nil
	}
	for item := range strings.SplitSeq(text, ",") {
		item = strings.TrimSpace(item)
		expression := "^" + regexp.QuoteMeta(item) + "$"
		if len(item) > 2 && strings.HasPrefix(item, "/") && strings.HasSuffix(item, "/") {
			expression = item[1 : len(item)-1]
		}
		if item == "" {
			continue
		}
		re, err := regexp.Compile(expression)
		if err != nil {
			return nil, err
		}
		out = append(out, re)
	}
	return out, nil
}
