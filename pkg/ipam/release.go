package ipam

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"calico-xdp/pkg/api"
)

// withdraw releases the addresses of a block that belong to the handle and that
// match (nil: none), and makes the handle's count what the block then holds. It
// returns the addresses. An empty handle stands for allocations without one.
//
// If version is given, addresses are released only while the handle has that
// resource version.
func (a *Allocator) withdraw(ctx context.Context, handle, version string, cidr netip.Prefix, match func(allocation) bool) ([]netip.Addr, error) {
	var released []netip.Addr
	err := retry(ctx, func() error {
		var h *api.IPAMHandle
		var err error
		if handle != "" {
			if h, err = a.handle(ctx, handle); err != nil {
				return err
			}
		}
		b, err := a.block(ctx, cidr)
		if err != nil {
			return err
		}
		counted, left := 0, 0
		if h != nil {
			counted = h.Block[cidr.String()]
		}
		if b != nil {
			sure := version == "" || h != nil && h.ResourceVersion == version
			freed := release(b, func(al allocation) bool {
				return match != nil && sure && handleID(al.attribute) == handle && match(al)
			})
			left = countOf(b, handle)
			// The block is written even if nothing is released from it but the
			// count is wrong: see the order of writes.
			if len(freed) > 0 || counted != left && h != nil {
				if err := a.writeBlock(ctx, b); err != nil {
					return err
				}
			}
			released = append(released, freed...)
		}
		if counted == left || h == nil {
			return nil
		}
		return a.setCount(ctx, h, cidr, left)
	})
	return released, err
}

// setCount swaps a handle that was read for one with this count. A handle that
// counts nothing is deleted.
func (a *Allocator) setCount(ctx context.Context, h *api.IPAMHandle, cidr netip.Prefix, n int) error {
	h = h.DeepCopyObject().(*api.IPAMHandle)
	if h.Block == nil {
		h.Block = map[string]int{}
	}
	if n > 0 {
		h.Block[cidr.String()] = n
	} else {
		delete(h.Block, cidr.String())
	}
	var err error
	if len(h.Block) == 0 {
		_, err = a.store.Delete(ctx, api.KeyOf(h), h.ResourceVersion)
	} else {
		_, err = a.store.Update(ctx, h)
	}
	return err
}

// Expect says whose an address must be for it to be released. The zero value
// accepts any.
type Expect struct {
	Handle   string
	Sequence uint64 // as in Assignment; 0: any
}

// ReleaseAddress releases one address. The error wraps ErrNotAssigned if the
// address is free, and ErrNotOwner if it is not whose it is expected to be.
func (a *Allocator) ReleaseAddress(ctx context.Context, addr netip.Addr, expect Expect) error {
	found, err := a.Lookup(ctx, addr)
	if err != nil {
		return fmt.Errorf("release %s: %w", addr, err)
	}
	if expect.Handle != "" && found.Handle != expect.Handle {
		return fmt.Errorf("release %s: %w: handle %q", addr, ErrNotOwner, found.Handle)
	}
	if expect.Sequence != 0 && found.Sequence != expect.Sequence {
		return fmt.Errorf("release %s: %w", addr, ErrNotOwner)
	}
	freed, err := a.withdraw(ctx, found.Handle, "", found.Block, func(al allocation) bool {
		return al.address == addr && al.sequence == found.Sequence
	})
	if err == nil && len(freed) == 0 {
		err = ErrNotAssigned // someone else released it
	}
	if err != nil {
		return fmt.Errorf("release %s: %w", addr, err)
	}
	return nil
}

// ReleaseHandle releases the addresses of a handle and returns them. If match is
// given, only those for which it is true are released. A handle that does not
// exist has none; that is no error.
func (a *Allocator) ReleaseHandle(ctx context.Context, handle string, match func(Assignment) bool) ([]netip.Addr, error) {
	h, err := a.handle(ctx, handle)
	if err != nil {
		return nil, fmt.Errorf("release handle %s: %w", handle, err)
	}
	if h == nil {
		return nil, nil
	}
	var released []netip.Addr
	var errs []error
	for _, text := range slices.Sorted(maps.Keys(h.Block)) {
		cidr, err := netip.ParsePrefix(text)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		freed, err := a.withdraw(ctx, handle, "", cidr, func(al allocation) bool {
			return match == nil || match(al.public(cidr))
		})
		released = append(released, freed...)
		if err != nil {
			errs = append(errs, fmt.Errorf("block %s: %w", cidr, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return released, fmt.Errorf("release handle %s: %w", handle, err)
	}
	return released, nil
}
