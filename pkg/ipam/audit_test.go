package ipam

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// endpoint makes a pod's WorkloadEndpoint with these addresses.
func endpoint(node, pod string, addrs ...string) *api.WorkloadEndpoint {
	w := api.NewWorkloadEndpoint()
	w.Name, w.Namespace = api.WorkloadEndpointName(node, "k8s", pod, "eth0"), "prod"
	w.Spec = api.WorkloadEndpointSpec{
		Orchestrator: "k8s", Node: node, Pod: pod, Endpoint: "eth0", ContainerID: "c-" + pod, InterfaceName: "cali" + pod,
		IPNetworks: addrs, Profiles: []string{"k8s-pod-network"},
	}
	return w
}

func podAttributes(node, pod string) map[string]string {
	return map[string]string{AttributeNode: node, AttributePod: pod, AttributeNamespace: "prod"}
}

// pod assigns an address as the CNI plugin does, and returns it.
func (w *world) pod(node, pod string) netip.Addr {
	w.Helper()
	got, err := w.AssignAuto(w.Context(), Request{Node: node, Handle: "k8s-pod-network.c-" + pod, IPv4: 1, Attributes: podAttributes(node, pod)})
	if err != nil {
		w.Fatal(err)
	}
	return got.IPv4[0]
}

// findings is an audit in short.
func findings(r *Audit) string {
	var out []string
	for _, al := range r.Of(Leaked) {
		out = append(out, "leaked "+al.Address.String())
	}
	for _, al := range r.Of(Unknown) {
		out = append(out, "unknown "+al.Address.String())
	}
	for _, u := range r.Unassigned {
		out = append(out, "unassigned "+u.Address.String())
	}
	for _, u := range r.Foreign {
		out = append(out, "foreign "+u.Address.String())
	}
	for _, c := range r.Conflicts {
		out = append(out, fmt.Sprintf("conflict %s %s", c.Address, c.Text))
	}
	for _, f := range r.Faults {
		out = append(out, "fault "+f.String())
	}
	for _, h := range r.LostHandles {
		out = append(out, "lost "+h.ID)
	}
	for _, o := range r.Orphans {
		out = append(out, "orphan "+o.Block.String()+" "+o.Text)
	}
	for _, k := range r.Unread {
		out = append(out, "unread "+k.String())
	}
	return strings.Join(out, "\n")
}

func (w *world) audited(want ...string) *Audit {
	w.Helper()
	r, err := w.Audit(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	if got := findings(r); got != strings.Join(want, "\n") {
		w.Errorf("audit finds\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
	return r
}

func TestAuditFindsAndRepairs(t *testing.T) {
	w := newWorld(t)
	w.pool("p", "10.0.0.0/24", 28, nil)
	w.node("a", nil)
	w.node("b", nil)
	ctx := t.Context()

	live := w.pod("a", "live")
	w.create(endpoint("a", "live", live.String()+"/32"))
	w.audited()

	leaked := w.pod("a", "leaked")
	manual := netip.MustParseAddr("10.0.0.200")
	if err := w.AssignAddress(ctx, AddressRequest{Address: manual, Node: "b", Handle: "by-hand", Attributes: map[string]string{AttributeType: "manual"}}); err != nil {
		t.Fatal(err)
	}
	elsewhere := netip.MustParseAddr("10.0.0.201")
	if err := w.AssignAddress(ctx, AddressRequest{Address: elsewhere, Node: "b", Handle: "other", Attributes: map[string]string{AttributeNode: "b", AttributeType: TypeElsewhere}}); err != nil {
		t.Fatal(err)
	}
	tunnel, err := w.EnsureTunnelAddress(ctx, "b", IPIP, []string{"p"})
	if err != nil {
		t.Fatal(err)
	}
	free := netip.MustParseAddr("10.0.0.222")
	w.create(endpoint("a", "stray", free.String(), "192.0.2.1"))
	w.create(endpoint("b", "thief", live.String()))
	h := &api.IPAMHandle{Block: map[string]int{"10.0.0.64/28": 2}}
	h.Name = "ghost"
	w.create(h)
	w.create(&api.BlockAffinity{ObjectMeta: metav1.ObjectMeta{Name: "b/10.0.0.80-28"}, State: api.AffinityPending})
	w.assign4("c", "gone", 1)

	all := must(w.Audit(ctx)).Allocations
	gone := all[slices.IndexFunc(all, func(al Allocation) bool { return al.Handle == "gone" })]
	leaks := []netip.Addr{leaked, tunnel, gone.Address}
	slices.SortFunc(leaks, netip.Addr.Compare)
	r := must(w.Audit(ctx))
	var got []netip.Addr
	for _, al := range r.Of(Leaked) {
		got = append(got, al.Address)
	}
	if !slices.Equal(got, leaks) {
		t.Errorf("leaked %v, want %v", got, leaks)
	}
	text := findings(r)
	for _, want := range []string{
		"unknown 10.0.0.200", "unassigned 10.0.0.222", "foreign 192.0.2.1",
		"assigned to node a (handle k8s-pod-network.c-live), used by Workload(prod/b-k8s-thief-eth0) of node b",
		"used by Workload(prod/a-k8s-live-eth0) and Workload(prod/b-k8s-thief-eth0)",
		"fault IPAMHandle(ghost): counts 2 in 10.0.0.64/28, which has 0", "lost ghost",
		"fault BlockAffinity(b/10.0.0.80-28): the block is not b's",
		"orphan " + gone.Block.String() + " the owner, c, is no node",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if r.Problems() == 0 {
		t.Error("called sound")
	}

	if done, err := w.Repair(ctx, r.Faults); err != nil || len(done) != 2 {
		t.Errorf("repaired %v, %v", done, err)
	}
	var wanted []Assignment
	for _, al := range r.Of(Leaked) {
		wanted = append(wanted, al.Assignment)
	}
	if freed, err := w.Reclaim(ctx, wanted); err != nil || len(freed) != 3 {
		t.Errorf("reclaimed %v, %v", freed, err)
	}
	for _, u := range r.Unassigned {
		if ok, err := w.Adopt(ctx, u); !ok || err != nil {
			t.Errorf("adopt %v: %v, %v", u, ok, err)
		}
	}
	for _, o := range r.Orphans {
		if err := w.ReleaseOrphan(ctx, o); err != nil {
			t.Error(err)
		}
	}
	if _, err := w.store.Delete(ctx, api.Key{Kind: api.KindWorkloadEndpoint, Namespace: "prod", Name: "b-k8s-thief-eth0"}, ""); err != nil {
		t.Fatal(err)
	}
	if r := w.audited("unknown 10.0.0.200", "foreign 192.0.2.1"); r.Problems() != 0 {
		t.Error("not sound")
	}
	if as := must(w.Lookup(ctx, free)); as.Handle != "k8s-pod-network.c-stray" || as.Attributes[AttributePod] != "stray" {
		t.Errorf("adopted as %+v", as)
	}
	if _, err := w.Lookup(ctx, leaked); !errors.Is(err, ErrNotAssigned) {
		t.Errorf("leaked address: %v", err)
	}
}

// A stored endpoint that cannot be read may have any address: then none is leaked.
func TestUnreadableEndpointStopsReclaiming(t *testing.T) {
	w := newWorld(t)
	w.pool("p", "10.0.0.0/24", 28, nil)
	w.node("a", nil)
	addr := w.pod("a", "x")
	w.etcd.Put("/calico/resources/v3/projectcalico.org/workloadendpoints/prod/a-k8s-x-eth0", `{"metadata":`)
	w.audited("unknown "+addr.String(), "unread WorkloadEndpoint(prod/a-k8s-x-eth0)")
	as := must(w.Lookup(t.Context(), addr))
	if freed, err := w.Reclaim(t.Context(), []Assignment{as}); !errors.Is(err, ErrUnclear) || len(freed) > 0 {
		t.Errorf("%v, %v", freed, err)
	}
}

// TestReclaimRacesAnEndpoint writes the endpoint of an address at the very moment at
// which it is about to be released, both ways round: one of the two loses.
func TestReclaimRacesAnEndpoint(t *testing.T) {
	w := newWorld(t)
	w.pool("p", "10.0.0.0/24", 28, nil)
	w.node("a", nil)
	ctx := t.Context()
	for _, test := range []struct {
		name string
		w    *api.WorkloadEndpoint
	}{{"new", nil}, {"overwritten", endpoint("a", "x")}} {
		addr := w.pod("a", "x")
		as := must(w.Lookup(ctx, addr))
		if test.w != nil {
			w.create(test.w)
		}
		key := api.KeyOf(endpoint("a", "x"))
		h := &hooked{Store: w.store}
		h.hook = func(n int, write func() (api.Resource, error)) (api.Resource, error) {
			if n == 1 {
				guards, err := w.AssignedTo(ctx, as.Handle, []netip.Addr{addr})
				if err != nil {
					t.Error(err)
				}
				if _, _, err := w.store.ApplyIf(ctx, endpoint("a", "x", addr.String()), guards...); err != nil {
					t.Error(err)
				}
			}
			return write()
		}
		if freed, err := New(h).Reclaim(ctx, []Assignment{as}); err != nil || len(freed) > 0 {
			t.Errorf("%s: a live address was released: %v, %v", test.name, freed, err)
		}
		if _, err := w.Lookup(ctx, addr); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}

		// The other way round: the writer of the endpoint has looked, then the
		// address goes.
		if _, err := w.store.Delete(ctx, key, ""); err != nil {
			t.Fatal(err)
		}
		guards := must(w.AssignedTo(ctx, as.Handle, []netip.Addr{addr}))
		if freed, err := w.Reclaim(ctx, []Assignment{as}); err != nil || len(freed) != 1 {
			t.Errorf("%s: %v, %v", test.name, freed, err)
		}
		if _, _, err := w.store.ApplyIf(ctx, endpoint("a", "x", addr.String()), guards...); !errors.Is(err, datastore.ErrOvertaken) {
			t.Errorf("%s: an endpoint with a released address: %v", test.name, err)
		}
		if _, err := w.AssignedTo(ctx, as.Handle, []netip.Addr{addr}); !errors.Is(err, ErrNotAssigned) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	w.consistent("after the races", false)
}

func TestRepairOfBlocks(t *testing.T) {
	w := newWorld(t)
	w.pool("p", "10.0.0.0/24", 30, nil)
	w.node("a", nil)
	ctx := t.Context()
	const root = "/calico/ipam/v2/"
	block := func(cidr, fields string) {
		w.etcd.Put(root+"assignment/ipv4/block/"+strings.ReplaceAll(cidr, "/", "-"), `{"cidr":"`+cidr+`",`+fields+`,"sequenceNumber":7,"sequenceNumberForAllocation":{"0":3},"deleted":false,"later":1}`)
	}
	block("10.0.0.0/30", `"affinity":"host:a","allocations":[0,5,null,null],"unallocated":[0,2,2,9],"attributes":[{"handle_id":"h"},{"handle_id":"unused"}]`)
	block("10.0.0.4/30", `"affinity":null,"allocations":[null,null,null,null],"unallocated":[0,1,2,3],"attributes":[]`)
	block("10.0.0.8/30", `"affinity":"host:a","allocations":[null,null,0],"unallocated":[0,1],"attributes":[{"handle_id":"h"}]`)
	w.etcd.Put(root+"handle/empty", `{"block":{},"deleted":false}`)
	w.etcd.Put(root+"handle/under", `{"block":null,"deleted":false}`)
	w.etcd.Put(root+"host/a/ipv4/block/10.0.0.16-30", `{"state":"confirmed","deleted":false}`)
	w.etcd.Put(root+"host/a/ipv4/block/10.0.0.8-30", `{"state":"pendingDeletion","deleted":false}`)

	r := must(w.Audit(ctx))
	if _, err := w.Repair(ctx, r.Faults); err != nil {
		t.Error(err)
	}
	r = must(w.Audit(ctx))
	// The block of a wrong size stays: nobody knows which addresses are whose.
	for _, f := range r.Faults {
		if f.Repairable() || f.Object.Name != "10.0.0.8-30" {
			t.Errorf("left: %s", f)
		}
	}
	if text := w.text(); !strings.Contains(text, "block 10.0.0.0/30 host:a 0=h 1= free [2 3]") || strings.Contains(text, "10.0.0.4") ||
		!strings.Contains(text, "handle h 10.0.0.0/30:1 10.0.0.8/30:1") || !strings.Contains(text, "affinity a/10.0.0.0-30 confirmed") {
		t.Errorf("after the repair:\n%s", text)
	}
	if got := w.etcd.Get(root + "assignment/ipv4/block/10.0.0.0-30"); !strings.Contains(got, `"later":1`) {
		t.Errorf("a field that we do not know is lost: %s", got)
	}
}

func TestCollector(t *testing.T) {
	w := newWorld(t)
	w.pool("p", "10.0.0.0/24", 28, nil)
	w.node("a", nil)
	w.node("b", nil)
	now := time.Now()
	w.Allocator.now = func() time.Time { return now }
	c := NewCollector(w.Allocator, "a", slog.New(slog.NewTextHandler(io.Discard, nil)))
	watcher := w.store.Watch(t.Context())
	observe := func() {
		t.Helper()
		revision := w.etcd.Revision()
		for timeout := time.After(20 * time.Second); ; {
			changes, at := watcher.Take()
			c.Observe(changes)
			if at >= revision {
				return
			}
			select {
			case <-watcher.Changed():
			case <-timeout:
				t.Fatal("the watch does not follow")
			}
		}
	}
	pass := func(after time.Duration) {
		t.Helper()
		observe()
		now = now.Add(after)
		for range 40 { // what nodes that are gone have left is one node's work at a time
			if err := c.collect(t.Context()); err != nil {
				t.Error(err)
			}
		}
		observe()
	}
	assigned := func(a netip.Addr) bool {
		_, err := w.Lookup(t.Context(), a)
		return err == nil
	}

	live, leaked, others := w.pod("a", "live"), w.pod("a", "leaked"), w.pod("b", "x")
	w.create(endpoint("a", "live", live.String()))
	pass(0)
	pass(defaultGrace - time.Second)
	if !assigned(leaked) {
		t.Error("released before the grace period is over")
	}
	late := w.pod("a", "late") // looks leaked for no time yet
	pass(2 * time.Second)
	if assigned(leaked) || !assigned(live) || !assigned(late) || !assigned(others) {
		t.Errorf("assigned: leaked %v, live %v, late %v, another node's %v", assigned(leaked), assigned(live), assigned(late), assigned(others))
	}

	// The cluster says how long, or never.
	k, _ := api.FindKind(api.KindKubeControllersConfiguration)
	config := k.New().(*api.KubeControllersConfiguration)
	config.Name = "default"
	config.Spec.Controllers.Node = &api.NodeControllerConfig{LeakGracePeriod: &metav1.Duration{}}
	if _, _, err := w.store.Apply(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	pass(100 * defaultGrace)
	if !assigned(late) {
		t.Error("released although the cluster says never")
	}
	config.Spec.Controllers.Node.LeakGracePeriod.Duration = time.Minute
	if _, _, err := w.store.Apply(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	pass(0)
	pass(time.Minute)
	if assigned(late) {
		t.Error("not released after the cluster's own grace period")
	}

	// A node goes without a word, with and without an endpoint left on it.
	w.create(endpoint("b", "left", w.pod("b", "left").String()))
	if _, err := w.store.Delete(t.Context(), api.Key{Kind: api.KindNode, Name: "b"}, ""); err != nil {
		t.Fatal(err)
	}
	pass(0)
	pass(time.Minute)
	if assigned(others) {
		t.Error("an address of a node that is gone is not released")
	}
	if text := w.text(); !strings.Contains(text, "affinity b/") {
		t.Errorf("a node with workloads has lost its block:\n%s", text)
	}
	if _, err := w.store.Delete(t.Context(), api.KeyOf(endpoint("b", "left")), ""); err != nil {
		t.Fatal(err)
	}
	pass(0)
	pass(time.Minute)
	if text := w.text(); strings.Contains(text, "affinity b/") || strings.Contains(text, "host:b") {
		t.Errorf("the block of a node that is gone is left:\n%s", text)
	}
	w.audited()
	if !assigned(live) {
		t.Error("a live address was released")
	}
}
