package report

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"calico-xdp/perf/result"
)

var some = []result.Result{
	{Name: "established/local", About: "there", Ns: 88.25, BaselineNs: 37.5, Ratio: 2.35, Spread: 0.01, Goal: 3.1, Lookups: 7},
	{Name: "classify/rules/10", Ns: 400, BaselineNs: 40, Ratio: 10, Spread: 0.02},
	{Name: "classify/rules/1000", Ns: 450, BaselineNs: 40, Ratio: 11.25, Spread: 0.02},
	{Name: "classify/rules/1000-over-rules/10", Ns: 450, Baseline: "classify/rules/10", BaselineNs: 400, Ratio: 1.13, Goal: 1.1},
	{Name: "first/rules/10", About: "SYNs", Value: 500e3, Unit: "packets/s", Peer: "nft", PeerValue: 400e3, Ratio: 1.25, Spread: 0.05},
	{Name: "first/rules/1000", About: "SYNs", Value: 490e3, Unit: "packets/s", Peer: "nft", PeerValue: 20e3, Ratio: 24.5, Spread: 0.05, Goal: 5, Least: true},
	{Name: "stream/ipip", Value: 9.5, Unit: "Gbit/s", Spread: 0.1},
}

func TestTable(t *testing.T) {
	want := strings.TrimPrefix(`
PATH                               NS     BASELINE           NS     RATIO  SPREAD  GOAL
established/local                  88.2   empty program      37.5   2.35   ±1%     ≤ 3.1 met
classify/rules/10                  400.0  empty program      40.0   10.00  ±2%     
classify/rules/1000                450.0  empty program      40.0   11.25  ±2%     
classify/rules/1000-over-rules/10  450.0  classify/rules/10  400.0  1.13   ±0%     ≤ 1.1 MISSED

TRAFFIC           VALUE   UNIT       PEER  VALUE   RATIO  SPREAD  GOAL
first/rules/10    500.0k  packets/s  nft   400.0k  1.25   ±5%     
first/rules/1000  490.0k  packets/s  nft   20.0k   24.50  ±5%     ≥ 5 met
stream/ipip       9.5     Gbit/s           0       -      ±10%    
`, "\n")
	if got := Table(some); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// A report has a chart of what grows with a number, and one of the paths.
func TestWrite(t *testing.T) {
	dir := t.TempDir()
	r := Report{Machine: Describe(), Results: some, Missing: []string{"ipset: not there"}}
	if err := r.Write(dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "report.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"Linux ", "| established/local | there | 7 | 88.2 |", "| first/rules/1000 | packets/s | 490.0k | nft |",
		"- first/rules/10: SYNs\n", "- ipset: not there\n",
		"](classify-rules.svg)", "](first-rules.svg)", "](paths.svg)",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the report lacks %q:\n%s", want, text)
		}
	}
	for _, name := range []string{"results.json", "paths.svg", "paths.png", "first-rules.svg", "classify-rules.png"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}
