package control

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/nodeapi"
)

// forgetNames is how long names are kept that nobody has asked for: in a large cluster
// they take memory that policy does not need.
const forgetNames = 10 * time.Minute

// names says who has an address. It is built when somebody asks, and follows the
// resources from then on. Its methods may be called from any goroutine, but build and
// apply, which are the loop's.
type names struct {
	self string

	mu    sync.RWMutex
	built bool
	used  time.Time // when it was last built, or let go
	held  int       // by how many who need it all the time
	by    map[netip.Addr][]named
	of    map[api.Key][]netip.Addr
	own   map[netip.Addr]bool // this host's, also those that its Node does not tell
}

// named is who has an address: a workload endpoint or a node.
type named struct {
	key  api.Key
	node string
	link string // of a workload endpoint: its interface
}

func newNames(self string) *names { return &names{self: self} }

// build reads the whole store, unless that was done.
func (n *names) build(v View) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.used = time.Now()
	n.own = make(map[netip.Addr]bool)
	for p, r := range v.State.Dataplane.Routes {
		if r.Kind == desired.RouteHost {
			n.own[p.Addr()] = true
		}
	}
	if n.built {
		return
	}
	n.built = true
	n.by, n.of = make(map[netip.Addr][]named), make(map[api.Key][]netip.Addr)
	for _, kind := range []string{api.KindWorkloadEndpoint, api.KindNode} {
		for key, r := range v.Resources.Each(kind) {
			n.read(key, r)
		}
	}
}

// apply takes up what has changed in the store.
func (n *names) apply(changes []api.Change) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.built {
		return
	}
	if n.held == 0 && time.Since(n.used) > forgetNames {
		n.built, n.by, n.of = false, nil, nil
		return
	}
	for _, c := range changes {
		if c.Key.Kind == api.KindWorkloadEndpoint || c.Key.Kind == api.KindNode {
			n.read(c.Key, c.Resource)
		}
	}
}

func (n *names) read(key api.Key, r api.Resource) {
	for _, a := range n.of[key] {
		n.by[a] = slices.DeleteFunc(n.by[a], func(x named) bool { return x.key == key })
		if len(n.by[a]) == 0 {
			delete(n.by, a)
		}
	}
	delete(n.of, key)
	var addresses []netip.Addr
	who := named{key: key}
	switch r := r.(type) {
	case *api.WorkloadEndpoint:
		who.node, who.link, addresses = r.Spec.Node, r.Spec.InterfaceName, r.Addresses()
	case *api.Node:
		who.node, addresses = key.Name, nodeAddresses(r)
	}
	if len(addresses) == 0 {
		return
	}
	n.of[key] = addresses
	for _, a := range addresses {
		n.by[a] = append(n.by[a], who)
	}
}

// nodeAddresses are all the addresses that a node says it has.
func nodeAddresses(n *api.Node) (out []netip.Addr) {
	add := func(text string) {
		a, err := netip.ParseAddr(text)
		if p, isPrefix := netip.ParsePrefix(text); isPrefix == nil {
			a, err = p.Addr(), nil
		}
		if err == nil && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	if b := n.Spec.BGP; b != nil {
		add(b.IPv4Address)
		add(b.IPv6Address)
		add(b.IPv4IPIPTunnelAddr)
	}
	add(n.Spec.IPv4VXLANTunnelAddr)
	add(n.Spec.IPv6VXLANTunnelAddr)
	for _, a := range n.Spec.Addresses {
		add(a.Address)
	}
	return out
}

// hold keeps the names until they are let go as often.
func (n *names) hold() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held++
}

func (n *names) letGo() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held--
	n.used = time.Now()
}

// end says who has an address. Of several that claim it this node's endpoint is, else
// the first by key.
func (n *names) end(a netip.Addr) nodeapi.End {
	n.mu.RLock()
	defer n.mu.RUnlock()
	e := nodeapi.End{Kind: nodeapi.EndExternal, Address: a}
	all := n.by[a]
	if len(all) == 0 {
		if n.own[a] {
			e.Kind, e.Name, e.Node, e.Local = nodeapi.EndHost, n.self, n.self, true
		}
		return e
	}
	who := slices.MinFunc(all, func(x, y named) int {
		return cmp.Or(rank(x, n.self)-rank(y, n.self), compareKeys(x.key, y.key))
	})
	e.Namespace, e.Name, e.Node, e.Local = who.key.Namespace, who.key.Name, who.node, who.node == n.self
	switch {
	case who.key.Kind == api.KindWorkloadEndpoint:
		e.Kind = nodeapi.EndWorkload
		if e.Local {
			e.Interface = who.link
		}
	case e.Local:
		e.Kind = nodeapi.EndHost
	default:
		e.Kind = nodeapi.EndNode
	}
	return e
}

// rank orders those who claim an address: hosts keep theirs, then this node's endpoints.
func rank(x named, self string) int {
	switch {
	case x.key.Kind == api.KindNode:
		return 0
	case x.node == self:
		return 1
	}
	return 2
}

func compareKeys(a, b api.Key) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
