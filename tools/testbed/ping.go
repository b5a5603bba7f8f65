package testbed

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"
)

// echoID tells the pings of this process apart.
var echoID atomic.Uint32

const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
)

// Probe is a series of ICMP echo requests. Fields that are zero have the
// defaults of Ping.
type Probe struct {
	Count    int           // 1
	Interval time.Duration // 5 ms
	// Wait is how long the last answers may take, 2 s: a limit for a busy machine
	// that answered probes never reach.
	Wait time.Duration
	Size int        // bytes of payload, 16
	From netip.Addr // the system's choice
}

// Ping sends count echo requests and returns how many were answered and how
// many left; a request that the kernel refused did not leave.
func Ping(n *Namespace, to netip.Addr, count int) (received, sent int) {
	return Probe{Count: count}.Ping(n, to)
}

// Reaches says whether at least one request is answered.
func (p Probe) Reaches(n *Namespace, to netip.Addr) bool {
	received, _ := p.Ping(n, to)
	return received > 0
}

// Ping sends the requests from inside n.
func (p Probe) Ping(n *Namespace, to netip.Addr) (received, sent int) {
	if p.Count == 0 {
		p.Count = 1
	}
	if p.Interval == 0 {
		p.Interval = 5 * time.Millisecond
	}
	if p.Wait == 0 {
		p.Wait = 2 * time.Second
	}
	if p.Size == 0 {
		p.Size = 16
	}
	e, err := newEcho(n, to, p.From)
	if err != nil {
		return 0, 0
	}
	defer e.conn.Close()
	for seq := range p.Count {
		if seq > 0 {
			time.Sleep(p.Interval)
		}
		if e.send(uint64(seq), p.Size) == nil {
			sent++
		}
	}
	e.conn.SetReadDeadline(time.Now().Add(p.Wait))
	seen := make(map[uint64]bool)
	for len(seen) < sent {
		seq, err := e.receive()
		if err != nil {
			break
		}
		seen[seq] = true
	}
	return len(seen), sent
}

// echo is a raw socket that sends echo requests and gets the answers to them.
// The sequence number, 64 bits, travels in the payload.
type echo struct {
	conn          net.PacketConn
	to            net.Addr
	id            uint16
	request, need byte
	buf           []byte
}

func newEcho(n *Namespace, to, from netip.Addr) (*echo, error) {
	e := &echo{
		to:      &net.IPAddr{IP: to.AsSlice(), Zone: to.Zone()},
		id:      uint16(os.Getpid()) ^ uint16(echoID.Add(1)<<4),
		request: echoRequest4, need: echoReply4,
		buf: make([]byte, 1<<16),
	}
	network := "ip4:1"
	if to.Is6() {
		network, e.request, e.need = "ip6:58", echoRequest6, echoReply6
	}
	local := ""
	if from.IsValid() {
		local = from.String()
	}
	var err error
	e.conn, err = n.ListenPacket(network, local)
	return e, err
}

func (e *echo) send(seq uint64, size int) error {
	b := make([]byte, 8+max(size, 8))
	b[0] = e.request
	binary.BigEndian.PutUint16(b[4:], e.id)
	binary.BigEndian.PutUint16(b[6:], uint16(seq))
	binary.BigEndian.PutUint64(b[8:], seq)
	if e.request == echoRequest4 { // the kernel sums ICMPv6
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	_, err := e.conn.WriteTo(b, e.to)
	return err
}

// receive returns the number of the next answer.
func (e *echo) receive() (uint64, error) {
	for {
		n, _, err := e.conn.ReadFrom(e.buf)
		if err != nil {
			return 0, err
		}
		if n >= 16 && e.buf[0] == e.need && binary.BigEndian.Uint16(e.buf[4:]) == e.id {
			return binary.BigEndian.Uint64(e.buf[8:]), nil
		}
	}
}

func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func (e *echo) close() { e.conn.Close() }

func isClosed(err error) bool { return errors.Is(err, net.ErrClosed) }
