package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"calico-xdp/perf/result"
)

// compare prints two runs side by side. It is an error if a ratio has become worse by
// more than the runs' spreads and the tolerance.
func compare(args []string) error {
	f := flag.NewFlagSet("perf compare", flag.ContinueOnError)
	tolerance := f.Float64("tolerance", 0.10, "how much worse a ratio may become, as a part of it")
	only := f.Bool("changed", false, "print only what has changed")
	f.Usage = func() {
		io.WriteString(f.Output(), "Usage: perf compare [flags] OLD.json NEW.json\n\n")
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 2 {
		f.Usage()
		return fmt.Errorf("compare: want two files")
	}
	runs := make([][]result.Result, 2)
	for i := range runs {
		var err error
		if runs[i], err = readResults(f.Arg(i)); err != nil {
			return err
		}
	}
	worse := 0
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tPEER\tOLD RATIO\tNEW RATIO\tCHANGE\t")
	for _, c := range result.Compare(runs[0], runs[1], *tolerance) {
		if c.Verdict == result.Worse {
			worse++
		}
		if *only && c.Verdict == result.Same {
			continue
		}
		by := ""
		if c.Verdict != result.Added && c.Verdict != result.Removed {
			by = fmt.Sprintf("%+.1f%%", 100*c.By)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", c.Name, c.Peer, ratioOf(c.Old), ratioOf(c.New), by, c.Verdict)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if worse > 0 {
		return fmt.Errorf("%d ratios are worse", worse)
	}
	return nil
}

func ratioOf(r result.Result) string {
	if r.Name == "" {
		return ""
	}
	return fmt.Sprintf("%.2f ±%.0f%%", r.Ratio, 100*r.Spread)
}
