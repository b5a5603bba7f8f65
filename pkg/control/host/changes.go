package host

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"calico-xdp/pkg/control/desired"

	"github.com/vishvananda/netlink"
)

// follows says whether the state's changes are all there is to do.
func (n *Network) follows(want *desired.State) bool {
	h := &want.Host
	return n.applied.Precedes(want) && n.routes.Certain() && n.sysctls.Certain() && n.tunnels.Certain() &&
		slices.Equal(h.Addresses, n.former.Addresses) && slices.Equal(h.Uplinks, n.former.Uplinks) &&
		h.ForwardIPv4 == n.former.ForwardIPv4 && h.ForwardIPv6 == n.former.ForwardIPv6 && h.KeepLearned == n.former.KeepLearned
}

// ensureChanges does what Ensure does, for what has changed. moved says that next
// hops may have, too.
func (n *Network) ensureChanges(want *desired.State, moved bool) error {
	var errs []error
	if want.Changes.Local {
		errs = append(errs, n.ensureWorkloads(want))
	}
	prefixes := want.Changes.KernelRoutes
	if moved {
		prefixes = slices.Collect(maps.Keys(want.Host.Routes))
	}
	keys := make([]routeKey, 0, len(prefixes))
	routes := make(map[routeKey]route, len(prefixes))
	index := func(name string) (int, bool) {
		w, ok := want.Host.Workloads[name]
		return w.Ifindex, ok && n.exists(w.Ifindex)
	}
	if moved { // links are there, or their events are on their way
		index = func(name string) (int, bool) {
			w, ok := want.Host.Workloads[name]
			return w.Ifindex, ok
		}
	}
	for _, p := range prefixes {
		r, ok := want.Host.Routes[p]
		if !ok {
			continue
		}
		k, v, err := n.wantRoute(p, r, index)
		switch {
		case errors.Is(err, errNowhere):
		case err != nil:
			errs = append(errs, err)
		case v.kind != 0:
			keys, routes[k] = append(keys, k), v
		}
	}
	err := n.routes.EnsureKeys(keys, func(k routeKey) (route, bool) {
		v, ok := routes[k]
		return v, ok
	})
	if err != nil {
		errs = append(errs, fmt.Errorf("routes: %w", err))
	}
	return errors.Join(errs...)
}

// exists says whether there is a link with that index. A route to one that is not
// there would be refused.
func (n *Network) exists(index int) bool {
	_, err := n.kernel.LinkByIndex(index)
	return !errors.As(err, new(netlink.LinkNotFoundError))
}

// ensureWorkloads brings up and sets the links of workloads that are new.
func (n *Network) ensureWorkloads(want *desired.State) error {
	var errs []error
	links := make(map[string]netlink.Link)
	for name, w := range want.Host.Workloads {
		if n.former.Workloads[name] == w {
			continue
		}
		l, err := n.kernel.LinkByName(name)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			continue // it has just vanished: the event is on its way
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("link %s: %w", name, err))
			continue
		}
		errs = append(errs, n.bringUp(l))
		links[name] = l
	}
	values := make(map[sysctl]string)
	n.addWorkloadSysctls(values, want, links)
	maps.Copy(n.values.wanted, values)
	err := n.sysctls.EnsureKeys(slices.Collect(maps.Keys(values)), func(s sysctl) (string, bool) { return values[s], true })
	if err != nil {
		errs = append(errs, fmt.Errorf("sysctls: %w", err))
	}
	return errors.Join(errs...)
}

// pruneChanges does what Prune does, for what has changed.
func (n *Network) pruneChanges(want *desired.State) error {
	wanted := make(map[routeKey]bool)
	var keys []routeKey
	for _, p := range want.Changes.KernelRoutes {
		if keys = append(keys, keyOf(p.Masked())); !want.Host.KeepLearned {
			keys = append(keys, learnedKey(p.Masked()))
		}
		if r, ok := want.Host.Routes[p]; ok {
			wanted[wantKey(p, r)] = true
		}
	}
	err := n.routes.PruneKeys(keys, func(k routeKey) (route, bool) { return route{}, wanted[k] })
	if err != nil {
		err = fmt.Errorf("routes: %w", err)
	}
	if !want.Changes.Local {
		return err
	}
	gone := make(map[int]bool) // links
	for name, w := range n.former.Workloads {
		if want.Host.Workloads[name] != w {
			gone[w.Ifindex] = true
		}
	}
	if len(gone) == 0 {
		return err
	}
	var stale []sysctl
	for s := range n.values.wanted {
		if gone[s.link] {
			stale = append(stale, s)
			delete(n.values.wanted, s)
		}
	}
	return errors.Join(err, n.sysctls.PruneKeys(stale, func(sysctl) (string, bool) { return "", false }))
}
