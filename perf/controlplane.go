package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"calico-xdp/perf/bed"
	"calico-xdp/perf/control"
	"calico-xdp/perf/report"
	"calico-xdp/perf/result"
	"calico-xdp/tools/testbed"
)

// controlScenario is one of the control plane's: a real daemon, a real etcd.
type controlScenario struct {
	name string
	run  func(t testbed.T, o control.Options, quick bool) []control.Figure
}

func controlScenarios() []controlScenario {
	type figures = []control.Figure
	count := func(quick bool, full int) int {
		if quick {
			return max(full/10, 30)
		}
		return full
	}
	return []controlScenario{
		{"control/flip/10", func(t testbed.T, o control.Options, quick bool) figures {
			return control.PolicyFlip(t, o, 10, count(quick, 1000))
		}},
		{"control/flip/10000", func(t testbed.T, o control.Options, quick bool) figures {
			return control.PolicyFlip(t, o, 10_000, count(quick, 1000))
		}},
		{"control/edit/10000", func(t testbed.T, o control.Options, quick bool) figures {
			return control.RuleEdit(t, o, 10_000, count(quick, 100))
		}},
		{"control/burst/1000", func(t testbed.T, o control.Options, _ bool) figures {
			return control.Burst(t, o, 1000)
		}},
		{"control/routing/10000", func(t testbed.T, o control.Options, quick bool) figures {
			return control.Routing(t, o, 10_000, count(quick, 100))
		}},
		{"control/cluster/1000", func(t testbed.T, o control.Options, quick bool) figures {
			return control.LargeCluster(t, o, 10, 100, 100, 100, count(quick, 300))
		}},
		{"control/cluster/10000", func(t testbed.T, o control.Options, quick bool) figures {
			return control.LargeCluster(t, o, 100, 100, 1000, 250, count(quick, 300))
		}},
		{"control/cluster/100000", func(t testbed.T, o control.Options, quick bool) figures {
			return control.LargeCluster(t, o, 1000, 100, 1000, 250, count(quick, 300))
		}},
	}
}

// measureControl builds the daemon and runs them.
func measureControl(ctx context.Context, o options, r *report.Report, progress func(string)) (wrong []error) {
	var some []controlScenario
	for _, s := range controlScenarios() {
		if o.has("control") && o.only.MatchString(s.name) {
			some = append(some, s)
		}
	}
	if len(some) == 0 || ctx.Err() != nil {
		return nil
	}
	progress("control: building calico-node")
	bin, err := os.MkdirTemp("", "calico-xdp-perf-")
	if err != nil {
		return []error{err}
	}
	defer os.RemoveAll(bin)
	build := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", bin, "calico-xdp/cmd/calico-node")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return []error{fmt.Errorf("calico-node: %w: %s", err, out)}
	}
	for _, s := range some {
		if ctx.Err() != nil {
			return wrong
		}
		progress("control: " + s.name)
		err := bed.Try(progress, func(t testbed.T) error {
			for _, f := range s.run(t, control.Options{Bin: bin}, o.quick) {
				r.Results = append(r.Results, controlResult(s.name, f))
			}
			return nil
		})
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %w", s.name, err))
		}
	}
	return wrong
}

// controlResult has the figure beside what it should not exceed.
func controlResult(name string, f control.Figure) result.Result {
	r := result.Result{
		Name:  name + "/" + strings.NewReplacer(": ", "/", ", ", "/", " ", "-").Replace(f.Name),
		About: f.Scenario, Unit: f.Unit, Value: f.Value,
	}
	if f.Target != 0 {
		r.Peer, r.PeerValue, r.Ratio, r.Goal = "target", f.Target, f.Value/f.Target, 1
	}
	return r
}
