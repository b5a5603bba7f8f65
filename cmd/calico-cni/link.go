package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The workload sees a point-to-point link: its only neighbour is the host's
// side, whose MAC is the same on every host, so that a moved workload's
// neighbour entries stay true.
var (
	hostMAC     = net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}
	gateway4    = netip.MustParseAddr("169.254.1.1")
	gateway6    = netip.MustParseAddr("fe80::ecee:eeff:feee:eeee") // the link-local address of hostMAC
	anyNetwork4 = netip.MustParsePrefix("0.0.0.0/0")
	anyNetwork6 = netip.MustParsePrefix("::/0")
)

// gateway returns the workload's next hop of an address's family, and the
// network that it reaches over it.
func gateway(a netip.Addr) (netip.Addr, netip.Prefix) {
	if a.Is4() {
		return gateway4, anyNetwork4
	}
	return gateway6, anyNetwork6
}

// families returns one of the addresses of each family.
func families(addrs []netip.Addr) []netip.Addr {
	var out []netip.Addr
	seen := make(map[bool]bool)
	for _, a := range addrs {
		if !seen[a.Is4()] {
			seen[a.Is4()] = true
			out = append(out, a)
		}
	}
	return out
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func single(a netip.Addr) *net.IPNet { return ipNet(netip.PrefixFrom(a, a.BitLen())) }

// sandbox is the container's network namespace.
type sandbox struct {
	netns.NsHandle
	*netlink.Handle
}

// openSandbox opens a namespace. The error wraps os.ErrNotExist if there is
// none (any more).
func openSandbox(path string) (*sandbox, error) {
	h, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("namespace %s: %w", path, err)
	}
	nl, err := netlink.NewHandleAt(h, unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		if errors.Is(err, unix.EINVAL) {
			// What is left of the path after the namespace was unmounted.
			return nil, fmt.Errorf("%s is no namespace: %w", path, os.ErrNotExist)
		}
		return nil, fmt.Errorf("namespace %s: %w", path, err)
	}
	return &sandbox{h, nl}, nil
}

func (s *sandbox) close() {
	s.Handle.Close()
	s.NsHandle.Close()
}

// do runs fn on a thread inside the namespace. The thread ends with it.
func (s *sandbox) do(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		if err := unix.Setns(int(s.NsHandle), unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("enter namespace: %w", err)
			return
		}
		result <- fn()
	}()
	return <-result
}

// setIPv6 sets parameters of an interface in the current namespace. A kernel
// without IPv6 has none.
func setIPv6(ifname string, values map[string]string) error {
	for name, value := range values {
		path := "/proc/sys/net/ipv6/conf/" + ifname + "/" + name
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// vacant checks that the container exists and has no interface of that name but
// one that an earlier ADD of ours left.
func (a *attachment) vacant() error {
	inside, err := openSandbox(a.netns)
	if err != nil {
		return fail(types.ErrInvalidNetNS, "%v", err)
	}
	defer inside.close()
	link, err := inside.LinkByName(a.ifname)
	if err != nil {
		return nil
	}
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer host.Close()
	peer, err := host.LinkByIndex(link.Attrs().ParentIndex)
	if err != nil || link.Type() != "veth" || peer.Attrs().Alias != a.mark {
		return fail(types.ErrInvalidEnvironmentVariables, "CNI_IFNAME: the container already has an interface %s", a.ifname)
	}
	return nil
}

// plug makes the veth pair and sets both sides up. It returns the MAC of the
// container's side. What an earlier ADD left of the same interface is removed.
func (a *attachment) plug(mac net.HardwareAddr, mtu int, addrs []netip.Addr) (net.HardwareAddr, error) {
	inside, err := openSandbox(a.netns)
	if err != nil {
		return nil, fail(types.ErrInvalidNetNS, "%v", err)
	}
	defer inside.close()
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer host.Close()

	// The name is a hash of what the interface is for: whoever has it is an
	// earlier one for the same.
	if old, err := host.LinkByName(a.hostName); err == nil {
		if err := deleteLink(host, old); err != nil {
			return nil, err
		}
	}
	if old, err := inside.LinkByName(a.ifname); err == nil { // ours, see vacant
		if err := deleteLink(inside.Handle, old); err != nil {
			return nil, err
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = a.hostName, mtu, hostMAC
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerNamespace = a.ifname, netlink.NsFd(inside.NsHandle)
	pair.PeerMTU, pair.PeerHardwareAddr = uint32(mtu), mac
	if err := host.LinkAdd(pair); err != nil {
		return nil, fmt.Errorf("make veth %s: %w", a.hostName, err)
	}
	if err := host.LinkSetAlias(pair, a.mark); err != nil {
		return nil, fmt.Errorf("mark %s: %w", a.hostName, err)
	}

	v6 := false
	for _, addr := range addrs {
		v6 = v6 || addr.Is6()
	}
	// Nobody else can have the addresses of this link: duplicate detection would
	// only delay the first packet.
	ipv6 := map[string]string{"accept_dad": "0", "accept_ra": "0"}
	hostIPv6 := map[string]string{"accept_dad": "0", "accept_ra": "0", "addr_gen_mode": "0"}
	if v6 {
		ipv6["disable_ipv6"], hostIPv6["disable_ipv6"] = "0", "0"
	}
	if err := setIPv6(a.hostName, hostIPv6); err != nil {
		return nil, err
	}
	if err := inside.do(func() error { return setIPv6(a.ifname, ipv6) }); err != nil {
		return nil, err
	}
	link, err := inside.LinkByName(a.ifname)
	if err != nil {
		return nil, fmt.Errorf("container's interface %s: %w", a.ifname, err)
	}
	if err := host.LinkSetUp(pair); err != nil {
		return nil, fmt.Errorf("set %s up: %w", a.hostName, err)
	}
	if err := inside.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("set %s up: %w", a.ifname, err)
	}
	return link.Attrs().HardwareAddr, configure(inside.Handle, link, addrs)
}

// configure gives the container's interface its addresses, routes and its one
// neighbour per family.
func configure(nl *netlink.Handle, link netlink.Link, addrs []netip.Addr) error {
	index := link.Attrs().Index
	for _, addr := range addrs {
		na := &netlink.Addr{IPNet: single(addr)}
		if addr.Is6() {
			na.Flags = unix.IFA_F_NODAD
		}
		if err := nl.AddrAdd(link, na); err != nil {
			return fmt.Errorf("address %s: %w", addr, err)
		}
	}
	for _, addr := range families(addrs) {
		hop, network := gateway(addr)
		err := nl.NeighSet(&netlink.Neigh{
			LinkIndex: index, IP: hop.AsSlice(), HardwareAddr: hostMAC, State: netlink.NUD_PERMANENT,
		})
		if err != nil {
			return fmt.Errorf("neighbour %s: %w", hop, err)
		}
		if addr.Is4() {
			// IPv6 reaches a link-local next hop without a route of its own.
			err := nl.RouteAdd(&netlink.Route{LinkIndex: index, Dst: single(hop), Scope: netlink.SCOPE_LINK})
			if errors.Is(err, unix.EEXIST) {
				continue // another interface of the container has the default route
			}
			if err != nil {
				return fmt.Errorf("route %s: %w", hop, err)
			}
		}
		err = nl.RouteAdd(&netlink.Route{LinkIndex: index, Dst: ipNet(network), Gw: hop.AsSlice()})
		// A container with several interfaces keeps the default route it has.
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("default route via %s: %w", hop, err)
		}
	}
	return nil
}

// unplug removes the interface, whichever of its two sides is still there.
func (a *attachment) unplug() error {
	if a.netns != "" {
		inside, err := openSandbox(a.netns)
		switch {
		case err == nil:
			defer inside.close()
			if link, err := inside.LinkByName(a.ifname); err == nil {
				if err := deleteLink(inside.Handle, link); err != nil {
					return err
				}
			}
		case !errors.Is(err, os.ErrNotExist):
			return err
		}
	}
	return removeMarked(func(network, containerID, ifname string) bool {
		return mark(network, containerID, ifname) == a.mark
	})
}

// removeMarked removes the host interfaces of ours for which remove is true. An
// ADD that died before it marked its interface leaves one without mark; the next
// ADD of the same name removes it, or the end of the container's namespace.
func removeMarked(remove func(network, containerID, ifname string) bool) error {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer host.Close()
	links, err := host.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list interfaces: %w", err)
	}
	var errs []error
	for _, link := range links {
		network, containerID, ifname, ok := parseMark(link.Attrs().Alias)
		if ok && link.Type() == "veth" && remove(network, containerID, ifname) {
			errs = append(errs, deleteLink(host, link))
		}
	}
	return errors.Join(errs...)
}

// deleteLink removes an interface; one that is gone is no error.
func deleteLink(nl *netlink.Handle, link netlink.Link) error {
	err := nl.LinkDel(link)
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove interface %s: %w", link.Attrs().Name, err)
	}
	return nil
}
