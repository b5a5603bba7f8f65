package report

import (
	"fmt"
	"strings"
	"time"

	"calico-xdp/perf/result"
)

// Markdown is the whole report. charts are files beside it.
func (r Report) Markdown(charts []string) string {
	var b strings.Builder
	b.WriteString("# What it costs\n\n")
	for _, l := range r.Machine.lines() {
		fmt.Fprintf(&b, "- %s\n", l)
	}
	kind := "full"
	if r.Quick {
		kind = "quick"
	}
	fmt.Fprintf(&b, "- a %s run of %s\n", kind, r.Took.Round(time.Second))
	if r.Machine.Busy() {
		b.WriteString("- **others used the machine meanwhile**\n")
	}
	b.WriteString("\nRatios hold elsewhere, nanoseconds and rates do not. Spread is how far the repetitions' ratios are from their median, at most.\n")
	if hasKind(r.Results, isPath) {
		b.WriteString("\n## Paths\n\nNanoseconds per packet (BPF_PROG_TEST_RUN), beside the baseline in the same run.\n\n" +
			"| path | what | lookups | ns | baseline | ns | ratio | spread | goal |\n|---|---|---|---|---|---|---|---|---|\n")
		for _, x := range r.Results {
			if isPath(x) {
				lookups := ""
				if x.Lookups > 0 {
					lookups = fmt.Sprint(x.Lookups)
				}
				fmt.Fprintf(&b, "| %s | %s | %s | %.1f | %s | %.1f | %s | %s | %s |\n",
					x.Name, x.About, lookups, x.Ns, baseline(x), x.BaselineNs, ratio(x), spread(x), goal(x))
			}
		}
	}
	if hasKind(r.Results, isQuantity) {
		b.WriteString("\n## Traffic\n\nReal packets between network namespaces, in turns with the peer.\n\n" +
			"| traffic | unit | calico-xdp | peer | | ratio | spread | goal |\n|---|---|---|---|---|---|---|---|\n")
		last := ""
		for _, x := range r.Results {
			if isQuantity(x) {
				name := x.Name
				if name == last {
					name = ""
				}
				last = x.Name
				fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s |\n",
					name, x.Unit, figure(x.Value), x.Peer, figure(x.PeerValue), ratio(x), spread(x), goal(x))
			}
		}
		b.WriteString("\n" + legend(r.Results))
	}
	if len(r.Missing) > 0 {
		b.WriteString("\n## Not measured\n\n")
		for _, m := range r.Missing {
			fmt.Fprintf(&b, "- %s\n", m)
		}
	}
	for _, c := range charts {
		fmt.Fprintf(&b, "\n![%s](%s)\n", strings.TrimSuffix(c, ".svg"), c)
	}
	return b.String()
}

// legend says what each kind of traffic is, once.
func legend(results []result.Result) string {
	var b strings.Builder
	said := make(map[string]bool)
	for _, x := range results {
		if isQuantity(x) && x.About != "" && !said[x.About] {
			said[x.About] = true
			fmt.Fprintf(&b, "- %s: %s\n", x.Name, x.About)
		}
	}
	return b.String()
}
