package policy

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"calico-xdp/pkg/api"
)

// Compiler turns a store into tables, and changes of the store into changes of the
// tables. It keeps what it has compiled, so that work is in proportion to what
// changes; what the tables mean depends on the store alone.
//
// A change happens in the kernel in this order: new rows, then addresses and
// ports, then endpoints. So the tables after a change still know the rulesets,
// sets and port sets that only the tables before it used: while addresses and
// ports move to their new classes, the old rulesets go on to be right. Each
// result should be in the kernel before the next one is computed.
type Compiler struct {
	node   string
	result uint64 // counts calls of Compile

	// What the store holds.
	peers      map[api.Key]*peer
	profiles   map[string]*profile
	tiers      map[string]*tier
	policies   map[api.Key]*policySource
	standIns   map[api.Key]int // for policies: how many staged ones take their place
	identities map[string]*identity
	ports      *namedPorts

	// What rules ask for, and where it is.
	sets             *index[*set]
	addresses        *addresses
	sourcePorts      *portSpace
	destinationPorts *portSpace

	// This node's endpoints, and what decides about them.
	selections  *index[*policySource]
	kinds       map[kindKey]*kind
	rulesets    map[string]*ruleset
	byID        map[RulesetID]*ruleset
	leaving     []*ruleset // that no kind has any more
	lastRuleset RulesetID
	blocks      uint64 // ever made

	// What is handed out.
	endpoints map[api.Key]Rulesets
	hosts     map[api.Key]HostRulesets
	handed    map[RulesetID]*Ruleset
	problems  *problems
	stagedOut []api.Key

	// In this result.
	stale    []api.Key // peers whose profiles' labels have changed
	touched  []*kind
	fresh    []*ruleset             // without dimensions
	moved    map[api.Key]struct{}   // endpoints that have other rulesets, or are gone
	replaced map[RulesetID]struct{} // new rulesets, and such that are gone

	scratch []byte
}

// NewCompiler returns a compiler for the endpoints of one node.
func NewCompiler(node string) *Compiler {
	return &Compiler{
		node:       node,
		peers:      make(map[api.Key]*peer),
		profiles:   make(map[string]*profile),
		tiers:      make(map[string]*tier),
		policies:   make(map[api.Key]*policySource),
		standIns:   make(map[api.Key]int),
		identities: make(map[string]*identity),
		ports:      newNamedPorts(),

		sets:             newIndex[*set](everywhere),
		addresses:        newAddresses(),
		sourcePorts:      newPortSpace(),
		destinationPorts: newPortSpace(),

		selections: newIndex[*policySource](here),
		kinds:      make(map[kindKey]*kind),
		rulesets:   make(map[string]*ruleset),
		byID:       make(map[RulesetID]*ruleset),

		endpoints: make(map[api.Key]Rulesets),
		hosts:     make(map[api.Key]HostRulesets),
		handed:    make(map[RulesetID]*Ruleset),
		problems:  newProblems(),
	}
}

// Compile returns the tables for what the store holds. changes names what may
// differ in the store from the last call; what it is now is read from the store.
// With nil changes, and the first time, everything is compared. An empty list that
// is not nil says that nothing differs: then the compiler only lets go of what the
// result before has replaced.
func (c *Compiler) Compile(store *api.Store, changes []api.Change) *Tables {
	c.result++
	c.moved, c.replaced = make(map[api.Key]struct{}), make(map[RulesetID]struct{})
	for _, s := range c.spaces() {
		s.sweep(c.result)
	}
	if changes == nil || c.result == 1 {
		changes = c.everything(store)
	}
	c.read(store, changes)
	c.compileKinds()
	c.forget()
	c.settleAll()
	return c.tables()
}

func (c *Compiler) spaces() [3]*space {
	return [...]*space{c.addresses.space, c.sourcePorts.space, c.destinationPorts.space}
}

// kindsRead are the kinds that policy depends on, in the order in which they are
// read: what others refer to comes first.
func kindsRead() []string {
	return []string{
		api.KindTier, api.KindProfile, api.KindGlobalNetworkPolicy, api.KindNetworkPolicy,
		api.KindStagedGlobalNetworkPolicy, api.KindStagedNetworkPolicy, api.KindStagedKubernetesNetworkPolicy,
		api.KindGlobalNetworkSet, api.KindNetworkSet, api.KindHostEndpoint, api.KindWorkloadEndpoint,
	}
}

// everything names all that is in the store or was in it.
func (c *Compiler) everything(store *api.Store) (changes []api.Change) {
	known := make(map[api.Key]struct{}, len(c.peers)+len(c.policies))
	note := func(key api.Key) {
		if _, ok := known[key]; !ok {
			known[key] = struct{}{}
			changes = append(changes, api.Change{Key: key})
		}
	}
	for _, kind := range kindsRead() {
		for key := range api.All[api.Resource](store, kind) {
			note(key)
		}
	}
	for key := range c.peers {
		note(key)
	}
	for key := range c.policies {
		note(key)
	}
	for name := range c.profiles {
		note(api.Key{Kind: api.KindProfile, Name: name})
	}
	for name := range c.tiers {
		note(api.Key{Kind: api.KindTier, Name: name})
	}
	return changes
}

// read makes what the compiler knows agree with the store.
func (c *Compiler) read(store *api.Store, changes []api.Change) {
	byKind := make(map[string][]api.Key)
	for _, change := range changes {
		byKind[change.Key.Kind] = append(byKind[change.Key.Kind], change.Key)
	}
	for _, kind := range kindsRead() {
		for _, key := range byKind[kind] {
			r := store.Get(key)
			switch kind {
			case api.KindTier:
				t, _ := r.(*api.Tier)
				c.readTier(key.Name, t)
			case api.KindProfile:
				p, _ := r.(*api.Profile)
				c.readProfile(key.Name, p)
			case api.KindGlobalNetworkSet, api.KindNetworkSet, api.KindHostEndpoint, api.KindWorkloadEndpoint:
				c.readPeer(key, r)
			default:
				c.readPolicy(key, r)
			}
		}
	}
	for _, key := range c.stale {
		c.readPeer(key, store.Get(key))
	}
	c.stale = c.stale[:0]
	for name := range c.ports.changed {
		for b := range c.ports.users[name] {
			if b.list.block == b {
				b.list.stale()
				c.touchUsers(b.list)
			}
		}
	}
	clear(c.ports.changed)
}

// touchUsers has the endpoints compiled anew that a list applies to.
func (c *Compiler) touchUsers(l *ruleList) {
	if l.object.Kind != api.KindProfile {
		if p := c.policies[l.object]; p != nil {
			c.touchSelected(p)
		}
		return
	}
	if p := c.profiles[l.object.Name]; p != nil {
		for k := range p.kinds {
			c.touch(k)
		}
	}
}

// compileKinds compiles what has been touched, in an order that does not depend on
// chance, so that one history gives one numbering.
func (c *Compiler) compileKinds() {
	touched := slices.DeleteFunc(c.touched, func(k *kind) bool { return len(k.endpoints) == 0 })
	first := make(map[*kind]api.Key, len(touched))
	for _, k := range touched {
		first[k] = slices.MinFunc(slices.Collect(maps.Keys(k.endpoints)), compareKeys)
	}
	slices.SortFunc(touched, func(a, b *kind) int { return compareKeys(first[a], first[b]) })
	for _, k := range touched {
		c.compileKind(k)
	}
	c.touched = nil
}

// forget drops the rulesets that have been left, and what only they asked for.
func (c *Compiler) forget() {
	c.forgetRulesets()
	for _, x := range c.addresses.forget() {
		c.forgetSet(x)
	}
	for _, p := range []*portSpace{c.sourcePorts, c.destinationPorts} {
		for _, x := range p.forget() {
			p.forgetSet(x)
		}
	}
}

// settleAll gives addresses and ports their classes, and classes and rulesets
// their rows.
func (c *Compiler) settleAll() {
	c.addresses.settle(c.result)
	c.sourcePorts.settle(c.result)
	c.destinationPorts.settle(c.result)
	for _, s := range c.spaces() {
		for _, d := range s.spread() {
			c.rebuild(d)
		}
	}
	for _, p := range []*portSpace{c.sourcePorts, c.destinationPorts} {
		c.noteShortage(p)
	}
	for _, r := range c.fresh {
		c.complete(r)
	}
	c.fresh = nil
}

// noteShortage says that there are, or no longer are, ports without a class. Once
// there are, every ruleset knows the class that stands for that.
func (c *Compiler) noteShortage(p *portSpace) {
	if p.nameless > 0 && p.nothing == 0 {
		p.nothing = uint32(noPortClass)
		p.born = append(p.born, p.nothing)
		for _, r := range c.rulesets {
			for _, d := range r.dimensions {
				if d != nil && d.space == p.space {
					d.addNothing(p.nothing)
				}
			}
		}
	}
	if short := p.nameless > 0; short != p.short {
		if p.short = short; short {
			c.problems.add(api.Key{}, errPortClasses)
		} else {
			c.problems.remove(api.Key{}, errPortClasses)
		}
	}
}

// rebuild makes a dimension anew, in new *Rulesets of the same ids.
func (c *Compiler) rebuild(d *dimension) {
	fresh := d.again()
	for _, r := range fresh.owners {
		for part := range r.dimensions {
			if r.dimensions[part] == d {
				r.dimensions[part] = fresh
			}
		}
		r.out = new(*r.out)
		c.handOut(r)
	}
}

// tables hands out what there is now.
func (c *Compiler) tables() *Tables {
	return &Tables{
		Compiler: c, Result: c.result,
		Changes: Changes{
			Peers: c.addresses.changed, Moves: slices.Collect(maps.Keys(c.addresses.moves)),
			SourcePorts: c.sourcePorts.changed, DestinationPorts: c.destinationPorts.changed,
			PeerClasses:       classes[PeerClass](c.addresses.born),
			SourcePortClasses: classes[PortClass](c.sourcePorts.born), DestinationPortClasses: classes[PortClass](c.destinationPorts.born),
			Rulesets: slices.Collect(maps.Keys(c.replaced)), Endpoints: slices.Collect(maps.Keys(c.moved)),
		},
		Peers: c.addresses.classOf, PeerClasses: PeerClass(len(c.addresses.classes.entries)),
		SourcePorts: c.sourcePorts.classOf, DestinationPorts: c.destinationPorts.classOf,
		Rulesets: c.handed, Endpoints: c.endpoints, HostEndpoints: c.hosts,
		Problems: c.problems.sorted(), Staged: c.stagedKeys(),
	}
}

func classes[C PeerClass | PortClass](numbers []uint32) []C {
	out := make([]C, len(numbers))
	for i, n := range numbers {
		out[i] = C(n)
	}
	return out
}

func compareKeys(a, b api.Key) int {
	return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}
