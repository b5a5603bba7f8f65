// Package manifest reads what users hand to apply, create, replace, delete and
// get with -f: files, directories or standard input, YAML or JSON, any number of
// documents, single objects, lists and arrays. Everything is read before
// anything is done, and every fault is reported with the place it came from.
package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"calico-xdp/pkg/api"
)

// Object is one resource as it was written.
type Object struct {
	Source string // "pools.yaml, document 2, item 3"
	Kind   *api.Kind
	Key    api.Key // as written: the namespace may be missing
	// ResourceVersion is the revision that the writer expects, or empty.
	ResourceVersion string
	// HasStatus tells whether the writer says anything about the status, which
	// is otherwise left as the nodes reported it.
	HasStatus bool
	data      []byte
}

// Decode reads the object strictly. Errors name its source.
func (o Object) Decode() (api.Resource, error) {
	r, err := api.Decode(o.data)
	if err != nil {
		return nil, Prefix(o.Source, err)
	}
	return r, nil
}

// Prefix puts the source before every error that err joins.
func Prefix(source string, err error) error {
	if err == nil {
		return nil
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range many.Unwrap() {
			out = append(out, Prefix(source, e))
		}
		return errors.Join(out...)
	}
	return fmt.Errorf("%s: %w", source, err)
}

// Read returns the objects of all paths in order. A directory stands for the
// .yaml, .yml and .json files in it, sorted, and those below it if recursive;
// "-" for stdin.
func Read(paths []string, recursive bool, stdin io.Reader) ([]Object, error) {
	return readAll(paths, recursive, stdin, parse)
}

// Value is an object of any API.
type Value struct {
	Source string
	JSON   json.RawMessage
}

// ReadValues is Read for objects that need not be ours. Members of lists and arrays
// count as objects.
func ReadValues(paths []string, recursive bool, stdin io.Reader) ([]Value, error) {
	return readAll(paths, recursive, stdin, func(source string, data []byte) ([]Value, error) {
		return eachDocument(source, data, values)
	})
}

func values(source string, value json.RawMessage) (out []Value, err error) {
	value = bytes.TrimSpace(value)
	var list struct {
		Items []json.RawMessage `json:"items"`
	}
	if len(value) > 0 && value[0] == '[' {
		err = json.Unmarshal(value, &list.Items)
	} else if err = json.Unmarshal(value, &list); err == nil && list.Items == nil {
		return []Value{{source, value}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", source, err)
	}
	for i, item := range list.Items {
		found, err := values(fmt.Sprintf("%s, item %d", source, i+1), item)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

func readAll[T any](paths []string, recursive bool, stdin io.Reader, parse func(string, []byte) ([]T, error)) ([]T, error) {
	var (
		objects []T
		errs    []error
	)
	for _, path := range paths {
		found, err := readPath(path, recursive, stdin, parse)
		objects = append(objects, found...)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return objects, nil
}

func readPath[T any](path string, recursive bool, stdin io.Reader, parse func(string, []byte) ([]T, error)) ([]T, error) {
	if path == "-" {
		data, err := io.ReadAll(stdin)
		if err != nil {
			return nil, fmt.Errorf("standard input: %w", err)
		}
		return parse("standard input", data)
	}
	var (
		objects []T
		errs    []error
	)
	err := filepath.WalkDir(path, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if file == path && !entry.IsDir() {
			// Named by the user: whatever it is called, and a link or a pipe too.
		} else if entry.IsDir() {
			if file != path && !recursive {
				return fs.SkipDir
			}
			return nil
		} else if !isManifest(file) {
			return nil
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		found, err := parse(file, data)
		objects = append(objects, found...)
		errs = append(errs, err)
		return nil
	})
	return objects, errors.Join(append(errs, err)...)
}

func isManifest(file string) bool {
	switch strings.ToLower(filepath.Ext(file)) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// parse returns the objects of one file. source names it in errors.
func parse(source string, data []byte) ([]Object, error) {
	return eachDocument(source, data, func(where string, value json.RawMessage) ([]Object, error) {
		return flatten(where, value, "", "")
	})
}

func eachDocument[T any](source string, data []byte, read func(string, json.RawMessage) ([]T, error)) ([]T, error) {
	docs := split(data)
	var (
		objects []T
		errs    []error
	)
	for i, doc := range docs {
		where := source
		if len(docs) > 1 {
			where = fmt.Sprintf("%s, document %d", source, i+1)
		}
		value, err := doc.toJSON()
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", where, err))
			continue
		}
		found, err := read(where, value)
		objects = append(objects, found...)
		errs = append(errs, err)
	}
	return objects, errors.Join(errs...)
}

// head is what must be known of an object before it can be decoded.
type head struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name            string `json:"name"`
		Namespace       string `json:"namespace"`
		ResourceVersion string `json:"resourceVersion"`
	} `json:"metadata"`
	Items  []json.RawMessage `json:"items"`
	Status json.RawMessage   `json:"status"`
}

// flatten returns the objects in value: one, or the members of a list or array.
// kind and version are what the list says its members are, if they do not.
func flatten(source string, value json.RawMessage, kind, version string) ([]Object, error) {
	value = bytes.TrimSpace(value)
	if len(value) > 0 && value[0] == '[' {
		var items []json.RawMessage
		if err := json.Unmarshal(value, &items); err != nil {
			return nil, fmt.Errorf("%s: %w", source, err)
		}
		return flattenItems(source, items, kind, version)
	}
	if len(value) == 0 || value[0] != '{' {
		return nil, fmt.Errorf("%s: expected an object with apiVersion, kind and metadata, found %s", source, excerpt(value))
	}
	var h head
	if err := json.Unmarshal(value, &h); err != nil {
		// A name that is a number, say: strict decoding says what is wrong with
		// it if it is more than YAML's idea of types.
		if h, err = lenientHead(value); err != nil {
			return nil, fmt.Errorf("%s: %w", source, err)
		}
	}
	if h.Items != nil && (strings.HasSuffix(h.Kind, "List") || h.Kind == "") {
		member := strings.TrimSuffix(h.Kind, "List")
		if member == "" {
			return flattenItems(source, h.Items, "", "")
		}
		return flattenItems(source, h.Items, member, h.APIVersion)
	}
	if h.Kind == "" && kind != "" {
		h.Kind = kind
		if h.APIVersion == "" {
			h.APIVersion = version
		}
		var err error
		if value, err = withHead(value, h); err != nil {
			return nil, fmt.Errorf("%s: %w", source, err)
		}
	}
	if h.Kind == "" {
		return nil, fmt.Errorf("%s: kind is missing", source)
	}
	if h.APIVersion != api.GroupVersion {
		return nil, fmt.Errorf("%s: %s(%s): apiVersion: %q is not %s", source, h.Kind, h.Metadata.Name, h.APIVersion, api.GroupVersion)
	}
	k, ok := api.FindKind(h.Kind)
	if !ok || k.Internal || k.Name != h.Kind {
		return nil, fmt.Errorf("%s: kind: %q is not known%s", source, h.Kind, meant(k))
	}
	return []Object{{
		Source: source, Kind: k, data: value,
		Key:             api.Key{Kind: k.Name, Namespace: h.Metadata.Namespace, Name: h.Metadata.Name},
		ResourceVersion: h.Metadata.ResourceVersion,
		HasStatus:       says(h.Status),
	}}, nil
}

// says tells whether a field is there and not empty.
func says(value json.RawMessage) bool {
	switch string(value) {
	case "", "{}", "null":
		return false
	}
	return true
}

func meant(k *api.Kind) string {
	if k == nil || k.Internal {
		return ""
	}
	return fmt.Sprintf(" (did you mean %s?)", k.Name)
}

func flattenItems(source string, items []json.RawMessage, kind, version string) ([]Object, error) {
	var (
		objects []Object
		errs    []error
	)
	for i, item := range items {
		found, err := flatten(fmt.Sprintf("%s, item %d", source, i+1), item, kind, version)
		objects = append(objects, found...)
		errs = append(errs, err)
	}
	return objects, errors.Join(errs...)
}

// lenientHead reads what it can of an object whose head has unexpected types:
// metadata.name: 42 is the name "42". A name that YAML takes for true or false,
// such as n or yes, is lost and must be written in quotes.
func lenientHead(value json.RawMessage) (head, error) {
	var h head
	var at, meta map[string]json.RawMessage
	text := func(v json.RawMessage) string {
		var s string
		if json.Unmarshal(v, &s) == nil {
			return s
		}
		return string(v)
	}
	if err := json.Unmarshal(value, &at); err != nil {
		return h, err
	}
	h.APIVersion, h.Kind, h.Status = text(at["apiVersion"]), text(at["kind"]), at["status"]
	if json.Unmarshal(at["metadata"], &meta) == nil { // else decoding the whole says what is wrong
		for _, field := range []string{"name", "namespace"} {
			if v := string(meta[field]); v == "true" || v == "false" {
				return h, fmt.Errorf("%s: metadata.%s: YAML reads this word as %s; put it in quotes", h.Kind, field, v)
			}
		}
		h.Metadata.Name, h.Metadata.Namespace = text(meta["name"]), text(meta["namespace"])
		h.Metadata.ResourceVersion = text(meta["resourceVersion"])
	}
	if items, ok := at["items"]; ok {
		if err := json.Unmarshal(items, &h.Items); err != nil {
			return h, errors.New("items is not a list")
		}
	}
	return h, nil
}

// withHead writes kind and apiVersion into an object.
func withHead(value json.RawMessage, h head) (json.RawMessage, error) {
	var at map[string]json.RawMessage
	if err := json.Unmarshal(value, &at); err != nil {
		return nil, err
	}
	for name, text := range map[string]string{"kind": h.Kind, "apiVersion": h.APIVersion} {
		quoted, err := json.Marshal(text)
		if err != nil {
			return nil, err
		}
		at[name] = quoted
	}
	return json.Marshal(at)
}

// excerpt shows the beginning of something unexpected.
func excerpt(value []byte) string {
	const most = 40
	if len(value) > most {
		return string(value[:most]) + "..."
	}
	return string(value)
}
