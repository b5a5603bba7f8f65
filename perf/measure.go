package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"calico-xdp/perf/bed"
	"calico-xdp/perf/macro"
	"calico-xdp/perf/micro"
	"calico-xdp/perf/report"
	"calico-xdp/perf/result"
	"calico-xdp/tools/testbed"
)

// Efforts: quick has to be done within a minute, with the time to compile the harness.
var (
	quickMicro = micro.Effort{Passes: 5, Rounds: 160}
	fullMicro  = micro.Effort{Passes: 9, Rounds: 800}
	quickMacro = macro.Effort{Repetitions: 3, Sample: 150 * time.Millisecond}
	fullMacro  = macro.Effort{Repetitions: 7, Sample: 300 * time.Millisecond}
)

func measure(args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("network namespaces and BPF need root")
	}
	progress := func(text string) { fmt.Fprintln(os.Stderr, text) }
	r := report.Report{Machine: report.Describe(), Quick: o.quick}
	if r.Machine.Busy() {
		progress(fmt.Sprintf("perf: the machine is busy (load %.1f on %d CPUs): spreads will be wide", r.Machine.Load, r.Machine.CPUs))
	}
	begin := time.Now()
	if err := measureMicro(o, &r, progress); err != nil {
		return err
	}
	if err := measureMacro(o, &r, progress); err != nil {
		return err
	}
	r.Took = time.Since(begin)
	if len(r.Results) == 0 {
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
	return print(os.Stdout, r, o.format)
}

func measureMicro(o options, r *report.Report, progress func(string)) error {
	var some []micro.Scenario
	all := micro.All()
	for _, s := range all {
		if !o.only.MatchString(s.Name) {
			continue
		}
		// What it is compared with has to be there, and before it.
		if i := slices.IndexFunc(all, func(b micro.Scenario) bool { return b.Name == s.Baseline }); i >= 0 &&
			!slices.ContainsFunc(some, func(b micro.Scenario) bool { return b.Name == s.Baseline }) {
			some = append(some, all[i])
		}
		some = append(some, s)
	}
	if len(some) == 0 {
		return nil
	}
	effort := fullMicro
	if o.quick {
		effort = quickMicro
	}
	return bed.Try(progress, func(t testbed.T) error {
		results, err := micro.Run(t, some, effort, progress)
		r.Results = append(r.Results, results...)
		return err
	})
}

func measureMacro(o options, r *report.Report, progress func(string)) error {
	var some []macro.Scenario
	for _, s := range macro.All() {
		if o.only.MatchString(s.Name) && (s.Quick || !o.quick || o.only.String() != "") {
			some = append(some, s)
		}
	}
	run := macro.Run{Effort: fullMacro, Progress: progress}
	if o.quick {
		run.Effort = quickMacro
	}
	results, err := run.Measure(some)
	r.Results, r.Missing = append(r.Results, results...), append(r.Missing, run.Missing...)
	return err
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
