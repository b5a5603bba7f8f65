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
		var passes []float64
		for range e.Passes {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			var each []float64
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
			}
			passes = append(passes, result.Middle(each))
		}
		out = append(out, result.Result{
			Name: operationPrefix + o.Name, Unit: "ns", Value: result.Median(passes), Spread: result.Spread(passes),
			About: "one operation on a table, by itself",
		})
	}
	return out, nil
}
