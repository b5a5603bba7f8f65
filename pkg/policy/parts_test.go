package policy

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestNumbersAreFreeAfterTwoResultsWithoutThem(t *testing.T) {
	n := newNumbering[string](4, "", "none")
	take := func(key string) uint32 {
		t.Helper()
		i, fresh, ok := n.take([]byte(key), 1)
		if !ok {
			t.Fatalf("no number for %s", key)
		}
		if fresh {
			n.entries[i].value = "value of " + key
		}
		return i
	}
	want := func(got, want uint32) {
		t.Helper()
		if got != want {
			t.Errorf("got number %d, want %d", got, want)
		}
	}
	sweep := func(result uint64, freed ...uint32) {
		t.Helper()
		if got, _ := n.sweep(result); !slices.Equal(got, freed) {
			t.Errorf("result %d frees %v, want %v", result, got, freed)
		}
	}
	want(take("a"), 1)
	want(take("b"), 2)
	want(take("c"), 3)
	if _, _, ok := n.take([]byte("d"), 1); ok {
		t.Error("there is a fourth number below 4")
	}
	want(take(""), 0)
	n.drop(0, 1, 1)
	n.drop(1, 1, 2)
	n.drop(3, 1, 2)
	n.drop(2, 1, 2)
	sweep(3)
	want(take("a"), 1) // still its own
	n.drop(1, 1, 3)
	sweep(4, 3, 2)
	want(take("d"), 2) // the lowest first
	want(take("e"), 3)
	if v := n.entries[2].value; v != "value of d" {
		t.Errorf("2 is %q", v)
	}
	sweep(5, 1)
	sweep(9)
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
