package dataplane_test

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"calico-xdp/pkg/control/dataplane"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/tools/testbed"

	"golang.org/x/sys/unix"
)

// probe is a UDP socket that never lets its packets be fragmented.
type probe struct {
	*net.UDPConn
	ipv6 bool
}

func newProbe(t *testing.T, from *testbed.Namespace, to netip.Addr) probe {
	t.Helper()
	conn, err := from.Dial("udp", netip.AddrPortFrom(to, 9).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	p := probe{conn.(*net.UDPConn), to.Is6()}
	level, option, do := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO
	if p.ipv6 {
		level, option, do = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO
	}
	p.control(func(fd int) { err = unix.SetsockoptInt(fd, level, option, do) })
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (p probe) control(do func(fd int)) {
	raw, err := p.SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) { do(int(fd)) })
	}
}

// mtu sends a packet that is as large as the socket thinks it may be, and returns what
// that is now.
func (p probe) mtu() (mtu int) {
	level, option, headers := unix.IPPROTO_IP, unix.IP_MTU, 28
	if p.ipv6 {
		level, option, headers = unix.IPPROTO_IPV6, unix.IPV6_MTU, 48
	}
	read := func() { p.control(func(fd int) { mtu, _ = unix.GetsockoptInt(fd, level, option) }) }
	if read(); mtu > headers {
		p.Write(make([]byte, mtu-headers))
	}
	read()
	return mtu
}

// finds waits until the sender has found out the path's MTU.
func (p probe) finds(t *testing.T, what string, want int) {
	t.Helper()
	got := 0
	if !testbed.Eventually(func() bool { got = p.mtu(); return got == want }) {
		t.Errorf("%s: the sender thinks that the path's MTU is %d, want %d", what, got, want)
		return
	}
	for range 5 { // and stays there
		if got = p.mtu(); got != want {
			t.Errorf("%s: the path's MTU becomes %d, want %d", what, got, want)
		}
	}
}

// Workloads with an MTU that leaves no room for the outer header are told what fits, and
// what the underlay says is passed on.
func TestPathMTU(t *testing.T) {
	f := newFleet(t, dataplane.Options{})
	f.connect(t, desired.EncapVXLAN, desired.EncapIPIP)
	from := f.workloads[0].Namespace
	for i, n := range f.nodes { // as large as the uplink's
		n.SetMTU(t, "calia", 1500)
		f.workloads[i].SetMTU(t, "eth0", 1500)
	}
	want := map[bool][2]int{false: {1450, 1480}, true: {1430, 1500}} // the far one is plain in IPv6
	for i, to := range f.workloads[1:] {
		for _, a := range to.Addresses {
			exchange(t, from, to.Namespace, a)
			newProbe(t, from, a).finds(t, a.String(), want[a.Is6()][i])
			stream(t, from, to.Namespace, a)
		}
	}
	// What may be fragmented is, wherever it has to be.
	fragmented(t, f)
	// The way behind the router becomes narrower.
	f.Router.SetMTU(t, "eth2", 1400)
	for _, a := range f.workloads[2].Addresses {
		if a.Is4() {
			newProbe(t, from, a).finds(t, "behind a narrow link, "+a.String(), 1380)
			stream(t, from, f.workloads[2].Namespace, a)
		}
	}
}

// fragmented has the first workload ask the others, in datagrams of several fragments each
// way.
func fragmented(t *testing.T, f *fleet) {
	t.Helper()
	for _, to := range f.workloads[1:] {
		for _, a := range to.Addresses {
			server, err := to.ListenPacket("udp", netip.AddrPortFrom(a, 7777).String())
			if err != nil {
				t.Fatal(err)
			}
			client, err := f.workloads[0].Dial("udp", netip.AddrPortFrom(a, 7777).String())
			if err != nil {
				t.Fatal(err)
			}
			if a.Is4() {
				allowFragments(t, client.(*net.UDPConn))
				allowFragments(t, server.(*net.UDPConn))
			}
			go func() {
				buf := make([]byte, 65536)
				for {
					n, from, err := server.ReadFrom(buf)
					if err != nil {
						return
					}
					server.WriteTo(buf[:n], from)
				}
			}()
			buf := make([]byte, 65536)
			for _, size := range []int{1472, 1480, 4000, 20000} {
				if !testbed.Eventually(func() bool {
					client.Write(make([]byte, size))
					client.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
					for {
						n, err := client.Read(buf)
						if err != nil || n == size {
							return err == nil
						}
					}
				}) {
					t.Errorf("datagrams of %d bytes to %s are not answered", size, a)
				}
			}
			client.Close()
			server.Close()
		}
	}
}

// allowFragments has packets leave without "do not fragment".
func allowFragments(t *testing.T, conn *net.UDPConn) {
	t.Helper()
	p := probe{conn, false}
	p.control(func(fd int) {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT); err != nil {
			t.Error(err)
		}
	})
}
