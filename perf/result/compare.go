package result

import (
	"cmp"
	"slices"
	"strings"
)

// Change is one figure in two runs.
type Change struct {
	Name, Peer string
	Old, New   Result
	// By is how much the new ratio is above the old one, as a part of it.
	By float64
	// Verdict is what to think of it.
	Verdict Verdict
}

// Verdict says what a change is.
type Verdict string

// Of these only Worse is a regression.
const (
	Same    Verdict = "~" // within what the two spreads and the tolerance allow
	Better  Verdict = "better"
	Worse   Verdict = "WORSE"
	Added   Verdict = "new"
	Removed Verdict = "gone"
)

// Compare compares two runs by ratio: nanoseconds and rates are those of a machine, and
// of its mood.
func Compare(old, new []Result, tolerance float64) []Change {
	key := func(r Result) [3]string { return [3]string{r.Name, r.Peer, r.Baseline} }
	before := make(map[[3]string]Result)
	for _, r := range old {
		before[key(r)] = r
	}
	var out []Change
	for _, r := range new {
		c := Change{Name: r.Name, Peer: r.Peer, New: r, Verdict: Added}
		if was, ok := before[key(r)]; ok {
			delete(before, key(r))
			c.Old = was
			c.By, c.Verdict = judge(was, r, tolerance)
		}
		out = append(out, c)
	}
	for _, r := range before {
		out = append(out, Change{Name: r.Name, Peer: r.Peer, Old: r, Verdict: Removed})
	}
	slices.SortStableFunc(out, func(a, b Change) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Peer, b.Peer))
	})
	return out
}

func judge(old, new Result, tolerance float64) (float64, Verdict) {
	if old.Ratio == 0 {
		return 0, Same
	}
	by := new.Ratio/old.Ratio - 1
	allowed := max(tolerance, old.Spread+new.Spread)
	if new.Tolerance > 0 {
		allowed = max(new.Tolerance, old.Spread+new.Spread)
	}
	switch gain := by * float64(new.Better()); {
	case gain > allowed:
		return by, Better
	case gain < -allowed:
		return by, Worse
	}
	return by, Same
}
