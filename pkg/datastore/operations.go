package datastore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"calico-xdp/pkg/api"

	"github.com/google/uuid"
	clientv3 "go.etcd.io/etcd/client/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// MaxTrial is how many resources one trial may change: they are written in one
// transaction, and etcd takes 128 operations at once.
const MaxTrial = 100

// ErrHeld: a trial's time is not over.
var ErrHeld = errors.New("may still be confirmed")

// Try writes resources, all at once, for a time: unless [Client.ConfirmTrial] comes
// before that is over, [Client.RestoreTrial] puts back what was there, which each node
// calls for. Whoever has changed one of them meanwhile, or is at another revision than a
// resource says: ErrConflict.
func (c *Client) Try(ctx context.Context, resources []api.Resource, limit time.Duration, by string) (*api.Trial, error) {
	if len(resources) > MaxTrial {
		return nil, fmt.Errorf("%d resources at once: at most %d can be tried", len(resources), MaxTrial)
	}
	if !c.initialized.Load() {
		if err := c.Initialize(ctx); err != nil {
			return nil, err
		}
	}
	trial := &api.Trial{
		ObjectMeta: metav1.ObjectMeta{Name: uuid.NewString()[:8]},
		Started:    metav1.NewTime(time.Now().UTC().Truncate(time.Second)),
		Seconds:    int(limit.Round(time.Second).Seconds()), By: by,
	}
	trialPath, holdPath := trialRoot+trial.Name, holdRoot+trial.Name
	unchanged := []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(trialPath), "=", 0)}
	var puts []clientv3.Op
	for _, r := range resources {
		key, value, before, revision, err := c.next(ctx, r)
		if err != nil {
			return nil, err
		}
		path, err := c.codec.path(key)
		if err != nil {
			return nil, err
		}
		trial.Changes = append(trial.Changes, api.TrialChange{Kind: key.Kind, Namespace: key.Namespace, Name: key.Name, Before: before})
		unchanged = append(unchanged, clientv3.Compare(clientv3.ModRevision(path), "=", revision))
		puts = append(puts, clientv3.OpPut(path, string(value)))
	}
	record, err := json.Marshal(trial)
	if err != nil {
		return nil, err
	}
	lease, err := c.grant(ctx, limit)
	if err != nil {
		return nil, err
	}
	puts = append(puts, clientv3.OpPut(trialPath, string(record)), clientv3.OpPut(holdPath, "{}", clientv3.WithLease(lease)))
	response, err := write(ctx, c, func(ctx context.Context, etcd *clientv3.Client) (*clientv3.TxnResponse, error) {
		return etcd.Txn(ctx).If(unchanged...).Then(puts...).Commit()
	})
	if err == nil && !response.Succeeded {
		err = fmt.Errorf("the resources to try: %w", ErrConflict)
	}
	if err != nil {
		// If it was written after all it is over at once, or with the lease.
		if !errors.Is(err, ErrUnreachable) {
			err = errors.Join(err, c.revoke(ctx, lease))
		}
		return nil, err
	}
	setRevision(trial, response.Header.Revision)
	return trial, nil
}

// next returns where and how r is to be stored, and what is stored now with its
// revision, 0 for nothing.
func (c *Client) next(ctx context.Context, r api.Resource) (at api.Key, value, before []byte, revision int64, err error) {
	var wanted int64
	if v := r.GetResourceVersion(); v != "" {
		if wanted, err = parseRevision(api.KeyOf(r), v); err != nil {
			return
		}
	}
	r, key, _, err := c.prepare(r)
	if err != nil {
		return key, nil, nil, 0, err
	}
	at, stored, err := c.locate(ctx, key)
	switch {
	case errors.Is(err, ErrNotFound) && wanted == 0:
		identify(r)
		value, err = api.Encode(r)
		return at, value, nil, 0, err
	case err != nil:
		return at, nil, nil, 0, err
	case wanted != 0 && wanted != stored.ModRevision:
		return at, nil, nil, 0, conflict(key, wanted, stored.ModRevision)
	}
	value, err = c.merge(r, at, stored.Value)
	return at, value, stored.Value, stored.ModRevision, err
}

// ConfirmTrial makes a trial's changes stay. ErrNotFound: there is no such trial, or it
// is too late.
func (c *Client) ConfirmTrial(ctx context.Context, name string) error {
	trialPath, holdPath := trialRoot+name, holdRoot+name
	key := api.Key{Kind: api.KindTrial, Name: name}
	response, err := write(ctx, c, func(ctx context.Context, etcd *clientv3.Client) (*clientv3.TxnResponse, error) {
		return etcd.Txn(ctx).
			If(clientv3.Compare(clientv3.CreateRevision(trialPath), ">", 0), clientv3.Compare(clientv3.CreateRevision(holdPath), ">", 0)).
			Then(clientv3.OpDelete(trialPath), clientv3.OpDelete(holdPath)).Commit()
	})
	if err == nil && !response.Succeeded {
		err = ErrNotFound
	}
	if err != nil {
		return of(key, err)
	}
	return nil
}

// RestoreTrial puts back what was stored before a trial, in one transaction, and ends the
// trial. What somebody has changed since is theirs and stays: kept. Unless now is set the
// trial's time must be over, else ErrHeld. ErrNotFound: it has been confirmed, or
// restored by another.
func (c *Client) RestoreTrial(ctx context.Context, name string, now bool) (restored, kept []api.Key, err error) {
	key := api.Key{Kind: api.KindTrial, Name: name}
	trialPath, holdPath := trialRoot+name, holdRoot+name
	for {
		record, err := c.read(ctx, key)
		if err != nil {
			return nil, nil, err
		}
		r, err := decode(key, record)
		if err != nil {
			return nil, nil, err
		}
		trial := r.(*api.Trial)
		paths := make([]string, len(trial.Changes))
		look := []clientv3.Op{clientv3.OpGet(holdPath, clientv3.WithKeysOnly())}
		for i := range trial.Changes {
			if paths[i], err = c.codec.path(trial.Changes[i].Key()); err != nil {
				return nil, nil, err
			}
			look = append(look, clientv3.OpGet(paths[i], clientv3.WithKeysOnly()))
		}
		found, err := request(ctx, c, func(ctx context.Context, etcd *clientv3.Client) (*clientv3.TxnResponse, error) {
			return etcd.Txn(ctx).Then(look...).Commit()
		})
		if err != nil {
			return nil, nil, of(key, err)
		}
		conditions := []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(trialPath), "=", record.ModRevision)}
		if !now {
			if found.Responses[0].GetResponseRange().Count > 0 {
				return nil, nil, fmt.Errorf("%s: %w", key, ErrHeld)
			}
			conditions = append(conditions, clientv3.Compare(clientv3.CreateRevision(holdPath), "=", 0))
		}
		restored, kept = nil, nil
		writes := []clientv3.Op{clientv3.OpDelete(trialPath), clientv3.OpDelete(holdPath)}
		for i, change := range trial.Changes {
			is := found.Responses[i+1].GetResponseRange().Kvs
			if len(is) == 0 || is[0].ModRevision != record.ModRevision {
				kept = append(kept, change.Key())
				continue
			}
			restored = append(restored, change.Key())
			conditions = append(conditions, clientv3.Compare(clientv3.ModRevision(paths[i]), "=", record.ModRevision))
			if change.Before == nil {
				writes = append(writes, clientv3.OpDelete(paths[i]))
			} else {
				writes = append(writes, clientv3.OpPut(paths[i], string(change.Before)))
			}
		}
		response, err := write(ctx, c, func(ctx context.Context, etcd *clientv3.Client) (*clientv3.TxnResponse, error) {
			return etcd.Txn(ctx).If(conditions...).Then(writes...).Commit()
		})
		if err != nil {
			return nil, nil, of(key, err)
		}
		if response.Succeeded {
			return restored, kept, nil
		}
		// Somebody was faster with the trial or a resource: look again.
	}
}

// Answer is what a node says to a query.
type Answer struct {
	Node     string `json:"node"`
	Revision int64  `json:"revision"` // that the node enforces
	Enforced bool   `json:"enforced"` // all that was written before the query
	Reason   string `json:"reason,omitempty"`
}

// Query is a question to all nodes. It must be closed.
type Query struct {
	Name  string
	store *Client
	lease clientv3.LeaseID
}

// AskEnforced asks all nodes whether they enforce what has been written up to now. The
// question and the answers are gone after the limit at the latest.
func (c *Client) AskEnforced(ctx context.Context, limit time.Duration) (*Query, error) {
	lease, err := c.grant(ctx, limit)
	if err != nil {
		return nil, err
	}
	q := &Query{Name: uuid.NewString(), store: c, lease: lease}
	value, err := json.Marshal(api.EnforcementQuery{Lease: int64(lease)})
	if err != nil {
		return nil, err
	}
	_, err = write(ctx, c, func(ctx context.Context, etcd *clientv3.Client) (*clientv3.PutResponse, error) {
		return etcd.Put(ctx, queryRoot+q.Name, string(value), clientv3.WithLease(lease))
	})
	if err != nil {
		return nil, errors.Join(err, c.revoke(ctx, lease))
	}
	return q, nil
}

// Answers returns the nodes' answers up to now, by node.
func (q *Query) Answers(ctx context.Context) (map[string]Answer, error) {
	prefix := answerRoot + q.Name + "/"
	found, err := request(ctx, q.store, func(ctx context.Context, etcd *clientv3.Client) (*clientv3.GetResponse, error) {
		return etcd.Get(ctx, prefix, clientv3.WithPrefix())
	})
	if err != nil {
		return nil, err
	}
	out := make(map[string]Answer, len(found.Kvs))
	for _, kv := range found.Kvs {
		node := strings.TrimPrefix(string(kv.Key), prefix)
		var a Answer
		if err := json.Unmarshal(kv.Value, &a); err != nil {
			a.Reason = "the answer cannot be read: " + err.Error()
		}
		out[node] = a
	}
	return out, nil
}

// Close takes the question and its answers back.
func (q *Query) Close(ctx context.Context) error { return q.store.revoke(ctx, q.lease) }

// AnswerQuery writes a node's answer. That the question is gone is no error.
func (c *Client) AnswerQuery(ctx context.Context, q *api.EnforcementQuery, a Answer) error {
	value, err := json.Marshal(a)
	if err != nil {
		return err
	}
	path := queryRoot + q.Name
	_, err = write(ctx, c, func(ctx context.Context, etcd *clientv3.Client) (*clientv3.TxnResponse, error) {
		return etcd.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(path), ">", 0)).
			Then(clientv3.OpPut(answerRoot+q.Name+"/"+a.Node, string(value), clientv3.WithLease(clientv3.LeaseID(q.Lease)))).Commit()
	})
	return err
}

func (c *Client) grant(ctx context.Context, limit time.Duration) (clientv3.LeaseID, error) {
	response, err := write(ctx, c, func(ctx context.Context, etcd *clientv3.Client) (*clientv3.LeaseGrantResponse, error) {
		return etcd.Grant(ctx, max(1, int64(limit.Round(time.Second).Seconds())))
	})
	if err != nil {
		return 0, err
	}
	return response.ID, nil
}

func (c *Client) revoke(ctx context.Context, lease clientv3.LeaseID) error {
	// Also for those whose own time is over.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
	defer cancel()
	_, err := write(ctx, c, func(ctx context.Context, etcd *clientv3.Client) (*clientv3.LeaseRevokeResponse, error) {
		return etcd.Revoke(ctx, lease)
	})
	return err
}
