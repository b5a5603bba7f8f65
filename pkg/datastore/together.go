package datastore

import (
	"context"
	"errors"
	"fmt"

	"calico-xdp/pkg/api"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// Together holds the resources of several kinds as of one revision.
type Together struct {
	Revision int64
	ByKind   map[string][]api.Resource
	// Unread are stored objects that cannot be read: what is in them is unknown.
	Unread []api.Key
}

// ListTogether returns the resources of several kinds in all namespaces, all as
// of the same moment.
func (c *Client) ListTogether(ctx context.Context, kinds ...string) (Together, error) {
	for {
		out, err := c.listTogether(ctx, kinds)
		if !errors.Is(err, rpctypes.ErrCompacted) { // between two of the kinds
			return out, err
		}
	}
}

func (c *Client) listTogether(ctx context.Context, kinds []string) (Together, error) {
	out := Together{ByKind: make(map[string][]api.Resource, len(kinds))}
	for _, kind := range kinds {
		k := c.codec.byName[kind]
		if k == nil {
			return Together{}, fmt.Errorf("unknown kind %q", kind)
		}
		l, err := c.list(ctx, kind, c.codec.prefix(k, ""), out.Revision)
		if err != nil {
			return Together{}, err
		}
		out.Revision, out.ByKind[kind] = l.revision, l.objects
		out.Unread = append(out.Unread, l.unread...)
	}
	return out, nil
}
