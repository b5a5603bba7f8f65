package dataplane

import (
	"context"
	"math/bits"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/loader"
)

// How long a flow may be silent, as Calico's conntrack has it.
const (
	tcpTimeout       = time.Hour
	tcpClosedTimeout = 40 * time.Second
	udpTimeout       = 60 * time.Second
	icmpTimeout      = 5 * time.Second
	otherTimeout     = 10 * time.Minute
)

// Flows are swept every sweepInterval; when their table is more than half full every
// second, unless a sweep takes more than a hundredth of that. In between it is looked
// whether programs have found the table full.
const (
	sweepInterval = 10 * time.Second
	watchInterval = time.Second
	lookInterval  = 100 * time.Millisecond

	growFlowsAt = 0.7
)

// The tables of flows.
const (
	flows    = "flows"
	newFlows = "new_flows"
)

// sweeper removes flows that have been silent for too long, and makes their table larger.
// But for what mu guards it is sweepFlows'.
type sweeper struct {
	hz atomic.Uint64 // the kernel's clock rate; 0: not known yet

	refused uint64 // by the table, at the last look
	full    bool   // it was, since the last growth
	carried bool   // all flows are in one table

	wanted atomic.Int64 // entries that the configuration asks for
	fixed  atomic.Bool  // the table must not grow beyond

	mu      sync.Mutex
	last    loader.SweepResult
	removed uint64 // ever
}

// configure says how large the table of flows should be.
func (s *sweeper) configure(t desired.TableSizes) {
	n := t.Flows
	if t.FlowsPerCPU > 0 {
		n = t.FlowsPerCPU * runtime.NumCPU()
	}
	s.wanted.Store(int64(n))
	s.fixed.Store(t.FlowsFixed)
}

// sweepFlows sweeps until ctx ends.
func (d *Dataplane) sweepFlows(ctx context.Context) {
	hz, err := d.programs.ClockRate()
	if err != nil {
		d.log.Error("flows will not be swept", "error", err)
		return
	}
	d.sweep.hz.Store(uint64(hz))
	timeouts := loader.Timeouts{
		TCP: tcpTimeout, TCPClosed: tcpClosedTimeout, UDP: udpTimeout, ICMP: icmpTimeout, Other: otherTimeout, HZ: hz,
	}
	d.sweep.refused, _ = d.kernel.Refused(flows)
	ticker := time.NewTicker(lookInterval)
	defer ticker.Stop()
	var sweepAt, growAt time.Time
	failing := false
	for {
		now := time.Now()
		if !now.Before(sweepAt) {
			sweepAt = d.sweepOnce(timeouts)
		}
		if d.tight() && !now.Before(growAt) {
			d.sweepOnce(timeouts) // how many flows there are now
		}
		if !now.Before(growAt) {
			err := d.growFlows()
			if err != nil {
				growAt = now.Add(watchInterval)
			}
			if err != nil && !failing {
				d.log.Error("table could not be made larger; will try again", "table", flows, "error", err)
			}
			failing = err != nil
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// sweepOnce sweeps, and returns when to do so again.
func (d *Dataplane) sweepOnce(t loader.Timeouts) time.Time {
	start := time.Now()
	r, err := d.programs.Sweep(t)
	took := time.Since(start)
	if err != nil {
		d.log.Error("flows are not swept", "error", err)
		return start.Add(sweepInterval)
	}
	d.sweep.mu.Lock()
	d.sweep.last = r
	d.sweep.removed += uint64(r.Removed)
	d.sweep.mu.Unlock()
	d.noteFill(flows, int(r.Kept))
	d.noteFill(newFlows, int(r.Waiting))
	if int(r.Kept) > d.kernel.Flows.Capacity()/2 {
		return start.Add(min(max(watchInterval, 100*took), sweepInterval))
	}
	return start.Add(sweepInterval)
}

// growFlows makes the table of flows larger if it is nearly full, or was full, or is to be
// larger, and goes on with what is not finished.
func (d *Dataplane) growFlows() error {
	start := time.Now()
	if d.sweep.carried {
		entries := d.flowsWanted()
		if entries <= d.kernel.Flows.Capacity() {
			return nil
		}
		if err := d.kernel.GrowFlows(entries); err != nil {
			return err
		}
	}
	steps := 0
	for d.sweep.carried = false; !d.sweep.carried; steps++ {
		more, err := d.kernel.StepFlows()
		if err != nil {
			return err
		}
		d.sweep.carried = !more
	}
	if steps == 1 {
		return nil // there was nothing to do: this was the first look
	}
	d.tight()
	d.sweep.full = false // that was the former table
	d.log.Info("table was made larger", "table", flows, "entries", d.kernel.Flows.Capacity(), "took", time.Since(start))
	return nil
}

// tight says that the table of flows is nearly full, or has been full since it was last
// asked.
func (d *Dataplane) tight() bool {
	refused, err := d.kernel.Refused(flows)
	if err != nil {
		d.log.Error("table cannot be read", "table", flows, "error", err)
	}
	s := &d.sweep
	kept, _ := s.result()
	s.full = s.full || refused > s.refused
	s.refused = refused
	return s.full || float64(kept) > growFlowsAt*float64(d.kernel.Flows.Capacity())
}

// flowsWanted is how many entries the table of flows should have now. What waits for room
// must not take all that of those that are still to be copied.
func (d *Dataplane) flowsWanted() int {
	capacity, wanted := d.kernel.Flows.Capacity(), int(d.sweep.wanted.Load())
	if d.tight() {
		d.sweep.mu.Lock()
		waiting := int(d.sweep.last.Waiting)
		d.sweep.mu.Unlock()
		wanted = max(wanted, 1<<bits.Len(uint(2*(capacity+waiting)-1)))
	}
	d.sweep.full = false
	return min(wanted, d.limit(flows))
}

// result is the last sweep's, with the number of flows removed ever.
func (s *sweeper) result() (kept uint32, removed uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last.Kept, s.removed
}
