package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"calico-xdp/pkg/control/desired"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Changed tells, by one signal for any number of changes, that links, addresses
// or routes are not what they were.
func (n *Network) Changed() <-chan struct{} { return n.changed }

func (n *Network) signal() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// Links returns the host's interfaces with their usable addresses, by index.
func (n *Network) Links() ([]desired.Link, error) {
	list, err := dump(n.kernel.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	addresses, err := dump(func() ([]netlink.Addr, error) { return n.kernel.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	byLink := make(map[int][]netip.Prefix)
	for _, a := range addresses {
		// Duplicate address detection has not let it through, or not yet.
		if a.Flags&(unix.IFA_F_DADFAILED|unix.IFA_F_TENTATIVE) != 0 && a.Flags&unix.IFA_F_OPTIMISTIC == 0 {
			continue
		}
		if isFar(a.IP) {
			n.addressed.Store(a.LinkIndex, true)
		}
		ones, _ := a.Mask.Size()
		byLink[a.LinkIndex] = append(byLink[a.LinkIndex], netip.PrefixFrom(address(a.IP), ones))
	}
	byIndex := make(map[int]netlink.Link, len(list))
	for _, l := range list {
		byIndex[l.Attrs().Index] = l
	}
	out := make([]desired.Link, 0, len(list))
	for _, l := range list {
		attrs := l.Attrs()
		link := desired.Link{
			Name: attrs.Name, Index: attrs.Index, Kind: l.Type(), MTU: attrs.MTU,
			Up: attrs.Flags&unix.IFF_UP != 0, Addresses: byLink[attrs.Index],
			NoEthernet: attrs.EncapType != "ether" && attrs.EncapType != "loopback",
		}
		// A VRF's part has the packets to itself.
		if master := byIndex[attrs.MasterIndex]; master != nil && master.Type() != "vrf" {
			link.Port = true
		}
		if len(attrs.HardwareAddr) == len(link.MAC) {
			link.MAC = desired.MAC(attrs.HardwareAddr)
		}
		out = append(out, link)
	}
	slices.SortFunc(out, func(a, b desired.Link) int { return cmp.Compare(a.Index, b.Index) })
	return out, nil
}

// isFar says whether an address is for more than its link: only such ones have a
// part in the way to other hosts.
func isFar(ip net.IP) bool { return !ip.IsLinkLocalUnicast() }

// dump repeats a listing that changes have interrupted.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	found, err := list()
	for try := 0; try < 10 && errors.Is(err, netlink.ErrDumpInterrupted); try++ {
		found, err = list()
	}
	return found, err
}

// subscription is the three streams of events that matter.
type subscription struct {
	links     chan netlink.LinkUpdate
	addresses chan netlink.AddrUpdate
	routes    chan netlink.RouteUpdate
	failed    chan error
	done      chan struct{}
}

func (n *Network) subscribe() (*subscription, error) {
	s := &subscription{
		links: make(chan netlink.LinkUpdate, 64), addresses: make(chan netlink.AddrUpdate, 64),
		routes: make(chan netlink.RouteUpdate, 64),
		failed: make(chan error, 1), done: make(chan struct{}),
	}
	fail := func(err error) {
		select {
		case s.failed <- err:
		default:
		}
	}
	// Not forced, the kernel would silently take rmem_max instead.
	force := true
	err := netlink.LinkSubscribeWithOptions(s.links, s.done, netlink.LinkSubscribeOptions{
		Namespace: &n.namespace, ErrorCallback: fail, ReceiveBufferSize: n.options.EventBuffer, ReceiveBufferForceSize: force,
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to links: %w", err)
	}
	err = netlink.AddrSubscribeWithOptions(s.addresses, s.done, netlink.AddrSubscribeOptions{
		Namespace: &n.namespace, ErrorCallback: fail, ReceiveBufferSize: n.options.EventBuffer, ReceiveBufferForceSize: force,
	})
	if err != nil {
		close(s.done)
		return nil, fmt.Errorf("subscribe to addresses: %w", err)
	}
	err = netlink.RouteSubscribeWithOptions(s.routes, s.done, netlink.RouteSubscribeOptions{
		Namespace: &n.namespace, ErrorCallback: fail, ReceiveBufferSize: n.options.EventBuffer, ReceiveBufferForceSize: force,
	})
	if err != nil {
		close(s.done)
		return nil, fmt.Errorf("subscribe to routes: %w", err)
	}
	return s, nil
}

// close ends the streams and waits until nobody writes to them any more.
func (s *subscription) close() {
	close(s.done)
	for range s.links {
	}
	for range s.addresses {
	}
	for range s.routes {
	}
}

// watch turns events into signals. When events were lost, for want of buffer
// space, everything counts as changed.
func (n *Network) watch(ctx context.Context, s *subscription) {
	for {
		err := n.follow(ctx, s)
		s.close()
		for {
			if ctx.Err() != nil {
				return
			}
			n.log.Warn("lost events of the kernel; subscribing again", "error", err)
			if s, err = n.subscribe(); err == nil {
				break
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
		// Only now: what changes from here on is an event.
		n.lost.Store(true)
		n.signal()
	}
}

// follow returns when the events end.
func (n *Network) follow(ctx context.Context, s *subscription) error {
	up := make(map[int32]bool)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-s.failed:
			return err
		case u, ok := <-s.links:
			if !ok {
				return n.failure(s)
			}
			// When a link goes down the kernel drops its IPv4 routes without an event.
			now := u.Flags&unix.IFF_UP != 0 && u.Header.Type == unix.RTM_NEWLINK
			before, known := up[u.Index]
			if (known && before != now || !known && !now) && n.table.goThrough(int(u.Index)) {
				n.lost.Store(true)
			}
			if _, addressed := n.addressed.Load(int(u.Index)); addressed || n.hops.goThrough(int(u.Index)) {
				n.moved.Store(true)
			}
			if u.Header.Type == unix.RTM_DELLINK {
				delete(up, u.Index)
			} else {
				up[u.Index] = now
			}
			n.signal()
		case u, ok := <-s.addresses:
			if !ok {
				return n.failure(s)
			}
			// Routes that name it as their source go with it, without an event.
			if !u.NewAddr && u.LinkIndex == loopback && n.onLoopback.has(address(u.LinkAddress.IP)) {
				n.lost.Store(true)
			}
			if isFar(u.LinkAddress.IP) {
				n.addressed.Store(u.LinkIndex, true)
				n.moved.Store(true)
			}
			n.signal()
		case u, ok := <-s.routes:
			if !ok {
				return n.failure(s)
			}
			switch {
			case u.Table != unix.RT_TABLE_MAIN || u.Flags&unix.RTM_F_CLONED != 0:
			case u.Protocol != Protocol:
				k, _ := routeOf(&u.Route)
				replaced, freed := n.table.touches(k)
				moved := n.hops.concerns(k.prefix)
				if replaced {
					n.lost.Store(true)
				}
				if moved {
					n.moved.Store(true)
				}
				if replaced || freed || moved {
					n.signal()
				}
			case !n.table.expects(u):
				n.lost.Store(true)
				n.signal()
			}
		}
	}
}

// failure is the reason why a stream has ended.
func (n *Network) failure(s *subscription) error {
	select {
	case err := <-s.failed:
		return err
	default:
		return errors.New("netlink socket closed")
	}
}
