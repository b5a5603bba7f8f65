package ipam

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"
)

// Fault is one contradiction between IPAM's objects.
type Fault struct {
	Object api.Key
	Text   string
	// Leftover marks what a writer that died midway may leave: it costs nothing
	// and goes away when the handle is released or the node assigns again.
	Leftover bool

	// fix repairs it, by what the objects are when it runs; nil: only a person
	// can tell what is right.
	fix func(context.Context, *Allocator) error
}

// Repairable tells whether [Allocator.Repair] knows what to do.
func (f Fault) Repairable() bool { return f.fix != nil }

func (f Fault) String() string { return fmt.Sprintf("%s: %s", f.Object, f.Text) }

// Check compares blocks, handles and affinities with each other, as of one
// moment.
func (a *Allocator) Check(ctx context.Context) ([]Fault, error) {
	t, err := a.store.ListTogether(ctx, api.KindIPAMHandle, api.KindIPAMBlock, api.KindBlockAffinity)
	if err != nil {
		return nil, err
	}
	return check(t), nil
}

// Repair does what can be done about faults, and returns what it did. Each repair
// is safe beside whoever is assigning and releasing.
func (a *Allocator) Repair(ctx context.Context, faults []Fault) (done []Fault, err error) {
	var errs []error
	for _, f := range faults {
		if f.fix == nil {
			continue
		}
		if err := f.fix(ctx, a); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f, err))
			continue
		}
		done = append(done, f)
	}
	return done, errors.Join(errs...)
}

func check(t datastore.Together) []Fault {
	handles := of[*api.IPAMHandle](t, api.KindIPAMHandle)
	blocks := of[*api.IPAMBlock](t, api.KindIPAMBlock)
	affinities := of[*api.BlockAffinity](t, api.KindBlockAffinity)
	var faults []Fault
	type fix = func(context.Context, *Allocator) error
	fault := func(r api.Resource, leftover bool, fix fix, format string, args ...any) {
		faults = append(faults, Fault{api.KeyOf(r), fmt.Sprintf(format, args...), leftover, fix})
	}
	recount := func(handle string, cidr string) fix {
		return func(ctx context.Context, a *Allocator) error {
			block, err := netip.ParsePrefix(cidr)
			if err != nil {
				return err
			}
			return a.recount(ctx, handle, block)
		}
	}

	claims := make(map[string]bool)
	for _, aff := range affinities {
		claims[aff.Name] = true
	}
	counts := make(map[string]map[string]int) // handle, block
	byName := make(map[string]*api.IPAMBlock)
	slices.SortFunc(blocks, func(a, b *api.IPAMBlock) int { return a.CIDR.Compare(b.CIDR) })
	for i, b := range blocks {
		byName[b.Name] = b
		for _, text := range blockFaults(b) {
			var mend fix
			if len(b.Allocations) == sizeOf(b.CIDR) {
				mend = func(ctx context.Context, a *Allocator) error { return a.mend(ctx, b.CIDR) }
			}
			fault(b, false, mend, "%s", text)
		}
		if i > 0 && blocks[i-1].CIDR.Overlaps(b.CIDR) {
			fault(b, false, nil, "overlaps %s", blocks[i-1].CIDR)
		}
		if b.Affinity == nil && isEmpty(b) {
			fault(b, true, func(ctx context.Context, a *Allocator) error { return a.mend(ctx, b.CIDR) }, "nobody owns it and nobody uses it")
		}
		if node, ok := owner(b); ok && !claims[api.AffinityName(node, b.CIDR)] {
			fault(b, false, func(ctx context.Context, a *Allocator) error { return a.settle(ctx, node, b.CIDR) }, "%s has no affinity to it", node)
		}
		for _, al := range allocations(b) {
			if id := handleID(al.attribute); id != "" {
				if counts[id] == nil {
					counts[id] = make(map[string]int)
				}
				counts[id][b.CIDR.String()]++
			}
		}
	}

	for _, aff := range affinities {
		node, cidr, err := aff.Claim()
		if err != nil {
			fault(aff, false, nil, "%v", err)
			continue
		}
		settle := func(ctx context.Context, a *Allocator) error { return a.settle(ctx, node, cidr) }
		b := byName[api.BlockName(cidr)]
		if b == nil || !ownedBy(b, node) {
			fault(aff, aff.State != api.AffinityConfirmed, settle, "the block is not %s's", node)
		} else if aff.State != api.AffinityConfirmed {
			fault(aff, true, settle, "state %s", aff.State)
		}
	}

	for _, h := range handles {
		held := counts[h.Name]
		delete(counts, h.Name)
		if len(h.Block) == 0 {
			fault(h, true, func(ctx context.Context, a *Allocator) error { return a.dropHandle(ctx, h.Name, "") }, "counts nothing")
		}
		for _, cidr := range slices.Sorted(maps.Keys(h.Block)) {
			if n := h.Block[cidr]; n != held[cidr] {
				fault(h, n > held[cidr], recount(h.Name, cidr), "counts %d in %s, which has %d", n, cidr, held[cidr])
			}
			delete(held, cidr)
		}
		for _, cidr := range slices.Sorted(maps.Keys(held)) {
			fault(h, false, recount(h.Name, cidr), "counts nothing in %s, which has %d", cidr, held[cidr])
		}
	}
	for _, id := range slices.Sorted(maps.Keys(counts)) {
		h := &api.IPAMHandle{}
		h.Name = id
		in := slices.Sorted(maps.Keys(counts[id]))
		fault(h, false, func(ctx context.Context, a *Allocator) error {
			var errs []error
			for _, cidr := range in {
				errs = append(errs, recount(id, cidr)(ctx, a))
			}
			return errors.Join(errs...)
		}, "does not exist but has addresses in %v", in)
	}
	return faults
}

// owner returns the node that a block is affine to.
func owner(b *api.IPAMBlock) (string, bool) {
	if b.Affinity == nil {
		return "", false
	}
	const prefix = "host:"
	if len(*b.Affinity) > len(prefix) && (*b.Affinity)[:len(prefix)] == prefix {
		return (*b.Affinity)[len(prefix):], true
	}
	return "", false
}

// of returns the objects of a kind.
func of[R api.Resource](t datastore.Together, kind string) []R {
	out := make([]R, 0, len(t.ByKind[kind]))
	for _, r := range t.ByKind[kind] {
		if r, ok := r.(R); ok {
			out = append(out, r)
		}
	}
	return out
}
