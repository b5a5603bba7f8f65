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
	known map[hopQuestion]hopAnswer
	// others are the routes of the main table that are not ours, by IPv6, once they
	// are needed.
	others map[bool][]netlink.Route
}

// hopQuestion is an address, and whether routes learned from BGP peers may lead to
// it. They may to a node, never to the next hop of such a route.
type hopQuestion struct {
	to      netip.Addr
	learned bool
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
	for q := range h.known {
		if p.Contains(q.to) {
			return true
		}
	}
	return false
}

// goThrough says whether any answer leads through a link.
func (h *nextHops) goThrough(link int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range h.known {
		if a.hop.link == link || a.err != nil {
			return true
		}
	}
	return false
}

// find returns the next hop towards an address: the address itself if it is on a
// link, else the gateway of the route that the kernel uses, our own routes
// excepted, but for learned ones if they may lead to it.
func (h *nextHops) find(to netip.Addr, learned bool) (nextHop, error) {
	q := hopQuestion{to, learned}
	h.mu.Lock()
	defer h.mu.Unlock()
	if a, ok := h.known[q]; ok {
		return a.hop, a.err
	}
	hop, err := h.ask(q)
	if h.known == nil {
		h.known = make(map[hopQuestion]hopAnswer)
	}
	h.known[q] = hopAnswer{hop, err}
	return hop, err
}

func (h *nextHops) ask(q hopQuestion) (nextHop, error) {
	to := q.to
	// The kernel's own answer takes policy rules into account.
	found, err := h.kernel.RouteGetWithOptions(to.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
	if err != nil {
		return nextHop{}, fmt.Errorf("no route to it: %w", err)
	}
	if len(found) == 0 {
		return nextHop{}, errors.New("no route to it")
	}
	r := &found[0]
	if excluded(r, q) {
		if r, err = h.withoutOurs(q); err != nil {
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

// excluded says that a route must not lead to what is asked for.
func excluded(r *netlink.Route, q hopQuestion) bool {
	if r.Protocol != Protocol {
		return false
	}
	k, _ := routeOf(r)
	return !q.learned || !k.learned()
}

// withoutOurs finds the most specific route of the main table that may lead there.
func (h *nextHops) withoutOurs(q hopQuestion) (*netlink.Route, error) {
	to := q.to
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
		if excluded(r, q) || k.tos != 0 || !k.prefix.Contains(to) {
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
