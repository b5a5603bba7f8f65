package command_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"calico-xdp/cmd/calicoctl/command"

	"github.com/google/go-cmp/cmp"
)

// client runs calicoctl in this process, as a user whose environment this is.
type client struct {
	env   map[string]string
	stdin string
}

type result struct {
	code           int
	stdout, stderr string
}

func (c client) run(t *testing.T, args ...string) result {
	t.Helper()
	var out, err strings.Builder
	code := command.Run(t.Context(), args, command.Surroundings{
		In: strings.NewReader(c.stdin), Out: &out, Err: &err,
		Env:   func(name string) string { return c.env[name] },
		Build: command.Build{Version: "v1.2.3", Commit: "0123456789"},
	})
	return result{code, out.String(), err.String()}
}

// ok returns the output of a command that must succeed without a word on
// standard error.
func (c client) ok(t *testing.T, args ...string) string {
	t.Helper()
	r := c.run(t, args...)
	if r.code != 0 || r.stderr != "" {
		t.Fatalf("calicoctl %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// fails returns what a command that must fail says.
func (c client) fails(t *testing.T, args ...string) string {
	t.Helper()
	r := c.run(t, args...)
	if r.code != 1 || r.stderr == "" {
		t.Fatalf("calicoctl %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stderr
}

// with returns the client with something to read.
func (c client) with(stdin string) client {
	c.stdin = stdin
	return c
}

var update = flag.Bool("update", false, "write what commands print to testdata")

// golden compares what a command prints with a file.
func golden(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(filepath.Join("testdata", name), []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(testdata(t, name), got); diff != "" {
		t.Error(diff)
	}
}

// testdata returns a file without its comment lines.
func testdata(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for line := range strings.Lines(string(data)) {
		if !strings.HasPrefix(line, "#") {
			b.WriteString(line)
		}
	}
	return b.String()
}
