package command_test

import (
	"flag"
	"fmt"
	"io"
	"strings"
	"testing"

	"calico-xdp/cmd/calicoctl/command"
	"calico-xdp/tools/testbed"
)

var scale = flag.Int("scale", 100_000, "how many workload endpoints BenchmarkGet has")

// BenchmarkGet lists the workload endpoints of a large cluster.
func BenchmarkGet(b *testing.B) {
	e := testbed.StartEtcd(b)
	values := make(map[string]string)
	for i := range *scale {
		node, pod := fmt.Sprintf("node-%d", i/100), fmt.Sprintf("pod-%d", i)
		name := fmt.Sprintf("node--%d-k8s-pod--%d-eth0", i/100, i)
		value := fmt.Sprintf(`{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"%s","namespace":"prod","uid":"17e32d9f-3fd6-4bb2-86bf-6bf4cf6bf1c9","creationTimestamp":"2026-11-21T08:14:57Z","labels":{"app":"web-%d","projectcalico.org/namespace":"prod","projectcalico.org/orchestrator":"k8s"}},"spec":{"orchestrator":"k8s","node":"%s","containerID":"%064x","pod":"%s","endpoint":"eth0","serviceAccountName":"sa1","ipNetworks":["10.%d.%d.%d/32"],"profiles":["kns.prod","ksa.prod.sa1"],"interfaceName":"cali%011x","mac":"ee:ee:ee:ee:ee:ee"}}`,
			name, i%50, node, i, pod, i>>16&255, i>>8&255, i&255, i)
		values["/calico/resources/v3/projectcalico.org/workloadendpoints/prod/"+name] = value
	}
	e.PutAll(values)
	for _, args := range []string{"get wep -A", "get wep -A -o wide", "get wep -A -o json", "ipam check"} {
		b.Run(args, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				var stderr strings.Builder
				command.Run(b.Context(), strings.Fields(args), command.Surroundings{
					In: strings.NewReader(""), Out: io.Discard, Err: &stderr,
					Env: func(name string) string {
						if name == "ETCD_ENDPOINTS" {
							return e.Endpoint()
						}
						return ""
					},
				})
				if stderr.Len() > 0 && args != "ipam check" {
					b.Fatal(stderr.String())
				}
			}
		})
	}
}
