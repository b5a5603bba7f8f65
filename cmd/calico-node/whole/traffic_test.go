package whole

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"calico-xdp/tools/testbed"
)

// gate is a proxy between a node and its etcd, which a test can shut.
type gate struct {
	listener net.Listener
	to       string

	mu    sync.Mutex
	shut  bool
	conns map[net.Conn]bool
}

func openGate(c *cluster, n *testbed.Namespace, at, to string) *gate {
	c.Helper()
	l, err := n.Listen("tcp", at)
	if err != nil {
		c.Fatal(err)
	}
	g := &gate{listener: l, to: to, conns: make(map[net.Conn]bool)}
	c.Cleanup(func() {
		g.cut()
		l.Close()
	})
	go func() {
		for {
			inner, err := l.Accept()
			if err != nil {
				return
			}
			g.join(inner)
		}
	}()
	return g
}

// join connects a client, whose connection ends when either side's does.
func (g *gate) join(inner net.Conn) {
	outer, err := net.Dial("tcp", g.to)
	if err != nil {
		inner.Close()
		return
	}
	if !g.add(inner, outer) {
		return
	}
	for _, pair := range [][2]net.Conn{{inner, outer}, {outer, inner}} {
		go func() {
			io.Copy(pair[0], pair[1]) // an error ends it like any other end
			g.drop(inner, outer)
		}()
	}
}

func (g *gate) add(conns ...net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range conns {
		if g.shut {
			c.Close()
		} else {
			g.conns[c] = true
		}
	}
	return !g.shut
}

func (g *gate) drop(conns ...net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range conns {
		c.Close()
		delete(g.conns, c)
	}
}

// cut breaks all connections and lets none be made.
func (g *gate) cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = true
	for c := range g.conns {
		c.Close()
	}
	clear(g.conns)
}

func (g *gate) mend() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = false
}

func (g *gate) isOpen() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.shut
}

// serve accepts TCP connections and answers UDP on those ports, on all addresses
// of both families.
func (c *cluster) serve(n *testbed.Namespace, ports ...int) {
	c.Helper()
	for _, port := range ports {
		at := net.JoinHostPort("", strconv.Itoa(port))
		l, err := n.Listen("tcp", at)
		if err != nil {
			c.Fatal(err)
		}
		u, err := n.ListenPacket("udp", at)
		if err != nil {
			c.Fatal(err)
		}
		c.Cleanup(func() { u.Close() })
		testbed.Serve(c, l, func(net.Conn) {})
		go func() {
			buf := make([]byte, 2048)
			for {
				n, from, err := u.ReadFrom(buf)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil {
					u.WriteTo(buf[:n], from)
				}
			}
		}()
	}
}

// try is one exchange and whether it should succeed. Port 0 is a ping; UDP is
// said so.
type try struct {
	from *testbed.Namespace
	to   netip.Addr
	port uint16
	udp  bool
	want bool
}

func (t try) String() string {
	what := fmt.Sprintf("tcp %d", t.port)
	switch {
	case t.udp:
		what = fmt.Sprintf("udp %d", t.port)
	case t.port == 0:
		what = "ping"
	}
	return fmt.Sprintf("%s -> %s %s", t.from.Name, t.to, what)
}

// A dropped packet is silence. What should arrive gets long enough for a busy
// machine, what should not gets long enough to be noticed if it does.
const (
	patience = 8 * time.Second
	silence  = 700 * time.Millisecond
	quiet    = 250 * time.Millisecond // of a TCP stream
)

// exchange makes one attempt. An error that says that the other side was reached
// is reached.
func (t try) exchange() (ok, reached bool) {
	limit := silence
	if t.want {
		limit = patience
	}
	switch {
	case t.udp:
		return t.datagram(limit)
	case t.port == 0:
		ok = testbed.Probe{Wait: limit}.Reaches(t.from, t.to)
		return ok, ok
	}
	conn, err := t.from.DialTimeout("tcp", netip.AddrPortFrom(t.to, t.port).String(), limit)
	if err != nil {
		return false, errors.Is(err, syscall.ECONNREFUSED)
	}
	conn.Close()
	return true, true
}

func (t try) datagram(limit time.Duration) (ok, reached bool) {
	conn, err := t.from.Dial("udp", netip.AddrPortFrom(t.to, t.port).String())
	if err != nil {
		return false, false
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		return false, false
	}
	conn.SetReadDeadline(time.Now().Add(limit))
	_, err = conn.Read(make([]byte, 16))
	return err == nil, err == nil || errors.Is(err, syscall.ECONNREFUSED)
}

// tryAll makes all exchanges at the same time and reports those that do not end
// as they should.
func (c *cluster) tryAll(when string, tries ...try) {
	c.Helper()
	wrong := make([]string, len(tries))
	var done sync.WaitGroup
	for i, t := range tries {
		done.Go(func() {
			ok, reached := t.exchange()
			switch {
			case t.want && !ok:
				wrong[i] = fmt.Sprintf("%s: %s fails", when, t)
			case !t.want && (ok || reached):
				wrong[i] = fmt.Sprintf("%s: %s gets through", when, t)
			}
		})
	}
	done.Wait()
	for _, w := range wrong {
		if w != "" {
			c.Error(w)
		}
	}
}

// runs is traffic that a test keeps going.
type runs struct {
	c       *cluster
	names   []string
	floods  []*testbed.Flood
	streams []*testbed.TCPStream
}

// run starts a ping flood and a TCP stream from one workload to another.
func (r *runs) run(name string, from, to *workload, ipv6 bool) {
	r.c.Helper()
	r.names = append(r.names, name)
	r.floods = append(r.floods, testbed.StartFlood(r.c, from.Namespace, to.Namespace, to.address(ipv6), testbed.FloodOptions{}))
	port := uint16(7000 + len(r.streams))
	r.streams = append(r.streams, testbed.StartTCP(r.c, from.Namespace, to.Namespace, netip.AddrPortFrom(to.address(ipv6), port)))
}

// goOn checks that all of it makes progress.
func (r *runs) goOn(when string) {
	r.c.Helper()
	for i, name := range r.names {
		if !r.floods[i].Progresses(40) {
			r.c.Fatalf("%s: ping %s: no progress, %s", when, name, r.floods[i].Report())
		}
		if !r.streams[i].Progresses(1<<18) || r.streams[i].Err() != nil {
			r.c.Fatalf("%s: stream %s: no progress: %v", when, name, r.streams[i].Err())
		}
	}
}

// end stops it; nothing may be lost.
func (r *runs) end() {
	r.c.Helper()
	for i, name := range r.names {
		if err := r.streams[i].Err(); err != nil {
			r.c.Errorf("stream %s: %v", name, err)
		}
		r.streams[i].Stop()
		if report := r.floods[i].Stop(); report.Lost != 0 || report.Refused != 0 || report.Duplicated != 0 {
			r.c.Errorf("ping %s: %s", name, report)
		} else {
			r.c.Logf("ping %s: %s", name, report)
		}
	}
}

// stopAll ends floods that may have lost packets: each waits for those that are
// late.
func stopAll(floods []*testbed.Flood) {
	var done sync.WaitGroup
	for _, f := range floods {
		done.Go(func() { f.Stop() })
	}
	done.Wait()
}
