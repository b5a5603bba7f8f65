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

	mu      sync.Mutex
	learned map[netip.Prefix]netip.Addr // best paths of peers: next hop
	own     [2]netip.Addr               // our own addresses as next hop
	peers   map[netip.Addr]peerState
}

// peerState says since when a session is up or down, and over what.
type peerState struct {
	up         bool
	since      time.Time
	connection connection
}

func newWatched(logger *slog.Logger) *watched {
	return &watched{
		logger:  logger,
		changed: make(chan struct{}, 1),
		learned: map[netip.Prefix]netip.Addr{},
		peers:   map[netip.Addr]peerState{},
	}
}

// watch subscribes to library's events until ctx ends.
func (w *watched) watch(ctx context.Context, library *server.BgpServer) error {
	best := &api.WatchEventRequest_Table_Filter{Type: api.WatchEventRequest_Table_Filter_BEST, Init: true}
	r := &api.WatchEventRequest{
		Peer:  &api.WatchEventRequest_Peer{},
		Table: &api.WatchEventRequest_Table{Filters: []*api.WatchEventRequest_Table_Filter{best}},
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

// pathsChanged takes new best paths. A prefix whose best path is our own is
// not learned, whoever else announces it.
func (w *watched) pathsChanged(paths []*api.Path) {
	w.mu.Lock()
	defer w.mu.Unlock()
	different := false
	for _, p := range paths {
		prefix, hop, ok := readPath(p)
		if !ok {
			continue
		}
		old, had := w.learned[prefix]
		if p.GetIsWithdraw() || isLocal(p) || !hop.IsValid() {
			delete(w.learned, prefix)
			different = different || had
		} else if !had || old != hop {
			w.learned[prefix] = hop
			different = true
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

func (w *watched) peerChanged(p *api.Peer) {
	address, err := netip.ParseAddr(p.GetState().GetNeighborAddress())
	if err != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	up := p.GetState().GetSessionState() == api.PeerState_ESTABLISHED
	if w.peers[address].up == up {
		return
	}
	if up {
		local, _ := netip.ParseAddr(p.GetTransport().GetLocalAddress())
		w.peers[address] = peerState{up: true, since: time.Now(), connection: connection{
			local:  netip.AddrPortFrom(local, uint16(p.GetTransport().GetLocalPort())),
			remote: netip.AddrPortFrom(address, uint16(p.GetTransport().GetRemotePort())),
		}}
		w.logger.Info("bgp session up", "peer", address, "as", p.GetState().GetPeerAsn())
	} else {
		w.peers[address] = peerState{since: time.Now()}
		w.logger.Warn("bgp session down", "peer", address)
	}
}

// addPeers takes up sessions that are new.
func (w *watched) addPeers(add map[netip.Addr]session) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for address := range add {
		if _, had := w.peers[address]; !had {
			w.peers[address] = peerState{since: time.Now()}
		}
	}
}

// keepPeers forgets the sessions that are not in keep.
func (w *watched) keepPeers(keep map[netip.Addr]session) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for address := range w.peers {
		if _, ok := keep[address]; !ok {
			delete(w.peers, address)
		}
	}
}

// connections are those of the sessions that are up.
func (w *watched) connections() map[connection]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	found := map[connection]bool{}
	for _, p := range w.peers {
		if p.up {
			found[p.connection] = true
		}
	}
	return found
}

func (w *watched) peer(address netip.Addr) peerState {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.peers[address]
}

func (w *watched) setOwn(hops ...netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	copy(w.own[:], hops)
}

// Learned is the best route of each prefix that peers announce, by prefix. A
// route that leads back to this node is no route.
func (s *Speaker) Learned() []desired.LearnedRoute {
	w := s.watched
	w.mu.Lock()
	defer w.mu.Unlock()
	routes := make([]desired.LearnedRoute, 0, len(w.learned))
	for prefix, hop := range w.learned {
		if !slices.Contains(w.own[:], hop) {
			routes = append(routes, desired.LearnedRoute{Prefix: prefix, NextHop: hop})
		}
	}
	slices.SortFunc(routes, func(a, b desired.LearnedRoute) int { return a.Prefix.Compare(b.Prefix) })
	return routes
}

// Changed receives when Learned has changed since it last received.
func (s *Speaker) Changed() <-chan struct{} { return s.watched.changed }
