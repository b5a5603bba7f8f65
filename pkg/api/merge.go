package api

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
)

// MergeUnknown returns encoded, an object as [Encode] writes it, with the
// fields that our types do not know carried over from stored, the same object
// as the datastore has it. Fields that we know are as encoded has them, also
// where it lacks them.
//
// In lists of objects, an element takes over the unknown fields of the stored
// element that is equal to it otherwise; failing that, and if the list has kept
// its length, those of the element at its place.
func MergeUnknown(stored, encoded []byte) ([]byte, error) {
	old, err := parseTree(stored)
	if err != nil {
		return nil, fmt.Errorf("stored object: %w", err)
	}
	types := fieldTypes{}
	if k := kindOfTree(old); k != nil && !types.hasUnknown(old, reflect.TypeOf(k.New())) {
		return encoded, nil
	}
	out, err := parseTree(encoded)
	if err != nil {
		return nil, fmt.Errorf("encoded object: %w", err)
	}
	k := kindOfTree(out)
	if k == nil {
		return nil, errors.New("encoded object: unknown kind")
	}
	types.merge(old, out, reflect.TypeOf(k.New()))
	return out.append(nil), nil
}

// hasUnknown tells whether t has fields that gt does not have.
func (m fieldTypes) hasUnknown(t *tree, gt reflect.Type) bool {
	gt = elem(gt)
	if t.kind == 0 || isOpaque(gt) {
		return false
	}
	switch gt.Kind() {
	case reflect.Struct:
		types := m.of(gt)
		return slices.ContainsFunc(t.fields, func(f field) bool {
			ft, ok := types[f.name]
			return !ok || m.hasUnknown(f.value, ft)
		})
	case reflect.Map:
		return slices.ContainsFunc(t.fields, func(f field) bool { return m.hasUnknown(f.value, gt.Elem()) })
	case reflect.Slice, reflect.Array:
		return slices.ContainsFunc(t.members, func(e *tree) bool { return m.hasUnknown(e, gt.Elem()) })
	}
	return false
}

// kindOfTree returns the kind of an encoded object, or nil. The IPAM kinds do
// not say their kind but have fields of their own.
func kindOfTree(t *tree) *Kind {
	if name := t.get("kind"); name != nil {
		for _, k := range kinds {
			if string(name.scalar) == `"`+k.Name+`"` {
				return k
			}
		}
		return nil
	}
	for _, own := range []struct{ field, kind string }{
		{"allocations", KindIPAMBlock}, {"block", KindIPAMHandle},
		{"state", KindBlockAffinity}, {"strict_affinity", KindIPAMConfig},
	} {
		if t.get(own.field) != nil {
			return kindNamed(own.kind)
		}
	}
	return nil
}

func (m fieldTypes) merge(old, out *tree, gt reflect.Type) {
	gt = elem(gt)
	if old.kind != out.kind || isOpaque(gt) {
		return
	}
	switch {
	case old.kind == '{' && gt.Kind() == reflect.Struct:
		types := m.of(gt)
		before := "" // the stored field in front of f that out has too
		for _, f := range old.fields {
			ft, known := types[f.name]
			have := out.get(f.name)
			switch {
			case known && have != nil:
				m.merge(f.value, have, ft)
			case !known && have == nil:
				out.insertAfter(f, before)
			}
			if out.get(f.name) != nil {
				before = f.name
			}
		}
	case old.kind == '{' && gt.Kind() == reflect.Map:
		for _, f := range old.fields {
			if have := out.get(f.name); have != nil {
				m.merge(f.value, have, gt.Elem())
			}
		}
	case old.kind == '[' && (gt.Kind() == reflect.Slice || gt.Kind() == reflect.Array):
		m.mergeElements(old, out, gt.Elem())
	}
}

// mergeElements finds the stored element of every element of out.
func (m fieldTypes) mergeElements(old, out *tree, gt reflect.Type) {
	known := make([]*tree, len(old.members))
	for i, e := range old.members {
		known[i] = m.onlyKnown(e, gt)
	}
	used := make([]bool, len(old.members))
	first := 0 // those before it are used
	var rest []int
	for i, e := range out.members {
		for first < len(used) && used[first] {
			first++
		}
		j, self := -1, m.onlyKnown(e, gt)
		for n := first; n < len(known); n++ {
			if !used[n] && self.equal(known[n]) {
				j = n
				break
			}
		}
		if j < 0 {
			rest = append(rest, i)
			continue
		}
		used[j] = true
		m.merge(old.members[j], e, gt)
	}
	if len(old.members) != len(out.members) {
		return
	}
	for _, i := range rest {
		if !used[i] {
			m.merge(old.members[i], out.members[i], gt)
		}
	}
}

// onlyKnown returns t without the fields that gt does not have, and without
// empty objects, which say nothing.
func (m fieldTypes) onlyKnown(t *tree, gt reflect.Type) *tree {
	gt = elem(gt)
	if isOpaque(gt) {
		return t
	}
	out := &tree{kind: t.kind, scalar: t.scalar}
	switch gt.Kind() {
	case reflect.Struct:
		types := m.of(gt)
		for _, f := range t.fields {
			if ft, ok := types[f.name]; ok && !f.value.isEmptyObject() {
				out.fields = append(out.fields, field{f.name, m.onlyKnown(f.value, ft)})
			}
		}
	case reflect.Map:
		for _, f := range t.fields {
			out.fields = append(out.fields, field{f.name, m.onlyKnown(f.value, gt.Elem())})
		}
	case reflect.Slice, reflect.Array:
		for _, e := range t.members {
			out.members = append(out.members, m.onlyKnown(e, gt.Elem()))
		}
	default:
		return t
	}
	return out
}

// insertAfter puts f behind the field other, or first if there is none.
func (t *tree) insertAfter(f field, other string) {
	t.fields = slices.Insert(t.fields, t.index(other)+1, f)
}
