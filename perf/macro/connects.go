package macro

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"calico-xdp/perf/bed"
	"calico-xdp/tools/testbed"
)

// Connections per second: three packets there and two back each, and all the work of
// two TCP stacks.

// connects are those scenarios.
func connects() []Scenario {
	var out []Scenario
	for _, n := range []int{10, 1000, 10000} {
		out = append(out, Scenario{
			Name: fmt.Sprint("connect/rules/", n), Figures: []Figure{{Unit: "connections/s"}},
			About: "TCP connections from the network that the last rule allows, one after the other, each reset at once",
			Lanes: func(r *Run, t testbed.T) []lane {
				rules := bed.Rules(n)
				last := rules[n-1]
				return lanes(t, r.underRules(rules, true), func(s *site) sampler {
					return r.connecting(t, s, bed.Member(last.Source, 0), last.Port)
				})
			},
		})
	}
	for _, n := range []int{10, 100000} {
		out = append(out, Scenario{
			Name: fmt.Sprint("connect/networks/", n), Figures: []Figure{{Unit: "connections/s"}},
			About: "the same from an address that a set of denied networks does not hold",
			Lanes: func(r *Run, t testbed.T) []lane {
				nets := bed.Nets(n)
				return lanes(t, r.underBlocklist(nets, true), func(s *site) sampler {
					return r.connecting(t, s, bed.Outside(nets, 1), 80)
				})
			},
		})
	}
	return out
}

// connecting measures with one thread that connects and one that accepts.
func (r *Run) connecting(t testbed.T, s *site, src netip.Addr, port uint16) sampler {
	s.world.AddAddress(t, "lo", netip.PrefixFrom(src, 32).String())
	to := &unix.SockaddrInet4{Port: int(port), Addr: s.b.Addresses[0].As4()}
	server := -1
	err := s.b.Do(func() (err error) {
		server, err = listen(to)
		return err
	})
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			fd, _, err := unix.Accept(server)
			if err != nil && err != unix.EINTR {
				return // shut down
			}
			unix.Close(fd)
		}
	})
	t.Cleanup(func() {
		unix.Shutdown(server, unix.SHUT_RDWR)
		accepting.Wait()
		unix.Close(server)
	})
	from := &unix.SockaddrInet4{Addr: src.As4()}
	return func() ([]float64, error) {
		made, begin := 0, time.Now()
		err := s.world.Do(func() error {
			for time.Since(begin) < r.Sample {
				switch err := connectOnce(from, to); err {
				case nil:
					made++
				case unix.EINPROGRESS: // nobody has answered in time
				default:
					return fmt.Errorf("connection %d: %w", made+1, err)
				}
			}
			if made == 0 {
				return errors.New("nobody answers")
			}
			return nil
		})
		return []float64{float64(made) / time.Since(begin).Seconds()}, err
	}
}

func listen(at *unix.SockaddrInet4) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, at); err != nil {
		return -1, err
	}
	return fd, unix.Listen(fd, 4096)
}

func connectOnce(from, to *unix.SockaddrInet4) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// The port is chosen once the far end is known.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
		return err
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		return err
	}
	// A reset leaves no port waiting.
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return err
	}
	if err := unix.Bind(fd, from); err != nil {
		return err
	}
	for {
		if err := unix.Connect(fd, to); err != unix.EINTR {
			return err
		}
	}
}
