package dataplane

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"
)

// extents hands out runs of words in the memory that holds all rulesets. Index 0
// is never handed out: it stands for no ruleset.
type extents struct {
	size    int      // words, index 0 included
	free    []extent // sorted, never adjacent
	retired []retired
	// more makes room for that many words, and returns how many there are then. Without it
	// there are no more.
	more func(words int) (int, error)
	// freed, if there is one, is told which rulesets nobody can be reading any more.
	freed func(*ruleset)
}

// extent is a run of words.
type extent struct{ base, size int }

type retired struct {
	*ruleset
	at time.Time
}

// grace is how long a packet may at most go on reading a ruleset after the last
// endpoint has left it. Programs run for microseconds, and are not preempted.
const grace = 100 * time.Millisecond

func newExtents(words int) *extents { return &extents{size: words, free: []extent{{1, words - 1}}} }

// taken is how many words are in use.
func (x *extents) taken() int {
	n := x.size
	for _, f := range x.free {
		n -= f.size
	}
	return n
}

// take returns a free extent; it is an error when none is large enough. Before that it
// waits for the grace period of what has been retired, then has more words made.
func (x *extents) take(size int) (extent, error) {
	e, err := x.find(size)
	for err != nil && len(x.retired) > 0 {
		time.Sleep(time.Until(x.retired[0].at.Add(grace)))
		x.reap(time.Now())
		e, err = x.find(size)
	}
	if err != nil && x.more != nil {
		if err = x.grow(size); err == nil {
			e, err = x.find(size)
		}
	}
	if err != nil {
		return e, fmt.Errorf("no room for a ruleset of %d words: %w", size, err)
	}
	return e, nil
}

// grow makes room for so many words in a row at the end.
func (x *extents) grow(size int) error {
	words, err := x.more(x.size + size)
	if err != nil {
		return err
	}
	x.release(extent{x.size, words - x.size})
	x.size = words
	return nil
}

var errNoRoom = errors.New("all words are taken")

func (x *extents) find(size int) (extent, error) {
	for i, f := range x.free {
		if f.size < size {
			continue
		}
		if f.size == size {
			x.free = slices.Delete(x.free, i, i+1)
		} else {
			x.free[i] = extent{f.base + size, f.size - size}
		}
		return extent{f.base, size}, nil
	}
	return extent{}, errNoRoom
}

// claim takes a given extent out of the free ones; false if it is not free.
func (x *extents) claim(e extent) bool {
	for i, f := range x.free {
		if e.base < f.base || e.base+e.size > f.base+f.size {
			continue
		}
		var rest []extent
		if before := e.base - f.base; before > 0 {
			rest = append(rest, extent{f.base, before})
		}
		if after := f.base + f.size - e.base - e.size; after > 0 {
			rest = append(rest, extent{e.base + e.size, after})
		}
		x.free = slices.Replace(x.free, i, i+1, rest...)
		return true
	}
	return false
}

// retire gives a ruleset's extent back once the grace period is over.
func (x *extents) retire(r *ruleset, now time.Time) { x.retired = append(x.retired, retired{r, now}) }

// reap makes extents free whose grace period is over.
func (x *extents) reap(now time.Time) {
	x.retired = slices.DeleteFunc(x.retired, func(r retired) bool {
		if now.Sub(r.at) < grace {
			return false
		}
		x.release(r.extent)
		if x.freed != nil {
			x.freed(r.ruleset)
		}
		return true
	})
}

func (x *extents) release(e extent) {
	i, _ := slices.BinarySearchFunc(x.free, e, func(a, b extent) int { return cmp.Compare(a.base, b.base) })
	x.free = slices.Insert(x.free, i, e)
	for j := max(i-1, 0); j+1 < len(x.free) && j <= i; {
		if a, b := x.free[j], x.free[j+1]; a.base+a.size == b.base {
			x.free[j] = extent{a.base, a.size + b.size}
			x.free = slices.Delete(x.free, j+1, j+2)
			i--
		} else {
			j++
		}
	}
}
