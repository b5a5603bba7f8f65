// Package control measures the control plane on a real node: a daemon, an etcd,
// and packets between workloads. What counts is when packets obey, not when the
// daemon says so.
package control

import (
	"fmt"
	"slices"
	"time"
)

// Figure is one measured value.
type Figure struct {
	Scenario string // "policy flip, 10 rules"
	Name     string // "write returned to enforced, p50"
	Value    float64
	Unit     string  // "ms", "s", "MB"
	Target   float64 // what it should not exceed; 0: none is set
}

func (f Figure) String() string {
	s := fmt.Sprintf("%-44s %-36s %9.2f %s", f.Scenario, f.Name, f.Value, f.Unit)
	if f.Target != 0 {
		s += fmt.Sprintf(" (target %g)", f.Target)
	}
	return s
}

// samples are latencies of one kind.
type samples []time.Duration

// percentile returns the smallest sample that p percent of them do not exceed,
// in milliseconds.
func (s samples) percentile(p int) float64 {
	sorted := slices.Sorted(slices.Values(s))
	return milliseconds(sorted[max(0, (len(sorted)*p+99)/100-1)])
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// figures are the percentiles of these samples; a target of 0 is none.
func (s samples) figures(scenario, name string, p50, p99 float64) []Figure {
	return []Figure{
		{scenario, name + ", p50", s.percentile(50), "ms", p50},
		{scenario, name + ", p99", s.percentile(99), "ms", p99},
		{scenario, name + ", worst", s.percentile(100), "ms", 0},
	}
}
