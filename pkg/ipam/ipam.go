// Package ipam hands out the addresses of IP pools in blocks, on the keys and
// JSON of Calico's IPAM under /calico/ipam/v2/, so that Calico's nodes and ours
// may share a pool.
//
// # Who has an address
//
// The block has the last word: an address is taken if and only if its block
// says so, and one compare-and-swap of one key changes that. Two more kinds of
// objects say where to look: a node's affinities name the blocks that it may
// use first, a handle counts the addresses that one user has in each block.
//
// # Order of writes
//
// Nothing is written to two keys at once, and a writer may die between any two
// writes. What is left must never lose an address:
//
//   - Claim: affinity "pending", then the block, then affinity "confirmed". An
//     affinity that is not confirmed proves nothing; its node settles it when it
//     next looks for an address.
//   - Assign: read the block, count in the handle, swap the block. A handle
//     never counts fewer addresses than the block holds.
//   - Release: read the handle, swap the block, then set the handle's count to
//     what the block held, by compare-and-swap on the handle as first read.
//
// The last two hold together even for one handle used by several writers at
// once. An assignment that a release did not see either counted in the handle
// after the release read it, and then the release's write to the handle fails;
// or it read the block before the release swapped it, and then its own write to
// the block fails. For that, a release writes the block even when it has only a
// wrong count to repair.
package ipam

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"
)

// Store is what IPAM needs of the datastore: compare-and-swap of one object at
// a time. *datastore.Client is one.
type Store interface {
	Get(ctx context.Context, key api.Key) (api.Resource, error)
	List(ctx context.Context, kind, namespace string) ([]api.Resource, error)
	ListAffinities(ctx context.Context, node string) ([]*api.BlockAffinity, error)
	Create(ctx context.Context, r api.Resource) (api.Resource, error)
	Update(ctx context.Context, r api.Resource) (api.Resource, error)
	Delete(ctx context.Context, key api.Key, resourceVersion string) (api.Resource, error)

	// ListTogether reads several kinds as of one revision; UpdateIf and DeleteIf
	// write only if the guards hold at that moment.
	ListTogether(ctx context.Context, kinds ...string) (datastore.Together, error)
	UpdateIf(ctx context.Context, r api.Resource, guards ...datastore.Guard) (api.Resource, error)
	DeleteIf(ctx context.Context, key api.Key, resourceVersion string, guards ...datastore.Guard) (api.Resource, error)
}

// Faults that callers tell apart.
var (
	// ErrExhausted: no address is left where the request may look.
	ErrExhausted = errors.New("no free address")
	// ErrNoPool: no pool may serve the request.
	ErrNoPool = errors.New("no usable IP pool")
	// ErrTaken: the address that was asked for is in use.
	ErrTaken = errors.New("address already in use")
	// ErrNotAssigned: the address is free.
	ErrNotAssigned = errors.New("address not assigned")
	// ErrNotOwner: the address is another handle's, or was assigned anew since.
	ErrNotOwner = errors.New("address belongs to another assignment")
)

// Uses of a pool, as in IPPool.spec.allowedUses.
const (
	UseWorkload = "Workload"
	UseTunnel   = "Tunnel"
)

// Attributes that Calico's tools know.
const (
	AttributeNode      = "node"
	AttributeNamespace = "namespace"
	AttributePod       = "pod"
	AttributeType      = "type"
	// AttributeInterface is the interface in the container, of addresses that our
	// CNI plugin assigned: a container's interfaces share a handle.
	AttributeInterface = "interface"
)

// TypeElsewhere is the type of addresses that our IPAM plugin assigned for
// another CNI plugin. No resource says whether they are in use; that one's DEL
// gives them back.
const TypeElsewhere = "cniPlugin"

// Allocator assigns and releases addresses. It keeps nothing in memory between
// calls.
type Allocator struct {
	store Store
	now   func() time.Time
}

// New returns an allocator over the store.
func New(store Store) *Allocator {
	return &Allocator{store: store, now: time.Now}
}

// maxAttempts bounds how often a lost compare-and-swap is tried again. Each loss
// means that someone else got through.
const maxAttempts = 200

// retry calls f until it neither returns datastore.ErrConflict nor
// datastore.ErrExists nor datastore.ErrNotFound, the ways in which a
// compare-and-swap is lost.
func retry(ctx context.Context, f func() error) error {
	var err error
	for attempt := range maxAttempts {
		if attempt > 0 {
			// Those who lost together should not meet again.
			pause := time.Duration(rand.Int64N(int64(min(attempt, 20)) * int64(time.Millisecond)))
			select {
			case <-ctx.Done():
				return errors.Join(ctx.Err(), err)
			case <-time.After(pause):
			}
		}
		if err = f(); !lost(err) {
			return err
		}
	}
	return fmt.Errorf("gave up after %d attempts: %w", maxAttempts, err)
}

// lost tells whether err says that another writer was faster.
func lost(err error) bool {
	return errors.Is(err, datastore.ErrConflict) || errors.Is(err, datastore.ErrExists) || errors.Is(err, datastore.ErrNotFound)
}

// get reads an object; absence is nil.
func get[R api.Resource](ctx context.Context, s Store, kind, name string) (R, error) {
	var none R
	r, err := s.Get(ctx, api.Key{Kind: kind, Name: name})
	if errors.Is(err, datastore.ErrNotFound) {
		return none, nil
	}
	if err != nil {
		return none, err
	}
	t, ok := r.(R)
	if !ok {
		return none, fmt.Errorf("%s is a %T", api.KeyOf(r), r)
	}
	return t, nil
}

// list reads all objects of a kind.
func list[R api.Resource](ctx context.Context, s Store, kind string) ([]R, error) {
	rs, err := s.List(ctx, kind, "")
	if err != nil {
		return nil, err
	}
	out := make([]R, 0, len(rs))
	for _, r := range rs {
		if t, ok := r.(R); ok {
			out = append(out, t)
		}
	}
	return out, nil
}

func (a *Allocator) block(ctx context.Context, cidr netip.Prefix) (*api.IPAMBlock, error) {
	return get[*api.IPAMBlock](ctx, a.store, api.KindIPAMBlock, api.BlockName(cidr))
}

func (a *Allocator) handle(ctx context.Context, id string) (*api.IPAMHandle, error) {
	return get[*api.IPAMHandle](ctx, a.store, api.KindIPAMHandle, id)
}

// Config returns the configuration of IPAM, the default one if there is none.
func (a *Allocator) Config(ctx context.Context) (*api.IPAMConfig, error) {
	c, err := get[*api.IPAMConfig](ctx, a.store, api.KindIPAMConfig, "default")
	if c == nil && err == nil {
		c = api.NewIPAMConfig()
	}
	return c, err
}

// SetConfig writes the configuration of IPAM.
func (a *Allocator) SetConfig(ctx context.Context, c *api.IPAMConfig) error {
	c.SetName("default")
	if c.GetResourceVersion() == "" {
		_, err := a.store.Create(ctx, c)
		return err
	}
	_, err := a.store.Update(ctx, c)
	return err
}
