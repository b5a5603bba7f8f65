package api

import (
	"bytes"
	"encoding/json"
	"errors"
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

// parseTree reads one JSON value. The tree refers to data, which must not
// change while it is used.
func parseTree(data []byte) (*tree, error) {
	if !json.Valid(data) {
		var v any
		if err := json.Unmarshal(data, &v); err != nil {
			return nil, err // says where
		}
		return nil, errors.New("not JSON")
	}
	t, _ := readTree(data)
	return t, nil
}

// readTree reads the value at the start of data, which is valid JSON, and
// returns what follows.
func readTree(data []byte) (*tree, []byte) {
	data = skipSpace(data)
	t := &tree{}
	switch data[0] {
	case '{', '[':
		t.kind = data[0]
		for data = skipSpace(data[1:]); data[0] != '}' && data[0] != ']'; {
			var f field
			if t.kind == '{' {
				var name []byte
				name, data = cutString(data)
				f.name = unquoted(name)
				data = skipSpace(data)[1:] // the colon
			}
			f.value, data = readTree(data)
			if t.kind == '{' {
				t.fields = append(t.fields, f)
			} else {
				t.members = append(t.members, f.value)
			}
			if data = skipSpace(data); data[0] == ',' {
				data = skipSpace(data[1:])
			}
		}
		return t, data[1:]
	case '"':
		t.scalar, data = cutString(data)
		return t, data
	}
	end := bytes.IndexAny(data, ",]} \t\r\n")
	if end < 0 {
		end = len(data)
	}
	t.scalar = data[:end]
	return t, data[end:]
}

func skipSpace(data []byte) []byte { return bytes.TrimLeft(data, " \t\r\n") }

// cutString cuts the string at the start of data, with its quotes.
func cutString(data []byte) (text, rest []byte) {
	for i := 1; ; i++ {
		switch data[i] {
		case '\\':
			i++
		case '"':
			return data[:i+1], data[i+1:]
		}
	}
}

// unquoted returns what a JSON string stands for.
func unquoted(text []byte) string {
	if bytes.IndexByte(text, '\\') < 0 {
		return string(text[1 : len(text)-1])
	}
	var s string
	_ = json.Unmarshal(text, &s) // is a valid string
	return s
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
	if bytes.Equal(t.scalar, o.scalar) {
		return true
	}
	// The same text may be written with escapes or without.
	return t.isString() && o.isString() && unquoted(t.scalar) == unquoted(o.scalar)
}

func (t *tree) isString() bool { return len(t.scalar) > 0 && t.scalar[0] == '"' }
