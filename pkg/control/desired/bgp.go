package desired

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strconv"

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

// addBGP fills in the speaker's part. Routes between nodes do not depend on it:
// they follow from the datastore.
func (s *State) addBGP(in Input, c *cluster) {
	known := c.self.ipv4.IsValid() || c.self.ipv6.IsValid()
	if in.Config.backend() != BackendBIRD || !known {
		return // without an address, nobody could reach us and the router id would change later
	}
	b := &s.BGP
	*b = BGP{
		Enabled: true, AS: defaultAS, ListenPort: defaultBGPPort,
		Peers: make(map[string]BGPPeer), Advertise: make(map[netip.Prefix]bool),
		NextHop4: c.self.ipv4.Addr(), NextHop6: c.self.ipv6.Addr(),
	}
	mesh := true
	clusterPort := defaultBGPPort
	if conf, ok := in.Resources.Get(bgpConfiguration("default")).(*api.BGPConfiguration); ok {
		if conf.Spec.ASNumber != nil {
			b.AS = uint32(*conf.Spec.ASNumber)
		}
		if conf.Spec.NodeToNodeMeshEnabled != nil {
			mesh = *conf.Spec.NodeToNodeMeshEnabled
		}
		if conf.Spec.ListenPort != 0 {
			clusterPort = int(conf.Spec.ListenPort)
		}
	}
	portOf := func(node string) int {
		if conf, ok := in.Resources.Get(bgpConfiguration("node." + node)).(*api.BGPConfiguration); ok && conf.Spec.ListenPort != 0 {
			return int(conf.Spec.ListenPort)
		}
		return clusterPort
	}
	clusterAS := b.AS
	if c.self.as != 0 {
		b.AS = c.self.as
	}
	b.ListenPort = portOf(c.self.name)
	b.RouterID = s.routerID(in, c)

	// One session for one address: what is written for this node wins over what
	// is for all, and that over the mesh.
	taken := make(map[netip.Addr]bool)
	add := func(name string, p BGPPeer) {
		own := p.Address == c.self.ipv4.Addr() || p.Address == c.self.ipv6.Addr()
		if own || taken[p.Address] {
			return
		}
		taken[p.Address] = true
		b.Peers[name] = p
	}
	addNode := func(prefix, kind string, n node) {
		for _, is6 := range []bool{false, true} {
			address, local := n.address(is6).Addr(), c.self.address(is6).Addr()
			if !address.IsValid() || !local.IsValid() {
				continue
			}
			as := n.as
			if as == 0 {
				as = clusterAS
			}
			add(prefix+" "+n.name+" "+family(is6), BGPPeer{Address: address, Port: portOf(n.name), AS: as, Local: local, Kind: kind})
		}
	}
	for _, specific := range []bool{true, false} {
		for key, p := range byKey[*api.BGPPeer](in.Resources, api.KindBGPPeer) {
			if (p.Spec.Node != "" || p.Spec.NodeSelector != "") != specific {
				continue
			}
			if err := s.addConfiguredPeer(key, p, c, add, addNode); err != nil {
				s.problem(key, err)
			}
		}
	}
	if mesh && !c.self.routeReflector {
		for _, name := range sortedNames(c.nodes) {
			// Route reflectors are reached by the peers written for them.
			if n := c.nodes[name]; name != c.self.name && !n.routeReflector {
				addNode("mesh", PeerMesh, n)
			}
		}
	}

	for prefix, o := range c.owners {
		if p, ok := c.poolOf(prefix.Addr()); ok && p.export && o.node == c.self.name {
			b.Advertise[prefix] = true
		}
	}
}

func (s *State) addConfiguredPeer(key api.Key, p *api.BGPPeer, c *cluster, add func(string, BGPPeer), addNode func(string, string, node)) error {
	kind := PeerGlobal
	switch {
	case p.Spec.Node != "":
		if p.Spec.Node != c.self.name {
			return nil
		}
		kind = PeerNode
	case p.Spec.NodeSelector != "":
		sel, err := api.ParseSelector(p.Spec.NodeSelector)
		if err != nil {
			return fmt.Errorf("nodeSelector: %w", err)
		}
		if !sel.Matches(c.self.labels) {
			return nil
		}
		kind = PeerNode
	}
	if p.Spec.Password != nil {
		return fmt.Errorf("password: secretKeyRef needs Kubernetes; the session is not made without it")
	}
	if p.Spec.PeerSelector != "" {
		sel, err := api.ParseSelector(p.Spec.PeerSelector)
		if err != nil {
			return fmt.Errorf("peerSelector: %w", err)
		}
		for _, name := range sortedNames(c.nodes) {
			if n := c.nodes[name]; name != c.self.name && sel.Matches(n.labels) {
				addNode(key.Name, kind, n)
			}
		}
		return nil
	}
	address, port, err := parsePeerIP(p.Spec.PeerIP)
	if err != nil {
		return fmt.Errorf("peerIP: %w", err)
	}
	peer := BGPPeer{Address: address, Port: port, AS: uint32(p.Spec.ASNumber), Kind: kind}
	if p.Spec.SourceAddress != v3.SourceAddressNone {
		peer.Local = c.self.address(address.Is6()).Addr()
	}
	if peer.AS == 0 { // a node's address may stand for the node
		for _, n := range c.nodes {
			if n.ipv4.Addr() == address || n.ipv6.Addr() == address {
				peer.AS = n.as
			}
		}
		if peer.AS == 0 {
			peer.AS = s.BGP.AS
		}
	}
	add(key.Name, peer)
	return nil
}

// parsePeerIP takes "10.0.0.1", "10.0.0.1:1790", "fd00::1" or "[fd00::1]:1790".
func parsePeerIP(text string) (netip.Addr, int, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return a, defaultBGPPort, nil
	}
	ap, err := netip.ParseAddrPort(text)
	if err != nil {
		return netip.Addr{}, 0, fmt.Errorf("%s is not an address, alone or with a port", strconv.Quote(text))
	}
	return ap.Addr(), int(ap.Port()), nil
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
	h := fnv.New32a()
	h.Write([]byte(c.self.name))
	var raw [4]byte
	binary.BigEndian.PutUint32(raw[:], max(h.Sum32(), 1)) // 0.0.0.0 is not an id
	return netip.AddrFrom4(raw)
}

func bgpConfiguration(name string) api.Key {
	return api.Key{Kind: api.KindBGPConfiguration, Name: name}
}

func sortedNames(nodes map[string]node) []string { return slices.Sorted(maps.Keys(nodes)) }
