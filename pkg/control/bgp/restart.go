package bgp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// A speaker that comes back after it died tells its peers in every OPEN that it has
// restarted and that forwarding went on; without that they drop the routes they
// have kept, just before they hear them again. GoBGP stops saying so on all
// sessions as soon as every peer it has met since has sent its End-of-RIB marker,
// which with many peers is when the first is complete, long before the last. So
// the first that it meets is a stand-in that never sends one: we ourselves, over
// the loopback, with an OPEN and nothing else. It is switched off right after that.

// standInAS is the stand-in's AS, one that nobody has been given.
const standInAS = 4294967294

// standInTime is how long the stand-in may take. A start without it is one with
// the gap described above.
const standInTime = time.Second

// meetStandIn introduces the stand-in to GoBGP. It returns its address.
func (s *Speaker) meetStandIn(ctx context.Context, g global, listen []string) (netip.Addr, error) {
	address, err := netip.ParseAddr(listen[0])
	if err != nil || address.IsUnspecified() {
		address = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	ctx, cancel := context.WithTimeout(ctx, standInTime)
	defer cancel()
	t := &peerTable{library: s.library, restarting: true}
	if err := s.library.AddPeer(ctx, &api.AddPeerRequest{Peer: t.neighbour(address, session{port: g.port, as: standInAS, passive: true})}); err != nil {
		return address, fmt.Errorf("bgp stand-in: %w", err)
	}
	for {
		if err = openAsStandIn(ctx, netip.AddrPortFrom(address, uint16(g.port)), g); err == nil || ctx.Err() != nil {
			break
		}
		time.Sleep(5 * time.Millisecond) // GoBGP closes what comes before it is ready for this peer
	}
	// Also without success: nobody else may take its place.
	off := s.library.DisablePeer(context.WithoutCancel(ctx), &api.DisablePeerRequest{Address: address.String()})
	if err != nil {
		err = fmt.Errorf("bgp stand-in: %w", err)
	}
	return address, errors.Join(err, off)
}

// openAsStandIn dials the speaker and stays until it has taken our OPEN, which it
// says with its first KEEPALIVE.
func openAsStandIn(ctx context.Context, to netip.AddrPort, g global) error {
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(to.Addr(), 0))}
	conn, err := dialer.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
	}
	id := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if id == g.routerID {
		id = id.Next()
	}
	family := bgp.RF_IPv4_UC
	if to.Addr().Is6() {
		family = bgp.RF_IPv6_UC
	}
	open := bgp.NewBGPOpenMessage(bgp.AS_TRANS, holdTime, id.String(), []bgp.OptionParameterInterface{
		bgp.NewOptionParameterCapability([]bgp.ParameterCapabilityInterface{
			bgp.NewCapMultiProtocol(family),
			bgp.NewCapFourOctetASNumber(standInAS),
			bgp.NewCapGracefulRestart(false, false, restartTime, []*bgp.CapGracefulRestartTuple{bgp.NewCapGracefulRestartTuple(family, true)}),
		}),
	})
	message, err := open.Serialize()
	if err != nil {
		return err
	}
	if _, err := conn.Write(message); err != nil {
		return err
	}
	for {
		header := make([]byte, bgp.BGP_HEADER_LENGTH)
		if _, err := io.ReadFull(conn, header); err != nil {
			return err
		}
		var h bgp.BGPHeader
		if err := h.DecodeFromBytes(header); err != nil {
			return err
		}
		switch h.Type {
		case bgp.BGP_MSG_KEEPALIVE:
			return nil
		case bgp.BGP_MSG_OPEN:
			if _, err := io.CopyN(io.Discard, conn, int64(h.Len)-int64(bgp.BGP_HEADER_LENGTH)); err != nil {
				return err
			}
		default:
			return fmt.Errorf("message of type %d instead of KEEPALIVE", h.Type)
		}
	}
}
