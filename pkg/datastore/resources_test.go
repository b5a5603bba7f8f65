package datastore

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/tools/testbed"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestCreateGetUpdateDelete(t *testing.T) {
	e := testbed.StartEtcd(t)
	c := openEtcd(t, e)
	ctx := t.Context()

	given := pool("pool-a", "10.1.0.0/16")
	made := must(t)(c.Create(ctx, given)).(*api.IPPool)
	if given.UID != "" || given.ResourceVersion != "" {
		t.Error("Create changed what it was given")
	}
	if made.UID == "" || made.CreationTimestamp.IsZero() || made.ResourceVersion != strconv.FormatInt(e.Revision(), 10) {
		t.Errorf("created without identity or revision: %+v", made.ObjectMeta)
	}
	if made.Spec.BlockSize != 26 {
		t.Errorf("not defaulted: block size %d", made.Spec.BlockSize)
	}
	stored := e.Get(resourceRoot + "ippools/pool-a")
	want := fmt.Sprintf(`{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"pool-a","uid":"%s","creationTimestamp":"%s"},`+
		`"spec":{"cidr":"10.1.0.0/16","vxlanMode":"Never","ipipMode":"Never","blockSize":26,"nodeSelector":"all()","allowedUses":["Workload","Tunnel"],"assignmentMode":"Automatic"}}`,
		made.UID, made.CreationTimestamp.UTC().Format("2006-01-02T15:04:05Z"))
	if stored != want {
		t.Errorf("stored\n%s\nwant\n%s", stored, want)
	}
	if _, err := c.Create(ctx, given); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "IPPool(pool-a)") {
		t.Errorf("second Create: %v", err)
	}

	got := must(t)(c.Get(ctx, api.KeyOf(given))).(*api.IPPool)
	if got.ResourceVersion != made.ResourceVersion || got.UID != made.UID {
		t.Errorf("Get: %+v, created %+v", got.ObjectMeta, made.ObjectMeta)
	}
	got.Spec.NATOutgoing = true
	updated := must(t)(c.Update(ctx, got)).(*api.IPPool)
	if updated.ResourceVersion == made.ResourceVersion || updated.UID != made.UID || !updated.CreationTimestamp.Equal(&made.CreationTimestamp) {
		t.Errorf("Update: %+v, created %+v", updated.ObjectMeta, made.ObjectMeta)
	}
	got.Spec.NATOutgoing = false
	_, err := c.Update(ctx, got) // its revision is the one before
	if !errors.Is(err, ErrConflict) {
		t.Fatalf("stale Update: %v", err)
	}
	for _, part := range []string{"IPPool(pool-a)", made.ResourceVersion, updated.ResourceVersion} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("conflict does not name %s: %v", part, err)
		}
	}
	fresh := pool("pool-a", "10.1.0.0/16") // no revision: overwrites, and keeps who it is
	if r := must(t)(c.Update(ctx, fresh)); r.GetUID() != made.UID {
		t.Errorf("uid changed from %s to %s", made.UID, r.GetUID())
	}
	if _, err := c.Update(ctx, pool("pool-b", "10.2.0.0/16")); !errors.Is(err, ErrNotFound) {
		t.Errorf("Update of nothing: %v", err)
	}

	key := api.KeyOf(given)
	if _, err := c.Delete(ctx, key, made.ResourceVersion); !errors.Is(err, ErrConflict) {
		t.Errorf("stale Delete: %v", err)
	}
	old := must(t)(c.Get(ctx, key))
	if r := must(t)(c.Delete(ctx, key, old.GetResourceVersion())); r.GetUID() != made.UID {
		t.Errorf("Delete returned %+v", r)
	}
	for _, version := range []string{"", "7"} {
		if _, err := c.Delete(ctx, key, version); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), key.String()) {
			t.Errorf("Delete of nothing: %v", err)
		}
	}
	if _, err := c.Get(ctx, key); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get of nothing: %v", err)
	}
	if _, err := c.Delete(ctx, key, "new"); err == nil || !strings.Contains(err.Error(), `"new"`) {
		t.Errorf("Delete at revision %q: %v", "new", err)
	}
}

func TestInvalidIsNotWritten(t *testing.T) {
	e := testbed.StartEtcd(t)
	c := openEtcd(t, e)
	for _, r := range []api.Resource{pool("Bad_Name", "10.0.0.0/16"), pool("pool-a", "10.0.0.300/16")} {
		if _, err := c.Create(t.Context(), r); err == nil {
			t.Errorf("%s was created", api.KeyOf(r))
		}
		if _, _, err := c.Apply(t.Context(), r); err == nil {
			t.Errorf("%s was applied", api.KeyOf(r))
		}
	}
	if rs, err := c.List(t.Context(), api.KindIPPool, ""); err != nil || len(rs) != 0 {
		t.Errorf("stored: %v, %v", rs, err)
	}
}

func TestApply(t *testing.T) {
	c := openEtcd(t, testbed.StartEtcd(t))
	for i, want := range []bool{true, false} {
		p := pool("pool-a", "10.1.0.0/16")
		p.Spec.NATOutgoing = i == 1
		r, created, err := c.Apply(t.Context(), p)
		if err != nil || created != want || r.(*api.IPPool).Spec.NATOutgoing != p.Spec.NATOutgoing {
			t.Fatalf("Apply %d: %+v, created %v, %v", i, r, created, err)
		}
	}
}

func TestNamespaces(t *testing.T) {
	c := openEtcd(t, testbed.StartEtcd(t))
	ctx := t.Context()
	for _, key := range []string{"/web", "prod/web", "prod/api", "prod-eu/web"} {
		p := &api.NetworkPolicy{}
		p.Namespace, p.Name, _ = strings.Cut(key, "/")
		must(t)(c.Create(ctx, p))
	}
	for namespace, want := range map[string]string{
		"": "default/web prod-eu/web prod/api prod/web", "prod": "prod/api prod/web", "default": "default/web", "none": "",
	} {
		rs, err := c.List(ctx, api.KindNetworkPolicy, namespace)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range rs {
			got = append(got, r.GetNamespace()+"/"+r.GetName())
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("List in %q: %s, want %s", namespace, s, want)
		}
	}
	key := api.Key{Kind: api.KindNetworkPolicy, Name: "web"} // in "default"
	must(t)(c.Get(ctx, key))
	must(t)(c.Delete(ctx, key, ""))
	must(t)(c.Get(ctx, api.Key{Kind: api.KindNetworkPolicy, Namespace: "prod", Name: "web"}))
}

func TestListIsSortedAndPaged(t *testing.T) {
	e := testbed.StartEtcd(t)
	c := openEtcd(t, e)
	const n = 2*firstPage + 10
	for i := range n {
		name := fmt.Sprintf("set-%04d", i*7%n)
		e.Put(setPath(name), `{"metadata":{"name":"`+name+`"},"spec":{"nets":["10.0.0.0/8"]}}`)
	}
	rs, err := c.List(t.Context(), api.KindGlobalNetworkSet, "")
	if err != nil || len(rs) != n {
		t.Fatalf("List: %d of %d, %v", len(rs), n, err)
	}
	for i, r := range rs {
		if want := fmt.Sprintf("set-%04d", i); r.GetName() != want {
			t.Fatalf("element %d is %s", i, r.GetName())
		}
	}
}

func TestRacingWriters(t *testing.T) {
	e := testbed.StartEtcd(t)
	ctx := t.Context()
	const writers, rounds = 4, 15
	start := set("shared")
	first := openEtcd(t, e)
	must(t)(first.Create(ctx, start))
	var wg sync.WaitGroup
	for i := range writers {
		c := openEtcd(t, e)
		wg.Go(func() {
			for round := range rounds {
				for {
					r, err := c.Get(ctx, setKey("shared"))
					if err != nil {
						t.Error(err)
						return
					}
					s := r.(*api.GlobalNetworkSet)
					s.Spec.Nets = append(s.Spec.Nets, fmt.Sprintf("10.%d.%d.0/24", i, round))
					if _, err = c.Update(ctx, s); err == nil {
						break
					} else if !errors.Is(err, ErrConflict) {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	s := must(t)(first.Get(ctx, setKey("shared"))).(*api.GlobalNetworkSet)
	if len(s.Spec.Nets) != writers*rounds {
		t.Errorf("%d additions survived, want %d", len(s.Spec.Nets), writers*rounds)
	}

	// Without a revision everyone gets through; one Create wins.
	created := make(chan string, writers)
	for i := range writers {
		c := openEtcd(t, e)
		wg.Go(func() {
			if _, err := c.Update(ctx, set("shared", fmt.Sprintf("10.0.0.%d/32", i))); err != nil {
				t.Error(err)
			}
			switch r, err := c.Create(ctx, set("raced")); {
			case err == nil:
				created <- string(r.GetUID())
			case !errors.Is(err, ErrExists):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(created) != 1 {
		t.Fatalf("%d writers created it", len(created))
	}
	if r := must(t)(first.Get(ctx, setKey("raced"))); string(r.GetUID()) != <-created {
		t.Error("what is stored is not the winner's")
	}
}

func TestUnknownFieldsSurvive(t *testing.T) {
	e := testbed.StartEtcd(t)
	c := openEtcd(t, e)
	path := resourceRoot + "ippools/pool-a"
	e.Put(path, `{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"pool-a","uid":"u-1","creationTimestamp":"2026-11-21T08:14:57Z","futureMeta":"x"},`+
		`"spec":{"cidr":"10.1.0.0/16","blockSize":26,"nodeSelector":"all()","future":{"deep":[1,2]}},"status":{"conditions":[]}}`)
	p := must(t)(c.Get(t.Context(), api.Key{Kind: api.KindIPPool, Name: "pool-a"})).(*api.IPPool)
	p.Spec.NATOutgoing = true
	must(t)(c.Update(t.Context(), p))
	var stored struct {
		Metadata map[string]any
		Spec     map[string]any
		Status   any
	}
	if err := json.Unmarshal([]byte(e.Get(path)), &stored); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(stored.Spec["future"]) != "map[deep:[1 2]]" || stored.Metadata["futureMeta"] != "x" || stored.Status == nil {
		t.Errorf("lost a field: %s", e.Get(path))
	}
	if stored.Spec["natOutgoing"] != true || stored.Metadata["uid"] != "u-1" || stored.Metadata["resourceVersion"] != nil {
		t.Errorf("stored %s", e.Get(path))
	}
}

func TestBrokenObjectCanBeSeenAroundReplacedAndDeleted(t *testing.T) {
	e := testbed.StartEtcd(t)
	c, logs := open(t, Config{Endpoints: []string{e.Endpoint()}})
	ctx := t.Context()
	must(t)(c.Create(ctx, set("good", "10.0.0.0/8")))
	for name, value := range map[string]string{
		"bad-json": `{"metadata":`, "bad-type": `{"metadata":{"name":"bad-type"},"spec":{"nets":"10.0.0.0/8"}}`,
		"bad-name": `{"metadata":{"name":"other"}}`, "empty": ``, "null": `null`,
	} {
		e.Put(setPath(name), value)
		if r, err := c.Get(ctx, setKey(name)); err == nil || !strings.Contains(err.Error(), setKey(name).String()) {
			t.Errorf("Get %s: %v, %v", name, r, err)
		}
	}
	rs, err := c.List(ctx, api.KindGlobalNetworkSet, "")
	if err != nil || len(rs) != 1 || rs[0].GetName() != "good" {
		t.Fatalf("List: %v, %v", rs, err)
	}
	if !strings.Contains(logs.String(), "GlobalNetworkSet(bad-json)") {
		t.Errorf("nothing said of the broken one:\n%s", logs)
	}
	for _, name := range []string{"bad-json", "bad-type", "bad-name", "empty", "null"} {
		if _, created, err := c.Apply(ctx, set(name, "10.9.0.0/16")); err != nil || created {
			t.Errorf("Apply over %s: created %v, %v", name, created, err)
		}
		r := must(t)(c.Get(ctx, setKey(name)))
		if r.GetUID() == "" {
			t.Errorf("%s has no uid", name)
		}
		e.Put(setPath(name), `{`)
		if _, err := c.Delete(ctx, setKey(name), ""); err != nil {
			t.Errorf("Delete %s: %v", name, err)
		}
	}
}

func TestInitialize(t *testing.T) {
	e := testbed.StartEtcd(t)
	c := openEtcd(t, e)
	ctx := t.Context()
	must(t)(c.Create(ctx, set("first")))
	info := must(t)(c.Get(ctx, api.Key{Kind: api.KindClusterInformation, Name: "default"})).(*api.ClusterInformation)
	if len(info.Spec.ClusterGUID) != 32 || info.Spec.DatastoreReady == nil || !*info.Spec.DatastoreReady {
		t.Errorf("cluster information: %+v", info.Spec)
	}
	tiers, err := c.List(ctx, api.KindTier, "")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range tiers {
		tier := r.(*api.Tier)
		got = append(got, fmt.Sprintf("%s %.0f %s", tier.Name, *tier.Spec.Order, *tier.Spec.DefaultAction))
	}
	if s := strings.Join(got, ", "); s != "default 1000000 Deny, kube-admin 1000 Pass, kube-baseline 10000000 Pass" {
		t.Errorf("tiers: %s", s)
	}

	// Again, by someone else: what is there stays, what is missing comes back.
	must(t)(c.Delete(ctx, api.Key{Kind: api.KindTier, Name: "kube-admin"}, ""))
	if err := openEtcd(t, e).Initialize(ctx); err != nil {
		t.Fatal(err)
	}
	must(t)(c.Get(ctx, api.Key{Kind: api.KindTier, Name: "kube-admin"}))
	if again := must(t)(c.Get(ctx, api.KeyOf(info))).(*api.ClusterInformation); again.ResourceVersion != info.ResourceVersion {
		t.Error("cluster information was written again")
	}
}

func TestIPAMKinds(t *testing.T) {
	e := testbed.StartEtcd(t)
	c := openEtcd(t, e)
	ctx := t.Context()
	cidr := netip.MustParsePrefix("192.168.5.0/30")
	host := "host:node-a"
	block := &api.IPAMBlock{
		ObjectMeta: metav1.ObjectMeta{Name: api.BlockName(cidr)}, CIDR: cidr, Affinity: &host,
		Allocations: make([]*int, 4), Unallocated: []int{0, 1, 2, 3}, Attributes: []api.AllocationAttribute{},
		SequenceNumberForAllocation: map[string]uint64{},
	}
	affinity := &api.BlockAffinity{ObjectMeta: metav1.ObjectMeta{Name: api.AffinityName("node-a", cidr)}, State: api.AffinityPending}
	handle := &api.IPAMHandle{ObjectMeta: metav1.ObjectMeta{Name: "h.1"}, Block: map[string]int{"192.168.5.0/30": 1}}
	for path, r := range map[string]api.Resource{
		"/calico/ipam/v2/assignment/ipv4/block/192.168.5.0-30":  block,
		"/calico/ipam/v2/host/node-a/ipv4/block/192.168.5.0-30": affinity,
		"/calico/ipam/v2/handle/h.1":                            handle,
		"/calico/ipam/v2/config":                                api.NewIPAMConfig(),
	} {
		made := must(t)(c.Create(ctx, r))
		if stored := e.Get(path); stored == "" || strings.Contains(stored, "metadata") {
			t.Errorf("%s: stored %q", path, stored)
		}
		got := must(t)(c.Get(ctx, api.KeyOf(r)))
		if got.GetName() != r.GetName() || got.GetResourceVersion() != made.GetResourceVersion() {
			t.Errorf("%s read as %s at %s, want %s", path, api.KeyOf(got), got.GetResourceVersion(), made.GetResourceVersion())
		}
		again := must(t)(c.Update(ctx, got))
		if _, err := c.Update(ctx, got); !errors.Is(err, ErrConflict) {
			t.Errorf("stale Update of %s: %v", path, err)
		}
		rs, err := c.List(ctx, api.KeyOf(r).Kind, "")
		if err != nil || len(rs) != 1 || rs[0].GetResourceVersion() != again.GetResourceVersion() {
			t.Errorf("List of %s: %v, %v", api.KeyOf(r).Kind, rs, err)
		}
	}
	must(t)(c.Create(ctx, &api.BlockAffinity{ObjectMeta: metav1.ObjectMeta{Name: api.AffinityName("node-a2", cidr)}, State: api.AffinityPending}))
	if got, err := c.ListAffinities(ctx, "node-a"); err != nil || len(got) != 1 || got[0].Name != affinity.Name {
		t.Errorf("affinities of node-a: %v, %v", got, err)
	}
}
