package macro

import (
	"errors"
	"fmt"
	"time"

	"calico-xdp/pkg/loader"
	"calico-xdp/tools/testbed"
)

// flood sends frames from one namespace, through a site's host or at it, and knows how
// many have arrived.
type flood struct {
	from    *testbed.Namespace
	gen     *loader.Generator
	arrived func() (uint64, error)
	n       int // frames of a sample
}

// newFlood sends copies of a packet out of eth0 of a namespace; arrived counts them.
func newFlood(t testbed.T, from *testbed.Namespace, packet []byte, v loader.Variety, arrived func() (uint64, error)) *flood {
	t.Helper()
	f := &flood{from: from, arrived: arrived, n: 500}
	out := from.Link(t, "eth0").Attrs().Index
	err := from.Do(func() (err error) {
		f.gen, err = loader.NewGenerator(out, packet, v)
		return err
	})
	if err != nil {
		t.Fatalf("flood: %v", err)
	}
	t.Cleanup(func() { f.gen.Close() })
	return f
}

// sink counts what a workload gets, and drops it.
func sink(t testbed.T, w *testbed.Workload) func() (uint64, error) {
	t.Helper()
	in := w.Link(t, "eth0").Attrs().Index
	s, err := loader.NewCounter(true)
	if err == nil {
		t.Cleanup(func() { s.Close() })
		err = w.Do(func() error { return s.AttachIngress(in) })
	}
	if err != nil {
		t.Fatalf("sink: %v", err)
	}
	return s.Count
}

// sampler measures how many packets a second arrive.
func (f *flood) sampler(length time.Duration) sampler {
	return func() ([]float64, error) {
		rate, err := f.sample(length)
		return []float64{rate}, err
	}
}

func (f *flood) sample(length time.Duration) (float64, error) {
	before, err := f.arrived()
	if err != nil {
		return 0, err
	}
	var took time.Duration
	err = f.from.Do(func() (err error) {
		defer pin(0)()
		took, err = f.gen.Send(f.n)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("generator: %w", err)
	}
	after, err := f.arrived()
	if err != nil {
		return 0, err
	}
	if after == before {
		return 0, errors.New("no packet arrives")
	}
	// The next sample is as long as asked for.
	f.n = min(max(int(float64(f.n)*length.Seconds()/took.Seconds()), 200), 10_000_000)
	return float64(after-before) / took.Seconds(), nil
}
