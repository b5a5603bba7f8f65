package control

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"
	"calico-xdp/pkg/nodeapi"
)

// OperationStore is what operations need of the datastore. *datastore.Client is one.
type OperationStore interface {
	RestoreTrial(ctx context.Context, name string, now bool) (restored, kept []api.Key, err error)
	AnswerQuery(ctx context.Context, q *api.EnforcementQuery, a datastore.Answer) error
}

const (
	// Nodes restore a trial one after the other, so that mostly the first is the
	// only one.
	restoreSpread = 500 * time.Millisecond
	restoreRetry  = time.Second
	// hesitation is how long a node keeps an answer back that it may not have to give.
	hesitation = 2 * time.Second
	// queryPatience is how long a query is worked on; it is gone long before.
	queryPatience = 15 * time.Minute
)

// Operations does what operators ask of all nodes: it restores trials whose time is over
// and says which revision this node enforces. Nothing is written unless somebody asks.
type Operations struct {
	node      string
	published *Published
	store     OperationStore
	log       *slog.Logger
	due       chan struct{}

	mu      sync.Mutex
	trials  map[string]bool
	holds   map[string]bool
	queries map[string]context.CancelFunc
	fresh   []*api.EnforcementQuery
}

// NewOperations returns operations that do nothing until they run.
func NewOperations(node string, published *Published, store OperationStore, log *slog.Logger) *Operations {
	return &Operations{
		node: node, published: published, store: store, log: log, due: make(chan struct{}, 1),
		trials: make(map[string]bool), holds: make(map[string]bool), queries: make(map[string]context.CancelFunc),
	}
}

// Observe is told of the resources that changed.
func (o *Operations) Observe(changes []api.Change) {
	o.mu.Lock()
	defer o.mu.Unlock()
	woken := false
	for _, c := range changes {
		name := c.Key.Name
		switch c.Key.Kind {
		case api.KindTrial:
			if delete(o.trials, name); c.Resource != nil {
				o.trials[name] = true
			}
		case api.KindTrialHold:
			if delete(o.holds, name); c.Resource != nil {
				o.holds[name] = true
			}
		case api.KindEnforcementQuery:
			if end := o.queries[name]; end != nil {
				end()
				delete(o.queries, name)
			}
			if q, ok := c.Resource.(*api.EnforcementQuery); ok {
				o.fresh = append(o.fresh, q)
			}
		default:
			continue
		}
		woken = true
	}
	if woken {
		select {
		case o.due <- struct{}{}:
		default:
		}
	}
}

// Run works until ctx ends.
func (o *Operations) Run(ctx context.Context) {
	var answering sync.WaitGroup
	defer answering.Wait()
	for {
		o.mu.Lock()
		for _, q := range o.fresh {
			ctx, cancel := context.WithTimeout(ctx, queryPatience)
			o.queries[q.Name] = cancel
			answering.Go(func() {
				defer cancel()
				o.answer(ctx, q)
			})
		}
		o.fresh = nil
		o.mu.Unlock()

		var retry <-chan time.Time
		if over := o.over(); len(over) > 0 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(rand.N(restoreSpread)):
			}
			for _, name := range over {
				o.restore(ctx, name)
			}
			retry = time.After(restoreRetry)
		}
		select {
		case <-ctx.Done():
			return
		case <-o.due:
		case <-retry:
		}
	}
}

// over returns the trials whose time is over.
func (o *Operations) over() (names []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for name := range o.trials {
		if !o.holds[name] {
			names = append(names, name)
		}
	}
	return names
}

func (o *Operations) restore(ctx context.Context, name string) {
	restored, kept, err := o.store.RestoreTrial(ctx, name, false)
	switch {
	case errors.Is(err, datastore.ErrNotFound):
		// Somebody has restored or confirmed it; the watch will say so.
	case errors.Is(err, datastore.ErrHeld):
	case err != nil:
		if ctx.Err() == nil {
			o.log.Warn("a trial is over and cannot be undone yet; will try again", "trial", name, "error", err)
		}
		return
	default:
		o.log.Warn("a trial was not confirmed: what was before is back", "trial", name, "restored", restored, "changed since and kept", kept)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil || errors.Is(err, datastore.ErrNotFound) {
		delete(o.trials, name)
	}
}

// answer says when the revision of the query is enforced, and why not if that takes long.
func (o *Operations) answer(ctx context.Context, q *api.EnforcementQuery) {
	revision, err := strconv.ParseInt(q.ResourceVersion, 10, 64)
	if err != nil {
		return
	}
	said := ""
	for wait := hesitation; ; wait = min(2*wait, 4*hesitation) {
		waiting, cancel := context.WithTimeout(ctx, wait)
		err := o.published.Wait(waiting, api.Key{}, revision)
		cancel()
		if ctx.Err() != nil {
			return
		}
		a := datastore.Answer{Node: o.node, Revision: o.published.revision()}
		if not := (*nodeapi.NotEnforcedError)(nil); errors.As(err, &not) {
			a.Reason = not.Reason
		} else if failing := o.published.failing(); len(failing) > 0 {
			a.Reason = failing.Error()
		}
		a.Enforced = err == nil && a.Reason == ""
		if a.Enforced || a.Reason != said {
			if err := o.store.AnswerQuery(ctx, q, a); err != nil {
				o.log.Debug("answer not written", "query", q.Name, "error", err)
			} else if said = a.Reason; a.Enforced {
				return
			}
		}
		if err == nil {
			select {
			case <-ctx.Done():
				return
			case <-time.After(hesitation):
			}
		}
	}
}

// revision returns the one that is enforced.
func (p *Published) revision() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.enforced.revision
}
