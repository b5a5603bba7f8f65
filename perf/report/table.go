package report

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"calico-xdp/perf/result"
)

// Table is the results for a terminal.
func Table(results []result.Result) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(cells ...string) { fmt.Fprintln(w, strings.Join(cells, "\t")) }
	if hasKind(results, isPath) {
		row("PATH", "NS", "BASELINE", "NS", "RATIO", "SPREAD", "GOAL")
		for _, r := range results {
			if isPath(r) {
				row(r.Name, fmt.Sprintf("%.1f", r.Ns), baseline(r), fmt.Sprintf("%.1f", r.BaselineNs), ratio(r), spread(r), goal(r))
			}
		}
		w.Flush()
		b.WriteByte('\n')
	}
	if hasKind(results, isQuantity) {
		row("TRAFFIC", "VALUE", "UNIT", "PEER", "VALUE", "RATIO", "SPREAD", "GOAL")
		for _, r := range results {
			if isQuantity(r) {
				row(r.Name, figure(r.Value), r.Unit, r.Peer, figure(r.PeerValue), ratio(r), spread(r), goal(r))
			}
		}
		w.Flush()
	}
	return b.String()
}

func isPath(r result.Result) bool     { return r.Unit == "" }
func isQuantity(r result.Result) bool { return r.Unit != "" }

func hasKind(results []result.Result, is func(result.Result) bool) bool {
	for _, r := range results {
		if is(r) {
			return true
		}
	}
	return false
}

func baseline(r result.Result) string {
	if r.Baseline == "" {
		return "empty program"
	}
	return r.Baseline
}

func ratio(r result.Result) string {
	if r.Peer == "" && isQuantity(r) {
		return "-"
	}
	return fmt.Sprintf("%.2f", r.Ratio)
}

func spread(r result.Result) string { return fmt.Sprintf("±%.0f%%", 100*r.Spread) }

func goal(r result.Result) string {
	if r.Goal == 0 {
		return ""
	}
	bound, verdict := "≤", "met"
	if r.Least {
		bound = "≥"
	}
	if !r.Met() {
		verdict = "MISSED"
	}
	return fmt.Sprintf("%s %.3g %s", bound, r.Goal, verdict)
}

// figure writes a number with about four digits.
func figure(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.2fM", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.1fk", v/1e3)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	default:
		return fmt.Sprintf("%.3g", v)
	}
}
