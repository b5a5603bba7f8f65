package desired

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/policy"
)

// Compute returns what this node should be.
func Compute(in Input) *State { return new(Computer).Compute(in, nil) }

// Computer computes states one after the other. It keeps what it has computed, so
// that work is in proportion to what changes; what a state says depends on the
// input alone.
//
// What is small is computed whole when something that it depends on has changed:
// this node's endpoints and links, the list of nodes, BGP. What grows with the
// cluster, the routes, follows the changes one by one.
type Computer struct {
	result uint64
	in     Input // of the last result

	settings settings
	cluster  cluster
	claims   map[api.Key]*api.WorkloadEndpoint // this node's endpoints
	hosts    map[api.Key]*api.HostEndpoint     // and host endpoints
	local    local
	routes   *routes
	out      State // as handed out
	stale    stale

	problems struct {
		settings, pools, local, peers, bgp, learned []policy.Problem
		nodes                                       map[api.Key][]policy.Problem
	}
}

// stale says what has to be computed again.
type stale struct {
	settings, pools, nodes, claims, bgp bool
	problems                            bool
}

// Compute returns what this node should be. changes names what may differ in
// in.Resources from the last call; what it is now is read from there. With nil
// changes, and the first time, everything is compared. The node and its
// configuration are the same at every call.
func (c *Computer) Compute(in Input, changes []api.Change) *State {
	if in.Resources == nil {
		in.Resources = api.NewStore()
	}
	if c.result++; c.result == 1 {
		c.begin(in)
		changes = nil
	}
	if changes == nil {
		changes = c.everything(in.Resources)
	}
	c.out.Changes = Changes{}
	addressesOf := c.read(in.Resources, changes)
	if c.stale.settings {
		c.settings, c.problems.settings = resolveSettings(in)
		if b := in.Config.Backend; in.Config.backend() != b && b != "" {
			c.problems.settings = append(c.problems.settings, policy.Problem{
				Object: EnvironmentObject, Err: fmt.Errorf("CALICO_NETWORKING_BACKEND %q: want bird, vxlan or none", b),
			})
		}
		if _, err := in.Config.serviceCIDRs(); err != nil {
			c.problems.settings = append(c.problems.settings, policy.Problem{Object: EnvironmentObject, Err: err})
		}
		c.out.Servers, c.out.LogLevel = c.settings.servers, c.settings.logLevel
	}
	if c.stale.pools {
		c.problems.pools = c.cluster.readPools(in.Resources)
	}
	links := !sameLinks(c.in.Links, in.Links)
	c.computeLocal(in, links)
	c.computePeers()
	c.computeNAT(in)
	c.cluster.settle()
	owners, own := c.cluster.takeChanged()
	c.computeBGP(in, links, own)
	c.computeFailsafe(in)
	c.computeRoutes(in, links, addressesOf, owners)
	c.listProblems(in)
	c.in, c.stale = in, stale{}

	c.out.Computer, c.out.Result, c.out.Dataplane.Policy = c, c.result, in.Policy
	return new(c.out)
}

// begin is before the first result.
func (c *Computer) begin(in Input) {
	c.cluster = cluster{self: unknownNode(in.Node), nodes: make(map[string]node), owners: newOwners(in.Node)}
	c.claims, c.hosts, c.routes = make(map[api.Key]*api.WorkloadEndpoint), make(map[api.Key]*api.HostEndpoint), newRoutes()
	c.problems.nodes = make(map[api.Key][]policy.Problem)
	c.stale = stale{settings: true, pools: true, nodes: true, claims: true, bgp: true, problems: true}
	c.out.Dataplane.Routes, c.out.Host.Routes = c.routes.bpf, c.routes.kernel
}

// everything names all that is in the store or was in it.
func (c *Computer) everything(store *api.Store) []api.Change {
	known := make(map[api.Key]bool)
	for _, kind := range []string{
		api.KindFelixConfiguration, api.KindNode, api.KindIPPool, api.KindIPAMBlock, api.KindWorkloadEndpoint, api.KindHostEndpoint,
		api.KindBGPConfiguration, api.KindBGPPeer, api.KindBGPFilter,
	} {
		for key := range store.Each(kind) {
			known[key] = true
		}
	}
	// Of these kinds it does not matter which ones have changed.
	for _, kind := range []string{api.KindFelixConfiguration, api.KindIPPool, api.KindBGPPeer} {
		known[api.Key{Kind: kind}] = true
	}
	for name := range c.cluster.nodes {
		known[nodeKey(name)] = true
	}
	for key := range c.cluster.blocks {
		known[key] = true
	}
	for key := range c.cluster.places {
		known[key] = true
	}
	for key := range c.claims {
		known[key] = true
	}
	for key := range c.hosts {
		known[key] = true
	}
	changes := make([]api.Change, 0, len(known))
	for key := range known {
		changes = append(changes, api.Change{Key: key})
	}
	return changes
}

// read makes what the computer knows agree with the store. It returns the nodes
// that have other addresses.
func (c *Computer) read(store *api.Store, changes []api.Change) (addressesOf []string) {
	for _, change := range changes {
		key := change.Key
		switch key.Kind {
		case api.KindFelixConfiguration:
			c.stale.settings = true
		case api.KindIPPool:
			c.stale.pools = true
		case api.KindBGPConfiguration, api.KindBGPPeer, api.KindBGPFilter:
			c.stale.bgp = true
		case api.KindHostEndpoint:
			h, _ := store.Get(key).(*api.HostEndpoint)
			c.readHost(key, h)
		case api.KindNode:
			if c.readNode(key, store) {
				addressesOf = append(addressesOf, key.Name)
			}
		case api.KindIPAMBlock:
			var said []owned
			if b, ok := store.Get(key).(*api.IPAMBlock); ok {
				said = parseBlock(b)
			}
			c.cluster.readBlock(key, said)
		case api.KindWorkloadEndpoint:
			w, _ := store.Get(key).(*api.WorkloadEndpoint)
			c.cluster.readEndpoint(key, w)
			c.readClaim(key, w)
		}
	}
	return addressesOf
}

// readNode says whether the node has other addresses.
func (c *Computer) readNode(key api.Key, store *api.Store) bool {
	var now node
	var problems []policy.Problem
	n, there := store.Get(key).(*api.Node)
	if there {
		now, problems = parseNode(key, n)
	}
	if len(problems)+len(c.problems.nodes[key]) > 0 {
		c.problems.nodes[key] = problems
		c.stale.problems = true
	}
	was := c.cluster.nodes[key.Name]
	if !c.cluster.readNode(key.Name, now, there) {
		return false
	}
	c.stale.nodes = true
	return was.name != now.name || !was.sameAddresses(now)
}

// readClaim takes up one of this node's endpoints, or that it is gone.
func (c *Computer) readClaim(key api.Key, w *api.WorkloadEndpoint) {
	was := c.claims[key]
	if w != nil && w.Spec.Node != c.cluster.self.name {
		w = nil
	}
	if w == nil {
		delete(c.claims, key)
	} else {
		c.claims[key] = w
	}
	if (was == nil) != (w == nil) || was != nil && !sameClaim(was, w) {
		c.stale.claims = true
	}
}

// readHost takes up one of this node's host endpoints, or that it is gone.
func (c *Computer) readHost(key api.Key, h *api.HostEndpoint) {
	was := c.hosts[key]
	if h != nil && h.Spec.Node != c.cluster.self.name {
		h = nil
	}
	if h == nil {
		delete(c.hosts, key)
	} else {
		c.hosts[key] = h
	}
	if (was == nil) != (h == nil) || was != nil &&
		(was.Spec.InterfaceName != h.Spec.InterfaceName || !slices.Equal(was.Spec.ExpectedIPs, h.Spec.ExpectedIPs)) {
		c.stale.claims = true
	}
}

// computePeers computes what follows from the list of nodes alone.
func (c *Computer) computePeers() {
	if !c.stale.nodes {
		return
	}
	s := State{Dataplane: Dataplane{Node: c.out.Dataplane.Node, Peers: make(map[netip.Addr]Peer)}}
	s.addPeers(&c.cluster)
	c.setProblems(&c.problems.peers, s.Problems)
	if c.out.Dataplane.Peers == nil || !maps.Equal(s.Dataplane.Peers, c.out.Dataplane.Peers) {
		c.out.Dataplane.Peers = s.Dataplane.Peers
		c.out.Changes.Peers = true
	}
	others := make(map[netip.Addr]bool)
	for _, n := range c.cluster.nodes {
		for _, a := range []netip.Addr{n.ipv4.Addr(), n.ipv6.Addr()} {
			if a.IsValid() && n.name != c.cluster.self.name {
				others[a] = true
			}
		}
	}
	overlay(c.routes, &c.routes.peers, others)
}

// computeRoutes finds the routes that have changed.
func (c *Computer) computeRoutes(in Input, links bool, addressesOf []string, ownersChanged []netip.Prefix) {
	r, cl, l := c.routes, &c.cluster, &c.local
	r.setInputs(routeInputs{
		backend: in.Config.backend(), ipv4: cl.self.ipv4, ipv6: cl.self.ipv6,
		here4: slices.Contains(l.host, cl.self.ipv4.Addr()), here6: slices.Contains(l.host, cl.self.ipv6.Addr()),
		tunnel: cl.self.tunnel, mtus: l.mtus,
	}, c.stale.pools, cl)
	for _, name := range addressesOf {
		for p := range cl.prefixes[name] {
			r.dirty[p] = true
		}
	}
	if links || c.stale.pools || c.stale.bgp || c.out.Changes.Local || !sameLearned(in.Learned, c.in.Learned) {
		var s State
		r.setLearned(s.learnedRoutes(in, cl, l.host))
		c.setProblems(&c.problems.learned, s.Problems)
	}
	r.ownersChanged(ownersChanged)
	c.out.Changes.Routes, c.out.Changes.KernelRoutes = r.settle(cl)
	if r.problems == nil {
		c.stale.problems = true
	}
}

// computeBGP computes the speaker's part. own says that other prefixes are this
// node's than before.
func (c *Computer) computeBGP(in Input, links, own bool) {
	outside := in.Pending != c.in.Pending || !maps.Equal(in.Secrets, c.in.Secrets) || !sameServices(in.Services, c.in.Services)
	// Filters may ask about interfaces.
	filtered := (links || c.out.Changes.Local) && len(c.out.BGP.Filters) > 0 ||
		links && !slices.Equal(hostNetworks(in.Links), hostNetworks(c.in.Links))
	if c.stale.bgp || c.stale.nodes || c.stale.pools || own || outside || filtered {
		s := State{Dataplane: Dataplane{Endpoints: c.out.Dataplane.Endpoints}, Host: Host{Routes: make(map[netip.Prefix]KernelRoute)}}
		s.addBGP(in, &c.cluster)
		c.setProblems(&c.problems.bgp, s.Problems)
		if c.result == 1 || !reflect.DeepEqual(s.BGP, c.out.BGP) {
			c.out.BGP = s.BGP
			c.out.Changes.BGP = true
		}
		reachable := make(map[netip.Addr]netip.Addr)
		for p, r := range s.Host.Routes {
			reachable[p.Addr()] = r.Via
		}
		overlay(c.routes, &c.routes.reachable, reachable)
	}
	if keep := in.Learning && c.out.BGP.Enabled; keep != c.out.Host.KeepLearned {
		c.out.Host.KeepLearned = keep
		c.out.Changes.Local = true
	}
}

func sameServices(a, b []Service) bool {
	if len(a) != len(b) || len(a) > 0 && &a[0] == &b[0] {
		return len(a) == len(b)
	}
	return len(a) == 0 || reflect.DeepEqual(a, b)
}

// computeFailsafe computes what no policy may close.
func (c *Computer) computeFailsafe(in Input) {
	if !c.stale.settings && !c.out.Changes.BGP {
		return
	}
	if now := failsafePorts(c.settings, in.Config, c.out.BGP); c.result == 1 || !maps.Equal(now, c.out.Dataplane.Failsafe) {
		c.out.Dataplane.Failsafe = now
		c.out.Changes.Local = true
	}
}

// setProblems replaces the problems of one part.
func (c *Computer) setProblems(part *[]policy.Problem, now []policy.Problem) {
	if len(*part)+len(now) > 0 {
		*part = now
		c.stale.problems = true
	}
}

// listProblems makes the list of all problems if it has changed.
func (c *Computer) listProblems(in Input) {
	var fromPolicy []policy.Problem
	if in.Policy != nil {
		fromPolicy = in.Policy.Problems
	}
	var before []policy.Problem
	if c.in.Policy != nil {
		before = c.in.Policy.Problems
	}
	same := len(fromPolicy) == len(before) && (len(before) == 0 || &before[0] == &fromPolicy[0])
	if same && !c.stale.problems && !c.stale.settings && !c.stale.pools {
		return
	}
	p := &c.problems
	all := slices.Concat(p.settings, p.pools, p.local, p.peers, p.bgp, p.learned, c.routes.listProblems(), fromPolicy)
	for _, problems := range p.nodes {
		all = append(all, problems...)
	}
	slices.SortStableFunc(all, func(a, b policy.Problem) int {
		if n := compareKeys(a.Object, b.Object); n != 0 {
			return n
		}
		return strings.Compare(a.Err.Error(), b.Err.Error())
	})
	if len(all) == 0 {
		all = nil
	}
	c.out.Problems = all
}

func (s *State) problem(object api.Key, err error) {
	s.Problems = append(s.Problems, policy.Problem{Object: object, Err: err})
}
