package policy

import (
	"maps"
	"slices"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"

	"calico-xdp/pkg/api"
)

// variant says whether rulesets are as they are enforced or as they would be with the
// staged policies.
type variant int

const (
	enforced variant = iota
	staged
	variants
)

// nowhere is a namespace that nothing can be in.
const nowhere = "//nowhere"

// kubernetesPolicies is what the names of Kubernetes' policies begin with where they are
// stored as Calico's.
const kubernetesPolicies = "knp.default."

// enforcedKey is the key of the policy that a staged one would be, or change, if it was
// enforced; of others it is their own.
func enforcedKey(key api.Key) api.Key {
	switch key.Kind {
	case api.KindStagedGlobalNetworkPolicy:
		key.Kind = api.KindGlobalNetworkPolicy
	case api.KindStagedNetworkPolicy:
		key.Kind = api.KindNetworkPolicy
	case api.KindStagedKubernetesNetworkPolicy:
		key.Kind, key.Name = api.KindNetworkPolicy, kubernetesPolicies+key.Name
	}
	return key
}

// standIn has a staged policy take the place of the enforced one of its name, or leave
// it. A policy to delete takes the place and is nothing; one to ignore is as if it was
// not there.
func (c *Compiler) standIn(p *policySource, action v3.StagedAction) {
	var place api.Key
	if p.staged && action != v3.StagedActionIgnore {
		place = enforcedKey(p.key)
	}
	if p.standsFor == place {
		return
	}
	for _, key := range []api.Key{p.standsFor, place} {
		if replaced := c.policies[key]; replaced != nil {
			c.touchSelected(replaced)
		}
	}
	if c.standIns[p.standsFor]--; c.standIns[p.standsFor] <= 0 {
		delete(c.standIns, p.standsFor)
	}
	if p.standsFor = place; place != (api.Key{}) {
		c.standIns[place]++
	}
}

// policiesFor returns the policies that apply to endpoints of one kind at one stage and
// in one direction, in order. It returns false for the staged ones if they are the
// enforced ones.
func (c *Compiler) policiesFor(k *kind, at stage, direction int, v variant) (policies []*policySource, differ bool) {
	for _, p := range k.identity.policies {
		if !p.applies[direction] || !p.stages[at] {
			continue
		}
		replaced := c.standIns[p.key] > 0
		differ = differ || p.staged || replaced
		if v == enforced && !p.staged || v == staged && !replaced {
			policies = append(policies, p)
		}
	}
	if v == staged && !differ {
		return nil, false
	}
	slices.SortFunc(policies, comparePolicies)
	return policies, differ
}

// stagedKeys are the staged policies that there are, in order. The list is never
// changed.
func (c *Compiler) stagedKeys() []api.Key {
	if c.stagedOut == nil {
		for key := range maps.Keys(c.policies) {
			if stagedKind(key.Kind) {
				c.stagedOut = append(c.stagedOut, key)
			}
		}
		slices.SortFunc(c.stagedOut, compareKeys)
	}
	return c.stagedOut
}
