package bgp

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/apiutil"
	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/osrg/gobgp/v3/pkg/server"
)

// pathTable is the prefixes that GoBGP originates, with their next hops, as a
// reconcile.Table. An unspecified next hop stands for each session's own address.
type pathTable struct {
	library *server.BgpServer
}

func (t pathTable) Load() (map[netip.Prefix]netip.Addr, error) {
	found := map[netip.Prefix]netip.Addr{}
	for _, f := range []*api.Family{familyOf(netip.IPv4Unspecified()), familyOf(netip.IPv6Unspecified())} {
		r := &api.ListPathRequest{TableType: api.TableType_GLOBAL, Family: f}
		err := t.library.ListPath(context.Background(), r, func(d *api.Destination) {
			for _, p := range d.Paths {
				if prefix, hop, ok := readPath(p); ok && isLocal(p) {
					found[prefix] = hop
				}
			}
		})
		if err != nil {
			return nil, fmt.Errorf("bgp paths: %w", err)
		}
	}
	return found, nil
}

func (t pathTable) Put(prefix netip.Prefix, hop netip.Addr) error {
	p, err := newPath(prefix, hop)
	if err == nil {
		_, err = t.library.AddPath(context.Background(), &api.AddPathRequest{Path: p})
	}
	if err != nil {
		return fmt.Errorf("bgp path %s: %w", prefix, err)
	}
	return nil
}

func (t pathTable) Delete(prefix netip.Prefix) error {
	p, err := newPath(prefix, zero(prefix))
	if err == nil {
		err = t.library.DeletePath(context.Background(), &api.DeletePathRequest{Path: p})
	}
	if err != nil {
		return fmt.Errorf("bgp path %s: %w", prefix, err)
	}
	return nil
}

// newPath is prefix through hop, in GoBGP's terms. Origin IGP is what BIRD
// gives its own static routes.
func newPath(prefix netip.Prefix, hop netip.Addr) (*api.Path, error) {
	bits := uint8(prefix.Bits())
	attributes := []bgp.PathAttributeInterface{bgp.NewPathAttributeOrigin(bgp.BGP_ORIGIN_ATTR_TYPE_IGP)}
	if prefix.Addr().Is4() {
		nlri := bgp.NewIPAddrPrefix(bits, prefix.Addr().String())
		attributes = append(attributes, bgp.NewPathAttributeNextHop(hop.String()))
		return apiutil.NewPath(nlri, false, attributes, time.Now())
	}
	nlri := bgp.NewIPv6AddrPrefix(bits, prefix.Addr().String())
	attributes = append(attributes, bgp.NewPathAttributeMpReachNLRI(hop.String(), []bgp.AddrPrefixInterface{nlri}))
	return apiutil.NewPath(nlri, false, attributes, time.Now())
}

// readPath is the reverse of newPath. The next hop is invalid where the path
// carries none, as in a withdrawal.
func readPath(p *api.Path) (prefix netip.Prefix, hop netip.Addr, ok bool) {
	nlri, err := apiutil.GetNativeNlri(p)
	if err != nil {
		return netip.Prefix{}, netip.Addr{}, false
	}
	if prefix, err = netip.ParsePrefix(nlri.String()); err != nil {
		return netip.Prefix{}, netip.Addr{}, false
	}
	attributes, err := apiutil.GetNativePathAttributes(p)
	if err != nil {
		return netip.Prefix{}, netip.Addr{}, false
	}
	for _, a := range attributes {
		switch a := a.(type) {
		case *bgp.PathAttributeNextHop:
			hop, _ = netip.AddrFromSlice(a.Value)
		case *bgp.PathAttributeMpReachNLRI:
			hop, _ = netip.AddrFromSlice(a.Nexthop)
		}
	}
	return prefix, hop.Unmap(), true
}

// isLocal says that we originated the path: it has no neighbour. (GoBGP
// writes a missing address as "<nil>".)
func isLocal(p *api.Path) bool {
	_, err := netip.ParseAddr(p.GetNeighborIp())
	return err != nil
}

func familyOf(a netip.Addr) *api.Family {
	f := &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST}
	if a.Is6() {
		f.Afi = api.Family_AFI_IP6
	}
	return f
}

// zero is the unspecified address of prefix's family.
func zero(prefix netip.Prefix) netip.Addr {
	if prefix.Addr().Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
