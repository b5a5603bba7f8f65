package desired

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"calico-xdp/pkg/api"

	"github.com/gaissmai/bart"
)

// owners says on which node the workloads of a prefix are: blocks, single
// addresses that are not on their block's node, and strays, which are the
// addresses of endpoints that no block leads to, given by hand or by an IPAM that
// is not ours. It follows the resources one by one, and notes what has changed.
type owners struct {
	self string

	blocks map[api.Key][]owned // what each block says
	// said is what blocks say about a prefix, by their keys: the last one counts.
	said    map[netip.Prefix][]owner
	byBlock bart.Table[string] // the node of each prefix in said

	places   map[api.Key]place        // of all workload endpoints
	users    map[netip.Addr][]api.Key // the endpoints with an address
	strays   map[netip.Prefix]string  // the nodes of strays
	reserved reserved

	prefixes map[string]map[netip.Prefix]bool // of each node

	suspects map[netip.Addr]bool // addresses that may have become strays, or no longer be
	changed  []netip.Prefix      // that have another owner; some maybe twice
	ownMoved bool                // this node's are among them
}

// owner is a node, and the block that names it.
type owner struct {
	node   string
	object api.Key
}

// owned is a prefix whose workloads are on a node.
type owned struct {
	prefix netip.Prefix
	node   string
}

// place is where an endpoint is.
type place struct {
	node      string
	addresses []netip.Addr
}

// reserved are the addresses that endpoints must not take from the hosts.
type reserved struct {
	host  map[netip.Addr]bool   // this host's
	nodes map[netip.Addr]string // the nodes', by name
}

// whose says whose an address is; empty: it is free.
func (r reserved) whose(a netip.Addr) string {
	if r.host[a] {
		return "this host's"
	}
	if node, ok := r.nodes[a]; ok {
		return "node " + node + "'s"
	}
	return ""
}

func newOwners(self string) *owners {
	return &owners{
		self:   self,
		blocks: make(map[api.Key][]owned), said: make(map[netip.Prefix][]owner),
		places: make(map[api.Key]place), users: make(map[netip.Addr][]api.Key), strays: make(map[netip.Prefix]string),
		prefixes: make(map[string]map[netip.Prefix]bool), suspects: make(map[netip.Addr]bool),
	}
}

// owner returns the node that has exactly this prefix.
func (o *owners) owner(p netip.Prefix) (node string, ok bool) {
	if node, ok = o.strays[p]; ok {
		return node, true
	}
	said := o.said[p]
	if len(said) == 0 {
		return "", false
	}
	return said[len(said)-1].node, true
}

// ownerOf returns the node that has the longest prefix with the address.
func (o *owners) ownerOf(a netip.Addr) (node string, ok bool) {
	if node, ok = o.strays[single(a)]; ok {
		return node, true
	}
	return o.byBlock.Lookup(a)
}

// parseBlock returns a block's node, and those of its addresses that are in use
// on another node.
func parseBlock(b *api.IPAMBlock) []owned {
	prefix := b.CIDR.Masked()
	if b.Deleted || !prefix.IsValid() { // absent from the object: the datastore reports it
		return nil
	}
	affine := ""
	if b.Affinity != nil {
		affine, _ = strings.CutPrefix(*b.Affinity, "host:")
		if affine == *b.Affinity {
			affine = "" // "virtual:…": no node's
		}
	}
	var out []owned
	if affine != "" {
		out = append(out, owned{prefix, affine})
	}
	addr := prefix.Addr()
	for _, i := range b.Allocations {
		if i != nil && *i >= 0 && *i < len(b.Attributes) {
			if on := b.Attributes[*i].Secondary["node"]; on != "" && on != affine {
				if out = append(out, owned{single(addr), on}); prefix.IsSingleIP() && len(out) == 2 {
					out = out[1:] // the block is one address
				}
			}
		}
		addr = addr.Next()
	}
	return out
}

// readBlock takes up what a block says; nothing, if it is gone.
func (o *owners) readBlock(key api.Key, now []owned) {
	was := o.blocks[key]
	if slices.Equal(was, now) {
		return
	}
	for _, w := range was {
		if !slices.Contains(now, w) {
			o.say(w.prefix, key, "")
		}
	}
	for _, w := range now {
		if !slices.Contains(was, w) {
			o.say(w.prefix, key, w.node)
		}
	}
	if o.blocks[key] = now; len(now) == 0 {
		delete(o.blocks, key)
	}
}

// say notes which node a block names for a prefix; an empty name takes that back.
func (o *owners) say(p netip.Prefix, block api.Key, node string) {
	before, _ := o.owner(p)
	said := o.said[p]
	i, there := slices.BinarySearchFunc(said, block, func(w owner, key api.Key) int { return compareKeys(w.object, key) })
	switch {
	case node == "" && there:
		said = slices.Delete(said, i, i+1)
	case node == "":
	case there:
		said[i].node = node
	default:
		said = slices.Insert(said, i, owner{node, block})
	}
	if len(said) == 0 {
		delete(o.said, p)
		o.byBlock.Delete(p)
	} else {
		o.said[p] = said
		o.byBlock.Insert(p, said[len(said)-1].node)
	}
	o.moved(p, before)
	o.suspect(p)
}

// moved notes that a prefix may have another owner than before.
func (o *owners) moved(p netip.Prefix, before string) {
	now, _ := o.owner(p)
	if now == before {
		return
	}
	o.changed = append(o.changed, p)
	o.ownMoved = o.ownMoved || before == o.self || now == o.self
	if before != "" {
		if delete(o.prefixes[before], p); len(o.prefixes[before]) == 0 {
			delete(o.prefixes, before)
		}
	}
	if now != "" {
		if o.prefixes[now] == nil {
			o.prefixes[now] = make(map[netip.Prefix]bool)
		}
		o.prefixes[now][p] = true
	}
}

// suspect notes that the endpoints' addresses in a prefix have to be looked at.
func (o *owners) suspect(p netip.Prefix) {
	if free := p.Addr().BitLen() - p.Bits(); free < 30 && 1<<free <= len(o.users) {
		for a := p.Addr(); a.IsValid() && p.Contains(a); a = a.Next() {
			if len(o.users[a]) > 0 {
				o.suspects[a] = true
			}
		}
		return
	}
	for a := range o.users {
		if p.Contains(a) {
			o.suspects[a] = true
		}
	}
}

// readEndpoint takes up an endpoint's addresses; w is nil if it is gone. Those
// that are not right are left out: this node's own are reported elsewhere.
func (o *owners) readEndpoint(key api.Key, w *api.WorkloadEndpoint) {
	var now place
	if w != nil {
		now.node = w.Spec.Node
		for _, text := range w.Spec.IPNetworks {
			if a, err := parseEndpointAddress(text); err == nil && !slices.Contains(now.addresses, a) {
				now.addresses = append(now.addresses, a)
			}
		}
	}
	was := o.places[key]
	if was.node == now.node && slices.Equal(was.addresses, now.addresses) {
		return
	}
	for _, a := range was.addresses {
		o.suspects[a] = true
		o.users[a] = slices.DeleteFunc(o.users[a], func(k api.Key) bool { return k == key })
		if len(o.users[a]) == 0 {
			delete(o.users, a)
		}
	}
	for _, a := range now.addresses {
		o.suspects[a] = true
		o.users[a] = append(o.users[a], key)
	}
	if len(now.addresses) == 0 {
		delete(o.places, key)
		return
	}
	o.places[key] = now
}

// reserveHost and reserveNodes set the addresses that are not for endpoints.
func (o *owners) reserveHost(now map[netip.Addr]bool) {
	o.suspectDifferent(maps.Keys(now), maps.Keys(o.reserved.host))
	o.reserved.host = now
}

func (o *owners) reserveNodes(now map[netip.Addr]string) {
	o.suspectDifferent(maps.Keys(now), maps.Keys(o.reserved.nodes))
	o.reserved.nodes = now
}

// suspectDifferent suspects the addresses that are in only one of the two.
func (o *owners) suspectDifferent(a, b iter.Seq[netip.Addr]) {
	once := make(map[netip.Addr]bool)
	for x := range a {
		once[x] = true
	}
	for x := range b {
		if once[x] {
			delete(once, x)
		} else {
			once[x] = true
		}
	}
	maps.Copy(o.suspects, once)
}

// settle finds the strays among the suspects.
func (o *owners) settle() {
	for a := range o.suspects {
		p := single(a)
		before, _ := o.owner(p)
		if node := o.stray(a); node != "" {
			o.strays[p] = node
		} else {
			delete(o.strays, p)
		}
		o.moved(p, before)
	}
	o.suspects = make(map[netip.Addr]bool) // to clear it costs what it ever held
}

// stray returns the node that has an address without a block that says so. Of
// several endpoints that claim an address this node's goes first: it keeps what
// it has; else the first by key.
func (o *owners) stray(a netip.Addr) (node string) {
	if o.reserved.whose(a) != "" {
		return ""
	}
	block, _ := o.byBlock.Lookup(a)
	var best api.Key
	for _, key := range o.users[a] {
		on := o.places[key].node
		if on == block && block != "" {
			continue
		}
		mine, bestMine := on == o.self, node == o.self
		if best == (api.Key{}) || mine && !bestMine || mine == bestMine && compareKeys(key, best) < 0 {
			best, node = key, on
		}
	}
	return node
}

// takeChanged returns the prefixes that have another owner since the last call, and
// whether that was or is this node for some.
func (o *owners) takeChanged() (prefixes []netip.Prefix, own bool) {
	prefixes, own = o.changed, o.ownMoved
	o.changed, o.ownMoved = nil, false
	return prefixes, own
}
