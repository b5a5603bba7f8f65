package bed

import (
	"net/netip"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"

	"calico-xdp/pkg/api"
)

// OpenProfile allows everything in both directions.
const OpenProfile = "open"

// Open is the profile of that name.
func Open() api.Resource {
	p := v3.NewProfile()
	p.Name = OpenProfile
	p.Spec.Ingress, p.Spec.Egress = []v3.Rule{{Action: v3.Allow}}, []v3.Rule{{Action: v3.Allow}}
	return p
}

// NodeAt is a node with addresses, "10.10.1.2/24"; either may be empty.
func NodeAt(name, ipv4, ipv6 string) api.Resource {
	n := api.NewNode()
	n.Name = name
	n.Spec.BGP = &api.NodeBGPSpec{IPv4Address: ipv4, IPv6Address: ipv6}
	return n
}

// Pool is an address pool with its ways of encapsulation; "" for never.
func Pool(name, cidr string, ipip v3.IPIPMode, vxlan v3.VXLANMode) api.Resource {
	p := v3.NewIPPool()
	p.Name = name
	p.Spec = v3.IPPoolSpec{CIDR: cidr, IPIPMode: ipip, VXLANMode: vxlan}
	return p
}

// Block says that the workloads of a prefix are on a node.
func Block(cidr, node string) api.Resource {
	b := &api.IPAMBlock{CIDR: netip.MustParsePrefix(cidr), Affinity: new("host:" + node)}
	b.Kind, b.Name = api.KindIPAMBlock, api.BlockName(b.CIDR)
	return b
}
