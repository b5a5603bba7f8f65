// Package bgp is the sink that tells the network where this node's workloads
// are: a GoBGP speaker inside the process, kept as desired.State.BGP says.
//
// Sessions carry one address family each, that of their own addresses, as
// Calico's do. Only prefixes of this node are ever announced; what peers
// announce is handed out by Learned and programmed by others.
package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/server"
	"golang.org/x/sys/unix"

	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/control/reconcile"
)

// defaultPort is BGP's well-known port; desired.BGP.ListenPort 0 means it.
const defaultPort = 179

// NoListen as desired.BGP.ListenPort makes a speaker that only dials.
const NoListen = -1

// Options are what stays the same for the life of the process.
type Options struct {
	// ListenAddresses are the addresses to accept sessions on. None: all
	// addresses of the host.
	ListenAddresses []netip.Addr
}

// Speaker is the sink. Its methods may be called from any goroutine.
type Speaker struct {
	listen  []string
	logger  *slog.Logger
	watched *watched

	mu      sync.Mutex
	library *server.BgpServer // created when first needed; outlives restarts
	unwatch context.CancelFunc
	running global // zero: stopped
	paths   *reconcile.Tracked[netip.Prefix, netip.Addr]
	peers   *reconcile.Tracked[netip.Addr, session]
	table   *peerTable // what peers tracks
	names   map[netip.Addr]label
	// settled is set once the wanted state is known to be whole. Nothing starts
	// before: a peer that kept our routes while we restarted drops those that
	// it has not heard again by the time of our first End-of-RIB marker.
	settled   bool
	restarted bool // the first sessions of this process have been added
	closed    bool
}

// global is what GoBGP cannot change while it runs.
type global struct {
	as       uint32
	routerID netip.Addr
	port     int
}

// label is how people call a peer. It is no part of the session, so a peer may
// be renamed while it is up.
type label struct {
	name, kind string
}

// New returns a speaker that does nothing until it is told what to be.
func New(o Options, logger *slog.Logger) *Speaker {
	s := &Speaker{logger: logger, watched: newWatched(logger)}
	for _, a := range o.ListenAddresses {
		s.listen = append(s.listen, a.String())
	}
	return s
}

// Ensure starts the speaker and adds the prefixes and sessions that are
// missing. It does nothing until Prune has been called.
func (s *Speaker) Ensure(ctx context.Context, want *desired.State) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || !s.settled {
		return nil
	}
	return s.ensure(ctx, &want.BGP)
}

func (s *Speaker) ensure(ctx context.Context, b *desired.BGP) error {
	if !b.Enabled {
		return nil
	}
	if err := s.start(ctx, b); err != nil {
		return err
	}
	s.watched.setOwn(b.NextHop4, b.NextHop6)
	paths, err := wantedPaths(b)
	sessions, names := wantedPeers(b)
	s.names = names
	s.watched.addPeers(sessions)
	err = errors.Join(err, s.paths.Ensure(paths), s.peers.Ensure(sessions))
	s.restarted, s.table.restarting = true, false // peers that are added later are new
	return err
}

// Prune withdraws prefixes and ends sessions that are not wanted, telling the
// peers to forget our routes; where BGP is not wanted at all it stops the
// speaker. Its caller's datastore is in sync, so the first call starts
// everything.
func (s *Speaker) Prune(ctx context.Context, want *desired.State) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := &want.BGP
	switch {
	case s.closed:
		return nil
	case !s.settled:
		s.settled = true
		return s.ensure(ctx, b)
	case !b.Enabled:
		return s.stop(ctx)
	case s.running == (global{}):
		return nil // Ensure did not succeed and has said why
	}
	paths, _ := wantedPaths(b) // Ensure has reported what is wrong
	sessions, _ := wantedPeers(b)
	s.watched.keepPeers(sessions)
	return errors.Join(s.paths.Prune(paths), s.peers.Prune(sessions))
}

// Resync makes the next round compare with what GoBGP really has.
func (s *Speaker) Resync() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running != (global{}) {
		s.paths.Resync()
		s.peers.Resync()
	}
}

// Close ends the process's part without a word to the peers, so that those
// that agreed on graceful restart keep our routes until we are back. To be
// forgotten instead, Prune a state whose BGP is not enabled first.
func (s *Speaker) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if s.library == nil {
		return nil
	}
	var err error
	if s.running != (global{}) {
		err = s.hangUp()
	}
	s.unwatch()
	return errors.Join(err, s.stop(context.Background()))
}

// start brings the speaker up with b's global values, restarting it if they
// have changed: GoBGP fixes them, and the AS and router id are in every OPEN.
func (s *Speaker) start(ctx context.Context, b *desired.BGP) error {
	g := global{as: b.AS, routerID: b.RouterID, port: b.ListenPort}
	if g.port == 0 {
		g.port = defaultPort
	}
	if g == s.running {
		return nil
	}
	if s.running != (global{}) {
		s.logger.Info("bgp speaker restarts: its global configuration changed",
			"as", g.as, "router_id", g.routerID, "port", g.port)
		if err := s.stop(ctx); err != nil {
			return err
		}
	}
	if s.library == nil {
		s.library = server.NewBgpServer(server.LoggerOption(&logger{s.logger}))
		go s.library.Serve() // never returns: the library has no way to end it
		watching, unwatch := context.WithCancel(context.Background())
		s.unwatch = unwatch
		if err := s.watched.watch(watching, s.library); err != nil {
			return fmt.Errorf("bgp watch: %w", err)
		}
	}
	err := s.library.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{
		Asn:             g.as,
		RouterId:        g.routerID.String(),
		ListenPort:      int32(g.port),
		ListenAddresses: s.listenAddresses(),
	}})
	if err == nil {
		err = exportOwnOnly(ctx, s.library)
	}
	if err != nil {
		// Also closes the listeners that a half-done start has opened.
		return errors.Join(fmt.Errorf("bgp start: %w", err), s.library.StopBgp(ctx, &api.StopBgpRequest{}))
	}
	s.running = g
	s.paths = reconcile.TrackWith(pathTable{s.library}, reconcile.Options[netip.Addr]{
		Name: "bgp paths", Logger: s.logger,
		Equal: func(read, put netip.Addr) bool { return read == put },
	})
	s.table = &peerTable{library: s.library, restarting: !s.restarted}
	s.peers = reconcile.TrackWith(s.table, reconcile.Options[session]{
		Name: "bgp peers", Logger: s.logger, Equal: session.sameAs,
	})
	s.logger.Info("bgp speaker started", "as", g.as, "router_id", g.routerID, "port", g.port)
	return nil
}

// listenAddresses is all addresses if none were asked for, without IPv6 where
// the kernel has none: GoBGP would refuse to start at all.
func (s *Speaker) listenAddresses() []string {
	if len(s.listen) > 0 {
		return s.listen
	}
	all := []string{netip.IPv4Unspecified().String()}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
		all = append(all, netip.IPv6Unspecified().String())
	}
	return all
}

// stop ends all sessions with a notification, upon which peers drop our
// routes, and closes the listeners.
func (s *Speaker) stop(ctx context.Context) error {
	if s.running == (global{}) {
		return nil
	}
	if err := s.library.StopBgp(ctx, &api.StopBgpRequest{}); err != nil {
		return fmt.Errorf("bgp stop: %w", err)
	}
	s.running, s.paths, s.peers, s.table, s.names = global{}, nil, nil, nil, nil
	s.watched.keepPeers(nil)
	s.logger.Info("bgp speaker stopped")
	return nil
}

// wantedPeers turns b's named peers into sessions. There is one session per
// address; of several peers with one address the first by name wins.
func wantedPeers(b *desired.BGP) (map[netip.Addr]session, map[netip.Addr]label) {
	sessions := make(map[netip.Addr]session, len(b.Peers))
	names := make(map[netip.Addr]label, len(b.Peers))
	for _, name := range slices.Sorted(maps.Keys(b.Peers)) {
		p := b.Peers[name]
		address := p.Address.Unmap()
		if _, taken := sessions[address]; taken {
			continue
		}
		w := session{port: p.Port, as: p.AS, local: p.Local.Unmap(), password: p.Password}
		if w.port == 0 {
			w.port = defaultPort
		}
		if !w.local.IsValid() {
			w.local = b.NextHop4
			if address.Is6() {
				w.local = b.NextHop6
			}
		}
		// In the mesh the node with the greater address, compared as text,
		// dials: Calico's rule, which its nodes rely on. It also spares two
		// GoBGPs from refusing each other in turns: either closes what reaches
		// it in the five seconds after a failure, which to the caller is one.
		w.passive = p.Kind == desired.PeerMesh && b.ListenPort != NoListen && address.String() > w.local.String()
		sessions[address], names[address] = w, label{name: name, kind: p.Kind}
	}
	return sessions, names
}

// wantedPaths gives each advertised prefix its next hop. A prefix of a family
// in which this node has no address is left out and reported.
func wantedPaths(b *desired.BGP) (map[netip.Prefix]netip.Addr, error) {
	paths := make(map[netip.Prefix]netip.Addr, len(b.Advertise))
	var errs []error
	for prefix, advertise := range b.Advertise {
		if !advertise {
			continue
		}
		hop := b.NextHop4
		if prefix.Addr().Is6() {
			hop = b.NextHop6
		}
		if !hop.IsValid() {
			errs = append(errs, fmt.Errorf("bgp path %s: this node has no address of its family", prefix))
			continue
		}
		paths[prefix.Masked()] = hop
	}
	return paths, errors.Join(errs...)
}
