// Perf measures what the product costs, beside others that do the same work, in one
// run: single paths through the programs beside a program that does nothing, and real
// packets beside the kernel's own forwarding and filtering.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

const usage = `Usage: perf [flags]                    measure (as root)
       perf compare OLD.json NEW.json  say what has changed between two runs
       perf across ADDRESS ADDRESS     measure between two machines
       perf gate                       fail if a path is slower than a committed baseline allows

`

func main() {
	// What has been made is taken away again: so an interrupt ends the run in order.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:])
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "perf:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] == "compare" {
		return compare(args[1:])
	}
	if len(args) > 0 && args[0] == "across" {
		return across(ctx, args[1:])
	}
	if len(args) > 0 && args[0] == "gate" {
		return gate(ctx, args[1:])
	}
	return measure(ctx, args)
}

// parts are what a run is made of: paths by themselves, real packets, the control
// plane. A quick run has no time for the last one, if it is not asked for.
func parts() []string { return []string{"micro", "macro", "control"} }

// options are what the command line says of a run.
type options struct {
	quick  bool
	parts  []string
	format string
	only   *regexp.Regexp
	out    string
}

func (o options) has(part string) bool { return slices.Contains(o.parts, part) }

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("perf", flag.ContinueOnError)
	f.Usage = func() {
		io.WriteString(f.Output(), usage)
		f.PrintDefaults()
	}
	f.BoolVar(&o.quick, "quick", false, "fewer scenarios and shorter: less than 50 seconds")
	part := f.String("part", "", "measure only these `parts`: some of "+strings.Join(parts(), ","))
	f.StringVar(&o.format, "o", "table", "`format` of the results on standard output: table, json or markdown")
	only := f.String("only", "", "measure only the scenarios whose names match this `regexp`; what --quick leaves out, too")
	f.StringVar(&o.out, "out", "", "write results.json, report.md and charts into this `directory`")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		f.Usage()
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	switch o.format {
	case "table", "json", "markdown":
	default:
		return o, fmt.Errorf("format %q: want table, json or markdown", o.format)
	}
	switch {
	case *part != "":
		o.parts = strings.Split(*part, ",")
	case o.quick:
		o.parts = parts()[:2]
	default:
		o.parts = parts()
	}
	for _, p := range o.parts {
		if !slices.Contains(parts(), p) {
			return o, fmt.Errorf("part %q: want some of %s", p, strings.Join(parts(), ","))
		}
	}
	var err error
	o.only, err = regexp.Compile(*only)
	return o, err
}
