package policy

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
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

// Labels that no resource can have.
const (
	inScope  = "//in-scope" // an identity's namespace (service account) has it if it exists at all
	anybody  = "//anybody"  // every identity has it
	namesOne = "//port"     // of an identity that names a port
)

// identity is all that a selector can tell endpoints and network sets apart by:
// the effective labels and the named ports. Those that are alike share one.
type identity struct {
	key    string
	labels []label     // sorted
	ports  []namedPort // sorted
	// traits are what indexes find it by: the labels, and what else a match may ask.
	traits []label
	at     [indexes][]int32 // where among those with the same trait

	peers    []*peer         // who has it
	sets     []*set          // that rules ask for and that have it, by id
	kinds    []*kind         // local endpoints that have it
	policies []*policySource // that select it, if it has kinds
}

type label struct{ name, value string }

// namedPort is a port that an endpoint gives a name to.
type namedPort struct {
	name     string
	protocol uint8
	number   uint16
}

func (p namedPort) trait() label {
	return label{namesOne, strconv.Itoa(int(p.protocol)) + "/" + strconv.Itoa(int(p.number)) + "/" + p.name}
}

// label returns the value of a label, and whether there is one.
func (i *identity) label(name string) (string, bool) {
	for k := range i.labels {
		if i.labels[k].name == name {
			return i.labels[k].value, true
		}
	}
	return "", false
}

// scope looks up the labels of an identity's namespace or service account, which
// it has under a prefix; member is the label that it has if it is in any at all.
func (i *identity) scope(prefix, member string) func(string) (string, bool) {
	return func(name string) (value string, ok bool) {
		if name == inScope {
			_, ok = i.label(member)
			return "", ok
		}
		for k := range i.labels {
			if rest, found := strings.CutPrefix(i.labels[k].name, prefix); found && rest == name {
				return i.labels[k].value, true
			}
		}
		return "", false
	}
}

// newIdentity makes the identity of these labels, sorted by name, and ports.
func newIdentity(key string, labels []label, ports []namedPort) *identity {
	i := &identity{key: key, labels: labels, ports: ports}
	i.traits = append(append(make([]label, 0, len(labels)+1+len(ports)), labels...), label{name: anybody})
	for _, p := range ports {
		i.traits = append(i.traits, p.trait())
	}
	return i
}

// appendIdentity appends what tells identities apart.
func appendIdentity(key []byte, labels []label, ports []namedPort) []byte {
	key = binary.AppendUvarint(key, uint64(len(labels)))
	for _, l := range labels {
		key = appendText(appendText(key, l.name), l.value)
	}
	for _, p := range ports {
		key = append(key, p.protocol, byte(p.number>>8), byte(p.number))
		key = appendText(key, p.name)
	}
	return key
}

// effectiveLabels are an endpoint's labels: those that it has for what it is,
// before its own, before those that its profiles apply, the first profile's before
// the later ones'.
func effectiveLabels(given []label, own map[string]string, profiles []*profile) []label {
	labels := slices.Grow(given, len(own))
	put := func(name, value string) {
		if !slices.ContainsFunc(labels, func(l label) bool { return l.name == name }) {
			labels = append(labels, label{name, value})
		}
	}
	for name, value := range own {
		put(name, value)
	}
	for _, p := range profiles {
		if p.resource == nil {
			continue
		}
		for name, value := range p.resource.Spec.LabelsToApply {
			put(name, value)
		}
	}
	slices.SortFunc(labels, func(a, b label) int { return strings.Compare(a.name, b.name) })
	return labels
}

// workloadLabels are the labels that Calico gives a workload endpoint for what it
// is.
func workloadLabels(w *api.WorkloadEndpoint) []label {
	labels := []label{{v3.LabelNamespace, w.Namespace}, {v3.LabelOrchestrator, w.Spec.Orchestrator}}
	if w.Spec.ServiceAccountName != "" {
		labels = append(labels, label{v3.LabelServiceAccount, w.Spec.ServiceAccountName})
	}
	return labels
}

// ownLabels are a workload endpoint's own labels without those of namespaces and
// service accounts: only profiles give these, or it could say that it is in another
// namespace.
func ownLabels(w *api.WorkloadEndpoint) map[string]string {
	given := func(name, _ string) bool {
		return strings.HasPrefix(name, namespaceLabels) || strings.HasPrefix(name, serviceAccountLabels)
	}
	for name, value := range w.Labels {
		if given(name, value) {
			own := maps.Clone(w.Labels)
			maps.DeleteFunc(own, given)
			return own
		}
	}
	return w.Labels
}

// workloadPorts are the ports that rules can name. One whose protocol we do not
// know matches nothing.
func workloadPorts(ports []api.WorkloadPort) []namedPort {
	var out []namedPort
	for _, p := range ports {
		if number, ok := api.NumberOf(p.Protocol); ok {
			out = append(out, namedPort{p.Name, number, p.Port})
		}
	}
	return out
}

func hostPorts(ports []v3.EndpointPort) []namedPort {
	var out []namedPort
	for _, p := range ports {
		if number, ok := api.NumberOf(p.Protocol); ok {
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
func parsePrefixes(nets []string) (prefixes []netip.Prefix, faults []error) {
	prefixes = make([]netip.Prefix, 0, len(nets))
	for _, s := range nets {
		p, err := parsePrefix(s)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		prefixes = append(prefixes, p)
	}
	return prefixes, faults
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
