package nodeapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"calico-xdp/pkg/api"
)

// ErrNotRunning says that no daemon answers on the socket.
var ErrNotRunning = errors.New("calico-node is not running")

// Client talks to the calico-node of this host.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client of the daemon whose run directory this is
// (DefaultRunDir if empty). It connects at the first call.
func NewClient(runDir string) *Client {
	if runDir == "" {
		runDir = DefaultRunDir
	}
	c := &Client{socket: SocketPath(runDir)}
	c.http = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // a command makes one call; nothing to keep
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", c.socket)
		},
	}}
	return c
}

// Status returns the node's state.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.call(ctx, http.MethodGet, "/v1/status", nil, &s)
}

// BGP returns the state of the node's BGP sessions.
func (c *Client) BGP(ctx context.Context) (BGPStatus, error) {
	var s BGPStatus
	return s, c.call(ctx, http.MethodGet, "/v1/bgp", nil, &s)
}

// BGPRoutes returns the routes of the node's BGP sessions.
func (c *Client) BGPRoutes(ctx context.Context) (BGPRoutes, error) {
	var r BGPRoutes
	return r, c.call(ctx, http.MethodGet, "/v1/bgp/routes", nil, &r)
}

// WaitEnforced returns when the kernel enforces everything up to the datastore
// revision and, for a workload endpoint of this node, the endpoint itself. The
// zero key and other kinds wait for the revision alone, which is how a deletion
// is waited for. If the endpoint cannot be applied, or the context's deadline
// passes first, the error is a *NotEnforcedError with the reason.
func (c *Client) WaitEnforced(ctx context.Context, key api.Key, revision int64) error {
	req := waitRequest{Kind: key.Kind, Namespace: key.Namespace, Name: key.Name, Revision: revision}
	if deadline, ok := ctx.Deadline(); ok {
		// The daemon gives up a little earlier than we do, so that its reason
		// arrives and not just "deadline exceeded".
		left := time.Until(deadline)
		req.Timeout = max(left-min(left/10, 200*time.Millisecond), time.Millisecond)
	}
	err := c.call(ctx, http.MethodPost, "/v1/wait", req, nil)
	if refused := (*refusedError)(nil); errors.As(err, &refused) {
		return &NotEnforcedError{Key: key, Reason: refused.reason}
	}
	return err
}

// refusedError is an answer of 409: the request was understood and is not met.
type refusedError struct{ reason string }

func (e *refusedError) Error() string { return e.reason }

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.ask(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("answer of calico-node: %w", err)
	}
	return nil
}

// ask returns the daemon's answer, which is not an error.
func (c *Client) ask(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://calico-node"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if dial := (*net.OpError)(nil); errors.As(err, &dial) && dial.Op == "dial" && ctx.Err() == nil {
			return nil, fmt.Errorf("%w: %w", ErrNotRunning, dial)
		}
		return nil, fmt.Errorf("ask calico-node on %s: %w", c.socket, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var e errorBody
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || e.Error == "" {
		e.Error = resp.Status
	}
	switch resp.StatusCode {
	case http.StatusConflict:
		return nil, &refusedError{e.Error}
	case http.StatusUnprocessableEntity:
		return nil, &QuestionError{e.Error}
	}
	return nil, fmt.Errorf("calico-node: %s", e.Error)
}
