package policy

import (
	"slices"
	"strings"

	"calico-xdp/pkg/api"
)

// stage is when a packet is judged. Workloads have the normal one only.
type stage int

const (
	normal    stage = iota // to and from workloads, to and from the host
	forward                // through a host endpoint's interface, but not to or from the host
	preDNAT                // into a host endpoint's interface, before anything else but untracked
	untracked              // first of all, without connection tracking
	stages
)

// kind is the endpoints of this node that no policy can tell apart: they have the
// same rulesets.
type kind struct {
	kindKey
	names     []string // of the profiles
	profiles  []*profile
	endpoints map[api.Key]struct{}
	rulesets  [variants][stages][2]*ruleset
	problems  []error
	touched   bool
}

type kindKey struct {
	identity *identity
	profiles string // their names, a line each
	host     bool
}

// enlist makes a peer, which is an endpoint of this node, one of its kind.
func (c *Compiler) enlist(p *peer, profiles []string, host bool) {
	key := kindKey{p.identity, strings.Join(profiles, "\n"), host}
	if p.kind != nil && p.kind.kindKey == key {
		return
	}
	if p.kind != nil {
		c.dismiss(p)
	}
	k := c.kinds[key]
	if k == nil {
		k = &kind{kindKey: key, names: slices.Clone(profiles), endpoints: make(map[api.Key]struct{})}
		for _, name := range profiles {
			x := c.profile(name)
			x.kinds[k] = struct{}{}
			k.profiles = append(k.profiles, x)
		}
		c.kinds[key] = k
		k.identity.kinds = append(k.identity.kinds, k)
		if len(k.identity.kinds) == 1 {
			for _, policy := range c.selections.addIdentity(k.identity) {
				c.selectOne(policy, k.identity)
			}
		}
		c.touch(k)
	}
	p.kind = k
	k.endpoints[p.key] = struct{}{}
	if !k.touched {
		c.publish(k, p.key)
	}
	for _, err := range k.problems {
		c.problems.add(p.key, err)
	}
}

// dismiss takes a peer, which is or was an endpoint of this node, out of its kind.
// Its rulesets stay handed out until it has others or is withdrawn.
func (c *Compiler) dismiss(p *peer) {
	k := p.kind
	p.kind = nil
	delete(k.endpoints, p.key)
	for _, err := range k.problems {
		c.problems.remove(p.key, err)
	}
	if len(k.endpoints) > 0 {
		return
	}
	delete(c.kinds, k.kindKey)
	for _, x := range k.profiles {
		delete(x.kinds, k)
		c.tidyProfile(x)
	}
	i := k.identity
	at := slices.Index(i.kinds, k)
	if i.kinds = slices.Delete(i.kinds, at, at+1); len(i.kinds) == 0 {
		c.selections.removeIdentity(i)
		for _, policy := range i.policies {
			delete(policy.members, i)
		}
		i.policies = nil
	}
	for v := range variants {
		for _, both := range k.rulesets[v] {
			c.leave(both[ingress])
			c.leave(both[egress])
		}
	}
	k.rulesets = [variants][stages][2]*ruleset{}
}

// touch has a kind compiled anew.
func (c *Compiler) touch(k *kind) {
	if !k.touched {
		k.touched = true
		c.touched = append(c.touched, k)
	}
}

// compileKind finds the rulesets of a kind.
func (c *Compiler) compileKind(k *kind) {
	k.touched = false
	old, was := k.rulesets, k.problems
	k.problems = nil
	for v := range variants {
		for s := range stages {
			for direction := range directions {
				r, err := c.rulesetOf(k, s, direction, v)
				if err != nil {
					k.problems = append(k.problems, err)
				}
				k.rulesets[v][s][direction] = c.use(r)
			}
		}
	}
	for v := range variants {
		for s := range stages {
			c.leave(old[v][s][ingress])
			c.leave(old[v][s][egress])
		}
	}
	for key := range k.endpoints {
		c.publish(k, key)
		for _, err := range was {
			c.problems.remove(key, err)
		}
		for _, err := range k.problems {
			c.problems.add(key, err)
		}
	}
}

// publish hands out the rulesets of one endpoint.
func (c *Compiler) publish(k *kind, key api.Key) {
	both := func(s stage) Rulesets {
		is, would := k.rulesets[enforced][s], k.rulesets[staged][s]
		return Rulesets{
			Ingress: is[ingress].number(), Egress: is[egress].number(),
			StagedIngress: would[ingress].number(), StagedEgress: would[egress].number(),
		}
	}
	if k.host {
		now := HostRulesets{
			Normal: both(normal), Forward: both(forward), Untracked: both(untracked),
			PreDNAT: both(preDNAT).Ingress, StagedPreDNAT: both(preDNAT).StagedIngress,
		}
		if was, ok := c.hosts[key]; !ok || was != now {
			c.hosts[key] = now
			c.moved[key] = struct{}{}
		}
		return
	}
	if was, ok := c.endpoints[key]; !ok || was != both(normal) {
		c.endpoints[key] = both(normal)
		c.moved[key] = struct{}{}
	}
}

// withdraw takes back what was handed out of an endpoint.
func (c *Compiler) withdraw(key api.Key) {
	_, known := c.endpoints[key]
	if _, host := c.hosts[key]; known || host {
		delete(c.endpoints, key)
		delete(c.hosts, key)
		c.moved[key] = struct{}{}
	}
}
