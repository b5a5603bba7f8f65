package datastore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"calico-xdp/pkg/api"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What callers test for. They come wrapped with the key, ErrUnreachable with
// the endpoints.
var (
	ErrNotFound    = errors.New("not found")
	ErrExists      = errors.New("already exists")
	ErrConflict    = errors.New("changed by someone else")
	ErrUnreachable = errors.New("not reachable")
	// ErrReadOnly: etcd answers and takes no writes, because it has no space left
	// or found its data corrupt.
	ErrReadOnly = errors.New("read-only")
	// ErrOvertaken: a guard of the write did not hold. The object itself is as
	// the writer knew it.
	ErrOvertaken = errors.New("what the change relies on has changed")
)

// conflict says which revision of k the writer started from and which one the
// datastore has.
func conflict(k api.Key, wanted, has int64) error {
	return fmt.Errorf("%s: %w: it is at revision %d, the change was made to revision %d", k, ErrConflict, has, wanted)
}

// of names the object that a request failed for, unless it is not its fault.
func of(k api.Key, err error) error {
	if errors.Is(err, ErrUnreachable) {
		return err
	}
	return fmt.Errorf("%s: %w", k, err)
}

// failed turns an error of etcd or gRPC into one that says what is wrong with
// which datastore. ctx is the caller's, without the limit of one request.
func (c *Client) failed(ctx context.Context, err error) error {
	where := "datastore " + strings.Join(c.config.Endpoints, ",")
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", where, context.Cause(ctx))
	}
	err = rpctypes.Error(err)
	switch {
	case errors.Is(err, rpctypes.ErrAuthFailed):
		return fmt.Errorf("%s: user %q: wrong name or password", where, c.config.Username)
	case errors.Is(err, rpctypes.ErrUserEmpty):
		return fmt.Errorf("%s: user and password required", where)
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		return fmt.Errorf("%s: user %q: permission denied", where, c.config.Username)
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("%s: %w: its database has reached its quota; compact and defragment it, then 'etcdctl alarm disarm'", where, ErrReadOnly)
	case errors.Is(err, rpctypes.ErrCorrupt):
		return fmt.Errorf("%s: %w: a member's data is corrupt", where, ErrReadOnly)
	}
	if errors.Is(err, context.DeadlineExceeded) { // of our own limit
		return fmt.Errorf("%s: %w: no answer within %s", where, ErrUnreachable, requestTimeout)
	}
	if unavailable(err) {
		return fmt.Errorf("%s: %w: %s", where, ErrUnreachable, reason(err))
	}
	return fmt.Errorf("%s: %w", where, err)
}

// unavailable tells errors of the way to a member, or of one that has no leader,
// from those of the request.
func unavailable(err error) bool {
	if etcd, ok := errors.AsType[rpctypes.EtcdError](rpctypes.Error(err)); ok {
		return etcd.Code() == codes.Unavailable
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return true
	}
	return errors.Is(err, context.DeadlineExceeded)
}

// reason takes what went wrong out of what gRPC says about it:
//
//	connection error: desc = "transport: Error while dialing: dial tcp …: connect: connection refused"
func reason(err error) string {
	message := rpctypes.ErrorDesc(err)
	if i := strings.LastIndex(message, "desc = "); i >= 0 {
		message = strings.Trim(message[i+len("desc = "):], `"`)
	}
	for _, prefix := range []string{"transport: ", "Error while dialing: ", "authentication handshake failed: "} {
		message = strings.TrimPrefix(message, prefix)
	}
	return message
}
