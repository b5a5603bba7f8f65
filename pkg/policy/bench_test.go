package policy_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/policy"
	"calico-xdp/pkg/policy/policytest"
)

// cluster is a store with this many endpoints, each with an address of its own
// and labels of one of 100 applications, and this many policies, each of which
// selects one application and allows another one some ports. One endpoint in
// `nodes` is ours.
func cluster(endpoints, policies, nodes int) *api.Store {
	store := api.NewStore()
	for i := range endpoints {
		store.Apply(change(endpointOf(i, nodes, fmt.Sprint("app-", i%100))))
	}
	for i := range policies {
		store.Apply(change(policyOf(i, 443)))
	}
	return store
}

// update compiles a change of one resource.
func update(c *policy.Compiler, store *api.Store, r api.Resource) *policy.Tables {
	changes := []api.Change{change(r)}
	store.Apply(changes[0])
	return c.Compile(store, changes)
}

func change(r api.Resource) api.Change { return api.Change{Key: api.KeyOf(r), Resource: r} }

func endpointOf(i, nodes int, app string) *api.WorkloadEndpoint {
	w := api.NewWorkloadEndpoint()
	w.ObjectMeta = metav1.ObjectMeta{
		Namespace: fmt.Sprint("ns-", i%7), Name: fmt.Sprint("w-", i),
		Labels: map[string]string{"app": app, "tier": fmt.Sprint("tier-", i%3), "name": fmt.Sprint("w-", i)},
	}
	w.Spec.Node = policytest.Node
	if i%nodes != 0 {
		w.Spec.Node = fmt.Sprint("other-", i%nodes)
	}
	w.Spec.IPNetworks = []string{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String() + "/32"}
	return w
}

func policyOf(i int, port uint16) *v3.GlobalNetworkPolicy {
	p := v3.NewGlobalNetworkPolicy()
	p.Name = fmt.Sprint("p-", i)
	order := float64(i)
	p.Spec.Order = &order
	p.Spec.Selector = fmt.Sprintf("app == 'app-%d'", i%100)
	tcp := numorstring.ProtocolFromString("TCP")
	rule := func(app, tier int, ports ...uint16) v3.Rule {
		r := v3.Rule{Action: v3.Allow, Protocol: &tcp, Source: v3.EntityRule{Selector: fmt.Sprintf("app == 'app-%d' && tier == 'tier-%d'", app%100, tier%3)}}
		for _, n := range ports {
			r.Destination.Ports = append(r.Destination.Ports, numorstring.SinglePort(n))
		}
		return r
	}
	p.Spec.Ingress = []v3.Rule{rule(i+1, i, 80, port), rule(i+2, i+1, 8080), rule(i+3, i, uint16(1000+i))}
	p.Spec.Egress = []v3.Rule{{Action: v3.Allow, Destination: v3.EntityRule{Nets: []string{fmt.Sprintf("10.%d.0.0/16", i%256)}}}}
	p.Spec.Types = []v3.PolicyType{v3.PolicyTypeIngress, v3.PolicyTypeEgress}
	return p
}

func BenchmarkCompile(b *testing.B) {
	for _, size := range []struct{ endpoints, policies, nodes int }{
		{1_000, 100, 1}, {1_000, 100, 10}, {10_000, 1_000, 100}, {100_000, 1_000, 1_000},
	} {
		name := fmt.Sprintf("endpoints=%d/policies=%d/nodes=%d/", size.endpoints, size.policies, size.nodes)
		store := cluster(size.endpoints, size.policies, size.nodes)
		b.Run(name+"first", func(b *testing.B) {
			for b.Loop() {
				policy.NewCompiler(policytest.Node).Compile(store, nil)
			}
		})
		compiler := policy.NewCompiler(policytest.Node)
		compiler.Compile(store, nil)
		b.Run(name+"unchanged", func(b *testing.B) {
			for b.Loop() {
				compiler.Compile(store, []api.Change{})
			}
		})
		b.Run(name+"compared", func(b *testing.B) {
			for b.Loop() {
				compiler.Compile(store, nil)
			}
		})
		b.Run(name+"label", func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				update(compiler, store, endpointOf(1, size.nodes, fmt.Sprint("app-", i%2)))
			}
		})
		b.Run(name+"rule", func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				update(compiler, store, policyOf(0, uint16(443+i%2)))
			}
		})
	}
}

// longPolicy selects app-0 and has this many ingress rules, each with a network
// and some ports of its own; every other one has a selector besides. The edited
// one has another port.
func longPolicy(rules, edited, version int) *v3.GlobalNetworkPolicy {
	p := v3.NewGlobalNetworkPolicy()
	p.Name = "long"
	p.Spec.Selector = "app == 'app-0'"
	p.Spec.Types = []v3.PolicyType{v3.PolicyTypeIngress}
	tcp := numorstring.ProtocolFromString("TCP")
	p.Spec.Ingress = make([]v3.Rule, rules)
	for i := range p.Spec.Ingress {
		r := &p.Spec.Ingress[i]
		r.Action, r.Protocol = v3.Allow, &tcp
		r.Source.Nets = []string{netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(i >> 16), byte(i >> 8), byte(i)}), 32).String()}
		port := uint16(1 + i%50_000)
		if i == edited {
			port = uint16(60_000 + version)
		}
		r.Destination.Ports = []numorstring.Port{numorstring.SinglePort(port)}
		if i%2 == 0 {
			r.Source.NotSelector = "tier == 'tier-1'"
		}
	}
	return p
}

func BenchmarkLongPolicy(b *testing.B) {
	for _, rules := range []int{10, 1_000, 10_000, 65_500} {
		b.Run(fmt.Sprintf("rules=%d/first", rules), func(b *testing.B) {
			store := cluster(1_000, 10, 100)
			p := longPolicy(rules, -1, 0)
			for b.Loop() {
				b.StopTimer()
				compiler := policy.NewCompiler(policytest.Node)
				compiler.Compile(store, nil)
				b.StartTimer()
				update(compiler, store, p)
				b.StopTimer()
				store.Apply(api.Change{Key: api.KeyOf(p)})
				b.StartTimer()
			}
		})
		for what, edited := range map[string]func(i int) *v3.GlobalNetworkPolicy{
			"edit":   func(i int) *v3.GlobalNetworkPolicy { return longPolicy(rules, rules/2, i%100) },
			"insert": func(i int) *v3.GlobalNetworkPolicy { return longPolicy(rules-i%2, -1, 0) },
		} {
			b.Run(fmt.Sprintf("rules=%d/%s", rules, what), func(b *testing.B) {
				store := cluster(1_000, 10, 100)
				compiler := policy.NewCompiler(policytest.Node)
				compiler.Compile(store, nil)
				for i := 0; b.Loop(); i++ {
					b.StopTimer()
					p := edited(i)
					b.StartTimer()
					update(compiler, store, p)
				}
			})
		}
	}
}

// BenchmarkNamedPort is a cluster in which every endpoint gives a name to a port, one
// of three numbers, and policies ask for it by name.
func BenchmarkNamedPort(b *testing.B) {
	named := func(i int, number uint16) *api.WorkloadEndpoint {
		w := endpointOf(i, 1000, fmt.Sprint("app-", i%100))
		w.Spec.Ports = []api.WorkloadPort{{Name: "http", Protocol: numorstring.ProtocolFromString("TCP"), Port: number}}
		return w
	}
	store := cluster(0, 1_000, 1)
	for i := range 100_000 {
		store.Apply(change(named(i, uint16(8000+i%3))))
	}
	for i := range 1_000 {
		p := policyOf(i, 443)
		p.Spec.Ingress[0].Destination.Ports = []numorstring.Port{numorstring.NamedPort("http")}
		store.Apply(change(p))
	}
	compiler := policy.NewCompiler(policytest.Node)
	compiler.Compile(store, nil)
	b.Run("number that others have", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			update(compiler, store, named(1, uint16(8000+i%3)))
		}
	})
	b.Run("number that nobody else has", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			update(compiler, store, named(1, uint16(9000+i%100)))
		}
	})
}

// BenchmarkMemory reports what a compiler for a large cluster keeps.
func BenchmarkMemory(b *testing.B) {
	store := cluster(100_000, 1_000, 1_000)
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		compiler := policy.NewCompiler(policytest.Node)
		compiler.Compile(store, nil)
		runtime.GC()
		runtime.ReadMemStats(&after)
		runtime.KeepAlive(compiler)
	}
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MB-kept")
}

// BenchmarkExplain asks why a packet is denied that no rule of a long policy allows.
func BenchmarkExplain(b *testing.B) {
	for _, rules := range []int{10, 10_000, 65_500} {
		b.Run(fmt.Sprintf("rules=%d", rules), func(b *testing.B) {
			store := cluster(1_000, 10, 100)
			compiler := policy.NewCompiler(policytest.Node)
			compiler.Compile(store, nil)
			tables := update(compiler, store, longPolicy(rules, -1, 0))
			id := tables.Endpoints[api.KeyOf(endpointOf(0, 100, "app-0"))].Ingress
			p := policy.Packet{Source: netip.MustParseAddr("192.0.2.1"), Destination: netip.MustParseAddr("10.0.0.0"), Protocol: 6, SourcePort: 9, DestinationPort: 55_000}
			for b.Loop() {
				if e := tables.Explain(id, p); len(e.Nearest) == 0 {
					b.Fatalf("%+v", e)
				}
			}
		})
	}
}
