package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	api "github.com/osrg/gobgp/v3/api"
)

// A session that goes down more than flapLimit times within flapWindow flaps. That
// is logged once; its ups and downs are not until it has stayed up for flapWindow.
const (
	flapLimit  = 3
	flapWindow = 2 * time.Minute
)

// settleTime is how long after a session came up everything that its peer has to
// tell is taken to be told, if the peer does not say so itself.
const settleTime = 5 * time.Second

// peerState is what is known of a session.
type peerState struct {
	up         bool
	since      time.Time // it is up or down
	told       bool      // the peer has sent all that it has
	connection connection
	as         uint32
	reason     string      // why it is down, or does not come up; empty: not known
	heard      time.Time   // when the peer last let us know, or we it, what is wrong
	said       []string    // the reasons that have been logged since it was up
	downs      []time.Time // within flapWindow
	lost       int         // how often it went down
	flapping   bool
}

// flaps counts the times that the session went down lately.
func (s *peerState) flaps(now time.Time) int {
	for len(s.downs) > 0 && now.Sub(s.downs[0]) > flapWindow {
		s.downs = s.downs[1:]
	}
	return len(s.downs)
}

// settled tells whether the peer has told all that it has.
func (s *peerState) settled(now time.Time) bool {
	return s.up && (s.told || now.Sub(s.since) >= settleTime)
}

func (w *watched) peerChanged(p *api.Peer) {
	address, err := netip.ParseAddr(p.GetState().GetNeighborAddress())
	if err != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.peers[address]
	up := p.GetState().GetSessionState() == api.PeerState_ESTABLISHED
	if s == nil || s.up == up {
		return
	}
	now := time.Now()
	s.up, s.since, s.told = up, now, false
	if up {
		local, _ := netip.ParseAddr(p.GetTransport().GetLocalAddress())
		s.connection = connection{
			local:  netip.AddrPortFrom(local, uint16(p.GetTransport().GetLocalPort())),
			remote: netip.AddrPortFrom(address, uint16(p.GetTransport().GetRemotePort())),
		}
		go func(c connection) {
			if err := prefer(c); err != nil {
				w.logger.Warn("bgp session goes on without preference in queues", "peer", address, "error", err)
			}
		}(s.connection)
		s.as, s.reason, s.said = p.GetState().GetPeerAsn(), "", nil
		if !s.flapping || s.flaps(now) == 0 {
			s.flapping = false
			w.logger.Info("bgp session up", "peer", address, "as", s.as)
		}
		w.signal()
		return
	}
	s.connection = connection{}
	s.lost++
	s.downs = append(s.downs, now)
	n := s.flaps(now)
	switch {
	case s.flapping:
	case n > flapLimit:
		s.flapping = true
		w.logger.Warn("bgp session flaps; its ups and downs are not logged until it stays up",
			"peer", address, "downs", n, "within", flapWindow, "reason", s.reason)
	default:
		w.logger.Warn("bgp session down", "peer", address, "reason", s.reason)
	}
	s.said = append(s.said, s.reason)
	w.signal()
}

// complete notes that a peer has told all that it has.
func (w *watched) complete(address netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.peers[address]; s != nil && !s.told {
		s.told = true
		w.signal()
	}
}

// fails notes why a session ends or does not come up. What stops it from coming up
// is logged once.
func (w *watched) fails(address netip.Addr, reason string, guess bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.peers[address]
	if s == nil {
		return
	}
	s.reason = reason
	if !guess {
		s.heard = time.Now()
	}
	if !s.up && !slices.Contains(s.said, reason) && !s.flapping {
		s.said = append(s.said, reason)
		w.logger.Warn("bgp session does not come up", "peer", address, "reason", reason)
	}
}

// addPeers takes up sessions that are new.
func (w *watched) addPeers(add map[netip.Addr]session) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for address := range add {
		if _, had := w.peers[address]; !had {
			w.peers[address] = &peerState{since: time.Now()}
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

// peer returns a copy of what is known of a session.
func (w *watched) peer(address netip.Addr) peerState {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.peers[address]; s != nil {
		s.flaps(time.Now())
		return *s
	}
	return peerState{}
}

// unsettled counts the sessions whose peers have not told all that they have.
func (w *watched) unsettled() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, now := 0, time.Now()
	for _, s := range w.peers {
		if !s.settled(now) {
			n++
		}
	}
	return n
}

// info is the state of a session in BIRD's words: GoBGP's state, then what is wrong.
func (s *peerState) info(word string) string {
	switch {
	case s.flapping:
		return fmt.Sprintf("%s Flapping: %d times down within %s", word, len(s.downs), flapWindow)
	case s.reason != "" && !s.up:
		return word + " " + s.reason
	}
	return word
}
