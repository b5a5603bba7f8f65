package control

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"calico-xdp/pkg/api"
)

// trialGrace is how much longer than its time a trial may stay before a node that hears
// of no end takes it for cut off from the datastore.
const trialGrace = 5 * time.Second

// Trials is a watch of the resources that lets no trial outlive its time, whatever
// becomes of the datastore: when that is over and nothing was heard, neither that
// somebody has confirmed it nor that it was restored, this node goes back to what was
// there before, by itself, and stays there until it hears again.
type Trials struct {
	inner   Datastore
	log     *slog.Logger
	changed chan struct{}
	wake    chan time.Duration // when to look again

	mu     sync.Mutex
	stored map[api.Key]api.Resource // what the datastore holds, of the kinds that can be tried
	trials map[string]*trial
	undone map[api.Key]string // resources that are not as stored, and for which trial
}

type trial struct {
	*api.Trial
	over   time.Time
	undone bool
}

// NewTrials returns a watch on top of another. It ends with ctx.
func NewTrials(ctx context.Context, inner Datastore, log *slog.Logger) *Trials {
	t := &Trials{
		inner: inner, log: log, changed: make(chan struct{}, 1), wake: make(chan time.Duration, 1),
		stored: make(map[api.Key]api.Resource), trials: make(map[string]*trial), undone: make(map[api.Key]string),
	}
	go t.forward(ctx)
	return t
}

// Changed receives when there is something to take.
func (t *Trials) Changed() <-chan struct{} { return t.changed }

// InSync is the inner watch's.
func (t *Trials) InSync() bool { return t.inner.InSync() }

// Problems are the inner watch's.
func (t *Trials) Problems() map[api.Key]error { return t.inner.Problems() }

func (t *Trials) forward(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case wait := <-t.wake:
			timer.Reset(wait)
			continue
		case <-timer.C:
		case <-t.inner.Changed():
		}
		select {
		case t.changed <- struct{}{}:
		default:
		}
	}
}

// Take returns what the inner watch has, with the resources of trials that nobody ended
// as they were before.
func (t *Trials) Take() ([]api.Change, int64) {
	changes, revision := t.inner.Take()
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	out := changes[:0:0]
	for _, change := range changes {
		switch {
		case change.Key.Kind == api.KindTrial:
			out = append(out, change)
			if r, ok := change.Resource.(*api.Trial); ok && t.trials[r.Name] == nil {
				t.trials[r.Name] = &trial{Trial: r, over: now.Add(time.Duration(r.Seconds)*time.Second + trialGrace)}
			}
			continue
		case !api.Triable(change.Key.Kind):
			out = append(out, change)
			continue
		case change.Resource == nil:
			delete(t.stored, change.Key)
		default:
			t.stored[change.Key] = change.Resource
		}
		if t.undone[change.Key] == "" {
			out = append(out, change)
		}
	}
	for _, change := range changes {
		if change.Key.Kind == api.KindTrial && change.Resource == nil {
			out = append(out, t.end(change.Key.Name)...)
		}
	}
	next := time.Hour
	for _, tr := range t.trials {
		switch wait := tr.over.Sub(now); {
		case tr.undone:
		case wait > 0:
			next = min(next, wait)
		default:
			out = append(out, t.undo(tr)...)
		}
	}
	select {
	case <-t.wake:
	default:
	}
	t.wake <- next // nobody else sends
	return out, revision
}

// end forgets a trial that the datastore has no more: its resources are as stored.
func (t *Trials) end(name string) (changes []api.Change) {
	delete(t.trials, name)
	for key, by := range t.undone {
		if by == name {
			delete(t.undone, key)
			changes = append(changes, api.Change{Key: key, Resource: t.stored[key]})
		}
	}
	if changes != nil {
		t.log.Info("the datastore says how a trial has ended", "trial", name)
	}
	return changes
}

// undo goes back to what was before a trial.
func (t *Trials) undo(tr *trial) (changes []api.Change) {
	tr.undone = true
	t.log.Warn("a trial is over and the datastore does not say how: back to what was before", "trial", tr.Name, "by", tr.By)
	for i := range tr.Changes {
		c := &tr.Changes[i]
		key := c.Key()
		if r := t.stored[key]; r == nil || r.GetResourceVersion() != tr.ResourceVersion {
			continue // somebody has changed it since
		}
		t.undone[key] = tr.Name
		changes = append(changes, api.Change{Key: key, Resource: before(c)})
	}
	return changes
}

// before returns the resource as it was before a trial, nil if it was not there.
func before(c *api.TrialChange) api.Resource {
	if c.Before == nil {
		return nil
	}
	r, err := api.DecodeStored(c.Kind, c.Before)
	if err != nil {
		if r = api.Salvage(c.Kind, c.Before); r == nil {
			return standIn(c.Key())
		}
	}
	api.Default(r)
	return r
}
