// Package control is the daemon's mind: it watches the resources, the host's
// links and the BGP peers, computes what this node should be, and makes it so.
//
//	etcd ────▶ datastore ─┐                                1 nat ───────▶ nftables
//	netlink ─▶ host ──────┼─▶ desired.Computer ─▶ State ─▶ 2 dataplane ─▶ BPF
//	peers ───▶ bgp ───────┘        (pure)                  3 host ──────▶ kernel routes, links
//	                                                       4 bgp ───────▶ peers
//
// Sinks add in this order and remove in the reverse one. Nothing is touched
// before the whole of the datastore has been seen, and nothing is removed
// unless it has.
package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/policy"
)

// Controller is the loop. One goroutine, Run's, owns its state; the methods of
// [Published] are for others.
type Controller struct {
	*Published
	o         Options
	resources *api.Store
	fresh     []api.Change // applied to resources, not compiled yet
	tables    *policy.Tables
	computer  desired.Computer
	synced    bool // the whole of the datastore has been seen once

	// What the host and the BGP peers have told, and whether they have told of
	// changes since.
	links                    []desired.Link
	learned                  []desired.LearnedRoute
	linksStale, learnedStale bool

	rested time.Time // when the next round may begin

	want      *desired.State // the last one
	questions chan func()    // to be answered between two rounds
}

// New returns a controller that has not started.
func New(o Options) *Controller {
	setDefault := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	setDefault(&o.Gather, 5*time.Millisecond)
	setDefault(&o.Resync, 90*time.Second)
	setDefault(&o.MinRetry, 100*time.Millisecond)
	setDefault(&o.MaxRetry, 15*time.Second)
	if o.Secrets == nil {
		o.Secrets = nothing{}
	}
	if o.Kubernetes == nil {
		o.Kubernetes = nothing{}
	}
	return &Controller{Published: newPublished(o), o: o, resources: api.NewStore(), linksStale: true, learnedStale: true, questions: make(chan func())}
}

// Run keeps the node as it should be until ctx ends. What it has made stays:
// traffic does not depend on the daemon.
func (c *Controller) Run(ctx context.Context) {
	resync := time.NewTicker(c.o.Resync)
	defer resync.Stop()
	retry := time.NewTimer(0) // the first round is due at once
	defer retry.Stop()
	delay := c.o.MinRetry
	for {
		select {
		case <-ctx.Done():
			return
		case ask := <-c.questions:
			ask()
			continue
		case <-c.o.Datastore.Changed():
		case <-c.o.Links.Changed():
			c.linksStale = true
		case <-c.o.Learner.Changed():
			c.learnedStale = true
		case <-c.o.Secrets.Changed():
		case <-c.o.Kubernetes.Changed():
		case <-retry.C:
			c.linksStale, c.learnedStale = true, true
		case <-resync.C:
			c.linksStale, c.learnedStale = true, true
			for _, s := range c.o.Sinks {
				s.Resync()
			}
		}
		c.gather(ctx)
		retry.Stop()
		if err := c.round(ctx); err != nil && ctx.Err() == nil {
			c.o.Logger.Error("the node is not as it should be; will try again", "after", delay, "error", err)
			retry.Reset(delay)
			delay = min(2*delay, c.o.MaxRetry)
		} else {
			delay = c.o.MinRetry
		}
	}
}

// gather lets changes that come in quick succession be one round: after a round
// the loop rests as long as that has taken, up to a limit. What changes later than
// that does not wait.
func (c *Controller) gather(ctx context.Context) {
	if rest := time.Until(c.rested); rest > 0 {
		select {
		case <-ctx.Done():
		case <-time.After(rest):
		}
	}
	taken := func(changed <-chan struct{}) bool {
		select {
		case <-changed:
			return true
		default:
			return false
		}
	}
	taken(c.o.Datastore.Changed())
	taken(c.o.Secrets.Changed())
	taken(c.o.Kubernetes.Changed())
	c.linksStale = taken(c.o.Links.Changed()) || c.linksStale
	c.learnedStale = taken(c.o.Learner.Changed()) || c.learnedStale
}

// round observes, computes, and makes it so.
func (c *Controller) round(ctx context.Context) error {
	start := time.Now()
	c.begin(start)
	defer func() {
		c.end()
		end := time.Now()
		c.rested = end.Add(min(end.Sub(start), c.o.Gather))
	}()
	changes, revision := c.o.Datastore.Take()
	invalid := c.o.Datastore.Problems()
	for _, change := range changes {
		if change.Resource == nil && invalid[change.Key] != nil {
			change.Resource = standIn(change.Key)
		}
		c.resources.Apply(change)
	}
	c.fresh = append(c.fresh, changes...)
	inSync := c.o.Datastore.InSync()
	c.synced = c.synced || inSync
	if !c.synced {
		// A part of the truth would cut what the last daemon left running.
		return nil
	}
	if err := c.observe(); err != nil {
		c.publish(result{err: err, took: time.Since(start)})
		return err
	}
	if c.tables == nil || len(c.fresh) > 0 {
		c.tables = c.o.Policy.Compile(c.resources, c.fresh)
	}
	if c.fresh == nil {
		c.fresh = []api.Change{} // nothing, where nil is everything
	}
	want := c.computer.Compute(desired.Input{
		Node: c.o.Node, Config: c.o.Config, Resources: c.resources, Links: c.links,
		Policy: c.tables, Learned: c.learned, Learning: c.o.Learner.Learning(),
		Secrets: c.secrets(), Services: c.o.Kubernetes.Services(), Pending: c.o.Kubernetes.Pending(),
	}, c.fresh)
	if c.o.Observe != nil {
		c.o.Observe(c.fresh, want)
	}
	c.fresh, c.want = nil, want
	enforced, err := c.apply(ctx, want, inSync)
	c.publish(result{
		locked: locked(c.resources), state: want, revision: revision, inSync: inSync, enforced: enforced,
		invalid: invalid, err: err, took: time.Since(start),
	})
	return err
}

// secrets are all that there are. What the node has of its own wins.
func (c *Controller) secrets() map[desired.SecretKey]string {
	own, cluster := c.o.Secrets.Secrets(), c.o.Kubernetes.Secrets()
	if len(cluster) == 0 {
		return own
	}
	all := maps.Clone(cluster)
	maps.Copy(all, own)
	return all
}

// observe asks for what is not known to be as it was.
func (c *Controller) observe() error {
	if c.linksStale {
		links, err := c.o.Links.Links()
		if err != nil {
			return fmt.Errorf("links: %w", err)
		}
		c.links, c.linksStale = links, false
	}
	if c.learnedStale {
		c.learned, c.learnedStale = c.o.Learner.Learned(), false
	}
	return nil
}

// apply ensures forwards, then prunes backwards. A sink that fails has done what
// it could for the rest; unless it is vital, the later ones do their part too. It
// does not prune before it has all that is wanted: what it would take away may be
// what still stands in for that. enforced says that the first vital sink, or
// else the first, did its part, if not for every endpoint.
func (c *Controller) apply(ctx context.Context, want *desired.State, inSync bool) (enforced bool, err error) {
	failed := make([]bool, len(c.o.Sinks))
	enforcing := max(0, slices.IndexFunc(c.o.Sinks, func(s NamedSink) bool { return s.Vital }))
	var errs []error
	note := func(sink NamedSink, err error) bool {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", sink.Name, err))
		}
		return err != nil
	}
	for i, sink := range c.o.Sinks {
		err := sink.Ensure(ctx, want)
		failed[i] = note(sink, err) && !desired.Partial(err)
		if failed[i] && sink.Vital {
			return i > enforcing, errors.Join(errs...)
		}
	}
	if inSync { // never remove what we may not have heard of yet
		for i, sink := range slices.Backward(c.o.Sinks) {
			if !failed[i] {
				note(sink, sink.Prune(ctx, want))
			}
		}
	}
	return !failed[enforcing], errors.Join(errs...)
}
