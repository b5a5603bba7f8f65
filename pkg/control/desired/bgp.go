package desired

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"calico-xdp/pkg/api"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

// What holds where nothing is configured; Calico's.
const (
	defaultAS      = 64512
	defaultBGPPort = 179
)

// The kinds of BGP session, in the words of `calicoctl node status`.
const (
	PeerMesh   = "node-to-node mesh"
	PeerNode   = "node specific"
	PeerGlobal = "global"
)

// excludeLabel on a node keeps it from announcing services; Kubernetes'.
const excludeLabel = "node.kubernetes.io/exclude-from-external-load-balancers"

// addBGP fills in the speaker's part. Routes between nodes do not depend on it:
// they follow from the datastore.
func (s *State) addBGP(in Input, c *cluster) {
	known := c.self.ipv4.IsValid() || c.self.ipv6.IsValid()
	if in.Config.backend() != BackendBIRD || !known {
		return // without an address, nobody could reach us and the router id would change later
	}
	s.Host.KeepLearned = in.Learning
	r := newBGPReader(s, in, c)
	b := &s.BGP
	*b = BGP{
		Enabled: true, AS: r.asOf(c.self), ListenPort: r.portOf(c.self.name), ClusterID: r.clusterID(c.self.name),
		Peers: make(map[string]BGPPeer), Advertise: make(map[netip.Prefix]bool),
		NextHop4: c.self.ipv4.Addr(), NextHop6: c.self.ipv6.Addr(),
	}
	b.RouterID = s.routerID(in, c)
	if m := r.spec.BindMode; m != nil && *m == v3.BindModeNodeIP {
		for _, a := range []netip.Addr{b.NextHop4, b.NextHop6} {
			if a.IsValid() {
				b.ListenOn = append(b.ListenOn, a)
			}
		}
	}
	r.addPeers()
	r.addFilters()
	r.addAnnouncements()
	slices.Sort(b.Secrets)
	b.Secrets = slices.Compact(b.Secrets)
	b.Pending = in.Pending && (b.Services || len(b.Secrets) > 0)
}

// bgpReader turns the resources into a speaker's part.
type bgpReader struct {
	*State
	in      Input
	cluster *cluster
	spec    v3.BGPConfigurationSpec // of "default"
	own     v3.BGPConfigurationSpec // of "node.<this one>"
	// byAddress finds the nodes that have an address.
	byAddress map[netip.Addr][]string
	// taken are the peers by address, each with its name.
	taken map[netip.Addr]string
	// networks are those of this host's interfaces, but for the ignored ones.
	networks []hostNetwork
}

func newBGPReader(s *State, in Input, c *cluster) *bgpReader {
	r := &bgpReader{State: s, in: in, cluster: c, byAddress: make(map[netip.Addr][]string), taken: make(map[netip.Addr]string)}
	if conf, ok := in.Resources.Get(bgpConfiguration("default")).(*api.BGPConfiguration); ok {
		r.spec = conf.Spec
	}
	if conf, ok := in.Resources.Get(bgpConfiguration("node." + c.self.name)).(*api.BGPConfiguration); ok {
		r.own = conf.Spec
	}
	for _, n := range hostNetworks(in.Links) {
		if !matchesAny(r.spec.IgnoredInterfaces, n.link) {
			r.networks = append(r.networks, n)
		}
	}
	for _, name := range sortedNames(c.nodes) {
		for _, is6 := range []bool{false, true} {
			if a := c.nodes[name].address(is6).Addr(); a.IsValid() {
				r.byAddress[a] = append(r.byAddress[a], name)
			}
		}
	}
	return r
}

// asOf returns a node's AS.
func (r *bgpReader) asOf(n node) uint32 {
	switch {
	case n.as != 0:
		return n.as
	case r.spec.ASNumber != nil:
		return uint32(*r.spec.ASNumber)
	}
	return defaultAS
}

// portOf returns the port that a node listens on.
func (r *bgpReader) portOf(node string) int { return cmp.Or(r.configuredPort(node), defaultBGPPort) }

// configuredPort is portOf as far as BGPConfiguration says it, otherwise 0.
func (r *bgpReader) configuredPort(node string) int {
	if conf, ok := r.in.Resources.Get(bgpConfiguration("node." + node)).(*api.BGPConfiguration); ok && conf.Spec.ListenPort != 0 {
		return int(conf.Spec.ListenPort)
	}
	return int(r.spec.ListenPort)
}

// clusterID returns a node's route reflector cluster, empty if it is none.
func (r *bgpReader) clusterID(name string) string {
	if n, ok := r.in.Resources.Get(nodeKey(name)).(*api.Node); ok && n.Spec.BGP != nil {
		return n.Spec.BGP.RouteReflectorClusterID
	}
	return ""
}

// addAnnouncements says what is told to peers.
func (r *bgpReader) addAnnouncements() {
	b, c := &r.State.BGP, r.cluster
	for _, p := range c.pools {
		if p.export {
			b.Passed = append(b.Passed, p.prefix)
		} else {
			b.Hidden = append(b.Hidden, p.prefix)
		}
	}
	for prefix := range c.prefixes[c.self.name] {
		// A block is announced as a whole, also one whose pool is gone; a single
		// address that this node has out of another's block only if it is of a pool.
		if _, pooled := c.poolOf(prefix.Addr()); pooled || !prefix.IsSingleIP() {
			b.Advertise[prefix] = true
		}
	}
	r.addServices()
	r.addNetworks()
	r.addCommunities()
	slices.SortFunc(b.Hidden, netip.Prefix.Compare)
	slices.SortFunc(b.Passed, netip.Prefix.Compare)
	b.Hidden, b.Passed = slices.Compact(b.Hidden), slices.Compact(b.Passed)
}

// addCommunities reads prefixAdvertisements: this node's if it has some, else the
// cluster's.
func (r *bgpReader) addCommunities() {
	name, spec := "default", r.spec
	if len(r.own.PrefixAdvertisements) > 0 {
		name, spec = "node."+r.cluster.self.name, r.own
	}
	byName := make(map[string]string, len(spec.Communities))
	for _, c := range spec.Communities {
		byName[c.Name] = c.Value
	}
	for _, a := range spec.PrefixAdvertisements {
		prefix, err := netip.ParsePrefix(a.CIDR)
		if err != nil {
			r.problem(bgpConfiguration(name), fmt.Errorf("prefixAdvertisements: %w", err))
			continue
		}
		out := BGPCommunities{Prefix: prefix.Masked()}
		for _, c := range a.Communities {
			value, named := byName[c]
			if !named {
				value = c
			}
			switch strings.Count(value, ":") {
			case 1:
				out.Standard = append(out.Standard, value)
			case 2:
				out.Large = append(out.Large, value)
			default:
				r.problem(bgpConfiguration(name), fmt.Errorf("prefixAdvertisements: %q is neither a community nor the name of one", c))
			}
		}
		r.State.BGP.Communities = append(r.State.BGP.Communities, out)
	}
}

// routerID returns the speaker's id: what is configured, else the node's IPv4
// address, else one made from its name.
func (s *State) routerID(in Input, c *cluster) netip.Addr {
	id := in.Config.RouterID
	if id != "" && id != "hash" {
		if a, err := netip.ParseAddr(id); err == nil && a.Is4() {
			return a
		}
		s.problem(EnvironmentObject, fmt.Errorf("CALICO_ROUTER_ID %q: want an IPv4 address or \"hash\"", id))
	}
	if id != "hash" && c.self.ipv4.IsValid() {
		return c.self.ipv4.Addr()
	}
	return hashedID(c.self.name)
}

// hashedID makes a router id from a node's name, the same as Calico's node makes: the
// first bytes of its SHA-256, kept out of the addresses from 224.0.0.0 on.
func hashedID(name string) netip.Addr {
	sum := sha256.Sum256([]byte(name))
	if sum[0] >= 224 {
		sum[0] -= 32
	}
	id := netip.AddrFrom4([4]byte(sum[:4]))
	if id.IsUnspecified() {
		return id.Next() // 0.0.0.0 is not an id
	}
	return id
}

func bgpConfiguration(name string) api.Key {
	return api.Key{Kind: api.KindBGPConfiguration, Name: name}
}

func sortedNames(nodes map[string]node) []string { return slices.Sorted(maps.Keys(nodes)) }
