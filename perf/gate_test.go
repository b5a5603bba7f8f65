package main

import (
	"errors"
	"strings"
	"testing"

	"calico-xdp/perf/micro"
	"calico-xdp/perf/result"
)

// A ratio that stays worse than its tolerance fails the gate; one that was worse only when
// the machine was busy does not, nor one that is better.
func TestGate(t *testing.T) {
	baseline := []result.Result{{Name: "a", Ratio: 2, Tolerance: 0.3}, {Name: "b", Ratio: 5, Tolerance: 0.5}}
	for _, test := range []struct {
		name   string
		a, b   []float64 // by measurement; the last one stays
		fails  string
		rounds int
	}{
		{"as it was", []float64{2}, []float64{5}, "", 1},
		{"within the tolerance", []float64{2.5}, []float64{7.4}, "", 1},
		{"better", []float64{1}, []float64{2}, "", 1},
		{"worse", []float64{2.7}, []float64{5}, "a", gateTries},
		{"both worse", []float64{4}, []float64{8}, "a, b", gateTries},
		{"worse once", []float64{4, 2}, []float64{5}, "", 2},
		{"worse in turns", []float64{4, 2}, []float64{5, 9}, "", 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			asked := 0
			at := func(v []float64, i int) float64 { return v[min(i, len(v)-1)] }
			_, err := holds(baseline, func(names []string) (out []result.Result, err error) {
				for _, n := range names {
					v := test.a
					if n == "b" {
						v = test.b
					}
					out = append(out, result.Result{Name: n, Ratio: at(v, asked)})
				}
				asked++
				return out, nil
			}, func(string) {})
			if (err != nil) != (test.fails != "") || err != nil && !strings.HasSuffix(err.Error(), ": "+test.fails) {
				t.Errorf("got %v, want a failure of %q", err, test.fails)
			}
			if asked != test.rounds {
				t.Errorf("measured %d times, want %d", asked, test.rounds)
			}
		})
	}
}

// What cannot be measured is no success.
func TestGateWithoutFigures(t *testing.T) {
	baseline := []result.Result{{Name: "a", Ratio: 2, Tolerance: 0.3}}
	for name, measure := range map[string]measurer{
		"gone":    func([]string) ([]result.Result, error) { return nil, nil },
		"failing": func([]string) ([]result.Result, error) { return nil, errors.New("no kernel") },
	} {
		if _, err := holds(baseline, measure, func(string) {}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// The committed baseline names scenarios that there are, with ratios and tolerances.
func TestBaseline(t *testing.T) {
	baseline, err := readResults("baseline.json")
	if err != nil {
		t.Fatal(err)
	}
	if len(baseline) < 10 {
		t.Errorf("only %d paths", len(baseline))
	}
	there := make(map[string]bool)
	for _, s := range micro.All() {
		there[s.Name] = true
	}
	for _, r := range baseline {
		if !there[r.Name] || r.Ratio <= 0 || r.Tolerance <= 0 {
			t.Errorf("%s: there %v, ratio %v, tolerance %v", r.Name, there[r.Name], r.Ratio, r.Tolerance)
		}
	}
}
