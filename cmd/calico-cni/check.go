package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	cniversion "github.com/containernetworking/cni/pkg/version"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// check compares everything that ADD made with what is there, and names all
// that is not as it was.
func check(cmd *skel.CmdArgs) error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	s, a, err := begin(ctx, cmd)
	if err != nil {
		return err
	}
	defer s.close()
	prev, err := previous(s.conf)
	if err != nil {
		return err
	}
	inside, err := openSandbox(a.netns)
	if err != nil {
		return fail(types.ErrInvalidNetNS, "%v", err)
	}
	defer inside.close()
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer host.Close()

	// ADD may have been by Calico's own plugin, which has another name for it.
	a.hostName = hostInterface(prev, a.hostName)
	d := &drift{}
	addrs := addressesOf(prev, a)
	d.checkHost(host, a)
	mac := d.checkInside(inside.Handle, a, prev, addrs)
	if err := d.checkEndpoint(ctx, s, a, mac, addrs); err != nil {
		return err
	}
	if s.conf.delegated() {
		if err := invoke.DelegateCheck(ctx, s.conf.IPAM.Type, cmd.StdinData, nil); err != nil {
			return err
		}
	} else if err := d.checkAddresses(ctx, s, a, addrs); err != nil {
		return err
	}
	return d.err()
}

// previous returns what ADD returned, which the runtime must hand to CHECK.
func previous(conf *netConf) (*types100.Result, error) {
	if conf.RawPrevResult == nil {
		return nil, fail(types.ErrInvalidNetworkConfig, "CHECK needs prevResult")
	}
	if err := cniversion.ParsePrevResult(&conf.NetConf); err != nil {
		return nil, fail(types.ErrDecodingFailure, "prevResult: %v", err)
	}
	prev, err := types100.NewResultFromResult(conf.PrevResult)
	if err != nil {
		return nil, fail(types.ErrDecodingFailure, "prevResult: %v", err)
	}
	return prev, nil
}

// hostInterface returns the name of the host's side in a result.
func hostInterface(r *types100.Result, otherwise string) string {
	for _, i := range r.Interfaces {
		if i.Sandbox == "" && i.Name != "" {
			return i.Name
		}
	}
	return otherwise
}

// addressesOf returns the addresses in a result that are on our interface.
func addressesOf(r *types100.Result, a *attachment) []netip.Addr {
	var out []netip.Addr
	for _, ip := range r.IPs {
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(r.Interfaces) && r.Interfaces[*i].Name != a.ifname {
			continue
		}
		if addr, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			out = append(out, addr.Unmap())
		}
	}
	return out
}

// drift gathers what is not as it was.
type drift struct{ found []string }

func (d *drift) add(format string, args ...any) {
	d.found = append(d.found, fmt.Sprintf(format, args...))
}

func (d *drift) err() error {
	if len(d.found) == 0 {
		return nil
	}
	return fail(codeDrift, "not as ADD left it: %s", strings.Join(d.found, "; "))
}

func (d *drift) checkHost(host *netlink.Handle, a *attachment) {
	link, err := host.LinkByName(a.hostName)
	if err != nil {
		d.add("host interface %s: %v", a.hostName, err)
		return
	}
	if link.Attrs().Flags&unix.IFF_UP == 0 {
		d.add("host interface %s is down", a.hostName)
	}
	if got := link.Attrs().HardwareAddr.String(); got != hostMAC.String() {
		d.add("host interface %s has MAC %s", a.hostName, got)
	}
	if alias := link.Attrs().Alias; alias != a.mark && alias != "" { // Calico's plugin leaves none
		d.add("host interface %s is of %q", a.hostName, alias)
	}
}

// checkInside checks the container's side and returns its MAC.
func (d *drift) checkInside(nl *netlink.Handle, a *attachment, prev *types100.Result, addrs []netip.Addr) string {
	link, err := nl.LinkByName(a.ifname)
	if err != nil {
		d.add("interface %s: %v", a.ifname, err)
		return ""
	}
	mac := link.Attrs().HardwareAddr.String()
	if link.Attrs().Flags&unix.IFF_UP == 0 {
		d.add("interface %s is down", a.ifname)
	}
	for _, i := range prev.Interfaces {
		if i.Name == a.ifname && i.Sandbox != "" && i.Mac != "" && i.Mac != mac {
			d.add("interface %s has MAC %s, had %s", a.ifname, mac, i.Mac)
		}
	}
	has, err := nl.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		d.add("addresses of %s: %v", a.ifname, err)
	}
	for _, addr := range addrs {
		want := single(addr).String()
		if !slices.ContainsFunc(has, func(x netlink.Addr) bool { return x.IPNet.String() == want }) {
			d.add("address %s is gone", want)
		}
	}
	for _, addr := range families(addrs) {
		d.checkRoutes(nl, link, addr)
	}
	return mac
}

func (d *drift) checkRoutes(nl *netlink.Handle, link netlink.Link, addr netip.Addr) {
	family := netlink.FAMILY_V4
	if addr.Is6() {
		family = netlink.FAMILY_V6
	}
	routes, err := nl.RouteListFiltered(family, &netlink.Route{LinkIndex: link.Attrs().Index, Table: unix.RT_TABLE_MAIN},
		netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	if err != nil {
		d.add("routes: %v", err)
		return
	}
	hop, _ := gateway(addr)
	toHop, byDefault := addr.Is6(), false // a link-local next hop has no route of its own
	for _, r := range routes {
		if r.Dst == nil || len(r.Dst.IP) > 0 && r.Dst.IP.IsUnspecified() {
			byDefault = byDefault || r.Gw.String() == hop.String()
		} else if r.Dst.String() == single(hop).String() && r.Scope == netlink.SCOPE_LINK {
			toHop = true
		}
	}
	if !toHop {
		d.add("route to %s is gone", hop)
	}
	// A container with more than one interface has its default route over the
	// first.
	if !byDefault && link.Attrs().Name == "eth0" {
		d.add("default route via %s is gone", hop)
	}
}

func (d *drift) checkEndpoint(ctx context.Context, s *session, a *attachment, mac string, addrs []netip.Addr) error {
	w, err := s.readEndpoint(ctx, a)
	if err != nil {
		return err
	}
	if w == nil {
		d.add("%s is gone or another container's", a.endpoint)
		return nil
	}
	if w.Spec.InterfaceName != a.hostName {
		d.add("%s has interface %s", a.endpoint, w.Spec.InterfaceName)
	}
	if mac != "" && w.Spec.MAC != mac {
		d.add("%s has MAC %s, the interface %s", a.endpoint, w.Spec.MAC, mac)
	}
	if has := w.Addresses(); !slices.Equal(sorted(has), sorted(addrs)) {
		d.add("%s has addresses %v, not %v", a.endpoint, has, addrs)
	}
	return nil
}

func (d *drift) checkAddresses(ctx context.Context, s *session, a *attachment, addrs []netip.Addr) error {
	has, err := s.ipam.AddressesOf(ctx, a.handle)
	if err != nil {
		return err
	}
	var ours []netip.Addr
	for _, as := range has {
		if a.owns(as) {
			ours = append(ours, as.Address)
		}
	}
	for _, addr := range addrs {
		if !slices.Contains(ours, addr) {
			d.add("address %s is not assigned to handle %s", addr, a.handle)
		}
	}
	return nil
}

func sorted(addrs []netip.Addr) []netip.Addr {
	return slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare)
}
