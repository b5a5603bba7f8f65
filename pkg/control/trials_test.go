package control

import (
	"encoding/json"
	"io"
	"log/slog"
	"testing"
	"time"

	"calico-xdp/pkg/api"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A trial that nobody ended is undone by the node itself, until it hears of the end.
func TestTrialOutlivesTheDatastore(t *testing.T) {
	w := newWorld()
	trials := NewTrials(t.Context(), w, slog.New(slog.NewTextHandler(io.Discard, nil)))
	policy := func(name, selector, revision string) *api.GlobalNetworkPolicy {
		p := &api.GlobalNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name, ResourceVersion: revision}}
		p.Spec.Selector = selector
		api.Default(p)
		return p
	}
	old, err := api.Encode(policy("a", "old == ''", ""))
	if err != nil {
		t.Fatal(err)
	}
	key := func(name string) api.Key { return api.Key{Kind: api.KindGlobalNetworkPolicy, Name: name} }
	trial := &api.Trial{
		ObjectMeta: metav1.ObjectMeta{Name: "t", ResourceVersion: "7"}, Seconds: 1,
		Changes: []api.TrialChange{
			{Kind: api.KindGlobalNetworkPolicy, Name: "a", Before: json.RawMessage(old)},
			{Kind: api.KindGlobalNetworkPolicy, Name: "b"},
			{Kind: api.KindGlobalNetworkPolicy, Name: "c"},
		},
	}
	trialKey := api.Key{Kind: api.KindTrial, Name: "t"}
	tell := func(changes ...api.Change) { w.do(func() { w.changes = changes }) }
	// now is what the node makes of what it has taken.
	now := make(map[string]string)
	take := func() (n int) {
		changes, _ := trials.Take()
		for _, c := range changes {
			if c.Key.Kind != api.KindGlobalNetworkPolicy {
				continue
			}
			if delete(now, c.Key.Name); c.Resource != nil {
				now[c.Key.Name] = c.Resource.(*api.GlobalNetworkPolicy).Spec.Selector
			}
			n++
		}
		return n
	}
	expect := func(when, a, b, c string) {
		t.Helper()
		for name, want := range map[string]string{"a": a, "b": b, "c": c} {
			if now[name] != want {
				t.Errorf("%s: %s is %q, expected %q", when, name, now[name], want)
			}
		}
	}
	tell(
		api.Change{Key: key("a"), Resource: policy("a", "new == ''", "7")}, api.Change{Key: key("b"), Resource: policy("b", "new == ''", "7")},
		api.Change{Key: key("c"), Resource: policy("c", "later == ''", "9")}, // changed since
		api.Change{Key: trialKey, Resource: trial},
	)
	take()
	expect("in the trial", "new == ''", "new == ''", "later == ''")

	// Time passes.
	trials.mu.Lock()
	trials.trials["t"].over = time.Now().Add(200 * time.Millisecond)
	trials.mu.Unlock()
	take() // sets the clock for it
	expect("before it is over", "new == ''", "new == ''", "later == ''")
	select {
	case <-trials.Changed():
	case <-time.After(10 * time.Second):
		t.Fatal("nothing happens when it is over")
	}
	time.Sleep(250 * time.Millisecond) // it may have been the signal of what was told first
	take()
	expect("over, and nothing heard", "old == ''", "", "later == ''")
	if n := take(); n != 0 {
		t.Errorf("%d more changes", n)
	}

	// It hears: somebody had confirmed it, and changed one since.
	tell(api.Change{Key: key("b"), Resource: policy("b", "newer == ''", "10")}, api.Change{Key: trialKey})
	take()
	expect("confirmed", "new == ''", "newer == ''", "later == ''")

	// The same, restored in the datastore.
	trial.Name = "u"
	tell(api.Change{Key: key("a"), Resource: policy("a", "new == ''", "7")}, api.Change{Key: api.Key{Kind: api.KindTrial, Name: "u"}, Resource: trial})
	take()
	trials.mu.Lock()
	trials.trials["u"].over = time.Now()
	trials.mu.Unlock()
	take()
	expect("over again", "old == ''", "newer == ''", "later == ''")
	tell(api.Change{Key: key("a"), Resource: policy("a", "restored == ''", "12")}, api.Change{Key: api.Key{Kind: api.KindTrial, Name: "u"}})
	take()
	expect("restored", "restored == ''", "newer == ''", "later == ''")
}
