package ipam

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"
)

// State is whether an assigned address is in use.
type State uint8

const (
	// InUse: a workload endpoint or a node has it, or it is kept from use.
	InUse State = iota
	// Leaked: it was assigned to a workload or to a node's tunnel, and there is
	// no such.
	Leaked
	// Unknown: nothing says whose it is, as of addresses assigned by hand or for
	// something that is no resource.
	Unknown
)

// User is a resource that has an address.
type User struct {
	Object api.Key
	Node   string
}

func (u User) String() string {
	if u.Object.Kind == api.KindNode {
		return "Node(" + u.Object.Name + ")"
	}
	return "Workload(" + u.Object.Namespace + "/" + u.Object.Name + ")"
}

// Allocation is an assigned address with who has it.
type Allocation struct {
	Assignment
	Owner string // the node that the block belongs to
	Users []User
	State State
}

// Node returns the node that the address was assigned to, else the block's owner.
func (al Allocation) Node() string {
	if node := al.Attributes[AttributeNode]; node != "" {
		return node
	}
	return al.Owner
}

// UserNames are those of who has the address, for people.
func (al Allocation) UserNames() string { return namesOf(al.Users) }

// Use is an address that a resource has.
type Use struct {
	Address netip.Addr
	User    User
	handle  string // under which it would have been assigned
}

// Conflict is an address that several have, or another one than it was assigned to.
type Conflict struct {
	Address netip.Addr
	Text    string
}

// LostHandle is a handle that has no address.
type LostHandle struct{ ID, ResourceVersion string }

// Audit is what IPAM's objects say, beside what the cluster's other resources say
// of addresses, all as of one moment.
type Audit struct {
	Cluster *api.ClusterInformation // nil: there is none
	Blocks  int
	Pools   []netip.Prefix // enabled ones
	Nodes   int
	Handles int

	Allocations []Allocation // in the order of their addresses
	Endpoints   int
	// Unassigned addresses are in use and in a pool, but free in IPAM's eyes:
	// someone else will get them. Foreign ones are in use and in no pool.
	Unassigned, Foreign []Use
	Conflicts           []Conflict
	Faults              []Fault
	LostHandles         []LostHandle
	// Orphans are claims of nodes that do not exist, and blocks of no pool that
	// a node owns and nobody uses.
	Orphans []Orphan
	// Unread objects are stored and cannot be read. While there is a workload
	// endpoint among them no address is known to be leaked.
	Unread []api.Key
}

// Orphan is a block that its owner has no business with any more.
type Orphan struct {
	Node  string
	Block netip.Prefix
	Text  string
}

// Of returns the allocations in this state.
func (r *Audit) Of(s State) []Allocation {
	var out []Allocation
	for _, al := range r.Allocations {
		if al.State == s {
			out = append(out, al)
		}
	}
	return out
}

// Problems counts what is wrong. What a writer may leave for a moment, and what costs
// nothing, does not count.
func (r *Audit) Problems() int {
	n := len(r.Of(Leaked)) + len(r.Unassigned) + len(r.Conflicts) + len(r.LostHandles) + len(r.Orphans) + len(r.Unread)
	for _, f := range r.Faults {
		if !f.Leftover {
			n++
		}
	}
	return n
}

// unreadUser returns an object that cannot be read and may say that it has any address,
// or be on any node.
func unreadUser(t datastore.Together) (api.Key, bool) {
	i := slices.IndexFunc(t.Unread, func(k api.Key) bool { return k.Kind == api.KindWorkloadEndpoint || k.Kind == api.KindNode })
	if i < 0 {
		return api.Key{}, false
	}
	return t.Unread[i], true
}

func auditedKinds() []string {
	return []string{
		api.KindIPAMBlock, api.KindIPAMHandle, api.KindBlockAffinity, api.KindIPPool, api.KindWorkloadEndpoint,
		api.KindNode, api.KindClusterInformation,
	}
}

// Audit compares IPAM's objects with each other and with who has addresses.
func (a *Allocator) Audit(ctx context.Context) (*Audit, error) {
	t, err := a.store.ListTogether(ctx, auditedKinds()...)
	if err != nil {
		return nil, err
	}
	return audit(t), nil
}

func audit(t datastore.Together) *Audit {
	r := &Audit{Faults: check(t), Unread: t.Unread}
	for _, c := range of[*api.ClusterInformation](t, api.KindClusterInformation) {
		if c.Name == "default" {
			r.Cluster = c
		}
	}
	for _, p := range readPools(of[*api.IPPool](t, api.KindIPPool)) {
		if !p.spec.Disabled {
			r.Pools = append(r.Pools, p.cidr)
		}
	}
	users, uses := usersOf(t)
	r.Endpoints, r.Nodes = len(t.ByKind[api.KindWorkloadEndpoint]), len(t.ByKind[api.KindNode])

	_, blind := unreadUser(t)
	assigned := make(map[netip.Addr]bool)
	held := make(map[string]bool)
	blocks := of[*api.IPAMBlock](t, api.KindIPAMBlock)
	slices.SortFunc(blocks, func(a, b *api.IPAMBlock) int { return a.CIDR.Compare(b.CIDR) })
	r.Blocks = len(blocks)
	for _, b := range blocks {
		node, _ := owner(b)
		for _, as := range allocations(b) {
			al := Allocation{Assignment: as.public(b.CIDR), Owner: node, Users: users[as.address]}
			al.State = stateOf(al)
			if blind && al.State == Leaked {
				al.State = Unknown
			}
			held[al.Handle] = true
			assigned[al.Address] = true
			r.Allocations = append(r.Allocations, al)
			r.Conflicts = append(r.Conflicts, conflicts(al)...)
		}
	}
	for _, u := range uses {
		switch in := func(p netip.Prefix) bool { return p.Contains(u.Address) }; {
		case assigned[u.Address]:
		case slices.ContainsFunc(r.Pools, in):
			r.Unassigned = append(r.Unassigned, u)
			if others := users[u.Address]; len(others) > 1 && others[0] == u.User {
				r.Conflicts = append(r.Conflicts, Conflict{u.Address, "used by " + namesOf(others)})
			}
		default:
			r.Foreign = append(r.Foreign, u)
		}
	}
	handles := of[*api.IPAMHandle](t, api.KindIPAMHandle)
	r.Handles = len(handles)
	for _, h := range handles {
		if !held[h.Name] {
			r.LostHandles = append(r.LostHandles, LostHandle{h.Name, h.ResourceVersion})
		}
	}
	r.Orphans = orphans(t, blocks)
	return r
}

// usersOf returns who has which address, in the order of the resources.
func usersOf(t datastore.Together) (map[netip.Addr][]User, []Use) {
	users := make(map[netip.Addr][]User)
	var uses []Use
	note := func(a netip.Addr, u User, handle string) {
		if !slices.Contains(users[a], u) {
			users[a] = append(users[a], u)
			uses = append(uses, Use{a, u, handle})
		}
	}
	for _, w := range of[*api.WorkloadEndpoint](t, api.KindWorkloadEndpoint) {
		for _, a := range w.Addresses() {
			note(a, User{api.KeyOf(w), w.Spec.Node}, handleOfEndpoint(w))
		}
	}
	for _, n := range of[*api.Node](t, api.KindNode) {
		for _, t := range tunnelsOf(n) {
			if a, err := netip.ParseAddr(t.address); err == nil {
				note(a, User{api.KeyOf(n), n.Name}, t.handle+n.Name)
			}
		}
	}
	return users, uses
}

// handleOfEndpoint returns the handle under which the CNI plugins, Calico's and
// ours, assign the endpoint's addresses. One that they did not make gets a handle of
// its own, which whoever collects leaked addresses releases once it is gone.
func handleOfEndpoint(w *api.WorkloadEndpoint) string {
	switch {
	case w.Spec.ContainerID == "":
	case w.Spec.Orchestrator == "k8s" && !slices.Contains(w.Spec.Profiles, "k8s-pod-network"):
		return "k8s-pod-network." + w.Spec.ContainerID
	case len(w.Spec.Profiles) > 0:
		return w.Spec.Profiles[0] + "." + w.Spec.ContainerID
	}
	return "endpoint." + w.Namespace + "." + w.Name
}

// nodeTunnel is an address that a node says its tunnel has, with how its handle
// begins and its type, as Calico's nodes name them.
type nodeTunnel struct{ address, handle, kind string }

func tunnelsOf(n *api.Node) []nodeTunnel {
	named := func(address string, t Tunnel) nodeTunnel {
		handle, kind := t.names()
		return nodeTunnel{address, handle, kind}
	}
	out := []nodeTunnel{named(n.Spec.IPv4VXLANTunnelAddr, VXLAN), named(n.Spec.IPv6VXLANTunnelAddr, VXLANv6)}
	if n.Spec.BGP != nil {
		out = append(out, named(n.Spec.BGP.IPv4IPIPTunnelAddr, IPIP))
	}
	if w := n.Spec.Wireguard; w != nil {
		out = append(out, nodeTunnel{w.InterfaceIPv4Address, "wireguard-tunnel-addr-", "wireguardTunnelAddress"},
			nodeTunnel{w.InterfaceIPv6Address, "wireguard-v6-tunnel-addr-", "wireguardV6TunnelAddress"})
	}
	return out
}

// windowsHandle is of the addresses at the ends of blocks that Windows keeps.
const windowsHandle = "windows-reserved-ipam-handle"

func stateOf(al Allocation) State {
	kind := al.Attributes[AttributeType]
	switch {
	case len(al.Users) > 0, al.Handle == windowsHandle, kind == TypeElsewhere:
		return InUse
	case isTunnel(al.Assignment):
		return Leaked
	case kind != "", al.Attributes["vmi"] != "":
		return Unknown
	case al.Attributes[AttributeNode] != "", al.Attributes[AttributePod] != "":
		return Leaked
	}
	return Unknown
}

func isTunnel(as Assignment) bool {
	return strings.HasSuffix(as.Attributes[AttributeType], "TunnelAddress")
}

// conflicts tells whether others have an address than whom it was assigned to.
func conflicts(al Allocation) []Conflict {
	var out []Conflict
	var workloads []User
	for _, u := range al.Users {
		if u.Object.Kind == api.KindWorkloadEndpoint {
			workloads = append(workloads, u)
		}
		if node := al.Attributes[AttributeNode]; node != "" && u.Node != "" && u.Node != node {
			out = append(out, Conflict{al.Address, fmt.Sprintf("assigned to node %s (handle %s), used by %s of node %s", node, al.Handle, u, u.Node)})
		}
	}
	if len(workloads) > 1 || len(workloads) > 0 && len(workloads) < len(al.Users) {
		out = append(out, Conflict{al.Address, "used by " + al.UserNames()})
	}
	return out
}

func namesOf(users []User) string {
	var out []string
	for _, u := range users {
		out = append(out, u.String())
	}
	return strings.Join(out, " and ")
}

// orphans returns the blocks whose owner is no node and has no workloads, and
// those of no pool that are empty.
func orphans(t datastore.Together, blocks []*api.IPAMBlock) []Orphan {
	if _, blind := unreadUser(t); blind {
		return nil
	}
	nodes := make(map[string]bool)
	for _, n := range t.ByKind[api.KindNode] {
		nodes[n.GetName()] = true
	}
	for _, w := range of[*api.WorkloadEndpoint](t, api.KindWorkloadEndpoint) {
		nodes[w.Spec.Node] = true
	}
	pools := readPools(of[*api.IPPool](t, api.KindIPPool))
	var out []Orphan
	seen := make(map[string]bool)
	for _, b := range blocks {
		node, ok := owner(b)
		if !ok {
			continue
		}
		_, pooled := containing(pools, b.CIDR)
		switch {
		case !nodes[node]:
			out = append(out, Orphan{node, b.CIDR, "the owner, " + node + ", is no node"})
		case !pooled && isEmpty(b):
			out = append(out, Orphan{node, b.CIDR, "in no pool and empty"})
		}
		seen[api.AffinityName(node, b.CIDR)] = true
	}
	for _, aff := range of[*api.BlockAffinity](t, api.KindBlockAffinity) {
		if node, cidr, err := aff.Claim(); err == nil && !nodes[node] && !seen[aff.Name] {
			out = append(out, Orphan{node, cidr, "claimed by " + node + ", which is no node"})
		}
	}
	return out
}
