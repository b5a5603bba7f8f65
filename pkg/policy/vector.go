package policy

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

// blockRules is how many rules a [Block] stands for.
const blockRules = 4096

// term is what one rule asks of one dimension: to be in all of these sets and out
// of all of those. IPv4 addresses are the members of the set anyIPv4; that half of
// all addresses has rows of its own, so this set is not among the others.
type term struct {
	in, out []setID
	family  int // 4 or 6; 0: both
}

func newTerm(in, out []setID) term {
	t := term{in: in, out: out}
	is4 := func(id setID) bool { return id == anyIPv4 }
	if slices.ContainsFunc(in, is4) {
		t.family, t.in = 4, slices.DeleteFunc(slices.Clone(in), is4)
	}
	if slices.ContainsFunc(out, is4) {
		if t.family == 4 {
			t.in = append(t.in, noSet) // both and none
		}
		t.family, t.out = 6, slices.DeleteFunc(slices.Clone(out), is4)
	}
	return t
}

// group is the rules of a ruleset that ask the same of one dimension. Groups have
// no rule in common, so a row is a base with the rules of some groups switched.
type group struct {
	term
	rules  []uint32 // ascending
	vector []uint64 // the same as bits, if they are many
}

// manyRules is from when on a group's bits are switched word by word.
const manyRules = 256

// dimension makes a [Dimension]. It remembers enough to give rows to classes that
// come later.
type dimension struct {
	Dimension
	groups []group
	users  map[setID]users
	base   [2]uint32 // row of IPv6, IPv4 addresses in no set
	rows   map[string]uint32
	blocks map[string]Block
	key    []byte // scratch
}

// users are the groups that ask about a set: those for which a class has to be in
// it, found through one of their sets only, and those that ask for nothing but to
// be out of some.
type users struct{ in, out []int }

// newDimension returns the dimension of a ruleset whose rules ask for these terms.
// Of a term's sets, that with the smallest size is the one that finds it.
func newDimension(terms []term, size func(setID) int) *dimension {
	d := &dimension{users: make(map[setID]users), rows: make(map[string]uint32), blocks: make(map[string]Block)}
	d.Width = max(1, (len(terms)+blockRules-1)/blockRules)
	byKey, split := make(map[string]int), false
	for i, t := range terms {
		key := append(d.key[:0], byte(t.family))
		key = binary.AppendUvarint(key, uint64(len(t.in)))
		d.key = appendIDs(appendIDs(key, t.in), t.out)
		g, ok := byKey[string(d.key)]
		if !ok {
			g = len(d.groups)
			byKey[string(d.key)] = g
			d.groups = append(d.groups, group{term: t})
			split = split || t.family != 0 && len(t.in) == 0
		}
		d.groups[g].rules = append(d.groups[g].rules, uint32(i))
	}
	for g := range d.groups {
		if rules := d.groups[g].rules; len(rules) >= manyRules {
			d.groups[g].vector = make([]uint64, 64*d.Width)
			switchBits(d.groups[g].vector, rules)
		}
		t := &d.groups[g].term
		if len(t.in) > 0 {
			by := slices.MinFunc(t.in, func(a, b setID) int { return size(a) - size(b) })
			u := d.users[by]
			u.in = append(u.in, g)
			d.users[by] = u
			continue
		}
		for _, id := range t.out {
			u := d.users[id]
			u.out = append(u.out, g)
			d.users[id] = u
		}
	}
	d.base[0] = d.baseRow(6)
	d.base[1] = d.base[0]
	if split {
		d.base[1] = d.baseRow(4)
	}
	return d
}

// baseRow makes the row of the addresses of one family that are in no set.
func (d *dimension) baseRow(family int) uint32 {
	vector := make([]uint64, 64*d.Width)
	for _, g := range d.groups {
		if len(g.in) == 0 && (g.family == 0 || g.family == family) {
			switchBits(vector, g.rules)
		}
	}
	row := uint32(len(d.Blocks) / d.Width)
	for block := range slices.Chunk(vector, 64) {
		d.Blocks = append(d.Blocks, d.store(block))
	}
	return row
}

// store adds 64 words.
func (d *dimension) store(words []uint64) Block {
	b := Block{At: uint32(len(d.Words))}
	for w, word := range words {
		if word != 0 {
			b.Stored |= 1 << w
			d.Words = append(d.Words, word)
		}
	}
	return b
}

// add gives a class, which is in these sets and no others, its row.
func (d *dimension) add(class uint32, ids []setID) { d.set(class, d.rowOf(ids)) }

func (d *dimension) set(class, row uint32) {
	if row == 0 && int(class) >= len(d.Row) {
		return
	}
	if missing := int(class) + 1 - len(d.Row); missing > 0 {
		d.Row = append(d.Row, make([]uint32, missing)...)
	}
	d.Row[class] = row
}

// addNothing gives a class a row without rules.
func (d *dimension) addNothing(class uint32) {
	row := uint32(len(d.Blocks) / d.Width)
	d.Blocks = append(d.Blocks, make([]Block, d.Width)...)
	d.set(class, row)
}

// rowOf finds or makes the row of the classes that are in these sets.
func (d *dimension) rowOf(ids []setID) uint32 {
	family, base := 6, d.base[0]
	if len(ids) > 0 && ids[0] == anyIPv4 {
		family, base = 4, d.base[1]
	}
	// The groups whose rules are not as in the base.
	var switched []int
	for _, id := range ids {
		u, ok := d.users[id]
		if !ok {
			continue
		}
		for _, g := range u.in {
			if t := &d.groups[g].term; t.meets(family, ids) {
				switched = append(switched, g)
			}
		}
		for _, g := range u.out {
			if f := d.groups[g].family; f == 0 || f == family {
				switched = append(switched, g)
			}
		}
	}
	if len(switched) == 0 {
		return base
	}
	slices.Sort(switched)
	switched = slices.Compact(switched)
	key := appendGroups(append(d.key[:0], byte(base)), switched)
	d.key = key
	if row, ok := d.rows[string(key)]; ok {
		return row
	}
	row := uint32(len(d.Blocks) / d.Width)
	d.rows[string(key)] = row
	for block := range d.Width {
		d.Blocks = append(d.Blocks, d.block(block, base, switched))
	}
	return row
}

// meets says whether a class of this family in these sets meets the term.
func (t *term) meets(family int, ids []setID) bool {
	if t.family != 0 && t.family != family {
		return false
	}
	has := func(id setID) bool { _, ok := slices.BinarySearch(ids, id); return ok }
	return !slices.ContainsFunc(t.in, func(id setID) bool { return !has(id) }) && !slices.ContainsFunc(t.out, has)
}

// block is that of a row with some groups switched.
func (d *dimension) block(block int, base uint32, switched []int) Block {
	from, to := uint32(block*blockRules), uint32((block+1)*blockRules)
	key := append(binary.AppendUvarint(d.key[:0], uint64(block)), byte(base))
	here := key
	for _, g := range switched {
		if len(d.rulesIn(g, from, to)) > 0 {
			here = binary.AppendUvarint(here, uint64(g))
		}
	}
	d.key = here
	was := d.Blocks[int(base)*d.Width+block]
	if len(here) == len(key) {
		return was
	}
	if b, ok := d.blocks[string(here)]; ok {
		return b
	}
	var words [64]uint64
	for left, at := was.Stored, was.At; left != 0; left, at = left&(left-1), at+1 {
		words[bits.TrailingZeros64(left)] = d.Words[at]
	}
	for _, g := range switched {
		if v := d.groups[g].vector; v != nil {
			for w := range words {
				words[w] ^= v[block*64+w]
			}
			continue
		}
		for _, i := range d.rulesIn(g, from, to) {
			words[i%blockRules/64] ^= 1 << (i % 64)
		}
	}
	b := d.store(words[:])
	d.blocks[string(here)] = b
	return b
}

func switchBits(vector []uint64, rules []uint32) {
	for _, i := range rules {
		vector[i/64] ^= 1 << (i % 64)
	}
}

// rulesIn are the rules of a group from one up to another.
func (d *dimension) rulesIn(g int, from, to uint32) []uint32 {
	rules := d.groups[g].rules
	first, _ := slices.BinarySearch(rules, from)
	last, _ := slices.BinarySearch(rules[first:], to)
	return rules[first : first+last]
}

func appendGroups(b []byte, groups []int) []byte {
	for _, g := range groups {
		b = binary.AppendUvarint(b, uint64(g))
	}
	return b
}
