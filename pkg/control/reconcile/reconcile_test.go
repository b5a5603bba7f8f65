package reconcile

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// fake is a table in memory that fails its failAt'th write, from 1.
type fake struct {
	content map[string]int
	writes  []string
	failAt  map[int]bool
	loads   int
	broken  error // of Load
	// partly says that a failing Put has taken effect all the same.
	partly bool
}

var errWrite = errors.New("no memory")

func newFake(content map[string]int) *fake {
	return &fake{content: maps.Clone(content), failAt: make(map[int]bool)}
}

func (f *fake) Load() (map[string]int, error) {
	f.loads++
	return maps.Clone(f.content), f.broken
}

func (f *fake) write(format string, args ...any) error {
	f.writes = append(f.writes, fmt.Sprintf(format, args...))
	if f.failAt[len(f.writes)] {
		return errWrite
	}
	return nil
}

func (f *fake) Put(k string, v int) error {
	err := f.write("%s=%d", k, v)
	if err == nil || f.partly {
		f.content[k] = v
	}
	return err
}

func (f *fake) Delete(k string) error {
	err := f.write("-%s", k)
	if err == nil {
		delete(f.content, k)
	}
	return err
}

func (f *fake) expect(t *testing.T, content map[string]int, writes ...string) {
	t.Helper()
	if !maps.Equal(f.content, content) {
		t.Errorf("content %v, want %v", f.content, content)
	}
	if got := strings.Join(f.writes, " "); got != strings.Join(writes, " ") {
		t.Errorf("writes %q, want %q", got, writes)
	}
	f.writes = nil
}

type table = map[string]int

func TestOnlyDifferencesAreWritten(t *testing.T) {
	f := newFake(table{"same": 1, "other": 2, "leftover": 9})
	tr := Track(f)
	want := table{"same": 1, "other": 3}
	if err := tr.Ensure(want); err != nil {
		t.Fatal(err)
	}
	f.expect(t, table{"same": 1, "other": 3, "leftover": 9}, "other=3")
	if err := tr.Ensure(want); err != nil {
		t.Fatal(err)
	}
	f.expect(t, table{"same": 1, "other": 3, "leftover": 9})
	if err := tr.Prune(want); err != nil {
		t.Fatal(err)
	}
	f.expect(t, want, "-leftover")
	if f.loads != 1 || tr.Drift() != (Drift{}) || tr.Entries() != 2 {
		t.Errorf("loads %d, drift %+v, entries %d", f.loads, tr.Drift(), tr.Entries())
	}
}

func TestPruneAloneLoads(t *testing.T) {
	f := newFake(table{"a": 1, "b": 1})
	if err := Track(f).Prune(table{"a": 1}); err != nil {
		t.Fatal(err)
	}
	f.expect(t, table{"a": 1}, "-b")
}

func TestFailingKeyDoesNotStopOthers(t *testing.T) {
	for failing := 1; failing <= 3; failing++ {
		f := newFake(table{})
		f.failAt[failing] = true
		tr := Track(f)
		want := table{"a": 1, "b": 2, "c": 3}
		err := tr.Ensure(want)
		if !errors.Is(err, errWrite) || len(f.content) != 2 || len(f.writes) != 3 {
			t.Fatalf("write %d fails: %v, content %v", failing, err, f.content)
		}
		failed, _, _ := strings.Cut(f.writes[failing-1], "=")
		if !strings.HasPrefix(err.Error(), failed+": ") {
			t.Errorf("error does not name %s: %v", failed, err)
		}
		f.writes, f.failAt = nil, nil
		if err := tr.Ensure(want); err != nil {
			t.Fatal(err)
		}
		f.expect(t, want, fmt.Sprintf("%s=%d", failed, want[failed]))
		if tr.Failures() != 1 || f.loads != 1 {
			t.Errorf("failures %d, loads %d", tr.Failures(), f.loads)
		}
	}
}

// TestFailedPutIsPruned: a write that reports failure may have happened, and
// must not be left when its key is not wanted any more.
func TestFailedPutIsPruned(t *testing.T) {
	f := newFake(table{})
	f.partly, f.failAt[1] = true, true
	tr := Track(f)
	if tr.Ensure(table{"a": 1}) == nil {
		t.Fatal("no error")
	}
	if err := tr.Prune(nil); err != nil {
		t.Fatal(err)
	}
	f.expect(t, table{}, "a=1", "-a")
}

func TestFailedDeleteIsRetried(t *testing.T) {
	f := newFake(table{"a": 1})
	f.failAt[1] = true
	tr := Track(f)
	if err := tr.Prune(nil); !errors.Is(err, errWrite) {
		t.Fatal(err)
	}
	if err := tr.Prune(nil); err != nil {
		t.Fatal(err)
	}
	f.expect(t, table{}, "-a", "-a")
}

func TestLoadFails(t *testing.T) {
	f := newFake(table{"a": 2})
	f.broken = errors.New("no such device")
	tr := Track(f)
	if err := tr.Ensure(table{"a": 1}); !errors.Is(err, f.broken) {
		t.Fatal(err)
	}
	f.expect(t, table{"a": 2})
	f.broken = nil
	if err := tr.Ensure(table{"a": 1}); err != nil {
		t.Fatal(err)
	}
	f.expect(t, table{"a": 1}, "a=1")
}

func TestDrift(t *testing.T) {
	want := table{"a": 1, "b": 2}
	for _, test := range []struct {
		name   string
		change func(table)
		next   table
		drift  Drift
		writes []string
	}{
		{"none", func(table) {}, want, Drift{}, nil},
		{"added", func(m table) { m["x"] = 1 }, want, Drift{Added: 1}, []string{"-x"}},
		{"removed", func(m table) { delete(m, "a") }, want, Drift{Removed: 1}, []string{"a=1"}},
		{"changed in place", func(m table) { m["a"] = 7 }, want, Drift{Changed: 1}, []string{"a=1"}},
		{"removed, not wanted either", func(m table) { delete(m, "a") }, table{"b": 2}, Drift{}, nil},
		{"changed to what is wanted now", func(m table) { m["a"] = 7 }, table{"a": 7, "b": 2}, Drift{}, nil},
		{"added what is wanted now", func(m table) { m["c"] = 3 }, table{"a": 1, "b": 2, "c": 3}, Drift{}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			var log bytes.Buffer
			f := newFake(want)
			tr := TrackWith(f, Options[int]{
				Name: "things", Logger: slog.New(slog.NewTextHandler(&log, nil)),
				Equal: func(a, b int) bool { return a == b },
			})
			if err := errors.Join(tr.Ensure(want), tr.Prune(want)); err != nil {
				t.Fatal(err)
			}
			test.change(f.content)
			// Without Resync nobody looks.
			if err := errors.Join(tr.Ensure(want), tr.Prune(want)); err != nil {
				t.Fatal(err)
			}
			f.expect(t, f.content)
			tr.Resync()
			tr.Resync()
			if err := errors.Join(tr.Ensure(test.next), tr.Prune(test.next)); err != nil {
				t.Fatal(err)
			}
			f.expect(t, test.next, test.writes...)
			if tr.Drift() != test.drift {
				t.Errorf("drift %+v, want %+v", tr.Drift(), test.drift)
			}
			if logged := strings.Contains(log.String(), "level=WARN"); logged != (test.drift != Drift{}) {
				t.Errorf("log %q", log.String())
			}
		})
	}
}

// TestOwnFailuresAreNotDrift: what a failed write left is nobody else's doing.
func TestOwnFailuresAreNotDrift(t *testing.T) {
	f := newFake(table{})
	f.partly, f.failAt[1] = true, true
	tr := Track(f)
	if tr.Ensure(table{"a": 1}) == nil {
		t.Fatal("no error")
	}
	tr.Resync()
	if err := errors.Join(tr.Ensure(nil), tr.Prune(nil)); err != nil {
		t.Fatal(err)
	}
	f.expect(t, table{}, "a=1", "-a")
	if tr.Drift() != (Drift{}) {
		t.Errorf("drift %+v", tr.Drift())
	}
}

// TestEqual: the other side clears the lowest bit of every value.
func TestEqual(t *testing.T) {
	f := newFake(table{"a": 4})
	tr := TrackWith(f, Options[int]{Equal: func(read, put int) bool { return read|1 == put|1 }})
	if err := tr.Ensure(table{"a": 5, "b": 7}); err != nil {
		t.Fatal(err)
	}
	f.expect(t, table{"a": 4, "b": 7}, "b=7")
}

// TestConverges: whatever fails and whatever others do, a round without a
// failure after a Resync leaves exactly what is wanted.
func TestConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		content := rapid.MapOf(rapid.SampledFrom([]string{"a", "b", "c", "d"}), rapid.IntRange(0, 2))
		f := newFake(content.Draw(t, "start"))
		f.partly = rapid.Bool().Draw(t, "partly")
		tr := Track(f)
		for range rapid.IntRange(0, 6).Draw(t, "rounds") {
			want := content.Draw(t, "want")
			f.writes = nil
			f.failAt = map[int]bool{rapid.IntRange(0, 4).Draw(t, "fail"): true}
			tr.Ensure(want)
			tr.Prune(want)
			if rapid.Bool().Draw(t, "interfere") {
				f.content = content.Draw(t, "theirs")
				tr.Resync()
			}
		}
		f.failAt = nil
		want := content.Draw(t, "last")
		if err := errors.Join(tr.Ensure(want), tr.Prune(want)); err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(f.content, want) {
			t.Fatalf("content %v, want %v", f.content, want)
		}
	})
}

// TestKeysAreEnough: rounds that only look at what is wanted otherwise leave what
// rounds leave that look at everything, as long as the table is certain.
func TestKeysAreEnough(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		content := rapid.MapOf(rapid.SampledFrom([]string{"a", "b", "c", "d"}), rapid.IntRange(0, 2))
		f := newFake(content.Draw(t, "start"))
		tr := Track(f)
		if tr.Certain() {
			t.Fatal("certain before it has been loaded")
		}
		var before table
		whole := false // before is in the table
		for range rapid.IntRange(1, 8).Draw(t, "rounds") {
			want := content.Draw(t, "want")
			f.writes = nil
			f.failAt = map[int]bool{rapid.IntRange(0, 6).Draw(t, "fail"): true}
			var err error
			if whole && tr.Certain() {
				lookup := func(k string) (int, bool) { v, ok := want[k]; return v, ok }
				var keys []string
				for _, k := range []string{"a", "b", "c", "d"} {
					was, had := before[k]
					if v, ok := want[k]; ok != had || v != was {
						keys = append(keys, k)
					}
				}
				err = errors.Join(tr.EnsureKeys(keys, lookup), tr.PruneKeys(keys, lookup))
			} else {
				err = errors.Join(tr.Ensure(want), tr.Prune(want))
			}
			before, whole = want, err == nil
			if whole && !maps.Equal(f.content, want) {
				t.Fatalf("content %v, want %v", f.content, want)
			}
			if rapid.Bool().Draw(t, "interfere") {
				f.content = content.Draw(t, "theirs")
				tr.Resync()
				if tr.Certain() {
					t.Fatal("certain after a Resync")
				}
			}
		}
	})
}
