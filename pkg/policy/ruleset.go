package policy

import (
	"encoding/binary"
	"fmt"
	"slices"

	"calico-xdp/pkg/api"
)

// ruleset is a compiled ruleset. It stays for one result after the last in which
// an endpoint had it: packets may still be judged by it.
type ruleset struct {
	id         RulesetID
	key        string
	out        *Ruleset // what is handed out
	blocks     []*block
	terms      [parts]termList // until there are dimensions
	dimensions [parts]*dimension
	tooLong    error  // why it denies all
	kinds      int    // that have it
	left       uint64 // with no kinds: the first result without
}

// number is the ruleset's id; 0 if there is none.
func (r *ruleset) number() RulesetID {
	if r == nil {
		return 0
	}
	return r.id
}

// segment is a part of a ruleset that Pass leaves: the policies of a tier, or a
// profile.
type segment struct {
	tier   *tier // nil: a profile
	blocks []*block
}

// leaves says whether there are packets that no rule of the segment decides about
// at this stage.
func (s segment) leaves(at stage) bool {
	return s.end(at) != Deny || slices.ContainsFunc(s.blocks, func(b *block) bool { return b.passes })
}

// end is what becomes of a packet that no rule of the segment matches; 0 if it
// just goes on behind it.
func (s segment) end(at stage) Action {
	if s.tier == nil || at == preDNAT || at == untracked {
		return 0
	}
	return s.tier.defaultAction
}

// segments returns what decides about endpoints of one kind at one stage, in order,
// and whether there is anything left to decide behind it.
func (c *Compiler) segments(k *kind, at stage, direction int, policies []*policySource) (list []segment, open bool) {
	// Nobody knows where a tier would be that does not exist, so it is in front: it
	// closes.
	gone := slices.DeleteFunc(slices.Clone(policies), func(p *policySource) bool { return p.tier.exists })
	if len(gone) > 0 {
		policies = gone
	}
	for i, p := range policies {
		if i == 0 || p.tier != policies[i-1].tier {
			if i > 0 && len(gone) == 0 && !list[len(list)-1].leaves(at) {
				return list, false
			}
			list = append(list, segment{tier: p.tier})
		}
		s := &list[len(list)-1]
		s.blocks = append(s.blocks, c.blockOf(p.lists[direction]))
	}
	if len(gone) > 0 || len(list) > 0 && !list[len(list)-1].leaves(at) {
		return list, false
	}
	if at == normal {
		for _, p := range k.profiles {
			list = append(list, segment{blocks: []*block{c.blockOf(p.lists[direction])}})
		}
	}
	return list, true
}

// rulesetOf returns the ruleset of a kind, nil if nothing is to be said at that
// stage, or if the staged one would be the enforced one. It fails if the ruleset is
// too long; then the one it returns denies all.
func (c *Compiler) rulesetOf(k *kind, at stage, direction int, v variant) (*ruleset, error) {
	if at != normal && !k.host || at == preDNAT && direction == egress {
		return nil, nil
	}
	policies, differ := c.policiesFor(k, at, direction, v)
	if v == staged && !differ || v == enforced && at != normal && len(policies) == 0 {
		return nil, nil
	}
	segments, open := c.segments(k, at, direction, policies)
	blocks, size, key := layOut(segments, at)
	key = append(key, byte(direction), byte(v))
	if open {
		key = append(key, 2, byte(endOf(at)))
	}
	tooLong := size > MaxRules
	if tooLong {
		key = append(key, 1)
	}
	r := c.rulesets[string(key)]
	if r == nil {
		r = &ruleset{key: string(key), blocks: blocks}
		c.lastRuleset++
		r.id = c.lastRuleset
		c.byID[r.id] = r
		for _, b := range blocks {
			b.rulesets++
		}
		if tooLong {
			which := directions[direction]
			if v == staged {
				which = "staged " + which
			}
			r.tooLong = fmt.Errorf("%s: %d rules apply, %d can be compiled", which, size, MaxRules)
			r.close(segments)
		} else {
			r.flatten(segments, open, at, direction, v)
		}
		c.rulesets[r.key] = r
		c.fresh = append(c.fresh, r)
	}
	return r, r.tooLong
}

// layOut returns the blocks of segments, how many rules they make, and a key that says
// the same for the same ones.
func layOut(segments []segment, at stage) (blocks []*block, size int, key []byte) {
	size = 1
	for _, s := range segments {
		if s.tier != nil {
			size++
			key = appendText(append(key, 1, byte(s.end(at))), s.tier.name)
		} else {
			key = append(key, 0)
		}
		for _, b := range s.blocks {
			blocks = append(blocks, b)
			size += b.clauses
			key = binary.LittleEndian.AppendUint64(append(key, 2), b.id)
		}
	}
	return blocks, size, append(key, 3)
}

// endOf is what becomes of a packet at a stage that nothing there has decided about.
func endOf(at stage) Action {
	return [stages]Action{normal: Deny, forward: Allow, preDNAT: Continue, untracked: Continue}[at]
}

// flatten makes one list of the segments and, if anything gets through them, what
// becomes of that.
func (r *ruleset) flatten(segments []segment, open bool, at stage, direction int, v variant) {
	r.out = new(Ruleset)
	end := func(a Action, tier string) {
		r.addOne(a, RuleID{Tier: tier, Direction: directions[direction], Index: -1, Staged: v == staged})
	}
	for _, s := range segments {
		first, whole := len(r.out.Parts), Segment{From: r.out.Len()}
		if s.tier != nil {
			whole.Tier = s.tier.name
		}
		for _, b := range s.blocks {
			whole.Policies = append(whole.Policies, b.list.object)
			r.add(b.runIn(whole.Tier), &b.pieces)
		}
		if a := s.end(at); a != 0 {
			end(a, whole.Tier)
		}
		whole.To = r.out.Len()
		for i := range r.out.Parts[first:] {
			r.out.Parts[first+i].Next = whole.To
		}
		r.out.Segments = append(r.out.Segments, whole)
	}
	if open {
		end(endOf(at), "")
	}
}

// add puts rules behind those that there are.
func (r *ruleset) add(run *Run, pieces *[parts]termPiece) {
	if len(run.Rules) == 0 {
		return
	}
	r.out.Parts = append(r.out.Parts, Part{From: r.out.Len(), Run: run})
	for part := range r.terms {
		r.terms[part].append(pieces[part])
	}
}

// addOne puts a rule that asks for nothing behind those that there are.
func (r *ruleset) addOne(a Action, id RuleID) {
	run := &Run{ID: id, Rules: []RunRule{{a, true, int32(id.Index)}}}
	run.ID.Index = 0
	nothing := newTermPiece([]*term{nil})
	r.add(run, &[parts]termPiece{nothing, nothing, nothing, nothing})
}

// close makes a ruleset that is too long one that denies all, because of the longest
// of its parts.
func (r *ruleset) close(segments []segment) {
	var longest *block
	var tier string
	for _, s := range segments {
		for _, b := range s.blocks {
			if longest != nil && b.clauses <= longest.clauses {
				continue
			}
			if longest, tier = b, ""; s.tier != nil {
				tier = s.tier.name
			}
		}
	}
	r.out = new(Ruleset)
	id := longest.list.ruleID(tier)
	r.addOne(Deny, id)
	r.out.Segments = []Segment{{Tier: tier, To: 1, Policies: []api.Key{id.Policy}}}
}

// ruleID is the id of the list as a whole.
func (l *ruleList) ruleID(tier string) RuleID {
	return RuleID{Tier: tier, Policy: l.object, Direction: directions[l.direction], Index: -1, Staged: stagedKind(l.object.Kind)}
}

// use notes that one more kind has the ruleset.
func (c *Compiler) use(r *ruleset) *ruleset {
	if r == nil {
		return nil
	}
	if r.kinds++; r.kinds > 1 {
		return r
	}
	for _, b := range r.blocks {
		if b.current++; b.current > 1 {
			continue
		}
		for _, err := range b.problems {
			c.problems.add(b.list.object, err)
		}
	}
	return r
}

// leave notes that one kind less has the ruleset.
func (c *Compiler) leave(r *ruleset) {
	if r == nil {
		return
	}
	if r.kinds--; r.kinds > 0 {
		return
	}
	r.left = c.result
	c.leaving = append(c.leaving, r)
	for _, b := range r.blocks {
		if b.current--; b.current > 0 {
			continue
		}
		for _, err := range b.problems {
			c.problems.remove(b.list.object, err)
		}
	}
}

// forgetRulesets drops the rulesets that no endpoint has, nor had in the result
// before.
func (c *Compiler) forgetRulesets() {
	leaving := c.leaving
	c.leaving = nil
	for _, r := range leaving {
		switch {
		case r.kinds > 0 || c.rulesets[r.key] != r:
		case r.left == c.result:
			c.leaving = append(c.leaving, r)
		default:
			c.forgetRuleset(r)
		}
	}
}

func (c *Compiler) forgetRuleset(r *ruleset) {
	delete(c.rulesets, r.key)
	delete(c.byID, r.id)
	delete(c.handed, r.id)
	c.replaced[r.id] = struct{}{}
	for _, d := range r.dimensions {
		d.release(r)
	}
	for _, b := range r.blocks {
		c.releaseBlock(b)
	}
}

// complete gives a ruleset its dimensions.
func (c *Compiler) complete(r *ruleset) {
	for part, terms := range r.terms {
		r.dimensions[part] = c.spaceOf(part).dimension(r, terms)
	}
	r.terms = [parts]termList{}
	c.handOut(r)
}

// handOut puts a ruleset, new or made anew, among those that are handed out.
func (c *Compiler) handOut(r *ruleset) {
	for part, to := range [parts]**Dimension{&r.out.Sources, &r.out.Destinations, &r.out.SourcePorts, &r.out.DestinationPorts} {
		*to = &r.dimensions[part].Dimension
	}
	c.handed[r.id] = r.out
	c.replaced[r.id] = struct{}{}
}
