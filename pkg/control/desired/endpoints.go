package desired

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"calico-xdp/pkg/api"
)

// claim is one local endpoint's wish for its interface and addresses.
type claim struct {
	key      api.Key
	endpoint *api.WorkloadEndpoint
}

// sortClaims orders this node's workload endpoints, the one created last first:
// whoever takes an interface or address into use again rarely cleans up after one
// that was forgotten.
func sortClaims(endpoints map[api.Key]*api.WorkloadEndpoint) []claim {
	claims := make([]claim, 0, len(endpoints))
	for key, w := range endpoints {
		claims = append(claims, claim{key, w})
	}
	slices.SortFunc(claims, func(a, b claim) int {
		age := b.endpoint.CreationTimestamp.Compare(a.endpoint.CreationTimestamp.Time)
		return cmp.Or(age, compareKeys(a.key, b.key))
	})
	return claims
}

// sameClaim says whether two versions of an endpoint claim the same.
func sameClaim(a, b *api.WorkloadEndpoint) bool {
	return a.Spec.InterfaceName == b.Spec.InterfaceName && a.Spec.MAC == b.Spec.MAC &&
		slices.Equal(a.Spec.IPNetworks, b.Spec.IPNetworks) &&
		slices.Equal(a.Spec.AllowSpoofedSourcePrefixes, b.Spec.AllowSpoofedSourcePrefixes) && slices.Equal(unserved(a), unserved(b)) &&
		a.Annotations[sourcesAnnotation] == b.Annotations[sourcesAnnotation] && a.CreationTimestamp.Equal(&b.CreationTimestamp)
}

// addEndpoints takes up the local endpoints whose interfaces exist, whoever
// wrote them. With anySource they may ask to send from addresses that are not theirs.
func (s *State) addEndpoints(claims []claim, links []Link, taken reserved, anySource bool) {
	byName := make(map[string]Link, len(links))
	for _, l := range links {
		byName[l.Name] = l
	}
	interfaces := make(map[string]api.Key)
	addresses := make(map[netip.Addr]api.Key)
	for _, c := range claims {
		name := c.endpoint.Spec.InterfaceName
		local := LocalEndpoint{Interface: name}
		complain := func(err error) {
			s.problem(c.key, err)
			if local.Problem != "" {
				local.Problem += "; "
			}
			local.Problem += err.Error()
		}
		link, exists := byName[name]
		switch other, taken := interfaces[name]; {
		case name == "":
			local.Closed = true
			complain(fmt.Errorf("interfaceName is empty"))
		case taken:
			local.Closed = true
			complain(fmt.Errorf("interface %s belongs to %s, which is newer", name, other))
		case isHostLink(link, s.Dataplane.Node):
			local.Closed = true
			complain(fmt.Errorf("interface %s is the host's own", name))
		default:
			interfaces[name] = c.key
			local.Missing = !exists
		}
		if !local.Closed {
			for _, text := range c.endpoint.Spec.IPNetworks {
				a, err := parseEndpointAddress(text)
				switch other, used := addresses[a]; {
				case err != nil:
					complain(fmt.Errorf("ipNetworks: %w", err))
				case taken.whose(a) != "":
					complain(fmt.Errorf("address %s is %s", a, taken.whose(a)))
				case used && other != c.key:
					complain(fmt.Errorf("address %s belongs to %s, which is newer", a, other))
				case !used:
					addresses[a] = c.key
					local.Addresses = append(local.Addresses, a)
				}
			}
			if len(c.endpoint.Spec.IPNetworks) > 0 && len(local.Addresses) == 0 {
				local.Closed = true
			}
		}
		mac, err := optionalMAC(c.endpoint.Spec.MAC)
		if err != nil && !local.Closed {
			// Without the address that was meant, the spoof check would be weaker
			// than asked for.
			local.Closed = true
			complain(fmt.Errorf("mac: %w", err))
		}
		slices.SortFunc(local.Addresses, netip.Addr.Compare)
		sources, err := sourcesOf(c.endpoint)
		if err == nil && len(sources) > 0 && !anySource {
			sources, err = nil, errors.New("source prefixes are ignored: workloadSourceSpoofing is not Any")
		}
		if err != nil {
			complain(err)
		}
		for _, missed := range unserved(c.endpoint) {
			complain(errors.New(missed))
		}
		s.Local[c.key] = local
		if interfaces[name] != c.key || !exists {
			continue
		}
		if local.Closed {
			s.closeLink(c.key, link)
			continue
		}
		s.Dataplane.Endpoints[c.key] = Endpoint{
			Key: c.key, Interface: name, Ifindex: link.Index, Veth: link.Kind == "veth",
			MAC: mac, HostMAC: link.MAC, Addresses: local.Addresses, Sources: sources,
		}
		s.Host.Workloads[name] = WorkloadLink{Ifindex: link.Index}
	}
}

// unserved says what an endpoint asks for and does not get.
func unserved(w *api.WorkloadEndpoint) (missed []string) {
	if q := w.Spec.QoSControls; q != nil && *q != (api.QoSControls{}) {
		missed = append(missed, "qosControls: this node limits nothing")
	}
	if len(w.Spec.IPNATs) > 0 {
		missed = append(missed, "ipNATs: this node does not translate floating addresses")
	}
	return missed
}

// sourcesAnnotation says the same as allowSpoofedSourcePrefixes, as a list in JSON, as a
// Kubernetes pod does.
const sourcesAnnotation = "cni.projectcalico.org/allowedSourcePrefixes"

// sourcesOf are the prefixes that an endpoint wants to send from besides its own
// addresses: those that are right, in order, and what is wrong with the others.
func sourcesOf(w *api.WorkloadEndpoint) ([]netip.Prefix, error) {
	texts := slices.Clone(w.Spec.AllowSpoofedSourcePrefixes)
	var errs []error
	if list := w.Annotations[sourcesAnnotation]; list != "" {
		var more []string
		if err := json.Unmarshal([]byte(list), &more); err != nil {
			errs = append(errs, fmt.Errorf("annotation %s: %w", sourcesAnnotation, err))
		}
		texts = append(texts, more...)
	}
	var out []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if a, isAddress := netip.ParseAddr(text); isAddress == nil && a.Zone() == "" {
			p, err = single(a), nil
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("source prefix: %w", err))
			continue
		}
		out = append(out, p.Masked())
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out), errors.Join(errs...)
}

// addUnclaimed closes the interfaces that look like a workload's and have no
// endpoint: one that is not written yet, or not there any more.
func (s *State) addUnclaimed(links []Link, set settings, claims []claim) {
	isWorkload := workloadLinks(set, s.Dataplane.Node, claims)
	taken := make(map[int]bool)
	for _, e := range s.Dataplane.Endpoints {
		taken[e.Ifindex] = true
	}
	for _, l := range links {
		if isWorkload(l) && !taken[l.Index] {
			s.closeLink(api.Key{Kind: KindInterface, Name: l.Name}, l)
		}
	}
}

// closeLink has everything that comes from the link dropped: no address is
// right there.
func (s *State) closeLink(key api.Key, l Link) {
	s.Dataplane.Endpoints[key] = Endpoint{Key: key, Interface: l.Name, Ifindex: l.Index, Veth: l.Kind == "veth", HostMAC: l.MAC}
}

func optionalMAC(text string) (MAC, error) {
	if text == "" {
		return MAC{}, nil
	}
	return parseMAC(text)
}

// isHostLink says whether a link carries the host itself, so that to treat it
// as a workload's would cut the host off.
func isHostLink(l Link, node NodeAddresses) bool {
	if l.Name == "lo" {
		return true
	}
	return slices.ContainsFunc(l.Addresses, func(p netip.Prefix) bool {
		return p.Addr() == node.IPv4 || p.Addr() == node.IPv6
	})
}

// uplinks returns the links that carry traffic to other hosts: those whose name
// fits the pattern, and whichever have the node's own addresses.
func uplinks(in Input, set settings, node NodeAddresses, claims []claim) map[int]Link {
	isWorkload := workloadLinks(set, node, claims)
	out := make(map[int]Link)
	for _, l := range in.Links {
		if l.Up && l.Name != "lo" && (isHostLink(l, node) || !isWorkload(l) && set.dataInterfaces.MatchString(l.Name)) {
			out[l.Index] = l
		}
	}
	return out
}

// measured returns the interfaces whose MTU counts, should that not be the uplinks.
func measured(links []Link, set settings, node NodeAddresses, claims []claim) map[int]Link {
	out := make(map[int]Link)
	isWorkload := workloadLinks(set, node, claims)
	for _, l := range links {
		if set.mtuInterfaces != nil && l.Up && !isWorkload(l) && set.mtuInterfaces.MatchString(l.Name) {
			out[l.Index] = l
		}
	}
	return out
}

// hostAddresses returns the addresses of this host that others can send to.
func hostAddresses(links []Link, set settings, node NodeAddresses, claims []claim) []netip.Addr {
	isWorkload := workloadLinks(set, node, claims)
	var out []netip.Addr
	for _, l := range links {
		if isWorkload(l) {
			continue
		}
		for _, p := range l.Addresses {
			if a := p.Addr(); !a.IsLoopback() && !(a.Is6() && a.IsLinkLocalUnicast()) {
				out = append(out, a)
			}
		}
	}
	return out
}

// workloadLinks tells the host side of workloads from the host's own links: an
// endpoint names them, or their name has the prefix of such.
func workloadLinks(set settings, node NodeAddresses, claims []claim) func(Link) bool {
	claimed := make(map[string]bool)
	for _, c := range claims {
		claimed[c.endpoint.Spec.InterfaceName] = true
	}
	return func(l Link) bool {
		prefixed := slices.ContainsFunc(set.interfacePrefixes, func(p string) bool { return strings.HasPrefix(l.Name, p) })
		return (claimed[l.Name] || prefixed) && !isHostLink(l, node)
	}
}
