package api

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestSelectorMeaning(t *testing.T) {
	web := map[string]string{"app": "web", "tier": "front end", "projectcalico.org/namespace": "prod", "empty": "", "it's": "x", "q": "it's"}
	for _, c := range []struct {
		selector string
		want     bool
	}{
		{"", true},
		{" \t", true},
		{"all()", true},
		{"all( )", true},
		{"global()", true},
		{"!all()", false},
		{"has(app)", true},
		{"has( app\t)", true},
		{"!has(app)", false},
		{"has(none)", false},
		{"has(projectcalico.org/namespace)", true},
		{`app == "web"`, true},
		{"app=='web'", true},
		{"app == 'Web'", false},
		{"none == 'web'", false},
		{"none == ''", false},
		{"empty == ''", true},
		{"app != 'web'", false},
		{"app != 'db'", true},
		{"none != 'web'", true}, // without the label too
		{"app in {'db', 'web'}", true},
		{"app in {'db', 'web',}", true},
		{"app in{'db'}", false},
		{"app in {}", false},
		{"none in {'web'}", false},
		{"app not in {'web'}", false},
		{"app notin {'db'}", true},
		{"app not  in {'db'}", true},
		{"none not in {'web'}", true}, // without the label too
		{"app not in {}", true},
		{"app contains 'e'", true},
		{"app contains ''", true},
		{"none contains ''", false},
		{"app contains 'x'", false},
		{"app starts with 'we'", true},
		{"app startswith 'eb'", false},
		{"app ends with 'eb'", true},
		{"app ends\twith 'we'", false},
		{`q == "it's"`, true},
		{`tier == 'front end'`, true},
		{"app == 'web' && tier == 'front end'", true},
		{"app == 'web' && has(none)", false},
		{"has(none) || app == 'web'", true},
		{"has(app) || has(none) && has(none)", true}, // && binds closer
		{"(has(app) || has(none)) && has(none)", false},
		{"!has(none) && has(app)", true},
		{"!(has(none) || has(app))", false},
		{"!!has(app)", true},
		{"!!!has(app)", false},
		{"! has(none)", true},
		{"!none == 'x'", true}, // ! applies to the whole test
		{"((((has(app)))))", true},
		{"all == 'x'", false}, // a label may be called like a function
		{"has == 'x' || in in {'x'} || not != 'x'", true},
	} {
		s, err := ParseSelector(c.selector)
		if err != nil {
			t.Error(err)
			continue
		}
		if got := s.Matches(web); got != c.want {
			t.Errorf("%q: %v, want %v", c.selector, got, c.want)
		}
		again, err := ParseSelector(s.String())
		if err != nil {
			t.Errorf("%q as %q: %v", c.selector, s, err)
			continue
		}
		if again.String() != s.String() || again.Matches(web) != c.want {
			t.Errorf("%q: canonical %q, then %q", c.selector, s, again)
		}
	}
}

func TestSelectorCanonicalForm(t *testing.T) {
	for in, want := range map[string]string{
		"":                                   "all()",
		`a=="b"`:                             "a == 'b'",
		`a == "it's"`:                        `a == "it's"`,
		"a in {'c','b','c'}":                 "a in {'b', 'c'}",
		"a notin{}":                          "a not in {}",
		"((a == 'b'))":                       "a == 'b'",
		"(a == 'b' && has(c)) && has(d)":     "a == 'b' && has(c) && has(d)",
		"(has(a) || has(b)) || has(c)":       "has(a) || has(b) || has(c)",
		"(has(a) || has(b)) && has(c)":       "(has(a) || has(b)) && has(c)",
		"(has(a) && has(b)) || has(c)":       "has(a) && has(b) || has(c)",
		"!(has(a)&&has(b))":                  "!(has(a) && has(b))",
		"!!has(a)":                           "has(a)",
		"!(!has(a))":                         "has(a)",
		"a starts   with 'x'||a endswith'y'": "a starts with 'x' || a ends with 'y'",
	} {
		s, err := ParseSelector(in)
		if err != nil {
			t.Error(err)
		} else if s.String() != want {
			t.Errorf("%q: %q, want %q", in, s, want)
		}
	}
}

func TestSelectorRefuses(t *testing.T) {
	for in, want := range map[string]string{
		"a":                 "expected an operator at the end",
		"a = 'b'":           `expected an operator at offset 2, near "= 'b'"`,
		"a == b":            `expected a quoted value at offset 5, near "b"`,
		"a == 'b":           "the quote at offset 5 is not closed",
		"a == 'b\"":         "is not closed",
		"a == 'b' &&":       "expected a label name at the end",
		"a == 'b' & has(c)": `expected the end at offset 9, near "& has(c)"`,
		"&& a == 'b'":       "expected a label name at offset 0",
		"(a == 'b'":         "expected ) at the end",
		"a == 'b')":         "expected the end",
		"has(a":             "expected ) at the end",
		"has()":             "expected a label name",
		"has (a)":           "expected an operator", // a label called "has"
		"all(x)":            "expected )",
		"a in 'b'":          "expected {",
		"a in {'b' 'c'}":    "expected }",
		"a in {b}":          "expected }",
		"a not 'b'":         "expected an operator",
		"a starts 'b'":      "expected an operator",
		"a == 'b'\n":        "expected the end",
		"ä == 'b'":          "expected a label name",

		"has(" + strings.Repeat("k", 513) + ")": "a label name is longer than 512",
		"a == 'b' has(c)":                       "expected the end",
		"!":                                     "expected a label name at the end",
		"'a' == b":                              "expected a label name",
		"a == 'b' || || c":                      "expected a label name",
		"a === 'b'":                             "expected a quoted value",
		strings.Repeat("(", 600) + "all()" + strings.Repeat(")", 600): "too deeply nested",
	} {
		if _, err := ParseSelector(in); err == nil {
			t.Errorf("%q: accepted", in)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", in, err, want)
		}
	}
}

func TestSelectorForm(t *testing.T) {
	for in, want := range map[string][2]bool{
		"": {true, false}, "(all())": {true, false}, "global( )": {false, true}, "!all()": {false, false}, "all() && all()": {false, false},
	} {
		s, err := ParseSelector(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := [2]bool{s.IsAll(), s.IsGlobal()}; got != want {
			t.Errorf("%q: IsAll, IsGlobal = %v, want %v", in, got, want)
		}
	}
	if (&Selector{}).Matches(nil) {
		t.Error("the zero selector matches")
	}
}

// oracle is an expression that is written with as many parentheses as can be
// and evaluated the slow way, so that the parser's reading can be checked.
type oracle struct {
	text  string
	holds func(map[string]string) bool
}

func drawOracle(t *rapid.T, depth int) oracle {
	key := rapid.SampledFrom([]string{"a", "b/c", "d.e-f", "in", "has"}).Draw(t, "key")
	value := rapid.SampledFrom([]string{"", "x", "xy", "it's", "y x", "&&", ")"})
	blank := rapid.SampledFrom([]string{" ", "", "\t ", "  "})
	sp := func() string { return blank.Draw(t, "blank") }
	quote := func(s string) string {
		if strings.Contains(s, "'") {
			return `"` + s + `"`
		}
		return "'" + s + "'"
	}
	n := 9
	if depth == 0 {
		n = 6
	}
	switch v := value.Draw(t, "value"); rapid.IntRange(0, n).Draw(t, "form") {
	case 0:
		return oracle{"all(" + sp() + ")", func(map[string]string) bool { return true }}
	case 1:
		return oracle{"has(" + sp() + key + sp() + ")", func(m map[string]string) bool { _, ok := m[key]; return ok }}
	case 2:
		return oracle{key + sp() + "==" + sp() + quote(v), func(m map[string]string) bool { x, ok := m[key]; return ok && x == v }}
	case 3:
		return oracle{key + sp() + "!=" + sp() + quote(v), func(m map[string]string) bool { x, ok := m[key]; return !(ok && x == v) }}
	case 4:
		return oracle{key + " contains" + sp() + quote(v), func(m map[string]string) bool {
			x, ok := m[key]
			return ok && strings.Contains(x, v)
		}}
	case 5:
		end := rapid.Bool().Draw(t, "end")
		word, f := "starts", strings.HasPrefix
		if end {
			word, f = "ends", strings.HasSuffix
		}
		return oracle{key + " " + word + sp() + "with" + sp() + quote(v), func(m map[string]string) bool { x, ok := m[key]; return ok && f(x, v) }}
	case 6:
		values := rapid.SliceOfN(value, 0, 3).Draw(t, "values")
		negated := rapid.Bool().Draw(t, "negated")
		text := key + " in" + sp() + "{"
		if negated {
			text = key + " not" + sp() + "in" + sp() + "{"
		}
		for _, v := range values {
			text += sp() + quote(v) + sp() + ","
		}
		return oracle{text + sp() + "}", func(m map[string]string) bool {
			x, ok := m[key]
			in := false
			for _, v := range values {
				in = in || ok && x == v
			}
			return in != negated
		}}
	case 7:
		of := drawOracle(t, depth-1)
		return oracle{"!" + sp() + "(" + of.text + ")", func(m map[string]string) bool { return !of.holds(m) }}
	case 8:
		l, r := drawOracle(t, depth-1), drawOracle(t, depth-1)
		return oracle{"(" + l.text + ")" + sp() + "&&" + sp() + "(" + r.text + ")", func(m map[string]string) bool { return l.holds(m) && r.holds(m) }}
	default:
		l, r := drawOracle(t, depth-1), drawOracle(t, depth-1)
		return oracle{"(" + l.text + ")" + sp() + "||" + sp() + "(" + r.text + ")", func(m map[string]string) bool { return l.holds(m) || r.holds(m) }}
	}
}

func TestSelectorMeansWhatItsCanonicalFormMeans(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := drawOracle(t, 4)
		s, err := ParseSelector(o.text)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseSelector(s.String())
		if err != nil {
			t.Fatalf("%q as %q: %v", o.text, s, err)
		}
		labels := rapid.MapOf(
			rapid.SampledFrom([]string{"a", "b/c", "d.e-f", "in", "has"}),
			rapid.SampledFrom([]string{"", "x", "xy", "it's", "y x", "yx"}),
		)
		for range 5 {
			m := labels.Draw(t, "labels")
			want := o.holds(m)
			if s.Matches(m) != want || again.Matches(m) != want {
				t.Fatalf("%q (%q) on %v: %v, %v, want %v", o.text, s, m, s.Matches(m), again.Matches(m), want)
			}
		}
	})
}

// FuzzSelector: whatever parses has a canonical form that parses to itself and
// holds for the same labels.
func FuzzSelector(f *testing.F) {
	for _, s := range []string{
		"", "all()", "!global()", "has(a/b.c-d_e)", `a == "b"`, "a != 'b'", "a in {'b',\"c\",}", "a not in {}", "a contains 'b'",
		"a starts with 'b' || a ends with ''", "!(a == 'b' && (has(c) || !!has(d)))", "!(!has(a))", "!(!(has(a) && has(b))) && has(c)", "a == '\x00\"'", "in in {'in'}", "((", "a == 'b",
		"app in {'a', 'b'} && has(tier) || !(env == 'dev')", "a notin{'é'}", "! ! all( )",
	} {
		f.Add(s, "a", "b")
	}
	f.Fuzz(func(t *testing.T, text, key, value string) {
		s, err := ParseSelector(text)
		if err != nil {
			return
		}
		canonical := s.String()
		again, err := ParseSelector(canonical)
		if err != nil {
			t.Fatalf("%q as %q: %v", text, canonical, err)
		}
		if again.String() != canonical {
			t.Fatalf("%q as %q, then %q", text, canonical, again)
		}
		for _, m := range []map[string]string{nil, {key: value}, {key: value, "a": "b"}} {
			if s.Matches(m) != again.Matches(m) {
				t.Fatalf("%q and %q differ on %v", text, canonical, m)
			}
		}
	})
}

func BenchmarkSelectorMatches(b *testing.B) {
	s, err := ParseSelector("app in {'a', 'b'} && has(tier) || !(env == 'dev')")
	if err != nil {
		b.Fatal(err)
	}
	labels := map[string]string{"app": "b", "tier": "x", "env": "dev"}
	b.ReportAllocs()
	for b.Loop() {
		s.Matches(labels)
	}
}
