package bgp

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/apiutil"
	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// Route is one route as a peer has announced it, or as it is announced to one.
type Route struct {
	Prefix  netip.Prefix
	NextHop netip.Addr
	Peer    netip.Addr
	ASPath  string // "65100 65200"; empty for one of our own AS
	// Communities are standard and large ones, in numbers.
	Communities []string
	// Best: the route is used, or one of several that are.
	Best bool
	// Stale: the peer is away, and its routes are kept until it is back.
	Stale bool
}

// Routes returns what the peers announce, as far as filters let it in, and what is
// announced to each.
func (s *Speaker) Routes() (received, advertised []Route, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == (global{}) {
		return nil, nil, nil
	}
	for _, unspecified := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		r := &api.ListPathRequest{TableType: api.TableType_GLOBAL, Family: familyOf(unspecified)}
		err := s.library.ListPath(context.Background(), r, func(d *api.Destination) {
			for _, p := range d.Paths {
				route, ok := readRoute(p)
				if !ok || isLocal(p) {
					continue
				}
				route.Peer, _ = netip.ParseAddr(p.GetNeighborIp())
				route.Best = slices.Contains(s.watched.hops(route.Prefix), route.NextHop)
				received = append(received, route)
			}
		})
		if err != nil {
			return nil, nil, fmt.Errorf("bgp routes: %w", err)
		}
	}
	for peer := range s.sessions {
		if !s.watched.peer(peer).up {
			continue
		}
		r := &api.ListPathRequest{TableType: api.TableType_ADJ_OUT, Name: peer.String(), Family: familyOf(peer)}
		err := s.library.ListPath(context.Background(), r, func(d *api.Destination) {
			for _, p := range d.Paths {
				if route, ok := readRoute(p); ok {
					route.Peer, route.Best = peer, true
					advertised = append(advertised, route)
				}
			}
		})
		if err != nil {
			continue // the peer is gone since it was listed
		}
	}
	order := func(a, b Route) int {
		return cmp.Or(a.Prefix.Compare(b.Prefix), a.Peer.Compare(b.Peer), a.NextHop.Compare(b.NextHop))
	}
	slices.SortFunc(received, order)
	slices.SortFunc(advertised, order)
	return received, advertised, nil
}

func readRoute(p *api.Path) (Route, bool) {
	prefix, hop, ok := readPath(p)
	if !ok {
		return Route{}, false
	}
	r := Route{Prefix: prefix, NextHop: hop, Stale: p.GetStale()}
	attributes, err := apiutil.GetNativePathAttributes(p)
	if err != nil {
		return Route{}, false
	}
	for _, a := range attributes {
		switch a := a.(type) {
		case *bgp.PathAttributeAsPath:
			var ases []string
			for _, segment := range a.Value {
				for _, as := range segment.GetAS() {
					ases = append(ases, fmt.Sprint(as))
				}
			}
			r.ASPath = strings.Join(ases, " ")
		case *bgp.PathAttributeCommunities:
			for _, c := range a.Value {
				r.Communities = append(r.Communities, fmt.Sprintf("%d:%d", c>>16, c&0xffff))
			}
		case *bgp.PathAttributeLargeCommunities:
			for _, c := range a.Values {
				if text := c.String(); !slices.Contains(marks[:], text) {
					r.Communities = append(r.Communities, text)
				}
			}
		}
	}
	return r, true
}
