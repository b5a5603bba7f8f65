package bgp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	api "github.com/osrg/gobgp/v3/api"

	"calico-xdp/pkg/control/desired"
)

// wantedPeers turns b's named peers into sessions. There is one session per
// address; of several peers with one address the first by name wins.
func wantedPeers(b *desired.BGP) (map[netip.Addr]session, map[netip.Addr]label) {
	sessions := make(map[netip.Addr]session, len(b.Peers))
	names := make(map[netip.Addr]label, len(b.Peers))
	inside := false // there are peers whose routes go on to peers of other AS
	for _, p := range b.Peers {
		inside = inside || p.AS == b.AS
	}
	for _, name := range slices.Sorted(maps.Keys(b.Peers)) {
		p := b.Peers[name]
		address := p.Address.Unmap()
		if _, taken := sessions[address]; taken {
			continue
		}
		w := session{
			port: p.Port, as: p.AS, localAS: p.LocalAS, local: p.Local.Unmap(), password: p.Password,
			passive: p.Passive && b.ListenPort != NoListen, restartTime: p.RestartTime, hops: p.Hops, allowOwnAS: p.AllowLocalAS,
		}
		if w.port == 0 {
			w.port = defaultPort
		}
		if w.localAS == 0 {
			w.localAS = b.AS
		}
		if w.restartTime == 0 {
			w.restartTime = restartTime
		}
		if p.Client {
			w.cluster = b.ClusterID
		}
		w.transit = p.Client || w.as != w.localAS && inside
		sessions[address], names[address] = w, label{name: name, kind: p.Kind, node: p.ClusterNode}
	}
	return sessions, names
}

// wantedSessions are the sessions to have now.
func (s *Speaker) wantedSessions(b *desired.BGP) map[netip.Addr]session {
	sessions, names := wantedPeers(b)
	for address, old := range s.linger(b, sessions, names) {
		sessions[address], names[address] = old, s.names[address]
	}
	s.sessions, s.names = sessions, names
	return sessions
}

// lingerTime is how long sessions of the mesh may outlive it.
const lingerTime = 30 * time.Second

// lingering is when sessions that outlive the mesh began to, and since when all that
// they have told is known from others too.
type lingering struct{ since, covered time.Time }

// linger returns the sessions of the mesh that stay although the mesh is over, where
// sessions with other nodes take its place: those that are up, until every route they
// have told has come from a session that stays, and a little longer, since the other
// ends have to hear from elsewhere too.
func (s *Speaker) linger(b *desired.BGP, sessions map[netip.Addr]session, names map[netip.Addr]label) map[netip.Addr]session {
	replaced := b.Awaited
	for _, l := range names {
		if l.kind == desired.PeerMesh {
			s.lingers = lingering{}
			return nil
		}
		replaced = replaced || l.node
	}
	kept := map[netip.Addr]session{}
	for address, l := range s.names {
		if _, wanted := sessions[address]; !wanted && l.kind == desired.PeerMesh && s.watched.peer(address).up {
			kept[address] = s.sessions[address]
		}
	}
	if !replaced || len(kept) == 0 {
		s.lingers = lingering{}
		return nil
	}
	now := time.Now()
	if s.lingers.since.IsZero() {
		s.lingers.since = now
		s.logger.Info("bgp sessions of the mesh stay until others have told the same", "sessions", len(kept), "at_most", lingerTime)
		time.AfterFunc(lingerTime, s.watched.signal)
	}
	switch {
	case !s.covers(kept):
		s.lingers.covered = time.Time{}
		time.AfterFunc(time.Second, s.watched.signal)
	case s.lingers.covered.IsZero():
		s.lingers.covered = now
		time.AfterFunc(settleTime, s.watched.signal)
	}
	done := !s.lingers.covered.IsZero() && now.Sub(s.lingers.covered) >= settleTime
	if done || now.Sub(s.lingers.since) >= lingerTime {
		return nil
	}
	return kept
}

// covers tells whether every prefix that the peers announce is announced by others.
func (s *Speaker) covers(peers map[netip.Addr]session) bool {
	covered := true
	for _, unspecified := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		r := &api.ListPathRequest{TableType: api.TableType_GLOBAL, Family: familyOf(unspecified)}
		err := s.library.ListPath(context.Background(), r, func(d *api.Destination) {
			others := false
			for _, p := range d.Paths {
				from, err := netip.ParseAddr(p.GetNeighborIp())
				_, going := peers[from]
				others = others || err != nil || !going
			}
			covered = covered && (others || len(d.Paths) == 0)
		})
		covered = covered && err == nil
	}
	return covered
}

// Learning tells whether peers may still tell of routes that the last process of
// this node had learned from them.
func (s *Speaker) Learning() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed || s.settled && s.started.IsZero():
		return false // there is no speaker
	case !s.settled:
		return true
	}
	return time.Since(s.started) < restartTime*time.Second && s.watched.unsettled() > 0
}

// wantedPaths gives each advertised prefix its next hop: each session's own address.
// A prefix of a family in which this node has no address is left out and reported.
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
		paths[prefix.Masked()] = zero(prefix)
	}
	return paths, errors.Join(errs...)
}
