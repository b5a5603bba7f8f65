package dataplane

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"
)

// writeAddresses gives every address its class. It returns the rulesets that judge
// some address otherwise than before.
func (c *classifier) writeAddresses(t *policy.Tables) (map[policy.RulesetID]bool, error) {
	touched := c.moved
	moves := make(map[[2]policy.PeerClass]bool)
	var errs []error
	after := c.beforeNets
	if c.before == nil || !maps.Equal(c.before, t.Peers) {
		after = new(bart.Table[policy.PeerClass])
		for p, class := range t.Peers {
			if !p.IsSingleIP() {
				after.Insert(p, class)
			}
		}
		for p, class := range t.Peers {
			if was, known := c.classBefore(p); known && was != class {
				moves[[2]policy.PeerClass{was, class}] = true
			}
		}
		for p, was := range c.before {
			if _, stays := t.Peers[p]; !stays {
				class, _ := after.LookupPrefix(p)
				moves[[2]policy.PeerClass{was, class}] = true
			}
		}
	}
	var added, changed, gone []netip.Prefix
	for p, class := range t.Peers {
		if have, ok := c.addresses[p]; !ok {
			added = append(added, p)
		} else if have != c.peers.kernel[uint32(class)] {
			changed = append(changed, p)
		}
	}
	for p := range c.addresses {
		if _, stays := t.Peers[p]; !stays {
			gone = append(gone, p)
		}
	}
	if err := c.moveAddresses(t, added, changed, gone); err != nil {
		errs = append(errs, err)
	}
	// What a class meant in a result that is too long ago is not known any more.
	lost := c.before == nil || t.Compiler != c.compiler || t.Result > c.seen+2
	lost = lost && len(added)+len(changed)+len(gone) > 0
	for id, r := range t.Rulesets {
		for m := range moves {
			if m[0] != m[1] && r.Affected(m[0], m[1]) {
				touched[id] = true
				break
			}
		}
		if lost {
			touched[id] = true
		}
	}
	if err := errors.Join(errs...); err != nil {
		return touched, err // before stays: what is affected is so next time too
	}
	c.before, c.beforeNets, c.seen, c.compiler = maps.Clone(t.Peers), after, t.Result, t.Compiler
	return touched, nil
}

// moveAddresses writes the classes of addresses. The longest prefixes come first and
// go last, so that no address gets the class of a shorter prefix in between. An IPv4
// address has its new class when the trie has it.
func (c *classifier) moveAddresses(t *policy.Tables, added, changed, gone []netip.Prefix) error {
	var errs []error
	slices.SortFunc(added, func(a, b netip.Prefix) int { return b.Bits() - a.Bits() })
	slices.SortFunc(gone, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() })
	stay := slices.Concat(added, changed)
	steps, standIns := make(map[netip.Prefix]step), make(map[step]uint32)
	if len(c.between.old) > 0 {
		for _, p := range slices.Concat(stay, gone) {
			from, there := c.addresses[p]
			if !there {
				from, _ = c.shorter(p)
			}
			steps[p] = step{from, c.peers.kernel[uint32(classAfter(t, p))]}
		}
		distinct := make(map[step]bool)
		for _, s := range steps {
			distinct[s] = true
		}
		standIns = c.standIn(c.peers, distinct, math.MaxUint32, 0, 1)
	}
	for _, p := range stay {
		class := c.peers.kernel[uint32(t.Peers[p])]
		k, ok := standIns[steps[p]]
		if ok {
			c.between.later = append(c.between.later, later{prefix: p, class: class})
		} else {
			k = class
		}
		if err := c.putAddress(p, k); err != nil {
			errs = append(errs, err)
		}
	}
	for _, p := range gone {
		var err error
		if len(standIns) == 0 {
			err = c.deleteAddress(p)
		} else {
			// The prefix around it may have a class that stands in for others.
			k, ok := standIns[steps[p]]
			if !ok {
				k = steps[p].to
			}
			c.between.later = append(c.between.later, later{prefix: p, goes: true})
			if k != c.addresses[p] {
				err = c.putAddress(p, k)
			}
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, c.trie.flush())...)
}

// classAfter is the class that the addresses of a prefix get, but for those of longer ones.
func classAfter(t *policy.Tables, p netip.Prefix) policy.PeerClass {
	for bits := p.Bits(); bits >= 0; bits-- {
		if class, ok := t.Peers[netip.PrefixFrom(p.Addr(), bits).Masked()]; ok {
			return class
		}
	}
	return 0
}

// classBefore is the class that an address had in the last tables.
func (c *classifier) classBefore(p netip.Prefix) (class policy.PeerClass, known bool) {
	if c.before == nil {
		return 0, false
	}
	if class, ok := c.before[p]; ok {
		return class, true
	}
	class, _ = c.beforeNets.LookupPrefix(p)
	return class, true
}

// classes is how many addresses and other prefixes have a class in the kernel.
func (c *classifier) classes() (hosts, nets int) { return c.singles, len(c.addresses) - c.singles }

// classesFor is how many addresses and nets have classes in the tables.
func (c *classifier) classesFor(t *policy.Tables) (hosts, nets int) {
	count := func(p netip.Prefix) {
		if p.IsSingleIP() {
			hosts++
		} else {
			nets++
		}
	}
	if c.applied == 0 || t.Compiler != c.compiler || t.Result > c.applied+1 {
		for p := range t.Peers {
			count(p)
		}
		return hosts, nets
	}
	// What is in the kernel, and what comes to that.
	hosts, nets = c.classes()
	for _, p := range t.Changes.Peers {
		_, there := c.addresses[p]
		if _, wanted := t.Peers[p]; wanted && !there {
			count(p)
		}
	}
	return hosts, nets
}

func (c *classifier) putAddress(p netip.Prefix, k uint32) error {
	var err error
	if p.IsSingleIP() {
		err = c.kernel.HostClasses.Put(kernel.NewAddress(p.Addr()), k)
	} else if err = c.kernel.NetClasses.Put(kernel.NewPrefix(p), k); errors.Is(err, kernel.ErrFull) {
		// Linux before 6.13 changes no entry of a full trie. Where it is not one that
		// could be changed there is still no room.
		if _, there := c.addresses[p]; there && c.deleteAddress(p) == nil {
			err = c.kernel.NetClasses.Put(kernel.NewPrefix(p), k)
		}
	}
	if delete(c.unplaced, p); errors.Is(err, kernel.ErrFull) {
		c.unplaced[p] = true
	}
	if err != nil {
		return fmt.Errorf("class of %s: %w", p, err)
	}
	if have, ok := c.addresses[p]; ok {
		c.carriers[have]--
	} else if p.IsSingleIP() {
		c.singles++
	}
	c.addresses[p] = k
	c.carriers[k]++
	if p.Addr().Is4() {
		c.trie.put(p, k)
	}
	return nil
}

func (c *classifier) deleteAddress(p netip.Prefix) error {
	var err error
	if p.IsSingleIP() {
		err = c.kernel.HostClasses.Delete(kernel.NewAddress(p.Addr()))
	} else {
		err = c.kernel.NetClasses.Delete(kernel.NewPrefix(p))
	}
	if err != nil {
		return fmt.Errorf("class of %s: %w", p, err)
	}
	c.carriers[c.addresses[p]]--
	delete(c.addresses, p)
	if p.IsSingleIP() {
		c.singles--
	}
	if p.Addr().Is4() {
		class, bits := c.shorter(p)
		c.trie.remove(p, class, bits)
	}
	return nil
}

// shorter is the class of the longest prefix that a prefix is part of, in the kernel, and
// its length, -1 if there is none.
func (c *classifier) shorter(p netip.Prefix) (class uint32, bits int) {
	for bits = p.Bits() - 1; bits >= 0; bits-- {
		if class, ok := c.addresses[netip.PrefixFrom(p.Addr(), bits).Masked()]; ok {
			return class, bits
		}
	}
	return 0, -1
}
