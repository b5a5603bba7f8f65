package result

import (
	"math"
	"slices"
	"testing"
)

func TestStatistics(t *testing.T) {
	for _, c := range []struct {
		name                   string
		values                 []float64
		median, middle, spread float64
	}{
		{"none", nil, 0, 0, 0},
		{"one", []float64{3}, 3, 3, 0},
		{"odd", []float64{9, 1, 2}, 2, 4, 3.5},
		{"even", []float64{4, 1, 2, 3}, 2.5, 2.5, 0.6},
		{"an outlier", []float64{10, 11, 12, 13, 1000, 10, 11, 12}, 11.5, 11.5, 988.5 / 11.5},
	} {
		if got := Median(c.values); got != c.median {
			t.Errorf("%s: median %v, want %v", c.name, got, c.median)
		}
		if got := Middle(c.values); math.Abs(got-c.middle) > 1e-9 {
			t.Errorf("%s: middle %v, want %v", c.name, got, c.middle)
		}
		if got := Spread(c.values); math.Abs(got-c.spread) > 1e-9 {
			t.Errorf("%s: spread %v, want %v", c.name, got, c.spread)
		}
	}
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for q, want := range map[float64]float64{0: 1, 0.5: 50, 0.99: 99, 0.999: 100, 1: 100} {
		if got := Quantile(hundred, q); got != want {
			t.Errorf("quantile %v: %v, want %v", q, got, want)
		}
	}
}

func TestCompare(t *testing.T) {
	path := func(name string, ratio, spread float64) Result {
		return Result{Name: name, Ns: 40 * ratio, BaselineNs: 40, Ratio: ratio, Spread: spread}
	}
	rate := func(name, peer string, ratio float64) Result {
		return Result{Name: name, Unit: "packets/s", Peer: peer, Value: ratio, PeerValue: 1, Ratio: ratio, Spread: 0.01}
	}
	strict := path("strict", 2, 0)
	strict.Tolerance = 0.02
	stricter := strict
	stricter.Ratio = 2.1
	old := []Result{
		path("as it was", 2, 0.01), path("noisy", 2, 0.2), path("slower", 2, 0.01), path("faster", 2, 0.01), path("gone", 2, 0),
		rate("rate", "kernel", 2), rate("rate", "nft", 2), strict,
	}
	now := []Result{
		path("as it was", 2.1, 0.01), path("noisy", 2.7, 0.2), path("slower", 2.6, 0.01), path("faster", 1.5, 0.01), path("new", 1, 0),
		rate("rate", "kernel", 1.5), rate("rate", "nft", 2.5), stricter,
	}
	want := []string{
		"as it was  ~", "faster  better", "gone  gone", "new  new", "noisy  ~",
		"rate kernel WORSE", "rate nft better", "slower  WORSE", "strict  WORSE",
	}
	var got []string
	for _, c := range Compare(old, now, 0.1) {
		got = append(got, c.Name+" "+c.Peer+" "+string(c.Verdict))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%q, want\n%q", got, want)
	}
}

func TestGoals(t *testing.T) {
	for _, c := range []struct {
		r    Result
		want bool
	}{
		{Result{Ratio: 9}, true},
		{Result{Ratio: 3, Goal: 3.1}, true},
		{Result{Ratio: 3.2, Goal: 3.1}, false},
		{Result{Ratio: 1.7, Goal: 1.6, Least: true}, true},
		{Result{Ratio: 1.5, Goal: 1.6, Least: true}, false},
	} {
		if c.r.Met() != c.want {
			t.Errorf("%+v: met %v", c.r, c.r.Met())
		}
	}
}
