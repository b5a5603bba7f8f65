package dataplane

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	kernel "calico-xdp/pkg/maps"
)

// standIns are classes for the time in which endpoints switch: an address that goes from one
// class to another has such a one meanwhile, where the rulesets that endpoints are about to
// leave take it for the former, and those that they get take it for the latter. So the
// switch of an endpoint is the one moment in which all that changes for it changes, the
// rules and what they are about.
//
// There are none where it makes no difference, as when only rules change: then the rulesets
// of before do not tell the two classes apart.
type standIns struct {
	old   map[*ruleset]bool // that endpoints are about to leave
	later []later
	ports map[int]kernel.PortClass // what they get after the switch, by index
	spent []spent
}

// later is what a prefix gets after the switch: its class, or it goes.
type later struct {
	prefix netip.Prefix
	class  uint32
	goes   bool
}

// spent is a number that somebody may still be reading.
type spent struct {
	of     *numbers
	number uint32
	at     time.Time
}

// step is the classes between which something moves.
type step struct{ from, to uint32 }

// atRow is the row of a class in one dimension, not ok if there is none.
func (r *ruleset) atRow(dimension int, k uint32) (row int, ok bool) {
	switch dimension {
	case 0:
		return r.sourceRow(k), int(k) < r.peers
	case 1:
		return r.destinationRow(k), int(k) < r.peers
	case 2:
		return r.sourcePortRow(k), int(k) < r.ports
	}
	return r.destinationPortRow(k), int(k) < r.ports
}

// tellsApart says whether it makes a difference to a ruleset, as it is, which of two classes
// something has.
func (r *ruleset) tellsApart(s step, dimensions []int) bool {
	return slices.ContainsFunc(dimensions, func(d int) bool {
		from, known := r.atRow(d, s.from)
		to, ok := r.atRow(d, s.to)
		return known && (!ok || r.words[from] != r.words[to])
	})
}

// standIn finds numbers of classes that stand in for these steps, in these dimensions, and
// gives them their rows. If there is no room for them there are none.
func (c *classifier) standIn(n *numbers, steps map[step]bool, limit int, dimensions ...int) map[step]uint32 {
	out := make(map[step]uint32)
	for r := range c.between.old {
		for s := range steps {
			if s.from != s.to && r.tellsApart(s, dimensions) {
				out[s] = 0
			}
		}
	}
	if len(out) == 0 || int(n.top)+len(out) > limit {
		return nil
	}
	for s := range out {
		out[s] = n.take(func(k uint32) bool { return n == c.peers && c.carriers[k] > 0 })
		c.between.spent = append(c.between.spent, spent{n, out[s], time.Now()})
	}
	if c.makeRoom() != nil {
		return nil
	}
	rulesets := make(map[*ruleset]bool, len(c.live))
	for _, r := range c.live {
		rulesets[r] = false
	}
	maps.Copy(rulesets, c.between.old)
	for r, old := range rulesets {
		for s, k := range out {
			like := s.to
			if old {
				like = s.from
			}
			for _, d := range dimensions {
				row, _ := r.atRow(d, k)
				word := uint64(0)
				if from, ok := r.atRow(d, like); ok {
					word = r.words[from]
				}
				if r.words[row] == word {
					continue
				}
				if r.words[row] = word; c.kernel.Words.Write(r.base+row, r.words[row:row+1]) != nil {
					return nil
				}
			}
		}
	}
	return out
}

// makeRoom puts the rulesets that have no rows for all classes where they have, and leads
// endpoints there.
func (c *classifier) makeRoom() error {
	moved := make(map[uint32]uint32)
	var errs []error
	wider := func(r *ruleset) *ruleset {
		w, err := c.widen(r)
		if err != nil {
			errs = append(errs, err)
			return r
		}
		moved[uint32(r.base)] = uint32(w.base)
		c.leaving = append(c.leaving, r)
		if c.between.old[r] {
			delete(c.between.old, r)
			c.between.old[w] = true
		}
		return w
	}
	for id, r := range c.live {
		if !c.fits(r) {
			c.live[id] = wider(r)
		}
	}
	for i, r := range slices.Clone(c.leaving) {
		if !c.fits(r) && c.between.old[r] {
			w := wider(r)
			c.leaving[i] = w
		}
	}
	return errors.Join(append(errs, c.records.move(moved))...)
}

// widen copies a ruleset to where there is room for more classes: it says the same. One
// of a former process may have more of some than there are now.
func (c *classifier) widen(r *ruleset) (*ruleset, error) {
	w, err := r.wider(max(r.peers, capacity(c.peers.top)), max(r.ports, capacity(max(c.sources.top, c.destinations.top))))
	if err == nil {
		w.extent, err = c.extents.take(w.size)
	}
	if err != nil {
		return nil, err
	}
	if err := c.kernel.Words.Write(w.base, w.words); err != nil {
		c.extents.release(w.extent)
		return nil, err
	}
	c.rules.keep(w.numbers(), w.without)
	return w, nil
}

// settle gives what a class has stood in for its own: every endpoint has switched. It says
// whether there was anything.
func (c *classifier) settle() (bool, error) {
	b := c.between
	c.between.old, c.between.later, c.between.ports = nil, nil, nil
	if len(b.later)+len(b.ports) == 0 {
		return false, nil
	}
	var errs []error
	for i, want := range b.ports {
		errs = append(errs, c.putPort(i, want))
	}
	for _, l := range b.later {
		switch {
		case c.unplaced[l.prefix]: // there is no room for it
		case l.goes:
			errs = append(errs, c.deleteAddress(l.prefix))
		default:
			errs = append(errs, c.putAddress(l.prefix, l.class))
		}
	}
	err := errors.Join(append(errs, c.trie.flush())...)
	if err != nil {
		c.applied = 0 // somebody may have a class that nobody else knows
	}
	return true, err
}

// reuse makes the numbers free that have stood in.
func (c *classifier) reuse(now time.Time) {
	c.between.spent = slices.DeleteFunc(c.between.spent, func(s spent) bool {
		if now.Sub(s.at) < grace {
			return false
		}
		s.of.free = append(s.of.free, s.number)
		return true
	})
}
