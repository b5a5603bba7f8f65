package policy

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

// blockRules is how many rules a [Block] stands for.
const blockRules = 4096

// dimension makes a [Dimension], and gives rows to classes that come later.
// Rulesets whose rules ask the same, rule by rule, share it.
type dimension struct {
	Dimension
	space  *space
	terms  termList // of the rules
	owners []*ruleset
	groups []group
	users  map[*set]*users
	asked  []*set    // the keys of users
	base   [2]uint32 // row of IPv6, IPv4 addresses in no set
	// Rows that have been made: with one group switched, by base and group, and
	// with others.
	single [2][]uint32
	rows   map[string]uint32
	blocks map[string]Block
	held   int    // classes with another row than 0
	stamp  uint64 // the space's
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
type users struct{ in, out []uint32 }

// dimension returns the dimension of a ruleset whose rules have these terms.
func (s *space) dimension(owner *ruleset, terms termList) *dimension {
	for _, d := range s.dimensions[terms.hash] {
		if d.terms.equal(&terms) {
			d.owners = append(d.owners, owner)
			return d
		}
	}
	d := s.newDimension(terms)
	d.owners = []*ruleset{owner}
	s.dimensions[terms.hash] = append(s.dimensions[terms.hash], d)
	return d
}

// newDimension makes a dimension that nobody has yet.
func (s *space) newDimension(terms termList) *dimension {
	d := &dimension{space: s, terms: terms}
	d.Width = max(1, (terms.size+blockRules-1)/blockRules)
	d.group(terms.all())
	split := false
	d.Any = true
	for _, g := range d.groups {
		split = split || g.family != 0 && len(g.in) == 0
		d.Any = d.Any && g.family == 0 && len(g.in) == 0 && len(g.out) == 0
	}
	d.users, d.asked = make(map[*set]*users, len(d.groups)), make([]*set, 0, len(d.groups))
	arena := make([]users, len(d.groups))
	numbers := make([]uint32, len(d.groups))
	for g := range d.groups {
		numbers[g] = uint32(g)
		arena = d.register(numbers[g:g+1:g+1], arena)
	}
	d.base[0] = d.baseRow(6)
	d.base[1] = d.base[0]
	if split {
		d.base[1] = d.baseRow(4)
		d.user(s.sets[ipv4Key], nil)
	}
	d.fill()
	if s.nothing != 0 {
		d.addNothing(s.nothing)
	}
	return d
}

// group finds the rules that ask the same.
func (d *dimension) group(terms []*term) {
	const none = ^uint32(0)
	nothing := none // the group of rules that ask for nothing
	of := make([]uint32, len(terms))
	var sizes []uint32
	for i, t := range terms {
		switch {
		case t == nil && nothing != none:
			of[i] = nothing
		case t != nil && t.of == d:
			of[i] = t.group
		default:
			of[i] = uint32(len(d.groups))
			sizes = append(sizes, 0)
			if t == nil {
				nothing = of[i]
				t = new(term)
			} else {
				t.of, t.group = d, of[i]
			}
			d.groups = append(d.groups, group{term: t})
		}
		sizes[of[i]]++
	}
	rules := make([]uint32, len(terms))
	for g := range d.groups {
		d.groups[g].of = nil
		d.groups[g].rules, rules = rules[:0:sizes[g]], rules[sizes[g]:]
	}
	for i, g := range of {
		d.groups[g].rules = append(d.groups[g].rules, uint32(i))
	}
	for g := range d.groups {
		if x := &d.groups[g]; len(x.rules) >= manyRules {
			x.vector = make([]uint64, 64*d.Width)
			switchBits(x.vector, x.rules)
		}
	}
}

// register notes which sets a group asks about. Of the sets that it asks to be in,
// that in the fewest classes finds it.
func (d *dimension) register(g []uint32, arena []users) []users {
	t := d.groups[g[0]].term
	add := func(list []uint32) []uint32 {
		if list == nil {
			return g
		}
		return append(list, g[0])
	}
	if len(t.in) > 0 {
		var u *users
		u, arena = d.user(slices.MinFunc(t.in, func(a, b *set) int { return len(a.classes) - len(b.classes) }), arena)
		u.in = add(u.in)
		return arena
	}
	for _, x := range t.out {
		var u *users
		u, arena = d.user(x, arena)
		u.out = add(u.out)
	}
	return arena
}

// user returns the users of a set; new ones are taken from the arena.
func (d *dimension) user(x *set, arena []users) (*users, []users) {
	if u := d.users[x]; u != nil {
		return u, arena
	}
	if len(arena) == 0 {
		arena = make([]users, 1)
	}
	d.users[x] = &arena[0]
	d.asked = append(d.asked, x)
	return &arena[0], arena[1:]
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

// release takes the dimension from a ruleset.
func (d *dimension) release(owner *ruleset) {
	i := slices.Index(d.owners, owner)
	if d.owners = slices.Delete(d.owners, i, i+1); len(d.owners) > 0 {
		return
	}
	same := d.space.dimensions[d.terms.hash]
	if same = slices.DeleteFunc(same, func(x *dimension) bool { return x == d }); len(same) == 0 {
		delete(d.space.dimensions, d.terms.hash)
	} else {
		d.space.dimensions[d.terms.hash] = same
	}
	d.forget()
}

// forget makes the sets forget the dimension.
func (d *dimension) forget() {
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
	d.forget()
	fresh := d.space.newDimension(d.terms)
	fresh.owners = d.owners
	same := d.space.dimensions[d.terms.hash]
	same[slices.Index(same, d)] = fresh
	return fresh
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

// addNothing gives a class a row without rules, if rules ask for anything.
func (d *dimension) addNothing(class uint32) {
	if d.Any {
		return
	}
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
	family, half := 6, 0
	if len(sets) > 0 && sets[0].id == anyIPv4 {
		family, half = 4, 1
	}
	// The groups whose rules are not as in the base.
	var some [16]uint32
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
	switch len(switched) {
	case 0:
		return d.base[half]
	case 1:
		return d.singleRow(half, switched)
	}
	slices.Sort(switched)
	if switched = slices.Compact(switched); len(switched) == 1 {
		return d.singleRow(half, switched)
	}
	d.key = append(d.key[:0], byte(d.base[half]))
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
	d.makeRow(d.base[half], switched)
	return row
}

// singleRow is the row with one group switched.
func (d *dimension) singleRow(half int, switched []uint32) uint32 {
	if d.base[half] == 0 {
		half = 0
	}
	if d.single[half] == nil {
		d.single[half] = make([]uint32, len(d.groups))
	}
	row := &d.single[half][switched[0]]
	if *row == 0 { // row 0 is a base
		*row = uint32(len(d.Blocks) / d.Width)
		d.makeRow(d.base[half], switched)
	}
	return *row
}

func (d *dimension) makeRow(base uint32, switched []uint32) {
	for block := range d.Width {
		d.Blocks = append(d.Blocks, d.block(block, base, switched))
	}
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
func (d *dimension) block(block int, base uint32, switched []uint32) Block {
	from, to := uint32(block*blockRules), uint32((block+1)*blockRules)
	d.key = append(binary.AppendUvarint(d.key[:0], uint64(block)), byte(base))
	groups := 0
	for _, g := range switched {
		if len(d.rulesIn(g, from, to)) > 0 {
			d.key = binary.AppendUvarint(d.key, uint64(g))
			groups++
		}
	}
	was := d.Blocks[int(base)*d.Width+block]
	if groups == 0 {
		return was
	}
	// Rows that differ elsewhere have this block in common, if it is not that of one
	// group, which has a row of its own.
	shared := d.Width > 1 && (groups > 1 || len(switched) > 1 || len(d.groups[switched[0]].rules) >= manyRules)
	if shared {
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
	if shared {
		if d.blocks == nil {
			d.blocks = make(map[string]Block)
		}
		d.blocks[string(d.key)] = b
	}
	return b
}

// rulesIn are the rules of a group from one up to another.
func (d *dimension) rulesIn(g uint32, from, to uint32) []uint32 {
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
