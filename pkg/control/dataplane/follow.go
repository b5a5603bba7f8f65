package dataplane

import (
	"errors"
	"maps"
	"net/netip"
	"slices"

	"calico-xdp/pkg/policy"
)

// follow brings what has changed since the last result into the kernel, which has
// that whole: no endpoint has a ruleset that these tables do not know.
func (c *classifier) follow(t *policy.Tables) (touched map[policy.RulesetID]bool, err error) {
	classes := c.renumber(t)
	moved := c.placeChanged(t, classes)
	c.leave(t)
	var about error
	if len(t.Changes.Endpoints)+len(c.leaving) > 0 {
		about = c.about()
	}
	err = errors.Join(moved, about, c.followPorts(t), c.followAddresses(t))
	touched = c.moved
	for id := range c.live {
		if slices.ContainsFunc(t.Changes.Moves, func(m [2]policy.PeerClass) bool { return t.Rulesets[id].Affected(m[0], m[1]) }) {
			touched[id] = true
		}
	}
	if err == nil {
		c.remember(t)
	}
	return touched, err
}

// renumber gives numbers in the kernel to the classes that are new, or have a new
// meaning. It returns them, for each dimension.
func (c *classifier) renumber(t *policy.Tables) (classes [4][]uint32) {
	peers := make(map[uint32]bool)
	for _, class := range t.Changes.PeerClasses {
		peers[uint32(class)] = true
	}
	for _, p := range t.Changes.Peers {
		if class, ok := t.Peers[p]; ok && !c.peers.has(uint32(class)) {
			peers[uint32(class)] = true
		}
	}
	classes[0] = c.renew(c.peers, peers, func(k uint32) bool { return c.carriers[k] > 0 })
	classes[1] = classes[0]
	classes[2] = c.renew(c.sources, portClasses(c.sources, t.Changes.SourcePortClasses, t.Changes.SourcePorts), nobody)
	classes[3] = c.renew(c.destinations, portClasses(c.destinations, t.Changes.DestinationPortClasses, t.Changes.DestinationPorts), nobody)
	c.numbered = t.Result
	return classes
}

// nobody carries a number of a class without meaning: the compiler has kept it back
// for two results, and free numbers of the kernel's are those that no port has.
func nobody(uint32) bool { return false }

func portClasses(n *numbers, born []policy.PortClass, changed []policy.PortRange) map[uint32]bool {
	classes := make(map[uint32]bool)
	for _, class := range born {
		classes[uint32(class)] = true
	}
	for _, r := range changed {
		if !n.has(uint32(r.Class)) {
			classes[uint32(r.Class)] = true
		}
	}
	return classes
}

func (c *classifier) renew(n *numbers, classes map[uint32]bool, stillThere func(uint32) bool) []uint32 {
	list := make([]uint32, 0, len(classes))
	for class := range classes {
		n.renew(class, stillThere)
		list = append(list, class)
	}
	return list
}

// placeChanged brings the rulesets into the kernel that endpoints want and that are
// not there, and gives rows for these classes to those that are. Where one has no room it
// is placed anew, and endpoints are led there at once: it says the same, and has rows
// for the classes that addresses have and for those that they get. So it is with those that
// endpoints are about to leave, which come last: there may be no room.
func (c *classifier) placeChanged(t *policy.Tables, classes [4][]uint32) error {
	moved := make(map[uint32]uint32)
	used := used(t)
	there := maps.Clone(c.live)
	for id, how := range used {
		from := t.Rulesets[id]
		if r := there[id]; from == nil {
			continue
		} else if r != nil {
			c.keepUp(id, r, from, classes, moved)
		} else {
			c.note(id, from, how == counting, c.placeAnew(id, from, how == counting))
		}
	}
	for id, r := range there {
		if from := t.Rulesets[id]; used[id] == 0 && from != nil {
			c.keepUp(id, r, from, classes, moved)
		}
	}
	return c.records.move(moved)
}

// keepUp gives a ruleset that is there rows for these classes, or a new place. moved gets
// where that is, and 0 if there is none.
func (c *classifier) keepUp(id policy.RulesetID, r *ruleset, from *policy.Ruleset, classes [4][]uint32, moved map[uint32]uint32) {
	stays := from == r.from && c.fits(r) && c.failed[id] == nil
	if stays {
		var changed []extent
		numbers := [4]map[uint32]uint32{c.peers.kernel, c.peers.kernel, c.sources.kernel, c.destinations.kernel}
		changed, stays = r.extend(classes, numbers)
		var errs []error
		for _, x := range changed {
			errs = append(errs, c.kernel.Words.Write(r.base+x.base, r.words[x.base:x.base+x.size]))
		}
		c.note(id, from, r.staged, errors.Join(errs...))
	}
	if stays && !c.numberable(r) {
		return
	}
	err := c.placeAnew(id, from, r.staged)
	switch {
	case err == nil:
		moved[uint32(r.base)] = uint32(c.live[id].base)
	case stays:
		return // only its rules are not counted
	default:
		moved[uint32(r.base)] = 0
		c.leaving = append(c.leaving, r)
		delete(c.live, id)
	}
	c.note(id, from, r.staged, err)
}

// followAddresses gives the addresses that have changed their classes.
func (c *classifier) followAddresses(t *policy.Tables) error {
	var added, changed, gone []netip.Prefix
	for _, p := range t.Changes.Peers {
		class, stays := t.Peers[p]
		have, there := c.addresses[p]
		switch {
		case !stays && there:
			gone = append(gone, p)
		case stays && !there:
			added = append(added, p)
		case stays && have != c.peers.kernel[uint32(class)]:
			changed = append(changed, p)
		}
	}
	return c.moveAddresses(t, added, changed, gone)
}

// remember keeps what the tables say of the addresses, for when they have to be
// compared.
func (c *classifier) remember(t *policy.Tables) {
	c.seen = t.Result
	for _, p := range t.Changes.Peers {
		class, ok := t.Peers[p]
		switch {
		case !ok:
			delete(c.before, p)
			c.beforeNets.Delete(p)
		case p.IsSingleIP():
			c.before[p] = class
		default:
			c.before[p] = class
			c.beforeNets.Insert(p, class)
		}
	}
}
