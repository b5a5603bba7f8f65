package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"
)

// attempts is how often a write without a revision of its own is tried when
// others write the same resource at the same time.
const attempts = 5

func apply(ctx context.Context, s store, it item) (string, error) {
	return update(ctx, s, it, true)
}

func replace(ctx context.Context, s store, it item) (string, error) {
	done, err := update(ctx, s, it, false)
	if done == "configured" {
		done = "replaced"
	}
	return done, err
}

// update makes the stored resource be as the item says, and does not write if
// it already is.
func update(ctx context.Context, s store, it item, orCreate bool) (string, error) {
	for attempt := 1; ; attempt++ {
		done, err := updateOnce(ctx, s, it, orCreate)
		raced := errors.Is(err, datastore.ErrConflict) || (orCreate && (errors.Is(err, datastore.ErrExists) || errors.Is(err, datastore.ErrNotFound)))
		if err == nil || !raced || it.ResourceVersion != "" || attempt == attempts {
			return done, err
		}
	}
}

func updateOnce(ctx context.Context, s store, it item, orCreate bool) (done string, err error) {
	stored, err := s.Get(ctx, it.key)
	builtin := builtIn(it.key)
	switch {
	case builtin != nil && errors.Is(err, datastore.ErrNotFound):
		stored = builtin
	case orCreate && errors.Is(err, datastore.ErrNotFound):
		return create(ctx, s, it, false)
	case err != nil:
		return "", err
	}
	next, err := it.over(stored)
	if err != nil {
		return "", err
	}
	same, err := equal(stored, next)
	switch {
	case err != nil:
		return "", err
	case same && (it.ResourceVersion == "" || it.ResourceVersion == stored.GetResourceVersion()):
		return "unchanged", nil
	case builtin != nil:
		return "", fmt.Errorf("%s is built in and cannot be changed", it.key)
	}
	if it.ResourceVersion == "" {
		// What was compared is what is replaced.
		next = next.DeepCopyObject().(api.Resource)
		next.SetResourceVersion(stored.GetResourceVersion())
	}
	_, err = s.Update(ctx, next)
	return "configured", err
}

// equal tells whether writing next over stored would change nothing that
// matters: spec, status, labels and annotations, with their defaults.
func equal(stored, next api.Resource) (bool, error) {
	a, b := stored.DeepCopyObject().(api.Resource), next.DeepCopyObject().(api.Resource)
	api.Default(a)
	api.Default(b)
	// A write keeps these as they are stored.
	b.SetUID(a.GetUID())
	b.SetCreationTimestamp(a.GetCreationTimestamp())
	b.SetGeneration(a.GetGeneration())
	x, err := api.Encode(a)
	if err != nil {
		return false, err
	}
	y, err := api.Encode(b)
	if err != nil {
		return false, err
	}
	return bytes.Equal(x, y), nil
}

// over returns what the item makes of the stored resource: itself, with what its
// writer leaves to the cluster. What cannot be changed is refused.
func (it item) over(stored api.Resource) (api.Resource, error) {
	stored = stored.DeepCopyObject().(api.Resource)
	api.Default(stored) // what an older Calico left out is as it is now by default
	next := it.resource
	if !it.HasStatus {
		var err error
		if next, err = withStatusOf(stored, next); err != nil {
			return nil, err
		}
	}
	if old, ok := stored.(*api.ClusterInformation); ok {
		if info, ok := next.(*api.ClusterInformation); ok && info.Spec.ClusterGUID == "" {
			info = info.DeepCopy()
			info.Spec.ClusterGUID = old.Spec.ClusterGUID
			next = info
		}
	}
	return next, api.ValidateChange(stored, next)
}

// withStatusOf returns next with stored's status: whoever edits a resource has
// nothing to say about what the nodes report in it.
func withStatusOf(stored, next api.Resource) (api.Resource, error) {
	old, err := fields(stored)
	if err != nil {
		return nil, err
	}
	if !present(old["status"]) {
		return next, nil
	}
	out, err := fields(next)
	if err != nil {
		return nil, err
	}
	out["status"] = old["status"]
	data, err := json.Marshal(out)
	if err != nil {
		return nil, err
	}
	return api.DecodeStored(api.KeyOf(next).Kind, data)
}

func present(field json.RawMessage) bool { return len(field) > 0 && string(field) != "{}" }

func fields(r api.Resource) (map[string]json.RawMessage, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	var out map[string]json.RawMessage
	return out, json.Unmarshal(data, &out)
}
