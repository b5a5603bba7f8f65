package bgp

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/server"
	"github.com/prometheus/client_golang/prometheus"
)

// PeerStatus is the state of one session, in the words that BIRD uses and
// `calicoctl node status` prints.
type PeerStatus struct {
	Name    string
	Address netip.Addr
	Kind    string    // "node-to-node mesh", "node specific" or "global"
	State   string    // "up", or "start" while it is not established
	Since   time.Time // when State last changed
	Info    string    // "Established", "Active", "Idle BGP Error: Bad peer AS", …
	AS      uint32    // the peer's
	Flaps   int       // how often the session went down in the last two minutes
	Lost    int       // … since it has been wanted
	// Received counts the prefixes that the peer announces, Advertised those
	// that are announced to it.
	Received, Advertised int
}

// Status is the state of each session, by address. Counting what many peers are told
// takes a while, for which changes do not wait.
func (s *Speaker) Status() ([]PeerStatus, error) {
	s.mu.Lock()
	if s.running == (global{}) {
		s.mu.Unlock()
		return nil, nil
	}
	library, names, standIn := s.library, s.names, s.table.standIn
	s.mu.Unlock()
	var peers []PeerStatus
	err := library.ListPeer(context.Background(), &api.ListPeerRequest{}, func(p *api.Peer) {
		address, err := netip.ParseAddr(p.GetState().GetNeighborAddress())
		if err != nil || address == standIn {
			return
		}
		named, state := names[address], s.watched.peer(address)
		status := PeerStatus{
			Name:    named.name,
			Address: address,
			Kind:    named.kind,
			State:   "start",
			Since:   state.since,
			Info:    state.info(sessionWord(p)),
			AS:      p.GetConf().GetPeerAsn(),
			Flaps:   len(state.downs),
			Lost:    state.lost,
		}
		for _, f := range p.GetAfiSafis() {
			status.Received += int(f.GetState().GetReceived())
		}
		if p.GetState().GetSessionState() == api.PeerState_ESTABLISHED {
			status.State = "up"
			status.Advertised = advertised(library, address)
		}
		peers = append(peers, status)
	})
	if err != nil {
		return nil, fmt.Errorf("bgp peers: %w", err)
	}
	slices.SortFunc(peers, func(a, b PeerStatus) int { return a.Address.Compare(b.Address) })
	return peers, nil
}

// advertised counts the prefixes announced to a peer. (The count in GoBGP's
// own peer state includes the End-of-RIB marker.)
func advertised(library *server.BgpServer, peer netip.Addr) int {
	t, err := library.GetTable(context.Background(), &api.GetTableRequest{
		TableType: api.TableType_ADJ_OUT, Name: peer.String(), Family: familyOf(peer),
	})
	if err != nil {
		return 0 // the peer is gone since it was listed
	}
	return int(t.GetNumDestination())
}

// sessionWord is the state of a session. One that waits for the peer to call says so.
func sessionWord(p *api.Peer) string {
	state := p.GetState().GetSessionState()
	if p.GetTransport().GetPassiveMode() && (state == api.PeerState_IDLE || state == api.PeerState_ACTIVE || state == api.PeerState_CONNECT) {
		return "Passive"
	}
	switch state {
	case api.PeerState_IDLE:
		return "Idle"
	case api.PeerState_CONNECT:
		return "Connect"
	case api.PeerState_ACTIVE:
		return "Active"
	case api.PeerState_OPENSENT:
		return "OpenSent"
	case api.PeerState_OPENCONFIRM:
		return "OpenConfirm"
	case api.PeerState_ESTABLISHED:
		return "Established"
	}
	return "Unknown"
}

// collector reads the speaker when Prometheus asks.
type collector struct {
	speaker                             *Speaker
	up, received, sent, lost, learnedBy *prometheus.Desc
}

// Collector is the speaker's metrics.
func (s *Speaker) Collector() prometheus.Collector {
	peer := []string{"peer", "type"}
	return &collector{
		speaker:  s,
		up:       prometheus.NewDesc("calico_xdp_bgp_peer_up", "1 if the BGP session is established.", peer, nil),
		received: prometheus.NewDesc("calico_xdp_bgp_peer_received_prefixes", "Prefixes that the BGP peer announces to this node.", peer, nil),
		sent:     prometheus.NewDesc("calico_xdp_bgp_peer_advertised_prefixes", "Prefixes that this node announces to the BGP peer.", peer, nil),
		lost:     prometheus.NewDesc("calico_xdp_bgp_peer_losses_total", "How often the BGP session has gone down.", peer, nil),
		learnedBy: prometheus.NewDesc("calico_xdp_bgp_learned_routes", "Best routes learned from BGP peers.",
			[]string{"family"}, nil),
	}
}

func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.up, c.received, c.sent, c.lost, c.learnedBy} {
		out <- d
	}
}

func (c *collector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value int, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(value), labels...)
	}
	peers, err := c.speaker.Status()
	if err != nil {
		out <- prometheus.NewInvalidMetric(c.up, err)
		return
	}
	for _, p := range peers {
		up := 0
		if p.State == "up" {
			up = 1
		}
		gauge(c.up, up, p.Address.String(), p.Kind)
		gauge(c.received, p.Received, p.Address.String(), p.Kind)
		gauge(c.sent, p.Advertised, p.Address.String(), p.Kind)
		out <- prometheus.MustNewConstMetric(c.lost, prometheus.CounterValue, float64(p.Lost), p.Address.String(), p.Kind)
	}
	v4, v6 := 0, 0
	for _, r := range c.speaker.Learned() {
		if r.Prefix.Addr().Is4() {
			v4++
		} else {
			v6++
		}
	}
	gauge(c.learnedBy, v4, "v4")
	gauge(c.learnedBy, v6, "v6")
}
