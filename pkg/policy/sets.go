package policy

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"sort"
)

// setID numbers an address set or, apart from these, a port set. It is never used
// again for another one.
type setID uint32

const (
	// anyIPv4 is the set that has every IPv4 address: it tells the family of an
	// address that is in no other set.
	anyIPv4 setID = 0
	// noSet has nothing in it.
	noSet = ^setID(0)
)

// peerSet is a set of addresses that rules refer to: a rule's nets, or the
// addresses of all that a match selects.
type peerSet struct {
	id    setID
	key   string
	nets  []netip.Prefix
	match *match    // nil: nets
	used  uint64    // the last result that used it; 0: none did
	dead  bool      // dropped since; another one may have its key
	mark  *identity // for whom is looking at identities one by one
}

// sets are the sets in use, one for each key. Policies' own selectors are sets
// too, in a collection of their own.
type sets struct {
	byKey   map[string]*peerSet
	nets    []*peerSet // by id
	matches []*peerSet // by id
	next    setID
	// memberships remembers for each identity which sets have it, so that a set
	// and an identity meet only once.
	memberships map[*identity]*membership
}

// membership is a list of sets, by id.
type membership struct {
	ids  []setID
	sets []*peerSet
	key  string // the ids
	next setID  // sets from here on have not been looked at
}

func newSets() *sets {
	return &sets{byKey: make(map[string]*peerSet), memberships: make(map[*identity]*membership)}
}

// ofMatch returns the set of what m selects.
func (s *sets) ofMatch(m *match) *peerSet {
	key := "m" + m.key()
	set := s.byKey[key]
	if set == nil {
		set = s.add(key)
		set.match = m
		s.matches = append(s.matches, set)
	}
	return set
}

// ofNets returns the set of these networks.
func (s *sets) ofNets(nets []netip.Prefix) *peerSet {
	nets = canonicalNets(nets)
	key := []byte("n")
	for _, n := range nets {
		key = appendText(key, string(n.Addr().AsSlice()))
		key = append(key, byte(n.Bits()))
	}
	set := s.byKey[string(key)]
	if set == nil {
		set = s.add(string(key))
		set.nets = nets
		s.nets = append(s.nets, set)
	}
	return set
}

func (s *sets) add(key string) *peerSet {
	set := &peerSet{id: s.next, key: key}
	s.next++
	s.byKey[key] = set
	return set
}

// sweep drops the sets that neither this result nor the one before has used: a
// set stays for one result longer than it is needed, because rulesets that are
// about to be replaced still use it.
func (s *sets) sweep(result uint64) {
	drop := func(set *peerSet) bool {
		if set.used != 0 && set.used+1 >= result {
			return false
		}
		set.dead = true
		delete(s.byKey, set.key)
		return true
	}
	s.nets = slices.DeleteFunc(s.nets, drop)
	s.matches = slices.DeleteFunc(s.matches, drop)
}

// forget drops what is remembered of identities that are gone.
func (s *sets) forget(result uint64) {
	maps.DeleteFunc(s.memberships, func(i *identity, _ *membership) bool { return i.used != result })
}

// of returns the sets that have this identity.
func (s *sets) of(i *identity) *membership {
	m := s.memberships[i]
	if m == nil {
		m = new(membership)
		s.memberships[i] = m
	}
	if m.next == s.next && !slices.ContainsFunc(m.sets, func(set *peerSet) bool { return set.dead }) {
		return m
	}
	// A new value: what has been handed out stays as it is.
	fresh := &membership{next: s.next}
	for _, set := range m.sets {
		if !set.dead {
			fresh.sets = append(fresh.sets, set)
		}
	}
	from := sort.Search(len(s.matches), func(k int) bool { return s.matches[k].id >= m.next })
	for _, set := range s.matches[from:] {
		if set.match.selects(i) {
			fresh.sets = append(fresh.sets, set)
		}
	}
	for _, set := range fresh.sets {
		fresh.ids = append(fresh.ids, set.id)
	}
	fresh.key = string(appendIDs(nil, fresh.ids))
	s.memberships[i] = fresh
	return fresh
}

// canonicalNets sorts networks and leaves out those that others contain.
func canonicalNets(nets []netip.Prefix) []netip.Prefix {
	nets = slices.Clone(nets)
	slices.SortFunc(nets, comparePrefixes)
	out := nets[:0]
	for _, n := range nets {
		if len(out) == 0 || !out[len(out)-1].Overlaps(n) {
			out = append(out, n)
		}
	}
	return out
}

// comparePrefixes orders prefixes so that one comes before those it contains,
// and these before anything else.
func comparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

func appendIDs(b []byte, ids []setID) []byte {
	for _, id := range ids {
		b = binary.LittleEndian.AppendUint32(b, uint32(id))
	}
	return b
}

// union merges two lists of ids, both sorted.
func union(a, b []setID) []setID {
	if len(b) == 0 {
		return a
	}
	if len(a) == 0 {
		return b
	}
	out := make([]setID, 0, len(a)+len(b))
	out = append(append(out, a...), b...)
	slices.Sort(out)
	return slices.Compact(out)
}
