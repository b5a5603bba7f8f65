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

// cluster is what the resources say about nodes, pools and blocks, parsed once.
type cluster struct {
	self  node            // without addresses if there is no Node resource
	nodes map[string]node // all of them, this one too
	pools []pool          // by prefix
	// owners says on which node the workloads of a prefix are: the blocks, and a
	// single address where it is not on its block's node.
	owners   map[netip.Prefix]owner
	lengths  []int // the prefix lengths in owners, longest first
	problems []policy.Problem
}

type node struct {
	name           string
	ipv4, ipv6     netip.Prefix // the address and its subnet; invalid if none
	tunnels        []netip.Addr
	mac4, mac6     MAC
	as             uint32 // 0: the cluster's
	routeReflector bool
	labels         map[string]string
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
}

type owner struct {
	node   string
	object api.Key // that says so
}

func parseCluster(in Input) *cluster {
	self := node{name: in.Node, mac4: VXLANMAC(in.Node, false), mac6: VXLANMAC(in.Node, true)}
	c := &cluster{self: self, nodes: make(map[string]node), owners: make(map[netip.Prefix]owner)}
	for key, n := range byKey[*api.Node](in.Resources, api.KindNode) {
		c.nodes[n.Name] = c.parseNode(key, n)
	}
	if n, ok := c.nodes[in.Node]; ok {
		c.self = n
	}
	for key, p := range byKey[*api.IPPool](in.Resources, api.KindIPPool) {
		prefix, err := netip.ParsePrefix(p.Spec.CIDR)
		if err != nil {
			c.problem(key, fmt.Errorf("cidr: %w", err))
			continue
		}
		c.pools = append(c.pools, pool{
			prefix: prefix.Masked(), ipip: p.Spec.IPIPMode, vxlan: p.Spec.VXLANMode,
			disabled: p.Spec.Disabled, export: !p.Spec.DisableBGPExport,
		})
	}
	for key, b := range byKey[*api.IPAMBlock](in.Resources, api.KindIPAMBlock) {
		c.parseBlock(key, b)
	}
	c.indexLengths()
	return c
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

func (c *cluster) problem(object api.Key, err error) {
	c.problems = append(c.problems, policy.Problem{Object: object, Err: err})
}

func (c *cluster) parseNode(key api.Key, n *api.Node) node {
	out := node{name: n.Name, labels: n.Labels, mac4: VXLANMAC(n.Name, false), mac6: VXLANMAC(n.Name, true)}
	prefix := func(field, s string, is6 bool) netip.Prefix {
		if s == "" {
			return netip.Prefix{}
		}
		p, err := api.ParseNodeAddress(s)
		if err == nil && p.Addr().Is6() != is6 {
			err = errors.New("wrong address family")
		}
		if err != nil {
			c.problem(key, fmt.Errorf("%s %q: %w", field, s, err))
			return netip.Prefix{}
		}
		return p
	}
	tunnel := func(field, s string) {
		if s == "" {
			return
		}
		a, err := netip.ParseAddr(s)
		if err != nil {
			c.problem(key, fmt.Errorf("%s: %w", field, err))
			return
		}
		out.tunnels = append(out.tunnels, a)
	}
	mac := func(field, s string, dst *MAC) {
		if s == "" {
			return
		}
		m, err := parseMAC(s)
		if err != nil {
			c.problem(key, fmt.Errorf("%s: %w", field, err))
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
		out.routeReflector = bgp.RouteReflectorClusterID != ""
		tunnel("ipv4IPIPTunnelAddr", bgp.IPv4IPIPTunnelAddr)
	}
	tunnel("ipv4VXLANTunnelAddr", n.Spec.IPv4VXLANTunnelAddr)
	tunnel("ipv6VXLANTunnelAddr", n.Spec.IPv6VXLANTunnelAddr)
	mac("vxlanTunnelMACAddr", n.Spec.VXLANTunnelMACAddr, &out.mac4)
	mac("vxlanTunnelMACAddrV6", n.Spec.VXLANTunnelMACAddrV6, &out.mac6)
	return out
}

// parseBlock adds a block's node, and those of its addresses that are in use on
// another node.
func (c *cluster) parseBlock(key api.Key, b *api.IPAMBlock) {
	if b.Deleted {
		return
	}
	prefix := b.CIDR.Masked()
	if !prefix.IsValid() {
		return // absent from the object: the datastore reports it
	}
	affine := ""
	if b.Affinity != nil {
		affine, _ = strings.CutPrefix(*b.Affinity, "host:")
		if affine == *b.Affinity {
			affine = "" // "virtual:…": no node's
		}
	}
	if affine != "" {
		c.owners[prefix] = owner{affine, key}
	}
	addr := prefix.Addr()
	for _, i := range b.Allocations {
		if i != nil && *i >= 0 && *i < len(b.Attributes) {
			if on := b.Attributes[*i].Secondary["node"]; on != "" && on != affine {
				c.owners[netip.PrefixFrom(addr, addr.BitLen())] = owner{on, key}
			}
		}
		addr = addr.Next()
	}
}

func (c *cluster) indexLengths() {
	seen := make(map[int]bool)
	for p := range c.owners {
		seen[p.Bits()] = true
	}
	c.lengths = slices.SortedFunc(maps.Keys(seen), func(a, b int) int { return b - a })
}

// ownerOf returns the node that has the longest prefix with the address.
func (c *cluster) ownerOf(a netip.Addr) (owner, bool) {
	for _, bits := range c.lengths {
		if p, err := a.Prefix(bits); err == nil {
			if o, ok := c.owners[p]; ok {
				return o, true
			}
		}
	}
	return owner{}, false
}

// addStrayEndpoints gives a route of its own to each endpoint address that no
// block leads to: addresses given by hand, or by an IPAM that is not ours. Those
// in reserved are not for endpoints.
func (c *cluster) addStrayEndpoints(endpoints map[api.Key]*api.WorkloadEndpoint, reserved map[netip.Addr]string) {
	stray := make(map[netip.Prefix]owner)
	for key, w := range endpoints {
		for _, text := range w.Spec.IPNetworks {
			a, err := parseEndpointAddress(text)
			if err != nil || reserved[a] != "" {
				continue // this node's own are reported where they are taken up
			}
			if o, ok := c.ownerOf(a); ok && o.node == w.Spec.Node {
				continue
			}
			// Of several that claim an address this node's goes first: it keeps
			// what it has. There may be 100,000 endpoints, so they are not sorted.
			old, ok := stray[single(a)]
			if mine := w.Spec.Node == c.self.name; ok && mine != (old.node == c.self.name) {
				ok = !mine
			} else if ok {
				ok = compareKeys(old.object, key) < 0
			}
			if !ok {
				stray[single(a)] = owner{w.Spec.Node, key}
			}
		}
	}
	maps.Copy(c.owners, stray)
	c.indexLengths()
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
