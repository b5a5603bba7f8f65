package desired

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"calico-xdp/pkg/api"

	"github.com/google/go-cmp/cmp"
	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// follower computes states one after the other and holds each against what is
// computed from nothing.
type follower struct {
	computer *Computer
	last     *State
	// Copies: the computer changes its own.
	routes map[netip.Prefix]Route
	kernel map[netip.Prefix]KernelRoute
}

func newFollower() *follower { return &follower{computer: new(Computer)} }

// follow takes up changes that are in in.Resources already.
func (f *follower) follow(t *testing.T, in Input, changes []api.Change) {
	t.Helper()
	got, whole := f.computer.Compute(in, changes), Compute(in)
	if diff := cmp.Diff(stateText(whole), stateText(got)); diff != "" {
		t.Fatalf("after changes of %v the state is not what it is from nothing:\n%s", keys(changes), diff)
	}
	for i, p := range whole.Problems {
		if q := got.Problems[i]; p.Object != q.Object || p.Err.Error() != q.Err.Error() {
			t.Fatalf("problem %d: %v, from nothing %v", i, q, p)
		}
	}
	ch := got.Changes
	checkChanges(t, "routes", f.routes, got.Dataplane.Routes, ch.Routes, func(a, b Route) bool { return a == b })
	checkChanges(t, "kernel routes", f.kernel, got.Host.Routes, ch.KernelRoutes, KernelRoute.same)
	f.routes, f.kernel = maps.Clone(got.Dataplane.Routes), maps.Clone(got.Host.Routes)
	if f.last != nil {
		if !ch.Peers && !maps.Equal(f.last.Dataplane.Peers, got.Dataplane.Peers) {
			t.Fatal("peers have changed, and it is not said")
		}
		if !ch.BGP && !reflect.DeepEqual(f.last.BGP, got.BGP) {
			t.Fatal("BGP has changed, and it is not said")
		}
		if !ch.Local && !reflect.DeepEqual(restOf(f.last), restOf(got)) {
			t.Fatal("local things have changed, and it is not said")
		}
		if !AppliedState(f.last).Precedes(got) || AppliedState(got).Precedes(got) || AppliedState(f.last).Precedes(whole) {
			t.Fatal("which state precedes which")
		}
	}
	f.last = got
}

// restOf is a state without what Changes does not count among the local things.
func restOf(s *State) State {
	out := State{Dataplane: s.Dataplane, Host: s.Host, Local: s.Local}
	out.Dataplane.Routes, out.Dataplane.Peers, out.Dataplane.Policy, out.Host.Routes = nil, nil, nil, nil
	return out
}

func checkChanges[V any](t *testing.T, what string, before, now map[netip.Prefix]V, changed []netip.Prefix, same func(a, b V) bool) {
	t.Helper()
	want := make(map[netip.Prefix]bool)
	for p, v := range now {
		if was, ok := before[p]; !ok || !same(was, v) {
			want[p] = true
		}
	}
	for p := range before {
		if _, ok := now[p]; !ok {
			want[p] = true
		}
	}
	got := make(map[netip.Prefix]bool)
	for _, p := range changed {
		if got[p] {
			t.Fatalf("%s: %v has changed twice", what, p)
		}
		got[p] = true
	}
	if !maps.Equal(want, got) {
		t.Fatalf("%s have changed at %v, and it is said %v", what, want, got)
	}
}

func keys(changes []api.Change) []api.Key {
	var out []api.Key
	for _, c := range changes {
		out = append(out, c.Key)
	}
	return out
}

// changesBetween are those that turn one store into the other.
func changesBetween(before, after *api.Store) []api.Change {
	changes := []api.Change{}
	for _, k := range api.Kinds() {
		for key, r := range after.Each(k.Name) {
			if before.Get(key) != r {
				changes = append(changes, api.Change{Key: key, Resource: r})
			}
		}
		for key := range before.Each(k.Name) {
			if after.Get(key) == nil {
				changes = append(changes, api.Change{Key: key})
			}
		}
	}
	return changes
}

// TestFollowsChanges: a computer that is told of changes computes what one
// computes that sees the outcome only.
func TestFollowsChanges(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			g := generator{rand.New(rand.NewPCG(seed, 1))}
			in := Input{Node: "a", Resources: api.NewStore()}
			if g.IntN(4) == 0 {
				in.Config.Backend = BackendNone
			}
			f := newFollower()
			for range 60 {
				var changes []api.Change
				for range 1 + g.IntN(4) {
					changes = append(changes, g.change(&in)...)
				}
				if g.IntN(20) == 0 {
					changes = nil // all is compared
				} else if changes == nil {
					changes = []api.Change{}
				}
				f.follow(t, in, changes)
			}
		})
	}
}

// generator makes resources that get in each other's way.
type generator struct{ *rand.Rand }

func pick[T any](g generator, from ...T) T { return from[g.IntN(len(from))] }

func (g generator) change(in *Input) []api.Change {
	apply := func(r api.Resource) []api.Change {
		change := api.Change{Key: api.KeyOf(r), Resource: r}
		if g.IntN(4) == 0 {
			change.Resource = nil
		}
		in.Resources.Apply(change)
		return []api.Change{change}
	}
	switch g.IntN(15) {
	case 0, 1:
		return apply(g.node())
	case 2:
		return apply(g.pool())
	case 3, 4:
		return apply(g.block())
	case 5, 6, 7:
		return apply(g.endpoint())
	case 8:
		in.Links = g.links()
	case 9:
		in.Learned = g.learned()
	case 10:
		fc := &api.FelixConfiguration{}
		fc.Name = pick(g, "default", "node.a", "node.b")
		fc.Spec.IPIPMTU = pick(g, nil, new(1300), new(1200))
		fc.Spec.FailsafeInboundHostPorts = pick(g, nil, &[]v3.ProtoPort{}, &[]v3.ProtoPort{{Protocol: "TCP", Port: 22}})
		fc.Spec.InterfacePrefix = pick(g, "", "cali,eth1", "cali")
		return apply(fc)
	case 14:
		in.Learning = g.IntN(2) == 0
		in.Secrets = pick(g, nil, map[SecretKey]string{{"bgp", "password"}: "tea"}, map[SecretKey]string{{"bgp", "password"}: "coffee"})
		in.Services = pick(g, nil, []Service{{Name: "s", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, Local: true, Here4: true}})
	case 13:
		f := v3.NewBGPFilter()
		f.Name = pick(g, "f1", "f2")
		f.Spec.ExportV4 = []v3.BGPFilterRuleV4{{Interface: pick(g, "", "eth*", "cali*"), Action: pick(g, v3.Accept, v3.Reject)}}
		return apply(f)
	case 12:
		h := v3.NewHostEndpoint()
		h.Name = pick(g, "h1", "h2", "h3")
		h.Spec.Node, h.Spec.InterfaceName = pick(g, "a", "a", "b"), pick(g, "", "*", "eth0", "eth1", "cali1")
		h.Spec.ExpectedIPs = pick(g, nil, []string{"10.0.0.1"}, []string{"10.9.0.1", "bad"})
		return apply(h)
	case 11:
		if g.IntN(2) == 0 {
			conf := v3.NewBGPConfiguration()
			conf.Name = pick(g, "default", "node.a", "node.b")
			conf.Spec.NodeToNodeMeshEnabled = pick(g, nil, new(false))
			conf.Spec.ListenPort = pick[uint16](g, 0, 1790)
			conf.Spec.ServiceClusterIPs = pick(g, nil, []v3.ServiceClusterIPBlock{{CIDR: pick(g, "10.96.0.0/12", "10.77.0.0/16")}})
			return apply(conf)
		}
		peer := v3.NewBGPPeer()
		peer.Name = pick(g, "p", "q")
		peer.Spec.PeerIP, peer.Spec.Node = pick(g, "10.0.0.9", "10.0.0.2", "10.77.0.1", "bad"), pick(g, "", "a", "b")
		peer.Spec.ReachableBy = pick(g, "", "10.0.0.8")
		peer.Spec.Filters = pick(g, nil, []string{"f1"}, []string{"f2", "f1"})
		if g.IntN(2) == 0 {
			peer.Spec.Password = &v3.BGPPassword{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "bgp"}, Key: "password"}}
		}
		return apply(peer)
	}
	return nil
}

func (g generator) node() *api.Node {
	n := api.NewNode()
	n.Name = pick(g, "a", "a", "b", "c", "d")
	n.Labels = map[string]string{"rack": pick(g, "1", "2")}
	if g.IntN(6) > 0 {
		n.Spec.BGP = &api.NodeBGPSpec{
			IPv4Address: pick(g, "", "10.0.0.1/24", "10.0.0.2/24", "10.0.0.3/24", "10.0.1.4/24", "10.0.0.1/24", "bad"),
			IPv6Address: pick(g, "", "fd00::1/64", "fd00::2/64"),
		}
		n.Spec.BGP.RouteReflectorClusterID = pick(g, "", "", "", "244.0.0.1")
		n.Spec.BGP.IPv4IPIPTunnelAddr = pick(g, "", "10.65.0.1", "10.65.0.9")
	}
	n.Spec.IPv4VXLANTunnelAddr = pick(g, "", "", "10.66.0.1", "bad")
	return n
}

func (g generator) pool() *v3.IPPool {
	p := v3.NewIPPool()
	p.Name = pick(g, "one", "two", "three")
	p.Spec.CIDR = pick(g, "10.65.0.0/16", "10.65.0.0/24", "10.66.0.0/16", "fd65::/64", "10.0.0.0/8", "bad")
	p.Spec.IPIPMode = pick(g, v3.IPIPModeNever, v3.IPIPModeAlways, v3.IPIPModeCrossSubnet)
	p.Spec.VXLANMode = pick(g, v3.VXLANModeNever, v3.VXLANModeAlways, v3.VXLANModeCrossSubnet)
	p.Spec.Disabled, p.Spec.DisableBGPExport = g.IntN(5) == 0, g.IntN(5) == 0
	return p
}

func (g generator) block() *api.IPAMBlock {
	b := &api.IPAMBlock{CIDR: netip.MustParsePrefix(pick(g, "10.65.0.0/29", "10.65.0.8/29", "10.65.0.0/28", "10.66.0.0/30", "10.65.0.5/32", "fd65::/126"))}
	b.Kind, b.Name = api.KindIPAMBlock, api.BlockName(b.CIDR)
	b.Affinity = pick(g, nil, new("host:a"), new("host:b"), new("host:c"), new("virtual:x"))
	b.Deleted = g.IntN(10) == 0
	b.Allocations = make([]*int, 1<<(b.CIDR.Addr().BitLen()-b.CIDR.Bits()))
	for i := range b.Allocations {
		if g.IntN(3) == 0 {
			b.Allocations[i] = new(len(b.Attributes))
			b.Attributes = append(b.Attributes, api.AllocationAttribute{Secondary: map[string]string{"node": pick(g, "", "a", "b", "c", "gone")}})
		}
	}
	return b
}

func (g generator) endpoint() *api.WorkloadEndpoint {
	w := api.NewWorkloadEndpoint()
	w.Namespace, w.Name = "default", fmt.Sprintf("w%d", g.IntN(8))
	w.CreationTimestamp = metav1.NewTime(time.Unix(int64(g.IntN(3)), 0))
	w.Labels = map[string]string{"role": pick(g, "x", "y")}
	w.Spec.Node = pick(g, "a", "a", "b", "c", "gone")
	w.Spec.InterfaceName = pick(g, "cali1", "cali2", "cali3", "eth0", "")
	w.Spec.MAC = pick(g, "", "", "02:00:00:00:00:09", "bad")
	for range g.IntN(3) {
		w.Spec.IPNetworks = append(w.Spec.IPNetworks, pick(g,
			"10.65.0.1/32", "10.65.0.2", "10.65.0.5/32", "10.65.0.9/32", "10.66.0.1/32", "10.77.0.1/32", "10.77.0.2/32", "10.0.0.2/32", "fd65::1/128", "bad"))
	}
	return w
}

func (g generator) links() []Link {
	var out []Link
	for i, name := range []string{"lo", "eth0", "eth1", "cali1", "cali2", "cali4"} {
		if g.IntN(4) == 0 {
			continue
		}
		l := Link{Name: name, Index: i + 1, Kind: pick(g, "veth", "device"), MTU: pick(g, 1500, 1400), MAC: MAC{2, byte(i)}, Up: g.IntN(5) > 0, Port: g.IntN(6) == 0}
		for range g.IntN(3) {
			p := netip.MustParsePrefix(pick(g, "10.0.0.1/24", "10.0.1.4/24", "10.9.0.1/24", "fd00::1/64", "10.65.0.2/32"))
			if !slices.Contains(l.Addresses, p) {
				l.Addresses = append(l.Addresses, p)
			}
		}
		out = append(out, l)
	}
	return out
}

func (g generator) learned() []LearnedRoute {
	var out []LearnedRoute
	for range g.IntN(4) {
		one, other := netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("10.0.0.8")
		out = append(out, LearnedRoute{
			netip.MustParsePrefix(pick(g, "10.9.0.0/24", "10.77.0.0/24", "10.77.0.1/32", "10.65.0.0/29", "10.78.0.0/16", "0.0.0.0/0", "fd99::/64")),
			pick(g, []netip.Addr{one}, []netip.Addr{other}, []netip.Addr{one, other}, nil),
		})
	}
	return out
}
