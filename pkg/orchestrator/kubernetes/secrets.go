package kubernetes

import (
	"context"
	"maps"
	"slices"

	"calico-xdp/pkg/control/desired"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/tools/cache"
)

// followSecret keeps one Secret until ctx ends. Only that one is asked for: a node need
// not be allowed to read others.
func (w *Watcher) followSecret(ctx context.Context, c Clients, name string) {
	var store cache.Store
	take := func() bool { // under the lock
		if ctx.Err() != nil || !slices.Contains(w.seen.secrets, name) {
			return false
		}
		var values map[string]string
		for _, object := range store.List() {
			if s, ok := object.(*core.Secret); ok && s.Name == name {
				values = make(map[string]string, len(s.Data))
				for key, value := range s.Data {
					values[key] = string(value)
				}
			}
		}
		return w.setSecret(name, values)
	}
	i := informer(w, c, "secret "+w.o.Namespace+"/"+name, c.CoreV1().Secrets(w.o.Namespace),
		fields.OneTermEqualSelector("metadata.name", name).String(), &core.Secret{}, stripSecret, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			if take() {
				w.signal()
			}
		})
	store = i.GetStore()
	w.keep(ctx, []cache.SharedIndexInformer{i}, func() {
		w.seen.secrets = append(w.seen.secrets, name)
		take()
	})
}

// forgetSecret is for one that is no longer followed.
func (w *Watcher) forgetSecret(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen.secrets = slices.DeleteFunc(slices.Clone(w.seen.secrets), func(s string) bool { return s == name })
	w.setSecret(name, nil)
}

// setSecret says whether that makes a difference. The lock is held.
func (w *Watcher) setSecret(name string, values map[string]string) bool {
	if maps.Equal(w.secrets[name], values) {
		return false
	}
	w.secrets[name] = values
	if values == nil {
		delete(w.secrets, name)
	}
	w.values = make(map[desired.SecretKey]string)
	for secret, values := range w.secrets {
		for key, value := range values {
			w.values[desired.SecretKey{Secret: secret, Key: key}] = value
		}
	}
	return true
}

// Secrets are the values of the Secrets that are followed. What is returned is not to
// be changed.
func (w *Watcher) Secrets() map[desired.SecretKey]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.values
}

func stripSecret(object any) any {
	s, ok := object.(*core.Secret)
	if !ok {
		return object
	}
	return &core.Secret{ObjectMeta: bare(s.ObjectMeta), Data: s.Data}
}
