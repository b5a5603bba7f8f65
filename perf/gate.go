package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"calico-xdp/perf/report"
	"calico-xdp/perf/result"
)

// The gate measures the paths that a committed file has ratios of, and fails if one has
// become worse than its tolerance there. What is worse is measured again before that: a
// machine that others use, too, can spoil a figure, a program that has become slower is so
// each time.

// gateTries is how often a path is measured before it is said to be worse.
const gateTries = 3

const gateUsage = `Usage: perf gate [flags]

Measures the paths of a baseline and fails if a ratio to the empty program is worse than
the tolerance that stands beside it.

`

// measurer measures the paths of these names.
type measurer func(names []string) ([]result.Result, error)

func gate(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("perf gate", flag.ContinueOnError)
	file := f.String("baseline", "perf/baseline.json", "`file` with the ratios to hold")
	write := f.Bool("write", false, "write the ratios as they are now into the file, with the tolerances that it has")
	f.Usage = func() {
		io.WriteString(f.Output(), gateUsage)
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		f.Usage()
		return fmt.Errorf("gate: unexpected argument %q", f.Arg(0))
	}
	baseline, err := readResults(*file)
	if err != nil {
		return fmt.Errorf("gate: %w", err)
	}
	begin := time.Now()
	progress := func(text string) { fmt.Fprintf(os.Stderr, "%4.0fs %s\n", time.Since(begin).Seconds(), text) }
	measure := func(names []string) ([]result.Result, error) {
		quoted := make([]string, len(names))
		for i, n := range names {
			quoted[i] = regexp.QuoteMeta(n)
		}
		o := options{quick: true, parts: parts()[:1], only: regexp.MustCompile("^(" + strings.Join(quoted, "|") + ")$")}
		var r report.Report
		wrong, err := measureMicro(ctx, o, &r, progress)
		return r.Results, errors.Join(append(wrong, err)...)
	}
	if *write {
		return writeBaseline(*file, baseline, measure)
	}
	changes, err := holds(baseline, measure, progress)
	for _, c := range changes {
		fmt.Printf("%-45s %6.2f, was %.2f (%+.0f%%, %.0f%% allowed) %s\n",
			c.Name, c.New.Ratio, c.Old.Ratio, 100*c.By, 100*c.Old.Tolerance, c.Verdict)
	}
	return err
}

// holds measures what the baseline has, up to gateTries times as long as something is
// worse. Of each path the best measurement counts.
func holds(baseline []result.Result, measure measurer, progress func(string)) ([]result.Change, error) {
	best := make(map[string]result.Result)
	names := namesOf(baseline)
	var changes []result.Change
	for try := range gateTries {
		if try > 0 {
			progress(fmt.Sprintf("gate: %d paths once more: %s", len(names), strings.Join(names, ", ")))
		}
		found, err := measure(names)
		if err != nil {
			return nil, err
		}
		for _, r := range found {
			if was, ok := best[r.Name]; !ok || r.Ratio < was.Ratio {
				best[r.Name] = r
			}
		}
		changes, names = nil, nil
		for _, was := range baseline {
			now, ok := best[was.Name]
			if !ok {
				return nil, fmt.Errorf("gate: %s has not been measured", was.Name)
			}
			c := result.Change{Name: was.Name, Old: was, New: now, By: now.Ratio/was.Ratio - 1, Verdict: result.Same}
			if c.By > was.Tolerance {
				c.Verdict = result.Worse
				names = append(names, c.Name)
			}
			changes = append(changes, c)
		}
		if len(names) == 0 {
			return changes, nil
		}
	}
	return changes, fmt.Errorf("gate: worse than the baseline allows, %d times in a row: %s", gateTries, strings.Join(names, ", "))
}

func namesOf(results []result.Result) (names []string) {
	for _, r := range results {
		names = append(names, r.Name)
	}
	return names
}

func readResults(file string) (out []result.Result, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &out); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return out, nil
}

// writeBaseline keeps the names and tolerances of a baseline, and has it say the ratios as
// they are.
func writeBaseline(file string, baseline []result.Result, measure measurer) error {
	found, err := measure(namesOf(baseline))
	if err != nil {
		return err
	}
	type line struct {
		Name      string  `json:"name"`
		Ratio     float64 `json:"ratio"`
		Tolerance float64 `json:"tolerance"`
	}
	var lines []line
	for _, was := range baseline {
		i := slices.IndexFunc(found, func(r result.Result) bool { return r.Name == was.Name })
		if i < 0 {
			return fmt.Errorf("gate: %s has not been measured", was.Name)
		}
		lines = append(lines, line{was.Name, math.Round(100*found[i].Ratio) / 100, was.Tolerance})
	}
	data, err := json.MarshalIndent(lines, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(data, '\n'), 0o644)
}
