package result

import (
	"math"
	"slices"
)

// Median is the middle of the values.
func Median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	if n == 0 {
		return 0
	}
	return (s[(n-1)/2] + s[n/2]) / 2
}

// Middle is the mean of the middle half of the values: as little moved by single
// disturbances as the median, and not confined to whole nanoseconds.
func Middle(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if len(s) == 0 {
		return 0
	}
	cut := len(s) / 4
	s = s[cut : len(s)-cut]
	sum := 0.0
	for _, x := range s {
		sum += x
	}
	return sum / float64(len(s))
}

// Spread is how far the values are from their median, at most, as a part of it.
func Spread(v []float64) float64 {
	m, most := Median(v), 0.0
	for _, x := range v {
		most = max(most, math.Abs(x-m))
	}
	if m == 0 {
		return 0
	}
	return most / math.Abs(m)
}

// Quantile is the smallest value that a part q of the values does not exceed.
func Quantile(v []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if len(s) == 0 {
		return 0
	}
	i := int(math.Ceil(q*float64(len(s)))) - 1
	return s[min(max(i, 0), len(s)-1)]
}

// Ratios divides value by value.
func Ratios(a, b []float64) []float64 {
	out := make([]float64, min(len(a), len(b)))
	for i := range out {
		out[i] = a[i] / b[i]
	}
	return out
}
