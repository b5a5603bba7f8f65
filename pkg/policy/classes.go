package policy

import (
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// ipv4Key is the key of the set anyIPv4.
const ipv4Key = "4"

// addresses is the space of addresses: it keeps the class of every prefix that a
// peer has or a rule names.
type addresses struct {
	*space
	ipv4   *set
	places bart.Table[*place]
	dirty  []*place

	classOf map[netip.Prefix]PeerClass // what is handed out
	changed []netip.Prefix             // there, in this result
	moves   map[[2]PeerClass]struct{}  // that addresses have made
}

// place is a prefix and what is there, not counting the prefixes around it.
type place struct {
	prefix netip.Prefix
	peers  []*peer
	nets   []*set // by id
	class  uint32
	fresh  bool // not settled yet
	dirty  bool

	settled uint64 // the last result that settled it
	was     uint32 // class of its addresses before that
}

func newAddresses() *addresses {
	a := &addresses{
		space:   newSpace(anyIPv4, ^uint32(0)),
		classOf: make(map[netip.Prefix]PeerClass), moves: make(map[[2]PeerClass]struct{}),
	}
	a.ipv4, _ = a.set([]byte(ipv4Key))
	a.ipv4.terms++ // stays
	a.join([]netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0)}, a.ipv4)
	return a
}

// setOfNets returns the set of these networks.
func (a *addresses) setOfNets(nets []netip.Prefix) *set {
	nets = canonicalNets(nets)
	key := []byte("n")
	for _, n := range nets {
		key = appendText(key, string(n.Addr().AsSlice()))
		key = append(key, byte(n.Bits()))
	}
	x, fresh := a.set(key)
	if fresh {
		a.join(nets, x)
	}
	return x
}

func (a *addresses) join(nets []netip.Prefix, x *set) {
	x.nets = nets
	for _, prefix := range nets {
		p := a.place(prefix)
		p.nets = append(p.nets, x) // the last by id
		a.touch([]*place{p})
	}
}

func (a *addresses) leave(prefix netip.Prefix, x *set) {
	p := a.place(prefix)
	i := slices.Index(p.nets, x)
	p.nets = slices.Delete(p.nets, i, i+1)
	a.touch([]*place{p})
}

func (a *addresses) place(prefix netip.Prefix) *place {
	p, ok := a.places.Get(prefix)
	if !ok {
		p = &place{prefix: prefix, fresh: true}
		a.places.Insert(prefix, p)
	}
	return p
}

func (p *place) leave(x *peer) {
	i := slices.Index(p.peers, x)
	p.peers = slices.Delete(p.peers, i, i+1)
}

// touch notes that what is at these places has changed.
func (a *addresses) touch(places []*place) {
	for _, p := range places {
		if !p.dirty {
			p.dirty = true
			a.dirty = append(a.dirty, p)
		}
	}
}

// settle gives what has changed its class.
func (a *addresses) settle(result uint64) {
	a.changed = nil
	clear(a.moves)
	dirty := a.dirty
	a.dirty = nil
	slices.SortFunc(dirty, func(x, y *place) int { return comparePrefixes(x.prefix, y.prefix) })
	for _, p := range dirty {
		if p.settled == result {
			continue // with a prefix around it
		}
		a.settlePlace(p, a.around(p.prefix), result)
		if p.was != p.class && !p.prefix.IsSingleIP() {
			a.settleInside(p, result)
		}
	}
	for _, p := range dirty {
		if p.dirty = false; len(p.peers)+len(p.nets) == 0 {
			a.places.Delete(p.prefix)
			a.classes.drop(p.class, 1, result)
		}
	}
}

// around returns the place with the longest prefix around this one.
func (a *addresses) around(prefix netip.Prefix) *place {
	if prefix.Bits() == 0 {
		return nil
	}
	wider, _ := prefix.Addr().Prefix(prefix.Bits() - 1)
	p, _ := a.places.LookupPrefix(wider)
	return p
}

// settleInside settles all places inside of one.
func (a *addresses) settleInside(outer *place, result uint64) {
	// A prefix comes after those around it, which are on the stack then.
	stack := []*place{outer}
	for prefix, p := range a.places.Subnets(outer.prefix) {
		if p == outer {
			continue
		}
		for !stack[len(stack)-1].prefix.Overlaps(prefix) {
			stack = stack[:len(stack)-1]
		}
		a.settlePlace(p, stack[len(stack)-1], result)
		stack = append(stack, p)
	}
}

// settlePlace gives a place its class, knowing that of the place around it.
func (a *addresses) settlePlace(p, around *place, result uint64) {
	var outer, wasOuter uint32
	if around != nil {
		outer, wasOuter = around.class, around.class
		if around.settled == result {
			wasOuter = around.was
		}
	}
	p.was = p.class
	if p.fresh {
		p.was = wasOuter
	}
	empty := len(p.peers)+len(p.nets) == 0
	// Peer classes are limited by memory long before their numbers end.
	class, _ := a.class(a.union(p, outer), 1)
	if !p.fresh {
		a.classes.drop(p.class, 1, result)
	}
	p.class, p.fresh, p.settled = class, false, result
	have, shown := a.classOf[p.prefix]
	switch show := !empty && class != outer; {
	case show && (!shown || have != PeerClass(class)):
		a.classOf[p.prefix] = PeerClass(class)
		a.changed = append(a.changed, p.prefix)
	case !show && shown:
		delete(a.classOf, p.prefix)
		a.changed = append(a.changed, p.prefix)
	}
	if p.was != class {
		a.moves[[2]PeerClass{PeerClass(p.was), PeerClass(class)}] = struct{}{}
	}
}

// union returns the sets that have a place: those of the class around it and those
// of what is there.
func (a *addresses) union(p *place, outer uint32) []*set {
	all := append(a.sum[:0], a.classes.entries[outer].value...)
	n := len(all)
	for _, x := range p.peers {
		all = append(all, x.identity.sets...)
	}
	all = append(all, p.nets...)
	if len(all) > n {
		slices.SortFunc(all, compareSets)
		all = slices.Compact(all)
	}
	a.sum = all
	return all
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
