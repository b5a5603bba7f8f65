// Package host makes the kernel's network what the state says: the host side of
// workloads' links, routes and forwarding. It also watches the host's links and
// finds the node's own addresses.
package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/control/reconcile"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Network is the network namespace that the daemon runs in. Ensure and Prune
// are for one goroutine, the rest for any.
type Network struct {
	log       *slog.Logger
	options   Options
	namespace netns.NsHandle
	own       bool // the namespace is the whole process's
	hasIPv6   bool // the kernel has
	kernel    *netlink.Handle

	onLoopback *addressTable
	tunnels    *reconcile.Tracked[netip.Addr, bool]
	table      *routeTable
	routes     *reconcile.Tracked[routeKey, route]
	values     *sysctlTable
	sysctls    *reconcile.Tracked[sysctl, string]
	// hops remembers where the kernel sends packets to an address.
	hops *nextHops

	changed chan struct{}
	// lost says that routes or links are not as this Network left them; moved, that
	// other routes or links changed, so that next hops may have.
	lost, moved atomic.Bool
	// addressed are the links, by index, that have had an address of more than the
	// link's own scope: packets to elsewhere may go through them.
	addressed sync.Map

	applied   desired.Applied // what the kernel has whole
	former    desired.Host    // the workloads and flags of that
	following bool            // this round deals with what changed since, no more
	ensured   bool            // Ensure has done its part of this round

	stop    context.CancelFunc
	watcher sync.WaitGroup
}

// Options are what an operator may decide.
type Options struct {
	// IgnoreLooseRPF accepts a kernel whose reverse path filter is loose
	// (FelixConfiguration ignoreLooseRPF).
	IgnoreLooseRPF bool
	// EventBuffer is the size of each socket that the kernel's events come from,
	// bytes; 0 is 8 MiB, some ten thousand events.
	EventBuffer int
}

// New opens the network namespace of the calling thread and starts to watch it.
// It returns ErrLooseRPF where that is a reason not to run.
func New(o Options, logger *slog.Logger) (*Network, error) {
	if o.EventBuffer == 0 {
		o.EventBuffer = 8 << 20
	}
	n := &Network{log: logger, options: o, changed: make(chan struct{}, 1)}
	if err := n.open(); err != nil {
		return nil, err
	}
	if err := n.checkRPF(); err != nil {
		n.closeHandles()
		return nil, err
	}
	s, err := n.subscribe()
	if err != nil {
		n.closeHandles()
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	n.watcher.Go(func() { n.watch(ctx, s) })
	return n, nil
}

func (n *Network) open() error {
	var err error
	if n.namespace, err = netns.GetFromPath("/proc/thread-self/ns/net"); err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	if n.kernel, err = netlink.NewHandleAt(n.namespace, unix.NETLINK_ROUTE); err != nil {
		n.namespace.Close()
		return fmt.Errorf("open netlink: %w", err)
	}
	if process, err := netns.GetFromPath("/proc/self/ns/net"); err == nil {
		n.own = process.Equal(n.namespace)
		process.Close()
	}
	_, err = os.Stat("/proc/sys/net/ipv6")
	n.hasIPv6 = err == nil
	n.hops = &nextHops{kernel: n.kernel}
	n.table = &routeTable{kernel: n.kernel, ours: make(map[routeKey]route), uses: make(map[int]int), blocked: make(map[routeKey]bool)}
	n.routes = reconcile.TrackWith(n.table, reconcile.Options[route]{
		Name: "routes", Logger: n.log, Equal: func(a, b route) bool { return a == b },
	})
	n.onLoopback = &addressTable{network: n, ours: make(map[netip.Addr]bool)}
	n.tunnels = reconcile.TrackWith(n.onLoopback, reconcile.Options[bool]{
		Name: "addresses", Logger: n.log, Equal: func(a, b bool) bool { return a == b },
	})
	n.values = &sysctlTable{network: n}
	n.sysctls = reconcile.TrackWith(n.values, reconcile.Options[string]{
		Name: "sysctls", Logger: n.log, Equal: func(a, b string) bool { return a == b },
	})
	return nil
}

func (n *Network) closeHandles() error {
	n.kernel.Close()
	return n.namespace.Close()
}

// Close stops watching. What is in the kernel stays.
func (n *Network) Close() error {
	n.stop()
	n.watcher.Wait()
	return n.closeHandles()
}

// Ensure brings up workloads' links, sets sysctls, and adds and repairs routes.
// What the kernel has whole is not looked at again: only what differs from it.
func (n *Network) Ensure(_ context.Context, want *desired.State) error {
	lost, moved := n.refresh()
	n.following = !lost && n.follows(want)
	var err error
	if n.following {
		err = n.ensureChanges(want, moved)
	} else {
		err = n.ensureAll(want)
	}
	n.applied, n.ensured = desired.Applied{}, err == nil
	return err
}

// Prune removes routes of ours that are not wanted. Sysctls stay: those of a
// workload go with its link, and the host may rely on the others by now.
func (n *Network) Prune(_ context.Context, want *desired.State) error {
	var err error
	if n.following {
		err = n.pruneChanges(want)
	} else {
		err = n.pruneAll(want)
	}
	n.following = false
	if err == nil && n.ensured {
		n.applied, n.former = desired.AppliedState(want), want.Host
	}
	return err
}

func (n *Network) ensureAll(want *desired.State) error {
	links, err := n.linksByName()
	if err != nil {
		return err
	}
	var errs []error
	for name := range want.Host.Workloads {
		// One that has just vanished is no error: the event is on its way.
		if l, ok := links[name]; ok {
			errs = append(errs, n.bringUp(l))
		}
	}
	errs = append(errs, n.ensureSysctls(want, links))
	// Before the routes that name them.
	if err := n.tunnels.Ensure(n.wantAddresses(want.Host.Addresses)); err != nil {
		errs = append(errs, fmt.Errorf("addresses: %w", err))
	}
	routes, _, err := n.wantRoutes(want, links)
	errs = append(errs, err)
	if err := n.routes.Ensure(routes); err != nil {
		errs = append(errs, fmt.Errorf("routes: %w", err))
	}
	return errors.Join(errs...)
}

func (n *Network) bringUp(l netlink.Link) error {
	if l.Attrs().Flags&unix.IFF_UP != 0 {
		return nil
	}
	if err := n.kernel.LinkSetUp(l); err != nil && !isGone(err) {
		return fmt.Errorf("bring up %s: %w", l.Attrs().Name, err)
	}
	return nil
}

func (n *Network) pruneAll(want *desired.State) error {
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
	if want.Host.KeepLearned {
		n.table.each(func(k routeKey, v route) {
			if _, known := routes[k]; !known && k.learned() {
				routes[k] = v
			}
		})
	}
	if err := n.routes.Prune(routes); err != nil {
		return fmt.Errorf("routes: %w", err)
	}
	if err := n.tunnels.Prune(n.wantAddresses(want.Host.Addresses)); err != nil {
		return fmt.Errorf("addresses: %w", err)
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
func (n *Network) refresh() (lost, moved bool) {
	lost, moved = n.lost.Swap(false), n.moved.Swap(false)
	if lost {
		n.routes.Resync()
		n.tunnels.Resync()
		n.sysctls.Resync()
	}
	if lost || moved {
		n.hops.forget()
	}
	return lost, moved
}

// Detach removes every route and address of the calling thread's network namespace
// that carries our protocol number, and says which.
func Detach() ([]string, error) {
	n := &Network{log: slog.New(slog.DiscardHandler)}
	if err := n.open(); err != nil {
		return nil, err
	}
	defer n.closeHandles()
	found, err := n.table.Load()
	if err != nil {
		return nil, err
	}
	var removed []string
	var errs []error
	for k := range found {
		if err := n.table.Delete(k); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", k, err))
			continue
		}
		removed = append(removed, k.String())
	}
	addresses, err := n.onLoopback.Load()
	errs = append(errs, err)
	for a := range addresses {
		if err := n.onLoopback.Delete(a); err != nil {
			errs = append(errs, fmt.Errorf("address %s: %w", a, err))
			continue
		}
		removed = append(removed, "address "+a.String())
	}
	slices.Sort(removed)
	return removed, errors.Join(errs...)
}

// inside runs fn on a thread in the namespace: /proc/sys/net shows that of the
// thread.
func (n *Network) inside(fn func() error) error {
	if n.own {
		return fn()
	}
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
