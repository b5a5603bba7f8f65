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
// a connection that just breaks is what graceful restart is for. GoBGP does
// not hand out its sockets, so they are found among the process's descriptors
// by their two ends.
func (s *Speaker) hangUp() error {
	established := s.watched.connections()
	if len(established) == 0 {
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
		if err1 == nil && err2 == nil && established[connection{addrPort(local), addrPort(remote)}] {
			if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil && !errors.Is(err, unix.ENOTCONN) {
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
