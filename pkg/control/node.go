package control

import (
	"context"

	"calico-xdp/pkg/control/bgp"
	"calico-xdp/pkg/nodeapi"
)

// Node answers other programs on this host. It implements [nodeapi.Node].
type Node struct {
	*Published
	// Self is what does not change: name, version, …
	Self      nodeapi.Status
	Addresses func() []nodeapi.Address
	Sessions  func() ([]bgp.PeerStatus, error)
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
	out.Enabled, out.AS = n.bgp()
	peers, err := n.Sessions()
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
		})
	}
	return out, nil
}
