package testbed

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// TCPStream is a running TCP connection that carries data one way.
type TCPStream struct {
	client   *net.TCPConn
	server   net.Conn
	listener net.Listener
	workers  sync.WaitGroup
	finish   sync.Once
	received atomic.Uint64
	failure  atomic.Pointer[error]
}

// chunk is what is written at once, large enough that the kernel segments it
// (GSO); a prime length makes the content of neighbouring chunks differ.
const chunk = 32749

// StartTCP listens on an address in to, connects from from, and sends about
// 30 MB/s at most until Stop. The test fails if the connection cannot be made.
func StartTCP(t T, from, to *Namespace, target netip.AddrPort) *TCPStream {
	t.Helper()
	return StartTCPAt(t, from, to, target, target)
}

// StartTCPAt is StartTCP for a server that its client knows by another address and port.
func StartTCPAt(t T, from, to *Namespace, target, server netip.AddrPort) *TCPStream {
	t.Helper()
	s, err := startTCP(from, to, target, server)
	if err != nil {
		t.Fatalf("TCP stream from %s to %s: %v", from.Name, target, err)
	}
	t.Cleanup(s.Stop)
	return s
}

func startTCP(from, to *Namespace, target, server netip.AddrPort) (*TCPStream, error) {
	l, err := to.Listen("tcp", server.String())
	if err != nil {
		return nil, err
	}
	s := &TCPStream{listener: l}
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			accepted <- c
		}
		close(accepted)
	}()
	client, err := from.Dial("tcp", target.String())
	if err != nil {
		l.Close()
		return nil, err
	}
	s.client = client.(*net.TCPConn)
	s.server = <-accepted
	if s.server == nil {
		client.Close()
		l.Close()
		return nil, net.ErrClosed
	}
	s.workers.Go(s.send)
	s.workers.Go(s.receive)
	return s, nil
}

func (s *TCPStream) send() {
	data := make([]byte, chunk)
	for i := range data {
		data[i] = byte(i % 251)
	}
	for {
		if _, err := s.client.Write(data); err != nil {
			s.fail(err)
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func (s *TCPStream) receive() {
	buf := make([]byte, 1<<16)
	at := 0
	for {
		n, err := s.server.Read(buf)
		for _, b := range buf[:n] {
			if b != byte(at%251) {
				s.fail(fmt.Errorf("wrong byte after %d received", s.received.Load()))
				return
			}
			if at++; at == chunk {
				at = 0
			}
		}
		s.received.Add(uint64(n))
		if err != nil {
			s.fail(err)
			return
		}
	}
}

func (s *TCPStream) fail(err error) {
	if !isClosed(err) {
		s.failure.CompareAndSwap(nil, &err)
	}
}

// Acked returns how many bytes the receiver has acknowledged.
func (s *TCPStream) Acked() uint64 {
	raw, err := s.client.SyscallConn()
	if err != nil {
		return 0
	}
	var acked uint64
	raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			acked = info.Bytes_acked
		}
	})
	return acked
}

// Received returns how many bytes have been read at the other side.
func (s *TCPStream) Received() uint64 { return s.received.Load() }

// Err returns what broke the connection, nil while it lives.
func (s *TCPStream) Err() error {
	if err := s.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// Progresses waits until more bytes have been acknowledged than now.
func (s *TCPStream) Progresses(bytes uint64) bool {
	start := s.Acked()
	return Eventually(func() bool { return s.Acked() >= start+bytes })
}

// Stalls waits until nothing has been acknowledged for the whole of quiet and
// says whether that came.
func (s *TCPStream) Stalls(quiet time.Duration) bool {
	last, since := s.Acked(), time.Now()
	return Eventually(func() bool {
		if now := s.Acked(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) >= quiet
	})
}

// Stop ends the stream.
func (s *TCPStream) Stop() {
	s.finish.Do(func() {
		// With data in flight a plain close would linger in the kernel and keep the
		// namespace alive.
		s.client.SetLinger(0)
		s.client.Close()
		s.server.Close()
		s.listener.Close()
		s.workers.Wait()
	})
}
