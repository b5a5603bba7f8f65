package macro

import (
	"errors"
	"fmt"
	"time"

	"calico-xdp/pkg/loader"
	"calico-xdp/tools/testbed"
)

// flood sends frames from one namespace through a site's host to workload b, where
// they are counted as soon as b has them.
type flood struct {
	from *testbed.Namespace
	gen  *loader.Generator
	sink *loader.Bare
	n    int // frames of a sample
}

// newFlood sends copies of a packet out of eth0 of a namespace.
func newFlood(t testbed.T, s *site, from *testbed.Namespace, packet []byte, v loader.Variety) *flood {
	t.Helper()
	f := &flood{from: from, n: 4_000}
	out, in := from.Link(t, "eth0").Attrs().Index, s.b.Link(t, "eth0").Attrs().Index
	err := from.Do(func() (err error) {
		f.gen, err = loader.NewGenerator(out, packet, v)
		return err
	})
	if err == nil {
		t.Cleanup(func() { f.gen.Close() })
		f.sink, err = loader.NewCounter(true)
	}
	if err == nil {
		t.Cleanup(func() { f.sink.Close() })
		err = s.b.Do(func() error { return f.sink.AttachIngress(in) })
	}
	if err != nil {
		t.Fatalf("flood: %v", err)
	}
	return f
}

// sampler measures how many packets a second b gets.
func (f *flood) sampler(length time.Duration) sampler {
	return func() ([]float64, error) {
		rate, err := f.sample(length)
		return []float64{rate}, err
	}
}

func (f *flood) sample(length time.Duration) (float64, error) {
	before, err := f.sink.Count()
	if err != nil {
		return 0, err
	}
	var took time.Duration
	err = f.from.Do(func() (err error) {
		took, err = f.gen.Send(f.n)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("generator: %w", err)
	}
	after, err := f.sink.Count()
	if err != nil {
		return 0, err
	}
	if after == before {
		return 0, errors.New("no packet arrives")
	}
	// The next sample is as long as asked for.
	f.n = min(max(int(float64(f.n)*length.Seconds()/took.Seconds()), 1_000), 10_000_000)
	return float64(after-before) / took.Seconds(), nil
}
