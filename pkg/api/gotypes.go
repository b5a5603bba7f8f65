package api

import (
	"encoding"
	"encoding/json"
	"reflect"
	"strings"
)

// elem strips pointers.
func elem(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

// isOpaque tells whether t reads its JSON itself, so that its Go fields say
// nothing about it.
func isOpaque(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(reflect.TypeFor[json.Unmarshaler]()) || p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// fieldTypes remembers the JSON fields of struct types during one operation.
type fieldTypes map[reflect.Type]map[string]reflect.Type

// of returns the type of each JSON field of the struct type t.
func (m fieldTypes) of(t reflect.Type) map[string]reflect.Type {
	fields, ok := m[t]
	if !ok {
		fields = jsonFields(t)
		m[t] = fields
	}
	return fields
}

func jsonFields(t reflect.Type) map[string]reflect.Type {
	out := make(map[string]reflect.Type, t.NumField())
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-":
		case f.Anonymous && name == "":
			for n, ft := range jsonFields(elem(f.Type)) {
				out[n] = ft
			}
		case !f.IsExported():
		case name == "":
			out[f.Name] = f.Type
		default:
			out[name] = f.Type
		}
	}
	return out
}

// quoteStrings turns numbers and booleans into strings where type gt wants a
// string: YAML reads an unquoted label value such as 1 or true as no string.
func (m fieldTypes) quoteStrings(t *tree, gt reflect.Type) {
	gt = elem(gt)
	if isOpaque(gt) {
		return
	}
	switch gt.Kind() {
	case reflect.String:
		if s := string(t.scalar); t.kind == 0 && s != "null" && !strings.HasPrefix(s, `"`) {
			t.scalar, _ = json.Marshal(s) // a string always marshals
		}
	case reflect.Struct:
		types := m.of(gt)
		for _, f := range t.fields {
			if ft, ok := types[f.name]; ok {
				m.quoteStrings(f.value, ft)
			}
		}
	case reflect.Map:
		for _, f := range t.fields {
			m.quoteStrings(f.value, gt.Elem())
		}
	case reflect.Slice, reflect.Array:
		for _, e := range t.members {
			m.quoteStrings(e, gt.Elem())
		}
	}
}
