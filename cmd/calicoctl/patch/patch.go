// Package patch changes JSON values as patches say: JSON Merge Patch (RFC 7386) and
// JSON Patch (RFC 6902). Values are those of encoding/json.
package patch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Merge reads a merge patch. It also takes the directive "$patch" of Kubernetes'
// strategic patches in objects: "replace" makes the object be what the patch has of it,
// "delete" removes it.
func Merge(text []byte) (func(any) (any, error), error) {
	var p map[string]any
	if err := json.Unmarshal(text, &p); err != nil {
		return nil, errors.New("a merge patch is an object with the fields to change")
	}
	return func(doc any) (any, error) { return merge(doc, p), nil }, nil
}

func merge(doc, p any) any {
	fields, ok := p.(map[string]any)
	if !ok {
		return p
	}
	out := make(map[string]any)
	if old, ok := doc.(map[string]any); ok && fields["$patch"] != "replace" {
		for k, v := range old {
			out[k] = v
		}
	}
	for k, v := range fields {
		inner, _ := v.(map[string]any)
		switch {
		case k == "$patch":
		case v == nil, inner["$patch"] == "delete":
			delete(out, k)
		default:
			out[k] = merge(out[k], v)
		}
	}
	return out
}

type operation struct {
	Op    string          `json:"op"`
	Path  *string         `json:"path"`
	From  *string         `json:"from"`
	Value json.RawMessage `json:"value"`
}

// Operations reads a list of operations.
func Operations(text []byte) (func(any) (any, error), error) {
	var ops []operation
	d := json.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(&ops); err != nil {
		return nil, errors.New("a JSON patch is a list of operations: [{\"op\": …, \"path\": …}]")
	}
	for i, op := range ops {
		var missing string
		switch {
		case op.Path == nil:
			missing = "path"
		case op.From == nil && (op.Op == "move" || op.Op == "copy"):
			missing = "from"
		case len(op.Value) == 0 && (op.Op == "add" || op.Op == "replace" || op.Op == "test"):
			missing = "value"
		}
		if missing != "" {
			return nil, fmt.Errorf("operation %d (%s): %s is missing", i+1, op.Op, missing)
		}
	}
	return func(doc any) (any, error) {
		for i, op := range ops {
			next, err := op.apply(doc)
			if err != nil {
				return nil, fmt.Errorf("operation %d (%s %s): %w", i+1, op.Op, *op.Path, err)
			}
			doc = next
		}
		return doc, nil
	}, nil
}

func (op operation) apply(doc any) (any, error) {
	path, err := parsePointer(*op.Path)
	if err != nil {
		return nil, err
	}
	var value any
	if len(op.Value) > 0 {
		if err := json.Unmarshal(op.Value, &value); err != nil {
			return nil, err
		}
	}
	switch op.Op {
	case "add":
		return set(doc, path, value, true)
	case "replace":
		return set(doc, path, value, false)
	case "remove":
		return remove(doc, path)
	case "test":
		there, err := get(doc, path)
		if err == nil && !reflect.DeepEqual(there, value) {
			err = fmt.Errorf("the value is %v", there)
		}
		return doc, err
	case "copy", "move":
		from, err := parsePointer(*op.From)
		if err != nil {
			return nil, err
		}
		if value, err = get(doc, from); err != nil {
			return nil, err
		}
		if op.Op == "move" {
			if len(path) > len(from) && slices.Equal(path[:len(from)], from) {
				return nil, errors.New("a value cannot move into itself")
			}
			if doc, err = remove(doc, from); err != nil {
				return nil, err
			}
		}
		return set(doc, path, clone(value), true)
	}
	return nil, errors.New("not an operation: expected add, remove, replace, move, copy or test")
}

// parsePointer splits a JSON pointer (RFC 6901).
func parsePointer(s string) ([]string, error) {
	if s == "" {
		return nil, nil
	}
	if s[0] != '/' {
		return nil, errors.New("a path begins with /")
	}
	steps := strings.Split(s[1:], "/")
	for i := range steps {
		steps[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(steps[i])
	}
	return steps, nil
}

var errNothing = errors.New("there is nothing at this path")

func get(doc any, path []string) (any, error) {
	for _, step := range path {
		switch at := doc.(type) {
		case map[string]any:
			v, ok := at[step]
			if !ok {
				return nil, errNothing
			}
			doc = v
		case []any:
			i, err := index(step, len(at)-1)
			if err != nil {
				return nil, err
			}
			doc = at[i]
		default:
			return nil, errNothing
		}
	}
	return doc, nil
}

// index reads a place in a list.
func index(step string, last int) (int, error) {
	i, err := strconv.Atoi(step)
	if err != nil || i < 0 || i > last || strconv.Itoa(i) != step {
		return 0, errNothing
	}
	return i, nil
}

// set returns doc with a value at path, which must be there already unless add says
// that it need not. Lists grow at the place.
func set(doc any, path []string, value any, add bool) (any, error) {
	if len(path) == 0 {
		return value, nil
	}
	step := path[0]
	switch at := doc.(type) {
	case map[string]any:
		old, there := at[step]
		if !there && (len(path) > 1 || !add) {
			return nil, errNothing
		}
		inner, err := set(old, path[1:], value, add)
		if err == nil {
			at[step] = inner
		}
		return at, err
	case []any:
		if len(path) == 1 && add {
			i := len(at)
			if step != "-" {
				var err error
				if i, err = index(step, len(at)); err != nil {
					return nil, err
				}
			}
			return slices.Insert(at, i, value), nil
		}
		i, err := index(step, len(at)-1)
		if err != nil {
			return nil, err
		}
		at[i], err = set(at[i], path[1:], value, add)
		return at, err
	}
	return nil, errNothing
}

func remove(doc any, path []string) (any, error) {
	if len(path) == 0 {
		return nil, errors.New("the whole cannot be removed")
	}
	step := path[0]
	switch at := doc.(type) {
	case map[string]any:
		old, there := at[step]
		if !there {
			return nil, errNothing
		}
		if len(path) == 1 {
			delete(at, step)
			return at, nil
		}
		inner, err := remove(old, path[1:])
		if err == nil {
			at[step] = inner
		}
		return at, err
	case []any:
		i, err := index(step, len(at)-1)
		if err != nil {
			return nil, err
		}
		if len(path) == 1 {
			return slices.Delete(at, i, i+1), nil
		}
		at[i], err = remove(at[i], path[1:])
		return at, err
	}
	return nil, errNothing
}

func clone(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = clone(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = clone(e)
		}
		return out
	}
	return v
}
