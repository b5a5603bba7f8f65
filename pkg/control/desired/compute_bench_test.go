package desired

import (
	"fmt"
	"net/netip"
	"testing"

	"calico-xdp/pkg/api"
)

// largeCluster is a node with 100 endpoints, in a cluster of 1,000 nodes with 100
// each.
func largeCluster() Input {
	in := Input{Node: "node-0", Resources: api.NewStore()}
	apply := func(r api.Resource) { in.Resources.Apply(api.Change{Key: api.KeyOf(r), Resource: r}) }
	address := netip.MustParseAddr("10.64.0.0")
	for n := range 1000 {
		node := api.NewNode()
		node.Name = fmt.Sprintf("node-%d", n)
		node.Spec.BGP = &api.NodeBGPSpec{IPv4Address: fmt.Sprintf("10.0.%d.%d/16", n/250, n%250+1)}
		apply(node)
		block := &api.IPAMBlock{CIDR: netip.PrefixFrom(address, 25), Affinity: new("host:" + node.Name)}
		block.Kind, block.Name = api.KindIPAMBlock, api.BlockName(block.CIDR)
		apply(block)
		for e := range 128 {
			if e < 100 {
				w := api.NewWorkloadEndpoint()
				w.Namespace, w.Name = "default", fmt.Sprintf("node--%d-cni-%d-eth0", n, e)
				w.Spec.Node, w.Spec.InterfaceName, w.Spec.IPNetworks = node.Name, fmt.Sprintf("cali%d", e), []string{address.String()}
				apply(w)
			}
			address = address.Next()
		}
	}
	for e := range 100 {
		in.Links = append(in.Links, Link{Name: fmt.Sprintf("cali%d", e), Index: e + 10, Kind: "veth", MTU: 1500, Up: true})
	}
	return in
}

// BenchmarkCompute is the first result.
func BenchmarkCompute(b *testing.B) {
	in := largeCluster()
	for b.Loop() {
		if s := Compute(in); len(s.Dataplane.Endpoints) != 100 || len(s.Dataplane.Routes) < 1000 {
			b.Fatalf("%d endpoints, %d routes", len(s.Dataplane.Endpoints), len(s.Dataplane.Routes))
		}
	}
}

// BenchmarkFollow is a later result: an endpoint has moved, of this node or another.
func BenchmarkFollow(b *testing.B) {
	for _, name := range []string{"node--1-cni-7-eth0", "node--0-cni-7-eth0"} {
		b.Run(name, func(b *testing.B) {
			in, c := largeCluster(), new(Computer)
			c.Compute(in, nil)
			key := api.Key{Kind: api.KindWorkloadEndpoint, Namespace: "default", Name: name}
			was := in.Resources.Get(key).(*api.WorkloadEndpoint)
			now := was.DeepCopyObject().(*api.WorkloadEndpoint)
			now.Spec.IPNetworks = []string{"10.99.0.1"}
			b.ReportAllocs()
			for b.Loop() {
				was, now = now, was
				change := api.Change{Key: key, Resource: was}
				in.Resources.Apply(change)
				if s := c.Compute(in, []api.Change{change}); len(s.Changes.KernelRoutes) == 0 {
					b.Fatal("nothing has changed")
				}
			}
		})
	}
}
