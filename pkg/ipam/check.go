package ipam

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"calico-xdp/pkg/api"
)

// Fault is one contradiction between IPAM's objects.
type Fault struct {
	Object api.Key
	Text   string
	// Leftover marks what a writer that died midway may leave: it costs nothing
	// and goes away when the handle is released or the node assigns again.
	Leftover bool
}

func (f Fault) String() string { return fmt.Sprintf("%s: %s", f.Object, f.Text) }

// Check compares blocks, handles and affinities with each other. Objects that
// change while it reads may look wrong; what is wrong stays so the next time.
func (a *Allocator) Check(ctx context.Context) ([]Fault, error) {
	handles, err := list[*api.IPAMHandle](ctx, a.store, api.KindIPAMHandle)
	if err != nil {
		return nil, err
	}
	blocks, err := list[*api.IPAMBlock](ctx, a.store, api.KindIPAMBlock)
	if err != nil {
		return nil, err
	}
	affinities, err := list[*api.BlockAffinity](ctx, a.store, api.KindBlockAffinity)
	if err != nil {
		return nil, err
	}
	return check(handles, blocks, affinities), nil
}

func check(handles []*api.IPAMHandle, blocks []*api.IPAMBlock, affinities []*api.BlockAffinity) []Fault {
	var faults []Fault
	fault := func(r api.Resource, leftover bool, format string, args ...any) {
		faults = append(faults, Fault{api.KeyOf(r), fmt.Sprintf(format, args...), leftover})
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
			fault(b, false, "%s", text)
		}
		if i > 0 && blocks[i-1].CIDR.Overlaps(b.CIDR) {
			fault(b, false, "overlaps %s", blocks[i-1].CIDR)
		}
		if b.Affinity == nil && isEmpty(b) {
			fault(b, true, "nobody owns it and nobody uses it")
		}
		if node, ok := owner(b); ok && !claims[api.AffinityName(node, b.CIDR)] {
			fault(b, false, "%s has no affinity to it", node)
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
			fault(aff, false, "%v", err)
			continue
		}
		b := byName[api.BlockName(cidr)]
		if b == nil || !ownedBy(b, node) {
			fault(aff, aff.State != api.AffinityConfirmed, "the block is not %s's", node)
		} else if aff.State != api.AffinityConfirmed {
			fault(aff, true, "state %s", aff.State)
		}
	}

	for _, h := range handles {
		held := counts[h.Name]
		delete(counts, h.Name)
		if len(h.Block) == 0 {
			fault(h, true, "counts nothing")
		}
		for _, cidr := range slices.Sorted(maps.Keys(h.Block)) {
			if n := h.Block[cidr]; n != held[cidr] {
				fault(h, n > held[cidr], "counts %d in %s, which has %d", n, cidr, held[cidr])
			}
			delete(held, cidr)
		}
		for _, cidr := range slices.Sorted(maps.Keys(held)) {
			fault(h, false, "counts nothing in %s, which has %d", cidr, held[cidr])
		}
	}
	for _, id := range slices.Sorted(maps.Keys(counts)) {
		h := &api.IPAMHandle{}
		h.Name = id
		fault(h, false, "does not exist but has addresses in %v", slices.Sorted(maps.Keys(counts[id])))
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
