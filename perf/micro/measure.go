package micro

import (
	"context"
	"fmt"
	"slices"

	"calico-xdp/perf/result"
	"calico-xdp/pkg/loader"
	"calico-xdp/tools/testbed"
)

// Effort says how long to measure.
type Effort struct {
	Passes int // over all scenarios; the spread is that of their ratios
	Rounds int // of a scenario in one pass
}

const (
	// The hop limit falls by one on every run on the same buffer.
	repeat = 250
	// batch rounds are measured before the next scenario has its turn.
	batch = 20
	// To run an XDP program the kernel rewrites code of its own first, which takes
	// milliseconds: few calls, with as many runs in all.
	repeatXDP = repeat * batch
	// singles are the system calls of a round where every run needs one.
	singles = 8
	// The kernel cuts the mean time of a run to whole nanoseconds.
	cut = 0.5
)

// probe is a scenario about to be measured.
type probe struct {
	Scenario
	rig           *rig
	timers, empty []*loader.Timer
	like          *probe
	likeAlone     []*loader.Timer // its packets as ours are, each by a call of its own
	repeat, batch int
	lookups       int
	turn          int
	ns, nothing   []float64 // by pass
}

// Run measures the scenarios. Those whose packets do not go where they should are left
// out and returned as errors.
func Run(ctx context.Context, t testbed.T, scenarios []Scenario, e Effort, progress func(string)) (results []result.Result, wrong []error, err error) {
	probes, wrong := prepare(ctx, t, scenarios, progress)
	for pass := range e.Passes {
		progress(fmt.Sprintf("micro: pass %d of %d", pass+1, e.Passes))
		if err := measure(ctx, probes, e.Rounds); err != nil {
			return nil, wrong, err
		}
	}
	for _, s := range scenarios {
		if r, ok := s.result(probes); ok {
			results = append(results, r)
		}
	}
	return results, wrong, nil
}

// result is what has been measured of a scenario; not ok if it could not be.
func (s Scenario) result(probes []*probe) (result.Result, bool) {
	r := result.Result{Name: s.Name, About: s.About, Baseline: s.Baseline, Goal: s.Goal}
	p, base := find(probes, s.Name), find(probes, s.Baseline)
	var ns, baseline []float64
	switch {
	case p != nil:
		ns, baseline, r.Lookups = p.ns, p.nothing, p.lookups
	case base != nil && find(probes, s.Of) != nil:
		ns, baseline = find(probes, s.Of).ns, base.ns
	default:
		return r, false
	}
	ratios := result.Ratios(ns, baseline)
	r.Ns, r.BaselineNs, r.Ratio, r.Spread = result.Median(ns), result.Median(baseline), result.Median(ratios), result.Spread(ratios)
	return r, true
}

// find is the scenario of that name, nil if there is none.
func find(probes []*probe, name string) *probe {
	if i := slices.IndexFunc(probes, func(p *probe) bool { return p.Name == name }); i >= 0 {
		return probes[i]
	}
	return nil
}

// prepare makes the rigs and the packets, and sees that each is what it should be.
func prepare(ctx context.Context, t testbed.T, scenarios []Scenario, progress func(string)) (probes []*probe, wrong []error) {
	rigs := make(map[string]*rig)
	for _, s := range scenarios {
		if s.Of != "" || ctx.Err() != nil {
			continue
		}
		r := rigs[s.Tables.Name]
		if r == nil {
			progress("micro: tables: " + s.Tables.Name)
			r = newRig(t, s.Tables)
			rigs[s.Tables.Name] = r
		}
		p := &probe{Scenario: s, rig: r, like: find(probes, s.Like)}
		if p.Once && p.like == nil {
			continue // it cannot be measured itself
		}
		if err := r.Do(p.prepare); err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %w", s.Name, err))
			continue
		}
		probes = append(probes, p)
	}
	return probes, wrong
}

func (p *probe) prepare() error {
	if p.Before != nil {
		for _, f := range p.Before(p.rig) {
			if _, err := p.rig.send(f); err != nil {
				return err
			}
		}
	}
	frames := p.Packets(p.rig)
	p.repeat, p.batch = repeat, batch
	if frames[0].Hook == loader.XDPNetwork {
		p.repeat, p.batch = repeatXDP, 1
	}
	empty, err := loader.NewEmpty(frames[0].Hook)
	if err != nil {
		return err
	}
	if p.like != nil {
		for _, f := range p.like.Packets(p.rig) {
			timer, err := p.rig.timer(f, p.Roomy)
			if err != nil {
				return err
			}
			p.likeAlone = append(p.likeAlone, timer)
		}
	}
	for i, f := range frames {
		timer, err := p.rig.timer(f, p.Roomy)
		if err != nil {
			return err
		}
		p.timers = append(p.timers, timer)
		p.empty = append(p.empty, empty.Timer(f.Packet.Bytes()))
		if p.Fresh && i > 0 {
			continue
		}
		did, err := p.rig.send(f)
		if err == nil && !slices.Contains(did, p.Want) {
			err = fmt.Errorf("%s: counted as %s, want %s", f.Packet, did, p.Want)
		}
		if err != nil {
			return err
		}
	}
	p.turn++ // the first is not fresh any more
	p.lookups, err = p.rig.lookups(frames[len(frames)-1])
	return err
}

// measure is one pass: every scenario has its turn many times.
func measure(ctx context.Context, probes []*probe, rounds int) error {
	type times struct{ ours, empty []float64 }
	all := make([]times, len(probes))
	for done := 0; done < rounds; done += batch {
		if err := ctx.Err(); err != nil {
			return err
		}
		for i, p := range probes {
			err := p.rig.Do(func() error {
				for range p.batch {
					ours, empty, err := p.round()
					if err != nil {
						return fmt.Errorf("%s: %w", p.Name, err)
					}
					all[i].ours, all[i].empty = append(all[i].ours, ours), append(all[i].empty, empty)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	for i, p := range probes {
		p.ns = append(p.ns, result.Middle(all[i].ours))
		p.nothing = append(p.nothing, result.Middle(all[i].empty))
	}
	return nil
}

// round times the next packet, and the empty program on it.
func (p *probe) round() (ours, empty float64, err error) {
	empty, err = p.time(p.empty, p.repeat, 1)
	if err != nil {
		return 0, 0, err
	}
	if !p.Once {
		ours, err = p.time(p.timers, p.repeat, 1)
		p.turn++
		return ours, empty, err
	}
	together, err := p.like.time(p.like.timers, repeat, 1)
	if err != nil {
		return 0, 0, err
	}
	alone, err := p.like.time(p.likeAlone, 1, singles)
	if err != nil {
		return 0, 0, err
	}
	ours, err = p.time(p.timers, 1, singles)
	p.turn += singles
	return ours - (alone - together), empty, err
}

// time is the mean time of a run, in nanoseconds, of that many system calls.
func (p *probe) time(timers []*loader.Timer, repeat, calls int) (float64, error) {
	sum := 0.0
	for n := range calls {
		_, took, err := timers[(p.turn+n)%len(timers)].Run(repeat)
		if err != nil {
			return 0, err
		}
		sum += float64(took)
		if repeat > 1 {
			sum += cut
		}
	}
	return sum / float64(calls), nil
}
