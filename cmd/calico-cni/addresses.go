package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"calico-xdp/pkg/ipam"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// delegated tells whether another plugin than ours hands out the addresses.
func (c *netConf) delegated() bool { return c.IPAM.Type != "" && c.IPAM.Type != "calico-ipam" }

// assign gets the attachment's addresses, IPv4 first.
func (s *session) assign(ctx context.Context, a *attachment, stdin []byte) ([]netip.Addr, error) {
	if s.conf.delegated() {
		return assignDelegated(ctx, s.conf.IPAM.Type, stdin)
	}
	// An ADD that died may have left some.
	if _, err := s.ipam.ReleaseHandle(ctx, a.handle, a.owns); err != nil {
		return nil, err
	}
	wanted, err := s.conf.requestedAddresses(a.args)
	if err != nil {
		return nil, err
	}
	if len(wanted) > 0 {
		for _, addr := range wanted {
			r := ipam.AddressRequest{Address: addr, Node: s.conf.Nodename, Handle: a.handle, Attributes: a.attributes()}
			if err := s.ipam.AssignAddress(ctx, r); err != nil {
				return nil, err
			}
		}
		return wanted, nil
	}
	r := ipam.Request{
		Node: s.conf.Nodename, Handle: a.handle, Attributes: a.attributes(), Use: ipam.UseWorkload,
		Pools4: s.conf.IPAM.IPv4Pools, Pools6: s.conf.IPAM.IPv6Pools,
	}
	if s.conf.IPAM.AssignIPv4.or(true) {
		r.IPv4 = 1
	}
	if s.conf.IPAM.AssignIPv6.or(false) {
		r.IPv6 = 1
	}
	if r.IPv4+r.IPv6 == 0 {
		return nil, fail(types.ErrInvalidNetworkConfig, "ipam: neither assign_ipv4 nor assign_ipv6, and no address is asked for")
	}
	got, err := s.ipam.AssignAuto(ctx, r)
	if err != nil {
		return nil, err
	}
	return append(got.IPv4, got.IPv6...), nil
}

// release gives the attachment's addresses back.
func (s *session) release(ctx context.Context, a *attachment, stdin []byte) error {
	if s.conf.delegated() {
		return invoke.DelegateDel(ctx, s.conf.IPAM.Type, stdin, nil)
	}
	_, err := s.ipam.ReleaseHandle(ctx, a.handle, a.owns)
	return err
}

func assignDelegated(ctx context.Context, plugin string, stdin []byte) ([]netip.Addr, error) {
	r, err := invoke.DelegateAdd(ctx, plugin, stdin, nil)
	if err != nil {
		return nil, err
	}
	result, err := types100.NewResultFromResult(r)
	if err != nil {
		return nil, fmt.Errorf("result of %s: %w", plugin, err)
	}
	var out []netip.Addr
	for _, ip := range result.IPs {
		if addr, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			out = append(out, addr.Unmap())
		}
	}
	if len(out) == 0 {
		return nil, errors.New(plugin + " gave no address")
	}
	return out, nil
}
