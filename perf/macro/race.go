package macro

import (
	"context"
	"fmt"
)

// lane is one way of doing the same thing, measured in turns with the others.
type lane struct {
	name   string
	sample sampler
}

// sampler measures once: one value for each of a scenario's figures.
type sampler func() ([]float64, error)

// race lets every lane have its turn, repeatedly: samples by lane and repetition. What
// the first turn of each finds is not counted.
func race(ctx context.Context, lanes []lane, repetitions int) ([][][]float64, error) {
	out := make([][][]float64, len(lanes))
	for n := range repetitions + 1 {
		for i, l := range lanes {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			v, err := l.sample()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", l.name, err)
			}
			if n > 0 {
				out[i] = append(out[i], v)
			}
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
