package dataplane

import (
	"calico-xdp/pkg/control/desired"
	kernel "calico-xdp/pkg/maps"
)

// changes says what a round need not look at, since it is as in the state that is in
// the kernel whole. Policy goes by changes of its own.
type changes struct {
	applied desired.Applied // the state that is in the kernel whole
	ensured bool            // Ensure has done its part of the round
	// See desired.Changes.
	sameLocal, samePeers bool
	fewRoutes            bool // the routes that differ are listed
}

func (c *changes) begin(want *desired.State) {
	follows := c.applied.Precedes(want)
	*c = changes{sameLocal: follows && !want.Changes.Local, samePeers: follows && !want.Changes.Peers, fewRoutes: follows}
}

func (c *changes) end(want *desired.State, err error) {
	var applied desired.Applied
	if err == nil && c.ensured {
		applied = desired.AppliedState(want)
	}
	*c = changes{applied: applied}
}

func (d *Dataplane) ensureRoutes(want *desired.State) error {
	if !d.changes.fewRoutes || !d.routes.Certain() {
		return d.routes.Ensure(routesOf(&want.Dataplane))
	}
	keys, find := changedRoutes(want)
	return d.routes.EnsureKeys(keys, find)
}

func (d *Dataplane) pruneRoutes(want *desired.State) error {
	if !d.changes.fewRoutes || !d.routes.Certain() {
		return d.routes.Prune(routesOf(&want.Dataplane))
	}
	keys, find := changedRoutes(want)
	return d.routes.PruneKeys(keys, find)
}

// changedRoutes are the keys of the routes that differ, and how to find what they are
// now.
func changedRoutes(want *desired.State) (keys []kernel.Prefix, find func(kernel.Prefix) (kernel.Route, bool)) {
	there := make(map[kernel.Prefix]kernel.Route)
	for _, p := range want.Changes.Routes {
		k := kernel.NewPrefix(p)
		keys = append(keys, k)
		if r, ok := want.Dataplane.Routes[p]; ok {
			there[k] = routeOf(r)
		}
	}
	return keys, func(k kernel.Prefix) (kernel.Route, bool) {
		r, ok := there[k]
		return r, ok
	}
}
