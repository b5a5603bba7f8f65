package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"
)

// errClaimed says that the block became another node's.
var errClaimed = errors.New("block belongs to another node")

// affinity is a node's claim of a block.
type affinity struct {
	node  string
	block netip.Prefix
	state string
}

// affinities returns all claims, or those of one node.
func (a *Allocator) affinities(ctx context.Context, node string) ([]affinity, error) {
	var all []*api.BlockAffinity
	var err error
	if node == "" {
		all, err = list[*api.BlockAffinity](ctx, a.store, api.KindBlockAffinity)
	} else {
		all, err = a.store.ListAffinities(ctx, node)
	}
	if err != nil {
		return nil, err
	}
	var out []affinity
	for _, r := range all {
		owner, block, err := r.Claim()
		if err != nil || r.Deleted {
			continue // not ours to judge
		}
		out = append(out, affinity{owner, block, r.State})
	}
	return out, nil
}

// claim makes the block the node's, or settles a claim that was left half done.
// It returns errClaimed, and leaves no affinity behind, if the block exists and
// is not the node's.
func (a *Allocator) claim(ctx context.Context, node string, cidr netip.Prefix) error {
	return retry(ctx, func() error {
		// Writing "pending" anew makes a release of this affinity that is under
		// way lose its next write.
		aff, err := a.setAffinity(ctx, node, cidr, api.AffinityPending)
		if err != nil {
			return err
		}
		b, err := a.block(ctx, cidr)
		if err != nil {
			return err
		}
		if b == nil {
			_, err := a.store.Create(ctx, newBlock(cidr, node, a.now()))
			if errors.Is(err, datastore.ErrExists) {
				if b, err = a.block(ctx, cidr); b == nil && err == nil {
					err = datastore.ErrConflict // made and deleted again
				}
			}
			if err != nil {
				return err
			}
		}
		if b != nil && !ownedBy(b, node) {
			if _, err := a.store.Delete(ctx, api.KeyOf(aff), aff.ResourceVersion); err != nil {
				return err
			}
			return errClaimed
		}
		aff.State = api.AffinityConfirmed
		_, err = a.store.Update(ctx, aff)
		return err
	})
}

// setAffinity writes the state, making the affinity if there is none.
func (a *Allocator) setAffinity(ctx context.Context, node string, cidr netip.Prefix, state string) (*api.BlockAffinity, error) {
	aff, err := get[*api.BlockAffinity](ctx, a.store, api.KindBlockAffinity, api.AffinityName(node, cidr))
	if err != nil {
		return nil, err
	}
	write := a.store.Update
	if aff == nil {
		aff, write = &api.BlockAffinity{}, a.store.Create
		aff.Name = api.AffinityName(node, cidr)
	}
	aff.State = state
	r, err := write(ctx, aff)
	if err != nil {
		return nil, err
	}
	return r.(*api.BlockAffinity), nil
}

// ReleaseAffinity takes a block away from a node. If the block is empty it goes
// away; if not, it stays without owner until its last address is released,
// unless mustBeEmpty: then nothing changes and the answer is false.
func (a *Allocator) ReleaseAffinity(ctx context.Context, node string, cidr netip.Prefix, mustBeEmpty bool) (bool, error) {
	done := false
	err := retry(ctx, func() error {
		done = false
		aff, err := get[*api.BlockAffinity](ctx, a.store, api.KindBlockAffinity, api.AffinityName(node, cidr))
		if err != nil {
			return err
		}
		b, err := a.block(ctx, cidr)
		if err != nil {
			return err
		}
		ours := b != nil && ownedBy(b, node)
		if ours && mustBeEmpty && !isEmpty(b) {
			return nil
		}
		if aff != nil {
			aff.State = api.AffinityPendingDeletion
			r, err := a.store.Update(ctx, aff)
			if err != nil {
				return err
			}
			aff = r.(*api.BlockAffinity)
		}
		if ours {
			b.Affinity, b.AffinityClaimTime = nil, nil
			if err := a.writeBlock(ctx, b); err != nil {
				return err
			}
		}
		if aff != nil {
			if _, err := a.store.Delete(ctx, api.KeyOf(aff), aff.ResourceVersion); err != nil {
				return err
			}
		}
		done = true
		return nil
	})
	return done, err
}

// writeBlock swaps a block that was read and changed. One that nobody owns and
// nobody uses is deleted.
func (a *Allocator) writeBlock(ctx context.Context, b *api.IPAMBlock, guards ...datastore.Guard) error {
	if b.Affinity == nil && isEmpty(b) {
		_, err := a.store.DeleteIf(ctx, api.KeyOf(b), b.ResourceVersion, guards...)
		return err
	}
	b.SequenceNumber++
	_, err := a.store.UpdateIf(ctx, b, guards...)
	return err
}

// ReleaseNode takes all blocks away from a node that leaves the cluster. The
// addresses that are in use stay so until their handles are released.
func (a *Allocator) ReleaseNode(ctx context.Context, node string) error {
	affs, err := a.affinities(ctx, node)
	if err != nil {
		return err
	}
	var errs []error
	for _, aff := range affs {
		if _, err := a.ReleaseAffinity(ctx, node, aff.block, false); err != nil {
			errs = append(errs, fmt.Errorf("affinity of %s to %s: %w", node, aff.block, err))
		}
	}
	return errors.Join(errs...)
}

// ReleasePool takes all blocks of a pool away from their nodes, as is done
// before the pool is deleted: otherwise the nodes would keep using them.
func (a *Allocator) ReleasePool(ctx context.Context, cidr netip.Prefix) error {
	affs, err := a.affinities(ctx, "")
	if err != nil {
		return err
	}
	var errs []error
	for _, aff := range affs {
		if !cidr.Overlaps(aff.block) {
			continue
		}
		if _, err := a.ReleaseAffinity(ctx, aff.node, aff.block, false); err != nil {
			errs = append(errs, fmt.Errorf("affinity of %s to %s: %w", aff.node, aff.block, err))
		}
	}
	return errors.Join(errs...)
}
