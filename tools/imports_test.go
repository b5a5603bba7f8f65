// Package tools holds what a developer runs, and the tests that keep the
// repository's order: who imports whom, licences, no test that skips.
package tools

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "calico-xdp"

// mayImport says what of ours each package may import; one that is not listed
// goes by its longest listed parent. A trailing /... stands for all below.
// Imports run one way: cmd -> control -> ipam, policy, datastore -> api.
var mayImport = map[string][]string{
	"pkg/api":                     nil,
	"pkg/policy":                  {"pkg/api"},
	"pkg/policy/policytest":       {"pkg/api", "pkg/policy"},
	"pkg/datastore":               {"pkg/api"},
	"pkg/ipam":                    {"pkg/api", "pkg/datastore"},
	"pkg/nodeapi":                 {"pkg/api"},
	"pkg/maps":                    nil,
	"pkg/loader":                  nil, // gets map handles as an argument
	"pkg/control/desired":         {"pkg/api", "pkg/policy"},
	"pkg/control/reconcile":       nil,
	"pkg/control/dataplane":       {"pkg/api", "pkg/policy", "pkg/control/desired", "pkg/control/reconcile", "pkg/maps", "pkg/loader"},
	"pkg/control/host":            {"pkg/control/desired", "pkg/control/reconcile"},
	"pkg/control/nat":             {"pkg/control/desired", "pkg/control/reconcile"},
	"pkg/control/bgp":             {"pkg/control/desired", "pkg/control/reconcile"},
	"pkg/control":                 {"pkg/api", "pkg/policy", "pkg/datastore", "pkg/ipam", "pkg/nodeapi", "pkg/control/..."},
	"pkg/orchestrator/kubernetes": {"pkg/control/desired"},
	"cmd/calico-node":             {"pkg/..."},
	"cmd/calico-cni":              {"pkg/api", "pkg/datastore", "pkg/ipam", "pkg/nodeapi"},
	"cmd/calicoctl":               {"cmd/calicoctl/...", "pkg/api", "pkg/datastore", "pkg/ipam", "pkg/nodeapi"},
	"tools/testbed":               nil, // so that every package's tests can use it
	"tools":                       {"pkg/...", "tools/testbed"},
	"perf":                        {"pkg/...", "tools/testbed", "perf/..."},
}

// gates are the libraries that only some packages may touch, tests included.
var gates = []struct {
	library string
	may     []string
}{
	{"github.com/cilium/ebpf", []string{"pkg/maps", "pkg/loader"}},
	// The loader: a clsact filter is a thing of netlink, where kernels have no tcx.
	{"github.com/vishvananda/netlink", []string{"pkg/control/host", "pkg/loader", "tools/testbed", "cmd/calico-cni"}},
	{"github.com/google/nftables", []string{"pkg/control/nat"}},
	{"github.com/osrg/gobgp", []string{"pkg/control/bgp"}},
	{"k8s.io/client-go", []string{"pkg/orchestrator/kubernetes"}},
	{"go.etcd.io/etcd", []string{"pkg/datastore", "tools/testbed"}},
	{"go.uber.org/zap", []string{"pkg/datastore", "tools/testbed"}}, // etcd's logger
}

// pure packages do no I/O and know no clock.
var pure = []string{"pkg/api", "pkg/policy", "pkg/control/desired", "pkg/control/reconcile"}

// impure is what they do without.
var impure = []string{
	"bufio", "context", "crypto/rand", "io", "io/fs", "io/ioutil", "log", "math/rand", "math/rand/v2", "net/http",
	"os", "os/exec", "os/signal", "path/filepath", "syscall", "time", "golang.org/x/sys/unix",
}

// testOnly are never part of a program that a user runs.
var testOnly = []string{
	"testing", module + "/tools/testbed", module + "/pkg/policy/policytest",
	"github.com/gopacket/gopacket", "pgregory.net/rapid",
}

// goPackage is what `go list -json` says of a package.
type goPackage struct {
	ImportPath                               string
	Name                                     string
	Imports, TestImports, XTestImports, Deps []string
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	list := exec.Command("go", "list", "-json=ImportPath,Name,Imports,TestImports,XTestImports,Deps", module+"/...")
	out, err := list.Output()
	if err != nil {
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			t.Fatalf("go list: %s", exit.Stderr)
		}
		t.Fatal(err)
	}
	var all []goPackage
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// ours is the path inside the repository, if it is one.
func ours(importPath string) (string, bool) {
	return strings.CutPrefix(importPath, module+"/")
}

// under says whether a path is dir or below it.
func under(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, dir+"/")
}

// allowed looks p's rule up, its own or that of a parent.
func allowed(p string) (list []string, known bool) {
	for dir := p; dir != "."; dir = path.Dir(dir) {
		if list, known = mayImport[dir]; known {
			return list, true
		}
	}
	return nil, false
}

func TestImports(t *testing.T) {
	for _, p := range packages(t) {
		self, _ := ours(p.ImportPath)
		may, known := allowed(self)
		if !known {
			t.Errorf("%s: no rule says what it may import: add one to mayImport", self)
		}
		for _, i := range p.Imports {
			other, ok := ours(i)
			if ok && !slices.ContainsFunc(may, func(m string) bool {
				all, isTree := strings.CutSuffix(m, "/...")
				return other == m || isTree && under(other, all)
			}) {
				t.Errorf("%s imports %s", self, other)
			}
			if slices.Contains(pure, self) && slices.Contains(impure, i) {
				t.Errorf("%s imports %s, and is to do no I/O and know no clock", self, i)
			}
		}
		for _, i := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			for _, g := range gates {
				if under(i, g.library) && !slices.ContainsFunc(g.may, func(m string) bool { return under(self, m) }) {
					t.Errorf("%s imports %s", self, i)
				}
			}
		}
		if p.Name == "main" && strings.HasPrefix(self, "cmd/") {
			for _, d := range p.Deps {
				if slices.ContainsFunc(testOnly, func(l string) bool { return under(d, l) }) {
					t.Errorf("%s depends on %s, which is for tests", self, d)
				}
			}
		}
	}
}

// sources calls each with the repository's files whose names match pattern.
func sources(t *testing.T, pattern string, each func(name string, content []byte)) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(".."), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == "bin") {
			return fs.SkipDir
		}
		if ok, _ := path.Match(pattern, d.Name()); d.IsDir() || !ok {
			return nil
		}
		content, err := os.ReadFile(filepath.Join("..", name))
		if err == nil {
			each(name, content)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestLicences: C is under either licence and says so; everything else is under
// LICENSE without saying so in each file.
func TestLicences(t *testing.T) {
	for _, pattern := range []string{"*.c", "*.h"} {
		sources(t, pattern, func(name string, content []byte) {
			first, _, _ := bytes.Cut(content, []byte("\n"))
			if !bytes.Contains(first, []byte("SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0")) {
				t.Errorf("%s does not begin with its licence", name)
			}
		})
	}
}

// TestNothingSkips: a test that skips where something is missing hides that it
// never runs. What tests need, `make setup` installs.
func TestNothingSkips(t *testing.T) {
	skip := regexp.MustCompile(`\b[tb]\.Skip(f|Now)?\(`)
	sources(t, "*_test.go", func(name string, content []byte) {
		if at := skip.FindIndex(content); at != nil && !bytes.Contains(content, []byte("pgregory.net/rapid")) {
			t.Errorf("%s: %s", name, content[at[0]:at[1]])
		}
	})
}
