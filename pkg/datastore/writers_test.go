package datastore

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/tools/testbed"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Two writers of the same object, ours and one that knows fields which we do not
// and swaps by revision as Calico does, never undo each other's work.
func TestTwoWriters(t *testing.T) {
	e := testbed.StartEtcd(t)
	c := openEtcd(t, e)
	ctx := t.Context()
	path, key := resourceRoot+"nodes/n", api.Key{Kind: api.KindNode, Name: "n"}
	e.Put(path, `{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"n","uid":"u","creationTimestamp":"2026-11-21T08:14:34Z"},"spec":{"later":{"count":0,"list":[{"a":1}]}},"status":{}}`)
	const times = 60
	var writers sync.WaitGroup
	writers.Go(func() {
		for i := range times {
			for {
				r, err := c.Get(ctx, key)
				if err != nil {
					t.Error(err)
					return
				}
				n := r.(*api.Node)
				if n.Labels == nil {
					n.Labels = map[string]string{}
				}
				n.Labels[fmt.Sprint("l", i)] = "x"
				if _, err = c.Update(ctx, n); err == nil {
					break
				}
				if !errors.Is(err, ErrConflict) {
					t.Error(err)
					return
				}
			}
		}
	})
	writers.Go(func() {
		etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{e.Endpoint()}})
		if err != nil {
			t.Error(err)
			return
		}
		defer etcd.Close()
		for done := 0; done < times; {
			r, err := etcd.Get(ctx, path)
			if err != nil {
				t.Error(err)
				return
			}
			var n map[string]any
			if err := json.Unmarshal(r.Kvs[0].Value, &n); err != nil {
				t.Error(err)
				return
			}
			later := n["spec"].(map[string]any)["later"].(map[string]any)
			later["count"] = later["count"].(float64) + 1
			text, _ := json.Marshal(n)
			swapped, err := etcd.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(path), "=", r.Kvs[0].ModRevision)).Then(clientv3.OpPut(path, string(text))).Commit()
			if err != nil {
				t.Error(err)
				return
			}
			if swapped.Succeeded {
				done++
			}
		}
	})
	writers.Wait()
	var n struct {
		Metadata struct {
			UID    string
			Labels map[string]string
		}
		Spec struct {
			Later struct {
				Count int
				List  []map[string]int
			}
		}
	}
	if err := json.Unmarshal([]byte(e.Get(path)), &n); err != nil {
		t.Fatal(err)
	}
	if len(n.Metadata.Labels) != times || n.Spec.Later.Count != times || len(n.Spec.Later.List) != 1 || n.Metadata.UID != "u" {
		t.Errorf("after %d changes by each: %s", times, e.Get(path))
	}
}

func TestGuards(t *testing.T) {
	e := testbed.StartEtcd(t)
	c := openEtcd(t, e)
	ctx := t.Context()
	a := must(t)(c.Create(ctx, set("a")))
	together, err := c.ListTogether(ctx, api.KindGlobalNetworkSet, api.KindNode)
	if err != nil || len(together.ByKind[api.KindGlobalNetworkSet]) != 1 || together.Revision != e.Revision() {
		t.Fatalf("%+v, %v", together, err)
	}
	unchanged, absent := Unchanged(setKey("a"), a.GetResourceVersion()), Unchanged(setKey("b"), "")
	none := NoneSince(api.KindGlobalNetworkSet, "", "", together.Revision)
	narrow := NoneSince(api.KindGlobalNetworkSet, "", "x-", together.Revision)

	must(t)(c.CreateIf(ctx, pool("p", "10.0.0.0/16"), unchanged, absent, none, narrow))
	p := must(t)(c.UpdateIf(ctx, pool("p", "10.0.0.0/16"), unchanged, absent, none, narrow))
	must(t)(c.Create(ctx, set("b")))
	for name, guard := range map[string]Guard{"absent": absent, "none since": none} {
		if _, err := c.UpdateIf(ctx, p, unchanged, guard); !errors.Is(err, ErrOvertaken) {
			t.Errorf("%s: update: %v", name, err)
		}
		if _, err := c.CreateIf(ctx, pool("q", "10.1.0.0/16"), guard); !errors.Is(err, ErrOvertaken) {
			t.Errorf("%s: create: %v", name, err)
		}
		for _, version := range []string{"", p.GetResourceVersion()} {
			if _, err := c.DeleteIf(ctx, api.KeyOf(p), version, guard); !errors.Is(err, ErrOvertaken) {
				t.Errorf("%s: delete: %v", name, err)
			}
		}
	}
	if _, err := c.DeleteIf(ctx, api.KeyOf(p), a.GetResourceVersion(), absent); !errors.Is(err, ErrConflict) {
		t.Errorf("both the object and a guard: %v", err)
	}
	must(t)(c.DeleteIf(ctx, api.KeyOf(p), "", unchanged, narrow))
}
