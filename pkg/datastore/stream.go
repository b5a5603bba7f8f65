package datastore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"calico-xdp/pkg/api"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// run keeps the watcher fed until ctx ends. It is the only one that changes
// known, revision and cluster, so it reads them without the lock.
func (w *Watcher) run(ctx context.Context) {
	backoff, outage := minBackoff, false
	for {
		established, err := w.session(ctx, func() {
			w.metrics.connected.Store(true)
			if outage {
				w.log.Info("datastore is back", "revision", w.revision)
			}
			backoff, outage = minBackoff, false
		})
		w.metrics.connected.Store(false)
		if ctx.Err() != nil {
			return
		}
		if established {
			w.log.Debug("watch of the datastore ended", "error", err)
		} else if !outage {
			outage = true
			w.log.Warn("datastore is away; all stays as it is until it returns", "error", err)
		}
		// Jitter: a cluster's daemons all lose the same etcd at the same time.
		if !sleep(ctx, time.Duration(float64(backoff)*(0.5+rand.Float64()))) {
			return
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// session catches up and follows the changes until the stream breaks.
func (w *Watcher) session(ctx context.Context, onEstablished func()) (established bool, err error) {
	fresh, err := w.current(ctx)
	if err != nil {
		return false, err
	}
	if !fresh {
		if err := w.snapshot(ctx); err != nil {
			return false, err
		}
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	w.mu.Lock()
	w.stop = stop
	w.mu.Unlock()
	stream, err := w.client.openWatch(ctx, w.revision)
	if err != nil {
		return false, w.client.failed(ctx, err)
	}
	for {
		message, err := stream.Recv()
		switch {
		case err != nil:
			return established, w.client.failed(ctx, err)
		case message.Canceled:
			return established, fmt.Errorf("watch cancelled by the server: %s", message.CancelReason)
		case message.Created:
			established = true
			onEstablished()
		case len(message.Events) > 0:
			// The header may be ahead of the events, which may have to be
			// sent in several messages.
			w.absorb(message.Events, message.Events[len(message.Events)-1].Kv.ModRevision)
		default: // nothing happened up to here
			w.absorb(nil, message.Header.Revision)
		}
	}
}

// current says whether changes may be followed from the watcher's revision on:
// the datastore still has that revision, and it is the one that the watcher
// knows. The newest known object is the witness.
func (w *Watcher) current(ctx context.Context) (bool, error) {
	var witness api.Key
	var newest int64
	w.mu.Lock()
	distrust := w.distrust
	for key, rev := range w.known {
		if rev > newest {
			witness, newest = key, rev
		}
	}
	w.mu.Unlock()
	if w.revision == 0 || distrust || newest == 0 {
		return false, nil
	}
	path, err := w.client.codec.path(witness)
	if err != nil {
		return false, err
	}
	response, err := request(ctx, w.client, func(ctx context.Context, etcd *clientv3.Client) (*clientv3.GetResponse, error) {
		return etcd.Get(ctx, path, clientv3.WithRev(w.revision), clientv3.WithKeysOnly())
	})
	switch {
	case errors.Is(err, rpctypes.ErrCompacted):
		return false, nil
	case errors.Is(err, rpctypes.ErrFutureRev):
	case err != nil:
		return false, err
	case response.Header.ClusterId == w.cluster && len(response.Kvs) == 1 && response.Kvs[0].ModRevision == newest:
		return true, nil
	}
	w.replaced()
	return false, nil
}

// replaced notes that the datastore's history is not the one that the watcher
// knows: equal revisions do not mean equal objects any more.
func (w *Watcher) replaced() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.distrust = true
	w.log.Warn("the datastore's history is another one, as after a restore; reading all of it again", "revision", w.revision)
}

// snapshot is the whole of the watched range at one revision.
type snapshot struct {
	revision  int64
	cluster   uint64
	revisions map[api.Key]int64
	findings  []finding // those not known before
}

var errReplaced = errors.New("history replaced")

// snapshot reads everything and queues what differs from what is known.
func (w *Watcher) snapshot(ctx context.Context) error {
	for {
		s, err := w.read(ctx)
		switch {
		case err == nil:
			w.metrics.snapshots.Add(1)
			w.adopt(s)
			return nil
		case errors.Is(err, errReplaced):
			w.replaced()
		case errors.Is(err, rpctypes.ErrCompacted): // between two pages
		default:
			return err
		}
	}
}

func (w *Watcher) read(ctx context.Context) (*snapshot, error) {
	w.mu.Lock()
	trust := w.revision > 0 && !w.distrust
	w.mu.Unlock()
	s := &snapshot{revisions: make(map[api.Key]int64, len(w.known))}
	found := newOrdered(find)
	var err error
	s.revision, s.cluster, err = w.client.each(ctx, watchBegin, watchEnd, 0, false, func(kv *mvccpb.KeyValue) error {
		key, ok := w.client.codec.key(string(kv.Key))
		if !ok {
			return nil
		}
		s.revisions[key] = kv.ModRevision
		switch {
		case trust && w.known[key] == kv.ModRevision:
			return nil
		case trust && kv.ModRevision <= w.revision: // would be known
			return errReplaced
		}
		found.add(key, kv)
		return nil
	})
	s.findings = found.results()
	if err == nil && trust && (s.revision < w.revision || s.cluster != w.cluster) {
		err = errReplaced
	}
	return s, err
}
