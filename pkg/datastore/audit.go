package datastore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"calico-xdp/pkg/api"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

const (
	defaultAuditInterval = 10 * time.Minute
	// settleTime is how long a difference has to last: until then it may be
	// an event on its way.
	settleTime = 2 * time.Second
)

func (c *Config) auditInterval() time.Duration {
	if c.AuditInterval == 0 {
		return defaultAuditInterval
	}
	return c.AuditInterval
}

func (w *Watcher) auditEvery(ctx context.Context, interval time.Duration) {
	// Jitter, lest a cluster's daemons all read everything at once.
	for sleep(ctx, time.Duration(float64(interval)*(0.9+0.2*rand.Float64()))) {
		if _, err := w.Audit(ctx); err != nil && ctx.Err() == nil {
			w.log.Debug("audit of the datastore failed", "error", err)
		}
	}
}

// Audit compares what was handed out with what the datastore holds, and returns
// the keys that differ. A difference is a missed event, so a fault of ours or of
// etcd's: it is logged and counted, and everything is read again. Before the
// first snapshot there is nothing to compare.
func (w *Watcher) Audit(ctx context.Context) ([]api.Key, error) {
	suspects, err := w.compare(ctx)
	if err != nil || len(suspects) == 0 {
		return nil, err
	}
	if !sleep(ctx, settleTime) {
		return nil, ctx.Err()
	}
	var missed []api.Key
	for _, s := range suspects {
		still, err := w.confirm(ctx, s)
		if err != nil {
			return nil, err
		}
		if still {
			missed = append(missed, s.key)
		}
	}
	if len(missed) == 0 {
		return nil, nil
	}
	slices.SortFunc(missed, func(a, b api.Key) int { return strings.Compare(a.String(), b.String()) })
	w.metrics.differences.Add(int64(len(missed)))
	w.log.Warn("audit: the datastore holds something else than was handed out; reading all of it again",
		"objects", len(missed), "first", missed[0])
	w.mu.Lock()
	defer w.mu.Unlock()
	w.distrust = true
	w.stop()
	return missed, nil
}

// suspect is a key whose revision differs. 0 is: there is no such object.
type suspect struct {
	key           api.Key
	known, stored int64
}

// compare returns all keys whose revisions differ at this moment.
func (w *Watcher) compare(ctx context.Context) ([]suspect, error) {
	w.mu.Lock()
	started := w.revision > 0
	w.mu.Unlock()
	if !started {
		return nil, nil
	}
	stored := make(map[api.Key]int64)
	_, _, err := w.client.each(ctx, watchBegin, watchEnd, 0, true, func(kv *mvccpb.KeyValue) error {
		if key, ok := w.client.codec.key(string(kv.Key)); ok {
			stored[key] = kv.ModRevision
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	var out []suspect
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, rev := range stored {
		if known := w.known[key]; known != rev {
			out = append(out, suspect{key, known, rev})
		}
	}
	for key, known := range w.known {
		if _, ok := stored[key]; !ok {
			out = append(out, suspect{key, known, 0})
		}
	}
	return out, nil
}

// confirm says whether nothing has moved since s was noted, so that no event is
// to be expected, and the difference is still there.
func (w *Watcher) confirm(ctx context.Context, s suspect) (bool, error) {
	var stored int64
	kv, err := w.client.read(ctx, s.key)
	switch {
	case err == nil:
		stored = kv.ModRevision
	case !errors.Is(err, ErrNotFound):
		return false, fmt.Errorf("audit: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return stored == s.stored && w.known[s.key] == s.known, nil
}

// watchMetrics are what a watcher counts, read at scrape.
type watchMetrics struct {
	events, snapshots, differences atomic.Int64
	connected                      atomic.Bool
}

// Describe implements prometheus.Collector.
func (w *Watcher) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(w, ch) }

// Collect implements prometheus.Collector.
func (w *Watcher) Collect(ch chan<- prometheus.Metric) {
	metric := func(kind prometheus.ValueType, name, help string, value float64) {
		desc := prometheus.NewDesc("calico_xdp_datastore_"+name, help, nil, nil)
		ch <- prometheus.MustNewConstMetric(desc, kind, value)
	}
	m := &w.metrics
	connected := 0.0
	if m.connected.Load() {
		connected = 1
	}
	w.mu.Lock()
	objects, revision := len(w.known), w.revision
	w.mu.Unlock()
	metric(prometheus.GaugeValue, "connected", "1 while changes are being followed.", connected)
	metric(prometheus.GaugeValue, "objects", "Objects in the datastore as last seen.", float64(objects))
	metric(prometheus.GaugeValue, "revision", "Revision of the datastore as last seen.", float64(revision))
	metric(prometheus.CounterValue, "events_total", "Changes that the datastore told.", float64(m.events.Load()))
	metric(prometheus.CounterValue, "snapshots_total", "Times everything was read.", float64(m.snapshots.Load()))
	metric(prometheus.CounterValue, "audit_differences_total", "Objects that an audit found to differ from what was handed out.", float64(m.differences.Load()))
}
