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
