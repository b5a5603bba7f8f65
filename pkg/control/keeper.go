package control

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/nodeapi"
)

// Keeper keeps in the datastore what this node says of itself: its addresses,
// should the host's change and IP or IP6 say "autodetect", and its tunnel addresses, should the pools.
type Keeper struct {
	startup *Startup
	tunnels *Tunnels
	logger  *slog.Logger
	due     chan struct{}

	mu        sync.Mutex
	addresses []nodeapi.Address
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
		if c.Key.Kind == api.KindIPPool || c.Key == (api.Key{Kind: api.KindNode, Name: k.tunnels.Node}) {
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
	if e := k.startup.Environment; e.IPv4.Value == "autodetect" || e.IPv6.Value == "autodetect" {
		addresses, err := k.startup.Refresh(ctx)
		if err != nil {
			return err
		}
		k.mu.Lock()
		k.addresses = addresses
		k.mu.Unlock()
	}
	return k.tunnels.Ensure(ctx)
}
