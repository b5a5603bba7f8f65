package dataplane

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"pgregory.net/rapid"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/policy"
	"calico-xdp/pkg/policy/policytest"
)

// What follows from changes is what comparing everything would find; results that
// are missed, because something before failed, or readings of the kernel in between
// make no difference; and packets are judged as the oracle says all the while.
func TestFollowingChanges(test *testing.T) {
	d := unhooked(test)
	followed, compared := 0, 0
	rapid.Check(test, func(t *rapid.T) {
		store := policytest.Stores().Draw(t, "store")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 3))
		long := rapid.SampledFrom([]int{0, 0, 0, 0, 0, 0, 0, 0, 100, 5000}).Draw(t, "long")
		if long > 0 {
			p := longPolicy(long)
			store.Apply(api.Change{Key: api.KeyOf(p), Resource: p})
		}
		compiler := policy.NewCompiler(policytest.Node)
		var changes []api.Change
		var memory []remembrance
		for range rapid.IntRange(2, 6).Draw(t, "steps") {
			tables := compiler.Compile(store, changes)
			changes = policytest.Changes().Draw(t, "changes")
			if rapid.IntRange(0, 4).Draw(t, "missed") == 0 {
				for _, c := range changes {
					store.Apply(c)
				}
				continue
			}
			if rapid.IntRange(0, 7).Draw(t, "resync") == 0 {
				d.Resync()
			}
			if d.loaded && d.classifier.compiler == compiler && d.classifier.applied == tables.Result-1 {
				followed++
			} else {
				compared++
			}
			w := ensured(t, d, store, tables)
			rejudged(t, d, w, memory)
			memory = remembered(t, d, w, rng)
			judged(t, d, w, store, rng, 20)
			if long == 0 && rng.IntN(5) == 0 {
				sound := generationless(test, d)
				d.Resync()
				ensured(t, d, store, tables)
				if diff := difference(sound, generationless(test, d)); len(diff) > 0 {
					t.Fatalf("comparing everything finds\n%s", strings.Join(diff, "\n"))
				}
			}
			for _, c := range changes {
				store.Apply(c)
			}
		}
	})
	test.Logf("%d results followed, %d compared", followed, compared)
}

// remembrance is a packet, its verdict, and the generations of the endpoints that had
// their part in it.
type remembrance struct {
	direction   string
	packet      policy.Packet
	verdict     policy.Action
	generations map[api.Key]uint32
}

func remembered(t *rapid.T, d *Dataplane, w *desired.Dataplane, rng *rand.Rand) (out []remembrance) {
	for _, e := range w.Endpoints {
		for _, a := range e.Addresses {
			for _, direction := range []string{"egress", "ingress"} {
				p := policytest.RandomPacket(rng, direction, a)
				if !expressible(p) {
					continue
				}
				out = append(out, remembrance{direction, p, run(t, d, direction, p), generations(d, w, p)})
			}
		}
	}
	return out
}

// generations are those of the local endpoints at both ends of a packet.
func generations(d *Dataplane, w *desired.Dataplane, p policy.Packet) map[api.Key]uint32 {
	out := make(map[api.Key]uint32)
	for key, e := range w.Endpoints {
		for _, a := range e.Addresses {
			if a == p.Source || a == p.Destination {
				out[key] = d.endpoints.records[d.endpoints.slots[key]].Generation
			}
		}
	}
	return out
}

// rejudged checks that where a verdict is another one than before, a flow that was
// judged before would be judged again.
func rejudged(t *rapid.T, d *Dataplane, w *desired.Dataplane, memory []remembrance) {
	t.Helper()
	for _, m := range memory {
		if now := run(t, d, m.direction, m.packet); now != m.verdict && maps.Equal(m.generations, generations(d, w, m.packet)) {
			t.Fatalf("%s %+v: %d became %d in the same generations %v", m.direction, m.packet, m.verdict, now, m.generations)
		}
	}
}

// longPolicy has this many rules that match nothing that is sent, in front of those
// that are generated.
func longPolicy(rules int) *v3.GlobalNetworkPolicy {
	order := -1.0
	p := v3.NewGlobalNetworkPolicy()
	p.Name = "long"
	p.Spec = v3.GlobalNetworkPolicySpec{Tier: "alpha", Order: &order, Types: []v3.PolicyType{v3.PolicyTypeIngress, v3.PolicyTypeEgress}}
	for i := range rules {
		r := v3.Rule{Action: v3.Deny, Source: v3.EntityRule{Nets: []string{fmt.Sprintf("172.%d.%d.0/24", 16+i/256, i%256)}}}
		if i%7 == 0 {
			r.Source.Selector = "app == 'a'"
		}
		p.Spec.Ingress, p.Spec.Egress = append(p.Spec.Ingress, r), append(p.Spec.Egress, r)
	}
	p.Spec.Ingress = append(p.Spec.Ingress, v3.Rule{Action: v3.Pass})
	p.Spec.Egress = append(p.Spec.Egress, v3.Rule{Action: v3.Pass})
	return p
}

// BenchmarkFollow is one change in a large cluster, from compiled to in the kernel.
func BenchmarkFollow(b *testing.B) {
	d := unhooked(b)
	store := api.NewStore()
	endpoint := func(i int, app string) api.Change {
		w := api.NewWorkloadEndpoint()
		w.Namespace, w.Name, w.Labels = "default", fmt.Sprint("w-", i), map[string]string{"app": app}
		w.Spec.Node = fmt.Sprint("node-", 1+i%1000)
		w.Spec.IPNetworks = []string{fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)}
		return api.Change{Key: api.KeyOf(w), Resource: w}
	}
	for i := range 100_000 {
		store.Apply(endpoint(i, fmt.Sprint("app-", i%100)))
	}
	for i := range 1000 {
		p := v3.NewGlobalNetworkPolicy()
		p.Name = fmt.Sprint("p-", i)
		p.Spec.Selector = fmt.Sprintf("app == 'app-%d'", i%100)
		p.Spec.Ingress = []v3.Rule{{Action: v3.Allow, Source: v3.EntityRule{Selector: fmt.Sprintf("app == 'app-%d'", (i+i/100)%100)}}}
		store.Apply(api.Change{Key: api.KeyOf(p), Resource: p})
	}
	compiler := policy.NewCompiler("node-1")
	state := &desired.State{Dataplane: desired.Dataplane{Endpoints: make(map[api.Key]desired.Endpoint)}}
	ensure := func(t *policy.Tables) {
		state.Dataplane.Policy = t
		pretendAttached(d, state)
		if err := d.Ensure(b.Context(), state); err != nil {
			b.Fatal(err)
		}
	}
	ensure(compiler.Compile(store, nil))
	b.Run("label of a remote endpoint", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			c := endpoint(4711, fmt.Sprint("app-", i%100))
			store.Apply(c)
			b.StopTimer()
			t := compiler.Compile(store, []api.Change{c})
			b.StartTimer()
			ensure(t)
		}
	})
	b.Run("same, compared", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			c := endpoint(4711, fmt.Sprint("app-", i%100))
			store.Apply(c)
			b.StopTimer()
			t := compiler.Compile(store, []api.Change{c})
			d.classifier.applied = 0
			b.StartTimer()
			ensure(t)
		}
	})
}
