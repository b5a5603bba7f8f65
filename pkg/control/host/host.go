// Package host makes the kernel's network what the state says: the host side of
// workloads' links, routes and forwarding. It also watches the host's links and
// finds the node's own addresses.
package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"

	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/control/reconcile"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Network is the network namespace that the daemon runs in. Ensure, Prune,
// Resync and Detach are for one goroutine, the rest for any.
type Network struct {
	log       *slog.Logger
	namespace netns.NsHandle
	kernel    *netlink.Handle

	table   *routeTable
	routes  *reconcile.Tracked[routeKey, route]
	values  *sysctlTable
	sysctls *reconcile.Tracked[sysctl, string]
	// hops remembers where the kernel sends packets to an address.
	hops *nextHops

	changed chan struct{}
	// lost says that routes or links are not as this Network left them; moved, that
	// other routes or links changed, so that next hops may have.
	lost, moved atomic.Bool

	stop    context.CancelFunc
	watcher sync.WaitGroup
	// receiveBuffer is the size of the socket that events come from, bytes.
	receiveBuffer int
}

// New opens the network namespace of the calling thread and starts to watch it.
func New(logger *slog.Logger) (*Network, error) { return newNetwork(logger, 8<<20) }

func newNetwork(logger *slog.Logger, receiveBuffer int) (*Network, error) {
	n := &Network{log: logger, changed: make(chan struct{}, 1), receiveBuffer: receiveBuffer}
	var err error
	if n.namespace, err = netns.GetFromPath("/proc/thread-self/ns/net"); err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	if n.kernel, err = netlink.NewHandleAt(n.namespace, unix.NETLINK_ROUTE); err != nil {
		n.namespace.Close()
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	n.hops = &nextHops{kernel: n.kernel}
	n.table = &routeTable{kernel: n.kernel, ours: make(map[routeKey]route)}
	n.routes = reconcile.TrackWith(n.table, reconcile.Options[route]{
		Name: "routes", Logger: logger, Equal: func(a, b route) bool { return a == b },
	})
	n.values = &sysctlTable{network: n}
	n.sysctls = reconcile.TrackWith(n.values, reconcile.Options[string]{
		Name: "sysctls", Logger: logger, Equal: func(a, b string) bool { return a == b },
	})
	s, err := n.subscribe()
	if err != nil {
		n.kernel.Close()
		n.namespace.Close()
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	n.watcher.Go(func() { n.watch(ctx, s) })
	return n, nil
}

// Close stops watching. What is in the kernel stays.
func (n *Network) Close() error {
	n.stop()
	n.watcher.Wait()
	n.kernel.Close()
	return n.namespace.Close()
}

// Ensure brings up workloads' links, sets sysctls, and adds and repairs routes.
func (n *Network) Ensure(_ context.Context, want *desired.State) error {
	n.refresh()
	links, err := n.linksByName()
	if err != nil {
		return err
	}
	var errs []error
	for name := range want.Host.Workloads {
		// One that has just vanished is no error: the event is on its way.
		l, ok := links[name]
		if !ok || l.Attrs().Flags&unix.IFF_UP != 0 {
			continue
		}
		if err := n.kernel.LinkSetUp(l); err != nil && !isGone(err) {
			errs = append(errs, fmt.Errorf("bring up %s: %w", name, err))
		}
	}
	errs = append(errs, n.ensureSysctls(want, links))
	routes, _, err := n.wantRoutes(want, links)
	errs = append(errs, err)
	if err := n.routes.Ensure(routes); err != nil {
		errs = append(errs, fmt.Errorf("routes: %w", err))
	}
	return errors.Join(errs...)
}

// Prune removes routes of ours that are not wanted. Sysctls stay: those of a
// workload go with its link, and the host may rely on the others by now.
func (n *Network) Prune(_ context.Context, want *desired.State) error {
	links, err := n.linksByName()
	if err != nil {
		return err
	}
	// Ensure has reported what cannot be resolved.
	routes, unresolved, _ := n.wantRoutes(want, links)
	for _, k := range unresolved {
		if have, ok := n.table.get(k); ok {
			routes[k] = have // better than none
		}
	}
	if err := n.routes.Prune(routes); err != nil {
		return fmt.Errorf("routes: %w", err)
	}
	return n.sysctls.Prune(n.wantSysctls(want, links))
}

func (n *Network) linksByName() (map[string]netlink.Link, error) {
	list, err := dump(n.kernel.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	links := make(map[string]netlink.Link, len(list))
	for _, l := range list {
		links[l.Attrs().Name] = l
	}
	return links, nil
}

// Resync makes the next Ensure read the kernel's state again.
func (n *Network) Resync() { n.lost.Store(true) }

// refresh forgets what events have made doubtful.
func (n *Network) refresh() {
	lost, moved := n.lost.Swap(false), n.moved.Swap(false)
	if lost {
		n.routes.Resync()
		n.sysctls.Resync()
	}
	if lost || moved {
		n.hops.forget()
	}
}

// Detach removes every route that carries our protocol number.
func (n *Network) Detach() error {
	n.routes.Resync()
	if err := n.routes.Prune(nil); err != nil {
		return fmt.Errorf("routes: %w", err)
	}
	return nil
}

// Drift says by table what others did to what is ours.
func (n *Network) Drift() map[string]reconcile.Drift {
	return map[string]reconcile.Drift{"routes": n.routes.Drift(), "sysctls": n.sysctls.Drift()}
}

// inside runs fn on a thread in the namespace, which for the daemon is its own;
// /proc/sys/net shows that of the thread.
func (n *Network) inside(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		old, err := netns.GetFromPath("/proc/thread-self/ns/net")
		if err != nil {
			result <- fmt.Errorf("open network namespace: %w", err)
			return
		}
		defer old.Close()
		if err := unix.Setns(int(n.namespace), unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		err = fn()
		// A thread that cannot go back dies with this goroutine.
		if unix.Setns(int(old), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

// isGone says that an error is about a link that has vanished meanwhile.
func isGone(err error) bool { return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) }
