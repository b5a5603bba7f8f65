package desired

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/policy"
)

// Compute returns what this node should be.
func Compute(in Input) *State {
	if in.Resources == nil {
		in.Resources = api.NewStore()
	}
	s := &State{
		Dataplane: Dataplane{
			Endpoints: make(map[api.Key]Endpoint),
			Routes:    make(map[netip.Prefix]Route),
			Peers:     make(map[netip.Addr]Peer),
			Policy:    in.Policy,
		},
		Host: Host{
			Workloads: make(map[string]WorkloadLink),
			Routes:    make(map[netip.Prefix]KernelRoute),
		},
		Local: make(map[api.Key]LocalEndpoint),
	}
	set, problems := resolveSettings(in)
	s.Problems = append(s.Problems, problems...)
	if b := in.Config.Backend; in.Config.backend() != b && b != "" {
		s.problem(EnvironmentObject, fmt.Errorf("CALICO_NETWORKING_BACKEND %q: want bird, vxlan or none", b))
	}
	c := parseCluster(in)
	endpoints := api.All[*api.WorkloadEndpoint](in.Resources, api.KindWorkloadEndpoint)
	claims := localClaims(in.Node, endpoints)

	s.Servers = set.servers
	d := &s.Dataplane
	d.ToHost, d.VXLANPort, d.VXLANVNI, d.Tables = set.toHost, set.vxlanPort, set.vxlanVNI, set.tables
	d.Node = NodeAddresses{
		IPv4: c.self.ipv4.Addr(), IPv6: c.self.ipv6.Addr(),
		VXLANMAC: c.self.mac4, VXLANMACv6: c.self.mac6,
	}
	d.Uplinks = uplinks(in, set, d.Node, claims)
	m := computeMTUs(d.Uplinks, set)
	s.WorkloadMTU = m.workload(c.pools)

	host := hostAddresses(in.Links, set, d.Node, claims)
	reserved := reservedAddresses(c, host)
	c.addStrayEndpoints(endpoints, reserved)
	s.addPeers(c)
	s.addEndpoints(claims, in.Links, reserved)
	s.addUnclaimed(in.Links, set, claims)
	s.addRoutes(in, c, host, m)
	s.addBGP(in, c)
	s.addForwarding(set)
	bound := bindHostEndpoints(in.Node, api.All[*api.HostEndpoint](in.Resources, api.KindHostEndpoint), in.Links,
		workloadLinks(set, d.Node, claims), set.excluded)
	d.HostEndpoints = bound.endpoints
	s.Problems = append(s.Problems, bound.problems...)
	d.Failsafe = failsafePorts(set, in.Config, s.BGP)

	s.Problems = append(s.Problems, c.problems...)
	if in.Policy != nil {
		s.Problems = append(s.Problems, in.Policy.Problems...)
	}
	slices.SortStableFunc(s.Problems, func(a, b policy.Problem) int {
		if n := compareKeys(a.Object, b.Object); n != 0 {
			return n
		}
		return strings.Compare(a.Err.Error(), b.Err.Error())
	})
	return s
}

func (s *State) problem(object api.Key, err error) {
	s.Problems = append(s.Problems, policy.Problem{Object: object, Err: err})
}

// reservedAddresses are those that an endpoint must not take from the hosts,
// with whose they are.
func reservedAddresses(c *cluster, host []netip.Addr) map[netip.Addr]string {
	out := make(map[netip.Addr]string)
	for _, n := range c.nodes {
		for _, a := range []netip.Addr{n.ipv4.Addr(), n.ipv6.Addr()} {
			if a.IsValid() {
				out[a] = "node " + n.name + "'s"
			}
		}
	}
	for _, a := range slices.Concat(host, c.self.tunnels) {
		out[a] = "this host's"
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
