package dataplane

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"
	"pgregory.net/rapid"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/loader"
	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"
	"calico-xdp/pkg/policy/policytest"
	"calico-xdp/tools/testbed"
)

// stepper is a dataplane that is looked at after every single write to the kernel's tables.
type stepper struct {
	t testing.TB
	*Dataplane
	host  *testbed.Host   // whose kernel forwards
	index map[api.Key]int // the interfaces of workloads, which are the same after a restart
	state *desired.State
	look  func(table string)
	looks int
}

func newStepper(t testing.TB) *stepper {
	t.Helper()
	s := &stepper{t: t, Dataplane: new(Dataplane), host: testbed.NewHosts(t, 1).Hosts[0], index: make(map[api.Key]int)}
	assemble(t, s.Dataplane, kernel.Options{Wrote: s.wrote, Grow: func(table string, n int) error { return s.makeRoom(table, n) }})
	return s
}

func (s *stepper) wrote(table string) {
	look := s.look
	if look == nil {
		return
	}
	s.look = nil // what it does writes, too
	look(table)
	s.look = look
}

// The host endpoints of a stepper: one on the interface where BPF_PROG_TEST_RUN is, and
// one on all.
var onLink, onAll = api.Key{Kind: api.KindHostEndpoint, Name: "link"}, api.Key{Kind: api.KindHostEndpoint, Name: "z-all"}

// want is the state with these tables.
func (s *stepper) want(store *api.Store, tables *policy.Tables) *desired.State {
	w := desired.Dataplane{
		Policy: tables, Endpoints: localEndpoints(store), ToHost: desired.ToHostReturn, HostEndpoints: make(map[int]api.Key),
		Routes: make(map[netip.Prefix]desired.Route),
	}
	for key, e := range w.Endpoints {
		if s.index[key] == 0 {
			name := fmt.Sprint("cali", len(s.index))
			testbed.Veth(s.t, s.host.Namespace, name, s.host.Namespace, "peer"+name)
			s.index[key] = s.host.Link(s.t, name).Attrs().Index
		}
		e.Ifindex = s.index[key]
		w.Endpoints[key] = e
	}
	for ifindex, key := range map[int]api.Key{loopback: onLink, desired.TunnelIndex: onAll} {
		if _, there := tables.HostEndpoints[key]; there {
			w.HostEndpoints[ifindex] = key
		}
	}
	for _, a := range []string{"10.9.9.9", "fd00:9::9"} { // the host's own
		p := netip.MustParseAddr(a)
		w.Routes[netip.PrefixFrom(p, p.BitLen())] = desired.Route{Kind: desired.RouteHost}
	}
	state := &desired.State{Dataplane: w}
	pretendAttached(s.Dataplane, state)
	return state
}

func (s *stepper) apply(t rapid.TB, want *desired.State) {
	if err := s.Ensure(context.Background(), want); err != nil {
		t.Fatal(err)
	}
	if err := s.Prune(context.Background(), want); err != nil {
		t.Fatal(err)
	}
	s.state = want
}

// probe is a packet at a hook.
type probe struct {
	hook    loader.Program
	context loader.Context
	packet  policy.Packet
	// alone says that one endpoint decides about it. Where there are more, each of them
	// goes from its old policy to its new one by itself.
	alone bool
}

// verdicts are what becomes of the packets, each as the first of its flow.
func (s *stepper) verdicts(t rapid.TB, packets []probe) (out []policy.Action) {
	err := s.host.Do(func() error {
		for _, p := range packets {
			out = append(out, runAt(t, s.Dataplane, here, p.hook, p.context, p.packet))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// probes are some packets that all these states know how to tell apart: they are from or to
// workloads that stay, or the host's.
func probes(rng *rand.Rand, n int, before, after *desired.Dataplane) (out []probe) {
	local := func(a netip.Addr) (ifindex int, stays bool) {
		for _, w := range []*desired.Dataplane{before, after} {
			for key, e := range w.Endpoints {
				if slices.Contains(e.Addresses, a) {
					return e.Ifindex, slices.Contains(before.Endpoints[key].Addresses, a) && slices.Contains(after.Endpoints[key].Addresses, a)
				}
			}
		}
		return 0, false
	}
	var stay []netip.Addr
	for key, e := range before.Endpoints {
		for _, a := range e.Addresses {
			if slices.Contains(after.Endpoints[key].Addresses, a) {
				stay = append(stay, a)
			}
		}
	}
	slices.SortFunc(stay, netip.Addr.Compare)
	hosts := len(before.HostEndpoints)+len(after.HostEndpoints) > 0
	for range 10 * n {
		if len(out) == n {
			break
		}
		direction := []string{"egress", "ingress"}[rng.IntN(2)]
		p := policytest.RandomPacket(rng, direction, netip.Addr{})
		if len(stay) > 0 && (!hosts || rng.IntN(2) == 0) {
			p = policytest.RandomPacket(rng, direction, stay[rng.IntN(len(stay))])
		}
		from, fromStays := local(p.Source)
		to, toStays := local(p.Destination)
		if !expressible(p) || from != 0 && !fromStays || to != 0 && !toStays {
			continue
		}
		switch {
		case from != 0:
			out = append(out, probe{loader.FromWorkload, loader.Context{Ifindex: uint32(from)}, p, !hosts && to == 0})
		case to != 0 && (!hosts || rng.IntN(2) == 0):
			out = append(out, probe{loader.ToWorkload, loader.Context{Ifindex: uint32(to), IngressIfindex: loopback}, p, !hosts})
		case hosts:
			hook := []loader.Program{loader.FromNetwork, loader.ToNetwork, loader.XDPNetwork}[rng.IntN(3)]
			if to != 0 && hook == loader.ToNetwork {
				continue
			}
			out = append(out, probe{hook, loader.Context{}, p, hook == loader.XDPNetwork || to == 0})
		}
	}
	return out
}

// telling picks so many packets, of these mostly such that are allowed now: most are not.
func (s *stepper) telling(t rapid.TB, packets []probe, n int) []probe {
	var allowed, denied []probe
	for i, v := range s.verdicts(t, packets) {
		if v == policy.Allow {
			allowed = append(allowed, packets[i])
		} else {
			denied = append(denied, packets[i])
		}
	}
	out := allowed[:min(len(allowed), n*3/4)]
	return append(out[:len(out):len(out)], denied[:min(len(denied), n-len(out))]...)
}

var errKilled = errors.New("killed")

// follow brings a state into the kernel and looks at packets after every write, or, of those
// that change a single address, port or word, after one in so many. It returns the packets
// that get a verdict which neither the policy before nor that after gives them. With killed it ends
// after so many writes, and another process goes on, which wants that.
func (s *stepper) follow(t rapid.TB, want *desired.State, packets []probe, oneIn, killed int, again func() *desired.State) (wrong []string) {
	before := s.verdicts(t, packets)
	type odd struct {
		verdict policy.Action
		packet  int
	}
	seen := make(map[odd]string)
	writes, of := 0, make(map[string]int)
	s.look = func(table string) {
		if writes++; writes == killed {
			panic(errKilled)
		}
		of[table]++
		switch table {
		case "rule_names", "rule_counters":
			return // of no concern to verdicts
		case "host_classes", "class_nodes", "place_nodes", "ruleset_words", "port_classes":
			if of[table]%997 != 0 && (of[table]%oneIn != 0 || of[table] > 500 || table == "port_classes") {
				return
			}
		}
		s.looks++
		for i, v := range s.verdicts(t, packets) {
			if v != before[i] && seen[odd{v, i}] == "" {
				seen[odd{v, i}] = fmt.Sprintf("write %d, to %s", writes, table)
			}
		}
	}
	look := s.look
	if func() (ended bool) {
		defer func() {
			if r := recover(); r == errKilled {
				ended = true
			} else if r != nil {
				panic(r)
			}
		}()
		s.apply(t, want)
		return false
	}() {
		s.Dataplane = restarted(s.Dataplane)
		want = again()
		s.look = look
		s.apply(t, want)
	}
	s.look = nil
	after := s.verdicts(t, packets)
	for o, where := range seen {
		if p := packets[o.packet]; o.verdict != after[o.packet] && (p.alone || o.verdict == policy.Deny) {
			wrong = append(wrong, fmt.Sprintf("%s %+v: %d before and %d after, but %d in between: after %s, of %d",
				p.hook, p.packet, before[o.packet], after[o.packet], o.verdict, where, writes))
		}
	}
	return wrong
}

// jump is a policy that brings this many classes of addresses and of ports at once, those of
// the addresses and ports of generated packets among them, and decides about none of these;
// about the rest it does if it is one that is open: most is allowed.
func jump(n, version int, open bool) *v3.GlobalNetworkPolicy {
	tcp := numorstring.ProtocolFromString("TCP")
	order := -5.0
	p := v3.NewGlobalNetworkPolicy()
	p.Name = "jump"
	p.Spec = v3.GlobalNetworkPolicySpec{
		Tier: "default", Order: &order, Selector: "all()", ApplyOnForward: open || version%3 == 0,
		Types: []v3.PolicyType{v3.PolicyTypeIngress, v3.PolicyTypeEgress},
	}
	add := func(source, destination v3.EntityRule) {
		source.Nets = append(source.Nets, fmt.Sprintf("172.%d.0.0/16", 100+version%100))
		r := v3.Rule{Action: v3.Deny, Protocol: &tcp, Source: source, Destination: destination}
		p.Spec.Ingress, p.Spec.Egress = append(p.Spec.Ingress, r), append(p.Spec.Egress, r)
	}
	port := func(n int) []numorstring.Port {
		return []numorstring.Port{{MinPort: uint16(n), MaxPort: uint16(n)}}
	}
	never := v3.EntityRule{Nets: []string{"172.99.0.0/16"}}
	for i := range n {
		net := fmt.Sprintf("172.%d.%d.%d/32", 16+version%10, i/256, i%256)
		add(v3.EntityRule{Nets: []string{net}, Ports: port(20000 + i)}, v3.EntityRule{Nets: never.Nets, Ports: port(30000 + i)})
	}
	v4, v6 := policytest.Addresses()
	for i, a := range slices.Concat(v4, v6) {
		add(v3.EntityRule{Nets: []string{netip.PrefixFrom(a, a.BitLen()).String()}, Ports: port(78 + i%5)}, never)
		add(v3.EntityRule{}, v3.EntityRule{Nets: never.Nets, Ports: port([]int{0, 53, 79, 80, 81, 8080, 65535}[i%7])})
	}
	if open {
		for _, r := range []v3.Rule{{Action: v3.Deny, Protocol: &tcp, Destination: v3.EntityRule{Ports: port(80)}}, {Action: v3.Allow}} {
			p.Spec.Ingress, p.Spec.Egress = append(p.Spec.Ingress, r), append(p.Spec.Egress, r)
		}
	}
	return p
}

// withHosts adds the stepper's host endpoints to a store.
func withHosts(store *api.Store, link, all *v3.HostEndpoint) {
	for key, h := range map[api.Key]*v3.HostEndpoint{onLink: link, onAll: all} {
		h.Name = key.Name
		store.Apply(api.Change{Key: key, Resource: h})
	}
}

// TestEveryStepOfAChange: whatever changes, and wherever a packet comes in between, it is
// judged by the policy before or by that after. Changes come one after the other, or after
// one that was missed, or with another process, after the one before it has ended or while
// it is at it.
func TestEveryStepOfAChange(t *testing.T) {
	s := newStepper(t)
	changes, packets := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		s.look = nil
		store := policytest.Stores().Draw(rt, "store")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 5))
		if rapid.Bool().Draw(rt, "hosts") {
			withHosts(store, policytest.HostEndpoints().Draw(rt, "link"), policytest.HostEndpoints().Draw(rt, "all"))
		}
		compiler := policy.NewCompiler(policytest.Node)
		s.apply(rt, s.want(store, compiler.Compile(store, nil)))
		for range rapid.IntRange(1, 3).Draw(rt, "steps") {
			change := policytest.Changes().Draw(rt, "changes")
			n := rapid.SampledFrom([]int{0, 0, 0, 0, 5, 5, 40, 150}).Draw(rt, "jump")
			if n > 0 {
				p := jump(n, rng.IntN(1000), rng.IntN(2) == 0)
				change = append(change, api.Change{Key: api.KeyOf(p), Resource: p})
			}
			for _, c := range change {
				store.Apply(c)
			}
			afresh := func() *desired.State {
				compiler = policy.NewCompiler(policytest.Node)
				return s.want(store, compiler.Compile(store, nil))
			}
			killed := 0
			switch rapid.IntRange(0, 7).Draw(rt, "how") {
			case 0:
				s.Dataplane, compiler, change = restarted(s.Dataplane), policy.NewCompiler(policytest.Node), nil
			case 1:
				compiler.Compile(store, change)
				change = []api.Change{}
			case 2:
				killed = 1 + rng.IntN(20+50*n)
			}
			want := s.want(store, compiler.Compile(store, change))
			sent := s.telling(rt, probes(rng, 40, &s.state.Dataplane, &want.Dataplane), 8)
			for _, line := range s.follow(rt, want, sent, 3+n/2, killed, afresh) {
				rt.Error(line)
			}
			changes, packets = changes+1, packets+len(sent)
		}
	})
	t.Logf("%d changes, looked at %d times, %d packets", changes, s.looks, packets)
}

// TestEveryStepOfALargeChange is the same where changes bring ever more classes at once, for
// which no ruleset that is there has room, and most packets are allowed.
func TestEveryStepOfALargeChange(t *testing.T) {
	for seed := range 2 {
		s := newStepper(t)
		store, rng := api.NewStore(), rand.New(rand.NewPCG(uint64(seed), 6))
		put := func(r api.Resource) []api.Change {
			c := api.Change{Key: api.KeyOf(r), Resource: r}
			store.Apply(c)
			return []api.Change{c}
		}
		for i := range 3 {
			w := api.NewWorkloadEndpoint()
			w.Namespace, w.Name = "blue", fmt.Sprint("w", i)
			w.Spec.Node, w.Spec.IPNetworks = policytest.Node, []string{fmt.Sprint("10.0.0.", i+1), fmt.Sprint("fd00::", i+1)}
			put(w)
		}
		if seed%2 == 1 {
			withHosts(store, policytest.HostEndpoints().Example(seed), policytest.HostEndpoints().Example(seed+1))
		}
		put(jump(0, 0, true))
		compiler := policy.NewCompiler(policytest.Node)
		s.apply(t, s.want(store, compiler.Compile(store, nil)))
		allowed := 0
		for i, n := range []int{110, 400, 1300} {
			change := put(jump(n, rng.IntN(1000), true))
			if seed+i == 3 {
				s.Dataplane, compiler, change = restarted(s.Dataplane), policy.NewCompiler(policytest.Node), nil
			}
			want := s.want(store, compiler.Compile(store, change))
			packets := probes(rng, 16, &s.state.Dataplane, &want.Dataplane)
			for _, line := range s.follow(t, want, packets, n/20, 0, nil) {
				t.Errorf("seed %d, %d classes: %s", seed, n, line)
			}
			for _, v := range s.verdicts(t, packets) {
				if v == policy.Allow {
					allowed++
				}
			}
		}
		if allowed < 10 {
			t.Errorf("only %d packets were allowed", allowed)
		}
	}
}
