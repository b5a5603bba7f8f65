package maps

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// Table is one kernel table. It has the three verbs that a reconciler needs.
type Table[K, V comparable] struct{ m *ebpf.Map }

// loadBatch is how many entries one system call reads.
const loadBatch = 4096

// Load reads the whole table. An array's entries that are all zero are left out.
func (t Table[K, V]) Load() (map[K]V, error) {
	out := make(map[K]V)
	var zero V
	array := t.m.Type() == ebpf.Array
	if t.m.Type() != ebpf.LPMTrie {
		var cursor ebpf.MapBatchCursor
		keys, values := make([]K, loadBatch), make([]V, loadBatch)
		for {
			n, err := t.m.BatchLookup(&cursor, keys, values, nil)
			for i := range n {
				if !array || values[i] != zero {
					out[keys[i]] = values[i]
				}
			}
			if errors.Is(err, ebpf.ErrKeyNotExist) {
				return out, nil
			}
			if err != nil {
				return nil, fmt.Errorf("map %s: %w", t.name(), err)
			}
		}
	}
	var k K
	var v V
	it := t.m.Iterate()
	for it.Next(&k, &v) {
		out[k] = v
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("map %s: %w", t.name(), err)
	}
	return out, nil
}

// Get returns the entry; false if there is none.
func (t Table[K, V]) Get(k K) (V, bool, error) {
	var v V
	err := t.m.Lookup(&k, &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return v, false, nil
	}
	if err != nil {
		return v, false, fmt.Errorf("map %s: %w", t.name(), err)
	}
	return v, true, nil
}

// Put adds or replaces an entry.
func (t Table[K, V]) Put(k K, v V) error {
	if err := t.m.Put(&k, &v); err != nil {
		return fmt.Errorf("map %s: %w", t.name(), err)
	}
	return nil
}

// PutAll adds or replaces entries: values[i] is that of keys[i]. Some may be there when
// it fails.
func (t Table[K, V]) PutAll(keys []K, values []V) error {
	for len(keys) > 0 {
		n := min(len(keys), loadBatch)
		if _, err := t.m.BatchUpdate(keys[:n], values[:n], nil); err != nil {
			return fmt.Errorf("map %s: %w", t.name(), err)
		}
		keys, values = keys[n:], values[n:]
	}
	return nil
}

// Delete removes an entry; that it is absent already is no error. An array's
// entry becomes zero.
func (t Table[K, V]) Delete(k K) error {
	if t.m.Type() == ebpf.Array {
		var zero V
		return t.Put(k, zero)
	}
	if err := t.m.Delete(&k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("map %s: %w", t.name(), err)
	}
	return nil
}

// DeleteAll removes entries; that some are absent already is no error.
func (t Table[K, V]) DeleteAll(keys []K) error {
	for len(keys) > 0 {
		n, err := t.m.BatchDelete(keys[:min(len(keys), loadBatch)], nil)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			n, err = n+1, nil // it stops at a key that is absent
		}
		if err != nil {
			return fmt.Errorf("map %s: %w", t.name(), err)
		}
		keys = keys[n:]
	}
	return nil
}

// Capacity is the greatest number of entries.
func (t Table[K, V]) Capacity() int { return int(t.m.MaxEntries()) }

func (t Table[K, V]) name() string { return nameOf(t.m) }

func nameOf(m *ebpf.Map) string {
	if info, err := m.Info(); err == nil {
		return info.Name
	}
	return m.String()
}
