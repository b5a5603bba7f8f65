package dataplane

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"calico-xdp/pkg/loader"
	kernel "calico-xdp/pkg/maps"
	"calico-xdp/tools/testbed"
)

// growing is unhooked with tables that grow.
func growing(t testing.TB, o Options) *Dataplane {
	t.Helper()
	d := &Dataplane{options: o}
	assemble(t, d, kernel.Options{Sizes: o.TableSizes, Grow: d.makeRoom})
	return d
}

// sweeping runs what New runs, for as long as the test.
func sweeping(t *testing.T, d *Dataplane) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	d.done.Go(func() { d.sweepFlows(ctx) })
	t.Cleanup(func() {
		stop()
		d.done.Wait()
	})
}

// crowd is many flows from one workload to another. Only the first one may open flows, so
// that a packet of the other one that finds no flow is dropped.
type crowd struct {
	*bed
	there, back map[string][]byte // packets by their flags
}

func newCrowd(b *bed) crowd {
	c := crowd{b, make(map[string][]byte), make(map[string][]byte)}
	for _, flags := range []string{"S", "SA", "A"} {
		c.there[flags], c.back[flags] = frame(w5, w6).TCP(1, 1, flags).Bytes(), frame(w6, w5).TCP(1, 1, flags).Bytes()
	}
	return c
}

// packet is one of the ith flow: 10,000 ports times as many.
func (c crowd) packet(i int, back bool, flags string) []byte {
	here, far := uint16(10_000+i%10_000), uint16(1000+i/10_000)
	from, ports := c.there, []uint16{here, far}
	if back {
		from, ports = c.back, []uint16{far, here}
	}
	p := slices.Clone(from[flags])
	for n, port := range ports {
		binary.BigEndian.PutUint16(p[34+2*n:], port)
	}
	return p
}

// send runs a packet of the ith flow through the programs.
func (c crowd) send(i int, back bool, flags string) error {
	on := "cali5"
	if back {
		on = "cali6"
	}
	r, err := c.programs.Run(loader.FromWorkload, c.packet(i, back, flags), loader.Context{Ifindex: uint32(c.index[on])})
	if err == nil && r.Return != 7 {
		err = fmt.Errorf("flow %d, back %v, %s: %s", i, back, flags, returns[r.Return])
	}
	return err
}

func (c crowd) establish(i int) error {
	return errors.Join(c.send(i, false, "S"), c.send(i, true, "SA"), c.send(i, false, "A"))
}

// Twenty times as many flows are established as there was room for at first, while all
// that are there go on: the table grows, and no packet misses its flow.
func TestFlowsGrowUnderTraffic(t *testing.T) {
	const size, flowCount, writers = 500, 10_000, 2
	b := bedOn(t, growing(t, Options{TableSizes: map[string]int{flows: size}}))
	c := newCrowd(b)
	sweeping(t, b.Dataplane)
	var established [writers]atomic.Int64
	var failures sync.Map
	var workers, writing sync.WaitGroup
	done := make(chan struct{})
	work := func(fn func() error) func() {
		return func() {
			if err := b.host.Do(fn); err != nil {
				failures.Store(err.Error(), true)
			}
		}
	}
	for w := range writers {
		writing.Go(work(func() error {
			for i := w; i < flowCount; i += writers {
				if err := c.establish(i); err != nil {
					return err
				}
				established[w].Store(int64(i + 1))
			}
			return nil
		}))
	}
	var packets atomic.Int64
	for w := range writers {
		workers.Go(work(func() error {
			for rng := rand.New(rand.NewPCG(1, uint64(w))); ; {
				select {
				case <-done:
					return nil
				default:
				}
				top := int(established[w].Load()) / writers
				if top == 0 {
					time.Sleep(time.Millisecond)
					continue
				}
				if err := c.send(rng.IntN(top)*writers+w, rng.IntN(2) == 0, "A"); err != nil {
					return err
				}
				packets.Add(1)
			}
		}))
	}
	writing.Wait()
	if !testbed.Eventually(func() bool { return b.kernel.Flows.Capacity() > flowCount }) {
		t.Errorf("room for %d", b.kernel.Flows.Capacity())
	}
	close(done)
	workers.Wait()
	failures.Range(func(err, _ any) bool { t.Error(err); return true })
	err := b.host.Do(func() error {
		for i := range flowCount { // those that there was no room for get it
			if err := errors.Join(c.send(i, true, "A"), c.send(i, false, "A")); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if all, err := b.kernel.Flows.Load(); err != nil || len(all) != flowCount {
		t.Errorf("%d flows, %v", len(all), err)
	}
	refused, _ := b.kernel.Refused(flows)
	t.Logf("room for %d, %d packets meanwhile, %d times no room", b.kernel.Flows.Capacity(), packets.Load(), refused)
}

// A table that must not grow holds what it can; other flows go on as long as there is room
// for them among those that wait, and get a place when there is one.
func TestFlowsBeyondTheLimit(t *testing.T) {
	const size, flowCount = 1000, 3000
	b := bedOn(t, growing(t, Options{TableSizes: map[string]int{flows: size}, TableLimits: map[string]int{flows: size}}))
	c := newCrowd(b)
	err := b.host.Do(func() error {
		for i := range flowCount {
			if err := c.establish(i); err != nil {
				return err
			}
		}
		for i := range flowCount {
			if err := errors.Join(c.send(i, true, "A"), c.send(i, false, "A")); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	hz, err := b.programs.ClockRate()
	if err != nil {
		t.Fatal(err)
	}
	b.sweepOnce(loader.Timeouts{TCP: time.Hour, TCPClosed: time.Hour, UDP: time.Hour, ICMP: time.Hour, Other: time.Hour, HZ: hz})
	if err := b.growFlows(); err != nil {
		t.Fatal(err)
	}
	kept, _ := b.sweep.result()
	if kept != size || b.kernel.Flows.Capacity() != size {
		t.Errorf("%d flows in a table of %d", kept, b.kernel.Flows.Capacity())
	}
	for _, f := range b.Tables() {
		if f.Table == flows && (f.Entries != size || f.Capacity != size || f.Limit != size || f.Refused < flowCount-size) {
			t.Errorf("%+v", f)
		}
		if f.Table == newFlows && f.Entries != flowCount-size {
			t.Errorf("%+v", f)
		}
	}
	all, err := b.kernel.Flows.Load()
	if err != nil {
		t.Fatal(err)
	}
	for k := range all {
		if err := b.kernel.Flows.Delete(k); err != nil {
			t.Fatal(err)
		}
	}
	waiting, err := b.kernel.NewFlows.Load()
	if err != nil {
		t.Fatal(err)
	}
	for k := range waiting {
		if err := b.host.Do(func() error {
			here, far := portsOf(k)
			return c.send(int(here)-10_000+10_000*(int(far)-1000), false, "A")
		}); err != nil {
			t.Fatal(err)
		}
		break
	}
	if all, err := b.kernel.Flows.Load(); err != nil || len(all) != 1 {
		t.Errorf("%d flows, %v: one has got room", len(all), err)
	}
}

// portsOf are the ports of a flow of a crowd.
func portsOf(k kernel.FlowKey) (here, far uint16) {
	a := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, k.A_port))
	b := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, k.B_port))
	return max(a, b), min(a, b)
}
