package ipam

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"
)

// recount makes the count of a handle in a block what the block holds, the handle
// itself included if it is missing.
func (a *Allocator) recount(ctx context.Context, handle string, cidr netip.Prefix) error {
	return retry(ctx, func() error {
		h, err := a.handle(ctx, handle)
		if err != nil {
			return err
		}
		b, err := a.block(ctx, cidr)
		if err != nil {
			return err
		}
		counted, held := 0, 0
		if h != nil {
			counted = h.Block[cidr.String()]
		}
		if b != nil {
			held = countOf(b, handle)
		}
		if counted == held {
			return nil
		}
		if b != nil && len(b.Allocations) == sizeOf(cidr) {
			// An assignment that has counted and not written the block yet now
			// loses, see the order of writes. A block of another size cannot be
			// written at all.
			if err := a.writeBlock(ctx, b); err != nil {
				return err
			}
		}
		if h != nil {
			return a.setCount(ctx, h, cidr, held)
		}
		h = &api.IPAMHandle{Block: map[string]int{cidr.String(): held}}
		h.Name = handle
		_, err = a.store.Create(ctx, h)
		return err
	})
}

// dropHandle deletes a handle that counts nothing, or nothing any more; if version
// is given, only in that version.
func (a *Allocator) dropHandle(ctx context.Context, id, version string) error {
	h, err := a.handle(ctx, id)
	if h == nil || err != nil || version != "" && h.ResourceVersion != version {
		return err
	}
	if len(h.Block) == 0 {
		_, err := a.store.Delete(ctx, api.KeyOf(h), h.ResourceVersion)
		if lost(err) {
			return nil // in use again
		}
		return err
	}
	var errs []error
	for text := range h.Block {
		cidr, err := netip.ParsePrefix(text)
		if err == nil {
			err = a.recount(ctx, id, cidr)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// settle finishes what a dead writer left of a claim or a release: the affinity is
// confirmed if the block is the node's, and goes otherwise.
func (a *Allocator) settle(ctx context.Context, node string, cidr netip.Prefix) error {
	return retry(ctx, func() error {
		b, err := a.block(ctx, cidr)
		if err != nil {
			return err
		}
		if b != nil && ownedBy(b, node) {
			if err := a.claim(ctx, node, cidr); !errors.Is(err, errClaimed) {
				return err
			}
			return nil
		}
		aff, err := get[*api.BlockAffinity](ctx, a.store, api.KindBlockAffinity, api.AffinityName(node, cidr))
		if aff == nil || err != nil {
			return err
		}
		// A claim under way makes its affinity anew when this one is gone.
		_, err = a.store.Delete(ctx, api.KeyOf(aff), aff.ResourceVersion)
		return err
	})
}

// mend writes a block whose parts agree: who has an address stays, all else
// follows from that. One that nobody owns or uses is deleted.
func (a *Allocator) mend(ctx context.Context, cidr netip.Prefix) error {
	return retry(ctx, func() error {
		b, err := a.block(ctx, cidr)
		if b == nil || err != nil {
			return err
		}
		if len(blockFaults(b)) == 0 && (b.Affinity != nil || !isEmpty(b)) {
			return nil
		}
		b = b.DeepCopyObject().(*api.IPAMBlock)
		unite(b)
		return a.writeBlock(ctx, b)
	})
}

// unite makes the parts of a block agree.
func unite(b *api.IPAMBlock) {
	free := make(map[int]bool)
	b.Unallocated = slices.DeleteFunc(b.Unallocated, func(ordinal int) bool {
		if ordinal < 0 || ordinal >= len(b.Allocations) || b.Allocations[ordinal] != nil || free[ordinal] {
			return true
		}
		free[ordinal] = true
		return false
	})
	unknown := -1 // the attribute of addresses whose own one is missing
	for ordinal, index := range b.Allocations {
		switch {
		case index == nil && !free[ordinal]:
			b.Unallocated = append(b.Unallocated, ordinal)
		case index != nil && (*index < 0 || *index >= len(b.Attributes)):
			if unknown < 0 {
				unknown = len(b.Attributes)
				b.Attributes = append(b.Attributes, api.AllocationAttribute{})
			}
			b.Allocations[ordinal] = new(unknown)
		}
	}
	dropUnused(b)
}

// reclaimed is a block without the addresses, as it is to be written.
func reclaimed(b *api.IPAMBlock, match func(allocation) bool) (*api.IPAMBlock, []allocation) {
	b = b.DeepCopyObject().(*api.IPAMBlock)
	var freed []allocation
	release(b, func(al allocation) bool {
		if match(al) {
			freed = append(freed, al)
			return true
		}
		return false
	})
	return b, freed
}

// overtaken tells whether err says that others have changed what a write relies on.
func overtaken(err error) bool { return lost(err) || errors.Is(err, datastore.ErrOvertaken) }
