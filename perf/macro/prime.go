package macro

import (
	"io"
	"net"
	"net/netip"
	"time"

	"calico-xdp/tools/testbed"
)

// connect makes a TCP connection that stays open as long as the site: from now on its
// packets belong to something known.
func connect(t testbed.T, from *testbed.Namespace, src netip.AddrPort, to *testbed.Workload, port uint16) {
	t.Helper()
	dst := netip.AddrPortFrom(to.Addresses[0], port)
	l, err := to.Listen("tcp", dst.String())
	if err != nil {
		t.Fatalf("connect to %s: %v", dst, err)
	}
	t.Cleanup(func() { l.Close() })
	err = from.Do(func() error {
		c, err := (&net.Dialer{Timeout: 5 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(src), KeepAlive: -1}).Dial("tcp", dst.String())
		if err != nil {
			return err
		}
		t.Cleanup(func() { c.Close() })
		answering, err := l.Accept()
		if err != nil {
			return err
		}
		t.Cleanup(func() { answering.Close() })
		return nil
	})
	if err != nil {
		t.Fatalf("connect to %s: %v", dst, err)
	}
}

// greet lets two workloads exchange a datagram each way.
func greet(t testbed.T, from *testbed.Namespace, src netip.AddrPort, to *testbed.Workload, port uint16) {
	t.Helper()
	dst := netip.AddrPortFrom(to.Addresses[0], port)
	server, err := to.ListenPacket("udp", dst.String())
	if err != nil {
		t.Fatalf("greet %s: %v", dst, err)
	}
	t.Cleanup(func() { server.Close() })
	err = from.Do(func() error {
		c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(src), net.UDPAddrFromAddrPort(dst))
		if err != nil {
			return err
		}
		t.Cleanup(func() { c.Close() })
		deadline := time.Now().Add(5 * time.Second)
		c.SetDeadline(deadline)
		server.SetDeadline(deadline)
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		buf := make([]byte, 16)
		n, peer, err := server.ReadFrom(buf)
		if err != nil {
			return err
		}
		if _, err := server.WriteTo(buf[:n], peer); err != nil {
			return err
		}
		_, err = io.ReadFull(c, buf[:n])
		return err
	})
	if err != nil {
		t.Fatalf("greet %s: %v", dst, err)
	}
}
