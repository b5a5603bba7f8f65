package maps

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// ErrFull says that a table has no room for another entry and gets no larger.
var ErrFull = errors.New("the table is full")

// held is one of the kernel's tables, open. A larger one can take its place while it
// is being used: whoever has a Table goes on with that one.
type held struct {
	name    string
	grow    func(table string, entries int) error // nil: it stays as large as it is
	copy    func(to, from *ebpf.Map) error        // nil: likewise
	wrote   func(table string)                    // Options.Wrote
	refused atomic.Uint64                         // times that there was no room

	mu sync.RWMutex
	m  *ebpf.Map
}

// use calls fn with the table. It stays that one, and open, until fn returns.
func (h *held) use(fn func(*ebpf.Map) error) error {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if err := fn(h.m); err != nil {
		return fmt.Errorf("map %s: %w", h.name, err)
	}
	return nil
}

// change is use for what changes entries.
func (h *held) change(fn func(*ebpf.Map) error) error {
	err := h.use(fn)
	if h.wrote != nil {
		h.wrote(h.name)
	}
	return err
}

// write is change for what adds entries: if the table is too small it is made larger.
// entries is how many it has to hold at least, as far as known.
func (h *held) write(entries int, fn func(*ebpf.Map) error) error {
	for {
		err := h.change(fn)
		if !errors.Is(err, unix.E2BIG) && !errors.Is(err, unix.ENOSPC) {
			return err
		}
		if err = h.reserve(max(entries, h.capacity()+1)); err != nil {
			return err
		}
	}
}

// reserve makes room for that many entries.
func (h *held) reserve(entries int) error {
	if h.capacity() >= entries {
		return nil
	}
	err := ErrFull
	if h.grow != nil {
		err = h.grow(h.name, entries)
	}
	if err == nil && h.capacity() < entries {
		err = ErrFull
	}
	if err != nil {
		h.refused.Add(1)
		return fmt.Errorf("map %s: %w", h.name, err)
	}
	return nil
}

func (h *held) capacity() int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return int(h.m.MaxEntries())
}

func (h *held) array() bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.m.Type() == ebpf.Array
}

// become puts another table in the place of this one.
func (h *held) become(m *ebpf.Map) error {
	h.mu.Lock()
	old := h.m
	h.m = m
	h.mu.Unlock()
	return old.Close()
}

func (h *held) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.m.Close()
}

// comingSuffix marks the pin of a table that is about to take another's place.
const comingSuffix = "-new"

// repin pins a table under a name that another one may have: at no time is there none.
func repin(m *ebpf.Map, dir, name string) error {
	coming, pin := filepath.Join(dir, name+comingSuffix), filepath.Join(dir, name)
	if err := os.Remove(coming); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("map %s: %w", name, err)
	}
	same, err := m.Clone() // that has no pin yet: Pin would move it
	if err != nil {
		return fmt.Errorf("map %s: %w", name, err)
	}
	defer same.Close()
	if err := same.Pin(coming); err != nil {
		return fmt.Errorf("map %s: %w", name, err)
	}
	if err := os.Rename(coming, pin); err != nil {
		return fmt.Errorf("map %s: %w", name, err)
	}
	return nil
}
