// Package reconcile makes a table in the kernel, or anywhere else, what it
// should be: it writes the differences only, in two steps, and notices when
// someone else has changed the table. It is the one place that compares.
package reconcile

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
)

// Table is anything that maps keys to values.
type Table[K comparable, V any] interface {
	Load() (map[K]V, error)
	Put(K, V) error
	Delete(K) error // a missing key is not an error
}

// Options are what a table may have beside itself.
type Options[V any] struct {
	Name   string       // in the log
	Logger *slog.Logger // nil: silent
	// Equal says whether a value that was read back is the one that was put, for
	// tables whose other side rewrites values.
	Equal func(read, put V) bool
}

// Drift counts what others did to a table since it was first loaded.
type Drift struct {
	Added, Removed, Changed uint64
}

// Tracked is a table together with what is known of its content. Ensure, Prune
// and Resync are for one goroutine, the rest for any.
type Tracked[K comparable, V any] struct {
	table   Table[K, V]
	options Options[V]

	loaded bool
	// known is the table's content if nobody else writes.
	known map[K]V
	// unsure are the keys whose last write failed: there or not, with any value.
	unsure map[K]bool
	// stale says that known is from before a Resync, to compare with.
	stale bool

	entries                 atomic.Int64
	failures                atomic.Uint64
	added, removed, changed atomic.Uint64
}

// Track starts to track a table whose values compare by ==.
func Track[K, V comparable](t Table[K, V]) *Tracked[K, V] {
	return TrackWith(t, Options[V]{Equal: func(a, b V) bool { return a == b }})
}

// TrackWith is Track with options; Equal must be set.
func TrackWith[K comparable, V any](t Table[K, V], o Options[V]) *Tracked[K, V] {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Tracked[K, V]{table: t, options: o, unsure: make(map[K]bool)}
}

// Ensure puts every wanted entry that is missing or different. A key that fails
// does not stop the others; it is tried again next time.
func (t *Tracked[K, V]) Ensure(want map[K]V) error {
	if err := t.load(want); err != nil {
		return err
	}
	var errs []error
	for k, v := range want {
		if err := t.ensure(k, v); err != nil {
			errs = append(errs, err)
		}
	}
	return t.finish(errs)
}

func (t *Tracked[K, V]) ensure(k K, v V) error {
	if have, ok := t.known[k]; ok && t.options.Equal(have, v) {
		return nil
	}
	if err := t.table.Put(k, v); err != nil {
		return t.forget(k, err)
	}
	t.known[k] = v
	delete(t.unsure, k)
	return nil
}

// Certain says that what the table holds is known, so that EnsureKeys and PruneKeys
// are enough for what has changed since the last Ensure and Prune.
func (t *Tracked[K, V]) Certain() bool { return t.loaded && len(t.unsure) == 0 }

// EnsureKeys is Ensure for these keys only; want looks one up. The table must be
// certain.
func (t *Tracked[K, V]) EnsureKeys(keys []K, want func(K) (V, bool)) error {
	var errs []error
	for _, k := range keys {
		if v, ok := want(k); ok {
			if err := t.ensure(k, v); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return t.finish(errs)
}

// PruneKeys is Prune for these keys only. The table must be certain.
func (t *Tracked[K, V]) PruneKeys(keys []K, want func(K) (V, bool)) error {
	var errs []error
	for _, k := range keys {
		if _, ok := want(k); ok {
			continue
		}
		if _, there := t.known[k]; there || t.unsure[k] {
			if err := t.remove(k); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return t.finish(errs)
}

// Prune deletes every entry that is not wanted, those of an earlier process too.
func (t *Tracked[K, V]) Prune(want map[K]V) error {
	if err := t.load(want); err != nil {
		return err
	}
	var gone []K
	for k := range t.known {
		if _, ok := want[k]; !ok {
			gone = append(gone, k)
		}
	}
	for k := range t.unsure {
		if _, ok := want[k]; !ok {
			gone = append(gone, k)
		}
	}
	var errs []error
	for _, k := range gone {
		if err := t.remove(k); err != nil {
			errs = append(errs, err)
		}
	}
	return t.finish(errs)
}

func (t *Tracked[K, V]) remove(k K) error {
	if err := t.table.Delete(k); err != nil {
		return t.forget(k, err)
	}
	delete(t.known, k)
	delete(t.unsure, k)
	return nil
}

// Resync makes the next Ensure or Prune read the table again. What is then not
// as it was left counts as drift.
func (t *Tracked[K, V]) Resync() {
	t.stale = t.stale || t.loaded
	t.loaded = false
}

// Drift returns what others did so far.
func (t *Tracked[K, V]) Drift() Drift {
	return Drift{Added: t.added.Load(), Removed: t.removed.Load(), Changed: t.changed.Load()}
}

// Entries returns how many entries the table has, as far as known.
func (t *Tracked[K, V]) Entries() int { return int(t.entries.Load()) }

// Failures returns how many writes have failed so far.
func (t *Tracked[K, V]) Failures() uint64 { return t.failures.Load() }

func (t *Tracked[K, V]) load(want map[K]V) error {
	if t.loaded {
		return nil
	}
	now, err := t.table.Load()
	if err != nil {
		t.failures.Add(1)
		return fmt.Errorf("load: %w", err)
	}
	if t.stale {
		t.countDrift(now, want)
	}
	t.known, t.loaded, t.stale = now, true, false
	if t.known == nil {
		t.known = make(map[K]V)
	}
	clear(t.unsure)
	t.entries.Store(int64(len(t.known)))
	return nil
}

// countDrift compares what was left with what is there now. Only what has to be
// repaired counts: that the kernel drops the routes of a link which is gone is
// no drift once they are no longer wanted.
func (t *Tracked[K, V]) countDrift(now, want map[K]V) {
	var d Drift
	var keys []string
	for k, left := range t.known {
		wanted, ok := want[k]
		if !ok {
			continue
		}
		have, there := now[k]
		switch {
		case !there:
			d.Removed++
		case !t.options.Equal(have, left) && !t.options.Equal(have, wanted):
			d.Changed++
		default:
			continue
		}
		keys = append(keys, fmt.Sprint(k))
	}
	for k := range now {
		_, left := t.known[k]
		_, wanted := want[k]
		if !left && !wanted && !t.unsure[k] {
			d.Added++
			keys = append(keys, fmt.Sprint(k))
		}
	}
	if d == (Drift{}) {
		return
	}
	t.added.Add(d.Added)
	t.removed.Add(d.Removed)
	t.changed.Add(d.Changed)
	slices.Sort(keys)
	t.options.Logger.Warn("table was changed by someone else", "table", t.options.Name,
		"added", d.Added, "removed", d.Removed, "changed", d.Changed, "first", keys[:min(3, len(keys))])
}

// forget takes note that nothing is known of a key any more.
func (t *Tracked[K, V]) forget(k K, err error) error {
	delete(t.known, k)
	t.unsure[k] = true
	t.failures.Add(1)
	return fmt.Errorf("%v: %w", k, err)
}

func (t *Tracked[K, V]) finish(errs []error) error {
	t.entries.Store(int64(len(t.known)))
	slices.SortFunc(errs, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}
