package command

import (
	"context"
	"errors"
	"net/netip"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"
	"calico-xdp/pkg/ipam"
)

// cleanUp removes what must not outlive a resource that is about to be deleted.
// If it fails half-way the resource is still there, and deleting it again goes
// on with the rest.
func (s store) cleanUp(ctx context.Context, key api.Key) error {
	switch key.Kind {
	case api.KindNode:
		return s.cleanUpNode(ctx, key)
	case api.KindIPPool:
		return s.cleanUpPool(ctx, key)
	}
	return nil
}

// cleanUpPool takes the pool's blocks away from the nodes, after disabling it so
// that they claim no new ones.
func (s store) cleanUpPool(ctx context.Context, key api.Key) error {
	r, err := s.Get(ctx, key)
	if err != nil {
		return err
	}
	pool, ok := r.(*api.IPPool)
	if !ok {
		return nil
	}
	cidr, err := netip.ParsePrefix(pool.Spec.CIDR)
	if err != nil {
		return nil // a pool like this has no blocks
	}
	if !pool.Spec.Disabled {
		pool.Spec.Disabled = true
		if _, err := s.Update(ctx, pool); err != nil {
			return err
		}
	}
	return ipam.New(s.Client).ReleasePool(ctx, cidr)
}

// cleanUpNode removes the node's workloads with their addresses, its tunnel
// addresses, its blocks, its host endpoints, the BGP peers that it alone has and the
// configuration that is its own.
func (s store) cleanUpNode(ctx context.Context, key api.Key) error {
	if _, err := s.Get(ctx, key); err != nil {
		return err
	}
	allocator := ipam.New(s.Client)
	endpoints, err := s.List(ctx, api.KindWorkloadEndpoint, "")
	if err != nil {
		return err
	}
	for _, r := range endpoints {
		w, ok := r.(*api.WorkloadEndpoint)
		if !ok || w.Spec.Node != key.Name {
			continue
		}
		for _, address := range w.Addresses() {
			if err := releaseOf(ctx, allocator, address, key.Name); err != nil {
				return err
			}
		}
		if err := s.discard(ctx, api.KeyOf(w)); err != nil {
			return err
		}
	}
	for _, t := range []ipam.Tunnel{ipam.IPIP, ipam.VXLAN, ipam.VXLANv6} {
		if _, err := allocator.ReleaseHandle(ctx, ipam.TunnelHandle(key.Name, t), nil); err != nil {
			return err
		}
	}
	if err := allocator.ReleaseNode(ctx, key.Name); err != nil {
		return err
	}
	if err := s.discardOf(ctx, key.Name); err != nil {
		return err
	}
	for _, kind := range []string{api.KindFelixConfiguration, api.KindBGPConfiguration} {
		if err := s.discard(ctx, api.Key{Kind: kind, Name: "node." + key.Name}); err != nil {
			return err
		}
	}
	return nil
}

// discardOf deletes the host endpoints and BGP peers of one node.
func (s store) discardOf(ctx context.Context, node string) error {
	for _, kind := range []string{api.KindHostEndpoint, api.KindBGPPeer} {
		all, err := s.List(ctx, kind, "")
		if err != nil {
			return err
		}
		for _, r := range all {
			of := ""
			switch r := r.(type) {
			case *api.HostEndpoint:
				of = r.Spec.Node
			case *api.BGPPeer:
				of = r.Spec.Node
			}
			if of != node {
				continue
			}
			if err := s.discard(ctx, api.KeyOf(r)); err != nil {
				return err
			}
		}
	}
	return nil
}

// releaseOf releases an address that a node's workload has, unless it is
// somebody else's by now or was never assigned by us.
func releaseOf(ctx context.Context, allocator *ipam.Allocator, address netip.Addr, node string) error {
	found, err := allocator.Lookup(ctx, address)
	if err == nil && found.Attributes[ipam.AttributeNode] == node {
		err = allocator.ReleaseAddress(ctx, address, ipam.Expect{Handle: found.Handle, Sequence: found.Sequence})
	}
	if errors.Is(err, ipam.ErrNotAssigned) || errors.Is(err, ipam.ErrNotOwner) {
		return nil
	}
	return err
}

// discard deletes a resource if it exists.
func (s store) discard(ctx context.Context, key api.Key) error {
	_, err := s.Delete(ctx, key, "")
	if errors.Is(err, datastore.ErrNotFound) {
		return nil
	}
	return err
}
