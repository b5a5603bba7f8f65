package datastore

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	"calico-xdp/pkg/api"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// Watcher hands out all resources and then what changes, coalesced: however
// much happened between two calls of Take, each key comes once, as it is now.
//
// Never is an event relied upon alone. After any break the watcher makes sure
// that etcd still has the history it knows before it goes on with it; if etcd
// has compacted it, or was restored from a backup, a new snapshot is compared
// with what was handed out, and what vanished is handed out as gone.
type Watcher struct {
	client  *Client
	log     *slog.Logger
	changed chan struct{}
	metrics watchMetrics
	reread  rereader // the stream's

	mu sync.Mutex
	// known holds the revision of every object as of revision. The objects
	// themselves are the consumer's.
	known    map[api.Key]int64
	revision int64  // 0: no snapshot yet
	cluster  uint64 // the id of the cluster that revision is of
	pending  []finding
	place    map[api.Key]int // of each key in pending
	inSync   bool
	problems map[api.Key]error
	distrust bool   // known may not be what was handed out: do not rely on it
	stop     func() // ends the running stream
}

// finding is a change, or an object that cannot be handed out.
type finding struct {
	change api.Change
	err    error
}

// Watch starts a watcher. It ends with ctx or the client.
func (c *Client) Watch(ctx context.Context) *Watcher {
	w := &Watcher{
		client: c, log: c.log, changed: make(chan struct{}, 1),
		known: make(map[api.Key]int64), place: make(map[api.Key]int), problems: make(map[api.Key]error),
		stop: func() {},
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(c.ctx, cancel)
	c.watchers.Go(func() {
		defer cancel()
		defer stop()
		w.run(ctx)
	})
	if interval := c.config.auditInterval(); interval > 0 {
		c.watchers.Go(func() { w.auditEvery(ctx, interval) })
	}
	return w
}

// Changed receives when there is something to take.
func (w *Watcher) Changed() <-chan struct{} { return w.changed }

// Take returns what changed since the last call, in the order in which it first
// did, and the revision as of which all that was taken is the whole truth; 0
// before the first snapshot.
//
// An object that is stored but is not valid comes as a change without resource,
// unless its readers cope with each of its fields (see copes); [Watcher.Problems]
// has its key from then on.
func (w *Watcher) Take() (changes []api.Change, revision int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	changes = make([]api.Change, len(w.pending))
	for i, f := range w.pending {
		changes[i] = f.change
		w.settle(f)
	}
	w.pending = nil
	clear(w.place)
	w.inSync = w.revision > 0
	return changes, w.revision
}

// settle notes that f is handed out. An object's fault is logged once.
func (w *Watcher) settle(f finding) {
	key := f.change.Key
	old := w.problems[key]
	switch {
	case f.err == nil:
		delete(w.problems, key)
		return
	case old == nil || old.Error() != f.err.Error():
		w.log.Warn("object in the datastore is not valid", "object", key, "error", f.err)
	}
	w.problems[key] = f.err
}

// InSync says whether a whole snapshot has been taken. It stays so while etcd
// is away: what was taken is then the truth of an older revision.
func (w *Watcher) InSync() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.inSync
}

// Problems returns the objects that the datastore holds but that are not valid,
// as far as they were taken. What they guard is unknown: whoever consumes the
// changes has to keep it closed.
func (w *Watcher) Problems() map[api.Key]error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.problems)
}

// find reads a stored object as far as it is usable.
func find(key api.Key, kv *mvccpb.KeyValue) finding {
	f := finding{change: api.Change{Key: key}}
	r, err := decode(key, kv)
	if err != nil {
		f.err = err
		if r = salvage(key, kv); r != nil {
			api.Default(r)
			f.change.Resource = r
		}
		return f
	}
	api.Default(r)
	if f.err = api.Validate(r); f.err == nil || copes(key.Kind) {
		f.change.Resource = r
	}
	return f
}

// salvage reads what can be read of an object whose readers cope; nil if that is not
// enough, or if the object says that it is another one.
func salvage(key api.Key, kv *mvccpb.KeyValue) api.Resource {
	if !copes(key.Kind) {
		return nil
	}
	r := api.Salvage(key.Kind, kv.Value)
	if r == nil || api.KeyOf(r) != key {
		return nil
	}
	setRevision(r, kv.ModRevision)
	return r
}

// copes says whether the readers of a kind judge each field on its own. The policy
// compiler closes just what a faulty policy guards, which nobody could tell without
// its selector; of a network set, that others are denied by, it takes the nets that
// are right; of a configuration one bad parameter does not lose the others. It also
// matters for what a newer Calico writes and we do not know to be valid.
func copes(kind string) bool {
	switch kind {
	case api.KindGlobalNetworkPolicy, api.KindNetworkPolicy, api.KindProfile,
		api.KindStagedGlobalNetworkPolicy, api.KindStagedNetworkPolicy, api.KindStagedKubernetesNetworkPolicy,
		api.KindGlobalNetworkSet, api.KindNetworkSet, api.KindFelixConfiguration:
		return true
	}
	return false
}

func gone(key api.Key) finding { return finding{change: api.Change{Key: key}} }

// add queues findings, the newest of each key in the place of an older one.
// The caller holds the lock.
func (w *Watcher) add(findings ...finding) {
	for _, f := range findings {
		if i, ok := w.place[f.change.Key]; ok {
			w.pending[i] = f
			continue
		}
		w.place[f.change.Key] = len(w.pending)
		w.pending = append(w.pending, f)
	}
}

func (w *Watcher) signal() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// absorb takes over the events of one message, which end at revision.
func (w *Watcher) absorb(events []*mvccpb.Event, revision int64) {
	findings := make([]finding, 0, len(events))
	revisions := make([]int64, 0, len(events)) // 0: gone
	for _, e := range events {
		key, ok := w.client.codec.key(string(e.Kv.Key))
		switch {
		case !ok:
		case e.Type == mvccpb.Event_DELETE:
			w.reread.forget(key)
			findings, revisions = append(findings, gone(key)), append(revisions, 0)
		default:
			findings, revisions = append(findings, w.reread.find(key, e.Kv)), append(revisions, e.Kv.ModRevision)
		}
	}
	w.metrics.events.Add(int64(len(events)))

	w.mu.Lock()
	defer w.mu.Unlock()
	for i, f := range findings {
		if revisions[i] == 0 {
			delete(w.known, f.change.Key)
		} else {
			w.known[f.change.Key] = revisions[i]
		}
	}
	w.add(findings...)
	w.revision = max(w.revision, revision)
	if len(events) > 0 {
		w.signal()
	}
}

// adopt takes over a snapshot: all objects with their revisions, and those of
// them that may be new to the consumer.
func (w *Watcher) adopt(s *snapshot) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.add(s.findings...)
	var vanished []api.Key
	for key := range w.known {
		if _, ok := s.revisions[key]; !ok {
			vanished = append(vanished, key)
		}
	}
	slices.SortFunc(vanished, func(a, b api.Key) int { return strings.Compare(a.String(), b.String()) })
	for _, key := range vanished {
		w.add(gone(key))
	}
	w.known, w.revision, w.cluster = s.revisions, s.revision, s.cluster
	w.distrust = false
	w.signal()
}
