package policy

import (
	"errors"
	"fmt"
	"slices"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"

	"calico-xdp/pkg/api"
)

// block is the clauses of one policy or profile in one direction.
type block struct {
	id        uint32 // of the content
	object    api.Key
	clauses   []clause
	sets      []*peerSet
	ports     []*portSet
	namesPort bool  // depends on the endpoints that there are
	cause     error // the object as a whole is not valid
	err       error // that, or a rule is not: what the object applies to is closed
	problems  []Problem
	used      uint64
}

// alive says whether the block's number and its sets are all still there.
func (b *block) alive(result uint64) bool {
	return b.used+2 >= result &&
		!slices.ContainsFunc(b.sets, func(s *peerSet) bool { return s.dead }) &&
		!slices.ContainsFunc(b.ports, func(s *portSet) bool { return s.dead })
}

// touch marks the block and all that it refers to as used by this result.
func (c *Compiler) touch(b *block) {
	b.used = c.result
	c.blockNumbers.touch(b.id, c.result)
	for _, s := range b.sets {
		s.used = c.result
	}
	for _, s := range b.ports {
		s.used = c.result
	}
	for _, p := range b.problems {
		c.problems.add(p)
	}
}

// blockOf returns the block of these rules: the one there was, or a new one. A
// cause makes it a block that denies all.
func (c *Compiler) blockOf(old *block, object api.Key, namespace string, direction int, rules []api.Rule, cause error) *block {
	if old != nil && old.used == c.result {
		return old
	}
	if old != nil && !old.namesPort && old.alive(c.result) && sameText(old.cause, cause) {
		c.touch(old)
		return old
	}
	b := &block{object: object, cause: cause, err: cause}
	for i := range rules {
		if b.err != nil {
			break
		}
		r, err := parseRule(&rules[i], i, namespace)
		if err != nil {
			err = fmt.Errorf("spec.%s[%d].%w", directions[direction], i, err)
		}
		if r == nil {
			b.err = err
			break
		}
		if err != nil {
			b.problems = append(b.problems, Problem{Object: object, Err: err})
		}
		b.namesPort = b.namesPort || r.namesPort()
		b.clauses = c.expand(b.clauses, r)
	}
	if b.err != nil {
		b.clauses = []clause{{action: Deny, index: -1}}
		b.problems = []Problem{{Object: object, Err: b.err}}
	}
	key := appendText(appendText(appendText(nil, object.Kind), object.Namespace), object.Name)
	key = append(key, byte(direction))
	for i := range b.clauses {
		k := &b.clauses[i]
		key = k.appendKey(key)
		for side := range k.in {
			b.sets = append(append(b.sets, k.in[side]...), k.out[side]...)
			if k.ports[side].set != nil {
				b.ports = append(b.ports, k.ports[side].set)
			}
		}
	}
	b.id, _ = c.blockNumbers.take(key, c.result, func() struct{} { return struct{}{} })
	c.touch(b)
	return b
}

// policyBlock returns the block of a policy that applies to somebody here.
func (c *Compiler) policyBlock(p *policySource, direction int, t *tier) *block {
	cause := p.err
	if cause == nil && !t.exists {
		cause = fmt.Errorf("spec.tier: %q does not exist", t.name)
	}
	p.blocks[direction] = c.blockOf(p.blocks[direction], p.key, p.namespace, direction, p.rules[direction], cause)
	return p.blocks[direction]
}

// allowProfile exists in every Calico cluster without being stored.
const allowProfile = "projectcalico-default-allow"

var errNoProfile = errors.New("does not exist")

// profileSource is a profile that an endpoint here names, whether it exists or
// not.
type profileSource struct {
	resource *api.Profile
	blocks   [2]*block
	used     uint64
}

// profileBlock returns the block of a profile; one that does not exist denies
// all.
func (c *Compiler) profileBlock(name string, direction int) *block {
	key := api.Key{Kind: api.KindProfile, Name: name}
	s := c.profileSources[name]
	if profile := c.profiles[key]; s == nil || s.resource != profile {
		s = &profileSource{resource: profile}
		c.profileSources[name] = s
	}
	s.used = c.result
	var rules []api.Rule
	var cause error
	switch {
	case s.resource != nil && direction == ingress:
		rules = s.resource.Spec.Ingress
	case s.resource != nil:
		rules = s.resource.Spec.Egress
	case name == allowProfile:
		rules = []api.Rule{{Action: v3.Allow}}
	default:
		cause = errNoProfile
	}
	s.blocks[direction] = c.blockOf(s.blocks[direction], key, "", direction, rules, cause)
	return s.blocks[direction]
}

func sameText(a, b error) bool {
	return a == b || a != nil && b != nil && a.Error() == b.Error()
}
