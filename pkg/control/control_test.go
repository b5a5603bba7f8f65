package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/nodeapi"
	"calico-xdp/pkg/policy"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// world is everything around the loop. Sinks write what they are asked into
// its journal and fail when told to.
type world struct {
	mu       sync.Mutex
	changed  chan struct{}
	moved    chan struct{} // links have changed
	changes  []api.Change
	revision int64
	inSync   bool
	links    []desired.Link
	fail     map[string]int // "host ensure": how many more calls fail
	journal  []string
	resyncs  int
	invalid  map[api.Key]error
	compiled int // how many policies were given to the compiler
	looked   int // how often the links were asked for
}

func newWorld() *world {
	return &world{changed: make(chan struct{}, 1), moved: make(chan struct{}, 1), inSync: true, fail: make(map[string]int)}
}

func (w *world) do(f func()) {
	w.mu.Lock()
	f()
	w.mu.Unlock()
	for _, c := range []chan struct{}{w.changed, w.moved} {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

func (w *world) Changed() <-chan struct{} { return w.changed }

func (w *world) Take() ([]api.Change, int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	changes := w.changes
	w.changes = nil
	return changes, w.revision
}

func (w *world) InSync() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.inSync
}

func (w *world) Problems() map[api.Key]error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.invalid)
}

func (w *world) Links() ([]desired.Link, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail["links"] > 0 {
		w.fail["links"]--
		return nil, errors.New("links fails")
	}
	w.looked++
	return slices.Clone(w.links), nil
}

func (w *world) Compile(s *api.Store, _ []api.Change) *policy.Tables {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.compiled = len(api.All[*api.GlobalNetworkPolicy](s, api.KindGlobalNetworkPolicy))
	return &policy.Tables{}
}

func (w *world) policies() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.compiled
}

// silent never changes.
type silent struct{}

func (silent) Changed() <-chan struct{}        { return nil }
func (silent) Learned() []desired.LearnedRoute { return nil }
func (silent) Learning() bool                  { return false }

type linkWatch struct{ *world }

func (w linkWatch) Changed() <-chan struct{} { return w.moved }

type sink struct {
	w    *world
	name string
}

func (s sink) call(verb string, want *desired.State) error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	call := s.name + " " + verb
	s.w.journal = append(s.w.journal, fmt.Sprintf("%s(%d)", call, len(want.Local)))
	if s.w.fail[call] > 0 {
		s.w.fail[call]--
		return errors.New(call + " fails")
	}
	return nil
}

func (s sink) Ensure(_ context.Context, want *desired.State) error { return s.call("ensure", want) }
func (s sink) Prune(_ context.Context, want *desired.State) error  { return s.call("prune", want) }

func (s sink) Resync() {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.w.resyncs++
}

func start(t *testing.T, w *world, o Options) *Controller {
	o.Node = "a"
	o.Datastore, o.Policy, o.Links, o.Learner = w, w, linkWatch{w}, silent{}
	o.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	o.MinRetry = time.Millisecond
	for _, name := range []string{"dataplane", "host", "bgp"} {
		o.Sinks = append(o.Sinks, NamedSink{name, sink{w, name}, name == "dataplane"})
	}
	c := New(o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		c.Run(ctx)
		close(done)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return c
}

// until waits until the journal has what is wanted, and returns the journal.
func (w *world) until(t *testing.T, what string, ok func(journal []string) bool) []string {
	t.Helper()
	for range 2000 {
		w.mu.Lock()
		journal := slices.Clone(w.journal)
		done := ok(journal)
		w.mu.Unlock()
		if done {
			return journal
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s: never; journal %q", what, w.journal)
	return nil
}

func endpoint(name, iface string) api.Change {
	e := api.NewWorkloadEndpoint()
	e.Namespace, e.Name = "default", name
	e.Spec.Node, e.Spec.InterfaceName, e.Spec.IPNetworks = "a", iface, []string{"10.65.0.1"}
	return api.Change{Key: api.KeyOf(e), Resource: e}
}

func TestOrder(t *testing.T) {
	w := newWorld()
	start(t, w, Options{})
	got := w.until(t, "a round", func(j []string) bool { return len(j) >= 6 })
	want := "dataplane ensure(0) host ensure(0) bgp ensure(0) bgp prune(0) host prune(0) dataplane prune(0)"
	if strings.Join(got[:6], " ") != want {
		t.Errorf("got %q", got)
	}
}

func TestNothingBeforeSync(t *testing.T) {
	w := newWorld()
	w.inSync = false
	w.changes = []api.Change{endpoint("x", "cali1")}
	c := start(t, w, Options{})
	for range 3 { // rounds with a part of the truth
		w.do(func() { w.revision++ })
		time.Sleep(10 * time.Millisecond)
	}
	w.mu.Lock()
	if len(w.journal) > 0 {
		t.Errorf("touched the node: %q", w.journal)
	}
	w.mu.Unlock()
	if c.Ready() == nil {
		t.Error("ready before the datastore was read")
	}

	// The whole arrives: what came before it counts.
	w.do(func() { w.inSync = true })
	w.until(t, "a round with the endpoint", func(j []string) bool { return slices.Contains(j, "dataplane prune(1)") })

	// A watch that starts anew: adding goes on, removing waits.
	w.do(func() {
		w.inSync, w.journal = false, nil
		w.changes = []api.Change{endpoint("y", "cali2")}
	})
	got := w.until(t, "adding", func(j []string) bool { return slices.Contains(j, "bgp ensure(2)") })
	if s := strings.Join(got, " "); strings.Contains(s, "prune") {
		t.Errorf("pruned out of sync: %s", s)
	}
}

func TestFailuresAreRetried(t *testing.T) {
	w := newWorld()
	w.fail["links"] = 1
	w.fail["dataplane ensure"] = 1
	w.fail["host ensure"] = 1
	w.fail["host prune"] = 1
	c := start(t, w, Options{})
	got := strings.Join(w.until(t, "success", func(j []string) bool { return len(j) >= 18 }), " ")
	all := "dataplane ensure(0) host ensure(0) bgp ensure(0) bgp prune(0) host prune(0) dataplane prune(0)"
	want := strings.Join([]string{
		"dataplane ensure(0)", // the others rely on it
		"dataplane ensure(0) host ensure(0) bgp ensure(0) bgp prune(0) dataplane prune(0)",
		all, // one that cannot remove does not keep the others from it
		all,
	}, " ")
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for range 1000 {
		if c.Ready() == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err := c.Ready(); err != nil {
		t.Error(err)
	}
	if n := testutil.ToFloat64(c.metrics.errors); n != 4 {
		t.Errorf("counted %v errors", n)
	}
}

func TestResync(t *testing.T) {
	w := newWorld()
	start(t, w, Options{Resync: 10 * time.Millisecond})
	// Each reading back is followed by a round, which repairs what drifted.
	w.until(t, "two rounds after resync", func(j []string) bool { return w.resyncs >= 6 && len(j) >= 18 })
}

func TestWait(t *testing.T) {
	w := newWorld()
	w.revision = 5
	w.changes = []api.Change{endpoint("x", "cali1")}
	c := start(t, w, Options{})
	key := endpoint("x", "").Key

	// The revision is there, the interface is not.
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Wait(t.Context(), api.Key{}, 5); err != nil {
		t.Fatal(err)
	}
	err := c.Wait(short, key, 5)
	if want := "WorkloadEndpoint(default/x) not enforced: interface cali1 does not exist"; err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}

	// The interface comes while it is waited for.
	waited := make(chan error)
	go func() { waited <- c.Wait(t.Context(), key, 6) }()
	w.do(func() {
		w.revision = 6
		w.links = []desired.Link{{Name: "cali1", Index: 7, Kind: "veth", MTU: 1500, Up: true}}
	})
	if err := <-waited; err != nil {
		t.Error(err)
	}
	var status nodeapi.Status
	c.Fill(&status)
	if status.Revision != 6 || !status.InSync || len(status.Endpoints) != 1 || status.Endpoints[0].State != nodeapi.EndpointReady {
		t.Errorf("got %+v", status)
	}

	// While policy cannot be enforced, nobody is told that it is; what other
	// sinks cannot do does not hold endpoints back.
	w.do(func() {
		w.revision = 7
		w.fail["dataplane ensure"] = 1 << 30
	})
	short, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err = c.Wait(short, key, 7)
	if want := "WorkloadEndpoint(default/x) not enforced: dataplane: dataplane ensure fails"; err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
	w.do(func() {
		w.fail["dataplane ensure"] = 0
		w.fail["bgp ensure"] = 1 << 30
	})
	if err := c.Wait(t.Context(), key, 7); err != nil {
		t.Error(err)
	}

	// Hopeless cases are told at once.
	w.do(func() {
		w.revision = 8
		newer := endpoint("z", "cali1")
		newer.Resource.SetCreationTimestamp(metav1.Now())
		w.changes = []api.Change{newer}
	})
	err = c.Wait(t.Context(), key, 8)
	if err == nil || !strings.Contains(err.Error(), "interface cali1 belongs to WorkloadEndpoint(default/z)") {
		t.Errorf("got %v", err)
	}
	// A deletion is waited for by revision.
	w.do(func() {
		w.revision = 9
		w.changes = []api.Change{{Key: key}}
	})
	if err := c.Wait(t.Context(), api.Key{}, 9); err != nil {
		t.Error(err)
	}
	if err := c.Wait(t.Context(), key, 9); err == nil || !strings.Contains(err.Error(), "not an endpoint of this node") {
		t.Errorf("got %v", err)
	}
}

// TestLinksAreAskedForOnceChanged: not in every round, but also after a failure and
// when the world is read back.
func TestLinksAreAskedForOnceChanged(t *testing.T) {
	w := newWorld()
	c := start(t, w, Options{})
	looked := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.looked
	}
	change := func(revision int64, fail int) {
		t.Helper()
		w.mu.Lock()
		w.revision = revision
		w.fail["host ensure"] = fail
		w.mu.Unlock()
		w.changed <- struct{}{}
		if err := c.Wait(t.Context(), api.Key{}, revision); err != nil {
			t.Fatal(err)
		}
	}
	for revision := range int64(3) {
		change(1+revision, 0)
	}
	if n := looked(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	change(4, 1)
	w.until(t, "another try", func([]string) bool { return w.looked == 2 })
	w.do(func() { w.links = []desired.Link{{Name: "eth0", Index: 2}} })
	w.until(t, "a look at what has changed", func([]string) bool { return w.looked == 3 })
}

func TestStateReachesSinksWhole(t *testing.T) {
	w := newWorld()
	w.links = []desired.Link{{Name: "eth0", Index: 2, Kind: "device", MTU: 1500, Up: true,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}}}
	seen := make(chan *desired.State, 100)
	start(t, w, Options{Observe: func(_ []api.Change, s *desired.State) { seen <- s }})
	s := <-seen
	if s.Dataplane.Policy == nil || len(s.Dataplane.Uplinks) != 1 {
		t.Errorf("got %+v", s.Dataplane)
	}
}

// valueOf is the value of a collector's metric with this kind.
func valueOf(t *testing.T, c prometheus.Collector, name, kind string) float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && m.GetLabel()[0].GetValue() == kind {
				return m.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("no metric %s of %s", name, kind)
	return 0
}

func TestUnreadablePolicyDenies(t *testing.T) {
	w := newWorld()
	key := api.Key{Kind: api.KindGlobalNetworkPolicy, Name: "x"}
	w.invalid = map[api.Key]error{key: errors.New("spec.order: not a number")}
	w.changes, w.revision = []api.Change{{Key: key}}, 1
	c := start(t, w, Options{})
	if err := c.Wait(t.Context(), api.Key{}, 1); err != nil {
		t.Fatal(err)
	}
	var status nodeapi.Status
	c.Fill(&status)
	if w.policies() != 1 || len(status.Problems) != 1 || status.Problems[0].Object != key.String() {
		t.Errorf("compiled %d, problems %v", w.policies(), status.Problems)
	}
	problems := func(kind string) float64 {
		return valueOf(t, c, "calico_xdp_policy_problems", kind)
	}
	if got, other := problems(api.KindGlobalNetworkPolicy), problems(api.KindProfile); got != 1 || other != 0 {
		t.Errorf("metrics say %v and %v", got, other)
	}
	p := standIn(key).(*api.GlobalNetworkPolicy)
	if err := api.Validate(p); err != nil || p.Spec.Selector != "all()" || p.Spec.Tier != "default" {
		t.Errorf("stand-in %+v: %v", p.Spec, err)
	}
	if standIn(api.Key{Kind: api.KindIPPool, Name: "x"}) != nil {
		t.Error("stand-in for a pool")
	}

	// Gone is gone.
	w.do(func() { w.invalid, w.changes, w.revision = nil, []api.Change{{Key: key}}, 2 })
	if err := c.Wait(t.Context(), api.Key{}, 2); err != nil {
		t.Fatal(err)
	}
	if n := w.policies(); n != 0 {
		t.Errorf("compiled %d", n)
	}
}
