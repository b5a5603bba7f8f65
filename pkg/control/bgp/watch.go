package bgp

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/server"

	"calico-xdp/pkg/control/desired"
)

// watched is what GoBGP's events have told. It has its own lock: events come
// while the speaker's calls into GoBGP are under way.
type watched struct {
	logger  *slog.Logger
	changed chan struct{}
	// patience is how long a session may take to come up.
	patience time.Duration

	mu      sync.Mutex
	learned map[netip.Prefix][]netip.Addr // best paths of peers: next hops, in order
	own     [2]netip.Addr                 // our own addresses as next hop
	peers   map[netip.Addr]*peerState
}

func newWatched(logger *slog.Logger) *watched {
	return &watched{
		logger:   logger,
		changed:  make(chan struct{}, 1),
		patience: defaultPatience,
		learned:  map[netip.Prefix][]netip.Addr{},
		peers:    map[netip.Addr]*peerState{},
	}
}

// watch subscribes to library's events until ctx ends.
func (w *watched) watch(ctx context.Context, library *server.BgpServer) error {
	best := &api.WatchEventRequest_Table_Filter{Type: api.WatchEventRequest_Table_Filter_BEST, Init: true}
	complete := &api.WatchEventRequest_Table_Filter{Type: api.WatchEventRequest_Table_Filter_EOR}
	r := &api.WatchEventRequest{
		Peer:  &api.WatchEventRequest_Peer{},
		Table: &api.WatchEventRequest_Table{Filters: []*api.WatchEventRequest_Table_Filter{best, complete}},
	}
	return library.WatchEvent(ctx, r, func(e *api.WatchEventResponse) {
		if t := e.GetTable(); t != nil {
			w.pathsChanged(t.GetPaths())
		}
		if p := e.GetPeer(); p != nil && p.GetType() != api.WatchEventResponse_PeerEvent_END_OF_INIT {
			w.peerChanged(p.GetPeer())
		}
	})
}

// pathsChanged takes new best paths; of each prefix all that are equally good come in
// one event. A prefix whose best path is our own is not learned, whoever else
// announces it.
func (w *watched) pathsChanged(paths []*api.Path) {
	hops := map[netip.Prefix][]netip.Addr{}
	for _, p := range paths {
		prefix, hop, ok := readPath(p)
		if !ok {
			if peer, err := netip.ParseAddr(p.GetNeighborIp()); err == nil && p.GetNlri() == nil {
				w.complete(peer)
			}
			continue
		}
		known := hops[prefix]
		if !p.GetIsWithdraw() && !isLocal(p) && hop.IsValid() && !slices.Contains(known, hop) {
			known = append(known, hop)
		}
		hops[prefix] = known
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	different := false
	for prefix, now := range hops {
		slices.SortFunc(now, netip.Addr.Compare)
		if slices.Equal(w.learned[prefix], now) {
			continue
		}
		different = true
		if len(now) == 0 {
			delete(w.learned, prefix)
		} else {
			w.learned[prefix] = now
		}
	}
	if different {
		w.signal()
	}
}

func (w *watched) signal() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// hops are the next hops in use for a prefix.
func (w *watched) hops(prefix netip.Prefix) []netip.Addr {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.learned[prefix]
}

func (w *watched) setOwn(hops ...netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if slices.Equal(w.own[:], hops) {
		return
	}
	copy(w.own[:], hops)
	if len(w.learned) > 0 {
		w.signal() // what leads back to us is another one
	}
}

// Learned is the best route of each prefix that peers announce, by prefix, with all
// next hops of those that are as good. What leads back to this node is no route.
func (s *Speaker) Learned() []desired.LearnedRoute {
	w := s.watched
	w.mu.Lock()
	defer w.mu.Unlock()
	routes := make([]desired.LearnedRoute, 0, len(w.learned))
	for prefix, hops := range w.learned {
		if slices.ContainsFunc(w.own[:], func(a netip.Addr) bool { return slices.Contains(hops, a) }) {
			hops = slices.DeleteFunc(slices.Clone(hops), func(a netip.Addr) bool { return slices.Contains(w.own[:], a) })
		}
		if len(hops) > 0 {
			routes = append(routes, desired.LearnedRoute{Prefix: prefix, NextHops: hops})
		}
	}
	slices.SortFunc(routes, func(a, b desired.LearnedRoute) int { return a.Prefix.Compare(b.Prefix) })
	return routes
}

// Changed receives when Learned has changed since it last received.
func (s *Speaker) Changed() <-chan struct{} { return s.watched.changed }
