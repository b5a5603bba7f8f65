package policytest

import (
	"fmt"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"calico-xdp/pkg/api"
)

// Node is where most of the generated endpoints are.
const Node = "node-1"

// The generated resources draw from few names, labels, addresses and ports, so
// that they meet often.
var (
	namespaces = []string{"blue", "red"}
	labelNames = []string{"app", "role", "env"}
	labelTexts = []string{"a", "b", ""}
	accounts   = []string{"", "sa1", "sa2"}
	profiles   = []string{"open", "web", "kns.blue", "kns.red", "ksa.blue.sa1", "missing", "projectcalico-default-allow"}
	tierNames  = []string{"default", "alpha", "omega"}
	portNames  = []string{"http", "dns"}
	portList   = []uint16{0, 53, 79, 80, 81, 8080, 65535}
	protocols  = []string{"TCP", "UDP", "SCTP", "ICMP", "ICMPv6", "UDPLite", "TCP", "47"}
	addresses  = []string{
		"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.8", "10.0.1.1", "192.0.2.7",
		"fd00::1", "fd00::2", "fd00::3", "fd00::8", "fd00:0:0:1::1", "2001:db8::7",
	}
	nets4 = []string{
		"0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/24", "10.0.0.0/29", "10.0.0.0/30", "10.0.0.2/31", "10.0.0.1/32", "10.0.0.3/24", "192.0.2.0/24",
	}
	nets6 = []string{"::/0", "fd00::/16", "fd00::/64", "fd00::/125", "fd00::2/127", "fd00::1/128", "2001:db8::/32"}
)

// Stores generates whole stores.
func Stores() *rapid.Generator[*api.Store] {
	return rapid.Custom(func(t *rapid.T) *api.Store {
		store := api.NewStore()
		for _, name := range tierNames {
			if !maybe(t, 20) {
				r := tier(t, name)
				store.Apply(api.Change{Key: api.KeyOf(r), Resource: r})
			}
		}
		for _, r := range rapid.SliceOfN(Resources(), 1, 24).Draw(t, "resources") {
			store.Apply(api.Change{Key: api.KeyOf(r), Resource: r})
		}
		if store.Get(api.Key{Kind: api.KindWorkloadEndpoint, Namespace: "blue", Name: "w0"}) == nil {
			r := workload("blue", 0).Draw(t, "w0")
			store.Apply(api.Change{Key: api.KeyOf(r), Resource: r})
		}
		return store
	})
}

// Changes generates changes of a generated store: new resources, other ones of
// the same name, and deletions.
func Changes() *rapid.Generator[[]api.Change] {
	return rapid.Custom(func(t *rapid.T) []api.Change {
		var out []api.Change
		for _, r := range rapid.SliceOfN(Resources(), 1, 5).Draw(t, "changed") {
			c := api.Change{Key: api.KeyOf(r), Resource: r}
			if rapid.IntRange(0, 2).Draw(t, "delete") == 0 {
				c.Resource = nil
			}
			out = append(out, c)
		}
		return out
	})
}

// Resources generates one resource of any kind that policy depends on.
func Resources() *rapid.Generator[api.Resource] {
	return rapid.Custom(func(t *rapid.T) api.Resource {
		n := rapid.IntRange(0, 3).Draw(t, "number")
		switch rapid.IntRange(0, 18).Draw(t, "kind") {
		case 0, 1, 2, 3:
			return workload(one(t, namespaces), n).Draw(t, "workload")
		case 4:
			return hostEndpoint(t, n)
		case 5:
			return tier(t, one(t, tierNames))
		case 6, 7:
			return profile(t)
		case 8:
			s := &v3.GlobalNetworkSet{TypeMeta: kind("GlobalNetworkSet"), ObjectMeta: meta("", fmt.Sprint("s", n), labels(t))}
			s.Spec.Nets = someNets(t, 3)
			return s
		case 9:
			s := &v3.NetworkSet{TypeMeta: kind("NetworkSet"), ObjectMeta: meta(one(t, namespaces), fmt.Sprint("s", n), labels(t))}
			s.Spec.Nets = someNets(t, 3)
			return s
		case 10, 11, 12:
			return networkPolicy(t, n)
		case 13:
			return stagedGlobalNetworkPolicy(t, n)
		case 14:
			return stagedNetworkPolicy(t, n)
		case 15:
			return stagedKubernetesNetworkPolicy(t, n)
		}
		return globalNetworkPolicy(t, n)
	})
}

// HostEndpoints generates host endpoints of this node.
func HostEndpoints() *rapid.Generator[*v3.HostEndpoint] {
	return rapid.Custom(func(t *rapid.T) *v3.HostEndpoint {
		h := hostEndpoint(t, rapid.IntRange(0, 3).Draw(t, "number")).(*v3.HostEndpoint)
		h.Spec.Node = Node
		return h
	})
}

func workload(namespace string, n int) *rapid.Generator[api.Resource] {
	return rapid.Custom(func(t *rapid.T) api.Resource {
		w := api.NewWorkloadEndpoint()
		w.ObjectMeta = meta(namespace, fmt.Sprint("w", n), labels(t))
		if maybe(t, 8) {
			w.Labels[one(t, []string{"pcns.", "pcsa."})+one(t, labelNames)] = one(t, labelTexts)
		}
		w.Spec.Orchestrator = one(t, []string{"cni", "k8s"})
		w.Spec.Node = one(t, []string{Node, Node, Node, "node-2"})
		w.Spec.ServiceAccountName = one(t, accounts)
		w.Spec.IPNetworks = some(t, addresses, 3)
		if namespace == "blue" && n == 0 {
			w.Spec.Node = Node
			w.Spec.IPNetworks = []string{"10.0.0.1", "fd00::1"}
		}
		w.Spec.Profiles = some(t, profiles, 3)
		for _, name := range some(t, portNames, 3) {
			w.Spec.Ports = append(w.Spec.Ports, api.WorkloadPort{
				Name: name, Port: one(t, portList), Protocol: numorstring.ProtocolFromString(one(t, []string{"TCP", "UDP", "SCTP"})),
			})
		}
		return w
	})
}

func hostEndpoint(t *rapid.T, n int) api.Resource {
	h := &v3.HostEndpoint{TypeMeta: kind("HostEndpoint"), ObjectMeta: meta("", fmt.Sprint("h", n), labels(t))}
	h.Spec.Node = one(t, []string{Node, Node, Node, "node-2"})
	h.Spec.InterfaceName = one(t, []string{"*", "eth0", ""})
	h.Spec.ExpectedIPs = some(t, addresses, 2)
	h.Spec.Profiles = some(t, profiles, 2)
	for _, name := range some(t, portNames, 1) {
		h.Spec.Ports = append(h.Spec.Ports, v3.EndpointPort{
			Name: name, Port: one(t, portList), Protocol: numorstring.ProtocolFromString("TCP"),
		})
	}
	return h
}

func tier(t *rapid.T, name string) api.Resource {
	r := &api.Tier{TypeMeta: kind("Tier"), ObjectMeta: meta("", name, nil)}
	r.Spec.Order = order(t)
	if maybe(t, 2) {
		action := v3.Action(one(t, []string{"Deny", "Pass", "Pass"}))
		r.Spec.DefaultAction = &action
	}
	return r
}

func profile(t *rapid.T) api.Resource {
	p := &v3.Profile{TypeMeta: kind("Profile"), ObjectMeta: meta("", one(t, profiles[:5]), nil)}
	p.Spec.Ingress, p.Spec.Egress = rules(t, 2), rules(t, 2)
	p.Spec.LabelsToApply = map[string]string{}
	for _, prefix := range []string{"", "pcns.", "pcsa."} {
		for k, v := range labels(t) {
			p.Spec.LabelsToApply[prefix+k] = v
		}
	}
	return p
}

func order(t *rapid.T) *float64 {
	if maybe(t, 3) {
		return nil
	}
	n := float64(rapid.IntRange(-1, 3).Draw(t, "order"))
	return &n
}

func maybeSelector(t *rapid.T, n int) string {
	if !maybe(t, n) {
		return ""
	}
	return selector(t, 2)
}

func selector(t *rapid.T, depth int) string {
	if depth > 0 && faulty(t) {
		return "app =="
	}
	return soundSelector(t, depth)
}

func soundSelector(t *rapid.T, depth int) string {
	name, text := one(t, labelNames), one(t, labelTexts)
	switch k := rapid.IntRange(0, 9).Draw(t, "selector"); {
	case k < 2:
		return fmt.Sprintf("%s == '%s'", name, text)
	case k == 2:
		return fmt.Sprintf("%s != '%s'", name, text)
	case k == 3:
		return fmt.Sprintf("has(%s)", name)
	case k == 4:
		return fmt.Sprintf("!has(%s)", name)
	case k == 5:
		return "all()"
	case k == 6:
		return fmt.Sprintf("%s in {'a', '%s'}", name, text)
	case depth == 0:
		return fmt.Sprintf("%s not in {'%s'}", name, text)
	case k < 9:
		return fmt.Sprintf("(%s) && (%s)", soundSelector(t, depth-1), soundSelector(t, depth-1))
	}
	return fmt.Sprintf("(%s) || !(%s)", soundSelector(t, depth-1), soundSelector(t, depth-1))
}

// maybeScope is a selector of namespaces or service accounts.
func maybeScope(t *rapid.T, n int) string {
	if !maybe(t, n) {
		return ""
	}
	if maybe(t, 4) {
		return "global()"
	}
	return selector(t, 1)
}

func labels(t *rapid.T) map[string]string {
	out := make(map[string]string)
	for _, name := range labelNames {
		if maybe(t, 2) {
			out[name] = one(t, labelTexts)
		}
	}
	return out
}

func someNets(t *rapid.T, most int) []string {
	return append(append(some(t, nets4[1:], most), some(t, nets6[1:], most)...), some(t, addresses, 1)...)
}

// maybe is true once in n times.
func maybe(t *rapid.T, n int) bool { return rapid.IntRange(0, n-1).Draw(t, "maybe") == n-1 }

func one[T any](t *rapid.T, from []T) T { return rapid.SampledFrom(from).Draw(t, "one") }

func some[T any](t *rapid.T, from []T, most int) []T {
	return rapid.SliceOfN(rapid.SampledFrom(from), 0, most).Draw(t, "some")
}

func kind(name string) metav1.TypeMeta {
	return metav1.TypeMeta{Kind: name, APIVersion: api.GroupVersion}
}

func meta(namespace, name string, labels map[string]string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels}
}
