package policy

import (
	"net/netip"

	"github.com/gaissmai/bart"
)

// direct is what one prefix is itself, not counting the prefixes around it.
type direct struct {
	ids []setID
	key string // the ids
}

// peerClasses gives a class to each prefix that has a peer or is a rule's net.
func (c *Compiler) peerClasses() map[netip.Prefix]PeerClass {
	prefixes := new(bart.Table[direct])
	add := func(prefix netip.Prefix, ids []setID, key string) {
		prefixes.Modify(prefix, func(have direct, ok bool) (direct, bool) {
			if !ok {
				return direct{ids, key}, false
			}
			if have.key == key {
				return have, false
			}
			both := union(have.ids, ids)
			return direct{both, string(appendIDs(nil, both))}, false
		})
	}
	for _, set := range c.sets.nets {
		ids := []setID{set.id}
		key := string(appendIDs(nil, ids))
		for _, n := range set.nets {
			add(n, ids, key)
		}
	}
	for _, p := range c.peers.byKey {
		m := c.sets.of(p.identity)
		if len(m.ids) == 0 {
			continue
		}
		for _, prefix := range p.prefixes {
			add(prefix, m.ids, m.key)
		}
	}

	// A prefix comes after the ones that contain it, which are on the stack then.
	type enclosing struct {
		prefix netip.Prefix
		class  uint32
	}
	type step struct {
		from uint32
		key  string
	}
	known := make(map[step]uint32)
	classes := make(map[netip.Prefix]PeerClass, prefixes.Size())
	var stack []enclosing
	for prefix, d := range prefixes.AllSorted() {
		for len(stack) > 0 && !stack[len(stack)-1].prefix.Overlaps(prefix) {
			stack = stack[:len(stack)-1]
		}
		from := uint32(0)
		if len(stack) > 0 {
			from = stack[len(stack)-1].class
		}
		class, ok := known[step{from, d.key}]
		if !ok {
			class = c.peerClass(union(c.peerNumbers.entries[from].value, d.ids))
			known[step{from, d.key}] = class
		}
		if class == from && from != 0 {
			continue // the prefix around it says the same
		}
		stack = append(stack, enclosing{prefix, class})
		classes[prefix] = PeerClass(class)
	}
	return classes
}

func (c *Compiler) peerClass(ids []setID) uint32 {
	c.scratch = appendIDs(c.scratch[:0], ids)
	// Peer classes are limited by memory long before their numbers end.
	class, _ := c.peerNumbers.take(c.scratch, c.result, func() []setID { return ids })
	return class
}
