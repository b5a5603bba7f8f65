package datastore

import (
	"context"
	"errors"
	"strings"

	"calico-xdp/pkg/api"

	"github.com/google/uuid"
	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	clientv3 "go.etcd.io/etcd/client/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Initialize writes what every cluster has, as far as it is not there: who the
// cluster is, and the tiers that always exist. The first Create does it too.
func (c *Client) Initialize(ctx context.Context) error {
	wanted := cluster()
	var look []clientv3.Op
	for _, r := range wanted {
		path, err := c.codec.path(api.KeyOf(r))
		if err != nil {
			return err
		}
		look = append(look, clientv3.OpGet(path, clientv3.WithKeysOnly()))
	}
	found, err := request(ctx, c, func(ctx context.Context, etcd *clientv3.Client) (*clientv3.TxnResponse, error) {
		return etcd.Txn(ctx).Then(look...).Commit()
	})
	if err != nil {
		return err
	}
	for i, r := range wanted {
		if found.Responses[i].GetResponseRange().Count > 0 {
			continue
		}
		if _, err := c.create(ctx, r); err != nil && !errors.Is(err, ErrExists) {
			return err
		}
	}
	c.initialized.Store(true)
	return nil
}

// cluster returns what Calico puts into an empty datastore.
func cluster() []api.Resource {
	info := &api.ClusterInformation{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	info.Spec.ClusterGUID = strings.ReplaceAll(uuid.NewString(), "-", "")
	info.Spec.DatastoreReady = new(true)
	return []api.Resource{
		info,
		tier(api.DefaultTier, v3.DefaultTierOrder, v3.Deny),
		tier("kube-admin", v3.AdminNetworkPolicyTierOrder, v3.Pass),
		tier("kube-baseline", v3.BaselineAdminNetworkPolicyTierOrder, v3.Pass),
	}
}

func tier(name string, order float64, action v3.Action) api.Resource {
	return &api.Tier{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v3.TierSpec{Order: &order, DefaultAction: &action},
	}
}
