package control

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/nodeapi"
)

// place is what a question's source or destination stands for: an end whose address is
// not chosen yet.
type place struct {
	nodeapi.End
	key       api.Key // WorkloadEndpoint, HostEndpoint or Node; zero: an address of nobody
	addresses []netip.Addr
}

func questionError(format string, args ...any) error {
	return &nodeapi.QuestionError{Reason: fmt.Sprintf(format, args...)}
}

// resolve finds what a name or address stands for.
func (a *Answers) resolve(v View, text string) (place, error) {
	if text == "" {
		return place{}, questionError("the name is empty")
	}
	if addr, err := netip.ParseAddr(text); err == nil {
		return a.placeOf(v, addr.Unmap().WithZone("")), nil
	}
	if _, err := netip.ParsePrefix(text); err == nil {
		return place{}, questionError("%s is a network: name one address", text)
	}
	if text == "host" {
		return a.host(v, api.Key{Kind: api.KindNode, Name: v.Node}), nil
	}
	found := a.find(v, text)
	switch len(found) {
	case 0:
		return place{}, questionError("%q is no address, and no workload endpoint, pod, workload, host endpoint or node has that name", text)
	case 1:
		return found[0], nil
	}
	var list []string
	for _, p := range found {
		list = append(list, qualified(p.key))
	}
	slices.Sort(list)
	more := ""
	if n := len(list) - 5; n > 0 {
		list, more = list[:5], fmt.Sprintf(" and %d more", n)
	}
	return place{}, questionError("%q can be %s%s: name one of them, or its address", text, strings.Join(list, ", "), more)
}

// qualified is a name of an object that nothing else has.
func qualified(key api.Key) string {
	kind := map[string]string{api.KindWorkloadEndpoint: "wep", api.KindHostEndpoint: "hep", api.KindNode: "node"}[key.Kind]
	if key.Namespace != "" {
		return kind + "/" + key.Namespace + "/" + key.Name
	}
	return kind + "/" + key.Name
}

// find returns everything with a name: [kind/][namespace/]name.
func (a *Answers) find(v View, text string) []place {
	parts := strings.Split(text, "/")
	kind, namespace, name := "", "", parts[len(parts)-1]
	switch len(parts) {
	case 1:
	case 2:
		namespace = parts[0]
		if k, ok := api.FindKind(parts[0]); ok && len(a.named(v, "", namespace, name)) == 0 {
			kind, namespace = k.Name, ""
		}
	case 3:
		k, ok := api.FindKind(parts[0])
		if !ok {
			return nil
		}
		kind, namespace = k.Name, parts[1]
	default:
		return nil
	}
	return a.named(v, kind, namespace, name)
}

// named returns the objects with a name. An endpoint's own name goes before what its pod
// is called.
func (a *Answers) named(v View, kind, namespace, name string) (out []place) {
	wants := func(k string) bool { return kind == "" || kind == k }
	if wants(api.KindWorkloadEndpoint) {
		var exact, other []place
		for key, r := range v.Resources.Each(api.KindWorkloadEndpoint) {
			w, ok := r.(*api.WorkloadEndpoint)
			if !ok || namespace != "" && key.Namespace != namespace {
				continue
			}
			if key.Name == name {
				exact = append(exact, workload(v, key, w))
			} else if w.Spec.Pod == name || w.Spec.Workload == name || isContainer(w.Spec.ContainerID, name) {
				other = append(other, workload(v, key, w))
			}
		}
		if out = exact; len(exact) == 0 {
			out = other
		}
	}
	if namespace != "" {
		return out
	}
	for _, k := range []string{api.KindHostEndpoint, api.KindNode} {
		key := api.Key{Kind: k, Name: name}
		if wants(k) && v.Resources.Get(key) != nil {
			out = append(out, a.host(v, key))
		}
	}
	return out
}

// isContainer says whether a name is a container's id, maybe cut short as docker has it.
func isContainer(id, name string) bool { return len(name) >= 12 && strings.HasPrefix(id, name) }

func workload(v View, key api.Key, w *api.WorkloadEndpoint) place {
	p := place{key: key, addresses: w.Addresses()}
	p.End = nodeapi.End{
		Kind: nodeapi.EndWorkload, Namespace: key.Namespace, Name: key.Name, Node: w.Spec.Node, Local: w.Spec.Node == v.Node,
	}
	if p.Local {
		p.Interface = w.Spec.InterfaceName
	}
	return p
}

// host is the node, or the node of a host endpoint.
func (a *Answers) host(v View, key api.Key) place {
	p := place{key: key}
	node := key.Name
	if h, ok := v.Resources.Get(key).(*api.HostEndpoint); ok {
		node = h.Spec.Node
		for _, text := range h.Spec.ExpectedIPs {
			if a, err := netip.ParseAddr(text); err == nil {
				p.addresses = append(p.addresses, a)
			}
		}
	}
	p.End = nodeapi.End{Kind: nodeapi.EndNode, Name: node, Node: node, Local: node == v.Node}
	if p.Local {
		p.Kind = nodeapi.EndHost
	}
	if len(p.addresses) > 0 {
		return p
	}
	if p.Local {
		for _, a := range []netip.Addr{v.State.Dataplane.Node.IPv4, v.State.Dataplane.Node.IPv6} {
			if a.IsValid() {
				p.addresses = append(p.addresses, a)
			}
		}
	} else if n, ok := v.Resources.Get(api.Key{Kind: api.KindNode, Name: node}).(*api.Node); ok {
		p.addresses = nodeAddresses(n)
	}
	return p
}

// placeOf is who has an address.
func (a *Answers) placeOf(v View, addr netip.Addr) place {
	for key, e := range v.State.Dataplane.Endpoints {
		if slices.Contains(e.Addresses, addr) {
			if w, ok := v.Resources.Get(key).(*api.WorkloadEndpoint); ok {
				p := workload(v, key, w)
				p.addresses = []netip.Addr{addr}
				return p
			}
		}
	}
	a.names.build(v)
	p := place{End: a.names.end(addr), addresses: []netip.Addr{addr}}
	switch p.Kind {
	case nodeapi.EndWorkload:
		p.key = api.Key{Kind: api.KindWorkloadEndpoint, Namespace: p.Namespace, Name: p.Name}
	case nodeapi.EndHost, nodeapi.EndNode:
		p.key = api.Key{Kind: api.KindNode, Name: p.Name}
	}
	return p
}

// pair chooses addresses of one family, and of the protocol's if it has one: IPv4 where
// both ends have it.
func pair(source, destination *place, family int) error {
	for _, is6 := range []bool{false, true} {
		if family == 4 && is6 || family == 6 && !is6 {
			continue
		}
		of := func(p *place) (netip.Addr, bool) {
			i := slices.IndexFunc(p.addresses, func(a netip.Addr) bool { return a.Is6() == is6 })
			if i < 0 {
				return netip.Addr{}, false
			}
			return p.addresses[i], true
		}
		s, ok := of(source)
		d, both := of(destination)
		if ok && both {
			source.Address, destination.Address = s, d
			return nil
		}
	}
	for _, p := range []*place{source, destination} {
		if len(p.addresses) == 0 {
			return questionError("%s has no address", p)
		}
	}
	what := "addresses of the same family"
	if family != 0 {
		what = fmt.Sprintf("an IPv%d address each", family)
	}
	return questionError("%s and %s do not have %s", source, destination, what)
}

// is says whether an end is this place.
func (p *place) is(e nodeapi.End) bool {
	if p.Kind == nodeapi.EndExternal {
		return p.Address == e.Address
	}
	return p.Kind == e.Kind && p.Namespace == e.Namespace && p.Name == e.Name
}

func (p place) String() string {
	if p.Name == "" && len(p.addresses) > 0 {
		return p.addresses[0].String()
	}
	return p.End.String()
}
