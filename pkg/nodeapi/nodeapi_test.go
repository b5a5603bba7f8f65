package nodeapi_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"testing"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/nodeapi"

	"github.com/google/go-cmp/cmp"
)

// node answers as the daemon does; the endpoint "gone" will never be ready.
type node struct {
	nodeapi.Traffic
	status nodeapi.Status
	bgp    nodeapi.BGPStatus
	routes nodeapi.BGPRoutes
	bgpErr error
	asked  chan api.Key
}

func (n *node) Status() nodeapi.Status { return n.status }

func (n *node) BGP(context.Context) (nodeapi.BGPStatus, error) { return n.bgp, n.bgpErr }

func (n *node) BGPRoutes(context.Context) (nodeapi.BGPRoutes, error) { return n.routes, n.bgpErr }

func (n *node) Wait(ctx context.Context, key api.Key, revision int64) error {
	n.asked <- key
	switch {
	case key.Name == "clash":
		return &nodeapi.NotEnforcedError{Key: key, Reason: "interface cali1 belongs to another endpoint"}
	case revision > n.status.Revision:
		<-ctx.Done()
		return &nodeapi.NotEnforcedError{Key: key, Reason: "the datastore is not in sync"}
	}
	return nil
}

func serve(t *testing.T, n nodeapi.Node) *nodeapi.Client {
	dir := t.TempDir()
	l, err := net.Listen("unix", nodeapi.SocketPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: nodeapi.Handler(n)}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return nodeapi.NewClient(dir)
}

func TestStatus(t *testing.T) {
	n := &node{
		status: nodeapi.Status{
			Node: "a", Revision: 7, InSync: true, WorkloadMTU: 1480,
			Started:   time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
			Addresses: []nodeapi.Address{{Address: "10.0.0.1/24", Interface: "eth0", Reason: "first-found"}},
			Endpoints: []nodeapi.Endpoint{{Namespace: "default", Name: "x", State: nodeapi.EndpointReady}},
		},
		bgp: nodeapi.BGPStatus{Enabled: true, AS: 64512, Peers: []nodeapi.BGPPeerStatus{{Address: "10.0.0.2", State: "up", Family: "v4"}}},
	}
	c := serve(t, n)
	status, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(n.status, status); diff != "" {
		t.Error(diff)
	}
	bgp, err := c.BGP(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(n.bgp, bgp); diff != "" {
		t.Error(diff)
	}
	n.routes = nodeapi.BGPRoutes{Received: []nodeapi.BGPRoute{{Prefix: "10.0.0.0/8", NextHop: "10.0.0.2", Peer: "10.0.0.2", Best: true}}}
	routes, err := c.BGPRoutes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(n.routes, routes); diff != "" {
		t.Error(diff)
	}
	n.bgpErr = errors.New("speaker stopped")
	if _, err := c.BGP(t.Context()); err == nil || err.Error() != "calico-node: speaker stopped" {
		t.Errorf("got %v", err)
	}
}

func TestWaitEnforced(t *testing.T) {
	n := &node{status: nodeapi.Status{Revision: 7}, asked: make(chan api.Key, 1)}
	c := serve(t, n)
	key := api.Key{Kind: "WorkloadEndpoint", Namespace: "default", Name: "x"}
	if err := c.WaitEnforced(t.Context(), key, 7); err != nil {
		t.Error(err)
	}
	if got := <-n.asked; got != key {
		t.Errorf("daemon was asked for %s", got)
	}

	key.Name = "clash"
	var refused *nodeapi.NotEnforcedError
	if err := c.WaitEnforced(t.Context(), key, 7); !errors.As(err, &refused) || refused.Key != key {
		t.Errorf("got %v", err)
	}
	<-n.asked

	// The reason must arrive before our own deadline.
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := c.WaitEnforced(ctx, api.Key{}, 8)
	if !errors.As(err, &refused) || refused.Reason != "the datastore is not in sync" {
		t.Errorf("got %v", err)
	}
}

func TestNotRunning(t *testing.T) {
	_, err := nodeapi.NewClient(t.TempDir()).Status(t.Context())
	if !errors.Is(err, nodeapi.ErrNotRunning) {
		t.Errorf("got %v", err)
	}
}

// talker answers questions about packets.
type talker struct {
	nodeapi.Traffic
	asked  any
	events chan nodeapi.Event
	ended  chan struct{}
}

func (t *talker) Why(_ context.Context, q nodeapi.WhyQuestion) (nodeapi.Why, error) {
	t.asked = q
	if q.Source == "nobody" {
		return nodeapi.Why{}, &nodeapi.QuestionError{Reason: "nobody is called that"}
	}
	return nodeapi.Why{Node: "a", Verdict: nodeapi.VerdictDeny, Stages: []nodeapi.Stage{{Endpoint: "x", Reached: true}}}, nil
}

func (t *talker) Rules(_ context.Context, f nodeapi.RuleFilter) ([]nodeapi.RuleCount, error) {
	t.asked = f
	return []nodeapi.RuleCount{{Rule: nodeapi.Rule{ID: "r"}, Packets: 3, Bytes: 300}}, nil
}

func (t *talker) Tables(context.Context) ([]nodeapi.Table, error) {
	return nil, errors.New("out of order")
}

func (t *talker) Flows(_ context.Context, f nodeapi.FlowFilter, yield func(nodeapi.Flow) bool) error {
	t.asked = f
	if f.Endpoint == "nobody" {
		return &nodeapi.QuestionError{Reason: "nobody is called that"}
	}
	for _, state := range []string{"new", "established", "closing"} {
		if !yield(nodeapi.Flow{State: state}) {
			return nil
		}
	}
	if f.Denied {
		return errors.New("the table is gone")
	}
	return nil
}

func (t *talker) Events(ctx context.Context, f nodeapi.EventFilter, yield func(nodeapi.Event) bool) error {
	t.asked = f
	defer close(t.ended)
	for yield(nodeapi.Event{Kind: nodeapi.EventListening}) {
		select {
		case <-ctx.Done():
			return nil
		case e := <-t.events:
			if !yield(e) {
				return nil
			}
		}
	}
	return nil
}

func TestQuestions(t *testing.T) {
	n := &node{Traffic: &talker{}}
	talk := n.Traffic.(*talker)
	c := serve(t, n)
	kind := 8
	q := nodeapi.WhyQuestion{Source: "a", Destination: "b", Protocol: "ICMP", ICMPType: &kind, Port: 7, SourcePort: 9}
	w, err := c.Why(t.Context(), q)
	if diff := cmp.Diff(any(q), talk.asked); err != nil || diff != "" || w.Node != "a" || !w.Stages[0].Reached {
		t.Errorf("%+v, %v; asked %s", w, err, diff)
	}
	var question *nodeapi.QuestionError
	if _, err := c.Why(t.Context(), nodeapi.WhyQuestion{Source: "nobody"}); !errors.As(err, &question) || err.Error() != "nobody is called that" {
		t.Errorf("got %v", err)
	}
	filter := nodeapi.RuleFilter{Endpoint: "a/b", Policy: "c&d"}
	rules, err := c.Rules(t.Context(), filter)
	if err != nil || len(rules) != 1 || rules[0].ID != "r" || rules[0].Packets != 3 || talk.asked != any(filter) {
		t.Errorf("%+v, %v", rules, err)
	}
	if _, err := c.Tables(t.Context()); err == nil || err.Error() != "calico-node: out of order" {
		t.Errorf("got %v", err)
	}
}

func TestFlowsStream(t *testing.T) {
	n := &node{Traffic: &talker{}}
	talk := n.Traffic.(*talker)
	c := serve(t, n)
	flows := func(f nodeapi.FlowFilter) (states []string, err error) {
		for f, err := range c.Flows(t.Context(), f) {
			if err != nil {
				return states, err
			}
			states = append(states, f.State)
		}
		return states, nil
	}
	f := nodeapi.FlowFilter{Endpoint: "x", Policy: "p", Protocol: "TCP", Port: 80, Limit: 12}
	states, err := flows(f)
	if diff := cmp.Diff([]string{"new", "established", "closing"}, states); err != nil || diff != "" || talk.asked != any(f) {
		t.Errorf("%s, %v, asked %+v", diff, err, talk.asked)
	}
	if states, err := flows(nodeapi.FlowFilter{Denied: true}); err == nil || err.Error() != "calico-node: the table is gone" || len(states) != 3 {
		t.Errorf("%v, %v", states, err)
	}
	var question *nodeapi.QuestionError
	if _, err := flows(nodeapi.FlowFilter{Endpoint: "nobody"}); !errors.As(err, &question) {
		t.Errorf("got %v", err)
	}
	for range c.Flows(t.Context(), f) {
		break // whoever has enough need not read the rest
	}
}

// TestEventsStream: events come as they happen, and the daemon notices when nobody
// listens any more.
func TestEventsStream(t *testing.T) {
	n := &node{Traffic: &talker{events: make(chan nodeapi.Event), ended: make(chan struct{})}}
	talk := n.Traffic.(*talker)
	c := serve(t, n)
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan nodeapi.Event)
	f := nodeapi.EventFilter{Kinds: []nodeapi.EventKind{nodeapi.EventDrop, nodeapi.EventLog}, Endpoint: "x", Policy: "p"}
	go func() {
		defer close(got)
		for e, err := range c.Events(ctx, f) {
			if err != nil {
				t.Error(err)
				return
			}
			got <- e
		}
	}()
	if e := <-got; e.Kind != nodeapi.EventListening {
		t.Errorf("first comes %+v", e)
	}
	if diff := cmp.Diff(any(f), talk.asked); diff != "" {
		t.Error(diff)
	}
	talk.events <- nodeapi.Event{Kind: nodeapi.EventDrop, Rule: &nodeapi.Rule{Name: "r"}}
	if e := <-got; e.Kind != nodeapi.EventDrop || e.Rule.Name != "r" {
		t.Errorf("got %+v", e)
	}
	<-got // listening, as this daemon says after each
	cancel()
	for range got {
	}
	select {
	case <-talk.ended:
	case <-time.After(10 * time.Second):
		t.Error("the daemon goes on for nobody")
	}
}
