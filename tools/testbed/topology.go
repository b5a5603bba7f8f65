package testbed

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// HostMAC is the host's side of every workload's interface, as Calico has it;
// the kernel makes HostLinkLocal of it.
const (
	HostMAC       = "ee:ee:ee:ee:ee:ee"
	HostLinkLocal = "fe80::ecee:eeff:feee:eeee"
	// WorkloadGateway is the address that workloads send to and proxy ARP answers
	// for.
	WorkloadGateway = "169.254.1.1"
)

// Veth joins two namespaces: aName in a, bName in b, both up.
func Veth(t T, a *Namespace, aName string, b *Namespace, bName string) {
	t.Helper()
	addVeth(t, a, aName, nil, b, bName)
}

func addVeth(t T, a *Namespace, aName string, aMAC net.HardwareAddr, b *Namespace, bName string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = aName
	attrs.HardwareAddr = aMAC
	// Made inside a and b at once: nothing passes through the test's own
	// namespace.
	err := a.netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(b.handle),
	})
	if err != nil {
		t.Fatalf("veth %s in %s to %s in %s: %v", aName, a.Name, bName, b.Name, err)
	}
	b.SetUp(t, bName)
	a.SetUp(t, aName)
}

// Bridge makes a bridge that forwards at once and learns no multicast groups.
func Bridge(t T, n *Namespace, name string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	snooping := false
	if err := n.netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
		t.Fatalf("bridge %s in %s: %v", name, n.Name, err)
	}
	n.SetUp(t, name)
}

// AddPort puts an interface into a bridge of the same namespace.
func AddPort(t T, n *Namespace, bridge, port string) {
	t.Helper()
	if err := n.netlink.LinkSetMaster(n.Link(t, port), n.Link(t, bridge)); err != nil {
		t.Fatalf("add %s to %s in %s: %v", port, bridge, n.Name, err)
	}
}

// Lab is hosts on a fabric of subnets with a router between them.
type Lab struct {
	Hosts []*Host
	// Router has eth<s> in subnet s with the first address of it.
	Router *Namespace
	// Fabric holds one bridge per subnet and the far ends of the hosts' uplinks,
	// Host.Port and "router<s>".
	Fabric *Namespace
}

// Host is a namespace that stands for a machine, with one uplink, eth0.
type Host struct {
	*Namespace
	Subnet int
	// IPv4 and IPv6 are the node's addresses with their subnet's length.
	IPv4, IPv6         netip.Prefix
	Gateway4, Gateway6 netip.Addr
	MAC                net.HardwareAddr // of eth0
	Port               string           // the uplink's far end in the fabric
}

// NewHosts makes n hosts. Host i (from 0) is in subnet subnetOf[i], a number
// from 1 to 254; hosts without one are in subnet 1. Subnet s is 10.10.s.0/24 and
// fd10:10:s::/64; the router has the address 1 in it, host i has i+2. Hosts
// forward both families and have strict reverse path filtering.
func NewHosts(t T, n int, subnetOf ...int) *Lab {
	t.Helper()
	lab := &Lab{Fabric: NewNamespace(t, "fabric"), Router: NewNamespace(t, "router")}
	// Otherwise bridged packets would pass the fabric's netfilter.
	for _, family := range []string{"iptables", "ip6tables"} {
		lab.Fabric.Sysctl(t, "net.bridge.bridge-nf-call-"+family, "0")
	}
	forward(t, lab.Router, "0")
	made := make(map[int]bool)
	for i := range n {
		s := 1
		if i < len(subnetOf) {
			s = subnetOf[i]
		}
		bridge := fmt.Sprintf("subnet%d", s)
		if !made[s] {
			made[s] = true
			Bridge(t, lab.Fabric, bridge)
			eth, port := fmt.Sprintf("eth%d", s), fmt.Sprintf("router%d", s)
			Veth(t, lab.Router, eth, lab.Fabric, port)
			AddPort(t, lab.Fabric, bridge, port)
			lab.Router.AddAddress(t, eth, fmt.Sprintf("10.10.%d.1/24", s))
			lab.Router.AddAddress(t, eth, fmt.Sprintf("fd10:10:%d::1/64", s))
		}
		h := &Host{
			Namespace: NewNamespace(t, fmt.Sprintf("host%d", i+1)),
			Subnet:    s,
			IPv4:      netip.MustParsePrefix(fmt.Sprintf("10.10.%d.%d/24", s, i+2)),
			IPv6:      netip.MustParsePrefix(fmt.Sprintf("fd10:10:%d::%d/64", s, i+2)),
			Gateway4:  netip.MustParseAddr(fmt.Sprintf("10.10.%d.1", s)),
			Gateway6:  netip.MustParseAddr(fmt.Sprintf("fd10:10:%d::1", s)),
			Port:      fmt.Sprintf("host%d", i+1),
		}
		forward(t, h.Namespace, "1")
		Veth(t, h.Namespace, "eth0", lab.Fabric, h.Port)
		AddPort(t, lab.Fabric, bridge, h.Port)
		h.MAC = h.Link(t, "eth0").Attrs().HardwareAddr
		h.AddAddress(t, "eth0", h.IPv4.String())
		h.AddAddress(t, "eth0", h.IPv6.String())
		h.AddRoute(t, "0.0.0.0/0", h.Gateway4.String(), "eth0")
		h.AddRoute(t, "::/0", h.Gateway6.String(), "eth0")
		lab.Hosts = append(lab.Hosts, h)
	}
	return lab
}

// forward makes a namespace a router with that reverse path filter.
func forward(t T, n *Namespace, rpFilter string) {
	t.Helper()
	n.Sysctl(t, "net.ipv4.ip_forward", "1")
	n.Sysctl(t, "net.ipv6.conf.all.forwarding", "1")
	n.Sysctl(t, "net.ipv6.conf.default.forwarding", "1")
	n.Sysctl(t, "net.ipv4.conf.all.rp_filter", rpFilter)
	n.Sysctl(t, "net.ipv4.conf.default.rp_filter", rpFilter)
}

// AddRoute adds a route to a prefix; via may be empty for a route to what is on
// the link.
func (n *Namespace) AddRoute(t T, prefix, via, iface string) {
	t.Helper()
	p := netip.MustParsePrefix(prefix)
	r := &netlink.Route{
		LinkIndex: n.Link(t, iface).Attrs().Index,
		Dst:       &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
		Scope:     netlink.SCOPE_LINK,
		Protocol:  unix.RTPROT_STATIC,
	}
	if via != "" {
		r.Gw, r.Scope = net.ParseIP(via), netlink.SCOPE_UNIVERSE
	}
	if err := n.netlink.RouteAdd(r); err != nil {
		t.Fatalf("route %s via %s dev %s in %s: %v", prefix, via, iface, n.Name, err)
	}
}

// Workload is a namespace with eth0 that leads to a host.
type Workload struct {
	*Namespace
	Host      *Namespace
	Interface string // the host's side
	MAC       net.HardwareAddr
	Addresses []netip.Addr
}

// AddWorkload makes a workload of a host as Calico's CNI does: a veth whose
// host side has that name and HostMAC, addresses as /32 and /128, default routes
// through WorkloadGateway and HostLinkLocal. What the host does about it (proxy
// ARP, routes) is left to whom the test is about.
func (n *Namespace) AddWorkload(t T, name string, addresses ...netip.Addr) *Workload {
	t.Helper()
	w := &Workload{Namespace: NewNamespace(t, name), Host: n, Interface: name, Addresses: addresses}
	mac, err := net.ParseMAC(HostMAC)
	if err != nil {
		t.Fatalf("%v", err)
	}
	addVeth(t, n, name, mac, w.Namespace, "eth0")
	w.MAC = w.Link(t, "eth0").Attrs().HardwareAddr
	routed := make(map[bool]bool)
	for _, a := range addresses {
		w.AddAddress(t, "eth0", netip.PrefixFrom(a, a.BitLen()).String())
		switch {
		case routed[a.Is4()]:
		case a.Is4():
			w.AddRoute(t, WorkloadGateway+"/32", "", "eth0")
			w.AddRoute(t, "0.0.0.0/0", WorkloadGateway, "eth0")
		default:
			w.AddRoute(t, "::/0", HostLinkLocal, "eth0")
		}
		routed[a.Is4()] = true
	}
	return w
}

// SetMTU sets the MTU of an interface.
func (n *Namespace) SetMTU(t T, iface string, mtu int) {
	t.Helper()
	if err := n.netlink.LinkSetMTU(n.Link(t, iface), mtu); err != nil {
		t.Fatalf("mtu of %s in %s: %v", iface, n.Name, err)
	}
}
