package policy

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

// blockRules is how many rules a [Block] stands for.
const blockRules = 4096

// dimension makes a [Dimension], and gives rows to classes that come later.
type dimension struct {
	Dimension
	space  *space
	groups []group
	users  map[*set]*users
	asked  []*set    // the keys of users
	base   [2]uint32 // row of IPv6, IPv4 addresses in no set
	rows   map[string]uint32
	blocks map[string]Block
	held   int    // classes with another row than 0
	stamp  uint64 // the space's
	owner  *ruleset
	key    []byte // scratch
}

// group is the rules of a ruleset that ask the same of one part of a packet.
// Groups have no rule in common, so every row is a base with the rules of some
// groups switched on or off.
type group struct {
	*term
	rules  []uint32 // ascending
	vector []uint64 // the same as bits, if they are many
}

// manyRules is from when on a group's bits are switched word by word.
const manyRules = 256

// users are the groups that ask about a set: those for which a class has to be in
// it, found through one of their sets only, and those that ask for nothing but to
// be out of some.
type users struct{ in, out []int }

// dimension makes the dimension of a ruleset whose rules have these terms.
func (s *space) dimension(owner *ruleset, terms []*term) *dimension {
	d := &dimension{space: s, owner: owner}
	d.Width = max(1, (len(terms)+blockRules-1)/blockRules)
	nothing := -1 // the group of rules that ask for nothing
	for i, t := range terms {
		g := nothing
		if t != nil && t.of == d {
			g = t.group
		}
		if g < 0 || t != nil && t.of != d {
			g = len(d.groups)
			d.groups = append(d.groups, group{term: t})
			if t == nil {
				nothing = g
			} else {
				t.of, t.group = d, g
			}
		}
		d.groups[g].rules = append(d.groups[g].rules, uint32(i))
	}
	d.users = make(map[*set]*users)
	split := false
	for g := range d.groups {
		x := &d.groups[g]
		if x.term == nil {
			x.term = new(term)
		}
		x.of = nil
		split = split || x.family != 0 && len(x.in) == 0
		if len(x.rules) >= manyRules {
			x.vector = make([]uint64, 64*d.Width)
			switchBits(x.vector, x.rules)
		}
		d.register(g)
	}
	d.base[0] = d.baseRow(6)
	d.base[1] = d.base[0]
	if split {
		d.base[1] = d.baseRow(4)
		d.user(s.sets[ipv4Key])
	}
	d.fill()
	if s.nothing != 0 {
		d.addNothing(s.nothing)
	}
	return d
}

// register notes which sets a group asks about. Of the sets that it asks to be in,
// that in the fewest classes finds it.
func (d *dimension) register(g int) {
	t := d.groups[g].term
	if len(t.in) > 0 {
		u := d.user(slices.MinFunc(t.in, func(a, b *set) int { return len(a.classes) - len(b.classes) }))
		u.in = append(u.in, g)
		return
	}
	for _, x := range t.out {
		u := d.user(x)
		u.out = append(u.out, g)
	}
}

func (d *dimension) user(x *set) *users {
	u := d.users[x]
	if u == nil {
		u = new(users)
		d.users[x] = u
		d.asked = append(d.asked, x)
	}
	return u
}

// fill gives the classes that there are their rows, and makes the sets tell of new
// ones.
func (d *dimension) fill() {
	classes := d.space.classes.entries
	done := make([]bool, len(classes))
	for _, x := range d.asked {
		x.dimensions = append(x.dimensions, d)
		for _, class := range x.classes {
			if !done[class] {
				done[class] = true
				d.add(class, classes[class].value)
			}
		}
	}
}

// release makes the sets forget the dimension.
func (d *dimension) release() {
	for _, x := range d.asked {
		i := slices.Index(x.dimensions, d)
		x.dimensions = slices.Delete(x.dimensions, i, i+1)
	}
}

// bloated says that most rows are of classes that are gone.
func (d *dimension) bloated() bool {
	rows := len(d.Blocks) / d.Width
	return rows > 1024 && rows > 4*d.held
}

// again makes the dimension anew.
func (d *dimension) again() *dimension {
	size := 0
	for _, g := range d.groups {
		size += len(g.rules)
	}
	terms := make([]*term, size)
	for _, g := range d.groups {
		for _, i := range g.rules {
			if len(g.key) > 0 {
				terms[i] = g.term
			}
		}
	}
	d.release()
	return d.space.dimension(d.owner, terms)
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
func (d *dimension) add(class uint32, sets []*set) { d.set(class, d.rowOf(sets)) }

// addNothing gives a class a row without rules.
func (d *dimension) addNothing(class uint32) {
	row := uint32(len(d.Blocks) / d.Width)
	d.Blocks = append(d.Blocks, make([]Block, d.Width)...)
	d.set(class, row)
}

// clear takes a class its row: it is in no set now.
func (d *dimension) clear(class uint32) { d.set(class, 0) }

func (d *dimension) set(class, row uint32) {
	if int(class) >= len(d.Row) {
		if row == 0 {
			return
		}
		d.Row = append(d.Row, make([]uint32, int(class)+1-len(d.Row))...)
	}
	if d.Row[class] != 0 {
		d.held--
	}
	if d.Row[class] = row; row != 0 {
		d.held++
	}
}

// rowOf finds or makes the row of the classes that are in these sets.
func (d *dimension) rowOf(sets []*set) uint32 {
	family, base := 6, d.base[0]
	if len(sets) > 0 && sets[0].id == anyIPv4 {
		family, base = 4, d.base[1]
	}
	// The groups whose rules are not as in the base.
	var some [16]int
	switched := some[:0]
	for _, x := range sets {
		u := d.users[x]
		if u == nil {
			continue
		}
		for _, g := range u.in {
			if d.groups[g].meets(family, sets) {
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
	d.key = append(d.key[:0], byte(base))
	for _, g := range switched {
		d.key = binary.AppendUvarint(d.key, uint64(g))
	}
	if row, ok := d.rows[string(d.key)]; ok {
		return row
	}
	if d.rows == nil {
		d.rows = make(map[string]uint32)
	}
	row := uint32(len(d.Blocks) / d.Width)
	d.rows[string(d.key)] = row
	for block := range d.Width {
		d.Blocks = append(d.Blocks, d.block(block, base, switched))
	}
	return row
}

// meets says whether a class of this family in these sets meets the term.
func (t *term) meets(family int, sets []*set) bool {
	if t.family != 0 && t.family != family {
		return false
	}
	for _, x := range t.in {
		if _, ok := slices.BinarySearchFunc(sets, x, compareSets); !ok {
			return false
		}
	}
	for _, x := range t.out {
		if _, ok := slices.BinarySearchFunc(sets, x, compareSets); ok {
			return false
		}
	}
	return true
}

// block is that of a row with some groups switched.
func (d *dimension) block(block int, base uint32, switched []int) Block {
	from, to := uint32(block*blockRules), uint32((block+1)*blockRules)
	d.key = append(binary.AppendUvarint(d.key[:0], uint64(block)), byte(base))
	none := len(d.key)
	for _, g := range switched {
		if len(d.rulesIn(g, from, to)) > 0 {
			d.key = binary.AppendUvarint(d.key, uint64(g))
		}
	}
	was := d.Blocks[int(base)*d.Width+block]
	if len(d.key) == none {
		return was
	}
	if d.Width > 1 {
		if b, ok := d.blocks[string(d.key)]; ok {
			return b
		}
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
	if d.Width > 1 {
		if d.blocks == nil {
			d.blocks = make(map[string]Block)
		}
		d.blocks[string(d.key)] = b
	}
	return b
}

// rulesIn are the rules of a group from one up to another.
func (d *dimension) rulesIn(g int, from, to uint32) []uint32 {
	rules := d.groups[g].rules
	first, _ := slices.BinarySearch(rules, from)
	last, _ := slices.BinarySearch(rules[first:], to)
	return rules[first : first+last]
}

func switchBits(vector []uint64, rules []uint32) {
	for _, i := range rules {
		vector[i/64] ^= 1 << (i % 64)
	}
}
