package api

import (
	"iter"
	"maps"
)

// Store is a set of resources in memory, indexed by kind. It is not safe for
// concurrent use: the control loop owns it.
type Store struct {
	kinds map[string]map[Key]Resource
}

// NewStore returns a store that holds rs.
func NewStore(rs ...Resource) *Store {
	s := &Store{kinds: make(map[string]map[Key]Resource)}
	for _, r := range rs {
		s.Apply(Change{Key: KeyOf(r), Resource: r})
	}
	return s
}

// Apply makes the store agree with the change.
func (s *Store) Apply(c Change) {
	if c.Resource == nil {
		delete(s.kinds[c.Key.Kind], c.Key)
		return
	}
	kind := s.kinds[c.Key.Kind]
	if kind == nil {
		kind = make(map[Key]Resource)
		s.kinds[c.Key.Kind] = kind
	}
	kind[c.Key] = c.Resource
}

// Get returns the resource with this key, or nil.
func (s *Store) Get(k Key) Resource { return s.kinds[k.Kind][k] }

// All returns the resources whose Go type is T, by key. Callers must not
// change the resources.
func All[T Resource](s *Store, kind string) map[Key]T {
	out := make(map[Key]T, len(s.kinds[kind]))
	for k, r := range s.kinds[kind] {
		if t, ok := r.(T); ok {
			out[k] = t
		}
	}
	return out
}

// Each goes through the resources of a kind, in no order.
func (s *Store) Each(kind string) iter.Seq2[Key, Resource] { return maps.All(s.kinds[kind]) }

// Clone returns a store with the same resources.
func (s *Store) Clone() *Store {
	c := NewStore()
	for kind, rs := range s.kinds {
		c.kinds[kind] = maps.Clone(rs)
	}
	return c
}
