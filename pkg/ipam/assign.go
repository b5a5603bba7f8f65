package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"
)

// defaultMaxBlocks is how many blocks of a family a node may own unless the
// configuration says otherwise.
const defaultMaxBlocks = 20

// Request asks for addresses of any value.
type Request struct {
	Node       string            // who uses them: its blocks come first
	Handle     string            // by which they are released
	Attributes map[string]string // kept with the addresses, see AttributeNode
	IPv4, IPv6 int               // how many

	// Pools to take from, by name or CIDR. Empty: those that select the node.
	Pools4, Pools6 []string
	Use            string // UseWorkload (also if empty) or UseTunnel
}

// Result holds the addresses that a request got: exactly as many as it asked for.
type Result struct {
	IPv4, IPv6 []netip.Addr
}

// AssignAuto assigns addresses: from the node's own blocks, then from a block
// that it newly claims, then, unless strict affinity forbids it, from other
// blocks. It is all or nothing; an error wraps ErrNoPool or ErrExhausted where
// that is the reason.
func (a *Allocator) AssignAuto(ctx context.Context, r Request) (Result, error) {
	var out Result
	if r.Node == "" || r.Handle == "" {
		return out, errors.New("assign addresses: node and handle are needed")
	}
	if r.Use == "" {
		r.Use = UseWorkload
	}
	s := &assignment{Allocator: a, Request: r}
	if err := s.load(ctx); err != nil {
		return out, fmt.Errorf("assign addresses to %s: %w", r.Handle, err)
	}
	var err error
	if r.IPv4 > 0 {
		out.IPv4, err = s.family(ctx, true, r.IPv4, r.Pools4)
	}
	if r.IPv6 > 0 && err == nil {
		out.IPv6, err = s.family(ctx, false, r.IPv6, r.Pools6)
	}
	if err != nil {
		return Result{}, fmt.Errorf("assign addresses to %s: %w", r.Handle, errors.Join(err, s.rollback(ctx)))
	}
	return out, nil
}

// assignment is one request under way.
type assignment struct {
	*Allocator
	Request

	config   *api.IPAMConfig
	pools    []pool
	reserved reservations
	labels   map[string]string
	owned    []affinity
	done     []grant
}

func (s *assignment) load(ctx context.Context) (err error) {
	if s.config, err = s.Config(ctx); err != nil {
		return err
	}
	if s.pools, err = s.Allocator.pools(ctx); err != nil {
		return err
	}
	if s.reserved, err = s.Allocator.reserved(ctx); err != nil {
		return err
	}
	if s.labels, err = s.nodeLabels(ctx, s.Node); err != nil {
		return err
	}
	s.owned, err = s.affinities(ctx, s.Node)
	return err
}

// family assigns n addresses of one family.
func (s *assignment) family(ctx context.Context, is4 bool, n int, requested []string) ([]netip.Addr, error) {
	pools, err := eligible(s.pools, is4, s.Use, s.labels, requested)
	if err != nil {
		return nil, err
	}
	var got []netip.Addr
	collect := func(cidr netip.Prefix, anyOwner bool) error {
		more, err := s.fromBlock(ctx, cidr, n-len(got), anyOwner)
		got = append(got, more...)
		return err
	}

	owned := 0
	for _, aff := range s.owned {
		if aff.block.Addr().Is4() != is4 {
			continue
		}
		owned++
		if _, ok := containing(pools, aff.block); !ok || len(got) == n {
			continue
		}
		if aff.state != api.AffinityConfirmed {
			if err := s.claim(ctx, s.Node, aff.block); errors.Is(err, errClaimed) {
				owned--
				continue
			} else if err != nil {
				return got, err
			}
		}
		if err := collect(aff.block, false); err != nil {
			return got, err
		}
	}

	limit := s.config.MaxBlocksPerHost
	if limit <= 0 {
		limit = defaultMaxBlocks
	}
	for len(got) < n && s.config.AutoAllocateBlocks {
		if owned >= limit {
			return got, fmt.Errorf("%w: the node has %d blocks and may have no more", ErrExhausted, owned)
		}
		cidr, ok, err := s.claimNew(ctx, pools)
		if err != nil {
			return got, err
		}
		if !ok {
			break
		}
		owned++
		if err := collect(cidr, false); err != nil {
			return got, err
		}
	}

	if len(got) < n && !s.config.StrictAffinity {
		blocks, err := s.borrowable(ctx, pools)
		if err != nil {
			return got, err
		}
		for _, cidr := range blocks {
			if len(got) == n {
				break
			}
			if err := collect(cidr, true); err != nil {
				return got, err
			}
		}
	}
	if len(got) < n {
		return got, fmt.Errorf("%w: got %d of %d from %s%s", ErrExhausted, len(got), n, names(pools), s.reason())
	}
	return got, nil
}

func (s *assignment) reason() string {
	switch {
	case s.config.StrictAffinity:
		return ", strict affinity"
	case !s.config.AutoAllocateBlocks:
		return ", new blocks are not allowed"
	}
	return ""
}

func names(pools []pool) []string {
	var out []string
	for _, p := range pools {
		out = append(out, p.name)
	}
	return out
}

// claimNew claims one more block in the first of the pools that has one free.
func (s *assignment) claimNew(ctx context.Context, pools []pool) (netip.Prefix, bool, error) {
	blocks, err := list[*api.IPAMBlock](ctx, s.store, api.KindIPAMBlock)
	if err != nil {
		return netip.Prefix{}, false, err
	}
	for _, p := range pools {
		t := takenBlocks(p, blocks, s.reserved)
		for {
			cidr, ok := t.free(s.Node)
			if !ok {
				break
			}
			err := s.claim(ctx, s.Node, cidr)
			if err == nil {
				return cidr, true, nil
			}
			if !errors.Is(err, errClaimed) {
				return netip.Prefix{}, false, fmt.Errorf("claim %s: %w", cidr, err)
			}
			t.add(cidr)
		}
	}
	return netip.Prefix{}, false, nil
}

// borrowable returns the blocks of the pools that have room, beginning after the
// node's first choice so that borrowers spread.
func (s *assignment) borrowable(ctx context.Context, pools []pool) ([]netip.Prefix, error) {
	blocks, err := list[*api.IPAMBlock](ctx, s.store, api.KindIPAMBlock)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, p := range pools {
		first := firstChoice(p.cidr, p.blockBits, s.Node)
		var before, behind []netip.Prefix
		for _, b := range blocks {
			switch {
			case !p.cidr.Contains(b.CIDR.Addr()) || len(b.Unallocated) == 0 || ownedBy(b, s.Node):
			case b.CIDR.Addr().Less(first.Addr()):
				before = append(before, b.CIDR)
			default:
				behind = append(behind, b.CIDR)
			}
		}
		out = slices.Concat(out, behind, before)
	}
	return out, nil
}

// fromBlock assigns up to n addresses of a block: one of the node's, or anyone's.
func (s *assignment) fromBlock(ctx context.Context, cidr netip.Prefix, n int, anyOwner bool) ([]netip.Addr, error) {
	g, err := s.swapIn(ctx, cidr, s.Handle, func(b *api.IPAMBlock) ([]int, error) {
		if !anyOwner && !ownedBy(b, s.Node) {
			return nil, nil // released meanwhile
		}
		return take(b, n, s.who(), s.reserved.has), nil
	})
	var got []netip.Addr
	for _, ordinal := range g.ordinals {
		got = append(got, addressAt(cidr, ordinal))
	}
	if len(got) > 0 {
		s.done = append(s.done, g)
	}
	return got, err
}

func (s *assignment) who() api.AllocationAttribute {
	return attribute(s.Handle, s.Attributes)
}

// attribute describes an allocation; an empty description is no description.
func attribute(handle string, secondary map[string]string) api.AllocationAttribute {
	if len(secondary) == 0 {
		secondary = nil
	}
	return api.AllocationAttribute{HandleID: &handle, Secondary: secondary}
}

// rollback releases what the request got.
func (s *assignment) rollback(ctx context.Context) error {
	var errs []error
	for _, g := range s.done {
		errs = append(errs, s.undo(ctx, s.Handle, "", g))
	}
	return errors.Join(errs...)
}

// AddressRequest asks for one given address.
type AddressRequest struct {
	Address    netip.Addr
	Node       string // who uses it; gets the block if there is none yet
	Handle     string
	Attributes map[string]string
}

// AssignAddress assigns a given address of an enabled pool. Reservations, the
// pool's node selector and its assignment mode do not count: the user chose. An
// error wraps ErrTaken if the address is in use.
func (a *Allocator) AssignAddress(ctx context.Context, r AddressRequest) error {
	return a.assignAddress(ctx, r, true)
}

// assignAddress is AssignAddress; heedAffinity says whether strict affinity counts.
func (a *Allocator) assignAddress(ctx context.Context, r AddressRequest, heedAffinity bool) error {
	if r.Node == "" || r.Handle == "" {
		return errors.New("assign address: node and handle are needed")
	}
	fail := func(err error) error { return fmt.Errorf("assign %s to %s: %w", r.Address, r.Handle, err) }
	config, err := a.Config(ctx)
	if err != nil {
		return fail(err)
	}
	pools, err := a.pools(ctx)
	if err != nil {
		return fail(err)
	}
	p, ok := containing(pools, netip.PrefixFrom(r.Address, r.Address.BitLen()))
	if !ok || p.spec.Disabled {
		return fail(fmt.Errorf("%w: no enabled pool has the address", ErrNoPool))
	}
	cidr := p.blockOf(r.Address)
	err = retry(ctx, func() error {
		b, err := a.block(ctx, cidr)
		if err != nil {
			return err
		}
		if b == nil {
			if !config.AutoAllocateBlocks {
				return fmt.Errorf("%w: block %s does not exist and new blocks are not allowed", ErrExhausted, cidr)
			}
			// Someone else may be faster; that block will do as well.
			if err := a.claim(ctx, r.Node, cidr); err != nil && !errors.Is(err, errClaimed) {
				return err
			}
		}
		g, err := a.swapIn(ctx, cidr, r.Handle, func(b *api.IPAMBlock) ([]int, error) {
			if heedAffinity && config.StrictAffinity && !ownedBy(b, r.Node) {
				return nil, fmt.Errorf("%w: block %s is not the node's, strict affinity", ErrExhausted, cidr)
			}
			ordinal := ordinalOf(cidr, r.Address)
			if !takeAt(b, ordinal, attribute(r.Handle, r.Attributes)) {
				return nil, ErrTaken
			}
			return []int{ordinal}, nil
		})
		if err == nil && len(g.ordinals) == 0 {
			return datastore.ErrConflict // the block went away between the two
		}
		return err
	})
	if err != nil {
		return fail(err)
	}
	return nil
}
