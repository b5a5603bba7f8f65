package dataplane

import (
	"cmp"
	"errors"
	"maps"
	"net/netip"
	"slices"

	"calico-xdp/pkg/policy"
)

// hint is a ruleset in the kernel that an endpoint has which wants the ruleset id.
type hint struct {
	base uint32
	id   policy.RulesetID
}

// load reads back what the kernel has. used are the rulesets that endpoints
// refer to; what they hold is kept as it is until they are left.
func (c *classifier) load(used []uint32) error {
	hosts, err := c.kernel.HostClasses.Load()
	if err != nil {
		return err
	}
	nets, err := c.kernel.NetClasses.Load()
	if err != nil {
		return err
	}
	c.applied = 0
	c.addresses, c.carriers = make(map[netip.Prefix]uint32, len(hosts)+len(nets)), make(map[uint32]int)
	c.singles = len(hosts)
	for a, k := range hosts {
		c.addresses[netip.PrefixFrom(a.Addr(), a.Addr().BitLen())] = k
	}
	for p, k := range nets {
		c.addresses[p.Prefix()] = k
	}
	for _, k := range c.addresses {
		c.carriers[k]++
	}
	if c.ports, err = c.kernel.Ports.Load(); err != nil {
		return err
	}
	if err := c.rules.load(); err != nil {
		return err
	}
	if len(c.live) > 0 || len(c.leaving) > 0 {
		return c.repair() // a later reading: what we handed out is known
	}
	if err := c.trie.build(c.addresses); err != nil {
		return err
	}
	if err := c.loadRulesets(used); err != nil {
		return err
	}
	// A former process's numbers fit into its rulesets. Any other number is nobody's.
	var peers, ports uint32
	for _, r := range c.leaving {
		peers, ports = max(peers, uint32(r.peers)), max(ports, uint32(r.ports))
	}
	for k := range c.carriers {
		c.peers.reserve(k, peers)
	}
	for _, p := range c.ports {
		c.sources.reserve(uint32(p.Source), ports)
		c.destinations.reserve(uint32(p.Destination), ports)
	}
	return nil
}

// loadRulesets reads the rulesets of a former process. What is none is left out:
// endpoints that refer to it drop, and are written anew.
func (c *classifier) loadRulesets(used []uint32) error {
	slices.Sort(used)
	for _, base := range slices.Compact(used) {
		if int(base) > c.kernel.Words.Len()-headerWords {
			continue
		}
		header, err := c.kernel.Words.Read(int(base), headerWords)
		if err != nil {
			return err
		}
		r := readRuleset(int(base), header)
		if r.rules == 0 || r.rules > policy.MaxRules || !c.extents.claim(r.extent) {
			continue
		}
		if r.words, err = c.kernel.Words.Read(r.base, r.size); err != nil {
			return err
		}
		c.rules.keep(r.numbers(), 0)
		c.leaving = append(c.leaving, r)
	}
	return nil
}

// repair writes the words of rulesets again that someone else has changed.
func (c *classifier) repair() error {
	var errs []error
	for id, r := range c.live {
		have, err := c.kernel.Words.Read(r.base, r.size)
		if err == nil && !slices.Equal(have, r.words) {
			c.drift.Add(1)
			c.log.Warn("ruleset was changed by someone else", "ruleset", id, "word", r.base)
			err = c.writeRows(r, have)
		}
		errs = append(errs, err)
	}
	nodes, err := c.trie.repair()
	if nodes > 0 {
		c.drift.Add(1)
		c.log.Warn("classes of addresses were changed by someone else", "nodes", nodes)
	}
	return errors.Join(append(errs, err)...)
}

// adoptRulesets keeps what a former process has put into the kernel where it says
// what the tables do. Equal rulesets are told apart by who refers to them.
func (c *classifier) adoptRulesets(t *policy.Tables, used map[policy.RulesetID]use) error {
	hints, err := c.asked()
	if err != nil {
		return err
	}
	byReferrers := func(a, b hint) int {
		return cmp.Or(cmp.Compare(hints[b], hints[a]), cmp.Compare(a.base, b.base), cmp.Compare(a.id, b.id))
	}
	for _, h := range slices.SortedFunc(maps.Keys(hints), byReferrers) {
		for _, r := range c.leaving {
			if uint32(r.base) == h.base && c.live[h.id] == nil && t.Rulesets[h.id] != nil && c.adopt(h.id, t.Rulesets[h.id], used[h.id] == counting, r) {
				break
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(used)) {
		for _, r := range c.leaving {
			if c.live[id] == nil && t.Rulesets[id] != nil && c.adopt(id, t.Rulesets[id], used[id] == counting, r) {
				break
			}
		}
	}
	return nil
}

// adopt makes a ruleset of the kernel's that of an id, if it says the same.
func (c *classifier) adopt(id policy.RulesetID, from *policy.Ruleset, staged bool, r *ruleset) bool {
	if r.rules != from.Len() || !c.fits(r) {
		return false
	}
	numbers := c.rules.find(from, staged)
	for n := range from.Parts {
		p := &from.Parts[n]
		for i, rule := range p.Rules {
			if r.words[headerWords+p.From+i] != ruleWord(p, rule, numbers[p.From+i]) {
				return false // as nearly always
			}
		}
	}
	same, ok := c.encode(r, from, numbers)
	if !ok || !slices.Equal(same, r.words) {
		return false
	}
	r.layOut(from)
	r.staged, r.without = staged, c.rules.adopt(from, staged, numbers)
	c.live[id] = r
	i := slices.Index(c.leaving, r)
	c.leaving = slices.Delete(c.leaving, i, i+1)
	return true
}
