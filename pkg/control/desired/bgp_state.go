package desired

import (
	"net/netip"
	"strings"
)

// BGP is what the speaker should do. Enabled is false where the backend is not
// BGP.
type BGP struct {
	Enabled    bool
	AS         uint32
	RouterID   netip.Addr
	ListenPort int
	ListenOn   []netip.Addr // none: all addresses
	// ClusterID is set where this node is a route reflector: an IPv4 address.
	ClusterID string
	Peers     map[string]BGPPeer // by name
	// Advertise are the prefixes that this node originates, with the session's own
	// address as next hop. Hidden, Communities and the peers' filters say what
	// becomes of them at the peers.
	Advertise map[netip.Prefix]bool
	NextHop4  netip.Addr
	NextHop6  netip.Addr

	// Hidden are pools that are not exported: no route inside them is announced
	// unless a peer's filter accepts it.
	Hidden []netip.Prefix
	// Passed are the nets inside which learned routes are passed on, as far as BGP
	// allows between the two peers. Others are for this node alone.
	Passed []netip.Prefix
	// Offered are those of Advertise that only a peer's filter announces: networks of
	// this host.
	Offered []netip.Prefix
	// Communities are added to what is announced inside a prefix.
	Communities []BGPCommunities
	// Filters are those that peers name.
	Filters map[string]BGPFilter
	// Services: there are nets in which the addresses of services may be announced one
	// by one. Secrets are those that passwords are in, by name.
	Services bool
	Secrets  []string
	// Pending: some of what is asked of Kubernetes is not known yet. A speaker that has
	// not started waits for it: peers may still have the routes that it told before it
	// was away.
	Pending bool
	// Awaited: a peer for this node selects other nodes, of which there are none yet.
	Awaited bool
}

// BGPCommunities are communities of routes inside a prefix: "64512:100" or, large
// ones, "64512:1:2".
type BGPCommunities struct {
	Prefix   netip.Prefix
	Standard []string
	Large    []string
}

// BGPPeer is one session to keep. It carries the address family of its address.
type BGPPeer struct {
	Address  netip.Addr
	Port     int
	AS       uint32
	Local    netip.Addr // our address on this session; invalid: whatever the host's routes say
	Kind     string     // as `calicoctl node status` prints it: "node-to-node mesh", "node specific", "global"
	Password string

	LocalAS     uint32 // 0: the speaker's
	Passive     bool   // the peer dials
	Client      bool   // of this route reflector
	ClusterNode bool   // the peer is a node of the cluster
	NextHop     BGPNextHop
	// RestartTime is for how long the peer keeps our routes while we are away,
	// seconds; 0: BIRD's default.
	RestartTime int
	// Hops is how many links away the peer is, and no packet from further away is
	// taken (RFC 5082); 0: not looked at.
	Hops         int
	AllowLocalAS int // how often our AS may be in the path of a route that is taken
	Filters      []string
}

// BGPNextHop says what next hop the routes have that are announced to a peer.
type BGPNextHop uint8

const (
	NextHopAuto BGPNextHop = iota // BGP's own rules
	NextHopSelf
	NextHopKeep
)

// BGPFilter is a BGPFilter resource: per family and direction, the first rule
// that matches a route decides. A route that none matches goes on to what holds
// without filters.
type BGPFilter struct {
	Import4, Export4, Import6, Export6 []BGPRule
}

// BGPRule is one rule of a filter; all that is given must match.
type BGPRule struct {
	Accept bool
	// Prefix matches the routes inside it whose prefix length is from Min to Max,
	// or, with Outside, the others. Invalid: all routes.
	Prefix   netip.Prefix
	Min, Max int
	Outside  bool
	// Learned matches routes from peers only.
	Learned bool
	// Interface, if not nil, matches the routes that lead to an interface.
	Interface *BGPInterface
}

// Covers applies the rule's prefix to p.
func (r BGPRule) Covers(p netip.Prefix) bool {
	if !r.Prefix.IsValid() {
		return true
	}
	in := r.Prefix.Bits() <= p.Bits() && r.Prefix.Contains(p.Addr()) && r.Min <= p.Bits() && p.Bits() <= r.Max
	return in != r.Outside
}

// BGPInterface is where a route must lead: a learned one has its next hop in one
// of the nets, one of our own is one of the prefixes.
type BGPInterface struct {
	Nets []netip.Prefix
	Own  []netip.Prefix
}

// SecretKey names a value of a Kubernetes Secret, or of what takes its place.
type SecretKey struct{ Secret, Key string }

// SecretVariablePrefix begins the names of environment variables with secrets.
const SecretVariablePrefix = "CALICO_SECRET_"

// Variable is the environment variable that may hold the value: CALICO_SECRET_, then
// the secret's name and the key in capitals with _ between them and for all that is
// neither letter nor digit. Input.Secrets has it under the variable's name as secret
// and an empty key.
func (k SecretKey) Variable() string {
	return SecretVariablePrefix + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, k.Secret+"_"+k.Key)
}

// Service is what BGP may tell of a Kubernetes service.
type Service struct {
	Name         string // namespace/name
	ClusterIPs   []netip.Addr
	ExternalIPs  []netip.Addr
	BalancerIPs  []netip.Addr // LoadBalancer
	LoadBalancer bool         // its type is LoadBalancer
	// Local: externalTrafficPolicy is Local; otherwise every node takes its traffic.
	Local bool
	// Here4 and Here6 say that a ready endpoint of the family is on this node.
	Here4, Here6 bool
	// Ready4 and Ready6 say that there is one on any node.
	Ready4, Ready6 bool
}
