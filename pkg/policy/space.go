package policy

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// setID numbers a set of a space. It is never used again for another one.
type setID uint32

// anyIPv4 is the set of all IPv4 addresses: it tells the family of an address that
// is in no other set.
const anyIPv4 setID = 0

// space is something that rules ask about: addresses, source ports, or destination
// ports. Rules ask for sets; what is in the same sets has one class.
type space struct {
	sets    map[string]*set
	next    setID
	unasked []*set // that no term asked for at some time in this result
	terms   map[string]*term
	asked   uint64 // terms ever made
	// dimensions are the ones in use, by hash.
	dimensions map[uint64][]*dimension
	classes    *numbering[[]*set]
	// born are the classes with a new meaning in this result.
	born []uint32
	// nothing is a class that no rule matches; 0 if none is needed.
	nothing uint32
	stamp   uint64
	key     []byte // scratch
	sum     []*set // scratch
}

// set is a set of addresses or ports that rules ask for.
type set struct {
	id         setID
	key        string
	terms      int // that ask for it
	classes    []uint32
	dimensions []*dimension // that have to know in which classes it is

	// A set of addresses is these networks, or the addresses of all that a match
	// selects.
	nets    []netip.Prefix
	match   *match
	members map[*identity]struct{}

	// A set of ports is of one protocol. ICMP type and code are a destination port.
	protocol uint8
	spans    spans
}

// term is what a rule asks of one part of a packet: to be in all of these sets and
// in none of those. nil asks for nothing. The set anyIPv4 is not among them but in
// family.
type term struct {
	in, out []*set
	family  int // 4 or 6; 0: both
	key     string
	id      uint64
	rules   int // that have it

	// While a dimension is made: which group the term is, and of which dimension.
	of    *dimension
	group uint32
}

func newSpace(first setID, classes uint32) *space {
	return &space{
		sets: make(map[string]*set), terms: make(map[string]*term), next: first,
		dimensions: make(map[uint64][]*dimension), classes: newNumbering[[]*set](classes, "", nil),
	}
}

// set returns the set with this key, a fresh one if there is none. A set stays as
// long as terms ask for it.
func (s *space) set(key []byte) (x *set, fresh bool) {
	if x := s.sets[string(key)]; x != nil {
		return x, false
	}
	x = &set{id: s.next, key: string(key)}
	s.next++
	s.sets[x.key] = x
	s.unasked = append(s.unasked, x)
	return x, true
}

// term returns the term that asks for these sets; somebody has to hold it.
func (s *space) term(in, out []*set) *term {
	if len(in)+len(out) == 0 {
		return nil
	}
	key := s.key[:0]
	for _, list := range [][]*set{in, out} {
		slices.SortFunc(list, compareSets)
		key = binary.AppendUvarint(key, uint64(len(list)))
		key = appendIDs(key, list)
	}
	s.key = key
	t := s.terms[string(key)]
	if t == nil {
		s.asked++
		t = &term{in: in, out: out, key: string(key), id: s.asked}
		t.splitFamily()
		s.terms[t.key] = t
		for _, x := range t.all() {
			x.terms++
		}
	}
	return t
}

// splitFamily takes anyIPv4 out of the sets. A term that asks to be in it and out
// of it is one that nothing meets in either family.
func (t *term) splitFamily() {
	if len(t.in) > 0 && t.in[0].id == anyIPv4 {
		t.family, t.in = 4, t.in[1:]
	}
	if len(t.out) > 0 && t.out[0].id == anyIPv4 {
		if t.family, t.out = t.family+6, t.out[1:]; t.family != 6 {
			t.family = -1
		}
	}
}

func (t *term) all() []*set { return slices.Concat(t.in, t.out) }

// release takes a term back from a rule.
func (s *space) release(t *term) {
	if t == nil {
		return
	}
	if t.rules--; t.rules > 0 {
		return
	}
	delete(s.terms, t.key)
	for _, x := range t.all() {
		if x.terms--; x.terms == 0 {
			s.unasked = append(s.unasked, x)
		}
	}
}

// forget drops the sets that no term asks for any more and returns them.
func (s *space) forget() (dropped []*set) {
	for _, x := range s.unasked {
		if x.terms == 0 && s.sets[x.key] == x {
			delete(s.sets, x.key)
			dropped = append(dropped, x)
		}
	}
	s.unasked = s.unasked[:0]
	return dropped
}

// class gives users to the class of what is in these sets, ordered by id. It fails
// when there are too many classes.
func (s *space) class(sets []*set, users int) (uint32, bool) {
	s.key = appendIDs(s.key[:0], sets)
	class, fresh, ok := s.classes.take(s.key, users)
	if fresh {
		s.classes.entries[class].value = slices.Clone(sets)
		s.born = append(s.born, class)
	}
	return class, ok
}

// sweep frees the classes that nothing has any more.
func (s *space) sweep(result uint64) {
	s.born = nil
	freed, values := s.classes.sweep(result)
	if len(freed) == 0 {
		return
	}
	gone := make(map[uint32]bool, len(freed))
	affected := make(map[*set]bool)
	for i, class := range freed {
		gone[class] = true
		for _, x := range values[i] {
			affected[x] = true
			for _, d := range x.dimensions {
				d.clear(class)
			}
		}
	}
	for x := range affected {
		x.classes = slices.DeleteFunc(x.classes, func(class uint32) bool { return gone[class] })
	}
}

// spread gives the classes of this result rows wherever one of their sets matters.
// It returns the dimensions that have grown out of proportion.
func (s *space) spread() (bloated []*dimension) {
	for _, class := range s.born {
		sets := s.classes.entries[class].value
		s.stamp++
		for _, x := range sets {
			x.classes = append(x.classes, class)
			for _, d := range x.dimensions {
				if d.stamp == s.stamp {
					continue
				}
				d.stamp = s.stamp
				if d.add(class, sets); d.bloated() && !slices.Contains(bloated, d) {
					bloated = append(bloated, d)
				}
			}
		}
	}
	return bloated
}

func compareSets(a, b *set) int { return int(int64(a.id) - int64(b.id)) }

func appendIDs(b []byte, sets []*set) []byte {
	for _, x := range sets {
		b = binary.LittleEndian.AppendUint32(b, uint32(x.id))
	}
	return b
}
