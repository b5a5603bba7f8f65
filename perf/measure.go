package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"calico-xdp/perf/bed"
	"calico-xdp/perf/macro"
	"calico-xdp/perf/micro"
	"calico-xdp/perf/report"
	"calico-xdp/perf/result"
	"calico-xdp/tools/testbed"
)

// Efforts: quick has to be done within 50 seconds, with the time to compile the harness.
var (
	quickMicro = micro.Effort{Passes: 5, Rounds: 120}
	fullMicro  = micro.Effort{Passes: 9, Rounds: 800}
	quickMacro = macro.Effort{Repetitions: 3, Turns: 3, Sample: 25 * time.Millisecond}
	fullMacro  = macro.Effort{Repetitions: 7, Turns: 8, Sample: 40 * time.Millisecond}
)

func measure(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("network namespaces and BPF need root")
	}
	begin := time.Now()
	progress := func(text string) { fmt.Fprintf(os.Stderr, "%4.0fs %s\n", time.Since(begin).Seconds(), text) }
	r := report.Report{Machine: report.Describe(), Quick: o.quick}
	if r.Machine.Busy() {
		progress(fmt.Sprintf("perf: the machine is busy (load %.1f on %d CPUs): spreads will be wide", r.Machine.Load, r.Machine.CPUs))
	}
	wrong, err := measureMicro(ctx, o, &r, progress)
	if err != nil {
		return err
	}
	wrong = append(wrong, measureMacro(ctx, o, &r, progress)...)
	wrong = append(wrong, measureControl(ctx, o, &r, progress)...)
	for _, err := range wrong {
		r.Missing = append(r.Missing, err.Error())
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	r.Took = time.Since(begin)
	if len(r.Results) == 0 && len(wrong) == 0 {
		return fmt.Errorf("no scenario is called like that")
	}
	for _, m := range r.Missing {
		progress("perf: not measured: " + m)
	}
	if o.out != "" {
		if err := r.Write(o.out); err != nil {
			return err
		}
		progress("perf: report in " + o.out)
	}
	if err := print(os.Stdout, r, o.format); err != nil {
		return err
	}
	if len(wrong) > 0 {
		return fmt.Errorf("%d scenarios do not do what they should", len(wrong))
	}
	return nil
}

// full says whether scenarios are measured, too, that a quick run leaves out.
func (o options) full() bool { return !o.quick || o.only.String() != "" }

func measureMicro(ctx context.Context, o options, r *report.Report, progress func(string)) (wrong []error, err error) {
	if !o.has("micro") {
		return nil, nil
	}
	some := micro.Select(func(s micro.Scenario) bool { return o.only.MatchString(s.Name) && (o.full() || !s.Full) })
	effort := fullMicro
	if o.quick {
		effort = quickMicro
	}
	err = bed.Try(progress, func(t testbed.T) (err error) {
		var results []result.Result
		if len(some) > 0 {
			results, wrong, err = micro.Run(ctx, t, some, effort, progress)
			r.Results = append(r.Results, results...)
		}
		if err == nil && o.full() {
			results, err = micro.Operations(ctx, t, o.only.MatchString, effort)
			r.Results = append(r.Results, results...)
		}
		return err
	})
	return wrong, err
}

func measureMacro(ctx context.Context, o options, r *report.Report, progress func(string)) []error {
	if !o.has("macro") {
		return nil
	}
	var some []macro.Scenario
	for _, s := range macro.All() {
		if o.only.MatchString(s.Name) && (o.full() || s.Quick) {
			some = append(some, s)
		}
	}
	run := macro.Run{Effort: fullMacro, Progress: progress}
	if o.quick {
		run.Effort = quickMacro
	}
	results, wrong := run.Measure(ctx, some)
	r.Results, r.Missing = append(r.Results, results...), append(r.Missing, run.Missing...)
	return wrong
}

func print(w io.Writer, r report.Report, format string) error {
	switch format {
	case "json":
		return printJSON(w, r.Results)
	case "markdown":
		_, err := io.WriteString(w, r.Markdown(nil))
		return err
	default:
		_, err := io.WriteString(w, report.Table(r.Results))
		return err
	}
}

func printJSON(w io.Writer, results []result.Result) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(results)
}
