package micro

import (
	"context"
	"fmt"

	"calico-xdp/perf/result"
	"calico-xdp/pkg/loader"
	"calico-xdp/tools/testbed"
)

// What programs do with tables, each operation by itself: of these, and of the lookups
// counted, the paths are made. None of it is the product's.

// operationPrefix begins their names.
const operationPrefix = "operation/"

// Operations measures those whose names are chosen: nanoseconds each.
func Operations(ctx context.Context, t testbed.T, chosen func(string) bool, e Effort) ([]result.Result, error) {
	packet := make([]byte, 64)
	empty, err := loader.NewEmpty(loader.FromWorkload)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { empty.Close() })
	nothing := empty.Timer(packet)
	var out []result.Result
	for _, o := range loader.Operations() {
		if !chosen(operationPrefix + o.Name) {
			continue
		}
		program, err := loader.NewOperation(o)
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { program.Close() })
		timer := program.Timer(packet)
		var passes, baseline []float64
		for range e.Passes {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			var each, empty []float64
			for range e.Rounds {
				_, without, err := nothing.Run(repeat)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", o.Name, err)
				}
				_, with, err := timer.Run(repeat)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", o.Name, err)
				}
				each = append(each, float64(with-without)/loader.OperationTimes)
				empty = append(empty, float64(without)+cut)
			}
			passes, baseline = append(passes, result.Middle(each)), append(baseline, result.Middle(empty))
		}
		out = append(out, result.Result{
			Name: operationPrefix + o.Name, About: "one operation on a table, by itself, to the empty program",
			Ns: result.Median(passes), BaselineNs: result.Median(baseline),
			Ratio: result.Median(result.Ratios(passes, baseline)), Spread: result.Spread(passes),
		})
	}
	return out, nil
}
