package desired

import (
	"errors"
	"fmt"
	"maps"
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

func computeMTUs(uplinks map[int]Link, set settings) mtus {
	plain := 0
	for _, l := range uplinks {
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
// whichever pool their addresses are from.
func (m mtus) workload(pools []pool) int {
	least := m.plain
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
	return least
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// addRoutes fills in where packets go, in BPF and in the kernel. Endpoints must
// have been added.
func (s *State) addRoutes(in Input, c *cluster, host []netip.Addr, m mtus) {
	bpf, kernel := s.Dataplane.Routes, s.Host.Routes
	s.addLearned(in, c, host)

	unreachable := make(map[string]policy.Problem) // each once
	for prefix, o := range c.owners {
		if in.Config.backend() == BackendNone {
			continue // somebody else's fabric knows where the workloads are
		}
		if o.node == c.self.name {
			bpf[prefix] = Route{Kind: RouteBlock}
			kernel[prefix] = KernelRoute{Kind: KernelBlackhole}
			continue
		}
		is6 := prefix.Addr().Is6()
		remote, known := c.nodes[o.node]
		via, ours := remote.address(is6), c.self.address(is6)
		if !via.IsValid() || !ours.IsValid() {
			why := policy.Problem{Object: nodeKey(o.node)}
			switch {
			case !known:
				why.Err = errors.New("no such node: workloads said to be on it are not reachable")
			case !via.IsValid():
				why.Err = fmt.Errorf("no %s address: its workloads are not reachable", family(is6))
			default:
				why.Object = nodeKey(c.self.name)
				why.Err = fmt.Errorf("no %s address: workloads on other nodes are not reachable", family(is6))
			}
			unreachable[why.Object.Name+why.Err.Error()] = why
			continue
		}
		encap := c.encap(prefix, remote)
		bpf[prefix] = Route{Kind: RouteWorkload, Via: via.Addr(), Encap: encap}
		to := KernelRoute{Kind: KernelVia, Via: via.Addr(), MTU: m.of(encap, is6)}
		// Other nodes know this host by its node address alone, whichever uplink
		// packets leave through.
		if slices.Contains(host, ours.Addr()) {
			to.Source = ours.Addr()
		}
		kernel[prefix] = to
	}

	s.Problems = slices.AppendSeq(s.Problems, maps.Values(unreachable))

	// What follows is more certain than any block: later lines win.
	for _, n := range c.nodes {
		for _, a := range []netip.Addr{n.ipv4.Addr(), n.ipv6.Addr()} {
			if a.IsValid() && n.name != c.self.name {
				bpf[single(a)] = Route{Kind: RoutePeerHost}
				delete(kernel, single(a))
			}
		}
	}
	for _, e := range s.Dataplane.Endpoints {
		for _, a := range e.Addresses {
			delete(bpf, single(a))
			kernel[single(a)] = KernelRoute{Kind: KernelLink, Interface: e.Interface}
		}
	}
	for _, a := range slices.Concat(host, c.self.tunnels) {
		bpf[single(a)] = Route{Kind: RouteHost}
		delete(kernel, single(a))
	}
}

// maxLearned is how many routes of peers are taken, half of what the BPF table of
// routes holds: a peer that sends the whole Internet must not cost us our own.
const maxLearned = 1 << 17

// addLearned adds the routes to what lies outside the cluster. Inside it, the
// datastore knows better and sooner; so does the host of its own networks.
func (s *State) addLearned(in Input, c *cluster, host []netip.Addr) {
	if in.Config.backend() != BackendBIRD || len(in.Learned) == 0 {
		return
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
	// A pool's addresses are where the datastore says; service addresses are every
	// node's own.
	elsewhere := s.learnedElsewhere(in)
	for _, p := range c.pools {
		elsewhere = append(elsewhere, p.prefix)
	}
	learned := in.Learned
	if len(learned) > maxLearned {
		s.problem(nodeKey(c.self.name), fmt.Errorf("BGP peers announce %d prefixes; of them %d, the first by prefix, are used", len(learned), maxLearned))
		learned = slices.SortedFunc(slices.Values(learned), func(a, b LearnedRoute) int { return a.Prefix.Compare(b.Prefix) })[:maxLearned]
	}
	for _, r := range learned {
		prefix := r.Prefix.Masked()
		_, owned := c.ownerOf(prefix.Addr())
		if len(r.NextHops) == 0 || taken[prefix] || owned || within(elsewhere, prefix) {
			continue
		}
		s.Host.Routes[prefix] = KernelRoute{Kind: KernelVia, Via: r.NextHops[0], Also: r.NextHops[1:], Learned: true}
		s.Dataplane.Routes[prefix] = Route{Kind: RoutePeerHost}
	}
}

// learnedElsewhere are the nets of services.
func (s *State) learnedElsewhere(in Input) []netip.Prefix {
	conf, ok := in.Resources.Get(bgpConfiguration("default")).(*api.BGPConfiguration)
	if !ok {
		return new(State).serviceNets(in, new(v3.BGPConfigurationSpec)).all()
	}
	return new(State).serviceNets(in, &conf.Spec).all() // addBGP says what is wrong with them
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
