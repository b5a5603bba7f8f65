package ipam

import (
	"context"
	"fmt"
	"net/netip"
)

// Tunnel is a kind of tunnel whose device, in Calico's eyes, has an address.
type Tunnel uint8

const (
	IPIP Tunnel = iota
	VXLAN
	VXLANv6
)

// names returns the prefix of the tunnel's handles and its attribute type.
func (t Tunnel) names() (handle, kind string) {
	switch t {
	case VXLAN:
		return "vxlan-tunnel-addr-", "vxlanTunnelAddress"
	case VXLANv6:
		return "vxlan-v6-tunnel-addr-", "vxlanV6TunnelAddress"
	default:
		return "ipip-tunnel-addr-", "ipipTunnelAddress"
	}
}

// TunnelHandle returns the handle of a node's tunnel address.
func TunnelHandle(node string, t Tunnel) string {
	prefix, _ := t.names()
	return prefix + node
}

// EnsureTunnelAddress returns the node's tunnel address out of one of the pools
// (by name or CIDR), assigning it at the first call. An address that is in none
// of them is given back and replaced.
func (a *Allocator) EnsureTunnelAddress(ctx context.Context, node string, t Tunnel, pools []string) (netip.Addr, error) {
	handle := TunnelHandle(node, t)
	_, kind := t.names()
	all, err := a.pools(ctx)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("tunnel address: %w", err)
	}
	labels, err := a.nodeLabels(ctx, node)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("tunnel address: %w", err)
	}
	wanted, err := eligible(all, t != VXLANv6, UseTunnel, labels, pools)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("tunnel address: %w", err)
	}
	have, err := a.AddressesOf(ctx, handle)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("tunnel address: %w", err)
	}
	var keep netip.Addr
	for _, as := range have {
		if _, ok := containing(wanted, as.Block); ok && as.Attributes[AttributeType] == kind && !keep.IsValid() {
			keep = as.Address
		}
	}
	if len(have) > 1 || len(have) == 1 && !keep.IsValid() {
		if _, err := a.ReleaseHandle(ctx, handle, func(as Assignment) bool { return as.Address != keep }); err != nil {
			return netip.Addr{}, fmt.Errorf("tunnel address: %w", err)
		}
	}
	if keep.IsValid() {
		return keep, nil
	}
	r := Request{
		Node: node, Handle: handle, Use: UseTunnel,
		Attributes: map[string]string{AttributeNode: node, AttributeType: kind},
	}
	if t == VXLANv6 {
		r.IPv6, r.Pools6 = 1, pools
	} else {
		r.IPv4, r.Pools4 = 1, pools
	}
	got, err := a.AssignAuto(ctx, r)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("tunnel address: %w", err)
	}
	return append(got.IPv4, got.IPv6...)[0], nil
}

// ReleaseTunnelAddress gives the node's tunnel address back, if it has one.
func (a *Allocator) ReleaseTunnelAddress(ctx context.Context, node string, t Tunnel) error {
	_, err := a.ReleaseHandle(ctx, TunnelHandle(node, t), nil)
	return err
}
