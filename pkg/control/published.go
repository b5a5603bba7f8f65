package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/nodeapi"
	"calico-xdp/pkg/policy"

	"github.com/prometheus/client_golang/prometheus"
)

// Published is what others may know of the loop. Its methods may be called from
// any goroutine.
type Published struct {
	log      Options
	metrics  metrics
	scraping sync.Mutex // one at a time

	mu      sync.Mutex
	last    result
	changed chan struct{} // closed and replaced with each round
	// enforced is the state and revision that the sink which enforces policy has taken up.
	enforced struct {
		state    *desired.State
		revision int64
		failing  desired.EndpointErrors // endpoints that it could not take up
	}
	problems map[string]string // as logged, so that each is logged once
	busy     time.Time         // since when a round runs; zero between rounds
}

// result is how a round ended.
type result struct {
	state    *desired.State // nil: none was computed
	revision int64
	inSync   bool
	enforced bool // by the sink that does
	invalid  map[api.Key]error
	err      error
	took     time.Duration
	locked   bool // the datastore, see locked
}

type metrics struct {
	rounds, errors prometheus.Counter
	duration       prometheus.Histogram
	revision       prometheus.Gauge
	inSync         prometheus.Gauge
	problems       prometheus.Gauge
	policyProblems *prometheus.GaugeVec
	endpoints      *prometheus.GaugeVec
	lastRound      prometheus.Gauge
}

func newPublished(o Options) *Published {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "calico_xdp", Name: name, Help: help})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "calico_xdp", Name: name, Help: help})
	}
	return &Published{
		log: o, changed: make(chan struct{}), problems: make(map[string]string),
		metrics: metrics{
			rounds: counter("syncs_total", "Rounds of the control loop."),
			errors: counter("sync_errors_total", "Rounds of the control loop that failed."),
			duration: prometheus.NewHistogram(prometheus.HistogramOpts{
				Namespace: "calico_xdp", Name: "sync_duration_seconds", Help: "How long a round of the control loop takes.",
				Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
			}),
			revision: gauge("enforced_revision", "Datastore revision whose policy the kernel enforces."),
			inSync:   gauge("in_sync", "1 if everything in the datastore has been seen and applied."),
			problems: gauge("problems", "Objects and parameters that could not be applied whole."),
			policyProblems: prometheus.NewGaugeVec(prometheus.GaugeOpts{
				Namespace: "calico_xdp", Name: "policy_problems", Help: "Objects that policy could not be compiled whole from: what they guard is closed.",
			}, []string{"kind"}),
			lastRound: gauge("last_sync_timestamp_seconds", "When the last round without error ended."),
			endpoints: prometheus.NewGaugeVec(prometheus.GaugeOpts{
				Namespace: "calico_xdp", Name: "workload_endpoints", Help: "Workload endpoints of this node.",
			}, []string{"state"}),
		},
	}
}

// Describe implements prometheus.Collector.
func (p *Published) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(p, ch) }

// Collect implements prometheus.Collector.
func (p *Published) Collect(ch chan<- prometheus.Metric) {
	m := &p.metrics
	p.scraping.Lock()
	defer p.scraping.Unlock()
	p.mu.Lock()
	problems, endpoints := p.currentProblems(), p.endpoints()
	closed := p.policyProblems()
	p.mu.Unlock()
	m.problems.Set(float64(len(problems)))
	for kind, n := range closed {
		m.policyProblems.WithLabelValues(kind).Set(float64(n))
	}
	m.endpoints.Reset()
	for _, e := range endpoints {
		m.endpoints.WithLabelValues(string(e.State)).Inc()
	}
	for _, c := range []prometheus.Collector{
		m.rounds, m.errors, m.duration, m.revision, m.inSync, m.problems, m.policyProblems, m.lastRound, m.endpoints,
	} {
		c.Collect(ch)
	}
}

func (p *Published) begin(at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy = at
}

func (p *Published) end() { p.begin(time.Time{}) }

func (p *Published) publish(r result) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.state == nil {
		r.state, r.revision, r.invalid, r.locked = p.last.state, p.last.revision, p.last.invalid, p.last.locked
	}
	if r.locked != p.last.locked {
		if r.locked {
			p.log.Logger.Warn("the datastore is locked: its objects are being changed as a whole; CNI waits until it is unlocked")
		} else {
			p.log.Logger.Info("the datastore is unlocked")
		}
	}
	// Problems are a list that is never changed.
	before := p.stateProblems()
	p.last = r
	if r.enforced {
		p.enforced.state, p.enforced.revision, p.enforced.failing = r.state, r.revision, nil
		errors.As(r.err, &p.enforced.failing)
	}
	close(p.changed)
	p.changed = make(chan struct{})

	if now := p.stateProblems(); len(now) != len(before) || len(now) > 0 && &now[0] != &before[0] {
		p.logProblems(now)
	}
	m := &p.metrics
	m.rounds.Inc()
	m.duration.Observe(r.took.Seconds())
	m.revision.Set(float64(p.enforced.revision))
	m.inSync.Set(0)
	if r.err != nil {
		m.errors.Inc()
	} else {
		m.lastRound.SetToCurrentTime()
		if r.inSync {
			m.inSync.Set(1)
		}
	}
}

// currentProblems returns what is wrong now, in order.
func (p *Published) currentProblems() []nodeapi.Problem {
	var out []nodeapi.Problem
	for _, pr := range p.stateProblems() {
		out = append(out, nodeapi.Problem{Object: pr.Object.String(), Error: pr.Err.Error()})
	}
	for key, err := range p.last.invalid {
		out = append(out, nodeapi.Problem{Object: key.String(), Error: err.Error()})
	}
	if p.last.locked {
		out = append(out, nodeapi.Problem{Object: clusterInformation().String(), Error: "the datastore is locked (datastoreReady: false)"})
	}
	slices.SortFunc(out, func(a, b nodeapi.Problem) int {
		return strings.Compare(a.Object+a.Error, b.Object+b.Error)
	})
	return slices.Compact(out)
}

func (p *Published) stateProblems() []policy.Problem {
	if p.last.state == nil {
		return nil
	}
	return p.last.state.Problems
}

// policyKinds are what policy is compiled from.
func policyKinds() []string {
	return []string{
		api.KindGlobalNetworkPolicy, api.KindNetworkPolicy, api.KindStagedGlobalNetworkPolicy, api.KindStagedNetworkPolicy,
		api.KindStagedKubernetesNetworkPolicy, api.KindTier, api.KindProfile, api.KindGlobalNetworkSet, api.KindNetworkSet,
		api.KindHostEndpoint, api.KindWorkloadEndpoint,
	}
}

// policyProblems counts the objects of each kind that policy could not be compiled
// whole from.
func (p *Published) policyProblems() map[string]int {
	bad := make(map[api.Key]bool)
	if p.last.state != nil && p.last.state.Dataplane.Policy != nil {
		for _, pr := range p.last.state.Dataplane.Policy.Problems {
			bad[pr.Object] = true
		}
	}
	for key := range p.last.invalid {
		bad[key] = true
	}
	out := make(map[string]int)
	for _, kind := range policyKinds() {
		out[kind] = 0 // so that there is something to be alarmed by
	}
	for key := range bad {
		if _, ok := out[key.Kind]; ok {
			out[key.Kind]++
		}
	}
	return out
}

// logProblems logs what is new and what is gone. Of objects that are not valid
// the datastore's watcher has told.
func (p *Published) logProblems(problems []policy.Problem) {
	now := make(map[string]string)
	for _, pr := range problems {
		object := pr.Object.String()
		text := object + ": " + pr.Err.Error()
		now[text] = object
		if _, known := p.problems[text]; !known {
			p.log.Logger.Warn("object cannot be applied whole", "object", object, "error", pr.Err)
		}
	}
	for _, text := range slices.Sorted(maps.Keys(p.problems)) {
		if _, still := now[text]; !still {
			p.log.Logger.Info("problem is gone", "problem", text)
		}
	}
	p.problems = now
}

// endpoints returns this node's endpoints by name, and how far each has come.
func (p *Published) endpoints() []nodeapi.Endpoint {
	if p.last.state == nil {
		return nil
	}
	var out []nodeapi.Endpoint
	for key, l := range p.last.state.Local {
		e := nodeapi.Endpoint{
			Namespace: key.Namespace, Name: key.Name, Interface: l.Interface,
			Addresses: []string{}, State: nodeapi.EndpointReady, Problem: l.Problem,
		}
		for _, a := range l.Addresses {
			e.Addresses = append(e.Addresses, a.String())
		}
		switch {
		case l.Closed:
			e.State = nodeapi.EndpointClosed
		case l.Missing:
			e.State = nodeapi.EndpointWaiting
		case p.enforced.state != p.last.state:
			e.State = nodeapi.EndpointPending
		case p.enforced.failing[key] != nil:
			e.State, e.Problem = nodeapi.EndpointClosed, p.enforced.failing[key].Error()
		}
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b nodeapi.Endpoint) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	return out
}

// Fill completes the status with what the loop knows.
func (p *Published) Fill(s *nodeapi.Status) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.Revision = p.enforced.revision
	s.InSync = p.last.inSync && p.last.err == nil
	if p.last.err != nil {
		s.Error = p.last.err.Error()
	}
	if p.last.state != nil {
		s.WorkloadMTU = p.last.state.WorkloadMTU
	}
	s.Endpoints = p.endpoints()
	s.Problems = p.currentProblems()
}

func (p *Published) bgp() (enabled bool, as uint32, routerID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last.state == nil || !p.last.state.BGP.Enabled {
		return false, 0, ""
	}
	b := &p.last.state.BGP
	return true, b.AS, b.RouterID.String()
}

// Wait returns when the revision is enforced and, for a workload endpoint, the
// endpoint is ready.
func (p *Published) Wait(ctx context.Context, key api.Key, revision int64) error {
	for {
		p.mu.Lock()
		done, reason, final := p.ready(key, revision)
		changed := p.changed
		p.mu.Unlock()
		if done {
			return nil
		}
		if final {
			return &nodeapi.NotEnforcedError{Key: key, Reason: reason}
		}
		select {
		case <-ctx.Done():
			return &nodeapi.NotEnforcedError{Key: key, Reason: reason}
		case <-changed:
		}
	}
}

// ready says whether what Wait waits for has come about, if not why, and
// whether it will not come about by waiting.
func (p *Published) ready(key api.Key, revision int64) (done bool, reason string, final bool) {
	switch {
	case p.last.err != nil && p.enforced.revision < revision:
		return false, p.last.err.Error(), false
	case p.enforced.state == nil:
		return false, "the datastore has not been read yet", false
	case p.enforced.revision < revision:
		return false, fmt.Sprintf("at datastore revision %d, waiting for %d", p.enforced.revision, revision), false
	case key.Kind != api.KindWorkloadEndpoint:
		return true, "", false
	}
	l, ok := p.enforced.state.Local[key]
	switch {
	case !ok:
		return false, "not an endpoint of this node", true
	case l.Closed:
		return false, l.Problem, true
	case l.Missing:
		return false, fmt.Sprintf("interface %s does not exist", l.Interface), false
	case p.enforced.failing[key] != nil:
		return false, p.enforced.failing[key].Error(), false
	}
	return true, "", false
}

// stuckAfter is how long a round may take before the daemon is better killed.
const stuckAfter = 2 * time.Minute

// Alive says whether the loop turns.
func (p *Published) Alive() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d := time.Since(p.busy); !p.busy.IsZero() && d > stuckAfter {
		return fmt.Errorf("a round of the control loop has been running for %s", d.Round(time.Second))
	}
	return nil
}

// Ready says whether the node is as it should be.
func (p *Published) Ready() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.last.err != nil:
		return p.last.err
	case p.enforced.state == nil:
		return errors.New("the datastore has not been read yet")
	}
	return nil
}

func clusterInformation() api.Key {
	return api.Key{Kind: api.KindClusterInformation, Name: "default"}
}

// locked tells whether someone has locked the datastore. The node goes on following it.
func locked(resources *api.Store) bool { return api.Locked(resources.Get(clusterInformation())) }
