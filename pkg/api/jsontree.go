package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
)

// tree is a JSON value that keeps the order of its fields and the text of its
// scalars.
type tree struct {
	kind    byte // '{', '[' or 0 for a scalar
	scalar  json.RawMessage
	fields  []field // of an object
	members []*tree // of an array
}

type field struct {
	name  string
	value *tree
}

// parseTree reads one JSON value.
func parseTree(data []byte) (*tree, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	return readTree(dec)
}

func readTree(dec *json.Decoder) (*tree, error) {
	tok, err := dec.Token()
	if err != nil {
		return nil, err
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		text, err := json.Marshal(tok)
		return &tree{scalar: text}, err
	}
	t := &tree{kind: byte(delim)}
	for dec.More() {
		var f field
		if t.kind == '{' {
			key, err := dec.Token()
			if err != nil {
				return nil, err
			}
			name, ok := key.(string)
			if !ok {
				return nil, fmt.Errorf("field name %v is no string", key)
			}
			f.name = name
		}
		if f.value, err = readTree(dec); err != nil {
			return nil, err
		}
		if t.kind == '{' {
			t.fields = append(t.fields, f)
		} else {
			t.members = append(t.members, f.value)
		}
	}
	_, err = dec.Token() // the closing delimiter
	return t, err
}

// append writes t as compact JSON behind out.
func (t *tree) append(out []byte) []byte {
	switch t.kind {
	case '{':
		out = append(out, '{')
		for i, f := range t.fields {
			if i > 0 {
				out = append(out, ',')
			}
			name, _ := json.Marshal(f.name) // a string always marshals
			out = append(append(out, name...), ':')
			out = f.value.append(out)
		}
		return append(out, '}')
	case '[':
		out = append(out, '[')
		for i, m := range t.members {
			if i > 0 {
				out = append(out, ',')
			}
			out = m.append(out)
		}
		return append(out, ']')
	}
	return append(out, t.scalar...)
}

// get returns the field's value, or nil.
func (t *tree) get(name string) *tree {
	if i := t.index(name); i >= 0 {
		return t.fields[i].value
	}
	return nil
}

func (t *tree) index(name string) int {
	return slices.IndexFunc(t.fields, func(f field) bool { return f.name == name })
}

// moveAfter puts the field name behind the field other, if it has both.
func (t *tree) moveAfter(name, other string) {
	i := t.index(name)
	if i < 0 || t.index(other) < 0 {
		return
	}
	f := t.fields[i]
	t.fields = slices.Delete(t.fields, i, i+1)
	t.fields = slices.Insert(t.fields, t.index(other)+1, f)
}

// dropEmpty removes the field name if its value is an empty object.
func (t *tree) dropEmpty(name string) {
	t.fields = slices.DeleteFunc(t.fields, func(f field) bool { return f.name == name && f.value.isEmptyObject() })
}

func (t *tree) isEmptyObject() bool { return t.kind == '{' && len(t.fields) == 0 }

// equal tells whether both are the same value; the order of fields does not count.
func (t *tree) equal(o *tree) bool {
	if t.kind != o.kind || len(t.fields) != len(o.fields) || len(t.members) != len(o.members) {
		return false
	}
	for _, f := range t.fields {
		if v := o.get(f.name); v == nil || !f.value.equal(v) {
			return false
		}
	}
	for i, m := range t.members {
		if !m.equal(o.members[i]) {
			return false
		}
	}
	return bytes.Equal(t.scalar, o.scalar)
}
