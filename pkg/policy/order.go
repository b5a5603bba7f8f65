package policy

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"

	"calico-xdp/pkg/api"
)

const (
	ingress = iota
	egress
)

var directions = [...]string{"ingress", "egress"}

// tier is a tier that exists or that a policy names.
type tier struct {
	name          string
	resource      *api.Tier
	order         float64
	defaultAction Action
	exists        bool
	policies      map[*policySource]struct{}
}

// policySource is a policy as its resource has it.
type policySource struct {
	key      api.Key
	resource api.Resource
	tier     *tier
	order    float64
	sortName string // decides between policies of one order
	selects  *match
	faults   [2][]error // by direction: why it denies all that reaches it
	applies  [2]bool    // by direction
	stages   [stages]bool
	lists    [2]*ruleList
	members  map[*identity]struct{} // of this node's, that it selects

	// A staged policy takes the place of an enforced one, if that is there.
	staged    bool
	standsFor api.Key // zero if it takes nobody's place
}

// tier returns the tier of this name.
func (c *Compiler) tier(name string) *tier {
	t := c.tiers[name]
	if t == nil {
		t = &tier{name: name, policies: make(map[*policySource]struct{})}
		c.tiers[name] = t
		t.read(nil)
	}
	return t
}

// read makes the tier what its resource says. The default tier is there without
// one.
func (t *tier) read(r *api.Tier) {
	t.resource, t.order, t.defaultAction = r, v3.DefaultTierOrder, Deny
	t.exists = r != nil || t.name == api.DefaultTier
	if r == nil {
		return
	}
	if r.Spec.Order != nil {
		t.order = *r.Spec.Order
	}
	if r.Spec.DefaultAction != nil && *r.Spec.DefaultAction == v3.Pass {
		t.defaultAction = Pass
	}
}

// readTier makes a tier agree with its resource.
func (c *Compiler) readTier(name string, r *api.Tier) {
	t := c.tier(name)
	if t.resource != r {
		t.read(r)
		for p := range t.policies {
			for direction, l := range p.lists {
				p.say(direction, l.rules, l.from)
			}
			c.touchSelected(p)
		}
	}
	c.tidyTier(t)
}

func (c *Compiler) tidyTier(t *tier) {
	if t.resource == nil && len(t.policies) == 0 {
		delete(c.tiers, t.name)
	}
}

// comparePolicies orders policies as they are asked, tier by tier.
func comparePolicies(a, b *policySource) int {
	return cmp.Or(
		cmp.Compare(a.tier.order, b.tier.order), strings.Compare(a.tier.name, b.tier.name),
		cmp.Compare(a.order, b.order), strings.Compare(a.sortName, b.sortName), compareKeys(a.key, b.key))
}

// readPolicy makes a policy agree with its resource.
func (c *Compiler) readPolicy(key api.Key, r api.Resource) {
	p := c.policies[key]
	if p != nil && p.resource == r {
		return
	}
	spec := specOf(r)
	switch {
	case spec == nil && p != nil:
		c.removePolicy(p)
		return
	case spec == nil:
		return
	case p == nil:
		p = c.newPolicy(key)
	}
	selected := ""
	if p.selects != nil {
		selected = p.selects.key()
	}
	p.read(r, spec)
	c.enter(p, cmp.Or(spec.Tier, api.DefaultTier))
	p.say(ingress, spec.Ingress, spec.IngressFrom)
	p.say(egress, spec.Egress, spec.EgressFrom)
	c.standIn(p, spec.StagedAction)
	c.touchSelected(p)
	if p.selects.key() == selected {
		return
	}
	c.deselect(p)
	for _, i := range c.selections.addMatch(p, p.selects) {
		c.selectOne(p, i)
	}
	c.touchSelected(p)
}

// specOf returns what a policy says; nil if the resource is none.
func specOf(r api.Resource) *api.Policy {
	if k, ok := r.(*api.StagedKubernetesNetworkPolicy); ok {
		return api.KubernetesPolicyOf(k)
	}
	if r == nil {
		return nil
	}
	p, _ := api.PolicyOf(r)
	return p
}

func (c *Compiler) newPolicy(key api.Key) *policySource {
	p := &policySource{key: key, members: make(map[*identity]struct{}), staged: stagedKind(key.Kind)}
	as := enforcedKey(key)
	p.sortName = as.Name + "/" + as.Namespace + "/" + as.Kind
	for direction := range p.lists {
		p.lists[direction] = &ruleList{object: key, namespace: key.Namespace, direction: direction}
	}
	if c.policies[key] = p; p.staged {
		c.stagedOut = nil
	}
	return p
}

func (p *policySource) read(r api.Resource, spec *api.Policy) {
	p.resource = r
	p.order = math.Inf(1)
	if spec.Order != nil {
		p.order = *spec.Order
	}
	var faults []error
	p.selects, faults = policyMatch(p.key.Namespace, spec.Selector, spec.NamespaceSelector, spec.ServiceAccountSelector)
	switch spec.StagedAction {
	case "", v3.StagedActionSet, v3.StagedActionLearn, v3.StagedActionDelete, v3.StagedActionIgnore:
	default:
		faults = append(faults, fmt.Errorf("spec.stagedAction: %q is none of Set, Delete, Learn, Ignore", spec.StagedAction))
	}
	types := spec.Types
	if len(types) == 0 {
		types = api.DefaultTypes(spec.Ingress, spec.Egress)
	}
	p.applies = [2]bool{slices.Contains(types, v3.PolicyTypeIngress), slices.Contains(types, v3.PolicyTypeEgress)}
	p.faults = [2][]error{faults, faults}
	for _, t := range types {
		if t == v3.PolicyTypeIngress || t == v3.PolicyTypeEgress {
			continue
		}
		// It may mean any direction that is not there by its name.
		fault := fmt.Errorf("spec.types: %q is neither Ingress nor Egress", t)
		for direction := range p.applies {
			if name := [...]v3.PolicyType{v3.PolicyTypeIngress, v3.PolicyTypeEgress}[direction]; !slices.Contains(types, name) {
				p.applies[direction] = true
				p.faults[direction] = append(slices.Clip(p.faults[direction]), fault)
			}
		}
	}
	p.stages = [stages]bool{
		untracked: spec.DoNotTrack,
		preDNAT:   spec.PreDNAT && !spec.DoNotTrack,
		normal:    !spec.PreDNAT && !spec.DoNotTrack,
		forward:   !spec.PreDNAT && !spec.DoNotTrack && spec.ApplyOnForward,
	}
	if spec.StagedAction == v3.StagedActionDelete || spec.StagedAction == v3.StagedActionIgnore {
		p.selects, p.applies, p.faults = &match{namespace: nowhere}, [2]bool{}, [2][]error{}
	}
}

// enter puts a policy into a tier.
func (c *Compiler) enter(p *policySource, name string) {
	old := p.tier
	if old != nil && old.name == name {
		return
	}
	p.tier = c.tier(name)
	p.tier.policies[p] = struct{}{}
	if old != nil {
		delete(old.policies, p)
		c.tidyTier(old)
	}
}

// say makes one of the policy's lists say these rules, or why they cannot be compiled.
func (p *policySource) say(direction int, rules []api.Rule, from []int) {
	causes := p.faults[direction]
	if !p.tier.exists {
		causes = append(slices.Clip(causes), fmt.Errorf("spec.tier: %q does not exist", p.tier.name))
	}
	p.lists[direction].say(rules, from, causes)
}

func (c *Compiler) removePolicy(p *policySource) {
	c.touchSelected(p)
	c.deselect(p)
	c.standIn(p, v3.StagedActionIgnore)
	delete(p.tier.policies, p)
	c.tidyTier(p.tier)
	if delete(c.policies, p.key); p.staged {
		c.stagedOut = nil
	}
}

// deselect takes a policy from all that it selects.
func (c *Compiler) deselect(p *policySource) {
	c.selections.removeMatch(p)
	for i := range p.members {
		at := slices.Index(i.policies, p)
		i.policies = slices.Delete(i.policies, at, at+1)
	}
	clear(p.members)
}

// selectOne gives a policy to an identity of this node that it may select.
func (c *Compiler) selectOne(p *policySource, i *identity) {
	if _, in := p.members[i]; in || !p.selects.selects(i) {
		return
	}
	p.members[i] = struct{}{}
	i.policies = append(i.policies, p)
}

// touchSelected has the endpoints compiled anew that a policy selects.
func (c *Compiler) touchSelected(p *policySource) {
	for i := range p.members {
		for _, k := range i.kinds {
			c.touch(k)
		}
	}
}
