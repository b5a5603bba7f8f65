package policy

import (
	"errors"
	"fmt"
	"slices"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"

	"calico-xdp/pkg/api"
)

// ruleList is the rules of a policy or profile in one direction.
type ruleList struct {
	object    api.Key
	namespace string
	direction int
	rules     []api.Rule
	from      []int   // the number of each rule in the resource; nil: as here
	causes    []error // why the list denies all, whatever its rules say

	block *block // compiled; nil if it has to be
	last  *block // compiled before; what has not changed is taken over from it
}

// block is a compiled list of rules.
type block struct {
	id       uint64
	list     *ruleList
	rules    []*rule
	clauses  int
	passes   bool       // a clause has the action Pass
	names    []portName // whose numbers it depends on
	closed   bool       // it denies all
	problems []error
	pieces   [parts]termPiece // what its clauses ask for
	run      *Run             // the clauses, as they are handed out

	rulesets int // that have it
	current  int // those of them that are in use
}

// rule is one rule of a block. Blocks that follow each other share those that are
// the same.
type rule struct {
	text    *api.Rule
	clauses []clause
	names   bool    // depends on port names
	faults  []error // what of it cannot be read or enforced
	blocks  int     // that have it
}

// say makes the list say something else. It returns false if that is the same.
func (l *ruleList) say(rules []api.Rule, from []int, causes []error) bool {
	same := slices.EqualFunc(l.causes, causes, sameText) && slices.Equal(l.from, from) && len(l.rules) == len(rules)
	for i := 0; same && i < len(rules); i++ {
		same = sameRule(&l.rules[i], &rules[i])
	}
	l.rules, l.from, l.causes = rules, from, causes
	if !same {
		l.stale()
	} else if l.block != nil {
		for i, r := range l.block.rules { // none if it is closed
			r.text = &rules[i]
		}
	}
	return !same
}

// stale makes the list be compiled anew when it is needed.
func (l *ruleList) stale() {
	if l.block != nil {
		l.last, l.block = l.block, nil
	}
}

// blockOf compiles a list, unless that has been done.
func (c *Compiler) blockOf(l *ruleList) *block {
	if l.block != nil {
		return l.block
	}
	c.blocks++
	b := &block{id: c.blocks, list: l, closed: len(l.causes) > 0}
	if b.closed {
		b.problems, b.clauses = l.causes, 1
	} else {
		b.rules = c.rulesOf(l, b)
	}
	for _, r := range b.rules {
		b.clauses += len(r.clauses)
		b.passes = b.passes || len(r.clauses) > 0 && r.clauses[0].action == Pass
		r.blocks++
	}
	for _, name := range b.names {
		c.ports.use(name, b)
	}
	b.gather()
	l.block, l.last = b, nil
	return b
}

// gather lists what the block's clauses ask for.
func (b *block) gather() {
	for part := range b.pieces {
		terms := make([]*term, 0, b.clauses)
		if b.closed {
			terms = append(terms, nil)
		}
		for _, r := range b.rules {
			for i := range r.clauses {
				terms = append(terms, r.clauses[i].terms[part])
			}
		}
		b.pieces[part] = newTermPiece(terms)
	}
}

// runIn is the block's clauses as rules of that tier.
func (b *block) runIn(tier string) *Run {
	if b.run != nil && b.run.ID.Tier == tier {
		return b.run
	}
	b.run = &Run{ID: b.list.ruleID(tier), Rules: make([]RunRule, 0, b.clauses)}
	b.run.ID.Index = 0
	if b.closed {
		b.run.Rules = append(b.run.Rules, RunRule{Deny, true, -1})
	}
	for i, r := range b.rules {
		for k := range r.clauses {
			b.run.Rules = append(b.run.Rules, RunRule{r.clauses[k].action, r.clauses[k].sourceOnly(), int32(b.list.number(i))})
		}
	}
	return b.run
}

// rulesOf compiles the rules of a list, or takes over those of the block before:
// all but the ones between the first and the last that differ.
func (c *Compiler) rulesOf(l *ruleList, b *block) []*rule {
	var old []*rule
	if l.last != nil {
		old = l.last.rules
	}
	rules := make([]*rule, len(l.rules))
	parsed := make([]*parsedRule, len(l.rules))
	take := func(i int, r *rule) bool {
		if r.names || !sameRule(r.text, &l.rules[i]) {
			return false
		}
		rules[i], r.text = r, &l.rules[i]
		return true
	}
	first, last := 0, len(rules)
	for first < min(last, len(old)) && take(first, old[first]) {
		first++
	}
	for left := len(old); last > first && left > first && take(last-1, old[left-1]); left-- {
		last--
	}
	for i := first; i < last; i++ {
		r, faults := parseRule(&l.rules[i], l.namespace)
		parsed[i], rules[i] = r, &rule{text: &l.rules[i], faults: faults}
	}
	for i, r := range rules {
		if p := parsed[i]; p != nil {
			r.clauses = c.expand(p)
			names := p.portNames()
			r.names = len(names) > 0
			b.names = append(b.names, names...)
			c.hold(r)
		}
		for _, fault := range r.faults {
			b.problems = append(b.problems, faultOf(directions[l.direction], l.number(i), fault))
		}
	}
	return rules
}

// faultOf says which rule of a resource a fault is of.
func faultOf(direction string, number int, fault error) error {
	return fmt.Errorf("spec.%s[%d].%w", direction, number, fault)
}

// number is the number of a rule in the resource.
func (l *ruleList) number(i int) int {
	if l.from == nil {
		return i
	}
	return l.from[i]
}

// hold keeps what a rule asks for.
func (c *Compiler) hold(r *rule) {
	for i := range r.clauses {
		for _, t := range r.clauses[i].terms {
			if t != nil {
				t.rules++
			}
		}
	}
}

// releaseBlock takes a block from a ruleset.
func (c *Compiler) releaseBlock(b *block) {
	if b.rulesets--; b.rulesets > 0 {
		return
	}
	if b.list.block == b {
		b.list.block = nil
	}
	if b.list.last == b {
		b.list.last = nil
	}
	for _, name := range b.names {
		c.ports.release(name, b)
	}
	for _, r := range b.rules {
		if r.blocks--; r.blocks > 0 {
			continue
		}
		for i := range r.clauses {
			for part, t := range r.clauses[i].terms {
				c.spaceOf(part).release(t)
			}
		}
	}
}

// spaceOf is the space of one part of a packet.
func (c *Compiler) spaceOf(part int) *space {
	switch part {
	case sourcePorts:
		return c.sourcePorts.space
	case destinationPorts:
		return c.destinationPorts.space
	}
	return c.addresses.space
}

// allowProfile exists in every Calico cluster without being stored.
const allowProfile = "projectcalico-default-allow"

var errNoProfile = errors.New("does not exist")

// profile is a profile that exists or that somebody names.
type profile struct {
	name     string
	resource *api.Profile // nil: it does not exist
	lists    [2]*ruleList
	heirs    map[*peer]struct{} // that have its labels
	kinds    map[*kind]struct{} // that have its rules
}

// profile returns the profile of this name.
func (c *Compiler) profile(name string) *profile {
	p := c.profiles[name]
	if p != nil {
		return p
	}
	p = &profile{name: name, heirs: make(map[*peer]struct{}), kinds: make(map[*kind]struct{})}
	c.profiles[name] = p
	for direction := range p.lists {
		p.lists[direction] = &ruleList{object: api.Key{Kind: api.KindProfile, Name: name}, direction: direction}
	}
	p.say()
	return p
}

// say makes the profile's lists say what its resource does; it returns false if
// they did already.
func (p *profile) say() (changed bool) {
	for direction, l := range p.lists {
		var rules []api.Rule
		var causes []error
		switch {
		case p.resource != nil && direction == ingress:
			rules = p.resource.Spec.Ingress
		case p.resource != nil:
			rules = p.resource.Spec.Egress
		case p.name == allowProfile:
			rules = []api.Rule{{Action: v3.Allow}}
		default:
			causes = []error{errNoProfile}
		}
		changed = l.say(rules, nil, causes) || changed
	}
	return changed
}

// readProfile makes a profile agree with its resource; nil if there is none.
func (c *Compiler) readProfile(name string, r *api.Profile) {
	p := c.profiles[name]
	if p == nil && r == nil || p != nil && p.resource == r {
		return
	}
	p = c.profile(name)
	labels := func(r *api.Profile) map[string]string {
		if r == nil {
			return nil
		}
		return r.Spec.LabelsToApply
	}
	if had, has := labels(p.resource), labels(r); !sameLabels(had, has) {
		for x := range p.heirs {
			if !x.stale {
				x.stale = true
				c.stale = append(c.stale, x.key)
			}
		}
	}
	p.resource = r
	if p.say() {
		for k := range p.kinds {
			c.touch(k)
		}
	}
	c.tidyProfile(p)
}

// tidyProfile forgets a profile that does not exist and nobody names.
func (c *Compiler) tidyProfile(p *profile) {
	if p.resource == nil && len(p.heirs)+len(p.kinds) == 0 {
		delete(c.profiles, p.name)
	}
}

func sameLabels(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || w != v {
			return false
		}
	}
	return true
}

func sameText(a, b error) bool { return a == b || a.Error() == b.Error() }
