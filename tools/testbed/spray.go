package testbed

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Spray is UDP packets that each open a flow of their own: their source ports differ.
// It counts what arrives, by destination port.
type Spray struct {
	ports          []uint16
	sent, received []atomic.Uint64
	raw, sink      int
	stopping       chan struct{}
	workers        sync.WaitGroup
}

// sprayPayload tells a spray's packets from others.
const sprayPayload = "spray!!!"

// StartSpray sends packets to the ports of target in turn, about rate per second in all,
// until Stop.
func StartSpray(t T, from, to *Namespace, target netip.Addr, rate int, ports ...uint16) *Spray {
	t.Helper()
	s := &Spray{
		ports: ports, sent: make([]atomic.Uint64, len(ports)), received: make([]atomic.Uint64, len(ports)),
		raw: -1, sink: -1, stopping: make(chan struct{}),
	}
	err := from.Do(func() (err error) {
		s.raw, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
		return err
	})
	if err == nil {
		err = to.Do(func() error { return s.openSink() })
	}
	if err != nil {
		t.Fatalf("spray from %s to %s: %v", from.Name, target, err)
	}
	s.workers.Go(s.count)
	s.workers.Go(func() { s.send(target, rate) })
	t.Cleanup(func() { s.Stop() })
	return s
}

// openSink opens a socket that sees all UDP packets, so that none has to be read from
// where nobody listens.
func (s *Spray) openSink() (err error) {
	if s.sink, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(s.sink, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
		return err
	}
	limit := unix.NsecToTimeval(int64(50 * time.Millisecond))
	return unix.SetsockoptTimeval(s.sink, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)
}

func (s *Spray) send(target netip.Addr, rate int) {
	packet := make([]byte, 8+len(sprayPayload))
	copy(packet[8:], sprayPayload)
	binary.BigEndian.PutUint16(packet[4:], uint16(len(packet)))
	to := &unix.SockaddrInet4{Addr: target.As4()}
	begin := time.Now()
	for n := 0; ; n++ {
		select {
		case <-s.stopping:
			return
		default:
		}
		switch ahead := time.Duration(n)*time.Second/time.Duration(rate) - time.Since(begin); {
		case ahead > time.Millisecond:
			time.Sleep(ahead)
		case ahead < -10*time.Millisecond:
			// What was missed is not made up for: a burst is more than the kernel's
			// queue (net.core.netdev_max_backlog) holds.
			begin = begin.Add(-ahead)
		}
		i := n % len(s.ports)
		binary.BigEndian.PutUint16(packet, uint16(1024+n/len(s.ports)%60000))
		binary.BigEndian.PutUint16(packet[2:], s.ports[i])
		if unix.Sendto(s.raw, packet, 0, to) == nil {
			s.sent[i].Add(1)
		}
	}
}

func (s *Spray) count() {
	buf := make([]byte, 128)
	for idle := 0; idle < 10; {
		n, _, err := unix.Recvfrom(s.sink, buf, 0)
		if err != nil {
			select {
			case <-s.stopping:
				idle++ // what is still on its way
			default:
			}
			continue
		}
		// Raw sockets get the IPv4 header too.
		header := int(buf[0]&0xf) * 4
		if n != header+8+len(sprayPayload) || string(buf[header+8:n]) != sprayPayload {
			continue
		}
		for i, port := range s.ports {
			if binary.BigEndian.Uint16(buf[header+2:]) == port {
				s.received[i].Add(1)
			}
		}
	}
}

// Stop ends the sending, waits for what is on its way, and says how many packets to
// each port were sent and have arrived.
func (s *Spray) Stop() (sent, received map[uint16]uint64) {
	select {
	case <-s.stopping:
	default:
		close(s.stopping)
		s.workers.Wait()
		unix.Close(s.raw)
		unix.Close(s.sink)
	}
	sent, received = make(map[uint16]uint64), make(map[uint16]uint64)
	for i, port := range s.ports {
		sent[port], received[port] = s.sent[i].Load(), s.received[i].Load()
	}
	return sent, received
}

func (s *Spray) String() string { return fmt.Sprintf("spray to ports %v", s.ports) }
