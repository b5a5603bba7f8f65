package datastore

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"calico-xdp/pkg/api"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"pgregory.net/rapid"
)

var longKey = api.Key{Kind: api.KindGlobalNetworkPolicy, Name: "default.long"}

// longText is a policy as it is stored, long enough to be remembered.
func longText(t interface{ Fatal(...any) }, ingress, egress []string) []byte {
	text := fmt.Sprintf(`{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"default.long","annotations":{"pad":"%s\"{"}},
 "spec":{"tier":"default","selector":"has(a)","egress":[%s],"ingress": [ %s ],"types":["Ingress","Egress"]}}`,
		strings.Repeat("x", longValue), strings.Join(egress, ","), strings.Join(ingress, " , "))
	if !json.Valid([]byte(text)) {
		t.Fatal(text)
	}
	return []byte(text)
}

func sameFinding(t interface{ Fatalf(string, ...any) }, got, want finding) {
	if fmt.Sprint(got.err) != fmt.Sprint(want.err) || !reflect.DeepEqual(got.change, want.change) {
		t.Fatalf("read again: %v, %+v\nread: %v, %+v", got.err, got.change.Resource, want.err, want.change.Resource)
	}
}

// What is read again is what a reader without a memory finds, whatever has changed, and
// what was handed out before stays as it was.
func TestRereadAgreesWithRead(t *testing.T) {
	reused := 0
	rapid.Check(t, func(t *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		rule := func() string {
			switch rng.IntN(12) {
			case 0:
				return `{"action":"Allow","source":{"selector":"a == '}],\\''"},"destination":{}}` // no selector
			case 1:
				return `{"action":"Deny" , "metadata":{"annotations":{"a":"]}\\\"{["}},"source":{},"destination":{"notNets":["10.0.0.0/8"]}}`
			case 2:
				return `{"action":"Log","source":{},"destination":{"ports":[80]}}` // ports without a protocol
			}
			return fmt.Sprintf(`{"action":"Allow","protocol":"TCP","source":{"nets":["10.%d.0.0/16"]},"destination":{"ports":[%d,"5:9"]}}`, rng.IntN(256), 1+rng.IntN(9))
		}
		var lists [2][]string
		for i := range lists {
			for range rng.IntN(6) {
				lists[i] = append(lists[i], rule())
			}
		}
		var r rereader
		var before finding
		var asBefore api.Resource
		for range 12 {
			l := &lists[rng.IntN(2)]
			at := rng.IntN(len(*l) + 1)
			switch rng.IntN(4) {
			case 0:
				*l = append((*l)[:at:at], append([]string{rule()}, (*l)[at:]...)...)
			case 1:
				if at < len(*l) {
					*l = append((*l)[:at:at], (*l)[at+1:]...)
				}
			case 2:
				if at < len(*l) {
					(*l)[at] = rule()
				}
			}
			kv := &mvccpb.KeyValue{Value: longText(t, lists[0], lists[1]), ModRevision: 1 + rng.Int64N(1000)}
			if last, ok := r.last[longKey]; ok {
				if now, ok := findRules(kv.Value); ok {
					if _, ok := last.findChanged(longKey, kv, now); ok {
						reused++
					}
				}
			}
			got := r.find(longKey, kv)
			sameFinding(t, got, find(longKey, kv))
			if before.change.Resource != nil && !reflect.DeepEqual(before.change.Resource, asBefore) {
				t.Fatalf("what was handed out has changed: %+v", before.change.Resource)
			}
			if before = got; got.change.Resource != nil {
				asBefore = got.change.Resource.DeepCopyObject().(api.Resource)
			}
		}
	})
	if reused == 0 {
		t.Error("nothing was taken from the reading before")
	}
}

// Only what is new is read of a policy in which one rule has changed.
func TestRereadIsShort(t *testing.T) {
	rules := make([]string, 1000)
	for i := range rules {
		rules[i] = fmt.Sprintf(`{"action":"Allow","source":{"nets":["10.0.%d.%d/32"]},"destination":{}}`, i/256, i%256)
	}
	text := longText(t, rules, rules[:3])
	lists, ok := findRules(text)
	if !ok || len(lists[0]) != 1000 || len(lists[1]) != 3 {
		t.Fatalf("%v, %d and %d rules", ok, len(lists[0]), len(lists[1]))
	}
	rules[500] = `{"action":"Deny","source":{},"destination":{}}`
	edited := longText(t, rules, rules[:3])
	now, _ := findRules(edited)
	if got, want := now[0].common(edited, lists[0], text), (common{499, 499}); got != want {
		t.Errorf("in common: %v, expected %v", got, want)
	}
	if got, want := now[1].common(edited, lists[1], text), (common{2, 0}); got != want {
		t.Errorf("in common: %v, expected %v", got, want)
	}
}

// FuzzReread reads two texts one after the other, whatever they are.
func FuzzReread(f *testing.F) {
	one := longText(f, []string{`{"action":"Allow"}`, `{"action":"Deny"}`}, nil)
	two := longText(f, []string{`{"action":"Allow"}`, `{"action":"Log"}`, `{"action":"Deny"}`}, []string{`{"action":"Pass"}`})
	pad := []byte(strings.Repeat("x", longValue))
	short := func(text []byte) []byte { return bytes.Replace(text, pad, []byte("PAD"), 1) }
	f.Add(short(one), short(two))
	f.Add(short(two), []byte(`{"spec":{"ingress":[{}],"ingress":[{},{}],"x":"PAD"},"spec":1}`))
	f.Add([]byte(`{"spec":{"ingress":[{"action":"Allow"},{"action":"Allow"},{]}],"x":"PAD"}}`), []byte(`{"\u0073pec":{"ingress":[1]},"spec":{"egress":["]"]}}PAD`))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		var r rereader
		for _, text := range [][]byte{one, two, one} {
			kv := &mvccpb.KeyValue{Value: bytes.Replace(text, []byte("PAD"), pad, 1), ModRevision: 7}
			sameFinding(t, r.find(longKey, kv), find(longKey, kv))
		}
	})
}

// BenchmarkReread is the edit of one rule of 10,000.
func BenchmarkReread(b *testing.B) {
	rules := make([]string, 10_000)
	for i := range rules {
		rules[i] = fmt.Sprintf(`{"action":"Allow","protocol":"TCP","source":{"nets":["172.16.%d.%d/32"]},"destination":{"ports":[%d]}}`, i/256, i%256, 1+i%5000)
	}
	text := longText(b, rules, nil)
	rules[5000] = strings.Replace(rules[5000], string(v3.Allow), string(v3.Deny), 1)
	edited := longText(b, rules, nil)
	var r rereader
	r.find(longKey, &mvccpb.KeyValue{Value: text, ModRevision: 1})
	b.SetBytes(int64(len(text)))
	for i := 0; b.Loop(); i++ {
		if f := r.find(longKey, &mvccpb.KeyValue{Value: [][]byte{edited, text}[i%2], ModRevision: 2}); f.err != nil {
			b.Fatal(f.err)
		}
	}
}
