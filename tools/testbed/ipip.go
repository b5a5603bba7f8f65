package testbed

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// IPIPEndpoint is RFC 2003 in user space, where the kernel has no device for it: what the
// host routes to the interface leaves in IPIP to remote, what remote sends in IPIP comes
// out of the interface.
func IPIPEndpoint(t T, h *Host, iface string, remote netip.Addr) {
	t.Helper()
	var tun *os.File
	var receive net.PacketConn
	send := -1
	err := h.Do(func() (err error) {
		if tun, err = openTun(iface); err != nil {
			return err
		}
		if receive, err = net.ListenPacket("ip4:4", h.IPv4.Addr().String()); err != nil {
			return err
		}
		send, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	})
	if err != nil {
		t.Fatalf("IPIP endpoint: %v", err)
	}
	done := make(chan error, 2)
	go func() { done <- encapsulate(tun, send, h.IPv4.Addr(), remote) }()
	go func() { done <- decapsulate(tun, receive, remote) }()
	t.Cleanup(func() {
		err := errors.Join(tun.Close(), receive.Close())
		for range 2 {
			if e := <-done; !errors.Is(e, os.ErrClosed) && !errors.Is(e, net.ErrClosed) {
				err = errors.Join(err, e)
			}
		}
		if err = errors.Join(err, unix.Close(send)); err != nil {
			t.Logf("IPIP endpoint: %v", err)
		}
	})
	h.SetMTU(t, iface, 1480)
	h.SetUp(t, iface)
}

func openTun(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("tun %s: %w", name, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun"), nil
}

func encapsulate(tun *os.File, send int, local, remote netip.Addr) error {
	buf := make([]byte, 1<<16)
	for {
		n, err := tun.Read(buf[20:])
		if err != nil {
			return err
		}
		if buf[20]>>4 != 4 {
			continue // the kernel's own IPv6 chatter
		}
		outer := buf[:20]
		clear(outer)
		outer[0], outer[1] = 0x45, buf[21] // TOS is the inner one's
		binary.BigEndian.PutUint16(outer[2:], uint16(20+n))
		outer[6] = buf[26] & 0x40 // so is DF
		outer[8], outer[9] = 64, unix.IPPROTO_IPIP
		copy(outer[12:], local.AsSlice())
		copy(outer[16:], remote.AsSlice())
		// The kernel fills in the checksum and, if it is 0, the id.
		if err := unix.Sendto(send, buf[:20+n], 0, &unix.SockaddrInet4{Addr: remote.As4()}); err != nil {
			return fmt.Errorf("send IPIP: %w", err)
		}
	}
}

func decapsulate(tun *os.File, receive net.PacketConn, remote netip.Addr) error {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := receive.ReadFrom(buf) // without its outer header
		if err != nil {
			return err
		}
		if from.String() != remote.String() {
			continue
		}
		if _, err := tun.Write(buf[:n]); err != nil {
			return fmt.Errorf("inner packet of %d bytes: %w", n, err)
		}
	}
}
