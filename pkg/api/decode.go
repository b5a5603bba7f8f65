package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"

	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// Decode reads one resource that a user wrote, YAML or JSON. Fields that the
// kind does not have, and fields given twice, are refused by their path.
func Decode(data []byte) (Resource, error) {
	rs, err := DecodeAll(data)
	if err != nil {
		return nil, err
	}
	if len(rs) != 1 {
		return nil, fmt.Errorf("expected one resource, found %d", len(rs))
	}
	return rs[0], nil
}

// DecodeAll reads all resources of a file: YAML documents, JSON arrays, and
// lists (an "items" field) all count, in their order.
func DecodeAll(data []byte) ([]Resource, error) {
	var out []Resource
	docs, err := documents(data)
	if err != nil {
		return nil, err
	}
	for _, doc := range docs {
		rs, err := decodeTree(doc)
		if err != nil {
			return nil, err
		}
		out = append(out, rs...)
	}
	return out, nil
}

// documents splits a YAML stream and turns each document that is not empty into JSON.
func documents(data []byte) ([]json.RawMessage, error) {
	if json.Valid(data) {
		return []json.RawMessage{bytes.TrimSpace(data)}, nil // may be indented with tabs, which YAML refuses
	}
	var out []json.RawMessage
	for _, text := range splitDocuments(data) {
		doc, err := yaml.YAMLToJSONStrict(text)
		if err != nil {
			return nil, err
		}
		if string(doc) != "null" {
			out = append(out, doc)
		}
	}
	return out, nil
}

// splitDocuments splits at lines that begin with "---". A block scalar cannot
// hold such a line: its lines are indented.
func splitDocuments(data []byte) [][]byte {
	var out [][]byte
	var doc []byte
	for line := range bytes.Lines(data) {
		if rest, ok := bytes.CutPrefix(line, []byte("---")); ok && (len(bytes.TrimSpace(rest)) == 0 || rest[0] == ' ' || rest[0] == '\t') {
			out = append(out, doc)
			doc, line = nil, rest
		}
		doc = append(doc, line...)
	}
	return append(out, doc)
}

// decodeTree reads an object, a list of objects or an array of them.
func decodeTree(doc json.RawMessage) ([]Resource, error) {
	if doc[0] == '[' {
		var items []json.RawMessage
		if err := json.Unmarshal(doc, &items); err != nil {
			return nil, err
		}
		return decodeItems(items)
	}
	var head struct {
		Kind       string             `json:"kind"`
		APIVersion string             `json:"apiVersion"`
		Items      *[]json.RawMessage `json:"items"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(doc, &head); err != nil {
		return nil, fmt.Errorf("not a resource: %w", err)
	}
	if head.Items != nil {
		return decodeItems(*head.Items)
	}
	if head.Kind == "" {
		return nil, errors.New("resource without kind")
	}
	if head.APIVersion != GroupVersion {
		return nil, fmt.Errorf("%s: apiVersion %q: expected %s", head.Kind, head.APIVersion, GroupVersion)
	}
	k := kindNamed(head.Kind)
	if k == nil || k.Internal {
		return nil, fmt.Errorf("unknown kind %q", head.Kind)
	}
	r, err := decodeStrict(k, doc)
	if err != nil {
		return nil, err
	}
	return []Resource{r}, nil
}

func decodeItems(items []json.RawMessage) ([]Resource, error) {
	var out []Resource
	for i, item := range items {
		rs, err := decodeTree(item)
		if err != nil {
			return nil, fmt.Errorf("item %d: %w", i, err)
		}
		out = append(out, rs...)
	}
	return out, nil
}

// decodeStrict reads one object of kind k that a user wrote.
func decodeStrict(k *Kind, doc []byte) (Resource, error) {
	r := k.New()
	t, err := parseTree(doc)
	if err != nil {
		return nil, err
	}
	fieldTypes{}.quoteStrings(t, reflect.TypeOf(r))
	doc = t.append(nil)
	faults, err := kjson.UnmarshalStrict(doc, r)
	if err := errors.Join(append(faults, err)...); err != nil {
		return nil, joinLines(k.Name+objectName(doc), err)
	}
	return r, nil
}

// joinLines prefixes every error that err joins.
func joinLines(prefix string, err error) error {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range many.Unwrap() {
			out = append(out, fmt.Errorf("%s: %w", prefix, e))
		}
		return errors.Join(out...)
	}
	return fmt.Errorf("%s: %w", prefix, err)
}

// objectName returns "(name)" of an object that may not decode otherwise.
func objectName(doc []byte) string {
	var o struct {
		Metadata struct{ Name, Namespace string } `json:"metadata"`
	}
	if json.Unmarshal(doc, &o) != nil || o.Metadata.Name == "" {
		return ""
	}
	return Key{Namespace: o.Metadata.Namespace, Name: o.Metadata.Name}.String()
}

// DecodeStored reads an object of the datastore. Fields that the kind does not
// have are passed over; see [MergeUnknown] for how they survive. The name of an
// IPAM kind is not in its JSON: only IPAMBlock gets its name here, the caller
// sets the others'.
func DecodeStored(kind string, data []byte) (Resource, error) {
	k := kindNamed(kind)
	if k == nil {
		return nil, fmt.Errorf("unknown kind %q", kind)
	}
	r := k.New()
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, r); err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	stamp(r, kind)
	if b, ok := r.(*IPAMBlock); ok && b.CIDR.IsValid() {
		b.Name = BlockName(b.CIDR)
	}
	return r, nil
}
