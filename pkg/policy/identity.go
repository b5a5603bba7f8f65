package policy

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"

	"calico-xdp/pkg/api"
)

// Prefixes of the labels by which profiles hand on what a namespace and a
// service account are labelled with, and of the profile of a namespace.
const (
	namespaceLabels       = "pcns."
	serviceAccountLabels  = "pcsa."
	namespaceProfileNames = "kns."
)

// inScope is a label that no resource can have. An identity's namespace (service
// account) has it if it exists at all.
const inScope = "//in-scope"

// identity is all that a selector can tell endpoints and network sets apart by:
// the effective labels and the named ports. Those that are alike share one.
type identity struct {
	labels map[string]string
	ports  []namedPort // sorted
	used   uint64
}

// namedPort is a port that an endpoint gives a name to.
type namedPort struct {
	name     string
	protocol uint8
	number   uint16
}

// scope looks up the labels of an identity's namespace or service account, which
// it has under a prefix; member is the label that it has if it is in any at all.
func (i *identity) scope(prefix, member string) func(string) (string, bool) {
	return func(name string) (value string, ok bool) {
		if name == inScope {
			_, ok = i.labels[member]
			return "", ok
		}
		value, ok = i.labels[prefix+name]
		return value, ok
	}
}

// peer is an endpoint or a network set: an identity and where it is.
type peer struct {
	key      api.Key
	identity *identity
	prefixes []netip.Prefix
	problem  error

	// What it was made from: unless one of them changes, it need not be made again.
	resource api.Resource
	profiles []*api.Profile
	used     uint64
}

// portName is a port's name and the protocol that it is a port of.
type portName struct {
	name     string
	protocol uint8
}

// peers keeps a peer for each endpoint and network set of the store.
type peers struct {
	byKey      map[api.Key]*peer
	identities map[string]*identity
	// numbers are what port names stand for, wherever they do.
	numbers map[portName]spans
}

func newPeers() *peers {
	return &peers{byKey: make(map[api.Key]*peer), identities: make(map[string]*identity), numbers: make(map[portName]spans)}
}

// update makes the peers agree with the store.
func (ps *peers) update(store *api.Store, profiles map[api.Key]*api.Profile, result uint64) {
	for key, r := range api.All[*api.WorkloadEndpoint](store, api.KindWorkloadEndpoint) {
		ps.put(key, r, r.Spec.Profiles, profiles, result, func(p *peer) (map[string]string, []namedPort) {
			p.prefixes, p.problem = parsePrefixes("spec.ipNetworks", r.Spec.IPNetworks)
			return workloadLabels(r), workloadPorts(r.Spec.Ports)
		})
	}
	for key, r := range api.All[*api.HostEndpoint](store, api.KindHostEndpoint) {
		ps.put(key, r, r.Spec.Profiles, profiles, result, func(p *peer) (map[string]string, []namedPort) {
			p.prefixes, p.problem = parsePrefixes("spec.expectedIPs", r.Spec.ExpectedIPs)
			return r.Labels, hostPorts(r.Spec.Ports)
		})
	}
	for key, r := range api.All[*api.GlobalNetworkSet](store, api.KindGlobalNetworkSet) {
		ps.put(key, r, nil, profiles, result, func(p *peer) (map[string]string, []namedPort) {
			p.prefixes, p.problem = parsePrefixes("spec.nets", r.Spec.Nets)
			return r.Labels, nil
		})
	}
	for key, r := range api.All[*api.NetworkSet](store, api.KindNetworkSet) {
		inherit := []string{namespaceProfileNames + r.Namespace}
		ps.put(key, r, inherit, profiles, result, func(p *peer) (map[string]string, []namedPort) {
			p.prefixes, p.problem = parsePrefixes("spec.nets", r.Spec.Nets)
			labels := maps.Clone(r.Labels)
			if labels == nil {
				labels = make(map[string]string)
			}
			labels[v3.LabelNamespace] = r.Namespace
			return labels, nil
		})
	}
	maps.DeleteFunc(ps.byKey, func(_ api.Key, p *peer) bool { return p.used != result })
	maps.DeleteFunc(ps.identities, func(_ string, i *identity) bool { return i.used != result })
	clear(ps.numbers)
	for _, i := range ps.identities {
		for _, p := range i.ports {
			name := portName{p.name, p.protocol}
			if have := ps.numbers[name]; !have.contains(p.number) {
				ps.numbers[name] = newSpans(append(have, span{p.number, p.number})...)
			}
		}
	}
}

// resolve returns the numbers that these names stand for on any endpoint.
func (ps *peers) resolve(names []string, protocol uint8) spans {
	var all spans
	for _, name := range names {
		all = append(all, ps.numbers[portName{name, protocol}]...)
	}
	return newSpans(all...)
}

// put makes the peer of one resource, unless it is there already.
func (ps *peers) put(key api.Key, r api.Resource, inherit []string, profiles map[api.Key]*api.Profile, result uint64,
	read func(*peer) (map[string]string, []namedPort)) {
	p := ps.byKey[key]
	if p == nil || p.resource != r || !sameProfiles(p.profiles, inherit, profiles) {
		p = &peer{key: key, resource: r, profiles: make([]*api.Profile, len(inherit))}
		for i, name := range inherit {
			p.profiles[i] = profiles[api.Key{Kind: api.KindProfile, Name: name}]
		}
		labels, ports := read(p)
		p.identity = ps.identify(effectiveLabels(labels, p.profiles), ports)
		ps.byKey[key] = p
	}
	p.used = result
	p.identity.used = result
}

func sameProfiles(have []*api.Profile, names []string, profiles map[api.Key]*api.Profile) bool {
	for i, name := range names {
		if have[i] != profiles[api.Key{Kind: api.KindProfile, Name: name}] {
			return false
		}
	}
	return true
}

// identify returns the one identity with these labels and ports.
func (ps *peers) identify(labels map[string]string, ports []namedPort) *identity {
	slices.SortFunc(ports, comparePorts)
	ports = slices.Compact(ports)
	key := binary.AppendUvarint(nil, uint64(len(labels)))
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		key = appendText(appendText(key, name), labels[name])
	}
	for _, p := range ports {
		key = append(key, p.protocol, byte(p.number>>8), byte(p.number))
		key = appendText(key, p.name)
	}
	i := ps.identities[string(key)]
	if i == nil {
		i = &identity{labels: labels, ports: ports}
		ps.identities[string(key)] = i
	}
	return i
}

// effectiveLabels are an endpoint's own labels over those that its profiles
// apply, the first profile over the later ones.
func effectiveLabels(own map[string]string, profiles []*api.Profile) map[string]string {
	labels := maps.Clone(own)
	if labels == nil {
		labels = make(map[string]string)
	}
	for _, p := range profiles {
		if p == nil {
			continue
		}
		for name, value := range p.Spec.LabelsToApply {
			if _, ok := labels[name]; !ok {
				labels[name] = value
			}
		}
	}
	return labels
}

// workloadLabels are a workload endpoint's own labels and those that Calico
// gives it for what it is.
func workloadLabels(w *api.WorkloadEndpoint) map[string]string {
	labels := maps.Clone(w.Labels)
	if labels == nil {
		labels = make(map[string]string)
	}
	labels[v3.LabelNamespace] = w.Namespace
	labels[v3.LabelOrchestrator] = w.Spec.Orchestrator
	if w.Spec.ServiceAccountName != "" {
		labels[v3.LabelServiceAccount] = w.Spec.ServiceAccountName
	}
	return labels
}

// workloadPorts are the ports that rules can name. One whose protocol we do not
// know matches nothing.
func workloadPorts(ports []api.WorkloadPort) []namedPort {
	var out []namedPort
	for _, p := range ports {
		if number, ok := protocolNumber(p.Protocol); ok {
			out = append(out, namedPort{p.Name, number, p.Port})
		}
	}
	return out
}

func hostPorts(ports []v3.EndpointPort) []namedPort {
	var out []namedPort
	for _, p := range ports {
		if number, ok := protocolNumber(p.Protocol); ok {
			out = append(out, namedPort{p.Name, number, p.Port})
		}
	}
	return out
}

func comparePorts(a, b namedPort) int {
	if c := strings.Compare(a.name, b.name); c != 0 {
		return c
	}
	if a.protocol != b.protocol {
		return int(a.protocol) - int(b.protocol)
	}
	return int(a.number) - int(b.number)
}

// parsePrefixes reads the ones that are right and says which are not.
func parsePrefixes(field string, nets []string) (prefixes []netip.Prefix, err error) {
	prefixes = make([]netip.Prefix, 0, len(nets))
	for _, s := range nets {
		p, e := parsePrefix(s)
		if e != nil {
			err = fmt.Errorf("%s: %w", field, e)
			continue
		}
		prefixes = append(prefixes, p)
	}
	return prefixes, err
}

// parsePrefix reads an address or a network; host bits are cut.
func parsePrefix(s string) (netip.Prefix, error) {
	var prefix netip.Prefix
	var err error
	if strings.Contains(s, "/") {
		prefix, err = netip.ParsePrefix(s)
	} else {
		var a netip.Addr
		a, err = netip.ParseAddr(s)
		prefix = netip.PrefixFrom(a.WithZone(""), a.BitLen())
	}
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is no address or network", s)
	}
	if a := prefix.Addr(); a.Is4In6() && prefix.Bits() >= 96 {
		prefix = netip.PrefixFrom(a.Unmap(), prefix.Bits()-96)
	}
	return prefix.Masked(), nil
}

// appendText appends s so that no two lists of texts look alike.
func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}
