package datastore

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/tools/testbed"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestWatch(t *testing.T) {
	e := testbed.StartEtcd(t)
	c := openEtcd(t, e)
	ctx := t.Context()
	must(t)(c.Create(ctx, set("before")))
	for _, foreign := range []string{
		"/calico/felix/v2/no-region/host/n/status", "/calico/ready", resourceRoot + "gadgets/a", "/calico/zzz", "/other",
	} {
		e.Put(foreign, "x")
	}

	w := watch(t, c)
	if w.w.InSync() {
		t.Error("in sync before anything was taken")
	}
	w.synced()
	w.expect("GlobalNetworkSet(before)")
	if w.revision != e.Revision() {
		t.Errorf("snapshot at %d, datastore at %d", w.revision, e.Revision())
	}
	if r := w.store[setKey("before")]; r.GetResourceVersion() == "" || r.GetUID() == "" {
		t.Errorf("handed out without identity: %+v", r)
	}

	made := must(t)(c.Create(ctx, set("after")))
	rev, _ := strconv.ParseInt(made.GetResourceVersion(), 10, 64)
	w.reaches(rev)
	w.expect("GlobalNetworkSet(after)", "GlobalNetworkSet(before)")
	must(t)(c.Delete(ctx, setKey("before"), ""))
	must(t)(c.Update(ctx, set("after", "10.0.0.0/8")))
	w.reaches(e.Revision())
	w.expect("GlobalNetworkSet(after)")
	if nets := w.store[setKey("after")].(*api.GlobalNetworkSet).Spec.Nets; len(nets) != 1 {
		t.Errorf("old version handed out: %v", nets)
	}
	must(t)(c.Create(ctx, api.NewIPAMConfig()))
	w.reaches(e.Revision())
	w.expect("GlobalNetworkSet(after)", "IPAMConfig(default)")
}

func TestWatchCoalesces(t *testing.T) {
	e := testbed.StartEtcd(t)
	c := openEtcd(t, e)
	w := watch(t, c)
	w.synced()
	for i := range 300 {
		e.Put(setPath("hot"), fmt.Sprintf(`{"metadata":{"name":"hot"},"spec":{"nets":["10.0.%d.0/24"]}}`, i%256))
	}
	must(t)(c.Create(t.Context(), set("short-lived")))
	must(t)(c.Delete(t.Context(), setKey("short-lived"), ""))
	revision := e.Revision()
	if !testbed.Eventually(func() bool {
		w.w.mu.Lock()
		defer w.w.mu.Unlock()
		return w.w.revision >= revision
	}) {
		t.Fatal("events did not arrive")
	}
	changes := make(map[api.Key]int)
	for _, change := range w.take() {
		changes[change.Key]++
	}
	if changes[setKey("hot")] != 1 || changes[setKey("short-lived")] != 1 {
		t.Errorf("changes since the snapshot: %v", changes)
	}
	if nets := w.store[setKey("hot")].(*api.GlobalNetworkSet).Spec.Nets; nets[0] != "10.0.43.0/24" {
		t.Errorf("not the last version: %v", nets)
	}
	if again := w.take(); len(again) != 0 {
		t.Errorf("handed out again: %v", again)
	}
}

func TestLargeSnapshot(t *testing.T) {
	e := testbed.StartEtcd(t)
	const n = 5*firstPage + 1
	for i := range n {
		name := fmt.Sprintf("set-%04d", i)
		e.Put(setPath(name), `{"metadata":{"name":"`+name+`"}}`)
	}
	w := watch(t, openEtcd(t, e))
	w.synced()
	if len(w.store) != n {
		t.Fatalf("%d of %d objects", len(w.store), n)
	}
}

// A watch goes on where it was after a restart, and hears what happened
// meanwhile: behind a stopped server that is a second one on the same data.
func TestWatchAcrossRestart(t *testing.T) {
	e := testbed.StartEtcd(t)
	c, logs := open(t, Config{Endpoints: []string{e.Endpoint()}})
	ctx := t.Context()
	for _, name := range []string{"changed", "deleted", "same"} {
		must(t)(c.Create(ctx, set(name)))
	}
	w := watch(t, c)
	w.synced()

	snapshots, taken := w.w.metrics.snapshots.Load(), w.taken
	e.Stop()
	w.until("noticed", func() bool { return !w.w.metrics.connected.Load() })
	if !w.w.InSync() {
		t.Error("what was taken counts for nothing once etcd is away")
	}
	w.expect("GlobalNetworkSet(changed)", "GlobalNetworkSet(deleted)", "GlobalNetworkSet(same)")
	e.WhileAway(func() {
		e.Delete(setPath("deleted"))
		e.Put(setPath("changed"), `{"metadata":{"name":"changed"},"spec":{"nets":["10.0.0.0/8"]}}`)
		e.Put(setPath("new"), `{"metadata":{"name":"new"}}`)
	})
	e.Start()
	w.reaches(e.Revision())
	w.expect("GlobalNetworkSet(changed)", "GlobalNetworkSet(new)", "GlobalNetworkSet(same)")
	if nets := w.store[setKey("changed")].(*api.GlobalNetworkSet).Spec.Nets; len(nets) != 1 {
		t.Error("the change did not arrive")
	}
	if n := w.w.metrics.snapshots.Load() - snapshots; n != 0 {
		t.Errorf("%d snapshots for nothing: the history was there", n)
	}
	if n := w.taken - taken; n != 3 {
		t.Errorf("%d changes, want 3", n)
	}
	if text := logs.String(); strings.Count(text, "datastore is away") > 1 {
		t.Errorf("logged again and again:\n%s", text)
	}
}

func TestWatchAcrossCompaction(t *testing.T) {
	e := testbed.StartEtcd(t)
	c := openEtcd(t, e)
	for _, name := range []string{"changed", "deleted", "same"} {
		must(t)(c.Create(t.Context(), set(name)))
	}
	w := watch(t, c)
	w.synced()
	taken := w.taken
	e.Stop()
	e.WhileAway(func() {
		e.Delete(setPath("deleted"))
		e.Put(setPath("changed"), `{"metadata":{"name":"changed"},"spec":{"nets":["10.0.0.0/8"]}}`)
		e.Compact()
	})
	e.Start()
	w.reaches(e.Revision())
	w.expect("GlobalNetworkSet(changed)", "GlobalNetworkSet(same)")
	if n := w.taken - taken; n != 2 {
		t.Errorf("%d changes, want the 2 that differ", n)
	}
	if n := w.w.metrics.snapshots.Load(); n != 2 {
		t.Errorf("%d snapshots, want 2", n)
	}
	e.Put(setPath("later"), `{"metadata":{"name":"later"}}`)
	w.reaches(e.Revision())
	w.expect("GlobalNetworkSet(changed)", "GlobalNetworkSet(later)", "GlobalNetworkSet(same)")
}

// A backup put back has revisions that are lower, the same or higher than the
// watcher's, and the same ones for other objects.
func TestWatchAcrossRestore(t *testing.T) {
	for name, meanwhile := range map[string]int{"lower": 0, "same": 3, "higher": 50} {
		t.Run(name, func(t *testing.T) {
			e := testbed.StartEtcd(t)
			c, logs := open(t, Config{Endpoints: []string{e.Endpoint()}})
			for _, name := range []string{"kept", "changed"} {
				must(t)(c.Create(t.Context(), set(name)))
			}
			restore := e.Save()
			w := watch(t, c)
			w.synced()
			e.Put(setPath("changed"), `{"metadata":{"name":"changed"},"spec":{"nets":["10.0.0.0/8"]}}`)
			e.Put(setPath("lost"), `{"metadata":{"name":"lost"}}`)
			e.Put(setPath("lost-too"), `{"metadata":{"name":"lost-too"}}`)
			w.reaches(e.Revision())
			w.expect("GlobalNetworkSet(changed)", "GlobalNetworkSet(kept)", "GlobalNetworkSet(lost)", "GlobalNetworkSet(lost-too)")

			e.Stop()
			w.until("noticed", func() bool { return !w.w.metrics.connected.Load() })
			e.WhileAway(func() {
				restore()
				for i := range meanwhile {
					e.Put(setPath("other"), fmt.Sprintf(`{"metadata":{"name":"other"},"spec":{"nets":["10.0.%d.0/24"]}}`, i))
				}
			})
			e.Start()
			names := []string{"GlobalNetworkSet(changed)", "GlobalNetworkSet(kept)"}
			if meanwhile > 0 {
				names = append(names, "GlobalNetworkSet(other)")
			}
			w.until("restored", func() bool { return strings.Join(w.names(), " ") == strings.Join(names, " ") })
			if nets := w.store[setKey("changed")].(*api.GlobalNetworkSet).Spec.Nets; len(nets) != 0 {
				t.Errorf("changed is not as restored: %v", nets)
			}
			e.Put(setPath("later"), `{"metadata":{"name":"later"}}`)
			w.until("later", func() bool { return w.store[setKey("later")] != nil })
			if w.revision != e.Revision() {
				t.Errorf("at %d, datastore at %d", w.revision, e.Revision())
			}
			if !strings.Contains(logs.String(), "history is another one") {
				t.Errorf("nothing said of the restore:\n%s", logs)
			}
		})
	}
}

func TestInvalidObjectIsReportedAndTheRestGoesOn(t *testing.T) {
	e := testbed.StartEtcd(t)
	c, logs := open(t, Config{Endpoints: []string{e.Endpoint()}})
	must(t)(c.Create(t.Context(), set("good")))
	e.Put(setPath("broken"), `{"metadata":{"name":"broken"},"spec":`)
	e.Put(setPath("invalid"), `{"metadata":{"name":"invalid"},"spec":{"nets":["10.0.0.300"]}}`)
	w := watch(t, c)
	w.synced()
	w.expect("GlobalNetworkSet(good)", "GlobalNetworkSet(invalid)")
	problems := w.w.Problems()
	if len(problems) != 2 || problems[setKey("broken")] == nil || problems[setKey("invalid")] == nil {
		t.Fatalf("problems: %v", problems)
	}

	// Of a policy its readers take what they can.
	policy := api.Key{Kind: api.KindGlobalNetworkPolicy, Name: "odd"}
	e.Put(resourceRoot+"globalnetworkpolicies/odd", `{"metadata":{"name":"odd"},"spec":{"selector":"a ==","types":["Ingress"]}}`)
	w.until("handed out", func() bool { return w.store[policy] != nil })
	if w.w.Problems()[policy] == nil {
		t.Error("a faulty policy is no problem")
	}
	e.Put(resourceRoot+"globalnetworkpolicies/odd", `{"metadata":{"name":"odd"},"spec":{"selector":"a == 'b'","types":["Ingress"],"ingress":[{"action":"Allow","protocol":"TCP","destination":{"ports":["90:80"]}}]}}`)
	w.until("salvaged", func() bool {
		p, ok := w.store[policy].(*api.GlobalNetworkPolicy)
		return ok && p.Spec.Selector == "a == 'b'"
	})
	if err := w.w.Problems()[policy]; err == nil || !strings.Contains(err.Error(), "(90) is greater than") {
		t.Errorf("problem: %v", err)
	}
	e.Put(resourceRoot+"globalnetworkpolicies/odd", `{"metadata":{"name":"other"},"spec":{"ingress":[{"action":"Allow","protocol":300}]}}`)
	w.until("not what it says", func() bool { return w.store[policy] == nil })
	e.Delete(resourceRoot + "globalnetworkpolicies/odd")
	w.until("deleted", func() bool { return w.store[policy] == nil })

	// A good one turns bad: it goes, and its problem comes in the same Take.
	e.Put(setPath("good"), `{"metadata":{"name":"good"},"spec":{"nets":17}}`)
	e.Put(setPath("good"), `{"metadata":{"name":"good"},"spec":{"nets":18}}`)
	revision := e.Revision()
	w.until("gone", func() bool { return w.store[setKey("good")] == nil })
	if w.w.Problems()[setKey("good")] == nil {
		t.Error("gone without a problem")
	}
	w.reaches(revision)
	// And well again: no problem once it is taken, but not before.
	e.Put(setPath("good"), `{"metadata":{"name":"good"}}`)
	e.Delete(setPath("broken"))
	revision = e.Revision()
	if !testbed.Eventually(func() bool {
		w.w.mu.Lock()
		defer w.w.mu.Unlock()
		return w.w.revision >= revision
	}) {
		t.Fatal("events did not arrive")
	}
	if n := len(w.w.Problems()); n != 3 {
		t.Errorf("%d problems before the repair was taken", n)
	}
	w.take()
	w.expect("GlobalNetworkSet(good)", "GlobalNetworkSet(invalid)")
	if problems := w.w.Problems(); len(problems) != 1 || problems[setKey("invalid")] == nil {
		t.Errorf("problems left: %v", problems)
	}
	if n := strings.Count(logs.String(), "object=GlobalNetworkSet(invalid)"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, logs)
	}
}

func TestAudit(t *testing.T) {
	t.Parallel() // it waits most of the time
	e := testbed.StartEtcd(t)
	c := openEtcd(t, e)
	for _, name := range []string{"a", "b", "c"} {
		must(t)(c.Create(t.Context(), set(name)))
	}
	w := watch(t, c)
	w.synced()
	if missed, err := w.w.Audit(t.Context()); err != nil || len(missed) != 0 {
		t.Fatalf("audit without fault: %v, %v", missed, err)
	}

	// Three faults: a change, a creation and a deletion that nobody heard of.
	w.w.mu.Lock()
	w.w.known[setKey("a")]--
	delete(w.w.known, setKey("b"))
	w.w.known[setKey("ghost")] = 2
	w.w.mu.Unlock()
	delete(w.store, setKey("b"))
	w.store[setKey("ghost")] = set("ghost")
	missed, err := w.w.Audit(t.Context())
	if err != nil || fmt.Sprint(missed) != "[GlobalNetworkSet(a) GlobalNetworkSet(b) GlobalNetworkSet(ghost)]" {
		t.Fatalf("audit: %v, %v", missed, err)
	}
	w.until("repaired", func() bool {
		return strings.Join(w.names(), " ") == "GlobalNetworkSet(a) GlobalNetworkSet(b) GlobalNetworkSet(c)"
	})
	if n := w.w.metrics.differences.Load(); n != 3 {
		t.Errorf("counted %d differences", n)
	}
	if missed, err := w.w.Audit(t.Context()); err != nil || len(missed) != 0 {
		t.Errorf("audit after the repair: %v, %v", missed, err)
	}
	if problems, err := testutil.CollectAndLint(w.w); err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v, %v", problems, err)
	}
}

func TestAuditUnderChanges(t *testing.T) {
	t.Parallel() // it waits most of the time
	e := testbed.StartEtcd(t)
	c := openEtcd(t, e)
	w := watch(t, c)
	w.synced()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			name := fmt.Sprintf("set-%d", i%50)
			e.Put(setPath(name), `{"metadata":{"name":"`+name+`"}}`)
			e.Delete(setPath(fmt.Sprintf("set-%d", (i*7)%50)))
		}
	}()
	if missed, err := w.w.Audit(t.Context()); err != nil || len(missed) != 0 {
		t.Errorf("audit: %v, %v", missed, err)
	}
	cancel()
	<-done
}

func TestWatchEndsWithItsClient(t *testing.T) {
	e := testbed.StartEtcd(t)
	c := openEtcd(t, e)
	w := watch(t, c)
	w.synced()
	e.Stop() // also while it cannot connect
	c.Close()
}

// What Calico wrote is read whole, nothing of it is a problem, and written back
// it is the same.
func TestCalicosOwnObjects(t *testing.T) {
	text, err := os.ReadFile("../api/testdata/stored.txt")
	if err != nil {
		t.Fatal(err)
	}
	e := testbed.StartEtcd(t)
	c := openEtcd(t, e)
	stored := make(map[string]string)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		stored[lines[i]] = lines[i+1]
		e.Put(lines[i], lines[i+1])
	}
	w := watch(t, c)
	w.synced()
	for key, err := range w.w.Problems() {
		t.Errorf("%s: %v", key, err)
	}
	if len(w.store) != len(stored) {
		t.Errorf("%d of %d objects", len(w.store), len(stored))
	}
	for path, was := range stored {
		key, ok := c.codec.key(path)
		if !ok {
			t.Errorf("%s is not ours", path)
			continue
		}
		if _, err := c.Update(t.Context(), must(t)(c.Get(t.Context(), key))); err != nil {
			t.Error(err)
			continue
		}
		if is := e.Get(path); is != was {
			t.Errorf("%s: was\n%s\nis\n%s", path, was, is)
		}
	}
}
