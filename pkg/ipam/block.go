package ipam

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"calico-xdp/pkg/api"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// hostAffinity is how a block names the node that owns it.
func hostAffinity(node string) string { return "host:" + node }

// newBlock returns an empty block of this node. The sequence number starts at
// the time so that a block deleted and made again does not repeat one.
func newBlock(cidr netip.Prefix, node string, now time.Time) *api.IPAMBlock {
	size := sizeOf(cidr)
	claimed := metav1.NewTime(now.UTC().Truncate(time.Second))
	b := &api.IPAMBlock{
		CIDR:                        cidr,
		Affinity:                    new(hostAffinity(node)),
		AffinityClaimTime:           &claimed,
		Allocations:                 make([]*int, size),
		Unallocated:                 make([]int, size),
		Attributes:                  []api.AllocationAttribute{},
		SequenceNumber:              uint64(now.UnixNano()),
		SequenceNumberForAllocation: map[string]uint64{},
	}
	b.Name = api.BlockName(cidr)
	for i := range b.Unallocated {
		b.Unallocated[i] = i
	}
	return b
}

// sizeOf returns how many addresses a block has.
func sizeOf(cidr netip.Prefix) int {
	if bits := cidr.Addr().BitLen() - cidr.Bits(); bits <= maxBlockBits {
		return 1 << bits
	}
	return 0
}

// maxBlockBits is the size of the largest block, as a power of two. Calico's largest
// has 12.
const maxBlockBits = 20

// ownedBy tells whether the node has the block's affinity.
func ownedBy(b *api.IPAMBlock, node string) bool {
	return b.Affinity != nil && *b.Affinity == hostAffinity(node)
}

// isEmpty tells whether no address of the block is in use.
func isEmpty(b *api.IPAMBlock) bool {
	return !slices.ContainsFunc(b.Allocations, func(i *int) bool { return i != nil })
}

// take assigns up to n free addresses, those longest free first, passing over
// the reserved ones. It returns their ordinals.
func take(b *api.IPAMBlock, n int, who api.AllocationAttribute, reserved func(netip.Addr) bool) []int {
	var got, left []int
	for _, ordinal := range b.Unallocated {
		if len(got) < n && (reserved == nil || !reserved(addressAt(b.CIDR, ordinal))) {
			got = append(got, ordinal)
		} else {
			left = append(left, ordinal)
		}
	}
	if len(got) == 0 {
		return nil
	}
	b.Unallocated = append([]int{}, left...) // never nil: JSON has [] for a full block
	assign(b, got, who)
	return got
}

// takeAt assigns one given address. It returns false if it is in use.
func takeAt(b *api.IPAMBlock, ordinal int, who api.AllocationAttribute) bool {
	i := slices.Index(b.Unallocated, ordinal)
	if i < 0 || b.Allocations[ordinal] != nil {
		return false
	}
	b.Unallocated = slices.Delete(b.Unallocated, i, i+1)
	assign(b, []int{ordinal}, who)
	return true
}

// assign writes who into ordinals that are no longer in Unallocated.
func assign(b *api.IPAMBlock, ordinals []int, who api.AllocationAttribute) {
	index := slices.IndexFunc(b.Attributes, func(a api.AllocationAttribute) bool { return sameAttribute(a, who) })
	if index < 0 {
		index = len(b.Attributes)
		b.Attributes = append(b.Attributes, who)
	}
	if b.SequenceNumberForAllocation == nil {
		b.SequenceNumberForAllocation = map[string]uint64{}
	}
	for _, ordinal := range ordinals {
		b.Allocations[ordinal] = new(index)
		b.SequenceNumberForAllocation[strconv.Itoa(ordinal)] = b.SequenceNumber
	}
}

func sameAttribute(a, b api.AllocationAttribute) bool {
	return (a.HandleID == nil) == (b.HandleID == nil) && handleID(a) == handleID(b) && maps.Equal(a.Secondary, b.Secondary)
}

// handleID returns the handle of an allocation, "" if it has none.
func handleID(a api.AllocationAttribute) string {
	if a.HandleID == nil {
		return ""
	}
	return *a.HandleID
}

// An allocation is one address in use.
type allocation struct {
	ordinal   int
	address   netip.Addr
	sequence  uint64 // of the block when the address was assigned
	attribute api.AllocationAttribute
}

// allocations returns the addresses in use, in their order.
func allocations(b *api.IPAMBlock) []allocation {
	var out []allocation
	for ordinal, index := range b.Allocations {
		if index == nil {
			continue
		}
		al := allocation{ordinal: ordinal, address: addressAt(b.CIDR, ordinal), sequence: b.SequenceNumberForAllocation[strconv.Itoa(ordinal)]}
		if *index >= 0 && *index < len(b.Attributes) {
			al.attribute = b.Attributes[*index]
		}
		out = append(out, al)
	}
	return out
}

// countOf returns how many addresses of the block the handle has.
func countOf(b *api.IPAMBlock, handle string) int {
	n := 0
	for _, al := range allocations(b) {
		if al.attribute.HandleID != nil && *al.attribute.HandleID == handle {
			n++
		}
	}
	return n
}

// release frees the addresses that match, and drops the attributes that nobody
// uses any more. What is freed goes to the end of Unallocated: an address rests
// as long as possible before it is used again.
func release(b *api.IPAMBlock, match func(allocation) bool) []netip.Addr {
	var freed []netip.Addr
	for _, al := range allocations(b) {
		if !match(al) {
			continue
		}
		b.Allocations[al.ordinal] = nil
		b.Unallocated = append(b.Unallocated, al.ordinal)
		delete(b.SequenceNumberForAllocation, strconv.Itoa(al.ordinal))
		freed = append(freed, al.address)
	}
	if len(freed) > 0 {
		dropUnused(b)
	}
	return freed
}

// dropUnused removes the attributes that no address refers to and renumbers the
// others.
func dropUnused(b *api.IPAMBlock) {
	renumbered := make(map[int]int)
	kept := []api.AllocationAttribute{}
	used := make(map[int]bool)
	for _, index := range b.Allocations {
		if index != nil {
			used[*index] = true
		}
	}
	for i, a := range b.Attributes {
		if used[i] {
			renumbered[i] = len(kept)
			kept = append(kept, a)
		}
	}
	b.Attributes = kept
	for ordinal, index := range b.Allocations {
		if index == nil {
			continue
		}
		if to, ok := renumbered[*index]; ok {
			b.Allocations[ordinal] = new(to)
		}
	}
}

// blockFaults names what in a block contradicts itself.
func blockFaults(b *api.IPAMBlock) []string {
	var faults []string
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	if size := sizeOf(b.CIDR); len(b.Allocations) != size {
		fault("%d allocations in a block of %d", len(b.Allocations), size)
	}
	free := make(map[int]bool)
	for _, ordinal := range b.Unallocated {
		switch {
		case ordinal < 0 || ordinal >= len(b.Allocations):
			fault("free ordinal %d out of range", ordinal)
		case free[ordinal]:
			fault("%s is free twice", addressAt(b.CIDR, ordinal))
		case b.Allocations[ordinal] != nil:
			fault("%s is free and in use", addressAt(b.CIDR, ordinal))
		}
		free[ordinal] = true
	}
	used := make(map[int]bool)
	for ordinal, index := range b.Allocations {
		switch {
		case index == nil && !free[ordinal]:
			fault("%s is neither free nor in use", addressAt(b.CIDR, ordinal))
		case index != nil && (*index < 0 || *index >= len(b.Attributes)):
			fault("%s has attribute %d of %d", addressAt(b.CIDR, ordinal), *index, len(b.Attributes))
		case index != nil:
			used[*index] = true
		}
	}
	for i := range b.Attributes {
		if !used[i] {
			fault("attribute %d is not used", i)
		}
	}
	return faults
}
