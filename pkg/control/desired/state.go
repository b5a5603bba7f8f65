// Package desired computes what this node should be from what is observed: the
// resources, the links, the learned routes. It is pure: no I/O, no clock, and
// the result depends on the input alone, never on history.
package desired

import (
	"log/slog"
	"net/netip"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/policy"
)

// Input is everything that is observed. What has been given to a computer is not
// changed afterwards, the store excepted.
type Input struct {
	Node      string // this node's name
	Config    Config
	Resources *api.Store
	Links     []Link
	Policy    *policy.Tables
	Learned   []LearnedRoute
	// Learning: the BGP sessions of this start are not all up yet, so Learned is not
	// the whole.
	Learning bool
	// Secrets are the values that a BGPPassword may name.
	Secrets map[SecretKey]string
	// Services are those of Kubernetes, if there is one.
	Services []Service
	// Pending: Kubernetes has not told yet all that BGP asks of it, so Secrets and
	// Services may not be the whole.
	Pending bool
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
	// Port says that the link is a port of a bridge or a part of a bond or team:
	// what it carries passes that one, too.
	Port bool
	// NoEthernet says that packets have no Ethernet header there, as on a WireGuard
	// device.
	NoEthernet bool
}

// LearnedRoute is what BGP peers told us: of several routes that are as good, the
// next hops of all, in order.
type LearnedRoute struct {
	Prefix   netip.Prefix
	NextHops []netip.Addr
}

// State is what this node should be. Each sink takes its part.
//
// The two maps of routes are the computer's own, true until its next result, which
// changes them in place. All else is never changed.
type State struct {
	// Computer is whose result it is, and Result counts its results, from 1.
	Computer *Computer
	Result   uint64
	// Changes is how this state differs from that of the result before.
	Changes Changes

	Dataplane Dataplane
	Host      Host
	NAT       NAT
	BGP       BGP
	// Local says of each of this node's workload endpoints what became of it,
	// those that are left out too.
	Local   map[api.Key]LocalEndpoint
	Servers Servers
	// LogLevel is FelixConfiguration's logSeverityScreen.
	LogLevel slog.Level
	// WorkloadMTU is what the interface of a new workload should have, bytes.
	WorkloadMTU int
	// Problems names the objects that were left out or closed, and why; those of
	// the policy compiler are among them.
	Problems []policy.Problem
}

// Changes is how a state differs from that of the result before. For the first
// result it is all there is. Policy has changes of its own, see policy.Tables.
type Changes struct {
	// Routes and KernelRoutes are the prefixes in Dataplane.Routes and Host.Routes
	// that are new, gone, or lead elsewhere.
	Routes, KernelRoutes []netip.Prefix
	// Peers is about Dataplane.Peers, BGP about BGP, and Local about the rest of
	// Dataplane and Host: false says that nothing in it differs.
	Local, Peers, BGP bool
}

// Applied remembers which state is in the world whole, so that a sink can tell
// whether a state's changes are all that it has to look at.
type Applied struct {
	computer *Computer
	result   uint64
}

// Precedes says whether the state's changes are those since the state that is
// applied.
func (a Applied) Precedes(s *State) bool {
	return s.Computer != nil && a.computer == s.Computer && a.result+1 == s.Result
}

// AppliedState is what to remember of a state that has been applied whole.
func AppliedState(s *State) Applied { return Applied{s.Computer, s.Result} }

// LocalEndpoint is how a workload endpoint of this node was taken up.
type LocalEndpoint struct {
	Interface string
	Addresses []netip.Addr
	Missing   bool // the interface does not exist: the endpoint waits for it
	Closed    bool // the endpoint is left out
	Problem   string
}

// Servers are the daemon's own HTTP listeners.
type Servers struct {
	Metrics, Health Server
	Debug           Server // profiles
}

// Server is one HTTP listener.
type Server struct {
	Enabled bool
	Host    string // empty: all addresses
	Port    int
}

// Dataplane is what goes into BPF.
type Dataplane struct {
	Node   NodeAddresses
	ToHost ToHostAction
	RPF    RPF
	// WorkloadIPIP and WorkloadVXLAN let workloads encapsulate packets themselves.
	WorkloadIPIP, WorkloadVXLAN bool

	NoXDP   bool         // no XDP program anywhere
	Uplinks map[int]Link // by interface index; all of the data interfaces
	// Endpoints are the workload endpoints on interfaces that exist. One without
	// addresses drops whatever its workload sends: such are endpoints that
	// something is wrong with, and, under KindInterface, the interfaces that look
	// like a workload's and have no endpoint.
	Endpoints map[api.Key]Endpoint
	Routes    map[netip.Prefix]Route
	Peers     map[netip.Addr]Peer // other nodes, by the address that packets from them carry outside
	// HostEndpoints are the host endpoints by the index of the interface that they
	// are on, which need be no uplink; that on all interfaces under TunnelIndex, too.
	HostEndpoints map[int]api.Key
	Failsafe      map[FailsafePort]bool
	// NATNets are the prefixes that natOutgoing has to do with, and those of services. Of those
	// within one another the longest says all. NATMark is NAT.Mark, UnjudgedMark
	// NAT.UnjudgedMark if there are services.
	NATNets      map[netip.Prefix]NATNet
	NATMark      uint32
	UnjudgedMark uint32
	VXLANPort    uint16 // UDP
	VXLANVNI     uint32
	Tables       TableSizes
	Policy       *policy.Tables
}

// TableSizes are the entries that tables have from the start; 0: as many as they are made
// with. They grow beyond that as they need to.
type TableSizes struct {
	Flows       int
	FlowsPerCPU int  // instead of Flows, for each CPU, unless it is 0
	FlowsFixed  bool // no more than that
	Routes      int
	Classes     int // of addresses, in sets that rules name
}

// NodeAddresses are the addresses of this node that the other nodes know.
// Invalid where there is none.
type NodeAddresses struct {
	IPv4, IPv6 netip.Addr
	VXLANMAC   MAC // of our VXLAN device, as the other nodes have it
	VXLANMACv6 MAC // same, for VXLAN over IPv6
}

// ToHostAction is FelixConfiguration's defaultEndpointToHostAction.
type ToHostAction uint8

const (
	ToHostDrop ToHostAction = iota
	ToHostReturn
	ToHostAccept
)

// RPF is FelixConfiguration's bpfEnforceRPF: whether what the network sends to this host's
// interfaces has to come from where the kernel has a way back.
type RPF uint8

const (
	RPFDisabled RPF = iota
	RPFLoose        // any way
	RPFStrict       // through the same interface
)

// KindInterface is the kind of the keys in Dataplane.Endpoints that stand for an
// interface (its name) without endpoint.
const KindInterface = "Interface"

// Endpoint is a local workload endpoint whose interface exists.
type Endpoint struct {
	Key       api.Key
	Interface string
	Ifindex   int
	Veth      bool // the interface is a veth whose peer is the workload's
	MAC       MAC  // the workload's; zero: not known, not checked
	HostMAC   MAC  // the host side's
	Addresses []netip.Addr
	Sources   []netip.Prefix // what else the workload may send from
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
	VXLANMAC MAC // of its VXLAN device for this address's family; always set, see VXLANMAC
}

// Host is the kernel's part: links, routes, sysctls.
type Host struct {
	// Workloads are the interfaces to bring up and set for proxy ARP, by name.
	Workloads map[string]WorkloadLink
	Routes    map[netip.Prefix]KernelRoute
	// Addresses are this host's own for what it sends through tunnels, in order. No
	// interface carries them otherwise.
	Addresses []netip.Addr
	// Uplinks are the names of the interfaces to other hosts, in order.
	Uplinks []string
	// Forwarding says which families the host forwards.
	ForwardIPv4, ForwardIPv6 bool
	// KeepLearned: peers may still tell of routes that the last start of the daemon
	// has left in the kernel; they stay.
	KeepLearned bool
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
	// Also are further addresses like Via, of the same worth: packets are spread over
	// all of them by flow.
	Also   []netip.Addr
	Source netip.Addr // of what the host itself sends; invalid: the kernel's choice
	MTU    int        // 0: the link's
	// Learned: from a BGP peer. What the host has of its own to the same prefix wins.
	Learned bool
}

// KernelRouteKind is the kind of a kernel route.
type KernelRouteKind uint8

const (
	KernelLink      KernelRouteKind = iota + 1 // scope link on Interface: a local workload
	KernelVia                                  // through Via
	KernelBlackhole                            // our own block
)
