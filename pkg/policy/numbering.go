package policy

// numbering gives small numbers to keys and takes them back. Packets may hold a
// number while the tables change under them, so a number keeps its meaning until
// two results in a row have not used it.
type numbering[T any] struct {
	limit   uint32 // numbers are below it
	numbers map[string]uint32
	entries []numbered[T] // by number
	free    []uint32      // highest first
	// version changes whenever a number gets or loses its meaning.
	version uint64
}

type numbered[T any] struct {
	key   string
	value T
	used  uint64 // the last result that used it; 0: the number is free
}

// newNumbering returns a numbering in which 0 has the given key and value for
// ever.
func newNumbering[T any](limit uint32, key string, value T) *numbering[T] {
	return &numbering[T]{
		limit:   limit,
		numbers: map[string]uint32{key: 0},
		entries: []numbered[T]{{key: key, value: value, used: ^uint64(0)}},
	}
}

// take returns the number of a key in this result, a new one if it has none:
// then its value is what the function makes. It fails when the numbers are used
// up.
func (n *numbering[T]) take(key []byte, result uint64, value func() T) (uint32, bool) {
	if i, ok := n.numbers[string(key)]; ok {
		n.touch(i, result)
		return i, true
	}
	var i uint32
	switch {
	case len(n.free) > 0:
		i = n.free[len(n.free)-1]
		n.free = n.free[:len(n.free)-1]
	case uint32(len(n.entries)) < n.limit:
		i = uint32(len(n.entries))
		n.entries = append(n.entries, numbered[T]{})
	default:
		return 0, false
	}
	n.version++
	n.numbers[string(key)] = i
	n.entries[i] = numbered[T]{key: string(key), value: value(), used: result}
	return i, true
}

// touch marks a number as used by this result.
func (n *numbering[T]) touch(i uint32, result uint64) {
	if i != 0 {
		n.entries[i].used = result
	}
}

// sweep frees what neither of the two results before this one has used.
func (n *numbering[T]) sweep(result uint64) {
	n.free = n.free[:0]
	for i := len(n.entries) - 1; i > 0; i-- {
		e := &n.entries[i]
		if e.used != 0 && e.used+2 < result {
			delete(n.numbers, e.key)
			*e = numbered[T]{}
			n.version++
		}
		if e.used != 0 {
			continue
		}
		if i == len(n.entries)-1 {
			n.entries = n.entries[:i]
			n.version++
			continue
		}
		n.free = append(n.free, uint32(i))
	}
}
