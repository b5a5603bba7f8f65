package datastore

import (
	"fmt"
	"testing"

	"calico-xdp/pkg/api"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// stored is an object as it is in the datastore.
func stored(t testing.TB, r api.Resource) (api.Key, *mvccpb.KeyValue) {
	t.Helper()
	api.Default(r)
	value, err := api.Encode(r)
	if err != nil {
		t.Fatal(err)
	}
	return api.KeyOf(r), &mvccpb.KeyValue{Value: value, ModRevision: 4711}
}

func someEndpoint() api.Resource {
	w := api.NewWorkloadEndpoint()
	w.Namespace, w.Name = "default", "node--1-cni-pod--1-eth0"
	w.UID = "45c7afe6-faa7-4ea1-be49-4ade6d8267d2"
	w.Labels = map[string]string{
		"projectcalico.org/namespace": "default", "projectcalico.org/orchestrator": "cni", "app": "app-17", "role": "web", "env": "prod",
	}
	w.Spec = api.WorkloadEndpointSpec{
		Node: "node-1", Orchestrator: "cni", Workload: "pod-1", Endpoint: "eth0", ContainerID: "1234", InterfaceName: "cali1234",
		IPNetworks: []string{"10.65.0.1/32"}, Profiles: []string{"default"}, MAC: "ee:ee:ee:ee:ee:ee",
	}
	return w
}

func longPolicy(rules, edited int) api.Resource {
	tcp := numorstring.ProtocolFromString("TCP")
	p := v3.NewGlobalNetworkPolicy()
	p.Name = "long"
	p.Spec.Selector, p.Spec.Types = "all()", []v3.PolicyType{v3.PolicyTypeIngress}
	for i := range rules {
		r := v3.Rule{
			Action: v3.Allow, Protocol: &tcp, Source: v3.EntityRule{Nets: []string{fmt.Sprintf("172.%d.%d.0/24", 16+i/250, i%250)}},
			Destination: v3.EntityRule{Ports: []numorstring.Port{numorstring.SinglePort(uint16(1000 + i%5000))}},
		}
		if i == edited {
			r.Action = v3.Deny
		}
		p.Spec.Ingress = append(p.Spec.Ingress, r)
	}
	return p
}

// BenchmarkFind reads and checks objects as they come from etcd.
func BenchmarkFind(b *testing.B) {
	for name, r := range map[string]api.Resource{"endpoint": someEndpoint(), "policy of 10000 rules": longPolicy(10_000, -1)} {
		key, kv := stored(b, r)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if f := find(key, kv); f.err != nil {
					b.Fatal(f.err)
				}
			}
		})
	}
}
