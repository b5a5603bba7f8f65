package micro

import (
	"regexp"
	"testing"

	"calico-xdp/perf/bed"
	"calico-xdp/tools/testbed"
)

// What a scenario needs stands before it, and is selected with it.
func TestScenariosNeedWhatThereIs(t *testing.T) {
	seen := make(map[string]bool)
	for _, s := range All() {
		for _, needed := range []string{s.Of, s.Baseline, s.Like} {
			if needed != "" && !seen[needed] {
				t.Errorf("%s needs %s before it", s.Name, needed)
			}
		}
		if seen[s.Name] {
			t.Errorf("%s: twice", s.Name)
		}
		seen[s.Name] = true
	}
	if got := Select(named(`^classify/rules/10000-over`)); len(got) != 3 || got[0].Name != "classify/rules/10" {
		t.Errorf("selected: %v", got)
	}
}

// A short run of a path of each kind: in a loop, by single runs, on fresh packets, in XDP.
func TestRun(t *testing.T) {
	chosen := Select(named(`^(established/local/v4|established/remote/vxlan/v4|open/local|xdp/pass|classify/networks/10)$`))
	err := bed.Try(func(s string) { t.Log(s) }, func(s testbed.T) error {
		results, wrong, err := Run(t.Context(), s, chosen, Effort{Passes: 2, Rounds: 20}, func(string) {})
		for _, w := range wrong {
			t.Error(w)
		}
		if len(results) != len(chosen) {
			t.Errorf("%d results of %d scenarios", len(results), len(chosen))
		}
		for _, r := range results {
			if r.Ns <= 0 || r.BaselineNs <= 0 || r.Ratio <= 0 || r.Lookups < 2 {
				t.Errorf("%+v", r)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func named(pattern string) func(Scenario) bool {
	return func(s Scenario) bool { return regexp.MustCompile(pattern).MatchString(s.Name) }
}
