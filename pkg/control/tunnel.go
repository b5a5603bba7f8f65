package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/datastore"
	"calico-xdp/pkg/ipam"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

// tunnel is one of the addresses that a node has inside the pools, for the
// tunnel device that Calico's nodes have and ours do without. Calico's nodes do
// not reach a node that has none.
type tunnel struct {
	kind  ipam.Tunnel
	is6   bool
	uses  func(*v3.IPPoolSpec) bool
	field func(*api.Node) *string
	mac   func(*api.Node) *string // VXLAN's
}

func tunnels() []tunnel {
	ipip := func(p *v3.IPPoolSpec) bool { return p.IPIPMode != "" && p.IPIPMode != v3.IPIPModeNever }
	vxlan := func(p *v3.IPPoolSpec) bool { return p.VXLANMode != "" && p.VXLANMode != v3.VXLANModeNever }
	return []tunnel{
		{kind: ipam.IPIP, uses: ipip, field: func(n *api.Node) *string {
			if n.Spec.BGP == nil {
				n.Spec.BGP = new(api.NodeBGPSpec)
			}
			return &n.Spec.BGP.IPv4IPIPTunnelAddr
		}},
		{kind: ipam.VXLAN, uses: vxlan,
			field: func(n *api.Node) *string { return &n.Spec.IPv4VXLANTunnelAddr },
			mac:   func(n *api.Node) *string { return &n.Spec.VXLANTunnelMACAddr }},
		{kind: ipam.VXLANv6, is6: true, uses: vxlan,
			field: func(n *api.Node) *string { return &n.Spec.IPv6VXLANTunnelAddr },
			mac:   func(n *api.Node) *string { return &n.Spec.VXLANTunnelMACAddrV6 }},
	}
}

// Tunnels keeps the node's tunnel addresses as the pools ask for.
type Tunnels struct {
	Node      string
	Store     Store
	Allocator *ipam.Allocator
}

// Ensure assigns the addresses that are missing, gives back those that no pool
// asks for any more, and writes both into the Node resource.
func (t *Tunnels) Ensure(ctx context.Context) error {
	pools, err := t.Store.List(ctx, api.KindIPPool, "")
	if err != nil {
		return err
	}
	node, err := t.Store.Get(ctx, api.Key{Kind: api.KindNode, Name: t.Node})
	if err != nil {
		return err
	}
	var errs []error
	for _, kind := range tunnels() {
		var names []string
		for _, r := range pools {
			p, ok := r.(*api.IPPool)
			if !ok || p.Spec.Disabled || !kind.uses(&p.Spec) {
				continue
			}
			if s, err := api.ParseSelector(p.Spec.NodeSelector); err != nil || !s.Matches(node.GetLabels()) {
				continue
			}
			if cidr, err := netip.ParsePrefix(p.Spec.CIDR); err == nil && cidr.Addr().Is6() == kind.is6 {
				names = append(names, p.Name)
			}
		}
		address, err := t.address(ctx, kind.kind, names)
		if err == nil {
			err = t.write(ctx, kind, address)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// address returns the tunnel's address; none where no pool is for this node.
func (t *Tunnels) address(ctx context.Context, kind ipam.Tunnel, pools []string) (netip.Addr, error) {
	if len(pools) > 0 {
		a, err := t.Allocator.EnsureTunnelAddress(ctx, t.Node, kind, pools)
		if !errors.Is(err, ipam.ErrNoPool) {
			return a, err
		}
	}
	return netip.Addr{}, t.Allocator.ReleaseTunnelAddress(ctx, t.Node, kind)
}

// write puts the address into the Node resource; the zero address removes it.
func (t *Tunnels) write(ctx context.Context, kind tunnel, a netip.Addr) error {
	text, mac := "", ""
	if a.IsValid() {
		text, mac = a.String(), desired.VXLANMAC(t.Node, kind.is6).String()
	}
	for {
		r, err := t.Store.Get(ctx, api.Key{Kind: api.KindNode, Name: t.Node})
		if err != nil {
			return err
		}
		node, ok := r.DeepCopyObject().(*api.Node)
		if !ok {
			return fmt.Errorf("%s is not a node", api.KeyOf(r))
		}
		same := *kind.field(node) == text
		*kind.field(node) = text
		// A MAC address that was given by hand stays as long as there is a tunnel.
		if kind.mac != nil && (text == "" || *kind.mac(node) == "") {
			same = same && *kind.mac(node) == mac
			*kind.mac(node) = mac
		}
		if same {
			return nil
		}
		if _, err = t.Store.Update(ctx, node); !errors.Is(err, datastore.ErrConflict) {
			return err
		}
	}
}
