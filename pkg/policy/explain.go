package policy

import (
	"cmp"
	"slices"
	"strings"

	"calico-xdp/pkg/api"
)

// Explanation says why a ruleset decides about a packet as it does.
type Explanation struct {
	Action Action // Allow, Deny or Continue
	Rule   RuleID // that decides
	// Faults say what cannot be read of the rule that denies, or of its policy or
	// profile: it denies all that it may be about.
	Faults []error
	// Met are the rules with Log or Pass that the packet has met before, in order.
	Met []Rule
	// Path is the tiers and profiles that the packet has come to, in order.
	Path []Passage
	// Nearest are, for Deny, the rules that came close to allow the packet: it has
	// come to them, and fewest fields of theirs do not fit. In order, at most five.
	Nearest []NearMiss
}

// Passage is what became of a packet in one tier or profile.
type Passage struct {
	Tier string // empty for a profile
	// Policies are those that apply, in order, or the profile.
	Policies []api.Key
	// Matched says that a rule of theirs has decided, or passed on. If none has,
	// Rule is the tier's default action, or zero where there is none.
	Matched bool
	Action  Action // of Rule; 0 if there is none
	Rule    RuleID
}

// NearMiss is a rule that would allow the packet if it was another one in these
// fields.
type NearMiss struct {
	Rule   RuleID
	Fields []FieldMiss
}

// FieldMiss is a field of a rule that a packet does not fit.
type FieldMiss struct {
	Field string // as in the resource, "destination.ports"
	Want  string // what the rule asks for
	Got   string // what the packet has
}

func (f FieldMiss) String() string { return f.Field + ": want " + f.Want + ", got " + f.Got }

const mostNearest = 5

// Explain says why a ruleset decides about a packet as it does. As it reads what the
// compiler knows, it must not be called while that compiles, and it is true for the
// tables of its last result.
func (t *Tables) Explain(id RulesetID, p Packet) Explanation {
	p.Source, p.Destination = p.Source.Unmap(), p.Destination.Unmap()
	e := Explanation{Action: Deny}
	s := t.Rulesets[id]
	if s == nil {
		return e
	}
	last := Rule{Action: Deny}
	var left []int // of each segment that the packet has come to: the rule that it met last
	stop := s.Len() - 1
	for i := range t.matches(id, p) {
		if last = s.Rule(i); last.Action == Log || last.Action == Pass {
			e.Met = append(e.Met, last)
		}
		stop = i
		if last.Action != Log {
			left = append(left, i)
		}
	}
	e.Action, e.Rule = last.Action, last.ID
	for n := range s.Segments {
		segment := &s.Segments[n]
		if segment.From > stop {
			break
		}
		passage := Passage{Tier: segment.Tier, Policies: segment.Policies}
		for _, i := range left {
			if segment.From <= i && i < segment.To {
				rule := s.Rule(i)
				passage.Action, passage.Rule = rule.Action, rule.ID
				passage.Matched = passage.Rule.Policy != api.Key{}
			}
		}
		e.Path = append(e.Path, passage)
	}
	if r := t.source(id); r != nil && e.Action == Deny {
		t.Compiler.explainDeny(&e, r, left, p)
	}
	return e
}

// source is what a ruleset was compiled from; nil if that is not known.
func (t *Tables) source(id RulesetID) *ruleset {
	if t.Compiler == nil || t.Compiler.byID[id] == nil || t.Compiler.byID[id].out != t.Rulesets[id] {
		return nil
	}
	return t.Compiler.byID[id]
}

// sourceRule is a rule of a ruleset as it was before it was flattened.
type sourceRule struct {
	id    RuleID
	block *block
	rule  *rule // nil for the block as a whole
	at    int   // its first clause in the ruleset; without any, where that would be
}

// each calls yield with the rules of a ruleset segment by segment.
func (r *ruleset) each(yield func(segment int, s sourceRule) bool) {
	blocks := r.blocks
	for n := range r.out.Segments {
		segment := &r.out.Segments[n]
		at := segment.From
		for _, b := range blocks[:len(segment.Policies)] {
			id := b.list.ruleID(segment.Tier)
			if b.closed {
				if !yield(n, sourceRule{id, b, nil, at}) {
					return
				}
				at++
			}
			for i, x := range b.rules {
				id.Index = b.list.number(i)
				if !yield(n, sourceRule{id, b, x, at}) {
					return
				}
				at += len(x.clauses)
			}
		}
		blocks = blocks[len(segment.Policies):]
	}
}

// explainDeny completes the explanation of a packet that is denied. left are the
// rules by which it has left each segment that it did not just go through, and the one
// that denies.
func (c *Compiler) explainDeny(e *Explanation, r *ruleset, left []int, p Packet) {
	if r.tooLong != nil {
		e.Faults = []error{r.tooLong}
		return
	}
	stops := make([]int, 0, len(e.Path)) // by segment, the last rule that the packet has come to
	for n := range e.Path {
		segment := &r.out.Segments[n]
		stop := segment.To
		for _, i := range left {
			if segment.From <= i && i < segment.To {
				stop = i
			}
		}
		stops = append(stops, stop)
	}
	denies := left[len(left)-1]
	probe := c.newProbe(p)
	var best []candidate
	for n, s := range r.each {
		if n >= len(stops) {
			break
		}
		switch {
		case s.at > stops[n]:
		case s.rule == nil:
			if s.at == denies {
				e.Faults = s.block.problems
			}
		case s.at <= denies && denies < s.at+len(s.rule.clauses):
			for _, fault := range s.rule.faults {
				e.Faults = append(e.Faults, faultOf(s.id.Direction, s.id.Index, fault))
			}
		case s.rule.text.Action == "Allow":
			best = probe.consider(best, s)
		}
	}
	for _, x := range best {
		e.Nearest = append(e.Nearest, NearMiss{Rule: x.id, Fields: probe.misses(x.sourceRule, true)})
	}
}

// candidate is a rule that might be the nearest.
type candidate struct {
	sourceRule
	parts, fields int
	nature        int // of the fields, how many say what sort of packet it is
}

// consider keeps the rules that are nearest: those that miss fewest parts of the
// packet, then fewest fields. Of these, a rule about packets of the same sort is nearer
// than one about others.
func (p *probe) consider(best []candidate, s sourceRule) []candidate {
	missed := p.misses(s, false)
	if len(missed) == 0 {
		return best // no packet meets it
	}
	x := candidate{sourceRule: s, parts: countParts(missed), fields: len(missed)}
	for _, m := range missed {
		switch m.Field {
		case "protocol", "notProtocol", "ipVersion":
			x.nature++
		}
	}
	if len(best) > 0 {
		order := cmp.Or(cmp.Compare(x.parts, best[0].parts), cmp.Compare(x.fields, best[0].fields), cmp.Compare(x.nature, best[0].nature))
		if order > 0 || order == 0 && len(best) == mostNearest {
			return best
		}
		if order < 0 {
			best = best[:0]
		}
	}
	return append(best, x)
}

// countParts is how many parts of a packet fields are about: its addresses, its
// source port, and its protocol with the destination port.
func countParts(missed []FieldMiss) int {
	var parts []string
	for _, m := range missed {
		part, rest, _ := strings.Cut(m.Field, ".")
		switch {
		case rest == "ports" || rest == "notPorts":
			part += " port"
		case part == "source" || part == "destination" || part == "ipVersion":
		default:
			part = "destination port"
		}
		if !slices.Contains(parts, part) {
			parts = append(parts, part)
		}
	}
	return len(parts)
}
