package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"
)

// ErrUnclear: objects that cannot be read may say that an address is in use.
var ErrUnclear = errors.New("who uses which address is not known")

// Reclaim releases those of the addresses that are leaked, and returns them. They
// must be the same assignments as when the caller found them leaked: how long
// ago that was is up to the caller.
//
// An address that an endpoint has is never released. The block is written under
// the condition that no endpoint of the address's node was written since we saw
// that none has it; our CNI plugin writes an endpoint under the condition that
// the block still says that the address is its own. So one of the two loses.
func (a *Allocator) Reclaim(ctx context.Context, wanted []Assignment) ([]Assignment, error) {
	var freed []Assignment
	for range maxReclaims {
		t, err := a.store.ListTogether(ctx, auditedKinds()...)
		if err != nil {
			return freed, err
		}
		left := leakedOf(t, wanted)
		if len(left) == 0 {
			if key, blind := unreadUser(t); blind {
				return freed, fmt.Errorf("%w: %s cannot be read", ErrUnclear, key)
			}
			return freed, nil
		}
		for _, b := range of[*api.IPAMBlock](t, api.KindIPAMBlock) {
			some, err := a.reclaimFrom(ctx, b, t, left)
			freed = append(freed, some...)
			if err != nil && !overtaken(err) {
				return freed, fmt.Errorf("block %s: %w", b.CIDR, err)
			}
		}
	}
	return freed, nil // the rest changes under our hands: the next time
}

// maxReclaims is how often Reclaim looks again.
const maxReclaims = 5

// leakedOf returns those of the wanted assignments that are leaked.
func leakedOf(t datastore.Together, wanted []Assignment) map[netip.Addr]Allocation {
	out := make(map[netip.Addr]Allocation)
	bySelf := make(map[netip.Addr]Assignment, len(wanted))
	for _, w := range wanted {
		bySelf[w.Address] = w
	}
	for _, al := range audit(t).Of(Leaked) {
		if w, ok := bySelf[al.Address]; ok && sameAssignment(w, al.Assignment) {
			out[al.Address] = al
		}
	}
	return out
}

// sameAssignment tells whether both are the same act of assigning an address.
func sameAssignment(a, b Assignment) bool {
	return a.Address == b.Address && a.Handle == b.Handle && a.Sequence == b.Sequence
}

func (a *Allocator) reclaimFrom(ctx context.Context, b *api.IPAMBlock, t datastore.Together, leaked map[netip.Addr]Allocation) ([]Assignment, error) {
	next, freed := reclaimed(b, func(al allocation) bool {
		want, ok := leaked[al.address]
		return ok && sameAssignment(want.Assignment, al.public(b.CIDR))
	})
	if len(freed) == 0 {
		return nil, nil
	}
	if err := a.writeBlock(ctx, next, fences(t, freed)...); err != nil {
		return nil, err
	}
	var out []Assignment
	var errs []error
	handles := make(map[string]bool)
	for _, al := range freed {
		out = append(out, al.public(b.CIDR))
		handles[handleID(al.attribute)] = true
	}
	for handle := range handles {
		if handle != "" {
			errs = append(errs, a.recount(ctx, handle, b.CIDR))
		}
	}
	return out, errors.Join(errs...)
}

// fences returns what must not have happened since t: that an endpoint which may
// have one of the addresses was written, or the node whose tunnel has one.
func fences(t datastore.Together, freed []allocation) []datastore.Guard {
	type scope struct{ namespace, prefix string }
	var scopes []scope
	var nodes []string
	for _, al := range freed {
		attributes := al.attribute.Secondary
		node := attributes[AttributeNode]
		if isTunnel(al.public(netip.Prefix{})) {
			if node != "" && !slices.Contains(nodes, node) {
				nodes = append(nodes, node)
			}
			continue
		}
		s := scope{attributes[AttributeNamespace], ""}
		if s.namespace == "" {
			s.namespace = "default"
		}
		if node != "" {
			// How the names of all endpoints of the node begin.
			s.prefix = strings.ReplaceAll(node, "-", "--") + "-"
		}
		if !slices.Contains(scopes, s) {
			scopes = append(scopes, s)
		}
	}
	var out []datastore.Guard
	for _, s := range scopes {
		out = append(out, datastore.NoneSince(api.KindWorkloadEndpoint, s.namespace, s.prefix, t.Revision))
	}
	for _, node := range nodes {
		version := ""
		for _, n := range t.ByKind[api.KindNode] {
			if n.GetName() == node {
				version = n.GetResourceVersion()
			}
		}
		out = append(out, datastore.Unchanged(api.Key{Kind: api.KindNode, Name: node}, version))
	}
	return out
}

// AssignedTo returns a guard that holds as long as the blocks say what they say
// now, which is that the addresses are the handle's. An address that is not is an
// error, ErrNotOwner or ErrNotAssigned.
func (a *Allocator) AssignedTo(ctx context.Context, handle string, addrs []netip.Addr) ([]datastore.Guard, error) {
	var guards []datastore.Guard
	var blocks []*api.IPAMBlock
	for _, addr := range addrs {
		i := slices.IndexFunc(blocks, func(b *api.IPAMBlock) bool { return b.CIDR.Contains(addr) })
		if i < 0 {
			b, err := a.blockWith(ctx, addr)
			if err != nil {
				return nil, err
			}
			if b == nil {
				return nil, fmt.Errorf("%s: %w", addr, ErrNotAssigned)
			}
			i, blocks = len(blocks), append(blocks, b)
			guards = append(guards, datastore.Unchanged(api.KeyOf(b), b.ResourceVersion))
		}
		held := slices.IndexFunc(allocations(blocks[i]), func(al allocation) bool { return al.address == addr })
		switch {
		case held < 0:
			return nil, fmt.Errorf("%s: %w", addr, ErrNotAssigned)
		case handleID(allocations(blocks[i])[held].attribute) != handle:
			return nil, fmt.Errorf("%s: %w", addr, ErrNotOwner)
		}
	}
	return guards, nil
}

// Adopt assigns an address that is in use and that IPAM holds for free to its user,
// so that nobody else gets it. It returns false if that cannot be done or need not
// be any more.
func (a *Allocator) Adopt(ctx context.Context, u Use) (bool, error) {
	found, err := a.store.Get(ctx, u.User.Object)
	if errors.Is(err, datastore.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	attributes := describeUse(found, u.Address)
	if attributes == nil {
		return false, nil
	}
	err = a.assignAddress(ctx, AddressRequest{Address: u.Address, Node: u.User.Node, Handle: u.handle, Attributes: attributes}, false)
	if errors.Is(err, ErrTaken) || errors.Is(err, ErrNoPool) {
		return false, nil
	}
	return err == nil, err
}

// describeUse returns the attributes of an address that a resource has, nil if it
// has not.
func describeUse(r api.Resource, addr netip.Addr) map[string]string {
	switch r := r.(type) {
	case *api.WorkloadEndpoint:
		if !slices.Contains(r.Addresses(), addr) {
			return nil
		}
		out := map[string]string{AttributeNode: r.Spec.Node, AttributeNamespace: r.Namespace}
		if r.Spec.Pod != "" {
			out[AttributePod] = r.Spec.Pod
		}
		return out
	case *api.Node:
		for _, t := range tunnelsOf(r) {
			if t.address == addr.String() {
				return map[string]string{AttributeNode: r.Name, AttributeType: t.kind}
			}
		}
	}
	return nil
}

// ReleaseOrphan takes a block away from a node that is gone, or deletes an empty one
// of no pool.
func (a *Allocator) ReleaseOrphan(ctx context.Context, o Orphan) error {
	_, err := a.ReleaseAffinity(ctx, o.Node, o.Block, false)
	return err
}

// DropHandle deletes a handle that has no address, unless it was written since.
func (a *Allocator) DropHandle(ctx context.Context, h LostHandle) error {
	return a.dropHandle(ctx, h.ID, h.ResourceVersion)
}
