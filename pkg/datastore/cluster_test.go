package datastore

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"calico-xdp/tools/testbed"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// By hand: go test ./pkg/datastore -run TestWatchUnderFaults -faults 100 -timeout 1h
var faults = flag.Int("faults", 0, "how many faults TestWatchUnderFaults makes at random; 0: one of each quick kind")

func TestMain(m *testing.M) {
	testbed.RunEtcdMember()
	os.Exit(m.Run())
}

// TestWatchUnderFaults does all kinds of harm to an etcd of three members while
// objects change all the time. After each, what the watcher has handed out is
// what the store holds, and the audit finds nothing that the watch has lost.
func TestWatchUnderFaults(t *testing.T) {
	t.Parallel() // it waits most of the time
	cluster := testbed.StartEtcdCluster(t, 3)
	c, logs := open(t, Config{Endpoints: cluster.Endpoints(), AuditInterval: -1})
	cluster.Do(func(ctx context.Context, etcd *clientv3.Client) error {
		_, err := etcd.Put(ctx, setPath("first"), `{"metadata":{"name":"first"}}`)
		return err
	})
	w := watch(t, c)
	w.synced()

	var writer sync.WaitGroup
	stop := make(chan struct{})
	var mu sync.Mutex // one of the writer and whoever compares
	writer.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond):
			}
			mu.Lock()
			name := fmt.Sprintf("set-%d", rand.IntN(40))
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			cluster.Try(ctx, func(ctx context.Context, etcd *clientv3.Client) error {
				if rand.IntN(3) == 0 {
					_, err := etcd.Delete(ctx, setPath(name))
					return err
				}
				_, err := etcd.Put(ctx, setPath(name), fmt.Sprintf(`{"metadata":{"name":"%s"},"spec":{"nets":["10.%d.%d.0/24"]}}`, name, i/250%250, i%250))
				return err
			})
			cancel()
			mu.Unlock()
		}
	})
	defer writer.Wait()
	defer close(stop)

	compact := func() {
		cluster.Do(func(ctx context.Context, etcd *clientv3.Client) error {
			now, err := etcd.Get(ctx, "x")
			if err == nil {
				_, err = etcd.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical())
			}
			return err
		})
	}
	harm := []struct {
		name string
		do   func(member, leader int) (heal func())
	}{
		{"compaction", func(int, int) func() { compact(); return func() {} }},
		{"leader killed", func(_, leader int) func() {
			cluster.Kill(leader)
			return func() { cluster.Start(leader) }
		}},
		{"leader cut off from its peers, compaction", func(_, leader int) func() {
			cluster.CutPeers(leader, true)
			compact()
			return func() { cluster.CutPeers(leader, false) }
		}},
		// The rest takes as long as it takes to notice that nobody answers.
		{"a member killed", func(member, _ int) func() {
			cluster.Kill(member)
			return func() { cluster.Start(member) }
		}},
		{"a member's packets vanish", func(member, _ int) func() {
			cluster.CutClients(member, true)
			return func() { cluster.CutClients(member, false) }
		}},
		{"leader cut off from everybody, compaction", func(_, leader int) func() {
			cluster.CutPeers(leader, true)
			cluster.CutClients(leader, true)
			compact()
			return func() { cluster.CutPeers(leader, false); cluster.CutClients(leader, false) }
		}},
		{"two members killed, started again", func(member, _ int) func() {
			other := (member + 1) % 3
			cluster.Kill(member)
			cluster.Kill(other)
			time.Sleep(time.Duration(rand.IntN(3000)) * time.Millisecond)
			cluster.Start(member)
			cluster.Start(other)
			return func() {}
		}},
	}
	quick := 3
	rounds := max(*faults, quick)
	for round := range rounds {
		h := harm[round%quick]
		if *faults > 0 {
			h = harm[rand.IntN(len(harm))]
		}
		heal := h.do(rand.IntN(3), cluster.Leader())
		time.Sleep(300 * time.Millisecond) // of changes, with the harm in place
		mu.Lock()
		w.is(cluster, fmt.Sprintf("round %d, %s", round, h.name))
		mu.Unlock()
		heal()
		mu.Lock()
		w.is(cluster, fmt.Sprintf("round %d, %s, healed", round, h.name))
		mu.Unlock()
		if t.Failed() {
			t.Fatal(logs)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if missed, err := w.w.Audit(t.Context()); err != nil || len(missed) > 0 {
		t.Errorf("the audit finds %v, %v", missed, err)
	}
}

// is waits until what was handed out is what the store holds, which does not change
// meanwhile.
func (c *consumer) is(cluster *testbed.EtcdCluster, when string) {
	c.t.Helper()
	var revision int64
	want := make(map[string]int64)
	cluster.Do(func(ctx context.Context, etcd *clientv3.Client) error {
		r, err := etcd.Get(ctx, setPath(""), clientv3.WithPrefix(), clientv3.WithKeysOnly())
		if err != nil {
			return err
		}
		clear(want)
		for _, kv := range r.Kvs {
			want[strings.TrimPrefix(string(kv.Key), setPath(""))] = kv.ModRevision
		}
		revision = r.Header.Revision
		return nil
	})
	equal := func() bool {
		n := 0
		for key, r := range c.store {
			if key.Kind != setKey("").Kind {
				continue
			}
			n++
			if r.GetResourceVersion() != fmt.Sprint(want[key.Name]) {
				return false
			}
		}
		return n == len(want)
	}
	deadline := time.Now().Add(time.Minute)
	for !equal() {
		c.take()
		if time.Now().After(deadline) {
			c.t.Errorf("%s: after a minute the watcher is at %d of %d and has %v, the store %v", when, c.revision, revision, c.names(), want)
			return
		}
		select {
		case <-c.w.Changed():
		case <-time.After(50 * time.Millisecond):
		}
	}
}
