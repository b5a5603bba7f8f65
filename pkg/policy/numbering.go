package policy

import "slices"

// numbering gives small numbers to keys and takes them back. Packets may hold a
// number while the tables change under them, so a number keeps its meaning until
// two results in a row have had no use for it.
type numbering[T any] struct {
	limit   uint32 // numbers are below it
	numbers map[string]uint32
	entries []numbered[T] // by number
	free    []uint32      // highest first
	unused  []unused      // longest first
}

type numbered[T any] struct {
	key   string
	value T
	users int    // of 0 they are not counted
	since uint64 // with no users: the first result without any
}

type unused struct {
	number uint32
	since  uint64
}

// newNumbering returns a numbering in which 0 has the given key and value for
// ever.
func newNumbering[T any](limit uint32, key string, value T) *numbering[T] {
	return &numbering[T]{
		limit:   limit,
		numbers: map[string]uint32{key: 0},
		entries: []numbered[T]{{key: key, value: value}},
	}
}

// take gives users to the number of a key. A fresh number has no value yet. It
// fails when the numbers are used up.
func (n *numbering[T]) take(key []byte, users int) (i uint32, fresh, ok bool) {
	if i, ok := n.numbers[string(key)]; ok {
		if i != 0 {
			n.entries[i].users += users
		}
		return i, false, true
	}
	switch {
	case len(n.free) > 0:
		i = n.free[len(n.free)-1]
		n.free = n.free[:len(n.free)-1]
	case uint32(len(n.entries)) < n.limit:
		i = uint32(len(n.entries))
		n.entries = append(n.entries, numbered[T]{})
	default:
		return 0, false, false
	}
	e := &n.entries[i]
	e.key, e.users = string(key), users
	n.numbers[e.key] = i
	return i, true, true
}

// drop takes users from a number.
func (n *numbering[T]) drop(i uint32, users int, result uint64) {
	if i == 0 {
		return
	}
	e := &n.entries[i]
	if e.users -= users; e.users == 0 {
		e.since = result
		n.unused = append(n.unused, unused{i, result})
	}
}

// sweep frees the numbers that neither of the two results before this one has
// used, and returns them with what they have meant.
func (n *numbering[T]) sweep(result uint64) (freed []uint32, values []T) {
	for len(n.unused) > 0 && n.unused[0].since+2 <= result {
		u := n.unused[0]
		n.unused = n.unused[1:]
		if e := &n.entries[u.number]; e.users == 0 && e.since == u.since && e.key != "" {
			freed, values = append(freed, u.number), append(values, e.value)
			delete(n.numbers, e.key)
			*e = numbered[T]{}
		}
	}
	if len(freed) > 0 {
		n.free = append(n.free, freed...)
		slices.SortFunc(n.free, func(a, b uint32) int { return int(int64(b) - int64(a)) })
	}
	return freed, values
}
