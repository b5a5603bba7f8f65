package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"calico-xdp/pkg/api"
)

// rollbackTime bounds undoing a request whose own context may be over.
const rollbackTime = 10 * time.Second

// grant is what a request got from one block. Address and sequence number
// together name an assignment for ever.
type grant struct {
	block    netip.Prefix
	ordinals []int
	sequence uint64
}

// swapIn assigns what pick takes out of the block, counting it in the handle
// first. What is returned stands even with an error.
func (a *Allocator) swapIn(ctx context.Context, cidr netip.Prefix, handle string, pick func(*api.IPAMBlock) ([]int, error)) (grant, error) {
	var g grant
	err := retry(ctx, func() error {
		g = grant{block: cidr}
		b, err := a.block(ctx, cidr)
		if err != nil || b == nil {
			return err
		}
		ordinals, err := pick(b)
		if err != nil || len(ordinals) == 0 {
			return err
		}
		sequence := b.SequenceNumber
		h, err := a.count(ctx, handle, cidr, len(ordinals))
		if err != nil {
			// It may be counted all the same.
			return errors.Join(err, a.undo(ctx, handle, "", grant{block: cidr}))
		}
		err = a.writeBlock(ctx, b)
		switch {
		case err == nil:
			g.ordinals, g.sequence = ordinals, sequence
			return nil
		case lost(err):
			if undone := a.uncount(ctx, h, cidr, len(ordinals)); undone != nil {
				return undone
			}
			return err
		}
		// Whether this write was done is not known. If it was, the addresses
		// are nobody's: take them back.
		return errors.Join(err, a.undo(ctx, handle, h.ResourceVersion, grant{cidr, ordinals, sequence}))
	})
	return g, err
}

// count adds n addresses of a block to a handle and returns it as written.
func (a *Allocator) count(ctx context.Context, id string, cidr netip.Prefix, n int) (*api.IPAMHandle, error) {
	var out *api.IPAMHandle
	err := retry(ctx, func() error {
		h, err := a.handle(ctx, id)
		if err != nil {
			return err
		}
		write := a.store.Update
		if h == nil {
			h, write = &api.IPAMHandle{}, a.store.Create
			h.Name = id
		}
		if h.Block == nil {
			h.Block = map[string]int{}
		}
		h.Block[cidr.String()] += n
		r, err := write(ctx, h)
		if err == nil {
			out = r.(*api.IPAMHandle)
		}
		return err
	})
	return out, err
}

// uncount takes back a count whose block was lost to another writer. If the
// handle was written since, only the block can say what the count should be.
func (a *Allocator) uncount(ctx context.Context, h *api.IPAMHandle, cidr netip.Prefix, n int) error {
	err := a.setCount(ctx, h, cidr, h.Block[cidr.String()]-n)
	if lost(err) {
		_, err = a.withdraw(ctx, h.Name, "", cidr, nil)
	}
	return err
}

// undo releases exactly what was granted, if it is still so. Where it is not
// sure that it was granted, the handle must be as the request wrote it: then
// nobody else can have got the same under this handle.
func (a *Allocator) undo(ctx context.Context, handle, version string, g grant) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTime)
	defer cancel()
	_, err := a.withdraw(ctx, handle, version, g.block, func(al allocation) bool {
		return al.sequence == g.sequence && slices.Contains(g.ordinals, al.ordinal)
	})
	if err != nil {
		return fmt.Errorf("take addresses of %s back: %w", g.block, err)
	}
	return nil
}
