package control

import (
	"context"
	"log/slog"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/policy"
)

// Sink makes one part of the world what the state says. Both methods take the
// whole state; calling them again is harmless, and after an error they are
// called again.
type Sink interface {
	Ensure(ctx context.Context, want *desired.State) error // add and change
	Prune(ctx context.Context, want *desired.State) error  // remove what is not wanted
	Resync()                                               // forget what was there: read it again
}

// NamedSink is a sink as logs call it.
type NamedSink struct {
	Name string
	Sink
	// Vital says that the later sinks rely on the whole of this one: no kernel
	// route leads to a workload whose policy is not in place.
	Vital bool
}

// Datastore is a watch of the resources.
type Datastore interface {
	Changed() <-chan struct{}
	// Take returns what changed since the last call, and the revision as of
	// which that is the whole truth.
	Take() ([]api.Change, int64)
	InSync() bool
	Problems() map[api.Key]error
}

// Compiler compiles the policy for this node's endpoints. The changes are those of
// the store since the last call.
type Compiler interface {
	Compile(*api.Store, []api.Change) *policy.Tables
}

// Links watches the host's interfaces. What it returns is not changed afterwards.
type Links interface {
	Changed() <-chan struct{}
	Links() ([]desired.Link, error)
}

// Learner watches what BGP peers announce. What it returns is not changed afterwards.
type Learner interface {
	Changed() <-chan struct{}
	Learned() []desired.LearnedRoute
	// Learning tells whether the peers of this start may have more to tell.
	Learning() bool
}

// Secrets watches the values that passwords in resources refer to.
type Secrets interface {
	Changed() <-chan struct{}
	Secrets() map[desired.SecretKey]string
}

// Kubernetes watches what its API server has that matters to BGP. What it returns is
// not changed afterwards.
type Kubernetes interface {
	Changed() <-chan struct{}
	Services() []desired.Service
	Secrets() map[desired.SecretKey]string
	// Pending tells whether something may be needed that has not been read yet.
	Pending() bool
}

// Options are what a controller works with.
type Options struct {
	Node      string
	Config    desired.Config
	Datastore Datastore
	Policy    Compiler
	Links     Links
	Learner   Learner
	Secrets   Secrets // nil: there are none
	// Kubernetes is nil where there is none. Its Secrets are asked after the others.
	Kubernetes Kubernetes
	// Sinks in the order in which they depend on each other. The first vital one, or
	// else the first, enforces policy: what it has taken up counts as enforced.
	Sinks []NamedSink
	// Observe, if set, is told of each round's changes and result.
	Observe func([]api.Change, *desired.State)
	Logger  *slog.Logger

	Gather   time.Duration // how long the loop rests at most between rounds; default 5 ms
	Resync   time.Duration // how often the world is read back; default 90 s
	MinRetry time.Duration // default 100 ms, doubling up to
	MaxRetry time.Duration // default 15 s
}

// nothing stands in where there is nothing to watch.
type nothing struct{}

func (nothing) Changed() <-chan struct{}              { return nil }
func (nothing) Secrets() map[desired.SecretKey]string { return nil }
func (nothing) Services() []desired.Service           { return nil }
func (nothing) Pending() bool                         { return false }
