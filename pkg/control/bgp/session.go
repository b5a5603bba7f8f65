package bgp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/server"
	"golang.org/x/sys/unix"
)

const (
	// restartTime is how long, in seconds, a peer keeps our routes after the
	// connection broke; Calico's and BIRD's default.
	restartTime = 120
	// deferralTime is how long, in seconds, a restarted speaker holds its
	// announcements to a peer back. RFC 4724 means it for speakers that pass on what
	// they learned, which need to hear it first; a node tells of its own prefixes, so
	// little is gained by waiting. Where it does pass on, as a route reflector or from
	// the cluster to a router, it waits until its other peers are likely to be back:
	// what it has not announced by then the peer drops.
	deferralTime        = 1
	transitDeferralTime = 10
	// holdTime is BIRD's, and so Calico's; the lower of both ends' counts.
	holdTime = 240
	// connectRetry is the pause between connection attempts, in seconds, as Calico
	// has it; GoBGP adds up to as much again by chance. An attempt may take a second
	// less.
	connectRetry = 3
	// multihopTTL lets an external peer be behind a router, as Calico does.
	multihopTTL = 64
)

// session is one BGP session but for the peer's address, which is its key.
type session struct {
	port        int
	as, localAS uint32
	local       netip.Addr // invalid: whatever the host's routes say
	passive     bool       // the peer dials
	password    string
	cluster     string // the peer is a client of this route reflector cluster
	restartTime int    // seconds
	hops        int    // 0: TTL security is off
	allowOwnAS  int
	// transit: the peer hears from us what others of our peers told. It matters after
	// a restart only, so it is no reason to change a session.
	transit bool
}

// sameAs compares a session that was read back with a wanted one.
func (s session) sameAs(want session) bool {
	if !want.local.IsValid() {
		s.local = want.local
	}
	s.transit = want.transit
	return s == want
}

// peerTable is GoBGP's neighbours as a reconcile.Table.
type peerTable struct {
	library *server.BgpServer
	// restarting: peers that come now may still hold routes of our former
	// self. It makes GoBGP say in its OPEN that forwarding went on meanwhile,
	// without which they drop those just before they hear them again.
	restarting bool
	// transitDeferral is transitDeferralTime.
	transitDeferral int
	// standIn is no peer but see restart.go.
	standIn netip.Addr
}

func (t *peerTable) Load() (map[netip.Addr]session, error) {
	found := map[netip.Addr]session{}
	var bad error
	err := t.library.ListPeer(context.Background(), &api.ListPeerRequest{}, func(p *api.Peer) {
		address, err := netip.ParseAddr(p.GetConf().GetNeighborAddress())
		if err != nil {
			bad = err
			return
		}
		if address == t.standIn {
			return
		}
		w := session{
			port:        int(p.GetTransport().GetRemotePort()),
			as:          p.GetConf().GetPeerAsn(),
			localAS:     p.GetConf().GetLocalAsn(),
			password:    p.GetConf().GetAuthPassword(),
			passive:     p.GetTransport().GetPassiveMode(),
			restartTime: int(p.GetGracefulRestart().GetRestartTime()),
			allowOwnAS:  int(p.GetConf().GetAllowOwnAsn()),
		}
		if p.GetRouteReflector().GetRouteReflectorClient() {
			w.cluster = p.GetRouteReflector().GetRouteReflectorClusterId()
		}
		w.hops = hopsOf(p)
		w.local, _ = netip.ParseAddr(p.GetTransport().GetLocalAddress())
		found[address] = w
	})
	if err == nil {
		err = bad
	}
	if err != nil {
		return nil, fmt.Errorf("bgp peers: %w", err)
	}
	return found, nil
}

// hopsOf is session.hops of a neighbour.
func hopsOf(p *api.Peer) int {
	if !p.GetTtlSecurity().GetEnabled() {
		return 0
	}
	return 256 - int(p.GetTtlSecurity().GetTtlMin())
}

func (t *peerTable) Put(address netip.Addr, w session) error {
	if w.password != "" {
		if err := signaturesSupported(); err != nil {
			// GoBGP would go on and accept connections without a signature.
			return errors.Join(fmt.Errorf("bgp peer %s: password: %w", address, err), t.Delete(address))
		}
	}
	var old *api.Peer
	err := t.library.ListPeer(context.Background(), &api.ListPeerRequest{Address: address.String()}, func(p *api.Peer) { old = p })
	if err == nil && old != nil && (old.GetRouteReflector().GetRouteReflectorClient() != (w.cluster != "") || hopsOf(old) != w.hops) {
		// GoBGP does not take up these changes, the second at least while the session is
		// down: it goes on dialing as before.
		err = t.Delete(address)
		old = nil
	}
	if err == nil && old != nil {
		_, err = t.library.UpdatePeer(context.Background(), &api.UpdatePeerRequest{Peer: t.neighbour(address, w)})
	} else if err == nil {
		err = t.library.AddPeer(context.Background(), &api.AddPeerRequest{Peer: t.neighbour(address, w)})
	}
	if err != nil {
		return fmt.Errorf("bgp peer %s: %w", address, err)
	}
	return nil
}

func (t *peerTable) Delete(address netip.Addr) error {
	var old *api.Peer
	err := t.library.ListPeer(context.Background(), &api.ListPeerRequest{Address: address.String()}, func(p *api.Peer) { old = p })
	if err == nil && old == nil {
		return nil
	}
	if err == nil && old.GetConf().GetAuthPassword() != "" {
		// Deleting leaves the password on the listening socket, where it would
		// refuse the peer if it came back without one; changing takes it off.
		w := session{
			port: int(old.GetTransport().GetRemotePort()), as: old.GetConf().GetPeerAsn(), localAS: old.GetConf().GetLocalAsn(),
		}
		_, err = t.library.UpdatePeer(context.Background(), &api.UpdatePeerRequest{Peer: t.neighbour(address, w)})
	}
	if err == nil {
		err = t.library.DeletePeer(context.Background(), &api.DeletePeerRequest{Address: address.String()})
	}
	if err != nil {
		return fmt.Errorf("bgp peer %s: %w", address, err)
	}
	return nil
}

// signaturesSupported asks the kernel whether it knows TCP MD5 signatures,
// which is a build option.
func signaturesSupported() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	s := &unix.TCPMD5Sig{Keylen: 1}
	s.Addr.Family = unix.AF_INET
	s.Key[0] = 'x'
	if err := unix.SetsockoptTCPMD5Sig(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, s); err != nil {
		return fmt.Errorf("this kernel has no TCP MD5 signatures: %w", err)
	}
	return nil
}

// neighbour is the GoBGP configuration of a session.
func (t *peerTable) neighbour(address netip.Addr, w session) *api.Peer {
	deferral := deferralTime
	if w.transit {
		deferral = t.transitDeferral
	}
	if w.restartTime == 0 {
		w.restartTime = restartTime
	}
	p := &api.Peer{
		Conf: &api.PeerConf{
			NeighborAddress: address.String(),
			PeerAsn:         w.as,
			LocalAsn:        w.localAS,
			AuthPassword:    w.password,
			AllowOwnAsn:     uint32(w.allowOwnAS),
		},
		Transport: &api.Transport{RemotePort: uint32(w.port), PassiveMode: w.passive},
		Timers:    &api.Timers{Config: &api.TimersConfig{ConnectRetry: connectRetry, HoldTime: holdTime, KeepaliveInterval: holdTime / 3}},
		// Notifications stay out of it (RFC 8538), as with BIRD: a peer that is
		// told to end the session drops the routes, one that loses it does not.
		GracefulRestart: &api.GracefulRestart{
			Enabled:         true,
			RestartTime:     uint32(w.restartTime),
			DeferralTime:    uint32(deferral),
			LocalRestarting: t.restarting,
		},
		AfiSafis: []*api.AfiSafi{{
			Config:            &api.AfiSafiConfig{Family: familyOf(address), Enabled: true},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: true}},
		}},
	}
	if w.hops > 0 {
		p.TtlSecurity = &api.TtlSecurity{Enabled: true, TtlMin: uint32(256 - w.hops)}
	} else {
		p.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: multihopTTL}
	}
	if w.cluster != "" {
		p.RouteReflector = &api.RouteReflector{RouteReflectorClient: true, RouteReflectorClusterId: w.cluster}
	}
	if w.local.IsValid() {
		p.Transport.LocalAddress = w.local.String()
	}
	return p
}
