package desired

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"calico-xdp/pkg/api"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

// addPeers finds this node's sessions. One address has one session: peers that are
// for all nodes win over those for some, written ones over what follows from one
// written for the other end, and all of them over the mesh. The first two are
// Calico's rules too.
func (r *bgpReader) addPeers() {
	for _, global := range []bool{true, false} {
		for key, p := range byKey[*api.BGPPeer](r.in.Resources, api.KindBGPPeer) {
			if (p.Spec.Node == "" && p.Spec.NodeSelector == "") == global {
				r.fault(key, r.addConfigured(key, p))
			}
		}
	}
	for key, p := range byKey[*api.BGPPeer](r.in.Resources, api.KindBGPPeer) {
		if m := p.Spec.ReversePeering; m == nil || *m != v3.ReversePeeringManual {
			r.addReverse(key, p) // what is wrong with it has been said
		}
	}
	r.addMesh()
}

func (r *bgpReader) fault(key api.Key, err error) {
	if err != nil {
		r.problem(key, err)
	}
}

// addMesh adds the nodes that are no route reflectors, on nodes that are none.
// Route reflectors are reached by the peers written for them.
func (r *bgpReader) addMesh() {
	if r.State.BGP.ClusterID != "" || r.spec.NodeToNodeMeshEnabled != nil && !*r.spec.NodeToNodeMeshEnabled {
		return
	}
	password, err := r.password(r.spec.NodeMeshPassword)
	if err != nil {
		r.problem(bgpConfiguration("default"), fmt.Errorf("nodeMeshPassword: %w; the mesh is not made without it", err))
		return
	}
	restart := 0
	if t := r.spec.NodeMeshMaxRestartTime; t != nil {
		restart = seconds(t.Seconds())
	}
	for _, name := range sortedNames(r.cluster.nodes) {
		if r.clusterID(name) != "" {
			continue
		}
		for _, is6 := range []bool{false, true} {
			p, ok := r.nodePeer(name, is6)
			if !ok || !p.Local.IsValid() {
				continue
			}
			p.Kind, p.Password, p.RestartTime = PeerMesh, password, restart
			r.add("mesh "+name+" "+family(is6), p)
		}
	}
}

// addConfigured adds what a BGPPeer says for this node.
func (r *bgpReader) addConfigured(key api.Key, p *api.BGPPeer) error {
	self, err := r.selects(p.Spec.Node, p.Spec.NodeSelector, r.cluster.self)
	if err != nil {
		return fmt.Errorf("nodeSelector: %w", err)
	}
	if !self {
		return nil
	}
	kind := PeerNode
	if p.Spec.Node == "" && p.Spec.NodeSelector == "" {
		kind = PeerGlobal
	}
	switch {
	case p.Spec.LocalWorkloadSelector != "":
		return errors.New("localWorkloadSelector: sessions with workloads are not made")
	case p.Spec.PeerSelector != "":
		selector, err := api.ParseSelector(p.Spec.PeerSelector)
		if err != nil {
			return fmt.Errorf("peerSelector: %w", err)
		}
		return r.addNodes(key, p, kind, func(n node) bool { return selector.Matches(n.labels) }, false, true)
	}
	ap, err := api.ParsePeerIP(p.Spec.PeerIP)
	if err != nil {
		return fmt.Errorf("peerIP: %w", err)
	}
	address := ap.Addr().Unmap()
	if !r.cluster.self.address(address.Is6()).IsValid() {
		return nil // a peer of all nodes is none of those that do not speak its family
	}
	peer := BGPPeer{Address: address, Port: int(ap.Port()), AS: uint32(p.Spec.ASNumber), Kind: kind}
	if peer.AS == 0 {
		peer.AS = r.State.BGP.AS
		if names := r.byAddress[address]; len(names) > 0 {
			peer.AS = r.asOf(r.cluster.nodes[names[0]])
		}
	}
	// What has a node's address may be another speaker of its host.
	nodes := r.nodesAt(address, peer.AS, peer.Port)
	peer.ClusterNode = len(nodes) > 0
	if peer.Port == 0 {
		peer.Port = defaultBGPPort
		if peer.ClusterNode {
			peer.Port = r.portOf(nodes[0])
		}
	}
	if hops := p.Spec.TTLSecurity; hops != nil {
		peer.Hops = int(*hops)
	}
	if n := p.Spec.NumAllowedLocalASNumbers; n != nil {
		peer.AllowLocalAS = int(*n)
	}
	if as := p.Spec.LocalASNumber; as != nil && uint32(*as) != r.State.BGP.AS {
		peer.LocalAS = uint32(*as)
	}
	if err := r.complete(&peer, p, ""); err != nil {
		return err
	}
	if by, err := netip.ParseAddr(p.Spec.ReachableBy); err == nil && r.add(key.Name, peer) {
		// So that a route learned from the peer never becomes the way to the peer.
		if _, there := r.Host.Routes[single(address)]; !there {
			r.Host.Routes[single(address)] = KernelRoute{Kind: KernelVia, Via: by}
		}
		return nil
	}
	r.add(key.Name, peer)
	return nil
}

// addReverse adds this node's end of the sessions that a BGPPeer makes other nodes
// have with it.
func (r *bgpReader) addReverse(key api.Key, p *api.BGPPeer) {
	var v4, v6 bool
	switch {
	case p.Spec.LocalWorkloadSelector != "":
		return
	case p.Spec.PeerSelector != "":
		selector, err := api.ParseSelector(p.Spec.PeerSelector)
		if err != nil || !selector.Matches(r.cluster.self.labels) {
			return
		}
		v4, v6 = true, true
	default:
		ap, err := api.ParsePeerIP(p.Spec.PeerIP)
		if err != nil {
			return
		}
		as := uint32(p.Spec.ASNumber)
		if as == 0 {
			as = r.State.BGP.AS
		}
		if !slices.Contains(r.nodesAt(ap.Addr().Unmap(), as, int(ap.Port())), r.cluster.self.name) {
			return
		}
		v4, v6 = ap.Addr().Unmap().Is4(), ap.Addr().Unmap().Is6()
	}
	others := func(n node) bool {
		ok, err := r.selects(p.Spec.Node, p.Spec.NodeSelector, n)
		return ok && err == nil
	}
	r.addNodes(key, p, PeerNode, others, !v4, v6)
}

// addNodes adds the sessions of p with the nodes that match. Which families there
// are depends on both ends.
func (r *bgpReader) addNodes(key api.Key, p *api.BGPPeer, kind string, match func(node) bool, only6, with6 bool) error {
	some := false
	for _, name := range sortedNames(r.cluster.nodes) {
		if !match(r.cluster.nodes[name]) {
			continue
		}
		some = true
		for _, is6 := range []bool{false, true} {
			peer, ok := r.nodePeer(name, is6)
			if !ok || is6 && !with6 || !is6 && only6 {
				continue
			}
			peer.Kind = kind
			if as := p.Spec.LocalASNumber; as != nil && p.Spec.PeerSelector == "" {
				peer.AS = uint32(*as) // as which the node speaks to this one
			}
			if hops := p.Spec.TTLSecurity; hops != nil {
				peer.Hops = int(*hops)
			}
			if err := r.complete(&peer, p, r.clusterID(name)); err != nil {
				return err
			}
			r.add(key.Name+" "+name+" "+family(is6), peer)
		}
	}
	r.State.BGP.Awaited = r.State.BGP.Awaited || !some
	return nil
}

// nodePeer is a session with another node.
func (r *bgpReader) nodePeer(name string, is6 bool) (BGPPeer, bool) {
	n := r.cluster.nodes[name]
	address := n.address(is6).Addr()
	if name == r.cluster.self.name || !address.IsValid() {
		return BGPPeer{}, false
	}
	return BGPPeer{
		Address: address, Port: r.portOf(name), AS: r.asOf(n),
		Local: r.cluster.self.address(is6).Addr(), ClusterNode: true,
	}, r.cluster.self.address(is6).IsValid()
}

// complete adds what a BGPPeer says of all of its sessions.
func (r *bgpReader) complete(peer *BGPPeer, p *api.BGPPeer, clusterID string) (err error) {
	if peer.Password, err = r.password(p.Spec.Password); err != nil {
		return fmt.Errorf("password: %w; the session is not made without it", err)
	}
	peer.Local = netip.Addr{}
	if p.Spec.SourceAddress != v3.SourceAddressNone {
		peer.Local = r.cluster.self.address(peer.Address.Is6()).Addr()
	}
	if t := p.Spec.MaxRestartTime; t != nil {
		peer.RestartTime = seconds(t.Seconds())
	}
	as := r.State.BGP.AS
	if peer.LocalAS != 0 {
		as = peer.LocalAS
	}
	switch m := p.Spec.NextHopMode; {
	case m != nil && string(*m) == string(v3.NextHopModeSelf):
		peer.NextHop = NextHopSelf
	case m != nil && string(*m) == string(v3.NextHopModeKeep), m == nil && p.Spec.KeepOriginalNextHop && peer.AS != as:
		peer.NextHop = NextHopKeep
	}
	// A reflector of another cluster is a client like any other node.
	own := r.State.BGP.ClusterID
	peer.Client = own != "" && peer.AS == as && clusterID != own
	for _, name := range p.Spec.Filters {
		if _, ok := r.in.Resources.Get(api.Key{Kind: api.KindBGPFilter, Name: name}).(*api.BGPFilter); ok {
			peer.Filters = append(peer.Filters, name)
		} else {
			r.problem(api.KeyOf(p), fmt.Errorf("filters: there is no BGPFilter %q; the session goes without it", name))
		}
	}
	return nil
}

// add takes up a session unless its address has one, or is this node's.
func (r *bgpReader) add(name string, p BGPPeer) bool {
	b := &r.State.BGP
	if p.Address == b.NextHop4 || p.Address == b.NextHop6 {
		return false
	}
	if _, taken := r.taken[p.Address]; taken {
		return false
	}
	// Between two nodes the one with the greater address, compared as text, dials:
	// Calico's rule, which its nodes rely on. It also spares two GoBGPs from refusing
	// each other in turns: either closes what reaches it in the five seconds after a
	// failure, which to the caller is one.
	local := b.NextHop4
	if p.Address.Is6() {
		local = b.NextHop6
	}
	p.Passive = p.ClusterNode && local.IsValid() && p.Address.String() > local.String()
	r.taken[p.Address] = name
	b.Peers[name] = p
	return true
}

// selects tells whether a BGPPeer's node and nodeSelector mean n.
func (r *bgpReader) selects(name, selector string, n node) (bool, error) {
	switch {
	case name != "":
		return name == n.name, nil
	case selector == "":
		return true, nil
	}
	parsed, err := api.ParseSelector(selector)
	if err != nil {
		return false, err
	}
	return parsed.Matches(n.labels), nil
}

// nodesAt returns the nodes that have an address, are in an AS and, unless port is
// 0, do not say that they listen on another one.
func (r *bgpReader) nodesAt(a netip.Addr, as uint32, port int) []string {
	return slices.DeleteFunc(slices.Clone(r.byAddress[a]), func(name string) bool {
		listens := r.configuredPort(name)
		return r.asOf(r.cluster.nodes[name]) != as || port != 0 && listens != 0 && listens != port
	})
}

// password returns what a BGPPassword refers to, empty without one.
func (r *bgpReader) password(p *v3.BGPPassword) (string, error) {
	if p == nil || p.SecretKeyRef == nil {
		return "", nil
	}
	k := SecretKey{Secret: p.SecretKeyRef.Name, Key: p.SecretKeyRef.Key}
	r.State.BGP.Secrets = append(r.State.BGP.Secrets, k.Secret)
	value, there := r.in.Secrets[k]
	if !there {
		value = r.in.Secrets[SecretKey{Secret: k.Variable()}]
	}
	switch {
	case value == "":
		return "", fmt.Errorf("no value for key %q of secret %q", k.Key, k.Secret)
	case len(value) > 80:
		return "", fmt.Errorf("key %q of secret %q: longer than the 80 bytes that TCP MD5 takes", k.Key, k.Secret)
	}
	return value, nil
}

// seconds rounds as Calico does. BGP has 12 bits for a restart time.
func seconds(d float64) int {
	return int(min(max(math.Round(d), 0), 1<<12-1))
}
