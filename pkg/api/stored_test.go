package api

import (
	"bytes"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// storedObject is one key and value of testdata/stored.txt, which holds what
// Calico's own tools wrote to etcd.
type storedObject struct {
	key, kind, namespace, name string
	data                       []byte
}

func storedObjects(t testing.TB) []storedObject {
	t.Helper()
	text, err := os.ReadFile("testdata/stored.txt")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	var out []storedObject
	for i := 0; i+1 < len(lines); i += 2 {
		o := storedObject{key: lines[i], data: []byte(lines[i+1])}
		if rest, ok := strings.CutPrefix(o.key, "/calico/resources/v3/projectcalico.org/"); ok {
			parts := strings.Split(rest, "/")
			k, ok := FindKind(parts[0])
			if !ok {
				t.Fatalf("%s: unknown plural", o.key)
			}
			o.kind, o.name = k.Name, parts[len(parts)-1]
			if k.Namespaced {
				o.namespace = parts[1]
			}
		} else {
			parts := strings.Split(strings.TrimPrefix(o.key, "/calico/ipam/v2/"), "/")
			o.name = parts[len(parts)-1]
			switch parts[0] {
			case "assignment":
				o.kind = KindIPAMBlock
			case "handle":
				o.kind = KindIPAMHandle
			case "host":
				o.kind, o.name = KindBlockAffinity, parts[1]+"/"+o.name
			case "config":
				o.kind, o.name = KindIPAMConfig, "default"
			}
		}
		out = append(out, o)
	}
	if len(out) < 50 {
		t.Fatalf("only %d objects", len(out))
	}
	return out
}

// decodeNamed decodes as the datastore does.
func decodeNamed(t testing.TB, o storedObject) Resource {
	t.Helper()
	r, err := DecodeStored(o.kind, o.data)
	if err != nil {
		t.Fatalf("%s: %v", o.key, err)
	}
	if r.GetName() == "" {
		r.SetName(o.name)
	}
	return r
}

func TestStoredObjectsAreWrittenBackAsTheyWere(t *testing.T) {
	for _, o := range storedObjects(t) {
		r := decodeNamed(t, o)
		if got, want := KeyOf(r), (Key{o.kind, o.namespace, o.name}); got != want {
			t.Errorf("%s: key %v, want %v", o.key, got, want)
		}
		Default(r)
		if err := Validate(r); err != nil {
			t.Errorf("%s: %v", o.key, err)
		}
		got, err := Encode(r)
		if err != nil {
			t.Errorf("%s: %v", o.key, err)
			continue
		}
		if !bytes.Equal(got, o.data) {
			t.Errorf("%s\n got %s\nwant %s", o.key, got, o.data)
		}
		merged, err := MergeUnknown(o.data, got)
		if err != nil || !bytes.Equal(merged, o.data) {
			t.Errorf("%s: merged (%v)\n got %s\nwant %s", o.key, err, merged, o.data)
		}
	}
}

func TestStoredObjectsPassAsUserInput(t *testing.T) {
	for _, o := range storedObjects(t) {
		if k, _ := FindKind(o.kind); k.Internal {
			continue
		}
		r, err := Decode(o.data)
		if err != nil {
			t.Errorf("%s: %v", o.key, err)
			continue
		}
		if d := diff(decodeNamed(t, o), r); d != "" {
			t.Errorf("%s: strict and lenient decoding differ: %s", o.key, d)
		}
	}
}

func TestDeepCopySharesNothing(t *testing.T) {
	for _, o := range storedObjects(t) {
		r := decodeNamed(t, o)
		c := r.DeepCopyObject().(Resource)
		if d := diff(r, c); d != "" {
			t.Errorf("%s: %s", o.key, d)
		}
		scribble(reflect.ValueOf(c))
		if d := diff(r, decodeNamed(t, o)); d != "" {
			t.Errorf("%s: the copy shares data: %s", o.key, d)
		}
	}
}

func TestDefaultIsIdempotent(t *testing.T) {
	for _, k := range Kinds() {
		r := k.New()
		r.SetName("x")
		Default(r)
		c := r.DeepCopyObject().(Resource)
		Default(r)
		if d := diff(c, r); d != "" {
			t.Errorf("%s: %s", k.Name, d)
		}
	}
}

// diff compares resources.
func diff(a, b Resource) string { return cmp.Diff(a, b, cmpopts.EquateComparable(netip.Prefix{})) }

// scribble changes all that can be reached from v through pointers, slices and
// maps.
func scribble(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			scribble(v.Elem())
		}
	case reflect.Struct:
		for _, f := range v.Fields() {
			scribble(f)
		}
	case reflect.Slice:
		for i := range v.Len() {
			scribble(v.Index(i))
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			v.SetMapIndex(k, reflect.Value{})
		}
	default:
		if v.CanSet() {
			v.SetZero()
		}
	}
}
