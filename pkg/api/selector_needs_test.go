package api

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestSelectorNeeds(t *testing.T) {
	for in, want := range map[string]string{
		"":                                     "[]",
		"a == 'b'":                             "[[a=b]]",
		"a != 'b'":                             "[]",
		"has(a)":                               "[[a]]",
		"!has(a)":                              "[]",
		"!(a == 'b')":                          "[]",
		"a in {'b', 'c'}":                      "[[a=b a=c]]",
		"a in {}":                              "[[]]",
		"a not in {'b'}":                       "[]",
		"a contains 'b'":                       "[[a]]",
		"a == 'b' && has(c) && !has(d)":        "[[a=b] [c]]",
		"a == 'b' || c == 'd'":                 "[[a=b c=d]]",
		"a == 'b' || !has(c)":                  "[]",
		"(has(a) && b == 'c') || has(d)":       "[[b=c d]]",
		"(a == 'b' || a == 'c') && global()":   "[[a=b a=c]]",
		"(has(x) && x in {'y','z'}) || has(x)": "[[x=y x=z x]]",
	} {
		s, err := ParseSelector(in)
		if err != nil {
			t.Fatal(err)
		}
		var got [][]string
		for _, list := range s.Needs() {
			texts := make([]string, len(list))
			for i, l := range list {
				if texts[i] = l.Key + "=" + l.Value; l.Any {
					texts[i] = l.Key
				}
			}
			got = append(got, texts)
		}
		if fmt.Sprint(got) != want {
			t.Errorf("%q: %v, want %s", in, got, want)
		}
	}
	if (&Selector{}).Needs() != nil {
		t.Error("the zero selector needs something")
	}
}

func TestSelectorHoldsForNothingWithoutItsNeeds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := drawOracle(t, 4)
		s, err := ParseSelector(o.text)
		if err != nil {
			t.Fatal(err)
		}
		labels := rapid.MapOf(
			rapid.SampledFrom([]string{"a", "b/c", "d.e-f", "in", "has"}),
			rapid.SampledFrom([]string{"", "x", "xy", "it's", "y x", "yx"}),
		)
		for range 5 {
			m := labels.Draw(t, "labels")
			if !s.Matches(m) {
				continue
			}
			for _, list := range s.Needs() {
				if !slices.ContainsFunc(list, func(l Label) bool { v, ok := m[l.Key]; return ok && (l.Any || v == l.Value) }) {
					t.Fatalf("%q holds for %v without any of %v", o.text, m, list)
				}
			}
		}
	})
}
