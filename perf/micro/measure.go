package micro

import (
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
	// The kernel cuts the mean time of a run to whole nanoseconds.
	cut = 0.5
)

// probe is a scenario about to be measured.
type probe struct {
	Scenario
	rig           *rig
	timers, empty []*loader.Timer
	turn          int
	ns, nothing   []float64 // by pass
}

// Run measures the scenarios and those that they are compared with.
func Run(t testbed.T, scenarios []Scenario, e Effort, progress func(string)) ([]result.Result, error) {
	probes, err := prepare(t, scenarios, progress)
	if err != nil {
		return nil, err
	}
	for pass := range e.Passes {
		progress(fmt.Sprintf("micro: pass %d of %d", pass+1, e.Passes))
		if err := measure(probes, e.Rounds); err != nil {
			return nil, err
		}
	}
	var out []result.Result
	for _, p := range probes {
		base := p.nothing
		if p.Baseline != "" {
			base = find(probes, p.Baseline).ns
		}
		ratios := result.Ratios(p.ns, base)
		out = append(out, result.Result{
			Name: p.Name, About: p.About, Ns: result.Median(p.ns), Baseline: p.Baseline, BaselineNs: result.Median(base),
			Ratio: result.Median(ratios), Spread: result.Spread(ratios), Goal: p.Goal,
		})
	}
	return out, nil
}

func find(probes []*probe, name string) *probe {
	i := slices.IndexFunc(probes, func(p *probe) bool { return p.Name == name })
	return probes[i]
}

// prepare makes the rigs and the packets, and sees that each is what it should be.
func prepare(t testbed.T, scenarios []Scenario, progress func(string)) ([]*probe, error) {
	rigs := make(map[string]*rig)
	var out []*probe
	for _, s := range scenarios {
		r := rigs[s.Tables.Name]
		if r == nil {
			progress("micro: tables: " + s.Tables.Name)
			r = newRig(t, s.Tables)
			rigs[s.Tables.Name] = r
		}
		p := &probe{Scenario: s, rig: r}
		if err := r.Do(p.prepare); err != nil {
			return nil, fmt.Errorf("%s: %w", s.Name, err)
		}
		out = append(out, p)
	}
	return out, nil
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
	empty, err := loader.NewEmpty(frames[0].Hook)
	if err != nil {
		return err
	}
	for _, f := range frames {
		did, err := p.rig.send(f)
		if err == nil && !slices.Contains(did, p.Want) {
			err = fmt.Errorf("%s: counted as %s, want %s", f.Packet, did, p.Want)
		}
		if err != nil {
			return err
		}
		timer, err := p.rig.timer(f)
		if err != nil {
			return err
		}
		p.timers = append(p.timers, timer)
		p.empty = append(p.empty, empty.Timer(f.Packet.Bytes()))
	}
	return nil
}

// measure is one pass: every scenario has its turn many times.
func measure(probes []*probe, rounds int) error {
	type times struct{ ours, empty []float64 }
	all := make([]times, len(probes))
	for done := 0; done < rounds; done += batch {
		for i, p := range probes {
			err := p.rig.Do(func() error {
				for range batch {
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
	n := p.turn % len(p.timers)
	p.turn++
	_, nothing, err := p.empty[n].Run(repeat)
	if err != nil {
		return 0, 0, err
	}
	_, took, err := p.timers[n].Run(repeat)
	return float64(took) + cut, float64(nothing) + cut, err
}
