package ipam

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"

	"calico-xdp/pkg/api"
)

// number is the 128-bit value of an address; an IPv4 address is in the low 32.
type number struct{ hi, lo uint64 }

func numberOf(a netip.Addr) number {
	if a.Is4() {
		four := a.As4()
		return number{lo: uint64(binary.BigEndian.Uint32(four[:]))}
	}
	b := a.As16()
	return number{hi: binary.BigEndian.Uint64(b[:8]), lo: binary.BigEndian.Uint64(b[8:])}
}

// address returns n as an address of the family of like.
func (n number) address(like netip.Addr) netip.Addr {
	if like.Is4() {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(n.lo))
		return netip.AddrFrom4(b)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], n.hi)
	binary.BigEndian.PutUint64(b[8:], n.lo)
	return netip.AddrFrom16(b)
}

func (n number) add(m number) number {
	sum := number{n.hi + m.hi, n.lo + m.lo}
	if sum.lo < n.lo {
		sum.hi++
	}
	return sum
}

func (n number) and(m number) number { return number{n.hi & m.hi, n.lo & m.lo} }
func (n number) or(m number) number  { return number{n.hi | m.hi, n.lo | m.lo} }
func (n number) not() number         { return number{^n.hi, ^n.lo} }

// below returns 2^bits - 1.
func below(bits int) number {
	switch {
	case bits >= 128:
		return number{^uint64(0), ^uint64(0)}
	case bits >= 64:
		return number{1<<(bits-64) - 1, ^uint64(0)}
	default:
		return number{lo: 1<<bits - 1}
	}
}

// addressAt returns the address of a block with this ordinal.
func addressAt(block netip.Prefix, ordinal int) netip.Addr {
	return numberOf(block.Addr()).add(number{lo: uint64(ordinal)}).address(block.Addr())
}

// ordinalOf returns which address of the block a is.
func ordinalOf(block netip.Prefix, a netip.Addr) int {
	return int(numberOf(a).lo - numberOf(block.Addr()).lo)
}

// firstChoice returns the block of the pool at which the node starts to look.
// It follows from the node's name alone, spread evenly over the pool, so that
// nodes that start together rarely want the same block.
func firstChoice(pool netip.Prefix, blockBits int, node string) netip.Prefix {
	hash := sha256.Sum256([]byte(node))
	random := number{binary.BigEndian.Uint64(hash[:8]), binary.BigEndian.Uint64(hash[8:16])}
	length := pool.Addr().BitLen()
	inPool := below(length - pool.Bits()).and(below(length - blockBits).not())
	return netip.PrefixFrom(numberOf(pool.Addr()).or(random.and(inPool)).address(pool.Addr()), blockBits)
}

// after returns the block of this size that follows the region, and false if the
// region is the pool's last.
func after(pool, region netip.Prefix, blockBits int) (netip.Prefix, bool) {
	step := below(region.Addr().BitLen() - region.Bits()).add(number{lo: 1})
	next := numberOf(region.Addr()).add(step).address(region.Addr())
	if !pool.Contains(next) || next.Less(region.Addr()) {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(next, blockBits), true
}

// taken is where no block of this size can be made: blocks that exist, some of a
// size that their pool had formerly, and what is reserved.
type taken struct {
	pool   netip.Prefix
	bits   int
	same   map[netip.Prefix]bool // of this size
	bigger []netip.Prefix
}

func takenBlocks(p pool, blocks []*api.IPAMBlock, reserved reservations) *taken {
	t := &taken{pool: p.cidr, bits: p.blockBits, same: make(map[netip.Prefix]bool, len(blocks))}
	for _, b := range blocks {
		if b.CIDR.Overlaps(p.cidr) {
			t.add(b.CIDR)
		}
	}
	for _, p := range reserved {
		if !p.Overlaps(t.pool) {
			continue
		}
		if p.Bits() < t.bits {
			t.bigger = append(t.bigger, p)
		} else if block := netip.PrefixFrom(p.Addr(), t.bits).Masked(); reserved.whole(block) {
			t.same[block] = true
		}
	}
	return t
}

// add takes a block, or the whole of the one that a smaller one lies in.
func (t *taken) add(p netip.Prefix) {
	if p.Bits() < t.bits {
		t.bigger = append(t.bigger, p)
	} else {
		t.same[netip.PrefixFrom(p.Addr(), t.bits).Masked()] = true
	}
}

// region returns the taken prefix that the block lies in.
func (t *taken) region(block netip.Prefix) (netip.Prefix, bool) {
	for _, b := range t.bigger {
		if b.Contains(block.Addr()) {
			return b, true
		}
	}
	return block, t.same[block]
}

// free returns the first block of the pool, from the node's first choice on, that
// is not taken. There may be 2^74 blocks; only taken regions are stepped over.
func (t *taken) free(node string) (netip.Prefix, bool) {
	pool := t.pool
	first := firstChoice(pool, t.bits, node)
	block, wrapped := first, false
	for {
		region, ok := t.region(block)
		if !ok {
			return block, true
		}
		next, ok := after(pool, region, t.bits)
		if !ok {
			if wrapped {
				return netip.Prefix{}, false
			}
			next, wrapped = netip.PrefixFrom(pool.Addr(), t.bits), true
		}
		if wrapped && !next.Addr().Less(first.Addr()) {
			return netip.Prefix{}, false
		}
		block = next
	}
}

// reservations are the prefixes that automatic assignment leaves alone.
type reservations []netip.Prefix

func (r reservations) has(a netip.Addr) bool {
	for _, p := range r {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// whole tells whether every address of the block is reserved.
func (r reservations) whole(block netip.Prefix) bool {
	for ordinal := range 1 << (block.Addr().BitLen() - block.Bits()) {
		if !r.has(addressAt(block, ordinal)) {
			return false
		}
	}
	return true
}
