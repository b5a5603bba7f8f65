package bgp

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// hangUp breaks the connections of all established sessions. GoBGP ends a
// session only with a notification, and a peer that gets one drops our routes;
// a connection that just breaks is what graceful restart is for.
func (s *Speaker) hangUp() error {
	return eachSocket(s.watched.connections(), func(fd int, _ bool) error {
		if err := unix.Shutdown(fd, unix.SHUT_RDWR); !errors.Is(err, unix.ENOTCONN) {
			return err
		}
		return nil
	})
}

// networkControl is the traffic class of routing protocols, CS6 (RFC 4594).
const networkControl = 0xc0

// prefer marks a session's packets as those of a routing protocol, as BIRD and FRR do,
// so that where queues are full keepalives do not wait behind everything else.
func prefer(c connection) error {
	return eachSocket(map[connection]bool{c: true}, func(fd int, is6 bool) error {
		if is6 {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, networkControl)
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, networkControl)
	})
}

// eachSocket does something to the sockets of connections. GoBGP does not hand out its
// sockets, so they are found among the process's descriptors by their two ends.
func eachSocket(wanted map[connection]bool, do func(fd int, is6 bool) error) error {
	if len(wanted) == 0 {
		return nil
	}
	descriptors, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("bgp connections: %w", err)
	}
	var errs []error
	for _, d := range descriptors {
		number, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		// A copy: the number may be closed and used again at any moment, what
		// the copy refers to stays.
		fd, err := unix.FcntlInt(uintptr(number), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			continue
		}
		local, err1 := unix.Getsockname(fd)
		remote, err2 := unix.Getpeername(fd)
		if err1 == nil && err2 == nil && wanted[connection{addrPort(local), addrPort(remote)}] {
			_, is6 := local.(*unix.SockaddrInet6)
			if err := do(fd, is6); err != nil {
				errs = append(errs, fmt.Errorf("bgp connection to %s: %w", addrPort(remote), err))
			}
		}
		unix.Close(fd)
	}
	return errors.Join(errs...)
}

// connection is the two ends of a TCP connection.
type connection struct {
	local, remote netip.AddrPort
}

func addrPort(a unix.Sockaddr) netip.AddrPort {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return netip.AddrPort{}
}
