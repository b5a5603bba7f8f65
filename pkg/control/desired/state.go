// Package desired computes what this node should be from what is observed: the
// resources, the links, the learned routes. It is pure: no I/O, no clock, and
// the result depends on the input alone, never on history.
package desired

import (
	"net/netip"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/policy"
)

// Input is everything that is observed.
type Input struct {
	Node      string // this node's name
	Config    Config
	Resources *api.Store
	Links     []Link
	Policy    *policy.Tables
	Learned   []LearnedRoute
}

// MAC is an Ethernet address; all zero is "not known".
type MAC [6]byte

// Link is a network interface of the host.
type Link struct {
	Name      string
	Index     int
	Kind      string // as netlink says: "veth", "bridge", "device", …
	MTU       int
	MAC       MAC
	Up        bool
	Addresses []netip.Prefix
}

// LearnedRoute is what a BGP peer told us.
type LearnedRoute struct {
	Prefix  netip.Prefix
	NextHop netip.Addr
}

// State is what this node should be. Each sink takes its part.
type State struct {
	Dataplane Dataplane
	Host      Host
	BGP       BGP
	// Problems names the objects that were left out or closed, and why.
	Problems []policy.Problem
}

// Dataplane is what goes into BPF.
type Dataplane struct {
	Node      NodeAddresses
	ToHost    ToHostAction
	Uplinks   map[int]Link // by interface index; all of the data interfaces
	Endpoints map[api.Key]Endpoint
	Routes    map[netip.Prefix]Route
	Peers     map[netip.Addr]Peer // other nodes, by the address that packets from them carry outside
	Policy    *policy.Tables
}

// NodeAddresses are the addresses of this node that the other nodes know.
// Invalid where there is none.
type NodeAddresses struct {
	IPv4, IPv6 netip.Addr
	VXLANMAC   MAC
}

// ToHostAction is FelixConfiguration's defaultEndpointToHostAction.
type ToHostAction uint8

const (
	ToHostDrop ToHostAction = iota
	ToHostReturn
	ToHostAccept
)

// Endpoint is a local workload endpoint whose interface exists.
type Endpoint struct {
	Key       api.Key
	Interface string
	Ifindex   int
	Veth      bool // the interface is a veth whose peer is the workload's
	MAC       MAC  // the workload's; zero: not known, not checked
	HostMAC   MAC  // the host side's
	Addresses []netip.Addr
}

// RouteKind says where packets to a prefix go.
type RouteKind uint8

const (
	RouteHost     RouteKind = iota + 1 // an address of this host: the host's stack
	RouteWorkload                      // workloads on another node: Via is that node's address
	RouteBlock                         // our own block: an address without an endpoint is dropped
	RoutePeerHost                      // another node itself: the host's stack routes it
)

// Encap is how packets to another node travel.
type Encap uint8

const (
	EncapNone Encap = iota
	EncapIPIP
	EncapVXLAN
)

// Route is one entry of the BPF route table. Local workloads are not in it.
type Route struct {
	Kind  RouteKind
	Via   netip.Addr // RouteWorkload: the node's address
	Encap Encap
}

// Peer is another node.
type Peer struct {
	Name     string
	VXLANMAC MAC // of its VXLAN device; always set (deterministic where the Node says nothing)
}

// Host is the kernel's part: links, routes, sysctls.
type Host struct {
	// Workloads are the interfaces to bring up and set for proxy ARP, by name.
	Workloads map[string]WorkloadLink
	Routes    map[netip.Prefix]KernelRoute
	// Forwarding says which families the host forwards.
	ForwardIPv4, ForwardIPv6 bool
}

// WorkloadLink is how a workload's host-side interface is set.
type WorkloadLink struct {
	Ifindex int
}

// KernelRoute is one route in the main table, with our protocol number.
type KernelRoute struct {
	Kind      KernelRouteKind
	Interface string     // KernelLink
	Via       netip.Addr // KernelVia: an address that the host itself can reach; the sink finds the real next hop
	MTU       int        // 0: the link's
}

// KernelRouteKind is the kind of a kernel route.
type KernelRouteKind uint8

const (
	KernelLink      KernelRouteKind = iota + 1 // scope link on Interface: a local workload
	KernelVia                                  // through Via
	KernelBlackhole                            // our own block
)

// BGP is what the speaker should do. Enabled is false where the backend is not
// BGP.
type BGP struct {
	Enabled    bool
	AS         uint32
	RouterID   netip.Addr
	ListenPort int
	Peers      map[string]BGPPeer // by name
	// Advertise are the prefixes to announce with ourselves as next hop.
	Advertise map[netip.Prefix]bool
	NextHop4  netip.Addr
	NextHop6  netip.Addr
}

// BGPPeer is one session to keep.
type BGPPeer struct {
	Address  netip.Addr
	Port     int
	AS       uint32
	Local    netip.Addr // our address on this session
	Kind     string     // as `calicoctl node status` prints it: "node-to-node mesh", "node specific", "global"
	Password string
}
