package macro

import (
	"context"
	"fmt"

	"calico-xdp/perf/result"
)

// lane is one way of doing the same thing, measured in turns with the others.
type lane struct {
	name   string
	sample sampler
}

// sampler measures once: one value for each of a scenario's figures.
type sampler func() ([]float64, error)

// race lets every lane have its turn, many times: what they find by lane and repetition,
// which is the middle of some turns. A turn is short, so that what disturbs the machine for a
// while disturbs all alike. What the first turn of each finds is not counted.
func race(ctx context.Context, lanes []lane, e Effort) ([][][]float64, error) {
	out := make([][][]float64, len(lanes))
	for n := range e.Repetitions + 1 {
		found := make([][][]float64, len(lanes))
		for range min(e.Turns, 1+n*e.Turns) {
			for i, l := range lanes {
				if err := ctx.Err(); err != nil {
					return nil, err
				}
				v, err := l.sample()
				if err != nil {
					return nil, fmt.Errorf("%s: %w", l.name, err)
				}
				found[i] = append(found[i], v)
			}
		}
		if n == 0 {
			continue
		}
		for i, turns := range found {
			v := make([]float64, len(turns[0]))
			for figure := range v {
				v[figure] = result.Middle(column(turns, figure))
			}
			out[i] = append(out[i], v)
		}
	}
	return out, nil
}

// column is one figure of all repetitions.
func column(samples [][]float64, figure int) []float64 {
	out := make([]float64, len(samples))
	for i, s := range samples {
		out[i] = s[figure]
	}
	return out
}
