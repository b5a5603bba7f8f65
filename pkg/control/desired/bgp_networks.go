package desired

import (
	"cmp"
	"net/netip"
	"path"
	"slices"
)

// hostNetwork is what is connected to an interface of the host: a network, or an
// address of its own.
type hostNetwork struct {
	prefix netip.Prefix
	link   string
}

// notAnnounced are the interfaces whose networks are never announced: those of
// workloads, Calico's tunnels, and where kube-proxy puts the addresses of all services.
var notAnnounced = []string{"cali*", "*.cali", "*.calico", "kube-ipvs*"}

// hostNetworks are the networks that could be announced.
func hostNetworks(links []Link) []hostNetwork {
	var out []hostNetwork
	for _, l := range links {
		if len(l.Addresses) == 0 || !l.Up || matchesAny(notAnnounced, l.Name) {
			continue
		}
		for _, p := range l.Addresses {
			if a := p.Addr(); !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsMulticast() {
				out = append(out, hostNetwork{p.Masked(), l.Name})
			}
		}
	}
	slices.SortFunc(out, func(a, b hostNetwork) int {
		return cmp.Or(a.prefix.Compare(b.prefix), cmp.Compare(a.link, b.link))
	})
	return out
}

// matchesAny tells whether one of the patterns, as a shell has them, is the interface's.
func matchesAny(patterns []string, link string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		ok, _ := path.Match(pattern, link)
		return ok
	})
}

// addNetworks announces what is the host's own. An address by itself, such as one of
// the loopback that routers are to know, is announced where a pool has it. Everything
// else is only where a peer's filter accepts it.
func (r *bgpReader) addNetworks() {
	b := &r.State.BGP
	for _, n := range r.networks {
		is6 := n.prefix.Addr().Is6()
		if _, announced := b.Advertise[n.prefix]; announced || is6 && !b.NextHop6.IsValid() || !is6 && !b.NextHop4.IsValid() {
			continue
		}
		pool, pooled := r.cluster.poolOf(n.prefix.Addr())
		_, owned := r.cluster.ownerOf(n.prefix.Addr())
		switch {
		case n.prefix.IsSingleIP() && pooled && pool.export && !owned:
			b.Advertise[n.prefix] = true
		case r.offered(n):
			b.Advertise[n.prefix] = true
			b.Offered = append(b.Offered, n.prefix)
		}
	}
}

// offered tells whether some peer's filters accept a network.
func (r *bgpReader) offered(n hostNetwork) bool {
	b := &r.State.BGP
	for _, p := range b.Peers {
		if p.Address.Is6() == n.prefix.Addr().Is6() && accepts(b, p, n.prefix) {
			return true
		}
	}
	return false
}

// accepts tells whether the first rule of a peer's filters that matches a route of our
// own accepts it.
func accepts(b *BGP, p BGPPeer, route netip.Prefix) bool {
	for _, name := range p.Filters {
		rules := b.Filters[name].Export4
		if route.Addr().Is6() {
			rules = b.Filters[name].Export6
		}
		for _, rule := range rules {
			if !rule.Learned && rule.Covers(route) && (rule.Interface == nil || slices.Contains(rule.Interface.Own, route)) {
				return rule.Accept
			}
		}
	}
	return false
}
