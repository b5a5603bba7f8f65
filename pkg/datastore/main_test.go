package datastore

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/tools/testbed"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// patiently bounds what must happen but may take a while on a busy machine.
const patiently = 20 * time.Second

// open returns a client of e that is closed with the test, and what it logs.
func open(t *testing.T, config Config) (*Client, *logBuffer) {
	t.Helper()
	logs := &logBuffer{}
	c, err := Open(context.Background(), config, slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, logs
}

func openEtcd(t *testing.T, e *testbed.Etcd) *Client {
	t.Helper()
	c, _ := open(t, Config{Endpoints: []string{e.Endpoint()}})
	return c
}

type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func pool(name, cidr string) *api.IPPool {
	p := &api.IPPool{ObjectMeta: metav1.ObjectMeta{Name: name}}
	p.Spec.CIDR = cidr
	return p
}

func set(name string, nets ...string) *api.GlobalNetworkSet {
	s := &api.GlobalNetworkSet{ObjectMeta: metav1.ObjectMeta{Name: name}}
	s.Spec.Nets = nets
	return s
}

func setKey(name string) api.Key { return api.Key{Kind: api.KindGlobalNetworkSet, Name: name} }

func setPath(name string) string { return resourceRoot + "globalnetworksets/" + name }

// must returns the resource of a call that has to work.
func must(t *testing.T) func(api.Resource, error) api.Resource {
	return func(r api.Resource, err error) api.Resource {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
}

// consumer does with a watcher's changes what the control loop does.
type consumer struct {
	t        *testing.T
	w        *Watcher
	store    map[api.Key]api.Resource
	revision int64
	taken    int // changes, ever
}

func watch(t *testing.T, c *Client) *consumer {
	return &consumer{t: t, w: c.Watch(t.Context()), store: make(map[api.Key]api.Resource)}
}

// until takes changes until ok is true.
func (c *consumer) until(what string, ok func() bool) {
	c.t.Helper()
	timeout := time.After(patiently)
	for {
		c.take()
		if ok() {
			return
		}
		select {
		case <-c.w.Changed():
		case <-timeout:
			c.t.Fatalf("never: %s; have %v at %d", what, c.names(), c.revision)
		}
	}
}

func (c *consumer) take() []api.Change {
	c.t.Helper()
	changes, revision := c.w.Take()
	seen := make(map[api.Key]bool)
	for _, change := range changes {
		if seen[change.Key] {
			c.t.Fatalf("%s twice in one Take", change.Key)
		}
		seen[change.Key] = true
		if change.Resource == nil {
			delete(c.store, change.Key)
		} else {
			c.store[change.Key] = change.Resource
		}
	}
	c.taken += len(changes)
	c.revision = revision
	return changes
}

// synced waits for the first snapshot.
func (c *consumer) synced() {
	c.t.Helper()
	c.until("in sync", c.w.InSync)
}

// reaches waits until the consumer has a revision.
func (c *consumer) reaches(revision int64) {
	c.t.Helper()
	c.until("revision", func() bool { return c.revision >= revision })
}

// names lists what the consumer has, without what every cluster has.
func (c *consumer) names() []string {
	var out []string
	for key := range maps.Keys(c.store) {
		if key.Kind != api.KindTier && key.Kind != api.KindClusterInformation {
			out = append(out, key.String())
		}
	}
	slices.Sort(out)
	return out
}

func (c *consumer) expect(names ...string) {
	c.t.Helper()
	if got := c.names(); !slices.Equal(got, names) {
		c.t.Fatalf("have %v, want %v", got, names)
	}
}
