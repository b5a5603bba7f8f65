package policy

import (
	"fmt"
	"slices"

	"calico-xdp/pkg/api"
)

// compiledRuleset is a ruleset with what its vectors are made from.
type compiledRuleset struct {
	rules   []Rule
	clauses []clause
	// ruleset is what was handed out, true for these versions of the classes.
	ruleset                  *Ruleset
	peerVersion, portVersion uint64
	overflow                 bool // of the ports
}

// segment is a part of a ruleset that Pass leaves: the policies of a tier, or a
// profile.
type segment struct {
	tier   *tier // nil: a profile
	blocks []*block
}

// leaves says whether there are packets that no rule of the segment decides
// about.
func (s segment) leaves() bool {
	if s.tier == nil || s.tier.defaultAction == Pass {
		return true
	}
	return slices.ContainsFunc(s.blocks, func(b *block) bool {
		return slices.ContainsFunc(b.clauses, func(k clause) bool { return k.action == Pass })
	})
}

// segments returns what decides about an endpoint in one direction, in order,
// and whether there is anything left to decide behind it.
func (c *Compiler) segments(i *identity, profiles []string, direction int) (list []segment, open bool) {
	for _, set := range c.policySets.of(i).sets {
		set.mark = i
	}
	inTier := func(t *tier) segment {
		s := segment{tier: t}
		for _, p := range t.policies {
			if p.applies[direction] && p.set.mark == i {
				s.blocks = append(s.blocks, c.policyBlock(p, direction, t))
			}
		}
		return s
	}
	for _, t := range c.tiers {
		if t.exists {
			continue
		}
		// Nobody knows where the tier would be, so it is in front: it closes.
		if s := inTier(t); len(s.blocks) > 0 {
			return []segment{s}, false
		}
	}
	for _, t := range c.tiers {
		if s := inTier(t); len(s.blocks) > 0 {
			list = append(list, s)
			if !s.leaves() {
				return list, false
			}
		}
	}
	for _, name := range profiles {
		list = append(list, segment{blocks: []*block{c.profileBlock(name, direction)}})
	}
	return list, true
}

// rulesetOf returns the ruleset of an endpoint in one direction. It fails if the
// ruleset is too long; then the one it returns denies all.
func (c *Compiler) rulesetOf(i *identity, profiles []string, direction int) (RulesetID, error) {
	segments, open := c.segments(i, profiles, direction)
	size := 0
	if open {
		size++
	}
	key := []byte{byte(direction)}
	for _, s := range segments {
		if s.tier != nil {
			size++
			key = appendText(append(key, 1, byte(s.tier.defaultAction)), s.tier.name)
		} else {
			key = append(key, 0)
		}
		for _, b := range s.blocks {
			size += len(b.clauses)
			if s.tier != nil && b.err != nil {
				return c.closed(direction, s.tier, b.object), nil
			}
			key = appendIDs(append(key, 2), []setID{setID(b.id)})
		}
	}
	if size > MaxRules {
		at, t := longest(segments)
		return c.closed(direction, t, at), fmt.Errorf("%s: %d rules apply, %d can be compiled", directions[direction], size, MaxRules)
	}
	id, _ := c.rulesets.take(key, c.result, func() *compiledRuleset { return flatten(segments, open, direction) })
	return RulesetID(id), nil
}

// longest returns the policy or profile that has the most rules.
func longest(segments []segment) (object api.Key, t *tier) {
	most := -1
	for _, s := range segments {
		for _, b := range s.blocks {
			if len(b.clauses) > most {
				most, object, t = len(b.clauses), b.object, s.tier
			}
		}
	}
	return object, t
}

// closed is a ruleset that denies all because of one policy or profile.
func (c *Compiler) closed(direction int, t *tier, object api.Key) RulesetID {
	id := RuleID{Policy: object, Direction: directions[direction], Index: -1}
	if t != nil {
		id.Tier = t.name
	}
	key := appendText(appendText([]byte{byte(direction), 3}, id.Tier), object.Kind)
	key = appendText(appendText(key, object.Namespace), object.Name)
	n, _ := c.rulesets.take(key, c.result, func() *compiledRuleset {
		return &compiledRuleset{rules: []Rule{{Action: Deny, ID: id}}, clauses: make([]clause, 1)}
	})
	return RulesetID(n)
}

// flatten makes one list of the segments and, if anything gets through them, the
// final drop.
func flatten(segments []segment, open bool, direction int) *compiledRuleset {
	r := new(compiledRuleset)
	add := func(k clause, id RuleID) {
		id.Direction, id.Index = directions[direction], k.index
		r.clauses = append(r.clauses, k)
		r.rules = append(r.rules, Rule{Action: k.action, ID: id})
	}
	for _, s := range segments {
		first, name := len(r.rules), ""
		if s.tier != nil {
			name = s.tier.name
		}
		for _, b := range s.blocks {
			for _, k := range b.clauses {
				add(k, RuleID{Tier: name, Policy: b.object})
			}
		}
		if s.tier != nil {
			add(clause{action: s.tier.defaultAction, index: -1}, RuleID{Tier: name})
		}
		for i := first; i < len(r.rules); i++ {
			if r.rules[i].Action == Pass {
				r.rules[i].Next = uint16(len(r.rules))
			}
		}
	}
	if open {
		add(clause{action: Deny, index: -1}, RuleID{})
	}
	return r
}
