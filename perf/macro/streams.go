package macro

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"calico-xdp/tools/testbed"
)

// streams are TCP connections that carry as much as they can.
func streams() []Scenario {
	var out []Scenario
	for _, n := range []int{1, 8} {
		out = append(out, Scenario{
			Name: fmt.Sprint("stream/local/", n), Quick: n == 1,
			About: "TCP from one workload to another one of the host, that many connections",
			Figures: []Figure{
				{Unit: "Gbit/s", Goals: map[string]float64{"kernel": 1, "redirect_peer": 0.95}},
				{Suffix: "/cpu", Unit: "CPU s/Gbit", Goals: map[string]float64{"kernel": 1}},
			},
			Lanes: func(r *Run, t testbed.T) []lane {
				return lanes(t, []way{ours(nil), kernel(), bareRedirect()}, func(s *site) sampler {
					return r.streaming(t, s.a.Namespace, s.b, n)
				})
			},
		})
	}
	return out
}

// longTurn is how many samples a turn is long where there are quantiles to find, or windows to
// open.
const longTurn = 4

// streaming measures streams to a workload: Gbit/s, and seconds of CPU per Gbit.
func (r *Run) streaming(t testbed.T, from *testbed.Namespace, to *testbed.Workload, n int) sampler {
	at := &unix.SockaddrInet4{Port: 5201, Addr: to.Addresses[0].As4()}
	server := -1
	err := to.Do(func() (err error) {
		server, err = listen(at)
		return err
	})
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	t.Cleanup(func() { unix.Close(server) })
	return func() ([]float64, error) {
		var workers sync.WaitGroup
		var received atomic.Uint64
		var open []int
		for i := range n {
			near, far, err := pair(from, server, at)
			if err != nil {
				return nil, err
			}
			open = append(open, near, far)
			workers.Go(func() { pour(near, i) })
			workers.Go(func() { drain(far, i+1, &received) })
		}
		time.Sleep(r.Sample) // the windows open
		before, beforeCPU, begin := received.Load(), busy(), time.Now()
		time.Sleep(longTurn * r.Sample)
		gbit, cpu, took := float64(received.Load()-before)*8e-9, busy()-beforeCPU, time.Since(begin)
		for _, fd := range open {
			unix.Shutdown(fd, unix.SHUT_RDWR)
		}
		workers.Wait()
		for _, fd := range open {
			unix.Close(fd)
		}
		if gbit == 0 {
			return nil, fmt.Errorf("nothing arrives")
		}
		return []float64{gbit / took.Seconds(), cpu.Seconds() / gbit}, nil
	}
}

// pair makes a connection to a listening socket and returns its two ends.
func pair(from *testbed.Namespace, server int, at *unix.SockaddrInet4) (near, far int, err error) {
	err = from.Do(func() error {
		if near, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		timeout := unix.Timeval{Sec: 5}
		unix.SetsockoptTimeval(near, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout)
		unix.SetsockoptInt(near, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		return unix.Connect(near, at)
	})
	if err != nil {
		return 0, 0, fmt.Errorf("connect: %w", err)
	}
	if far, _, err = unix.Accept(server); err != nil {
		return 0, 0, fmt.Errorf("accept: %w", err)
	}
	unix.SetsockoptInt(far, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	return near, far, nil
}

func pour(fd, cpu int) {
	defer pin(cpu)()
	data := make([]byte, 128<<10)
	for {
		if _, err := unix.Write(fd, data); err != nil && err != unix.EINTR && err != unix.EAGAIN {
			return // shut down
		}
	}
}

func drain(fd, cpu int, received *atomic.Uint64) {
	defer pin(cpu)()
	buf := make([]byte, 256<<10)
	for {
		n, err := unix.Read(fd, buf)
		if n > 0 {
			received.Add(uint64(n))
		} else if err != unix.EINTR {
			return
		}
	}
}
