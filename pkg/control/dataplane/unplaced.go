package dataplane

import (
	"fmt"
	"net/netip"

	"github.com/gaissmai/bart"

	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"
)

// withoutRoom returns the rulesets that have to be closed, and why, because the tables of
// classes have no room for some addresses. Programs take such an address for one of the
// next larger prefix. A ruleset that may allow it more for that than it should is closed;
// one that can only deny it more stays, and so only the address itself is cut off.
func (c *classifier) withoutRoom(t *policy.Tables) map[policy.RulesetID]error {
	for p := range c.unplaced {
		if _, wanted := t.Peers[p]; !wanted {
			delete(c.unplaced, p)
		}
	}
	if len(c.unplaced) == 0 {
		return nil
	}
	var placed bart.Table[policy.PeerClass]
	for p, class := range t.Peers {
		if !p.IsSingleIP() && !c.unplaced[p] {
			placed.Insert(p, class)
		}
	}
	moves := make(map[[2]policy.PeerClass]netip.Prefix)
	for p := range c.unplaced {
		taken, _ := placed.LookupPrefix(p)
		moves[[2]policy.PeerClass{taken, t.Peers[p]}] = p
	}
	out := make(map[policy.RulesetID]error)
	for id := range c.live {
		r := t.Rulesets[id]
		if r == nil {
			continue // about to be left
		}
		for m, p := range moves {
			if allowsMore(r, r.Sources, m[0], m[1]) || allowsMore(r, r.Destinations, m[0], m[1]) {
				out[id] = fmt.Errorf("class of %s: %w, and the ruleset would allow too much without it", p, kernel.ErrFull)
				break
			}
		}
	}
	return out
}

// allowsMore says whether a ruleset may allow an address something if it is taken for one
// of another class, that it does not allow it.
func allowsMore(r *policy.Ruleset, d *policy.Dimension, taken, class policy.PeerClass) bool {
	if d.RowOf(uint32(taken)) == d.RowOf(uint32(class)) {
		return false
	}
	for i, rule := range r.Rules() {
		bit := uint64(1) << (i % 64)
		matches, should := d.Word(uint32(taken), i/64)&bit != 0, d.Word(uint32(class), i/64)&bit != 0
		if matches == should {
			continue
		}
		switch rule.Action {
		case policy.Log:
		case policy.Allow:
			if matches {
				return true
			}
		case policy.Deny:
			if should {
				return true
			}
		default: // what is behind it decides
			return true
		}
	}
	return false
}
