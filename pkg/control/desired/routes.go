package desired

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/policy"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

// What an encapsulation adds to a packet, bytes.
const (
	ipipOverhead    = 20 // IPv4
	vxlanOverhead   = 50 // IPv4, UDP, VXLAN, Ethernet
	vxlanOverheadV6 = 70 // the same in IPv6
)

// mtus are the sizes that fit the uplinks.
type mtus struct{ plain, ipip, vxlan, vxlanV6 int }

func computeMTUs(uplinks, measured map[int]Link, set settings) mtus {
	if len(measured) == 0 {
		measured = uplinks
	}
	plain := 0
	for _, l := range measured {
		if plain == 0 || l.MTU < plain {
			plain = l.MTU
		}
	}
	if plain == 0 {
		plain = 1500 // no uplink, nothing to fit
	}
	or := func(configured, fitting int) int {
		if configured != 0 {
			return configured
		}
		return fitting
	}
	return mtus{
		plain:   plain,
		ipip:    or(set.ipipMTU, plain-ipipOverhead),
		vxlan:   or(set.vxlanMTU, plain-vxlanOverhead),
		vxlanV6: or(set.vxlanMTUv6, plain-vxlanOverheadV6),
	}
}

// of returns the MTU of a route, 0 where the link's own does.
func (m mtus) of(e Encap, is6 bool) int {
	switch {
	case e == EncapIPIP:
		return m.ipip
	case e == EncapVXLAN && is6:
		return m.vxlanV6
	case e == EncapVXLAN:
		return m.vxlan
	}
	return 0
}

// workload returns the largest MTU that a workload can use to every other one,
// whichever pool their addresses are from. What is configured is believed, be it more
// than the uplinks have.
func (m mtus) workload(pools []pool) int {
	least := math.MaxInt
	for _, p := range pools {
		if p.disabled {
			continue
		}
		is6 := p.prefix.Addr().Is6()
		if p.ipip != "" && p.ipip != v3.IPIPModeNever && !is6 {
			least = min(least, m.ipip)
		}
		if p.vxlan != "" && p.vxlan != v3.VXLANModeNever {
			least = min(least, m.of(EncapVXLAN, is6))
		}
	}
	if least == math.MaxInt {
		return m.plain
	}
	return least
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// routes keeps where packets go, in BPF and in the kernel: each prefix is looked
// at again when something that it depends on has changed.
type routes struct {
	bpf    map[netip.Prefix]Route
	kernel map[netip.Prefix]KernelRoute

	with routeInputs
	// What is more certain than any block, by address.
	host  map[netip.Addr]bool     // this host's own
	local map[netip.Addr]localWay // the interfaces of endpoints
	peers map[netip.Addr]bool     // other nodes' own
	// learned are the next hops to what lies outside the cluster, as long as no node
	// has it: the datastore knows better and sooner what is inside.
	learned map[netip.Prefix][]netip.Addr
	// reachable are the ways to BGP peers that lead where nothing else does.
	reachable map[netip.Addr]netip.Addr

	dirty       map[netip.Prefix]bool
	unreachable map[netip.Prefix]policy.Problem
	problems    []policy.Problem // of unreachable, each once; nil: to be made
}

// routeInputs is what all routes to other nodes depend on.
type routeInputs struct {
	backend    string
	ipv4, ipv6 netip.Prefix // our addresses
	// here4 and here6 say whether this host has them.
	here4, here6 bool
	tunnel       tunnels // ours
	mtus         mtus
}

func newRoutes() *routes {
	return &routes{
		bpf: make(map[netip.Prefix]Route), kernel: make(map[netip.Prefix]KernelRoute),
		dirty: make(map[netip.Prefix]bool), unreachable: make(map[netip.Prefix]policy.Problem),
	}
}

// setInputs says what all routes depend on; pools says that the pools have changed.
func (r *routes) setInputs(with routeInputs, pools bool, c *cluster) {
	if with == r.with && !pools {
		return
	}
	r.with = with
	for _, prefixes := range c.prefixes {
		for p := range prefixes {
			r.dirty[p] = true
		}
	}
}

// overlay sets one of the maps by address; routes to what differs are dirty.
func overlay[V comparable](r *routes, field *map[netip.Addr]V, now map[netip.Addr]V) {
	for a, v := range now {
		if was, ok := (*field)[a]; !ok || was != v {
			r.dirty[single(a)] = true
		}
	}
	for a := range *field {
		if _, ok := now[a]; !ok {
			r.dirty[single(a)] = true
		}
	}
	*field = now
}

func (r *routes) setLearned(now map[netip.Prefix][]netip.Addr) {
	for p, via := range now {
		if !slices.Equal(r.learned[p], via) {
			r.dirty[p] = true
		}
	}
	for p := range r.learned {
		if _, ok := now[p]; !ok {
			r.dirty[p] = true
		}
	}
	r.learned = now
}

// ownersChanged says which prefixes have other owners.
func (r *routes) ownersChanged(prefixes []netip.Prefix) {
	for _, p := range prefixes {
		r.dirty[p] = true
		for l := range r.learned {
			if p.Contains(l.Addr()) {
				r.dirty[l] = true
			}
		}
	}
}

// settle brings what is dirty up to date and returns what differs.
func (r *routes) settle(c *cluster) (changed, changedKernel []netip.Prefix) {
	for p := range r.dirty {
		now, nowKernel, why := r.find(p, c)
		was, had := r.bpf[p]
		if has := now.Kind != 0; has != had || now != was {
			changed = append(changed, p)
			if r.bpf[p] = now; !has {
				delete(r.bpf, p)
			}
		}
		wasKernel, had := r.kernel[p]
		if has := nowKernel.Kind != 0; has != had || !nowKernel.same(wasKernel) {
			changedKernel = append(changedKernel, p)
			if r.kernel[p] = nowKernel; !has {
				delete(r.kernel, p)
			}
		}
		r.blame(p, why)
	}
	r.dirty = make(map[netip.Prefix]bool) // to clear it costs what it ever held
	return changed, changedKernel
}

// blame notes why a prefix has no route, if it should have one.
func (r *routes) blame(p netip.Prefix, why policy.Problem) {
	was, had := r.unreachable[p]
	has := why.Err != nil
	switch {
	case !has && !had, has && had && was.Object == why.Object && was.Err.Error() == why.Err.Error():
		return
	case has:
		r.unreachable[p] = why
	default:
		delete(r.unreachable, p)
	}
	r.problems = nil
}

// listProblems returns each reason why prefixes have no routes once.
func (r *routes) listProblems() []policy.Problem {
	if r.problems == nil {
		seen := make(map[string]bool)
		r.problems = []policy.Problem{}
		for _, why := range r.unreachable {
			if text := why.Object.Name + why.Err.Error(); !seen[text] {
				seen[text] = true
				r.problems = append(r.problems, why)
			}
		}
	}
	return r.problems
}

// find returns the routes of a prefix; of kind 0 where there is none. why is set if
// there should be one.
func (r *routes) find(p netip.Prefix, c *cluster) (bpf Route, kernel KernelRoute, why policy.Problem) {
	if node, ok := c.owner(p); ok {
		bpf, kernel, why = r.toNode(p, node, c)
	} else if hops := r.learned[p]; len(hops) > 0 {
		if _, owned := c.ownerOf(p.Addr()); !owned {
			kernel = KernelRoute{Kind: KernelVia, Via: hops[0], Also: hops[1:], Learned: true}
			bpf = Route{Kind: RoutePeerHost}
		}
	}
	if !p.IsSingleIP() {
		return bpf, kernel, why
	}
	// What follows is more certain than any block.
	a := p.Addr()
	way, local := r.local[a]
	switch {
	case r.host[a]:
		bpf, kernel = Route{Kind: RouteHost}, KernelRoute{}
	case local:
		return Route{}, KernelRoute{Kind: KernelLink, Interface: way.iface, Source: way.source}, why
	case r.peers[a]:
		bpf, kernel = Route{Kind: RoutePeerHost}, KernelRoute{}
	}
	if via, ok := r.reachable[a]; ok && kernel.Kind == 0 {
		kernel = KernelRoute{Kind: KernelVia, Via: via}
	}
	return bpf, kernel, why
}

// toNode returns the routes to a prefix whose workloads are on that node.
func (r *routes) toNode(p netip.Prefix, name string, c *cluster) (bpf Route, kernel KernelRoute, why policy.Problem) {
	if r.with.backend == BackendNone {
		return // somebody else's fabric knows where the workloads are
	}
	if name == c.self.name {
		return Route{Kind: RouteBlock}, KernelRoute{Kind: KernelBlackhole}, why
	}
	is6 := p.Addr().Is6()
	remote, known := c.nodes[name]
	via, ours, here := remote.address(is6), r.with.ipv4, r.with.here4
	if is6 {
		ours, here = r.with.ipv6, r.with.here6
	}
	why.Object = nodeKey(name)
	switch {
	case !known:
		why.Err = errors.New("no such node: workloads said to be on it are not reachable")
	case !via.IsValid():
		why.Err = fmt.Errorf("no %s address: its workloads are not reachable", family(is6))
	case !ours.IsValid():
		why.Object = nodeKey(c.self.name)
		why.Err = fmt.Errorf("no %s address: workloads on other nodes are not reachable", family(is6))
	default:
		encap := c.encap(p, remote)
		bpf = Route{Kind: RouteWorkload, Via: via.Addr(), Encap: encap}
		kernel = KernelRoute{Kind: KernelVia, Via: via.Addr(), MTU: r.with.mtus.of(encap, is6)}
		// Other nodes know this host by its node address alone, whichever uplink
		// packets leave through, and in a tunnel by its address there: only to that do
		// answers come through the tunnel, and only from it does a kernel with strict
		// filters take what comes out of one.
		if here {
			kernel.Source = ours.Addr()
			if in := r.with.tunnel.of(encap, is6); in.IsValid() {
				kernel.Source = in
			}
		}
		return bpf, kernel, policy.Problem{}
	}
	return bpf, kernel, why
}

// maxLearned is how many routes of peers are taken, half of what the BPF table of
// routes holds: a peer that sends the whole Internet must not cost us our own.
const maxLearned = 1 << 17

// learnedRoutes returns the next hops to what lies outside the cluster. Inside it,
// the datastore knows better and sooner; so does the host of its own networks.
func (s *State) learnedRoutes(in Input, c *cluster, host []netip.Addr) map[netip.Prefix][]netip.Addr {
	if in.Config.backend() != BackendBIRD || len(in.Learned) == 0 {
		return nil
	}
	taken := make(map[netip.Prefix]bool)
	for _, l := range in.Links {
		for _, p := range l.Addresses {
			taken[p.Masked()] = true // the kernel's own route to a connected network
		}
	}
	for _, a := range host {
		taken[single(a)] = true
	}
	within := func(nets []netip.Prefix, p netip.Prefix) bool {
		return slices.ContainsFunc(nets, func(n netip.Prefix) bool { return n.Bits() <= p.Bits() && n.Contains(p.Addr()) })
	}
	// Service addresses are every node's own. What a pool encapsulates goes where the
	// datastore says; what nodes do not have of another may be anywhere, such as in the
	// cluster that a disabled pool stands for.
	elsewhere := s.learnedElsewhere(in)
	for _, p := range c.pools {
		if p.encapsulates() {
			elsewhere = append(elsewhere, p.prefix)
		}
	}
	learned := in.Learned
	if len(learned) > maxLearned {
		s.problem(nodeKey(c.self.name), fmt.Errorf("BGP peers announce %d prefixes; of them %d, the first by prefix, are used", len(learned), maxLearned))
		learned = slices.SortedFunc(slices.Values(learned), func(a, b LearnedRoute) int { return a.Prefix.Compare(b.Prefix) })[:maxLearned]
	}
	out := make(map[netip.Prefix][]netip.Addr, len(learned))
	for _, r := range learned {
		if prefix := r.Prefix.Masked(); len(r.NextHops) > 0 && !taken[prefix] && !within(elsewhere, prefix) {
			out[prefix] = r.NextHops
		}
	}
	return out
}

// learnedElsewhere are the nets of services.
func (s *State) learnedElsewhere(in Input) []netip.Prefix {
	conf, ok := in.Resources.Get(bgpConfiguration("default")).(*api.BGPConfiguration)
	if !ok {
		return new(State).serviceNets(in, new(v3.BGPConfigurationSpec)).all()
	}
	return new(State).serviceNets(in, &conf.Spec).all() // addBGP says what is wrong with them
}

func (k KernelRoute) same(o KernelRoute) bool {
	return k.Kind == o.Kind && k.Interface == o.Interface && k.Via == o.Via && slices.Equal(k.Also, o.Also) &&
		k.Source == o.Source && k.MTU == o.MTU && k.Learned == o.Learned
}

// sameLearned compares what peers have told.
func sameLearned(a, b []LearnedRoute) bool {
	if len(a) != len(b) || len(a) > 0 && &a[0] == &b[0] {
		return len(a) == len(b)
	}
	return slices.EqualFunc(a, b, func(a, b LearnedRoute) bool { return a.Prefix == b.Prefix && slices.Equal(a.NextHops, b.NextHops) })
}

// addPeers adds the other nodes by the addresses that their packets come from.
func (s *State) addPeers(c *cluster) {
	for _, name := range sortedNames(c.nodes) {
		n := c.nodes[name]
		if name == c.self.name {
			continue
		}
		for _, p := range []struct {
			address netip.Addr
			mac     MAC
		}{{n.ipv4.Addr(), n.mac4}, {n.ipv6.Addr(), n.mac6}} {
			other, taken := s.Dataplane.Peers[p.address]
			switch {
			case !p.address.IsValid():
			case p.address == s.Dataplane.Node.IPv4, p.address == s.Dataplane.Node.IPv6:
				s.problem(nodeKey(name), fmt.Errorf("address %s is this node's", p.address))
			case taken:
				s.problem(nodeKey(name), fmt.Errorf("address %s is node %s's", p.address, other.Name))
			default:
				s.Dataplane.Peers[p.address] = Peer{Name: name, VXLANMAC: p.mac}
			}
		}
	}
}

func nodeKey(name string) api.Key { return api.Key{Kind: api.KindNode, Name: name} }

func family(is6 bool) string {
	if is6 {
		return "IPv6"
	}
	return "IPv4"
}
