package datastore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"calico-xdp/pkg/api"

	"github.com/google/uuid"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Get returns the resource with this key, or ErrNotFound.
func (c *Client) Get(ctx context.Context, key api.Key) (api.Resource, error) {
	at, kv, err := c.locate(ctx, c.codec.withNamespace(key))
	if err != nil {
		return nil, err
	}
	r, err := decode(at, kv)
	if err != nil {
		return nil, err
	}
	show(r)
	return r, nil
}

// read returns what is stored at key.
func (c *Client) read(ctx context.Context, key api.Key) (*mvccpb.KeyValue, error) {
	path, err := c.codec.path(key)
	if err != nil {
		return nil, err
	}
	response, err := request(ctx, c, func(ctx context.Context, etcd *clientv3.Client) (*clientv3.GetResponse, error) {
		return etcd.Get(ctx, path)
	})
	if err != nil {
		return nil, of(key, err)
	}
	if len(response.Kvs) == 0 {
		return nil, fmt.Errorf("%s: %w", key, ErrNotFound)
	}
	return response.Kvs[0], nil
}

// List returns the resources of a kind as of one moment, sorted by key.
// namespace "" is all namespaces. An object that cannot be read is logged and
// left out.
func (c *Client) List(ctx context.Context, kind, namespace string) ([]api.Resource, error) {
	objects, _, err := c.ListAsOf(ctx, kind, namespace)
	return objects, err
}

// ListAsOf is List that also returns the datastore's revision as of which it is, as
// objects have theirs for resourceVersion.
func (c *Client) ListAsOf(ctx context.Context, kind, namespace string) (objects []api.Resource, resourceVersion string, err error) {
	k := c.codec.byName[kind]
	if k == nil {
		return nil, "", fmt.Errorf("unknown kind %q", kind)
	}
	l, err := c.list(ctx, kind, c.codec.prefix(k, namespace), 0)
	showAll(l.objects)
	return l.objects, strconv.FormatInt(l.revision, 10), err
}

// ListAffinities returns the block affinities of one node, sorted by key.
func (c *Client) ListAffinities(ctx context.Context, node string) ([]*api.BlockAffinity, error) {
	l, err := c.list(ctx, api.KindBlockAffinity, affinityRoot+node+"/", 0)
	out := make([]*api.BlockAffinity, len(l.objects))
	for i, r := range l.objects {
		out[i] = r.(*api.BlockAffinity)
	}
	return out, err
}

// listing is what a range holds as of a revision.
type listing struct {
	objects  []api.Resource
	unread   []api.Key // what is stored there cannot be read
	revision int64
}

// list reads a kind's objects as of a revision; 0: now.
func (c *Client) list(ctx context.Context, kind, prefix string, revision int64) (listing, error) {
	type one struct {
		key api.Key
		r   api.Resource
		err error
	}
	found := newOrdered(func(key api.Key, kv *mvccpb.KeyValue) one {
		r, err := decode(key, kv)
		return one{key, r, err}
	})
	l := listing{}
	var err error
	l.revision, _, err = c.each(ctx, prefix, clientv3.GetPrefixRangeEnd(prefix), revision, false, func(kv *mvccpb.KeyValue) error {
		key, ok := c.codec.key(string(kv.Key))
		if !ok || key.Kind != kind {
			return nil
		}
		found.add(key, kv)
		return nil
	})
	all := found.results()
	if err != nil {
		return listing{}, fmt.Errorf("list %s: %w", kind, err)
	}
	l.objects = make([]api.Resource, 0, len(all))
	for _, o := range all {
		if o.err != nil {
			c.log.Warn("object left out: what is stored cannot be read", "object", o.key, "error", o.err)
			l.unread = append(l.unread, o.key)
			continue
		}
		l.objects = append(l.objects, o.r)
	}
	return l, nil
}

// Create writes a resource that must not exist yet, defaulted and validated. It
// returns the resource as written; r itself is not changed.
func (c *Client) Create(ctx context.Context, r api.Resource) (api.Resource, error) {
	return c.CreateIf(ctx, r)
}

// CreateIf is Create, done only if the guards hold.
func (c *Client) CreateIf(ctx context.Context, r api.Resource, guards ...Guard) (api.Resource, error) {
	// Whoever brings a ClusterInformation says who the cluster is.
	if _, identity := r.(*api.ClusterInformation); !identity && !c.initialized.Load() {
		if err := c.Initialize(ctx); err != nil {
			return nil, err
		}
	}
	return c.create(ctx, r, guards...)
}

func (c *Client) create(ctx context.Context, r api.Resource, guards ...Guard) (api.Resource, error) {
	r, key, path, err := c.prepare(r)
	if err != nil {
		return nil, err
	}
	if err := c.free(ctx, key); err != nil {
		return nil, err
	}
	if !c.codec.byName[key.Kind].Internal {
		identify(r)
	}
	value, err := api.Encode(r)
	if err != nil {
		return nil, err
	}
	response, err := c.commit(ctx, key, clientv3.Compare(clientv3.CreateRevision(path), "=", 0),
		clientv3.OpPut(path, string(value)), guards)
	if err != nil {
		return nil, err
	}
	if !response.Succeeded {
		if revisionOf(response) == 0 {
			return nil, fmt.Errorf("%s: %w", key, ErrOvertaken)
		}
		return nil, fmt.Errorf("%s: %w", key, ErrExists)
	}
	setRevision(r, response.Header.Revision)
	return r, nil
}

// identify gives r a uid and a creation time unless it has them.
func identify(r api.Resource) {
	if r.GetUID() == "" {
		r.SetUID(types.UID(uuid.NewString()))
	}
	if t := r.GetCreationTimestamp(); t.IsZero() {
		r.SetCreationTimestamp(metav1.NewTime(time.Now().UTC().Truncate(time.Second)))
	}
}

// Update overwrites a resource that must exist. If r has a ResourceVersion that
// must be the stored one; otherwise what is stored now is overwritten. Fields
// of the stored object that our types do not know survive, as do its uid and
// creation time.
func (c *Client) Update(ctx context.Context, r api.Resource) (api.Resource, error) {
	return c.UpdateIf(ctx, r)
}

// UpdateIf is Update, done only if the guards hold.
func (c *Client) UpdateIf(ctx context.Context, r api.Resource, guards ...Guard) (api.Resource, error) {
	var wanted int64
	if v := r.GetResourceVersion(); v != "" {
		var err error
		if wanted, err = parseRevision(api.KeyOf(r), v); err != nil {
			return nil, err
		}
	}
	r, key, _, err := c.prepare(r)
	if err != nil {
		return nil, err
	}
	for {
		at, stored, err := c.locate(ctx, key)
		if err != nil {
			return nil, err
		}
		path := string(stored.Key)
		if wanted != 0 && stored.ModRevision != wanted {
			return nil, conflict(key, wanted, stored.ModRevision)
		}
		value, err := c.merge(r, at, stored.Value)
		if err != nil {
			return nil, err
		}
		response, err := c.commit(ctx, key, clientv3.Compare(clientv3.ModRevision(path), "=", stored.ModRevision),
			clientv3.OpPut(path, string(value)), guards)
		if err != nil {
			return nil, err
		}
		if response.Succeeded {
			setRevision(r, response.Header.Revision)
			return r, nil
		}
		if revisionOf(response) == stored.ModRevision {
			return nil, fmt.Errorf("%s: %w", key, ErrOvertaken)
		}
		if wanted != 0 {
			return nil, lost(key, wanted, response)
		}
		// Someone was faster, and r is to win over whatever is there: again.
	}
}

// merge returns r as it is to be stored under key in place of stored. r takes over uid
// and creation time.
func (c *Client) merge(r api.Resource, key api.Key, stored []byte) ([]byte, error) {
	internal := c.codec.byName[key.Kind].Internal
	var old struct {
		Metadata struct {
			UID               types.UID   `json:"uid"`
			CreationTimestamp metav1.Time `json:"creationTimestamp"`
		} `json:"metadata"`
	}
	// An error means that what is stored is no object; nothing of it is worth
	// keeping, and overwriting it is how it is repaired.
	broken := json.Unmarshal(stored, &old) != nil
	if !internal {
		if old.Metadata.UID != "" {
			r.SetUID(old.Metadata.UID)
		}
		if !old.Metadata.CreationTimestamp.IsZero() {
			r.SetCreationTimestamp(old.Metadata.CreationTimestamp)
		}
		identify(r)
	}
	name := r.GetName()
	r.SetName(key.Name) // a policy may be stored under its former name
	value, err := api.Encode(r)
	r.SetName(name)
	if err != nil || broken {
		return value, err
	}
	if value, err = api.MergeUnknown(stored, value); err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return value, nil
}

// Apply makes the datastore hold r, whether it was there or not.
func (c *Client) Apply(ctx context.Context, r api.Resource) (stored api.Resource, created bool, err error) {
	return c.ApplyIf(ctx, r)
}

// ApplyIf is Apply, done only if the guards hold.
func (c *Client) ApplyIf(ctx context.Context, r api.Resource, guards ...Guard) (stored api.Resource, created bool, err error) {
	for {
		stored, err = c.UpdateIf(ctx, r, guards...)
		if !errors.Is(err, ErrNotFound) {
			return stored, false, err
		}
		stored, err = c.CreateIf(ctx, r, guards...)
		if !errors.Is(err, ErrExists) {
			return stored, err == nil, err
		}
	}
}

// Delete removes a resource and returns it as it was, nil if it could not be
// read. If resourceVersion is not empty it must be the stored one.
func (c *Client) Delete(ctx context.Context, key api.Key, resourceVersion string) (api.Resource, error) {
	return c.DeleteIf(ctx, key, resourceVersion)
}

// DeleteIf is Delete, done only if the guards hold.
func (c *Client) DeleteIf(ctx context.Context, key api.Key, resourceVersion string, guards ...Guard) (api.Resource, error) {
	key = c.codec.withNamespace(key)
	at := key
	if _, ok := formerly(key); ok {
		var err error
		if at, _, err = c.locate(ctx, key); err != nil {
			return nil, err
		}
	}
	path, err := c.codec.path(at)
	if err != nil {
		return nil, err
	}
	unchanged := clientv3.Compare(clientv3.CreateRevision(path), ">", 0)
	var wanted int64
	if resourceVersion != "" {
		if wanted, err = parseRevision(key, resourceVersion); err != nil {
			return nil, err
		}
		unchanged = clientv3.Compare(clientv3.ModRevision(path), "=", wanted)
	}
	response, err := c.commit(ctx, key, unchanged, clientv3.OpDelete(path, clientv3.WithPrevKV()), guards)
	if err != nil {
		return nil, err
	}
	if !response.Succeeded {
		if has := revisionOf(response); has != 0 && (has == wanted || wanted == 0) {
			return nil, fmt.Errorf("%s: %w", key, ErrOvertaken)
		}
		return nil, lost(key, wanted, response)
	}
	old := response.Responses[0].GetResponseDeleteRange().PrevKvs
	if len(old) == 0 {
		return nil, nil
	}
	r, err := decode(at, old[0])
	if err != nil {
		c.log.Debug("the deleted object could not be read", "object", key, "error", err)
		return nil, nil
	}
	return r, nil
}

// prepare returns a copy of r ready to be stored, and its keys.
func (c *Client) prepare(r api.Resource) (api.Resource, api.Key, string, error) {
	r = r.DeepCopyObject().(api.Resource)
	api.Default(r)
	key := api.KeyOf(r)
	if err := api.Validate(r); err != nil {
		return nil, key, "", err
	}
	path, err := c.codec.path(key)
	return r, key, path, err
}

// commit does op if the comparison and the guards hold; if not, it reads the
// revision that the key has.
func (c *Client) commit(ctx context.Context, key api.Key, unchanged clientv3.Cmp, op clientv3.Op, guards []Guard) (*clientv3.TxnResponse, error) {
	all := []clientv3.Cmp{unchanged}
	for _, g := range guards {
		compare, err := g(c.codec)
		if err != nil {
			return nil, err
		}
		all = append(all, compare)
	}
	look := clientv3.OpGet(string(op.KeyBytes()), clientv3.WithKeysOnly())
	response, err := write(ctx, c, func(ctx context.Context, etcd *clientv3.Client) (*clientv3.TxnResponse, error) {
		return etcd.Txn(ctx).If(all...).Then(op).Else(look).Commit()
	})
	if err != nil {
		return nil, of(key, err)
	}
	return response, nil
}

// revisionOf returns the revision that a commit that did not succeed found at its
// key; 0: there is none.
func revisionOf(response *clientv3.TxnResponse) int64 {
	kvs := response.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return 0
	}
	return kvs[0].ModRevision
}

// lost says why the comparison of a commit did not hold.
func lost(key api.Key, wanted int64, response *clientv3.TxnResponse) error {
	has := revisionOf(response)
	if has == 0 {
		return fmt.Errorf("%s: %w", key, ErrNotFound)
	}
	return conflict(key, wanted, has)
}

// decode reads what is stored under key.
func decode(key api.Key, kv *mvccpb.KeyValue) (api.Resource, error) {
	if !bytes.HasPrefix(bytes.TrimSpace(kv.Value), []byte("{")) {
		return nil, fmt.Errorf("%s: stored object: not a JSON object", key)
	}
	r, err := api.DecodeStored(key.Kind, kv.Value)
	if err != nil {
		return nil, fmt.Errorf("%s: stored object: %w", key, err)
	}
	if r.GetName() == "" { // IPAM's kinds have only the key to say it
		r.SetName(key.Name)
	}
	if r.GetNamespace() == "" {
		r.SetNamespace(key.Namespace)
	}
	if says := api.KeyOf(r); says != key {
		return nil, fmt.Errorf("%s: stored object says that it is %s", key, says)
	}
	setRevision(r, kv.ModRevision)
	return r, nil
}

func setRevision(r api.Resource, rev int64) { r.SetResourceVersion(strconv.FormatInt(rev, 10)) }

func parseRevision(key api.Key, s string) (int64, error) {
	rev, err := strconv.ParseInt(s, 10, 64)
	if err != nil || rev <= 0 {
		return 0, fmt.Errorf("%s: resourceVersion %q: not a revision", key, s)
	}
	return rev, nil
}
