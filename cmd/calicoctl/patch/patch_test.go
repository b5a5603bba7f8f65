package patch_test

import (
	"encoding/json"
	"strings"
	"testing"

	"calico-xdp/cmd/calicoctl/patch"

	"github.com/google/go-cmp/cmp"
)

func value(t *testing.T, text string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestMerge(t *testing.T) {
	for _, test := range []struct{ doc, patch, want string }{
		{`{"a":1,"b":{"c":2,"d":3}}`, `{"b":{"c":4}}`, `{"a":1,"b":{"c":4,"d":3}}`},
		{`{"a":1,"b":2}`, `{"a":null,"z":null}`, `{"b":2}`},
		{`{"a":[1,2]}`, `{"a":[3]}`, `{"a":[3]}`},
		{`{"a":[1]}`, `{"a":{"b":{"c":null,"d":1}}}`, `{"a":{"b":{"d":1}}}`},
		{`{"a":{"b":1,"c":2}}`, `{"a":{"$patch":"replace","d":3}}`, `{"a":{"d":3}}`},
		{`{"a":{"b":1},"c":2}`, `{"a":{"$patch":"delete"}}`, `{"c":2}`},
	} {
		f, err := patch.Merge([]byte(test.patch))
		if err != nil {
			t.Fatal(err)
		}
		doc := value(t, test.doc)
		got, err := f(doc)
		if diff := cmp.Diff(value(t, test.want), got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", test.patch, err, diff)
		}
		if diff := cmp.Diff(value(t, test.doc), doc); diff != "" {
			t.Errorf("%s changed what it was given: %s", test.patch, diff)
		}
	}
	if _, err := patch.Merge([]byte(`[1]`)); err == nil {
		t.Error("a list was taken for a merge patch")
	}
}

func TestOperations(t *testing.T) {
	const doc = `{"a":{"b":[1,2,3]},"c/d":"x","e~f":null}`
	for _, test := range []struct{ patch, want string }{
		{`[{"op":"add","path":"/a/b/-","value":4}]`, `{"a":{"b":[1,2,3,4]},"c/d":"x","e~f":null}`},
		{`[{"op":"add","path":"/a/b/0","value":0}]`, `{"a":{"b":[0,1,2,3]},"c/d":"x","e~f":null}`},
		{`[{"op":"remove","path":"/a/b/1"},{"op":"replace","path":"/c~1d","value":{"y":1}}]`, `{"a":{"b":[1,3]},"c/d":{"y":1},"e~f":null}`},
		{`[{"op":"test","path":"/e~0f","value":null},{"op":"move","from":"/a/b","path":"/b"}]`, `{"a":{},"b":[1,2,3],"c/d":"x","e~f":null}`},
		{`[{"op":"copy","from":"/a","path":"/z"},{"op":"add","path":"/z/b/-","value":9}]`, `{"a":{"b":[1,2,3]},"c/d":"x","e~f":null,"z":{"b":[1,2,3,9]}}`},
		{`[{"op":"replace","path":"","value":7}]`, `7`},
	} {
		f, err := patch.Operations([]byte(test.patch))
		if err != nil {
			t.Fatal(err)
		}
		got, err := f(value(t, doc))
		if diff := cmp.Diff(value(t, test.want), got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", test.patch, err, diff)
		}
	}
	for _, test := range []struct{ patch, want string }{
		{`[{"op":"remove","path":"/none"}]`, "operation 1 (remove /none): there is nothing at this path"},
		{`[{"op":"replace","path":"/a/b/3","value":1}]`, "nothing at this path"},
		{`[{"op":"replace","path":"/a/b/01","value":1}]`, "nothing at this path"},
		{`[{"op":"add","path":"/x/y","value":1}]`, "nothing at this path"},
		{`[{"op":"test","path":"/c~1d","value":"y"}]`, "the value is x"},
		{`[{"op":"move","from":"/a","path":"/a/b"}]`, "cannot move into itself"},
		{`[{"op":"drop","path":"/a"}]`, "not an operation"},
		{`[{"op":"add","path":"a","value":1}]`, "a path begins with /"},
		{`[{"op":"add","path":"/a"}]`, "operation 1 (add): value is missing"},
		{`{"op":"add"}`, "a JSON patch is a list"},
	} {
		f, err := patch.Operations([]byte(test.patch))
		if err == nil {
			_, err = f(value(t, doc))
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", test.patch, err)
		}
	}
}
