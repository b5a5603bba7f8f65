package dataplane

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"testing"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"pgregory.net/rapid"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/loader"
	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"
	"calico-xdp/pkg/policy/policytest"
	"calico-xdp/tools/testbed"
)

const (
	shot     = 2 // TC_ACT_SHOT
	xdpDrop  = 1 // XDP_DROP
	loopback = 1 // where BPF_PROG_TEST_RUN says a packet is
	localMAC = "02:00:00:00:00:01"
	hostMAC  = "ee:ee:ee:ee:ee:ee"
)

// unhooked is a dataplane without hooks and pins: all but attaching.
func unhooked(t testing.TB) *Dataplane {
	t.Helper()
	return unhookedWith(t, kernel.Options{})
}

func unhookedWith(t testing.TB, o kernel.Options) *Dataplane {
	t.Helper()
	d := new(Dataplane)
	assemble(t, d, o)
	return d
}

// assemble gives a dataplane tables and programs of its own, for as long as the test.
func assemble(t testing.TB, d *Dataplane, o kernel.Options) {
	t.Helper()
	k, err := kernel.OpenWith("", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	p, err := loader.Load(k.Handles(), loader.Links{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	d.log, d.attached = slog.New(slog.DiscardHandler), make(map[loader.Attachment]bool)
	d.links = loader.Links{Dir: filepath.Join(t.TempDir(), "none")}
	d.open(k, p)
}

// TestProgramsAgreeWithOracle lets random resources follow each other in one
// dataplane, and compares what the programs do with random packets with what a slow
// reading of the resources says.
func TestProgramsAgreeWithOracle(t *testing.T) {
	agree(t, unhooked(t), policytest.Stores(), 100)
}

// TestManyRulesAgreeWithOracle is the same with policies of more rules than a word
// has bits, and than a block has.
func TestManyRulesAgreeWithOracle(t *testing.T) {
	// Room for enforced and staged rules of both directions, of one result and the next.
	d := unhookedWith(t, kernel.Options{Sizes: map[string]int{"rule_counters": 1 << 17, "rule_names": 1 << 17, "ruleset_words": 1 << 23}})
	agree(t, d, rapid.Custom(func(t *rapid.T) *api.Store {
		store := policytest.Stores().Draw(t, "few")
		some := rapid.SliceOfN(policytest.Rules(), 1, 30).Draw(t, "rules")
		n := rapid.SampledFrom([]int{20, 65, 130, 1000, 4200, 9000}).Draw(t, "n")
		order := 1.5
		p := v3.NewGlobalNetworkPolicy()
		p.Name = "long"
		p.Spec = v3.GlobalNetworkPolicySpec{
			Tier: "default", Order: &order, Selector: "all()",
			Types: []v3.PolicyType{v3.PolicyTypeIngress, v3.PolicyTypeEgress},
		}
		// Nearly all of them match nothing that is sent; one in many is a generated one.
		seed := rapid.Uint64().Draw(t, "seed")
		rng := rand.New(rand.NewPCG(seed, 2))
		for i := range n {
			r := v3.Rule{Action: v3.Deny, Source: v3.EntityRule{Nets: []string{fmt.Sprintf("172.%d.%d.0/24", 16+i/256, i%256)}}}
			if rng.IntN(n) < 8 {
				r = some[rng.IntN(len(some))]
			}
			p.Spec.Ingress, p.Spec.Egress = append(p.Spec.Ingress, r), append(p.Spec.Egress, r)
		}
		store.Apply(api.Change{Key: api.KeyOf(p), Resource: p})
		return store
	}), 20)
}

func agree(t *testing.T, d *Dataplane, stores *rapid.Generator[*api.Store], packets int) {
	compiler := policy.NewCompiler(policytest.Node)
	pairs := 0
	rapid.Check(t, func(t *rapid.T) {
		store := stores.Draw(t, "store")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		w := ensured(t, d, store, compiler.Compile(store, nil))
		pairs += judged(t, d, w, store, rng, packets)
	})
	t.Logf("%d pairs of policy and packet", pairs)
}

// ensured brings compiled resources into a dataplane.
func ensured(t *rapid.T, d *Dataplane, store *api.Store, tables *policy.Tables) *desired.Dataplane {
	t.Helper()
	state := &desired.State{Dataplane: desired.Dataplane{Policy: tables, VXLANPort: 4789, Endpoints: localEndpoints(store)}}
	pretendAttached(d, state)
	if err := d.Ensure(context.Background(), state); err != nil {
		t.Fatal(err)
	}
	numbersAgree(t, d, tables)
	if err := d.Prune(context.Background(), state); err != nil {
		t.Fatal(err)
	}
	return &state.Dataplane
}

// judged compares what the programs do with random packets with what the oracle
// says, and returns how many it did.
func judged(t *rapid.T, d *Dataplane, w *desired.Dataplane, store *api.Store, rng *rand.Rand, packets int) (pairs int) {
	t.Helper()
	owner := make(map[netip.Addr]api.Key)
	var locals []netip.Addr
	for key, e := range w.Endpoints {
		for _, a := range e.Addresses {
			owner[a] = key
			locals = append(locals, a)
		}
	}
	if len(locals) == 0 {
		return 0
	}
	oracle := policytest.NewOracle(store)
	before, should := countsOf(t, d), make(map[countedRule]kernel.Counter)
	var sent []policy.Packet
	for range packets {
		local := locals[rng.IntN(len(locals))]
		direction := []string{"egress", "ingress"}[rng.IntN(2)]
		p := policytest.RandomPacket(rng, direction, local)
		if !expressible(p) {
			continue
		}
		want := policy.Allow
		for side, key := range map[string]api.Key{"egress": owner[p.Source], "ingress": owner[p.Destination]} {
			if key == (api.Key{}) {
				continue
			}
			steps := oracle.Judge(key, side, p)
			if last := steps[len(steps)-1]; last.Action != policy.Allow {
				want = policy.Deny
			}
		}
		if got := run(t, d, direction, p); got != want {
			t.Fatalf("%s %+v: the program says %d, the oracle %d", direction, p, got, want)
		}
		for rule, c := range attributed(w, owner[p.Source], owner[p.Destination], p) {
			sum := should[rule]
			should[rule] = kernel.Counter{Packets: sum.Packets + c.Packets, Bytes: sum.Bytes + c.Bytes}
		}
		sent = append(sent, p)
	}
	// Once for all of them: the table is large.
	if moved := moved(t, d, before, countsOf(t, d)); !maps.Equal(moved, should) {
		t.Fatalf("%+v: counted for\n%v, want\n%v", sent, moved, should)
	}
	return len(sent)
}

// localEndpoints are the endpoints on this node whose address nobody else has.
func localEndpoints(store *api.Store) map[api.Key]desired.Endpoint {
	uses := make(map[netip.Addr]int)
	all := api.All[*api.WorkloadEndpoint](store, api.KindWorkloadEndpoint)
	addresses := make(map[api.Key][]netip.Addr)
	for key, w := range all {
		a := w.Addresses()
		addresses[key] = a
		for _, addr := range a {
			uses[addr]++
		}
	}
	out := make(map[api.Key]desired.Endpoint)
	for key, w := range all {
		if w.Spec.Node != policytest.Node {
			continue
		}
		e := desired.Endpoint{Key: key, Ifindex: loopback, Veth: true, MAC: desired.MAC{2, 0, 0, 0, 0, 1}}
		for _, a := range addresses[key] {
			if uses[a] == 1 {
				e.Addresses = append(e.Addresses, a)
			}
		}
		out[key] = e
	}
	return out
}

func pretendAttached(d *Dataplane, s *desired.State) {
	for a := range d.attachments(&s.Dataplane) {
		d.attached[a] = true
	}
}

// expressible says whether a packet can be built that gets as far as policy.
func expressible(p policy.Packet) bool {
	v6 := p.Source.Is6()
	switch p.Protocol {
	case 1, 58:
		typ := p.DestinationPort >> 8
		// Errors quote a flow; they are not judged.
		return v6 == (p.Protocol == 58) && typ != 3 && !(v6 && typ < 5)
	case 0:
		return !v6 // hop-by-hop options
	case 255:
		return true
	}
	return true
}

// frameOf is a packet as it is on the wire, and its flow.
func frameOf(p policy.Packet) ([]byte, kernel.FlowKey) {
	frame := testbed.Ethernet(localMAC, hostMAC).IP(p.Source, p.Destination)
	x, y := netip.AddrPortFrom(p.Source, p.SourcePort), netip.AddrPortFrom(p.Destination, p.DestinationPort)
	switch p.Protocol {
	case 6:
		frame = frame.TCP(p.SourcePort, p.DestinationPort, "S")
	case 17:
		frame = frame.UDP(p.SourcePort, p.DestinationPort)
	case 1, 58:
		frame = frame.ICMP(uint8(p.DestinationPort>>8), uint8(p.DestinationPort), 0)
		x, y = netip.AddrPortFrom(p.Source, 0), netip.AddrPortFrom(p.Destination, 0)
	case 132, 136:
		ports := []byte{byte(p.SourcePort >> 8), byte(p.SourcePort), byte(p.DestinationPort >> 8), byte(p.DestinationPort)}
		frame = frame.Protocol(p.Protocol).Raw(append(ports, make([]byte, 16)...))
	default:
		frame = frame.Protocol(p.Protocol).Payload(20)
	}
	return frame.Bytes(), kernel.NewFlowKey(x, y, p.Protocol)
}

func run(t rapid.TB, d *Dataplane, direction string, p policy.Packet) policy.Action {
	forget(t, d, p)
	return runOn(t, d, direction, p)
}

// runOn is run for a packet of a flow that there may be.
func runOn(t rapid.TB, d *Dataplane, direction string, p policy.Packet) policy.Action {
	hook, c := loader.FromWorkload, loader.Context{}
	if direction == "ingress" {
		hook, c = loader.ToWorkload, loader.Context{IngressIfindex: loopback}
	}
	return sendAt(t, d, here, hook, c, p)
}

// forget makes a packet the first of its flow: one flow must not speak for the next
// packet.
func forget(t rapid.TB, d *Dataplane, p policy.Packet) {
	_, key := frameOf(p)
	for _, table := range []kernel.Table[kernel.FlowKey, kernel.Flow]{d.kernel.NewFlows, d.kernel.Flows} {
		if err := table.Delete(key); err != nil {
			t.Fatal(err)
		}
	}
}

// within runs a function in a namespace.
type within func(func() error) error

func here(fn func() error) error { return fn() }

// runAt runs a packet as the first of its flow.
func runAt(t rapid.TB, d *Dataplane, in within, hook loader.Program, c loader.Context, p policy.Packet) policy.Action {
	forget(t, d, p)
	return sendAt(t, d, in, hook, c, p)
}

func sendAt(t rapid.TB, d *Dataplane, in within, hook loader.Program, c loader.Context, p policy.Packet) policy.Action {
	frame, _ := frameOf(p)
	var result loader.Result
	err := in(func() (err error) {
		result, err = d.programs.Run(hook, frame, c)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if result.Return == shot && hook != loader.XDPNetwork || result.Return == xdpDrop && hook == loader.XDPNetwork {
		return policy.Deny
	}
	return policy.Allow
}
