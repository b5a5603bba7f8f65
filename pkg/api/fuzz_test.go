package api

import (
	"bytes"
	"testing"
)

// FuzzStored: whatever decodes can be defaulted, validated and written, comes
// back as the same object, and keeps its unknown fields.
func FuzzStored(f *testing.F) {
	for _, o := range storedObjects(f) {
		f.Add(o.kind, o.data)
	}
	f.Add(KindIPPool, []byte(`{"spec":{"cidr":null,"new":{"a":[1,{}]}},"new":1.50}`))
	f.Add(KindNetworkPolicy, []byte(`{"spec":{"ingress":[{"source":{"ports":["a",1]},"new":1},{"new":2}]}}`))
	f.Fuzz(func(t *testing.T, kind string, data []byte) {
		r, err := DecodeStored(kind, data)
		if err != nil {
			return
		}
		if r.GetName() == "" {
			r.SetName("x")
		}
		Default(r)
		_ = Validate(r)
		one, err := Encode(r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeStored(kind, one)
		if err != nil {
			t.Fatalf("%s: %v", one, err)
		}
		two, err := Encode(again)
		if err != nil || !bytes.Equal(one, two) {
			t.Fatalf("%v:\n%s\n%s", err, one, two)
		}
		merged, err := MergeUnknown(data, one)
		if err != nil {
			t.Fatalf("%s into %s: %v", data, one, err)
		}
		last, err := DecodeStored(kind, merged)
		if err != nil {
			t.Fatalf("%s: %v", merged, err)
		}
		if three, err := Encode(last); err != nil || !bytes.Equal(one, three) {
			t.Fatalf("%v: merging changed the object:\n%s\n%s", err, one, three)
		}
	})
}

// FuzzDecode: no input of a user makes it panic.
// What cannot be decoded is salvaged as something that can be worked with, and what
// can be is salvaged as it is.
func FuzzSalvage(f *testing.F) {
	for _, o := range storedObjects(f) {
		f.Add(o.kind, o.data)
	}
	f.Add(KindNetworkPolicy, []byte(`{"spec":{"ingress":[{"source":{"ports":["2:1",-1,{}]},"protocol":[]},7,null]}}`))
	f.Add(KindProfile, []byte(`{"spec":{"egress":[{"destination":{"notPorts":["unreadable-1","2:1","3:1"]}}]}}`))
	f.Fuzz(func(t *testing.T, kind string, data []byte) {
		sound, err := DecodeStored(kind, data)
		r := Salvage(kind, data)
		if r == nil {
			return
		}
		Default(r)
		_ = Validate(r)
		one, encodeErr := Encode(r)
		if encodeErr != nil {
			t.Fatal(encodeErr)
		}
		if err != nil {
			return
		}
		Default(sound)
		if two, err := Encode(sound); err != nil || !bytes.Equal(one, two) {
			t.Fatalf("%v:\n%s\n%s", err, one, two)
		}
	})
}

func FuzzDecode(f *testing.F) {
	for _, o := range storedObjects(f) {
		f.Add(o.data)
	}
	f.Add([]byte("---\nkind: IPPool\n--- {a: b}\n[]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		rs, err := DecodeAll(data)
		if err != nil {
			return
		}
		for _, r := range rs {
			Default(r)
			_ = Validate(r)
			if _, err := Encode(r); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func BenchmarkStored(b *testing.B) {
	for _, o := range storedObjects(b) {
		if o.name != "node--a-k8s-web--0-eth0" && o.name != "security.gnp-full" {
			continue
		}
		b.Run("decode/"+o.kind, func(b *testing.B) {
			for b.Loop() {
				decodeNamed(b, o)
			}
		})
		r := decodeNamed(b, o)
		b.Run("validate/"+o.kind, func(b *testing.B) {
			for b.Loop() {
				if err := Validate(r); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("encode/"+o.kind, func(b *testing.B) {
			for b.Loop() {
				if _, err := Encode(r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkGreatPolicy is a policy of 10,000 rules, as one edit of it costs.
func BenchmarkGreatPolicy(b *testing.B) {
	p := read(b, KindGlobalNetworkPolicy, "p", "{}").(*GlobalNetworkPolicy)
	rule := read(b, KindGlobalNetworkPolicy, "p", gnp("{action: Allow, protocol: TCP, source: {nets: [10.0.0.0/8]}, destination: {ports: [80]}}"))
	for range 10_000 {
		p.Spec.Ingress = append(p.Spec.Ingress, *rule.(*GlobalNetworkPolicy).Spec.Ingress[0].DeepCopy())
	}
	data, err := Encode(p)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("decode", func(b *testing.B) {
		for b.Loop() {
			if _, err := DecodeStored(KindGlobalNetworkPolicy, data); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("default", func(b *testing.B) {
		for b.Loop() {
			Default(p)
		}
	})
	b.Run("validate", func(b *testing.B) {
		for b.Loop() {
			if err := Validate(p); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("encode", func(b *testing.B) {
		for b.Loop() {
			if _, err := Encode(p); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("merge", func(b *testing.B) {
		for b.Loop() {
			if _, err := MergeUnknown(data, data); err != nil {
				b.Fatal(err)
			}
		}
	})
}
