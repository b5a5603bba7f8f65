package bgp

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"calico-xdp/pkg/control/desired"
)

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

// linger returns the sessions of the mesh that stay although the mesh is over:
// those that are up, while the sessions with other nodes that take its place are not.
func (s *Speaker) linger(b *desired.BGP, sessions map[netip.Addr]session, names map[netip.Addr]label) map[netip.Addr]session {
	waiting, now := b.Awaited, time.Now()
	for address, l := range names {
		if l.kind == desired.PeerMesh {
			s.lingers = time.Time{}
			return nil
		}
		state := s.watched.peer(address)
		waiting = waiting || l.node && !state.settled(now)
		if l.node && state.up && !state.settled(now) {
			time.AfterFunc(settleTime, s.watched.signal)
		}
	}
	kept := map[netip.Addr]session{}
	for address, l := range s.names {
		if _, wanted := sessions[address]; !wanted && l.kind == desired.PeerMesh && s.watched.peer(address).up {
			kept[address] = s.sessions[address]
		}
	}
	if !waiting || len(kept) == 0 {
		s.lingers = time.Time{}
		return nil
	}
	if s.lingers.IsZero() {
		s.lingers = now
		s.logger.Info("bgp sessions of the mesh stay until those that replace them are up", "sessions", len(kept), "at most", lingerTime)
		time.AfterFunc(lingerTime, s.watched.signal)
	}
	if now.Sub(s.lingers) >= lingerTime {
		return nil
	}
	return kept
}

// Learning tells whether peers may still tell of routes that the last process of
// this node had learned from them.
func (s *Speaker) Learning() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed || s.settled && !s.restarted:
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
