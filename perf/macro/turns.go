package macro

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"calico-xdp/perf/result"
	"calico-xdp/tools/testbed"
)

// turns are two ends of a TCP connection that speak in turns.
func turns() []Scenario {
	return []Scenario{{
		Name:  "turns/local",
		About: "a byte there and a byte back, from one workload to another one of the host (TCP_RR)",
		Figures: []Figure{
			{Unit: "turns/s", Goals: map[string]float64{"kernel": 1}},
			{Suffix: "/p50", Unit: "us"}, {Suffix: "/p99", Unit: "us"}, {Suffix: "/p99.9", Unit: "us"},
		},
		Lanes: func(r *Run, t testbed.T) []lane {
			return lanes(t, []way{ours(nil), kernel(), bareRedirect()}, func(s *site) sampler {
				return r.turning(t, s.a.Namespace, s.b)
			})
		},
	}}
}

// turning measures turns per second, and quantiles of how long one takes, in
// microseconds.
func (r *Run) turning(t testbed.T, from *testbed.Namespace, to *testbed.Workload) sampler {
	at := &unix.SockaddrInet4{Port: 5202, Addr: to.Addresses[0].As4()}
	server := -1
	err := to.Do(func() (err error) {
		server, err = listen(at)
		return err
	})
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	t.Cleanup(func() { unix.Close(server) })
	near, far, err := pair(from, server, at)
	if err != nil {
		t.Fatalf("%v", err)
	}
	echoed := make(chan struct{})
	go func() {
		defer close(echoed)
		echo(far)
	}()
	t.Cleanup(func() {
		unix.Close(near)
		<-echoed
		unix.Close(far)
	})
	return func() ([]float64, error) {
		defer pin(0)()
		var took []float64
		b := make([]byte, 1)
		begin := time.Now()
		for last := begin; last.Sub(begin) < longTurn*r.Sample; {
			if _, err := unix.Write(near, b); err != nil {
				return nil, fmt.Errorf("write: %w", err)
			}
			if _, err := unix.Read(near, b); err != nil {
				return nil, fmt.Errorf("read: %w", err)
			}
			now := time.Now()
			took = append(took, float64(now.Sub(last).Nanoseconds())/1000)
			last = now
		}
		rate := float64(len(took)) / time.Since(begin).Seconds()
		return []float64{rate, result.Quantile(took, 0.5), result.Quantile(took, 0.99), result.Quantile(took, 0.999)}, nil
	}
}

func echo(fd int) {
	defer pin(1)()
	b := make([]byte, 1)
	for {
		n, err := unix.Read(fd, b)
		if err == unix.EINTR {
			continue
		}
		if n <= 0 {
			return
		}
		unix.Write(fd, b)
	}
}
