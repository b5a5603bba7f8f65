package host

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nextHop is the neighbour that packets to an address go to.
type nextHop struct {
	link    int
	gateway netip.Addr
	onLink  bool
}

// nextHops asks the kernel for next hops and remembers the answers, failures
// too, until told to forget.
type nextHops struct {
	kernel *netlink.Handle
	// mu is held while the kernel is asked, so that whoever is told of a change
	// finds here what was asked before it.
	mu    sync.Mutex
	known map[netip.Addr]hopAnswer
	// others are the routes of the main table that are not ours, by IPv6, once they
	// are needed.
	others map[bool][]netlink.Route
}

type hopAnswer struct {
	hop nextHop
	err error
}

func (h *nextHops) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.known, h.others = nil, nil
}

// concerns says whether a change of the route to p may change an answer.
func (h *nextHops) concerns(p netip.Prefix) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for to := range h.known {
		if p.Contains(to) {
			return true
		}
	}
	return false
}

// find returns the next hop towards an address: the address itself if it is on a
// link, else the gateway of the route that the kernel uses, our own routes
// excepted.
func (h *nextHops) find(to netip.Addr) (nextHop, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if a, ok := h.known[to]; ok {
		return a.hop, a.err
	}
	hop, err := h.ask(to)
	if h.known == nil {
		h.known = make(map[netip.Addr]hopAnswer)
	}
	h.known[to] = hopAnswer{hop, err}
	return hop, err
}

func (h *nextHops) ask(to netip.Addr) (nextHop, error) {
	// The kernel's own answer takes policy rules into account.
	found, err := h.kernel.RouteGetWithOptions(to.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
	if err != nil {
		return nextHop{}, fmt.Errorf("no route to it: %w", err)
	}
	if len(found) == 0 {
		return nextHop{}, errors.New("no route to it")
	}
	r := &found[0]
	if r.Protocol == Protocol {
		if r, err = h.withoutOurs(to); err != nil {
			return nextHop{}, err
		}
	}
	switch r.Type {
	case unix.RTN_UNICAST:
	case unix.RTN_LOCAL:
		return nextHop{}, errors.New("it is this host's own")
	default:
		return nextHop{}, errors.New("the route to it leads nowhere")
	}
	return hopOf(r, to)
}

// hopOf takes a route's next hop; of several, the first that is alive.
func hopOf(r *netlink.Route, to netip.Addr) (nextHop, error) {
	const dead = unix.RTNH_F_DEAD | unix.RTNH_F_LINKDOWN
	candidates := []*netlink.NexthopInfo{{LinkIndex: r.LinkIndex, Gw: r.Gw, Via: r.Via, Flags: r.Flags}}
	if len(r.MultiPath) > 0 {
		candidates = r.MultiPath
	}
	for _, c := range candidates {
		if c.Flags&dead != 0 {
			continue
		}
		hop := nextHop{link: c.LinkIndex, gateway: address(c.Gw), onLink: c.Flags&unix.RTNH_F_ONLINK != 0}
		if via, ok := c.Via.(*netlink.Via); ok {
			hop.gateway = address(via.Addr)
		}
		if !hop.gateway.IsValid() {
			hop.gateway = to
		}
		return hop, nil
	}
	return nextHop{}, errors.New("the link to it is down")
}

// withoutOurs finds the most specific route of the main table that is not ours.
func (h *nextHops) withoutOurs(to netip.Addr) (*netlink.Route, error) {
	others, ok := h.others[to.Is6()]
	if !ok {
		family := netlink.FAMILY_V4
		if to.Is6() {
			family = netlink.FAMILY_V6
		}
		var err error
		others, err = listRoutes(h.kernel, family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, err
		}
		if h.others == nil {
			h.others = make(map[bool][]netlink.Route)
		}
		h.others[to.Is6()] = others
	}
	var best *netlink.Route
	var bestKey routeKey
	for i := range others {
		r := &others[i]
		k, _ := routeOf(r)
		if r.Protocol == Protocol || k.tos != 0 || !k.prefix.Contains(to) {
			continue
		}
		longer := best == nil || k.prefix.Bits() > bestKey.prefix.Bits()
		if longer || k.prefix.Bits() == bestKey.prefix.Bits() && k.metric < bestKey.metric {
			best, bestKey = r, k
		}
	}
	if best == nil {
		return nil, errors.New("no route to it but our own")
	}
	return best, nil
}
