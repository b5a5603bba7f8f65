package maps

import (
	"errors"

	"github.com/cilium/ebpf"
)

// Table is one kernel table. It has the three verbs that a reconciler needs.
type Table[K, V comparable] struct{ h *held }

// loadBatch is how many entries one system call reads or writes.
const loadBatch = 4096

// tableOf is the table of that name.
func tableOf[K, V comparable](m *Maps, name string) Table[K, V] {
	h := m.all[name]
	h.copy = copyEntries[K, V]
	return Table[K, V]{h}
}

// Load reads the whole table. An array's entries that are all zero are left out.
func (t Table[K, V]) Load() (map[K]V, error) {
	out := make(map[K]V)
	var zero V
	array := t.h.array()
	err := t.h.use(func(m *ebpf.Map) error {
		return entries(m, func(keys []K, values []V) error {
			for i := range keys {
				if !array || values[i] != zero {
					out[keys[i]] = values[i]
				}
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Each calls fn with all entries, some at a time, until it fails. A larger table may take
// this one's place meanwhile: then they are those of the old one.
func (t Table[K, V]) Each(fn func([]K, []V) error) error {
	var table *ebpf.Map
	if err := t.h.use(func(m *ebpf.Map) (err error) {
		table, err = m.Clone()
		return err
	}); err != nil {
		return err
	}
	defer table.Close()
	return entries(table, fn)
}

// entries calls fn with all entries of a table, some at a time.
func entries[K, V any](m *ebpf.Map, fn func([]K, []V) error) error {
	keys, values := make([]K, loadBatch), make([]V, loadBatch)
	if m.Type() == ebpf.LPMTrie {
		n, it := 0, m.Iterate()
		for it.Next(&keys[n], &values[n]) {
			if n++; n < loadBatch {
				continue
			}
			if err := fn(keys, values); err != nil {
				return err
			}
			n = 0
		}
		return errors.Join(it.Err(), fn(keys[:n], values[:n]))
	}
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		if err := fn(keys[:n], values[:n]); err != nil {
			return err
		}
		if err != nil {
			return nil // that was the end
		}
	}
}

// copyEntries puts all entries of a table into another one.
func copyEntries[K, V any](to, from *ebpf.Map) error {
	return entries(from, func(keys []K, values []V) error {
		if len(keys) == 0 {
			return nil
		}
		_, err := to.BatchUpdate(keys, values, nil)
		return err
	})
}

// Get returns the entry; false if there is none.
func (t Table[K, V]) Get(k K) (V, bool, error) {
	var v V
	err := t.h.use(func(m *ebpf.Map) error { return m.Lookup(&k, &v) })
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return v, false, nil
	}
	return v, err == nil, err
}

// Put adds or replaces an entry. The error is ErrFull if there is no room for it.
func (t Table[K, V]) Put(k K, v V) error {
	need := 0
	if t.h.array() {
		need = int(any(k).(uint32)) + 1
	}
	return t.h.write(need, func(m *ebpf.Map) error { return m.Put(&k, &v) })
}

// PutAll adds or replaces entries: values[i] is that of keys[i]. Some may be there when
// it fails.
func (t Table[K, V]) PutAll(keys []K, values []V) error {
	for len(keys) > 0 {
		n := min(len(keys), loadBatch)
		err := t.h.write(0, func(m *ebpf.Map) error {
			_, err := m.BatchUpdate(keys[:n], values[:n], nil)
			return err
		})
		if err != nil {
			return err
		}
		keys, values = keys[n:], values[n:]
	}
	return nil
}

// Delete removes an entry; that it is absent already is no error. An array's
// entry becomes zero.
func (t Table[K, V]) Delete(k K) error {
	if t.h.array() {
		var zero V
		return t.Put(k, zero)
	}
	err := t.h.change(func(m *ebpf.Map) error { return m.Delete(&k) })
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

// DeleteAll removes entries; that some are absent already is no error.
func (t Table[K, V]) DeleteAll(keys []K) error {
	return t.h.change(func(m *ebpf.Map) error {
		for len(keys) > 0 {
			n, err := m.BatchDelete(keys[:min(len(keys), loadBatch)], nil)
			if errors.Is(err, ebpf.ErrKeyNotExist) {
				n, err = n+1, nil // it stops at a key that is absent
			}
			if err != nil {
				return err
			}
			keys = keys[n:]
		}
		return nil
	})
}

// Capacity is the greatest number of entries.
func (t Table[K, V]) Capacity() int { return t.h.capacity() }
