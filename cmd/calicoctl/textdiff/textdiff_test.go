package textdiff_test

import (
	"strings"
	"testing"

	"calico-xdp/cmd/calicoctl/textdiff"
)

func TestUnified(t *testing.T) {
	for _, test := range []struct{ name, a, b, want string }{
		{"same", "a\nb\n", "a\nb\n", ""},
		{"nothing before", "", "a\nb\n", "@@ -0,0 +1,2 @@\n+a\n+b\n"},
		{"nothing after", "a\n", "", "@@ -1 +0,0 @@\n-a\n"},
		{"one line", "1\n2\n3\n4\n5\n6\n7\n8\n9\n", "1\n2\n3\n4\nx\n6\n7\n8\n9\n", "@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-5\n+x\n 6\n 7\n 8\n"},
		{"moved", "a\nb\nc\n", "b\nc\na\n", "@@ -1,3 +1,3 @@\n-a\n b\n c\n+a\n"},
		{"two places", "a\n1\n2\n3\n4\n5\n6\n7\nb\n", "x\n1\n2\n3\n4\n5\n6\n7\ny\n",
			"@@ -1,4 +1,4 @@\n-a\n+x\n 1\n 2\n 3\n@@ -6,4 +6,4 @@\n 5\n 6\n 7\n-b\n+y\n"},
	} {
		if got := textdiff.Unified(test.a, test.b); got != test.want {
			t.Errorf("%s: got\n%s\nexpected\n%s", test.name, got, test.want)
		}
	}
	// More than is compared exactly still is whole.
	a, b := strings.Repeat("a\n", 3000), strings.Repeat("b\n", 3000)
	got := textdiff.Unified(a, b)
	if strings.Count(got, "-a\n") != 3000 || strings.Count(got, "+b\n") != 3000 {
		t.Errorf("got %d bytes", len(got))
	}
}
