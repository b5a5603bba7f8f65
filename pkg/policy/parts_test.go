package policy

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestNumbersAreFreeAfterTwoResultsWithoutThem(t *testing.T) {
	n := newNumbering(4, "", "none")
	take := func(key string, result uint64) uint32 {
		t.Helper()
		i, ok := n.take([]byte(key), result, func() string { return "value of " + key })
		if !ok {
			t.Fatalf("no number for %s", key)
		}
		return i
	}
	want := func(got, want uint32) {
		t.Helper()
		if got != want {
			t.Errorf("got number %d, want %d", got, want)
		}
	}
	want(take("a", 1), 1)
	want(take("b", 1), 2)
	want(take("c", 1), 3)
	if _, ok := n.take([]byte("d"), 1, func() string { return "" }); ok {
		t.Error("there is a fourth number below 4")
	}
	n.sweep(2)
	want(take("c", 2), 3)
	want(take("b", 2), 2)
	n.sweep(3)
	want(take("a", 3), 1) // still its own
	n.sweep(4)
	n.sweep(5)
	want(take("d", 5), 2) // b and c were last used by 2: lowest first
	want(take("e", 5), 3)
	if v := n.entries[2].value; v != "value of d" {
		t.Errorf("2 is %q", v)
	}
	n.sweep(8)
	if len(n.entries) != 1 {
		t.Errorf("%d numbers are left", len(n.entries))
	}
}

func TestSpans(t *testing.T) {
	some := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) span {
		a := rapid.SampledFrom([]uint16{0, 1, 2, 5, 6, 7, 9, 65533, 65534, 65535})
		x, y := a.Draw(t, "x"), a.Draw(t, "y")
		return span{min(x, y), max(x, y)}
	}), 0, 4)
	contains := func(list []span, port uint16) bool {
		return slices.ContainsFunc(list, func(s span) bool { return s.from <= port && port <= s.to })
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := some.Draw(t, "a"), some.Draw(t, "b")
		all, rest := newSpans(a...), newSpans(a...).without(newSpans(b...))
		for _, port := range []uint16{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 30000, 65532, 65533, 65534, 65535} {
			if all.contains(port) != contains(a, port) {
				t.Fatalf("%v: %d", all, port)
			}
			if rest.contains(port) != (contains(a, port) && !contains(b, port)) {
				t.Fatalf("%v without %v is %v: %d", a, b, rest, port)
			}
		}
		for _, list := range []spans{all, rest} {
			for i := 1; i < len(list); i++ {
				if int(list[i].from) <= int(list[i-1].to)+1 {
					t.Fatalf("no gap in %v", list)
				}
			}
		}
	})
}

func TestReplaceCallsLeavesTextsAlone(t *testing.T) {
	for _, c := range [][2]string{
		{`all()`, `X`},
		{`!has(a) && (all() || a == 'all()')`, `!has(a) && (X || a == 'all()')`},
		{`a == "it's all()" && all()`, `a == "it's all()" && X`},
		{``, ``},
	} {
		if got := replaceCalls(c[0], "all()", "X"); got != c[1] {
			t.Errorf("%s becomes %s", c[0], got)
		}
	}
}

func TestPrefixes(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.9": "10.0.0.9/32", "10.0.0.9/24": "10.0.0.0/24", "fd00::1": "fd00::1/128", "fd00::1/64": "fd00::/64",
		"::ffff:10.0.0.1": "10.0.0.1/32", "::ffff:10.0.0.9/120": "10.0.0.0/24", "::/0": "::/0",
		"10.0.0.0/33": "", "x": "", "": "", "10.0.0.1/": "",
	} {
		got, err := parsePrefix(text)
		if err != nil && want == "" {
			continue
		}
		if fmt.Sprint(got) != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}
