package testbed

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Flood is a stream of numbered packets, each of which the other side answers.
type Flood struct {
	options  FloodOptions
	exchange exchange
	stop     chan struct{}
	finish   sync.Once
	senders  sync.WaitGroup
	workers  sync.WaitGroup

	arrived atomic.Uint64
	refused atomic.Uint64

	mu       sync.Mutex
	sent     []bool // by number
	answered []uint8
	late     uint64
	newest   uint64
	report   FloodReport
}

// FloodOptions says what a Flood sends; zero fields have defaults.
type FloodOptions struct {
	Protocol string        // "icmp" (the default) or "udp"
	Interval time.Duration // between packets, 1 ms
	Port     uint16        // UDP, 5201
	Size     int           // payload bytes, 64
}

// FloodReport is what became of a Flood's packets.
type FloodReport struct {
	Sent       uint64 // accepted by the sender's kernel
	Refused    uint64 // not accepted by it
	Arrived    uint64 // UDP: at the receiver, duplicates too
	Answered   uint64 // whose answer came back
	Lost       uint64 // Sent - Answered
	Duplicated uint64 // answers that came more than once
	Reordered  uint64 // answers that came after a later one
	LongestGap int    // most packets lost in a row
}

func (r FloodReport) String() string {
	return fmt.Sprintf("sent %d refused %d answered %d lost %d (longest gap %d) duplicated %d reordered %d",
		r.Sent, r.Refused, r.Answered, r.Lost, r.LongestGap, r.Duplicated, r.Reordered)
}

// exchange is a socket that sends numbered packets and gets their numbers back.
type exchange interface {
	send(number uint64, size int) error
	receive() (uint64, error)
	close()
}

// StartFlood sends from one namespace to an address of another until Stop. The
// kernel answers ICMP, code of the testbed in to answers UDP.
func StartFlood(t T, from, to *Namespace, target netip.Addr, o FloodOptions) *Flood {
	t.Helper()
	if o.Protocol == "" {
		o.Protocol = "icmp"
	}
	if o.Interval == 0 {
		o.Interval = time.Millisecond
	}
	if o.Port == 0 {
		o.Port = 5201
	}
	if o.Size == 0 {
		o.Size = 64
	}
	f := &Flood{options: o, stop: make(chan struct{})}
	switch o.Protocol {
	case "icmp":
		e, err := newEcho(from, target, netip.Addr{})
		if err != nil {
			t.Fatalf("flood: %v", err)
		}
		enlarge(e.conn)
		f.exchange = e
	case "udp":
		server, err := to.ListenPacket("udp", netip.AddrPortFrom(target, o.Port).String())
		if err != nil {
			t.Fatalf("flood: %v", err)
		}
		enlarge(server)
		f.workers.Go(func() { f.answer(server) })
		client, err := from.Dial("udp", netip.AddrPortFrom(target, o.Port).String())
		if err != nil {
			server.Close()
			t.Fatalf("flood: %v", err)
		}
		enlarge(client)
		f.exchange = &datagrams{conn: client, server: server}
	default:
		t.Fatalf("flood: protocol %q", o.Protocol)
	}
	f.senders.Go(f.sendAll)
	f.workers.Go(f.receiveAll)
	t.Cleanup(func() { f.Stop() })
	return f
}

func (f *Flood) sendAll() {
	ticker := time.NewTicker(f.options.Interval)
	defer ticker.Stop()
	for number := uint64(0); ; number++ {
		f.mu.Lock()
		f.sent = append(f.sent, true)
		f.answered = append(f.answered, 0)
		f.mu.Unlock()
		if err := f.exchange.send(number, f.options.Size); err != nil {
			f.refused.Add(1)
			f.mu.Lock()
			f.sent[number] = false
			f.mu.Unlock()
		}
		select {
		case <-f.stop:
			return
		case <-ticker.C:
		}
	}
}

func (f *Flood) receiveAll() {
	for {
		number, err := f.exchange.receive()
		switch {
		case err == nil:
		case isClosed(err):
			return
		default: // an ICMP error that a connected socket reports
			continue
		}
		f.mu.Lock()
		if number < uint64(len(f.answered)) {
			if f.answered[number] < 255 {
				f.answered[number]++
			}
			if number < f.newest {
				f.late++
			}
			f.newest = max(f.newest, number)
		}
		f.mu.Unlock()
	}
}

// answer sends every datagram back.
func (f *Flood) answer(server net.PacketConn) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := server.ReadFrom(buf)
		if err != nil {
			if isClosed(err) {
				return
			}
			continue
		}
		f.arrived.Add(1)
		server.WriteTo(buf[:n], from)
	}
}

// Report says how it stands.
func (f *Flood) Report() FloodReport {
	r := FloodReport{Refused: f.refused.Load(), Arrived: f.arrived.Load()}
	f.mu.Lock()
	defer f.mu.Unlock()
	gap := 0
	for i, sent := range f.sent {
		answers := f.answered[i]
		if !sent {
			continue
		}
		r.Sent++
		if answers == 0 {
			gap++
			r.LongestGap = max(r.LongestGap, gap)
			continue
		}
		gap = 0
		r.Answered++
		r.Duplicated += uint64(answers - 1)
	}
	r.Lost = r.Sent - r.Answered
	r.Reordered = f.late
	return r
}

// Progresses waits until n more packets have been answered.
func (f *Flood) Progresses(n uint64) bool {
	start := f.Report().Answered
	return Eventually(func() bool { return f.Report().Answered >= start+n })
}

// Stop ends the stream, waits for the answers that are on their way and returns
// the whole result.
func (f *Flood) Stop() FloodReport {
	f.finish.Do(func() {
		close(f.stop)
		f.senders.Wait()
		// What does not come within a second after the last answer is lost.
		last, quiet := f.Report().Answered, time.Now()
		for time.Since(quiet) < time.Second {
			r := f.Report()
			if r.Lost == 0 {
				break
			}
			if r.Answered > last {
				last, quiet = r.Answered, time.Now()
			}
			time.Sleep(10 * time.Millisecond)
		}
		f.exchange.close()
		f.workers.Wait()
		f.report = f.Report()
	})
	return f.report
}

// datagrams exchanges numbers over UDP.
type datagrams struct {
	conn   net.Conn
	server net.PacketConn
	buf    [1 << 16]byte
}

func (d *datagrams) send(number uint64, size int) error {
	b := make([]byte, max(size, 8))
	binary.BigEndian.PutUint64(b, number)
	_, err := d.conn.Write(b)
	return err
}

func (d *datagrams) receive() (uint64, error) {
	n, err := d.conn.Read(d.buf[:])
	if err == nil && n < 8 {
		err = fmt.Errorf("%d bytes", n)
	}
	return binary.BigEndian.Uint64(d.buf[:]), err
}

func (d *datagrams) close() {
	d.conn.Close()
	d.server.Close()
}

// enlarge gives a socket a buffer that survives a reader which gets no CPU for a
// while.
func enlarge(conn any) {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20) })
}
