package ipam

import (
	"context"
	"fmt"
	"maps"
	"math/big"
	"net/netip"
	"slices"
	"strings"

	"calico-xdp/pkg/api"
)

// Assignment is one address in use.
type Assignment struct {
	Address    netip.Addr
	Block      netip.Prefix
	Handle     string // "" if it has none
	Attributes map[string]string
	// Sequence tells this assignment from later ones of the same address.
	Sequence uint64
}

func (al allocation) public(block netip.Prefix) Assignment {
	return Assignment{al.address, block, handleID(al.attribute), al.attribute.Secondary, al.sequence}
}

// Lookup returns who has an address. The error wraps ErrNotAssigned if nobody
// has.
func (a *Allocator) Lookup(ctx context.Context, addr netip.Addr) (Assignment, error) {
	b, err := a.blockWith(ctx, addr)
	if err != nil {
		return Assignment{}, err
	}
	if b != nil {
		for _, al := range allocations(b) {
			if al.address == addr {
				return al.public(b.CIDR), nil
			}
		}
	}
	return Assignment{}, ErrNotAssigned
}

// blockWith returns the block that has this address, nil if there is none. It
// may be of a pool that is gone.
func (a *Allocator) blockWith(ctx context.Context, addr netip.Addr) (*api.IPAMBlock, error) {
	pools, err := a.pools(ctx)
	if err != nil {
		return nil, err
	}
	if p, ok := containing(pools, netip.PrefixFrom(addr, addr.BitLen())); ok {
		if b, err := a.block(ctx, p.blockOf(addr)); b != nil || err != nil {
			return b, err
		}
	}
	blocks, err := list[*api.IPAMBlock](ctx, a.store, api.KindIPAMBlock)
	if err != nil {
		return nil, err
	}
	for _, b := range blocks {
		if b.CIDR.Contains(addr) {
			return b, nil
		}
	}
	return nil, nil
}

// AddressesOf returns the addresses that a handle has, by block and in order.
func (a *Allocator) AddressesOf(ctx context.Context, handle string) ([]Assignment, error) {
	h, err := a.handle(ctx, handle)
	if err != nil || h == nil {
		return nil, err
	}
	var out []Assignment
	for _, text := range slices.Sorted(maps.Keys(h.Block)) {
		cidr, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("handle %s: %w", handle, err)
		}
		b, err := a.block(ctx, cidr)
		if err != nil {
			return nil, err
		}
		if b == nil {
			continue
		}
		for _, al := range allocations(b) {
			if handleID(al.attribute) == handle {
				out = append(out, al.public(cidr))
			}
		}
	}
	return out, nil
}

// Handles returns the ids of all handles that begin with prefix.
func (a *Allocator) Handles(ctx context.Context, prefix string) ([]string, error) {
	hs, err := list[*api.IPAMHandle](ctx, a.store, api.KindIPAMHandle)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, h := range hs {
		if strings.HasPrefix(h.Name, prefix) {
			out = append(out, h.Name)
		}
	}
	return out, nil
}

// Usage is how full a pool is. Blocks that no pool has any more are under a
// Usage without name.
type Usage struct {
	Pool   string
	CIDR   netip.Prefix
	Total  *big.Int // addresses; a v6 pool has more than an int holds
	InUse  int
	Blocks []BlockUsage
}

// Free returns how many addresses are not in use.
func (u Usage) Free() *big.Int { return new(big.Int).Sub(u.Total, big.NewInt(int64(u.InUse))) }

// BlockUsage is how full a block is, and who has its addresses.
type BlockUsage struct {
	CIDR     netip.Prefix
	Affinity string // the owner, "host:<node>"; "" if nobody owns it
	Total    int
	InUse    []Assignment
}

// Borrowed returns the addresses that other nodes than the owner use.
func (u BlockUsage) Borrowed() []Assignment {
	var out []Assignment
	for _, as := range u.InUse {
		if node := as.Attributes[AttributeNode]; node != "" && hostAffinity(node) != u.Affinity {
			out = append(out, as)
		}
	}
	return out
}

// Usage returns how full the pools and their blocks are: pools by name, as Calico's
// calicoctl lists them, blocks in the order of their addresses.
func (a *Allocator) Usage(ctx context.Context) ([]Usage, error) {
	pools, err := a.pools(ctx)
	if err != nil {
		return nil, err
	}
	blocks, err := list[*api.IPAMBlock](ctx, a.store, api.KindIPAMBlock)
	if err != nil {
		return nil, err
	}
	var out []Usage
	for _, p := range pools {
		out = append(out, Usage{Pool: p.name, CIDR: p.cidr, Total: new(big.Int).Lsh(big.NewInt(1), uint(p.cidr.Addr().BitLen()-p.cidr.Bits()))})
	}
	slices.SortFunc(out, func(a, b Usage) int { return strings.Compare(a.Pool, b.Pool) })
	homeless := Usage{Total: new(big.Int)}
	slices.SortFunc(blocks, func(a, b *api.IPAMBlock) int { return a.CIDR.Compare(b.CIDR) })
	for _, b := range blocks {
		u := BlockUsage{CIDR: b.CIDR, Total: len(b.Allocations)}
		if b.Affinity != nil {
			u.Affinity = *b.Affinity
		}
		for _, al := range allocations(b) {
			u.InUse = append(u.InUse, al.public(b.CIDR))
		}
		in := &homeless
		if i := slices.IndexFunc(out, func(p Usage) bool { return p.CIDR.Contains(b.CIDR.Addr()) }); i >= 0 {
			in = &out[i]
		} else {
			in.Total.Add(in.Total, big.NewInt(int64(u.Total)))
		}
		in.InUse += len(u.InUse)
		in.Blocks = append(in.Blocks, u)
	}
	if len(homeless.Blocks) > 0 {
		out = append(out, homeless)
	}
	return out, nil
}
