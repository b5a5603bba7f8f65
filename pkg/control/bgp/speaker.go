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
	"net/netip"
	"sync"
	"time"

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
	// FirstStart: no speaker has run on this host since it started, so peers hold no
	// routes of ours that we would have to save.
	FirstStart bool
}

// Speaker is the sink. Its methods may be called from any goroutine.
type Speaker struct {
	listenOn []netip.Addr // none: what the state says
	logger   *slog.Logger
	// transitDeferral is transitDeferralTime, less in tests.
	transitDeferral int
	diagnoses       time.Duration // how often sessions that are down are looked into
	watched         *watched

	mu      sync.Mutex
	library *server.BgpServer // created when first needed; outlives restarts
	unwatch context.CancelFunc
	running global // zero: stopped
	paths   *reconcile.Tracked[netip.Prefix, netip.Addr]
	peers   *reconcile.Tracked[netip.Addr, session]
	table   *peerTable // what peers tracks
	policy  *policy
	// sessions are those that were wanted last, names what people call them.
	sessions map[netip.Addr]session
	names    map[netip.Addr]label
	lingers  lingering
	// settled is set once the wanted state is known to be whole. Nothing starts
	// before: a peer that kept our routes while we restarted drops those that
	// it has not heard again by the time of our first End-of-RIB marker.
	settled   bool
	applied   desired.Applied // what GoBGP has whole
	unchanged bool            // nothing of ours has changed since, in this round
	restarted bool            // peers that are added from now on are new
	started   time.Time       // when the first sessions were
	closed    bool
}

// global is what GoBGP cannot change while it runs.
type global struct {
	as       uint32
	routerID netip.Addr
	port     int
	listen   string // addresses, by spaces
}

// label is how people call a peer. It is no part of the session, so a peer may
// be renamed while it is up.
type label struct {
	name, kind string
	node       bool // of the cluster
}

// New returns a speaker that does nothing until it is told what to be.
func New(o Options, logger *slog.Logger) *Speaker {
	return &Speaker{logger: logger, watched: newWatched(logger), listenOn: o.ListenAddresses,
		transitDeferral: transitDeferralTime, restarted: o.FirstStart, diagnoses: diagnosePeriod}
}

// Ensure starts the speaker and adds the prefixes and sessions that are
// missing. It does nothing until Prune has been called.
func (s *Speaker) Ensure(ctx context.Context, want *desired.State) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || !s.settled {
		return nil
	}
	s.unchanged = s.applied.Precedes(want) && !want.Changes.BGP
	s.applied = desired.Applied{}
	if s.unchanged {
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
	// Rules first: nothing is announced that they forbid.
	err = errors.Join(err, s.policy.set(ctx, b))
	sessions := s.wantedSessions(b)
	s.watched.addPeers(sessions)
	if s.started.IsZero() {
		s.started = time.Now()
		time.AfterFunc(restartTime*time.Second, s.watched.signal) // Learning ends
	}
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
	case !s.settled && b.Enabled && b.Pending:
		return nil
	case !s.settled:
		s.settled = true
		return s.ensure(ctx, b)
	case s.unchanged:
		s.applied = desired.AppliedState(want)
		return nil
	case !b.Enabled:
		err := s.stop(ctx)
		if err == nil {
			s.applied = desired.AppliedState(want)
		}
		return err
	case s.running == (global{}):
		return nil // Ensure did not succeed and has said why
	}
	paths, err := wantedPaths(b) // Ensure has reported what is wrong
	sessions := s.wantedSessions(b)
	s.watched.keepPeers(sessions)
	if pruned := errors.Join(s.paths.Prune(paths), s.peers.Prune(sessions)); pruned != nil {
		return pruned
	}
	if err == nil && s.lingers == (lingering{}) && s.paths.Certain() && s.peers.Certain() {
		s.applied = desired.AppliedState(want)
	}
	return nil
}

// Resync makes the next round compare with what GoBGP really has.
func (s *Speaker) Resync() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applied = desired.Applied{}
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
	listen := s.listenAddresses(b)
	g := global{as: b.AS, routerID: b.RouterID, port: b.ListenPort, listen: fmt.Sprint(listen)}
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
		s.library = server.NewBgpServer(server.LoggerOption(&logger{s.logger, s.watched.fails}))
		go s.library.Serve() // never returns: the library has no way to end it
		watching, unwatch := context.WithCancel(context.Background())
		s.unwatch = unwatch
		go s.diagnose(watching)
		if err := s.watched.watch(watching, s.library); err != nil {
			return fmt.Errorf("bgp watch: %w", err)
		}
	}
	err := s.library.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{
		Asn:             g.as,
		RouterId:        g.routerID.String(),
		ListenPort:      int32(g.port),
		ListenAddresses: listen,
		// Routes that are as good are all learned.
		UseMultiplePaths: true,
	}})
	rules := newPolicy(s.library)
	if err == nil {
		err = rules.set(ctx, b)
	}
	if err != nil {
		// Also closes the listeners that a half-done start has opened.
		return errors.Join(fmt.Errorf("bgp start: %w", err), s.library.StopBgp(ctx, &api.StopBgpRequest{}))
	}
	s.running, s.policy = g, rules
	s.paths = reconcile.TrackWith(pathTable{s.library}, reconcile.Options[netip.Addr]{
		Name: "bgp paths", Logger: s.logger,
		Equal: func(read, put netip.Addr) bool { return read == put },
	})
	s.table = &peerTable{library: s.library, restarting: !s.restarted, transitDeferral: s.transitDeferral}
	s.peers = reconcile.TrackWith(s.table, reconcile.Options[session]{
		Name: "bgp peers", Logger: s.logger, Equal: session.sameAs,
	})
	if !s.restarted && g.port > 0 && len(b.Peers) > 1 {
		if s.table.standIn, err = s.meetStandIn(ctx, g, listen); err != nil {
			s.logger.Warn("bgp: peers may drop this node's routes for a moment now", "error", err)
		}
	}
	s.logger.Info("bgp speaker started", "as", g.as, "router_id", g.routerID, "port", g.port)
	return nil
}

// listenAddresses is all addresses if none were asked for, without IPv6 where
// the kernel has none: GoBGP would refuse to start at all.
func (s *Speaker) listenAddresses(b *desired.BGP) []string {
	asked := s.listenOn
	if len(asked) == 0 {
		asked = b.ListenOn
	}
	if len(asked) == 0 {
		asked = []netip.Addr{netip.IPv4Unspecified()}
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
			asked = append(asked, netip.IPv6Unspecified())
		}
	}
	listen := make([]string, len(asked))
	for i, a := range asked {
		listen[i] = a.String()
	}
	return listen
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
	s.running, s.paths, s.peers, s.table, s.policy = global{}, nil, nil, nil, nil
	s.sessions, s.names, s.lingers = nil, nil, lingering{}
	s.watched.keepPeers(nil)
	s.logger.Info("bgp speaker stopped")
	return nil
}
