package host

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"

	"calico-xdp/pkg/control/desired"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Protocol marks our routes in the kernel's tables.
const Protocol = 88

// What the kernel gives a route that has no metric.
const (
	metric4 = 0
	metric6 = 1024
)

// learnedMetric makes a route that BGP peers told of give way to one that the host
// has of its own to the same prefix, unless that is from DHCP, which says 100 or more
// for IPv4.
const learnedMetric = 32

// routeKey is what makes two routes of the main table the same one for the
// kernel.
type routeKey struct {
	prefix netip.Prefix
	tos    int // IPv4 only
	metric int
}

func keyOf(p netip.Prefix) routeKey {
	if p.Addr().Is4() {
		return routeKey{prefix: p, metric: metric4}
	}
	return routeKey{prefix: p, metric: metric6}
}

// learnedKey is the key of a route from a BGP peer.
func learnedKey(p netip.Prefix) routeKey {
	k := keyOf(p)
	k.metric += learnedMetric
	return k
}

func (k routeKey) learned() bool { return k == learnedKey(k.prefix) }

func (k routeKey) String() string {
	if k == keyOf(k.prefix) || k.learned() {
		return "route " + k.prefix.String()
	}
	return fmt.Sprintf("route %s tos %d metric %d", k.prefix, k.tos, k.metric)
}

// maxHops is over how many next hops one route spreads packets.
const maxHops = 8

// route is where packets go. The kernel shows what it was given in these fields
// unchanged.
type route struct {
	kind    int // unix.RTN_UNICAST, …
	scope   netlink.Scope
	link    int // interface index
	gateway netip.Addr
	onLink  bool
	source  netip.Addr
	mtu     int
	// also are the further next hops of a route that has several, by link and gateway.
	// The first one is in the fields above.
	also [maxHops - 1]nextHop
	// odd is a route that has more than these fields can say, or shares its key
	// with another one of ours. It is equal to nothing that is wanted.
	odd bool
}

func routeOf(r *netlink.Route) (routeKey, route) {
	ones, _ := r.Dst.Mask.Size()
	k := routeKey{prefix: netip.PrefixFrom(address(r.Dst.IP), ones), tos: r.Tos, metric: r.Priority}
	v := route{
		kind: r.Type, scope: r.Scope, link: r.LinkIndex, gateway: address(r.Gw),
		onLink: r.Flags&unix.RTNH_F_ONLINK != 0, source: address(r.Src), mtu: r.MTU,
		odd: len(r.MultiPath) > maxHops || r.Encap != nil || r.MTULock || r.AdvMSS != 0 || r.Realm != 0,
	}
	if via, ok := r.Via.(*netlink.Via); ok {
		v.gateway = address(via.Addr)
	}
	if hops := hopsOf(r.MultiPath); len(hops) > 0 && len(hops) <= maxHops {
		v.setHops(hops)
	}
	if v.kind != unix.RTN_UNICAST {
		v.link = 0 // IPv6 shows lo
	}
	if v.kind != unix.RTN_UNICAST && r.Family == unix.AF_INET6 {
		v.scope = netlink.SCOPE_UNIVERSE
	}
	return k, v
}

// hopsOf are the next hops of a route that has several.
func hopsOf(list []*netlink.NexthopInfo) []nextHop {
	var out []nextHop
	for _, h := range list {
		hop := nextHop{link: h.LinkIndex, gateway: address(h.Gw), onLink: h.Flags&unix.RTNH_F_ONLINK != 0}
		if via, ok := h.Via.(*netlink.Via); ok {
			hop.gateway = address(via.Addr)
		}
		out = append(out, hop)
	}
	return out
}

// setHops takes up to maxHops next hops, which it sorts.
func (v *route) setHops(hops []nextHop) {
	slices.SortFunc(hops, func(a, b nextHop) int { return cmp.Or(cmp.Compare(a.link, b.link), a.gateway.Compare(b.gateway)) })
	hops = slices.Compact(hops)
	hops = hops[:min(len(hops), maxHops)]
	v.link, v.gateway, v.onLink = hops[0].link, hops[0].gateway, hops[0].onLink
	v.also = [maxHops - 1]nextHop{}
	copy(v.also[:], hops[1:])
}

// hops are all next hops of the route.
func (v *route) hops() []nextHop {
	out := []nextHop{{v.link, v.gateway, v.onLink}}
	for _, h := range v.also {
		if h != (nextHop{}) {
			out = append(out, h)
		}
	}
	return out
}

func address(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func (v route) netlink(k routeKey) *netlink.Route {
	r := &netlink.Route{
		Dst: ipNet(k.prefix), Tos: k.tos, Priority: k.metric, Table: unix.RT_TABLE_MAIN, Protocol: Protocol,
		Type: v.kind, Scope: v.scope, LinkIndex: v.link, MTU: v.mtu,
	}
	if hops := v.hops(); len(hops) > 1 {
		r.LinkIndex = 0
		for _, h := range hops {
			info := &netlink.NexthopInfo{LinkIndex: h.link}
			if h.gateway.Is4() == k.prefix.Addr().Is4() {
				info.Gw = h.gateway.AsSlice()
			} else {
				info.Via = &netlink.Via{AddrFamily: unix.AF_INET6, Addr: h.gateway.AsSlice()}
			}
			if h.onLink {
				info.Flags = unix.RTNH_F_ONLINK
			}
			r.MultiPath = append(r.MultiPath, info)
		}
		if v.source.IsValid() {
			r.Src = v.source.AsSlice()
		}
		return r
	}
	switch {
	case !v.gateway.IsValid():
	case v.gateway.Is4() == k.prefix.Addr().Is4():
		r.Gw = v.gateway.AsSlice()
	default:
		r.Via = &netlink.Via{AddrFamily: unix.AF_INET6, Addr: v.gateway.AsSlice()}
	}
	if v.source.IsValid() {
		r.Src = v.source.AsSlice()
	}
	if v.onLink {
		r.Flags = unix.RTNH_F_ONLINK
	}
	return r
}

// routeTable is our routes in the main table, as a reconcile.Table.
type routeTable struct {
	kernel *netlink.Handle
	// mu is held while the kernel is written, so that whoever is told of a change
	// finds it here if it is our own.
	mu   sync.Mutex
	ours map[routeKey]route
	uses map[int]int // of each link, how many of ours go through it
	// blocked are the keys at which another's route is in the way.
	blocked map[routeKey]bool
}

// Load reads both families' routes with our protocol number.
func (t *routeTable) Load() (map[routeKey]route, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	filter := &netlink.Route{Table: unix.RT_TABLE_MAIN, Protocol: Protocol}
	var list []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		found, err := listRoutes(t.kernel, family, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			return nil, err
		}
		list = append(list, found...)
	}
	t.ours, t.uses = make(map[routeKey]route, len(list)), make(map[int]int)
	t.blocked = make(map[routeKey]bool)
	loaded := make(map[routeKey]route, len(list))
	for i := range list {
		k, v := routeOf(&list[i])
		if _, double := loaded[k]; double {
			v.odd = true
		}
		t.set(k, v)
		loaded[k] = v
	}
	return loaded, nil
}

func listRoutes(kernel *netlink.Handle, family int, filter *netlink.Route, mask uint64) ([]netlink.Route, error) {
	list, err := dump(func() ([]netlink.Route, error) { return kernel.RouteListFiltered(family, filter, mask) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return list, nil
}

// Put adds or replaces a route, never one of another protocol.
func (t *routeTable) Put(k routeKey, v route) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	have, ours := t.ours[k]
	if ours && have.odd {
		if err := t.remove(k); err != nil {
			return err
		}
		ours = false
	}
	r := v.netlink(k)
	var err error
	if ours {
		err = t.kernel.RouteReplace(r)
	} else if err = t.kernel.RouteAdd(r); errors.Is(err, unix.EEXIST) {
		err = t.takeOver(k, v, r)
	}
	if err != nil {
		// What the kernel has now is not known; the next Put must not replace what
		// may be another's.
		t.unset(k)
		return err
	}
	t.set(k, v)
	delete(t.blocked, k)
	return nil
}

// takeOver deals with a route that is in the way. One to the same workload's link
// is what whoever made the link has added (Calico's CNI plugin does), and becomes
// ours; so does one of ours that was not known. Any other belongs to someone
// else.
func (t *routeTable) takeOver(k routeKey, v route, r *netlink.Route) error {
	family := netlink.FAMILY_V4
	if k.prefix.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	list, err := listRoutes(t.kernel, family, &netlink.Route{Table: unix.RT_TABLE_MAIN, Dst: ipNet(k.prefix)},
		netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
	if err != nil {
		return err
	}
	for i := range list {
		key, value := routeOf(&list[i])
		if key != k {
			continue
		}
		toWorkload := !v.gateway.IsValid() && v.kind == unix.RTN_UNICAST && value.link == v.link && !value.gateway.IsValid()
		if list[i].Protocol == Protocol || toWorkload {
			return t.kernel.RouteReplace(r)
		}
		t.blocked[k] = true
		return fmt.Errorf("a route with protocol %d is in the way: %s", list[i].Protocol, list[i])
	}
	return unix.EEXIST // gone again; the next round will see
}

// Delete removes a route of ours.
func (t *routeTable) Delete(k routeKey) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.blocked, k)
	err := t.remove(k)
	if err == nil {
		t.unset(k)
	}
	return err
}

func (t *routeTable) set(k routeKey, v route) {
	t.unset(k)
	t.ours[k] = v
	for _, hop := range v.hops() {
		t.uses[hop.link]++
	}
}

func (t *routeTable) unset(k routeKey) {
	v, ok := t.ours[k]
	if !ok {
		return
	}
	delete(t.ours, k)
	for _, hop := range v.hops() {
		if t.uses[hop.link]--; t.uses[hop.link] == 0 {
			delete(t.uses, hop.link)
		}
	}
}

// goThrough says whether any of ours go through a link.
func (t *routeTable) goThrough(link int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.uses[link] > 0
}

// remove deletes all of our routes with that key.
func (t *routeTable) remove(k routeKey) error {
	r := &netlink.Route{
		Dst: ipNet(k.prefix), Tos: k.tos, Priority: k.metric, Table: unix.RT_TABLE_MAIN,
		Protocol: Protocol, Scope: netlink.SCOPE_NOWHERE, // any
	}
	for again := true; again; again = t.ours[k].odd {
		err := t.kernel.RouteDel(r)
		if errors.Is(err, unix.ESRCH) || isGone(err) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *routeTable) get(k routeKey) (route, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v, ok := t.ours[k]
	return v, ok
}

// each goes through our routes.
func (t *routeTable) each(f func(routeKey, route)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, v := range t.ours {
		f(k, v)
	}
}

// touches says what another's route at a key means for ours: it has replaced it,
// or it was in its way and may be no longer.
func (t *routeTable) touches(k routeKey) (replaced, freed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, replaced = t.ours[k]
	return replaced, t.blocked[k]
}

// expects says whether an event only tells what we did ourselves, or what was so
// already.
func (t *routeTable) expects(u netlink.RouteUpdate) bool {
	k, v := routeOf(&u.Route)
	have, ok := t.get(k)
	if u.Type == unix.RTM_DELROUTE {
		return !ok
	}
	return ok && have == v
}

// resolve finds the next hops of a route, of several those that there are.
func (n *Network) resolve(r desired.KernelRoute) ([]nextHop, error) {
	var hops []nextHop
	var errs []error
	for _, to := range append([]netip.Addr{r.Via}, r.Also...) {
		hop, err := n.hops.find(to, !r.Learned)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		hops = append(hops, hop)
	}
	if len(hops) == 0 {
		return nil, errors.Join(errs...)
	}
	return hops, nil
}

// wantRoutes translates the state's routes. Those whose next hop is not known are
// reported and listed as unresolved; those whose link does not exist are left
// out, since the kernel has none either.
func (n *Network) wantRoutes(want *desired.State, links map[string]netlink.Link) (map[routeKey]route, []routeKey, error) {
	out := make(map[routeKey]route, len(want.Host.Routes))
	index := func(name string) (int, bool) {
		l, ok := links[name]
		if !ok {
			return 0, false
		}
		return l.Attrs().Index, true
	}
	var unresolved []routeKey
	var errs []error
	for p, r := range want.Host.Routes {
		k, v, err := n.wantRoute(p, r, index)
		switch {
		case err != nil:
			if !errors.Is(err, errNowhere) {
				errs = append(errs, err)
			}
			unresolved = append(unresolved, k)
		case v.kind != 0:
			out[k] = v
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
	return out, unresolved, errors.Join(errs...)
}

// errNowhere says that a peer tells of next hops that lead nowhere, as it may.
var errNowhere = errors.New("the next hops lead nowhere")

// wantKey is the key of one of the state's routes.
func wantKey(p netip.Prefix, r desired.KernelRoute) routeKey {
	if r.Learned {
		return learnedKey(p.Masked())
	}
	return keyOf(p.Masked())
}

// wantRoute translates one route. It is of kind 0 if its link does not exist.
func (n *Network) wantRoute(p netip.Prefix, r desired.KernelRoute, index func(string) (int, bool)) (k routeKey, v route, err error) {
	k = wantKey(p, r)
	v = route{kind: unix.RTN_UNICAST, scope: netlink.SCOPE_UNIVERSE, mtu: r.MTU}
	switch r.Kind {
	case desired.KernelLink:
		link, ok := index(r.Interface)
		if !ok {
			return k, route{}, nil
		}
		v.link, v.source = link, r.Source
		if p.Addr().Is4() {
			v.scope = netlink.SCOPE_LINK
		}
	case desired.KernelVia:
		hops, err := n.resolve(r)
		if err != nil {
			if r.Learned {
				return k, v, errNowhere
			}
			return k, v, fmt.Errorf("%s via %s: %w", k, r.Via, err)
		}
		v.setHops(hops)
		v.source = r.Source
	case desired.KernelBlackhole:
		v.kind = unix.RTN_BLACKHOLE
	default:
		return k, route{}, errors.New(k.String() + ": unknown kind " + strconv.Itoa(int(r.Kind)))
	}
	return k, v, nil
}
