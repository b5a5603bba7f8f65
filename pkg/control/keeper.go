package control

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/nodeapi"
)

// Keeper keeps in the datastore what this node says of itself: the Node resource,
// should somebody delete it while the node runs, its addresses, should the host's
// change and IP or IP6 say "autodetect", and its tunnel addresses, should the pools.
type Keeper struct {
	startup *Startup
	tunnels *Tunnels
	logger  *slog.Logger
	due     chan struct{}

	mu        sync.Mutex
	addresses []nodeapi.Address
	gone      bool // the Node resource was deleted
}

// keepEvery is how often the host's addresses are looked at, Calico's interval.
const keepEvery = time.Minute

// NewKeeper returns a keeper that does nothing until it runs. The addresses are
// those that start-up found.
func NewKeeper(s *Startup, t *Tunnels, addresses []nodeapi.Address, logger *slog.Logger) *Keeper {
	return &Keeper{startup: s, tunnels: t, addresses: addresses, logger: logger, due: make(chan struct{}, 1)}
}

// Addresses returns the node's addresses as last found.
func (k *Keeper) Addresses() []nodeapi.Address {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.addresses
}

// Observe is told of the resources that changed.
func (k *Keeper) Observe(changes []api.Change) {
	for _, c := range changes {
		ours := c.Key == api.Key{Kind: api.KindNode, Name: k.tunnels.Node}
		if ours && c.Resource == nil {
			k.mu.Lock()
			k.gone = true
			k.mu.Unlock()
		}
		if ours || c.Key.Kind == api.KindIPPool {
			select {
			case k.due <- struct{}{}:
			default:
			}
			return
		}
	}
}

// Run keeps at it until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	said := ""
	for {
		err := k.keep(ctx)
		if ctx.Err() != nil {
			return
		}
		switch {
		case err == nil:
			said = ""
		case err.Error() != said:
			said = err.Error()
			k.logger.Warn("the node resource cannot be kept up to date; will try again", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-k.due:
		case <-tick.C:
		}
	}
}

func (k *Keeper) keep(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, keepEvery)
	defer cancel()
	k.mu.Lock()
	gone := k.gone
	k.mu.Unlock()
	e := k.startup.Environment
	if gone || e.IPv4.Value == "autodetect" || e.IPv6.Value == "autodetect" {
		addresses, err := k.startup.Refresh(ctx, gone)
		if err != nil {
			return err
		}
		if gone {
			k.logger.Warn("the node resource was deleted while this node runs; written anew", "node", e.Node)
		}
		k.mu.Lock()
		k.addresses, k.gone = addresses, false
		k.mu.Unlock()
	}
	return k.tunnels.Ensure(ctx)
}
