package control

import (
	"fmt"
	"net/netip"

	"calico-xdp/pkg/api"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"
)

// population says how large a cluster is, beside this node's own endpoints.
type population struct {
	nodes     int
	endpoints int // of each of those nodes, at most 100
	policies  int
}

var (
	remoteAddresses = netip.MustParseAddr("10.64.0.0") // two blocks for each node
	localAddresses  = netip.MustParseAddr("10.127.0.0")
)

// after is the address that many addresses after a.
func after(a netip.Addr, n int) netip.Addr {
	b := a.As4()
	v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	v += uint32(n)
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

// putBasics writes what every scenario relies on.
func (n *node) putBasics() {
	n.Helper()
	pool := v3.NewIPPool()
	pool.Name = "pool"
	pool.Spec = v3.IPPoolSpec{CIDR: "10.64.0.0/10", IPIPMode: v3.IPIPModeAlways, VXLANMode: v3.VXLANModeNever, BlockSize: 26}
	n.put(pool)
	profile := v3.NewProfile()
	profile.Name = "default"
	profile.Spec = v3.ProfileSpec{
		LabelsToApply: map[string]string{"profile": "default"},
		Ingress:       []v3.Rule{{Action: v3.Allow}}, Egress: []v3.Rule{{Action: v3.Allow}},
	}
	n.put(profile)
	// As anybody with that many nodes has it: route reflectors in place of sessions
	// between all of them.
	bgp := v3.NewBGPConfiguration()
	bgp.Name = "default"
	bgp.Spec.NodeToNodeMeshEnabled = new(false)
	n.put(bgp)
}

func remoteName(node int) string { return fmt.Sprintf("node-%04d", node) }

func labels(i int) map[string]string {
	return map[string]string{
		"app": fmt.Sprintf("app-%d", i%1000), "role": fmt.Sprintf("role-%d", i%10),
		"env": []string{"prod", "test", "dev"}[i%3], "version": fmt.Sprintf("v%d", i%20),
	}
}

// remoteEndpoint is the i-th endpoint of another node.
func remoteEndpoint(node, i int) *api.WorkloadEndpoint {
	address := after(remoteAddresses, node*128+i/50*64+i%50)
	return endpoint(remoteName(node), fmt.Sprintf("%04d%03d", node, i), address, labels(node*100+i))
}

// fill writes that cluster: nodes, their blocks with an allocation for each
// endpoint, the endpoints, the handles of their addresses, and policies.
func (n *node) fill(p population) {
	n.Helper()
	for k := range p.nodes {
		r := api.NewNode()
		r.Name = remoteName(k)
		r.Spec.BGP = &api.NodeBGPSpec{IPv4Address: fmt.Sprintf("10.20.%d.%d/16", k/250, k%250+1)}
		n.put(r)
		for from := 0; from < p.endpoints; from += 50 {
			n.put(block(r.Name, after(remoteAddresses, k*128+from/50*64), min(50, p.endpoints-from)))
		}
		for i := range p.endpoints {
			e := remoteEndpoint(k, i)
			n.put(e)
			address := netip.MustParsePrefix(e.Spec.IPNetworks[0]).Addr()
			within := netip.PrefixFrom(address, 26).Masked()
			n.etcd.Put("/calico/ipam/v2/handle/net."+e.Spec.Workload, fmt.Sprintf(`{"block":{%q:1},"deleted":false}`, within))
		}
	}
	for i := range p.policies {
		n.put(policyOf(i))
	}
}

// block is a block of 64 addresses of which the first used are allocated.
func block(node string, first netip.Addr, used int) *api.IPAMBlock {
	b := &api.IPAMBlock{CIDR: netip.PrefixFrom(first, 26), Affinity: new("host:" + node), SequenceNumberForAllocation: make(map[string]uint64)}
	b.Name = api.BlockName(b.CIDR)
	b.Allocations, b.Unallocated = make([]*int, 64), []int{}
	for i := range 64 {
		if i >= used {
			b.Unallocated = append(b.Unallocated, i)
			continue
		}
		b.Allocations[i] = new(i)
		b.Attributes = append(b.Attributes, api.AllocationAttribute{
			HandleID:  new(fmt.Sprintf("net.%s-%d", node, i)),
			Secondary: map[string]string{"node": node, "namespace": "default", "pod": fmt.Sprintf("pod-%d", i)},
		})
		b.SequenceNumberForAllocation[fmt.Sprint(i)] = 1795249025507469321
	}
	return b
}

// policyOf is the i-th policy: for one application, by selectors, nets and ports.
func policyOf(i int) *v3.GlobalNetworkPolicy {
	tcp, udp := numorstring.ProtocolFromString("TCP"), numorstring.ProtocolFromString("UDP")
	app := func(i int) string { return fmt.Sprintf("app == 'app-%d'", i%1000) }
	p := v3.NewGlobalNetworkPolicy()
	p.Name = fmt.Sprintf("app-%d", i)
	p.Spec = v3.GlobalNetworkPolicySpec{
		Order: new(float64(100 + i%7)), Selector: app(i), Types: []v3.PolicyType{v3.PolicyTypeIngress, v3.PolicyTypeEgress},
		Ingress: []v3.Rule{
			{Action: v3.Allow, Protocol: &tcp, Source: v3.EntityRule{Selector: app(i+1) + " && env != 'dev'"},
				Destination: v3.EntityRule{Ports: []numorstring.Port{numorstring.SinglePort(80), numorstring.SinglePort(uint16(8000 + i))}}},
			{Action: v3.Allow, Protocol: &tcp, Source: v3.EntityRule{Selector: fmt.Sprintf("role == 'role-%d' && version in {'v1', 'v2'}", i%10)}},
			{Action: v3.Deny, Source: v3.EntityRule{Nets: []string{fmt.Sprintf("172.16.%d.0/24", i%256)}}},
		},
		Egress: []v3.Rule{
			{Action: v3.Allow, Protocol: &udp, Destination: v3.EntityRule{Ports: []numorstring.Port{numorstring.SinglePort(53)}}},
			{Action: v3.Allow, Destination: v3.EntityRule{Selector: app(i + 7)}},
		},
	}
	return p
}

// fillers are policies for the role server with that many rules in all, none of
// which is for what the probe sends.
func fillers(rules int) []*v3.GlobalNetworkPolicy {
	const policies = 3
	var out []*v3.GlobalNetworkPolicy
	for k := range policies {
		p := v3.NewGlobalNetworkPolicy()
		p.Name = fmt.Sprintf("filler-%d", k)
		p.Spec = v3.GlobalNetworkPolicySpec{
			Order: new(float64(k)), Selector: "role == 'server'", Types: []v3.PolicyType{v3.PolicyTypeIngress},
		}
		for i := k; i < rules; i += policies {
			p.Spec.Ingress = append(p.Spec.Ingress, fillerRule(i))
		}
		out = append(out, p)
	}
	return out
}

func fillerRule(i int) v3.Rule {
	tcp := numorstring.ProtocolFromString("TCP")
	return v3.Rule{
		Action: v3.Allow, Protocol: &tcp,
		Source:      v3.EntityRule{Nets: []string{fmt.Sprintf("172.%d.%d.0/24", 16+i/250, i%250)}},
		Destination: v3.EntityRule{Ports: []numorstring.Port{numorstring.SinglePort(uint16(1000 + i%5000))}},
	}
}

// probeRule is about what the probe sends.
func probeRule(action v3.Action) v3.Rule {
	udp := numorstring.ProtocolFromString("UDP")
	return v3.Rule{Action: action, Protocol: &udp, Source: v3.EntityRule{Selector: "role == 'client'"}}
}

// probePolicy decides about the probe's packets, after the fillers.
func probePolicy(rules ...v3.Rule) *v3.GlobalNetworkPolicy {
	p := v3.NewGlobalNetworkPolicy()
	p.Name = "probe"
	p.Spec = v3.GlobalNetworkPolicySpec{
		Order: new(50.0), Selector: "role == 'server'", Types: []v3.PolicyType{v3.PolicyTypeIngress}, Ingress: rules,
	}
	return p
}
