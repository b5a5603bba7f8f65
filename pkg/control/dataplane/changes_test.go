package dataplane

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

// TestChangesAreEnough: rounds that look at what has changed in the state leave in the
// kernel what the state asks for, whatever came before.
func TestChangesAreEnough(t *testing.T) {
	d := unhooked(t)
	random := rand.New(rand.NewPCG(1, 2))
	store, computer := api.NewStore(), new(desired.Computer)
	compiler := policy.NewCompiler("a")
	links := []desired.Link{{Name: "eth0", Index: 2, Kind: "device", MTU: 1500, Up: true, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}}}
	for i := range 6 {
		links = append(links, desired.Link{Name: fmt.Sprintf("cali%d", i), Index: 10 + i, Kind: "veth", MTU: 1500, Up: true})
	}
	pool := v3.NewIPPool()
	pool.Name, pool.Spec.CIDR, pool.Spec.IPIPMode = "pool", "10.65.0.0/16", v3.IPIPModeAlways
	profile := v3.NewProfile()
	profile.Name, profile.Spec.Ingress, profile.Spec.Egress = "open", []v3.Rule{{Action: v3.Allow}}, []v3.Rule{{Action: v3.Allow}}
	few, everything := 0, 0
	round := func(changes []api.Change) {
		t.Helper()
		for _, c := range changes {
			store.Apply(c)
		}
		want := computer.Compute(desired.Input{
			Node: "a", Resources: store, Links: links, Policy: compiler.Compile(store, changes),
		}, changes)
		pretendAttached(d, want)
		d.listed = true
		if err := d.Ensure(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		if d.changes.fewRoutes {
			few++
		} else {
			everything++
		}
		if err := d.Prune(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		w := &want.Dataplane
		for what, same := range map[string]bool{
			"routes":    maps.Equal(load(t, d.kernel.Routes), routesOf(w)),
			"peers":     maps.Equal(load(t, d.kernel.Peers), peersOf(w)),
			"workloads": maps.Equal(load(t, d.kernel.Workloads), d.endpoints.addresses(w)),
			"settings":  maps.Equal(load(t, d.kernel.Settings), settingsOf(w)),
			"failsafe":  maps.Equal(load(t, d.kernel.Failsafe), failsafeOf(w)),
			"nat nets":  maps.Equal(load(t, d.kernel.NATNets), natNetsOf(w)),
		} {
			if !same {
				t.Fatalf("after changes of %v the %s are not those of the state", changes, what)
			}
		}
		records := load(t, d.kernel.Endpoints)
		occupied := 0
		for s, r := range records {
			if s != 0 && r.Ifindex != 0 {
				occupied++
			}
		}
		for key, e := range w.Endpoints {
			if len(e.Addresses) == 0 {
				continue
			}
			if r := records[d.endpoints.slots[key]]; r.Ifindex != uint32(e.Ifindex) || r.Egress == 0 || r.Ingress == 0 {
				t.Fatalf("record of %s: %+v", key, r)
			}
			occupied--
		}
		if occupied != 0 {
			t.Fatalf("%d slots too many are occupied", occupied)
		}
	}
	round([]api.Change{{Key: api.KeyOf(pool), Resource: pool}, {Key: api.KeyOf(profile), Resource: profile}})
	for range 120 {
		changes := []api.Change{}
		for range random.IntN(3) {
			changes = append(changes, someChange(random))
		}
		round(changes)
		if random.IntN(20) == 0 {
			d.Resync()
		}
	}
	if few < 5*everything {
		t.Errorf("%d rounds looked at everything, %d at what has changed", everything, few)
	}
}

// someChange is one of a node, a block or an endpoint of a small cluster.
func someChange(random *rand.Rand) api.Change {
	var r api.Resource
	switch n := random.IntN(4); random.IntN(4) {
	case 0:
		node := api.NewNode()
		node.Name = string(rune('a' + n))
		node.Spec.BGP = &api.NodeBGPSpec{IPv4Address: fmt.Sprintf("10.0.0.%d/24", 1+n+10*random.IntN(2)*min(n, 1))}
		r = node
	case 1:
		block := &api.IPAMBlock{CIDR: netip.MustParsePrefix(fmt.Sprintf("10.65.%d.0/26", n)), Affinity: new("host:" + string(rune('a'+random.IntN(4))))}
		block.Name = api.BlockName(block.CIDR)
		r = block
	default:
		w := api.NewWorkloadEndpoint()
		w.Namespace, w.Name = "default", fmt.Sprint("w", random.IntN(8))
		w.Spec.Node, w.Spec.InterfaceName = string("aab"[random.IntN(3)]), fmt.Sprintf("cali%d", random.IntN(7))
		w.Spec.IPNetworks = []string{fmt.Sprintf("10.65.%d.%d/32", n, random.IntN(3))}
		w.Spec.Profiles = []string{"open"}
		r = w
	}
	c := api.Change{Key: api.KeyOf(r)}
	if random.IntN(4) > 0 {
		c.Resource = r
	}
	return c
}

func load[K, V comparable](t *testing.T, table kernel.Table[K, V]) map[K]V {
	t.Helper()
	content, err := table.Load()
	if err != nil {
		t.Fatal(err)
	}
	return content
}
