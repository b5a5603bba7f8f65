package control

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"calico-xdp/tools/testbed"

	"golang.org/x/sys/unix"
)

const (
	probePort  = 7000
	probePace  = 100 * time.Microsecond // between datagrams
	probeLimit = 1 << 20                // datagrams whose times are known
	// silence is how long nothing arrives before the way counts as cut.
	silence = 25 * time.Millisecond
)

// probe is a stream of numbered datagrams, of one flow, that shows from when on
// they pass and from when on they do not.
type probe struct {
	t      testbed.T
	begin  time.Time
	sentAt []atomic.Int64 // nanoseconds after begin, by number modulo probeLimit
	gotAt  []atomic.Int64 // of those that arrived; 0 otherwise
	sent   atomic.Int64   // how many
	last   atomic.Int64   // number of the last one that arrived
	stop   chan struct{}
	done   sync.WaitGroup
}

func startProbe(t testbed.T, from, to *testbed.Namespace, target netip.Addr) *probe {
	t.Helper()
	p := &probe{t: t, begin: time.Now(), sentAt: make([]atomic.Int64, probeLimit), gotAt: make([]atomic.Int64, probeLimit), stop: make(chan struct{})}
	server, err := to.ListenPacket("udp", netip.AddrPortFrom(target, probePort).String())
	if err != nil {
		t.Fatalf("probe: %v", err)
	}
	client, err := from.Dial("udp", netip.AddrPortFrom(target, probePort).String())
	if err != nil {
		t.Fatalf("probe: %v", err)
	}
	p.done.Go(func() { p.receive(server) })
	p.done.Go(func() { p.send(client) })
	t.Cleanup(func() {
		close(p.stop)
		server.Close()
		client.Close()
		p.done.Wait()
	})
	return p
}

func (p *probe) now() int64 { return int64(time.Since(p.begin)) }

func (p *probe) send(client net.Conn) {
	var datagram [8]byte
	for number := int64(1); ; number++ {
		select {
		case <-p.stop:
			return
		default:
		}
		binary.BigEndian.PutUint64(datagram[:], uint64(number))
		p.gotAt[number%probeLimit].Store(0)
		p.sentAt[number%probeLimit].Store(p.now())
		client.Write(datagram[:]) // what is refused counts as lost
		p.sent.Store(number)
		// Go's own sleep may be late by a millisecond.
		pause := unix.NsecToTimespec(int64(probePace))
		unix.Nanosleep(&pause, nil)
	}
}

func (p *probe) receive(server net.PacketConn) {
	var datagram [8]byte
	for {
		_, from, err := server.ReadFrom(datagram[:])
		if err != nil {
			return
		}
		number := int64(binary.BigEndian.Uint64(datagram[:]))
		p.gotAt[number%probeLimit].Store(p.now())
		p.last.Store(number)
		if number%64 == 1 { // so that the flow is an answered one
			server.WriteTo(datagram[:], from)
		}
	}
}

// passes says whether datagrams arrive, once that has been so for a while.
func (p *probe) waitFor(passes bool) {
	p.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if fresh := p.now()-p.sentAt[p.last.Load()%probeLimit].Load() < int64(silence); fresh == passes {
			return
		}
	}
	p.t.Fatalf("probe: datagrams pass %v, want %v", !passes, passes)
}

// flip makes a change with write, after which datagrams are to pass or not to
// pass. It returns how long that took, from before the write and from when it
// returned; the latter may be negative.
func (p *probe) flip(passes bool, write func()) (whole, after time.Duration) {
	p.t.Helper()
	p.waitFor(!passes)
	first := p.sent.Load()
	begin := p.now()
	write()
	returned := p.now()
	var enforced int64
	if passes {
		limit := time.Now().Add(20 * time.Second)
		for p.last.Load() <= first {
			if time.Now().After(limit) {
				p.t.Fatalf("probe: nothing passes")
			}
			time.Sleep(100 * time.Microsecond)
		}
		for n := first + 1; enforced == 0; n++ {
			enforced = p.gotAt[n%probeLimit].Load()
		}
	} else {
		p.waitFor(false)
		n := p.last.Load()
		enforced = p.sentAt[(n+1)%probeLimit].Load() // the first that was lost
	}
	return time.Duration(enforced - begin), time.Duration(enforced - returned)
}
