package control

import (
	"context"

	"calico-xdp/pkg/control/bgp"
	"calico-xdp/pkg/nodeapi"
)

// Node answers other programs on this host. It implements [nodeapi.Node].
type Node struct {
	*Published
	*Answers
	// Self is what does not change: name, version, …
	Self      nodeapi.Status
	Addresses func() []nodeapi.Address
	Speaker   Speaker
}

// Speaker tells of the BGP sessions.
type Speaker interface {
	Status() ([]bgp.PeerStatus, error)
	Routes() (received, advertised []bgp.Route, err error)
}

// Status returns the node's state.
func (n *Node) Status() nodeapi.Status {
	s := n.Self
	s.Addresses = n.Addresses()
	n.Fill(&s)
	return s
}

// BGP returns the state of the BGP sessions.
func (n *Node) BGP(context.Context) (nodeapi.BGPStatus, error) {
	out := nodeapi.BGPStatus{Peers: []nodeapi.BGPPeerStatus{}}
	out.Enabled, out.AS, out.RouterID = n.bgp()
	peers, err := n.Speaker.Status()
	if err != nil {
		return out, err
	}
	for _, p := range peers {
		family := "v4"
		if p.Address.Is6() {
			family = "v6"
		}
		out.Peers = append(out.Peers, nodeapi.BGPPeerStatus{
			Address: p.Address.String(), Type: p.Kind, State: p.State, Since: p.Since, Info: p.Info, Family: family,
			Name: p.Name, AS: p.AS, Received: p.Received, Advertised: p.Advertised, Flaps: p.Flaps,
		})
	}
	return out, nil
}

// BGPRoutes returns the routes of the BGP sessions.
func (n *Node) BGPRoutes(context.Context) (nodeapi.BGPRoutes, error) {
	received, advertised, err := n.Speaker.Routes()
	return nodeapi.BGPRoutes{Received: bgpRoutes(received), Advertised: bgpRoutes(advertised)}, err
}

func bgpRoutes(list []bgp.Route) []nodeapi.BGPRoute {
	out := make([]nodeapi.BGPRoute, len(list))
	for i, r := range list {
		out[i] = nodeapi.BGPRoute{
			Prefix: r.Prefix.String(), NextHop: r.NextHop.String(), Peer: r.Peer.String(),
			ASPath: r.ASPath, Communities: r.Communities, Best: r.Best, Stale: r.Stale,
		}
	}
	return out
}
