package datastore

import (
	"fmt"

	"calico-xdp/pkg/api"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Guard is a condition on other objects than the one that is written. etcd
// judges it in the same step as the write, so nothing comes in between.
type Guard func(*codec) (clientv3.Cmp, error)

// Unchanged holds while an object has this resource version; "" means that there
// is no such object.
func Unchanged(key api.Key, resourceVersion string) Guard {
	return func(c *codec) (clientv3.Cmp, error) {
		path, err := c.path(key)
		if err != nil {
			return clientv3.Cmp{}, err
		}
		var revision int64
		if resourceVersion != "" {
			if revision, err = parseRevision(key, resourceVersion); err != nil {
				return clientv3.Cmp{}, err
			}
		}
		return clientv3.Compare(clientv3.ModRevision(path), "=", revision), nil
	}
}

// NoneSince holds while no object of the kind in the namespace whose name begins
// with prefix has been written after the revision. Deletions do not count. The
// server looks at every such object: the prefix should be narrow.
func NoneSince(kind, namespace, prefix string, revision int64) Guard {
	return func(c *codec) (clientv3.Cmp, error) {
		k := c.byName[kind]
		if k == nil {
			return clientv3.Cmp{}, fmt.Errorf("unknown kind %q", kind)
		}
		begin := c.prefix(k, c.withNamespace(api.Key{Kind: kind, Namespace: namespace}).Namespace) + prefix
		return clientv3.Compare(clientv3.ModRevision(begin), "<", revision+1).WithRange(clientv3.GetPrefixRangeEnd(begin)), nil
	}
}
