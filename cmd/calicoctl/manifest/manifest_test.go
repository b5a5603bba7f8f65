package manifest_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"calico-xdp/cmd/calicoctl/manifest"
	"calico-xdp/pkg/api"

	"github.com/google/go-cmp/cmp"
)

// kubespray is what Kubespray's tasks feed into calicoctl: JSON whose quotes the
// shell has eaten, with a trailing comma and a Python boolean.
const kubespray = `
  { kind: IPPool,
    apiVersion: projectcalico.org/v3,
    metadata: {
      name: default-pool,
    },
    spec: {
      blockSize: 24,
      cidr: 10.233.64.0/18,
      ipipMode: Always,
      vxlanMode: Never,
      natOutgoing: True,
    }}
`

func read(t *testing.T, stdin string) ([]manifest.Object, error) {
	t.Helper()
	return manifest.Read([]string{"-"}, false, strings.NewReader(stdin))
}

func keys(objects []manifest.Object) []string {
	var out []string
	for _, o := range objects {
		out = append(out, o.Key.String())
	}
	return out
}

func TestKubespray(t *testing.T) {
	objects, err := read(t, kubespray)
	if err != nil {
		t.Fatal(err)
	}
	r, err := objects[0].Decode()
	if err != nil {
		t.Fatal(err)
	}
	pool := r.(*api.IPPool)
	if pool.Name != "default-pool" || pool.Spec.CIDR != "10.233.64.0/18" || !pool.Spec.NATOutgoing || pool.Spec.BlockSize != 24 {
		t.Errorf("got %+v", pool.Spec)
	}

	// Quotes kept, AS number quoted, a comma after the name.
	objects, err = read(t, `{ "kind": "BGPConfiguration", "apiVersion": "projectcalico.org/v3",
	  "metadata": { "name": "default", },
	  "spec": { "logSeverityScreen": "Info", "nodeToNodeMeshEnabled": true, "asNumber": "64512" }}`)
	if err != nil {
		t.Fatal(err)
	}
	if r, err = objects[0].Decode(); err != nil {
		t.Fatal(err)
	}
	if as := r.(*api.BGPConfiguration).Spec.ASNumber; as == nil || *as != 64512 {
		t.Errorf("AS number is %v", as)
	}
}

func TestDocuments(t *testing.T) {
	pool := func(name string) string {
		return "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata:\n  name: " + name + "\n"
	}
	jsonPool := func(name string) string {
		return `{"apiVersion":"projectcalico.org/v3","kind":"IPPool","metadata":{"name":"` + name + `"}}`
	}
	for _, test := range []struct {
		name, in string
		want     []string
	}{
		{"one", pool("a"), []string{"IPPool(a)"}},
		{"nothing", "", nil},
		{"only comments", "# none\n---\n# here\n", nil},
		{"many", "---\n" + pool("a") + "---\n" + pool("b") + "--- # the last\n" + pool("c"), []string{"IPPool(a)", "IPPool(b)", "IPPool(c)"}},
		{"carriage returns", strings.ReplaceAll(pool("a")+"---\n"+pool("b"), "\n", "\r\n"), []string{"IPPool(a)", "IPPool(b)"}},
		{"end marks and directives", "%YAML 1.1\n---\n" + pool("a") + "...\n---\n" + pool("b") + "...\n", []string{"IPPool(a)", "IPPool(b)"}},
		{"byte order mark", "\ufeff" + pool("a"), []string{"IPPool(a)"}},
		{"dashes in a text", "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata:\n  name: a\n  annotations:\n    note: |\n      ---\n      more\n", []string{"IPPool(a)"}},
		{"JSON", jsonPool("a"), []string{"IPPool(a)"}},
		{"JSON with tabs", strings.ReplaceAll(jsonPool("a"), `,`, ",\n\t"), []string{"IPPool(a)"}},
		{"JSON values", jsonPool("a") + "\n" + jsonPool("b"), []string{"IPPool(a)", "IPPool(b)"}},
		{"array", "[" + jsonPool("a") + "," + jsonPool("b") + "]", []string{"IPPool(a)", "IPPool(b)"}},
		{"list", `{"kind":"List","apiVersion":"v1","items":[` + jsonPool("a") + `]}`, []string{"IPPool(a)"}},
		{"typed list whose members do not say what they are", "apiVersion: projectcalico.org/v3\nkind: IPPoolList\nitems:\n- metadata: {name: a}\n- metadata: {name: b}\n", []string{"IPPool(a)", "IPPool(b)"}},
		{"array of lists", `[{"kind":"IPPoolList","apiVersion":"projectcalico.org/v3","items":[` + jsonPool("a") + `]}]`, []string{"IPPool(a)"}},
		{"namespace", "apiVersion: projectcalico.org/v3\nkind: NetworkSet\nmetadata: {name: s, namespace: prod}\n", []string{"NetworkSet(prod/s)"}},
		{"a number as a name", "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: 42}\n", []string{"IPPool(42)"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			objects, err := read(t, test.in)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, keys(objects)); diff != "" {
				t.Error(diff)
			}
			for _, o := range objects {
				if _, err := o.Decode(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestFaults(t *testing.T) {
	good := "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: a}\n"
	for _, test := range []struct {
		name, in string
		want     []string // one per line of the error
	}{
		{"not an object", "just text\n", []string{`standard input: expected an object with apiVersion, kind and metadata, found "just text"`}},
		{"no kind", "apiVersion: projectcalico.org/v3\n", []string{"standard input: kind is missing"}},
		{"unknown kind", good + "---\napiVersion: projectcalico.org/v3\nkind: IPpool\nmetadata: {name: b}\n",
			[]string{`standard input, document 2: kind: "IPpool" is not known (did you mean IPPool?)`}},
		{"internal kind", "apiVersion: projectcalico.org/v3\nkind: IPAMBlock\n", []string{`standard input: kind: "IPAMBlock" is not known`}},
		{"wrong version", "apiVersion: v1\nkind: IPPool\nmetadata: {name: b}\n",
			[]string{`standard input: IPPool(b): apiVersion: "v1" is not projectcalico.org/v3`}},
		{"two at once", "kind: X\napiVersion: projectcalico.org/v3\n---\n" + good + "---\nitems:\n- {}\n",
			[]string{`standard input, document 1: kind: "X" is not known`, `standard input, document 3, item 1: kind is missing`}},
		{"syntax, with the line of the file", good + "---\na: b\n  c: d\n", []string{`standard input, document 2: yaml: line 6: mapping values are not allowed in this context`}},
		{"a name that is none", "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: n}\n",
			[]string{"standard input: IPPool: metadata.name: YAML reads this word as false; put it in quotes"}},
		{"items of another kind", "kind: IPPoolList\nitems: 3\n", []string{"standard input: items is not a list"}},
		{"key twice", "kind: IPPool\nkind: IPPool\n", []string{`standard input: yaml: unmarshal errors:`, `  line 2: key "kind" already set in map`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			objects, err := read(t, test.in)
			if err == nil {
				t.Fatalf("got %v", keys(objects))
			}
			if diff := cmp.Diff(test.want, strings.Split(err.Error(), "\n")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	pool := func(name string) string {
		return "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: " + name + "}\n"
	}
	write("20.yml", pool("b"))
	write("10.yaml", pool("a"))
	write("sub/30.json", `{"apiVersion":"projectcalico.org/v3","kind":"IPPool","metadata":{"name":"c"}}`)
	write("README.md", "not for us")
	write("plain", pool("d"))

	objects, err := manifest.Read([]string{dir, filepath.Join(dir, "plain")}, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"IPPool(a)", "IPPool(b)", "IPPool(c)", "IPPool(d)"}, keys(objects)); diff != "" {
		t.Error(diff)
	}

	objects, err = manifest.Read([]string{dir}, false, nil)
	if diff := cmp.Diff([]string{"IPPool(a)", "IPPool(b)"}, keys(objects)); err != nil || diff != "" {
		t.Error(err, diff)
	}

	// Every file's fault is reported.
	write("20.yml", "kind: X\napiVersion: projectcalico.org/v3\n")
	write("sub/30.json", "{")
	objects, err = manifest.Read([]string{dir, filepath.Join(dir, "none")}, true, nil)
	if objects != nil || err == nil {
		t.Fatalf("got %v, %v", keys(objects), err)
	}
	for _, want := range []string{"20.yml: kind", "sub/30.json: ", "none: no such file"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
}
