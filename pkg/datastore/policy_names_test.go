package datastore

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/tools/testbed"
)

// What Calico 3.31 stores for a policy that is called x and one that is called
// default.y, and 3.28 for one that is called z.
var formerPolicies = map[string]string{
	"globalnetworkpolicies/default.x": `{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"default.x","uid":"67a02ba1-b8a0-4b6e-a1c1-8a8a3e8d5c11","creationTimestamp":"2026-11-21T20:00:00Z","annotations":{"projectcalico.org/metadata":"{\"name\":\"x\"}"}},"spec":{"order":1,"ingress":[{"action":"Allow","source":{},"destination":{}}],"selector":"all()","types":["Ingress"]}}`,
	"globalnetworkpolicies/default.y": `{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"default.y","annotations":{"projectcalico.org/metadata":"{\"name\":\"default.y\"}"}},"spec":{"order":1,"selector":"all()","types":["Ingress"]}}`,
	"networkpolicies/prod/default.z":  `{"kind":"NetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"default.z","namespace":"prod"},"spec":{"order":1,"selector":"all()","types":["Ingress"]}}`,
}

func withFormerPolicies(t *testing.T) (*testbed.Etcd, *Client) {
	e := testbed.StartEtcd(t)
	for key, value := range formerPolicies {
		e.Put(resourceRoot+key, value)
	}
	return e, openEtcd(t, e)
}

func globalKey(name string) api.Key { return api.Key{Kind: api.KindGlobalNetworkPolicy, Name: name} }

func listed(t *testing.T, c *Client) (names []string) {
	t.Helper()
	rs, err := c.List(t.Context(), api.KindGlobalNetworkPolicy, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rs {
		names = append(names, r.GetName())
	}
	return names
}

func TestPoliciesAreFoundUnderTheNameThatAnOlderCalicoStores(t *testing.T) {
	e, c := withFormerPolicies(t)
	ctx := t.Context()
	for _, key := range []api.Key{
		{Kind: api.KindGlobalNetworkPolicy, Name: "x"}, {Kind: api.KindGlobalNetworkPolicy, Name: "default.y"},
		{Kind: api.KindNetworkPolicy, Namespace: "prod", Name: "z"},
	} {
		r := must(t)(c.Get(ctx, key))
		p, _ := api.PolicyOf(r)
		if p.Key != key || p.Tier != "default" || r.GetLabels()["projectcalico.org/tier"] != "default" || r.GetAnnotations() != nil {
			t.Errorf("%s: got %s in tier %q with labels %v and annotations %v", key, p.Key, p.Tier, r.GetLabels(), r.GetAnnotations())
		}
	}
	for name, key := range map[string]api.Key{
		"the name of another":       {Kind: api.KindGlobalNetworkPolicy, Name: "y"},
		"another namespace":         {Kind: api.KindNetworkPolicy, Namespace: "blue", Name: "z"},
		"another kind":              {Kind: api.KindStagedGlobalNetworkPolicy, Name: "x"},
		"one that is not there":     {Kind: api.KindGlobalNetworkPolicy, Name: "none"},
		"one that has a dot itself": {Kind: api.KindGlobalNetworkPolicy, Name: "default.none"},
	} {
		if r, err := c.Get(ctx, key); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: got %v, %v", name, r, err)
		}
	}

	if names := listed(t, c); !slices.Equal(names, []string{"x", "default.y"}) {
		t.Errorf("listed as %q", names)
	}
	// Someone has written a second one under the new name: both can be told apart.
	e.Put(resourceRoot+"globalnetworkpolicies/x", strings.ReplaceAll(formerPolicies["globalnetworkpolicies/default.x"], "default.x", "x"))
	if names := listed(t, c); !slices.Equal(names, []string{"default.x", "default.y", "x"}) {
		t.Errorf("two of one name are listed as %q", names)
	}
}

func TestWritingAPolicyThatAnOlderCalicoHasStoredMakesNoSecondOne(t *testing.T) {
	const path = resourceRoot + "globalnetworkpolicies/default.x"
	writes := map[string]func(*Client) error{
		"update": func(c *Client) error {
			r, err := c.Update(t.Context(), gnp(t, "x", "has(a)"))
			if err == nil && r.GetName() != "x" {
				t.Errorf("Update returns %s", api.KeyOf(r))
			}
			return err
		},
		"apply": func(c *Client) error {
			_, created, err := c.Apply(t.Context(), gnp(t, "x", "has(a)"))
			if created {
				t.Error("Apply has created a policy")
			}
			return err
		},
		"update of what was read": func(c *Client) error {
			r := must(t)(c.Get(t.Context(), globalKey("x"))).(*api.GlobalNetworkPolicy)
			r.Spec.Selector = "has(a)"
			_, err := c.Update(t.Context(), r)
			return err
		},
		"trial": func(c *Client) error {
			trial, err := c.Try(t.Context(), []api.Resource{gnp(t, "x", "has(a)")}, time.Minute, "test")
			if err == nil && trial.Changes[0].Name != "default.x" {
				t.Errorf("the trial is of %s", trial.Changes[0].Key())
			}
			return err
		},
	}
	for name, write := range writes {
		t.Run(name, func(t *testing.T) {
			e, c := withFormerPolicies(t)
			if err := write(c); err != nil {
				t.Fatal(err)
			}
			stored := e.Get(path)
			for _, part := range []string{`"name":"default.x"`, `"projectcalico.org/metadata":"{\"name\":\"x\"}"`, `"selector":"has(a)"`, "67a02ba1"} {
				if !strings.Contains(stored, part) {
					t.Errorf("%s is not in what is stored: %s", part, stored)
				}
			}
			if second := e.Get(resourceRoot + "globalnetworkpolicies/x"); second != "" {
				t.Errorf("a second one: %s", second)
			}
		})
	}

	e, c := withFormerPolicies(t)
	ctx := t.Context()
	if _, err := c.Create(ctx, gnp(t, "x", "has(a)")); !errors.Is(err, ErrExists) {
		t.Errorf("Create: %v", err)
	}
	if _, err := c.Create(ctx, gnp(t, "y", "has(a)")); err != nil {
		t.Errorf("Create of a name that only looks taken: %v", err)
	}
	r, err := c.Delete(ctx, globalKey("x"), "")
	if err != nil || r == nil {
		t.Fatalf("Delete: %v, %v", r, err)
	}
	if left := e.Get(path); left != "" {
		t.Errorf("not deleted: %s", left)
	}
	if _, err := c.Delete(ctx, globalKey("x"), ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("second Delete: %v", err)
	}
}
