package macro

import (
	"context"
	"fmt"
	"slices"
	"time"

	"calico-xdp/perf/bed"
	"calico-xdp/perf/result"
	"calico-xdp/tools/testbed"
)

// Scenario is one kind of traffic and those who carry it in turns; the first of them is
// the product.
type Scenario struct {
	Name  string
	About string
	// Figures are what one measurement of a lane finds.
	Figures []Figure
	// Quick is set for those that a short run has, too.
	Quick bool
	// Lanes makes the sites and says how each is measured.
	Lanes func(*Run, testbed.T) []lane
}

// Figure is one quantity.
type Figure struct {
	Suffix string // of the scenario's name; "" for its main one
	Unit   string
	// Goals are what the ratio to a peer is to be: at least for what is better when
	// more, at most for what is better when less.
	Goals map[string]float64
}

// Effort says how long to measure.
type Effort struct {
	Repetitions int           // the spread is that of their ratios
	Turns       int           // of each lane in a repetition
	Sample      time.Duration // of each turn
}

// Run is one run of scenarios.
type Run struct {
	Effort
	Progress func(string)
	// Missing collects what could not be measured, and why.
	Missing []string
}

func (r *Run) miss(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(r.Missing, text) {
		r.Missing = append(r.Missing, text)
	}
}

// All is every scenario.
func All() []Scenario {
	return slices.Concat(packets(), firsts(), connects(), streams(), tunnels(), turns(), earliest())
}

// Measure measures scenarios, one after the other. Those that do not work are left out
// and returned as errors.
func (r *Run) Measure(ctx context.Context, scenarios []Scenario) (out []result.Result, wrong []error) {
	for _, s := range scenarios {
		if ctx.Err() != nil {
			return out, append(wrong, ctx.Err())
		}
		r.Progress("macro: " + s.Name)
		err := bed.Try(r.Progress, func(t testbed.T) error {
			results, err := s.measure(ctx, r, t)
			out = append(out, results...)
			return err
		})
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %w", s.Name, err))
		}
	}
	return out, wrong
}

func (s Scenario) measure(ctx context.Context, r *Run, t testbed.T) ([]result.Result, error) {
	lanes := s.Lanes(r, t)
	samples, err := race(ctx, lanes, r.Effort)
	if err != nil {
		return nil, err
	}
	var out []result.Result
	for n, f := range s.Figures {
		own := column(samples[0], n)
		if len(lanes) == 1 {
			out = append(out, result.Result{
				Name: s.Name + f.Suffix, About: s.About, Unit: f.Unit, Value: result.Median(own), Spread: result.Spread(own),
			})
		}
		for i := 1; i < len(lanes); i++ {
			its := column(samples[i], n)
			ratios := result.Ratios(own, its)
			x := result.Result{
				Name: s.Name + f.Suffix, About: s.About, Unit: f.Unit,
				Value: result.Median(own), Peer: lanes[i].name, PeerValue: result.Median(its),
				Ratio: result.Median(ratios), Spread: result.Spread(ratios),
			}
			if goal, ok := f.Goals[x.Peer]; ok {
				x.Goal, x.Least = goal, x.Better() > 0
			}
			out = append(out, x)
		}
	}
	return out, nil
}
