package policy

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"calico-xdp/pkg/api"
)

// Compiler turns a store into tables. It remembers what it has read and numbered,
// so that numbers keep their meaning and work is done once; what the tables mean
// depends on the store alone.
//
// A change happens in the kernel in this order: new vectors, then addresses and
// ports, then endpoints. So the tables after a change still know the rulesets,
// sets and port sets that only the tables before it used: while addresses and
// ports move to their new classes, the old rulesets go on to be right. Each
// result should be in the kernel before the next one is computed.
type Compiler struct {
	node   string
	result uint64 // counts calls of Compile

	peers          *peers
	policies       policies
	profileSources map[string]*profileSource
	sets           *sets // that rules refer to
	policySets     *sets // of the endpoints that policies select
	ports          *portSets

	peerNumbers  *numbering[[]setID]
	portNumbers  *numbering[[]setID]
	blockNumbers *numbering[struct{}]
	rulesets     *numbering[*compiledRuleset]

	// While compiling:
	profiles map[api.Key]*api.Profile
	tiers    []*tier
	ipv4     *peerSet
	problems problems
	scratch  []byte
}

// NewCompiler returns a compiler for the endpoints of one node.
func NewCompiler(node string) *Compiler {
	return &Compiler{
		node:           node,
		peers:          newPeers(),
		policies:       make(policies),
		profileSources: make(map[string]*profileSource),
		sets:           newSets(),
		policySets:     newSets(),
		ports:          newPortSets(),
		peerNumbers:    newNumbering[[]setID](^uint32(0), "", nil),
		portNumbers:    newNumbering[[]setID](uint32(noPortClass), "", nil),
		blockNumbers:   newNumbering(^uint32(0), "", struct{}{}),
		rulesets:       newNumbering[*compiledRuleset](^uint32(0), "", nil),
	}
}

// Compile returns the tables for what the store holds. It does not change what
// earlier calls have returned.
func (c *Compiler) Compile(store *api.Store) *Tables {
	c.begin(store)
	t := &Tables{
		Endpoints: c.endpoints(),
		Rulesets:  make(map[RulesetID]*Ruleset),
	}
	c.sets.sweep(c.result)
	c.ports.sweep(c.result)
	t.Peers = c.peerClasses()
	t.SourcePorts, t.DestinationPorts = c.portRanges(false), c.portRanges(true)
	tables := c.classTables(c.problems.has(errPortClasses))
	t.PeerClasses, t.PortClasses = PeerClass(len(tables.peers)), PortClass(len(tables.ports))
	for id := 1; id < len(c.rulesets.entries); id++ {
		// Also those that were used last time only: they are about to be replaced.
		if e := &c.rulesets.entries[id]; e.used != 0 && e.used+1 >= c.result {
			t.Rulesets[RulesetID(id)] = e.value.bring(tables)
		}
	}
	t.Problems = c.problems.sorted()
	c.end()
	return t
}

// begin reads what has changed in the store.
func (c *Compiler) begin(store *api.Store) {
	c.result++
	c.peerNumbers.sweep(c.result)
	c.portNumbers.sweep(c.result)
	c.blockNumbers.sweep(c.result)
	c.rulesets.sweep(c.result)
	c.problems = make(problems)

	c.profiles = api.All[*api.Profile](store, api.KindProfile)
	c.peers.update(store, c.profiles, c.result)
	for _, p := range c.peers.byKey {
		if p.problem != nil {
			c.problems.add(Problem{Object: p.key, Err: p.problem})
		}
	}
	c.tiers = c.policies.update(store, c.result)
	for _, t := range c.tiers {
		for _, p := range t.policies {
			p.set = c.policySets.ofMatch(p.selects)
			p.set.used = c.result
		}
	}
	c.policySets.sweep(c.result)
	c.ipv4 = c.sets.ofNets([]netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0)})
	c.ipv4.used = c.result
}

// end forgets what is not in the store any more.
func (c *Compiler) end() {
	c.sets.forget(c.result)
	c.policySets.forget(c.result)
	maps.DeleteFunc(c.profileSources, func(_ string, s *profileSource) bool { return s.used != c.result })
	c.profiles, c.tiers, c.problems = nil, nil, nil
}

// endpoints returns the rulesets of this node's endpoints.
func (c *Compiler) endpoints() map[api.Key]Rulesets {
	// Endpoints that are alike to selectors and list the same profiles have the
	// same rulesets.
	type kind struct {
		identity *identity
		profiles string
	}
	type outcome struct {
		ids  [2]RulesetID
		errs [2]error
	}
	known := make(map[kind]outcome)
	out := make(map[api.Key]Rulesets)
	for _, key := range c.localKeys() {
		p := c.peers.byKey[key]
		profiles := p.resource.(*api.WorkloadEndpoint).Spec.Profiles
		k := kind{p.identity, strings.Join(profiles, "\n")}
		o, ok := known[k]
		if !ok {
			for direction := range directions {
				o.ids[direction], o.errs[direction] = c.rulesetOf(p.identity, profiles, direction)
			}
			known[k] = o
		}
		out[key] = Rulesets{Ingress: o.ids[ingress], Egress: o.ids[egress]}
		for _, err := range o.errs {
			if err != nil {
				c.problems.add(Problem{Object: key, Err: err})
			}
		}
	}
	return out
}

// localKeys are the keys of this node's endpoints, sorted so that one history
// gives one numbering.
func (c *Compiler) localKeys() []api.Key {
	var keys []api.Key
	for key, p := range c.peers.byKey {
		if w, ok := p.resource.(*api.WorkloadEndpoint); ok && w.Spec.Node == c.node {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, compareKeys)
	return keys
}

func compareKeys(a, b api.Key) int {
	return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// problems are kept once each.
type problems map[problemKey]Problem

type problemKey struct {
	object api.Key
	text   string
}

func (ps problems) add(p Problem) { ps[problemKey{p.Object, p.Err.Error()}] = p }

func (ps problems) has(err error) bool {
	_, ok := ps[problemKey{text: err.Error()}]
	return ok
}

func (ps problems) sorted() []Problem {
	return slices.SortedFunc(maps.Values(ps), func(a, b Problem) int {
		return cmp.Or(compareKeys(a.Object, b.Object), strings.Compare(a.Err.Error(), b.Err.Error()))
	})
}
