package desired

import (
	"fmt"
	"net/netip"
	"slices"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/policy"
)

// local is what the routes need to know of this node.
type local struct {
	mtus mtus
	host []netip.Addr // the addresses that others can send to
}

// localWay is how the host reaches an endpoint's address.
type localWay struct {
	iface  string
	source netip.Addr // of what the host itself sends; invalid: the kernel's choice
}

// computeLocal computes what this node's links and endpoints are to be.
func (c *Computer) computeLocal(in Input, links bool) {
	if !links && !c.stale.settings && !c.stale.claims && !c.stale.nodes && !c.stale.pools {
		return
	}
	if c.stale.nodes {
		c.cluster.reserveNodes(nodeAddresses(&c.cluster))
	}
	set, claims := c.settings, sortClaims(c.claims)
	s := State{
		Dataplane: Dataplane{
			Endpoints: make(map[api.Key]Endpoint),
			ToHost:    set.toHost, RPF: set.rpf, NoXDP: !set.xdp, Tables: set.tables,
			VXLANPort: set.vxlanPort, VXLANVNI: set.vxlanVNI,
			WorkloadIPIP: set.workloadIPIP, WorkloadVXLAN: set.workloadVXLAN,
			Node: NodeAddresses{
				IPv4: c.cluster.self.ipv4.Addr(), IPv6: c.cluster.self.ipv6.Addr(),
				VXLANMAC: c.cluster.self.mac4, VXLANMACv6: c.cluster.self.mac6,
			},
		},
		Host:  Host{Workloads: make(map[string]WorkloadLink)},
		Local: make(map[api.Key]LocalEndpoint),
	}
	d := &s.Dataplane
	d.Uplinks = uplinks(in, set, d.Node, claims)
	c.local = local{mtus: computeMTUs(d.Uplinks, measured(in.Links, set, d.Node, claims), set), host: hostAddresses(in.Links, set, d.Node, claims)}
	s.WorkloadMTU = c.local.mtus.workload(c.cluster.pools)
	host := make(map[netip.Addr]bool)
	for _, a := range slices.Concat(c.local.host, c.cluster.self.tunnels) {
		host[a] = true
	}
	c.cluster.reserveHost(host)
	s.addEndpoints(claims, in.Links, c.cluster.reserved, set.anySource)
	s.addUnclaimed(in.Links, set, claims)
	s.addForwarding(set)
	s.addTunnels(c.cluster.self)
	bound := bindHostEndpoints(in.Node, c.hosts, in.Links, workloadLinks(set, d.Node, claims), set.excluded)
	d.HostEndpoints, s.Problems = bound.endpoints, append(s.Problems, bound.problems...)
	source4, source6 := s.routeSource(c.cluster.self.name, set.routeSource, in.Links), s.routeSource(c.cluster.self.name, set.routeSourceV6, in.Links)
	c.setProblems(&c.problems.local, s.Problems)

	ways := make(map[netip.Addr]localWay)
	for _, e := range d.Endpoints {
		for _, a := range e.Addresses {
			way := localWay{e.Interface, source4}
			if a.Is6() {
				way.source = source6
			}
			ways[a] = way
		}
	}
	overlay(c.routes, &c.routes.host, host)
	overlay(c.routes, &c.routes.local, ways)

	// What does not follow from local things stays.
	out := &c.out
	d.Routes, d.Peers, d.Failsafe = out.Dataplane.Routes, out.Dataplane.Peers, out.Dataplane.Failsafe
	d.NATNets, d.NATMark, d.UnjudgedMark = out.Dataplane.NATNets, out.Dataplane.NATMark, out.Dataplane.UnjudgedMark
	s.Host.Routes, s.Host.KeepLearned = out.Host.Routes, out.Host.KeepLearned
	out.Dataplane, out.Host, out.Local, out.WorkloadMTU = s.Dataplane, s.Host, s.Local, s.WorkloadMTU
	out.Changes.Local = true
}

// routeSource is what the host is to send from to its workloads, if it has this address:
// the kernel takes no other.
func (s *State) routeSource(node string, source netip.Addr, links []Link) netip.Addr {
	if !source.IsValid() {
		return source
	}
	for _, l := range links {
		if slices.ContainsFunc(l.Addresses, func(p netip.Prefix) bool { return p.Addr() == source }) {
			return source
		}
	}
	s.Problems = append(s.Problems, policy.Problem{
		Object: nodeKey(node), Err: fmt.Errorf("deviceRouteSourceAddress %s is no address of this host", source),
	})
	return netip.Addr{}
}

// addTunnels has the host own its addresses in tunnels.
func (s *State) addTunnels(self node) {
	s.Host.Addresses = slices.Clone(self.tunnels)
	slices.SortFunc(s.Host.Addresses, netip.Addr.Compare)
	s.Host.Addresses = slices.Compact(s.Host.Addresses)
	for _, l := range s.Dataplane.Uplinks {
		s.Host.Uplinks = append(s.Host.Uplinks, l.Name)
	}
	slices.Sort(s.Host.Uplinks)
}

// nodeAddresses are the addresses of all nodes, with their names; the first by name
// has one that several claim.
func nodeAddresses(c *cluster) map[netip.Addr]string {
	out := make(map[netip.Addr]string, len(c.nodes))
	for _, name := range sortedNames(c.nodes) {
		n := c.nodes[name]
		for _, a := range []netip.Addr{n.ipv4.Addr(), n.ipv6.Addr()} {
			if _, taken := out[a]; a.IsValid() && !taken {
				out[a] = name
			}
		}
	}
	return out
}

// addForwarding has the host forward the families that its workloads use. IPv6
// forwarding is left alone where nothing needs it: it makes the kernel ignore
// router advertisements.
func (s *State) addForwarding(set settings) {
	if !set.ipForwarding {
		return
	}
	s.Host.ForwardIPv4 = true
	if !set.ipv6 {
		return
	}
	s.Host.ForwardIPv6 = s.Dataplane.Node.IPv6.IsValid()
	for _, e := range s.Dataplane.Endpoints {
		if slices.ContainsFunc(e.Addresses, netip.Addr.Is6) {
			s.Host.ForwardIPv6 = true
		}
	}
}

// sameLinks compares two lists of links.
func sameLinks(a, b []Link) bool {
	if len(a) != len(b) || len(a) > 0 && &a[0] == &b[0] {
		return len(a) == len(b)
	}
	return slices.EqualFunc(a, b, func(a, b Link) bool {
		return a.Name == b.Name && a.Index == b.Index && a.Kind == b.Kind && a.MTU == b.MTU && a.MAC == b.MAC && a.Up == b.Up &&
			a.Port == b.Port && a.NoEthernet == b.NoEthernet &&
			slices.Equal(a.Addresses, b.Addresses)
	})
}
