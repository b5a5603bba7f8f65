package desired

import (
	"cmp"
	"crypto/sha1"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/policy"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

// cluster is what the resources say about nodes, pools and where workloads are.
type cluster struct {
	self  node            // without addresses if there is no Node resource
	nodes map[string]node // all of them, this one too
	pools []pool          // by prefix
	*owners
}

type node struct {
	name       string
	ipv4, ipv6 netip.Prefix // the address and its subnet; invalid if none
	tunnels    []netip.Addr // all of the next
	tunnel     tunnels
	mac4, mac6 MAC
	as         uint32 // 0: the cluster's
	clusterID  string // of a route reflector
	labels     map[string]string
}

// tunnels are a node's own addresses in the pools that encapsulate; invalid if none.
type tunnels struct{ ipip, vxlan, vxlanV6 netip.Addr }

// of returns the address that the node has in a tunnel.
func (t tunnels) of(e Encap, is6 bool) netip.Addr {
	switch {
	case e == EncapIPIP:
		return t.ipip
	case e == EncapVXLAN && is6:
		return t.vxlanV6
	case e == EncapVXLAN:
		return t.vxlan
	}
	return netip.Addr{}
}

// address returns the node's address and subnet of one family.
func (n node) address(is6 bool) netip.Prefix {
	if is6 {
		return n.ipv6
	}
	return n.ipv4
}

type pool struct {
	prefix   netip.Prefix
	ipip     v3.IPIPMode
	vxlan    v3.VXLANMode
	disabled bool
	export   bool // over BGP

	natOutgoing bool
}

// encapsulates tells whether packets to some node are put into others.
func (p pool) encapsulates() bool {
	return p.ipip != "" && p.ipip != v3.IPIPModeNever && p.prefix.Addr().Is4() || p.vxlan != "" && p.vxlan != v3.VXLANModeNever
}

// byKey goes through the resources of one kind in the order of their names, so
// that whatever two of them dispute is decided the same way every time.
func byKey[T api.Resource](s *api.Store, kind string) func(yield func(api.Key, T) bool) {
	all := api.All[T](s, kind)
	return func(yield func(api.Key, T) bool) {
		for _, k := range slices.SortedFunc(maps.Keys(all), compareKeys) {
			if !yield(k, all[k]) {
				return
			}
		}
	}
}

func compareKeys(a, b api.Key) int {
	return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// parseNode reads a Node resource as far as it is right, and says what is not.
func parseNode(key api.Key, n *api.Node) (out node, problems []policy.Problem) {
	complain := func(err error) { problems = append(problems, policy.Problem{Object: key, Err: err}) }
	out = node{name: n.Name, labels: n.Labels, mac4: VXLANMAC(n.Name, false), mac6: VXLANMAC(n.Name, true)}
	prefix := func(field, s string, is6 bool) netip.Prefix {
		if s == "" {
			return netip.Prefix{}
		}
		p, err := api.ParseNodeAddress(s)
		if err == nil && p.Addr().Is6() != is6 {
			err = errors.New("wrong address family")
		}
		if err != nil {
			complain(fmt.Errorf("%s %q: %w", field, s, err))
			return netip.Prefix{}
		}
		return p
	}
	tunnel := func(field, s string, is6 bool, dst *netip.Addr) {
		if s == "" {
			return
		}
		a, err := netip.ParseAddr(s)
		if err == nil && a.Is6() != is6 {
			err = errors.New("wrong address family")
		}
		if err != nil {
			complain(fmt.Errorf("%s: %w", field, err))
			return
		}
		*dst = a
		out.tunnels = append(out.tunnels, a)
	}
	mac := func(field, s string, dst *MAC) {
		if s == "" {
			return
		}
		m, err := parseMAC(s)
		if err != nil {
			complain(fmt.Errorf("%s: %w", field, err))
			return
		}
		*dst = m
	}
	if bgp := n.Spec.BGP; bgp != nil {
		out.ipv4 = prefix("ipv4Address", bgp.IPv4Address, false)
		out.ipv6 = prefix("ipv6Address", bgp.IPv6Address, true)
		if bgp.ASNumber != nil {
			out.as = uint32(*bgp.ASNumber)
		}
		out.clusterID = bgp.RouteReflectorClusterID
		tunnel("ipv4IPIPTunnelAddr", bgp.IPv4IPIPTunnelAddr, false, &out.tunnel.ipip)
	}
	tunnel("ipv4VXLANTunnelAddr", n.Spec.IPv4VXLANTunnelAddr, false, &out.tunnel.vxlan)
	tunnel("ipv6VXLANTunnelAddr", n.Spec.IPv6VXLANTunnelAddr, true, &out.tunnel.vxlanV6)
	mac("vxlanTunnelMACAddr", n.Spec.VXLANTunnelMACAddr, &out.mac4)
	mac("vxlanTunnelMACAddrV6", n.Spec.VXLANTunnelMACAddrV6, &out.mac6)
	return out, problems
}

// readNode takes up a Node resource, or that it is gone. It says whether anything
// that matters here has changed.
func (c *cluster) readNode(name string, now node, there bool) bool {
	was, known := c.nodes[name]
	if known == there && was.same(now) {
		return false
	}
	if there {
		c.nodes[name] = now
	} else {
		delete(c.nodes, name)
	}
	if name == c.self.name {
		if !there {
			now = unknownNode(name)
		}
		c.self = now
	}
	return true
}

// unknownNode is a node of which nothing but the name is known.
func unknownNode(name string) node {
	return node{name: name, mac4: VXLANMAC(name, false), mac6: VXLANMAC(name, true)}
}

func (n node) same(o node) bool {
	return n.name == o.name && n.sameAddresses(o) && slices.Equal(n.tunnels, o.tunnels) && n.tunnel == o.tunnel && n.mac4 == o.mac4 && n.mac6 == o.mac6 &&
		n.as == o.as && n.clusterID == o.clusterID && maps.Equal(n.labels, o.labels)
}

func (n node) sameAddresses(o node) bool { return n.ipv4 == o.ipv4 && n.ipv6 == o.ipv6 }

// readPools takes up all pools.
func (c *cluster) readPools(s *api.Store) (problems []policy.Problem) {
	c.pools = nil
	for key, p := range byKey[*api.IPPool](s, api.KindIPPool) {
		prefix, err := netip.ParsePrefix(p.Spec.CIDR)
		if err != nil {
			problems = append(problems, policy.Problem{Object: key, Err: fmt.Errorf("cidr: %w", err)})
			continue
		}
		c.pools = append(c.pools, pool{
			prefix: prefix.Masked(), ipip: p.Spec.IPIPMode, vxlan: p.Spec.VXLANMode,
			disabled: p.Spec.Disabled, export: !p.Spec.DisableBGPExport,
			natOutgoing: p.Spec.NATOutgoing,
		})
	}
	return problems
}

// poolOf returns the pool that the address belongs to; the longest one, should
// pools overlap.
func (c *cluster) poolOf(a netip.Addr) (pool, bool) {
	var best pool
	found := false
	for _, p := range c.pools {
		if p.prefix.Contains(a) && (!found || p.prefix.Bits() > best.prefix.Bits()) {
			best, found = p, true
		}
	}
	return best, found
}

// encap says how packets to workloads at prefix travel to their node.
func (c *cluster) encap(prefix netip.Prefix, to node) Encap {
	p, ok := c.poolOf(prefix.Addr())
	if !ok {
		return EncapNone
	}
	is6 := prefix.Addr().Is6()
	crossing := !c.self.address(is6).Masked().Contains(to.address(is6).Addr())
	switch {
	case p.ipip == v3.IPIPModeAlways && !is6, p.ipip == v3.IPIPModeCrossSubnet && crossing && !is6:
		return EncapIPIP
	case p.vxlan == v3.VXLANModeAlways, p.vxlan == v3.VXLANModeCrossSubnet && crossing:
		return EncapVXLAN
	}
	return EncapNone
}

// VXLANMAC returns the address that a node's VXLAN device has when its Node
// resource names none: 66, then the first five bytes of the SHA-1 of the node's
// name, followed by "-v6" for VXLAN over IPv6. That is what Calico's Felix
// gives its devices, so the two understand each other. 0x66 makes it a locally
// administered unicast address.
func VXLANMAC(node string, is6 bool) MAC {
	if is6 {
		node += "-v6"
	}
	sum := sha1.Sum([]byte(node))
	return MAC{0x66, sum[0], sum[1], sum[2], sum[3], sum[4]}
}

// parseEndpointAddress takes "10.0.0.1" or "10.0.0.1/32".
func parseEndpointAddress(s string) (netip.Addr, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.ParseAddr(s)
	}
	if !p.IsSingleIP() {
		return netip.Addr{}, fmt.Errorf("%s is a network, not one address", s)
	}
	return p.Addr(), nil
}

func parseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil {
		return MAC{}, err
	}
	if len(hw) != len(MAC{}) {
		return MAC{}, fmt.Errorf("%s is not an Ethernet address", s)
	}
	return MAC(hw), nil
}

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }
