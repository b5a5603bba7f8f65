package policy

import (
	"fmt"
	"net/netip"
	"slices"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"

	"calico-xdp/pkg/api"
)

// peer is an endpoint or a network set: an identity and where it is.
type peer struct {
	key      api.Key
	resource api.Resource
	stale    bool       // a profile's labels have changed
	profiles []*profile // whose labels it has
	identity *identity
	at       int // index in identity.peers
	places   []*place
	problem  error
	kind     *kind // of an endpoint of this node
}

// peerFacts is what a resource says of a peer.
type peerFacts struct {
	given    []label // for what it is
	own      map[string]string
	profiles []string // whose labels it has
	ports    []namedPort
	prefixes []netip.Prefix
	problem  error
	node     string // of an endpoint
	host     bool   // a host endpoint
}

func factsOf(r api.Resource) (f peerFacts, ok bool) {
	switch r := r.(type) {
	case *api.WorkloadEndpoint:
		f = peerFacts{given: workloadLabels(r), own: ownLabels(r), profiles: r.Spec.Profiles, ports: workloadPorts(r.Spec.Ports), node: r.Spec.Node}
		f.read("spec.ipNetworks", r.Spec.IPNetworks)
	case *api.HostEndpoint:
		f = peerFacts{own: r.Labels, profiles: r.Spec.Profiles, ports: hostPorts(r.Spec.Ports), node: r.Spec.Node, host: true}
		f.read("spec.expectedIPs", r.Spec.ExpectedIPs)
	case *api.GlobalNetworkSet:
		f = peerFacts{own: r.Labels}
		f.read("spec.nets", r.Spec.Nets)
	case *api.NetworkSet:
		f = peerFacts{given: []label{{v3.LabelNamespace, r.Namespace}}, own: r.Labels, profiles: []string{namespaceProfileNames + r.Namespace}}
		f.read("spec.nets", r.Spec.Nets)
	default:
		return f, false
	}
	slices.SortFunc(f.prefixes, comparePrefixes)
	f.prefixes = slices.Compact(f.prefixes)
	slices.SortFunc(f.ports, comparePorts)
	f.ports = slices.Compact(f.ports)
	return f, true
}

// read takes the prefixes of a field that are right. Of those that are not, the
// problem names the first.
func (f *peerFacts) read(field string, nets []string) {
	prefixes, faults := parsePrefixes(nets)
	switch f.prefixes = prefixes; {
	case len(faults) == 1:
		f.problem = fmt.Errorf("%s: %w", field, faults[0])
	case len(faults) > 1:
		f.problem = fmt.Errorf("%s: %w; and %d more like that", field, faults[0], len(faults)-1)
	}
}

// readPeer makes a peer agree with its resource.
func (c *Compiler) readPeer(key api.Key, r api.Resource) {
	p := c.peers[key]
	if p != nil && p.resource == r && !p.stale {
		return
	}
	facts, ok := factsOf(r)
	if !ok {
		if p != nil {
			c.removePeer(p)
		}
		return
	}
	if p == nil {
		p = &peer{key: key}
		c.peers[key] = p
	}
	p.resource, p.stale = r, false
	c.problems.replace(key, p.problem, facts.problem)
	p.problem = facts.problem
	c.inherit(p, facts.profiles)
	labels := effectiveLabels(facts.given, facts.own, p.profiles)
	c.identify(p, c.intern(labels, facts.ports))
	c.settle(p, facts.prefixes)
	if facts.node == c.node {
		c.enlist(p, facts.profiles, facts.host)
		return
	}
	if p.kind != nil {
		c.dismiss(p)
	}
	c.withdraw(key)
}

func (c *Compiler) removePeer(p *peer) {
	c.problems.replace(p.key, p.problem, nil)
	if p.kind != nil {
		c.dismiss(p)
	}
	c.withdraw(p.key)
	c.settle(p, nil)
	c.identify(p, nil)
	c.inherit(p, nil)
	delete(c.peers, p.key)
}

// inherit makes the peer have the labels of these profiles.
func (c *Compiler) inherit(p *peer, names []string) {
	if slices.EqualFunc(p.profiles, names, func(x *profile, name string) bool { return x.name == name }) {
		return
	}
	old := p.profiles
	p.profiles = make([]*profile, len(names))
	for i, name := range names {
		p.profiles[i] = c.profile(name)
		p.profiles[i].heirs[p] = struct{}{}
	}
	for _, x := range old {
		if !slices.Contains(p.profiles, x) {
			delete(x.heirs, p)
			c.tidyProfile(x)
		}
	}
}

// identify gives the peer another identity, nil if it goes.
func (c *Compiler) identify(p *peer, i *identity) {
	old := p.identity
	if old == i {
		return
	}
	if p.kind != nil {
		c.dismiss(p)
	}
	at := p.at
	if p.identity = i; i != nil {
		p.at = len(i.peers)
		i.peers = append(i.peers, p)
		c.addresses.touch(p.places)
	}
	if old == nil {
		return
	}
	last := len(old.peers) - 1
	if moved := old.peers[last]; moved != p {
		old.peers[at], moved.at = moved, at
	}
	old.peers[last] = nil
	if old.peers = old.peers[:last]; last == 0 {
		c.forgetIdentity(old)
	}
}

// intern returns the one identity with these labels and ports.
func (c *Compiler) intern(labels []label, ports []namedPort) *identity {
	c.scratch = appendIdentity(c.scratch[:0], labels, ports)
	if i := c.identities[string(c.scratch)]; i != nil {
		return i
	}
	i := newIdentity(string(c.scratch), labels, ports)
	c.identities[i.key] = i
	for _, x := range c.sets.addIdentity(i) {
		if _, in := x.members[i]; !in && x.match.selects(i) {
			x.members[i] = struct{}{}
			i.sets = append(i.sets, x)
		}
	}
	slices.SortFunc(i.sets, compareSets)
	for _, port := range ports {
		c.ports.count(port, 1)
	}
	return i
}

func (c *Compiler) forgetIdentity(i *identity) {
	delete(c.identities, i.key)
	c.sets.removeIdentity(i)
	for _, x := range i.sets {
		delete(x.members, i)
	}
	for _, port := range i.ports {
		c.ports.count(port, -1)
	}
}

// settle puts the peer where these prefixes are.
func (c *Compiler) settle(p *peer, prefixes []netip.Prefix) {
	if slices.EqualFunc(p.places, prefixes, func(x *place, prefix netip.Prefix) bool { return x.prefix == prefix }) {
		return
	}
	for _, x := range p.places {
		x.leave(p)
	}
	c.addresses.touch(p.places)
	p.places = make([]*place, len(prefixes))
	for i, prefix := range prefixes {
		p.places[i] = c.addresses.place(prefix)
		p.places[i].peers = append(p.places[i].peers, p)
	}
	c.addresses.touch(p.places)
}

// setOf returns the set of the addresses of what m selects.
func (c *Compiler) setOf(m *match) *set {
	x, fresh := c.addresses.set([]byte("m" + m.key()))
	if !fresh {
		return x
	}
	x.match, x.members = m, make(map[*identity]struct{})
	for _, i := range c.sets.addMatch(x, m) {
		if _, in := x.members[i]; in || !m.selects(i) {
			continue
		}
		x.members[i] = struct{}{}
		i.sets = append(i.sets, x) // the last by id
		for _, p := range i.peers {
			c.addresses.touch(p.places)
		}
	}
	return x
}

// forgetSet takes a set that no rule asks for out of its members.
func (c *Compiler) forgetSet(x *set) {
	if x.match == nil {
		for _, prefix := range x.nets {
			c.addresses.leave(prefix, x)
		}
		return
	}
	c.sets.removeMatch(x)
	for i := range x.members {
		at := slices.Index(i.sets, x)
		i.sets = slices.Delete(i.sets, at, at+1)
		for _, p := range i.peers {
			c.addresses.touch(p.places)
		}
	}
	x.members = nil
}

// namedPorts is what port names stand for, and who has to know.
type namedPorts struct {
	numbers map[portName]map[uint16]int      // by how many identities
	users   map[portName]map[*block]struct{} // that resolved the name
	changed map[portName]struct{}
}

// portName is a port's name and the protocol that it is a port of.
type portName struct {
	name     string
	protocol uint8
}

func newNamedPorts() *namedPorts {
	return &namedPorts{
		numbers: make(map[portName]map[uint16]int), users: make(map[portName]map[*block]struct{}),
		changed: make(map[portName]struct{}),
	}
}

// count notes that one more identity, or one less, gives a port its name.
func (n *namedPorts) count(p namedPort, by int) {
	name := portName{p.name, p.protocol}
	numbers := n.numbers[name]
	if numbers == nil {
		numbers = make(map[uint16]int)
		n.numbers[name] = numbers
	}
	was := numbers[p.number]
	if numbers[p.number] = was + by; was+by == 0 {
		delete(numbers, p.number)
	}
	if len(numbers) == 0 {
		delete(n.numbers, name)
	}
	if (was == 0) != (was+by == 0) {
		n.changed[name] = struct{}{}
	}
}

// resolve returns the numbers that these names stand for on any endpoint.
func (n *namedPorts) resolve(names []string, protocol uint8) spans {
	var all []span
	for _, name := range names {
		for number := range n.numbers[portName{name, protocol}] {
			all = append(all, span{number, number})
		}
	}
	return newSpans(all...)
}

// use notes that a block depends on a name.
func (n *namedPorts) use(name portName, b *block) {
	if n.users[name] == nil {
		n.users[name] = make(map[*block]struct{})
	}
	n.users[name][b] = struct{}{}
}

func (n *namedPorts) release(name portName, b *block) {
	if delete(n.users[name], b); len(n.users[name]) == 0 {
		delete(n.users, name)
	}
}
