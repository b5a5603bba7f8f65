package datastore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"calico-xdp/pkg/api"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// Calico 3.31 and before store a policy of the default tier that its user calls x as
// default.x, and the user's name in an annotation (3.28: nowhere). Newer releases and
// we store it as x. Whoever names a policy finds it under either name, else a second
// one would come to stand beside the first, which stays in force. Watches know only
// what is stored.
const formerPrefix = api.DefaultTier + "."

// formerly returns the key under which those releases store what is called key; false
// if it is the same.
func formerly(key api.Key) (api.Key, bool) {
	switch key.Kind {
	case api.KindGlobalNetworkPolicy, api.KindNetworkPolicy, api.KindStagedGlobalNetworkPolicy, api.KindStagedNetworkPolicy:
	default:
		return key, false
	}
	if strings.Contains(key.Name, ".") {
		return key, false
	}
	key.Name = formerPrefix + key.Name
	return key, true
}

// called returns what its user calls a stored resource.
func called(r api.Resource) string {
	name := r.GetName()
	short, prefixed := strings.CutPrefix(name, formerPrefix)
	if !prefixed || strings.Contains(short, ".") {
		return name
	}
	policy, ok := api.PolicyOf(r)
	if !ok {
		return name
	}
	var noted struct {
		Name string `json:"name"`
	}
	if text := r.GetAnnotations()[api.AnnotationMetadata]; text != "" {
		if json.Unmarshal([]byte(text), &noted) != nil || noted.Name != short {
			return name
		}
		return short
	}
	if policy.Tier != "" && policy.Tier != api.DefaultTier {
		return name
	}
	return short
}

// locate returns what is stored for key, and the key that it is stored under.
func (c *Client) locate(ctx context.Context, key api.Key) (api.Key, *mvccpb.KeyValue, error) {
	kv, err := c.read(ctx, key)
	former, ok := formerly(key)
	if !ok || !errors.Is(err, ErrNotFound) {
		return key, kv, err
	}
	kv, formerErr := c.read(ctx, former)
	switch {
	case errors.Is(formerErr, ErrNotFound):
		return key, nil, err
	case formerErr != nil:
		return key, nil, formerErr
	}
	if r, unread := decode(former, kv); unread != nil || called(r) != key.Name {
		return key, nil, err
	}
	return former, kv, nil
}

// free returns ErrExists if a policy called key is stored under its former name.
func (c *Client) free(ctx context.Context, key api.Key) error {
	if _, ok := formerly(key); !ok {
		return nil
	}
	at, _, err := c.locate(ctx, key)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err == nil && at != key:
		return fmt.Errorf("%s: %w, stored as %s", key, ErrExists, at.Name)
	}
	return err // what stands under the name itself is seen by whoever writes it
}

// show makes a stored policy what those see who name policies: as its user calls it,
// with the tier that it is in, without the note about the name.
func show(r api.Resource) {
	if _, ok := api.PolicyOf(r); !ok {
		return
	}
	r.SetName(called(r))
	api.FillTier(r)
	api.DropMetadata(r)
}

// showAll is show for all that a listing holds. Where two are called the same, which
// only a writer could make that does not know both names, the former name stays.
func showAll(rs []api.Resource) {
	var taken map[api.Key]bool
	for _, r := range rs {
		if called(r) != r.GetName() && taken == nil {
			taken = make(map[api.Key]bool)
			for _, other := range rs {
				taken[api.KeyOf(other)] = true
			}
		}
	}
	for _, r := range rs {
		stored := r.GetName()
		show(r)
		if r.GetName() != stored && taken[api.KeyOf(r)] {
			r.SetName(stored)
		}
	}
}
