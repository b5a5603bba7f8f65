package dataplane

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/loader"
	"calico-xdp/pkg/policy"
	"calico-xdp/pkg/policy/policytest"
	"calico-xdp/tools/testbed"
)

var (
	randomPackets = flag.Int("packets", 40000, "how many random packets TestRandomPackets sends")
	randomSeed    = flag.Uint64("seed", 1, "which ones")
)

const redirected = 7 // TC_ACT_REDIRECT

// The policy of the bed's workloads and of its host's uplink.
const randomPolicy = `
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: free}, spec: {selector: role == 'free', types: [Ingress, Egress],
 ingress: [{action: Allow}], egress: [{action: Allow}]}}
---
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: shut}, spec: {selector: role == 'shut', types: [Ingress, Egress]}}
---
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: send}, spec: {selector: role == 'send', types: [Ingress, Egress], egress: [{action: Allow}]}}
---
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: guarded}, spec: {selector: role == 'guarded', types: [Ingress, Egress],
 ingress: [{action: Deny, protocol: TCP, destination: {ports: [22]}}, {action: Allow, protocol: TCP}, {action: Allow, protocol: UDP, source: {nets: [192.168.0.0/16]}},
  {action: Allow, protocol: UDP, destination: {ports: ["1:1000"]}}, {action: Allow, protocol: ICMP, icmp: {type: 8}}, {action: Allow, protocol: ICMPv6, icmp: {type: 128, code: 0}}],
 egress: [{action: Deny, destination: {nets: [203.0.113.0/28, "2001:db8::/126"]}}, {action: Deny, protocol: 132}, {action: Allow}]}}
---
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: raw}, spec: {selector: role == 'host', types: [Ingress, Egress], doNotTrack: true, applyOnForward: true,
 ingress: [{action: Deny, protocol: UDP, destination: {ports: [7777]}}, {action: Deny, source: {nets: [198.51.100.0/24]}}],
 egress: [{action: Deny, protocol: UDP, destination: {ports: [7777]}}]}}
---
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: host}, spec: {selector: role == 'host', types: [Ingress, Egress],
 ingress: [{action: Allow}], egress: [{action: Allow}]}}
---
{apiVersion: projectcalico.org/v3, kind: HostEndpoint, metadata: {name: eth0, labels: {role: host}}, spec: {node: ` + policytest.Node + `, interfaceName: eth0}}
`

// gauntlet is a bed whose programs get random packets, and a slow reading of them.
type gauntlet struct {
	*bed
	oracle *policytest.Oracle
	rng    *rand.Rand
	hep    api.Key
	owner  map[netip.Addr]int // workloads' addresses
	keys   map[int]api.Key
	spare  netip.Prefix // what the first workload may send from, too

	judged map[string]bool   // what policy says, by question
	opened map[tuple]bool    // flows that a packet which may pass has opened
	begun  map[fragment]bool // packets of which a first fragment has passed
	corpus []sample
}

// tuple is what tells flows apart, from the sender's view.
type tuple struct {
	from, to netip.AddrPort
	protocol uint8
}

type fragment struct {
	hook     loader.Program
	from, to netip.Addr
	id       uint32
	protocol uint8
}

// sample is a packet that makes sense where it is seen.
type sample struct {
	hook loader.Program
	on   string
	from string
	data []byte
}

func newGauntlet(t *testing.T) *gauntlet {
	b := newBed(t)
	g := &gauntlet{
		bed: b, rng: rand.New(rand.NewPCG(*randomSeed, 7)), owner: make(map[netip.Addr]int), keys: make(map[int]api.Key),
		hep: api.Key{Kind: api.KindHostEndpoint, Name: "eth0"}, spare: netip.MustParsePrefix("198.18.0.0/24"),
		judged: make(map[string]bool),
	}
	store := api.NewStore()
	resources, err := api.DecodeAll([]byte(randomPolicy))
	if err != nil {
		t.Fatal(err)
	}
	roles := map[int]string{first: "free", second: "guarded", plainLink: "free", shut: "shut", sendOnly: "send", hearOnly: "guarded"}
	endpoints := make(map[api.Key]desired.Endpoint)
	for n := 1; n <= workloads; n++ {
		e := b.state.Dataplane.Endpoints[key(n)]
		w := &api.WorkloadEndpoint{}
		w.Kind, w.APIVersion, w.Namespace, w.Name = api.KindWorkloadEndpoint, "projectcalico.org/v3", "default", fmt.Sprint("w", n)
		w.Labels = map[string]string{"role": roles[n]}
		w.Spec = api.WorkloadEndpointSpec{Orchestrator: "script", Workload: w.Name, Endpoint: "eth0", Node: policytest.Node, InterfaceName: e.Interface}
		for _, a := range e.Addresses {
			w.Spec.IPNetworks = append(w.Spec.IPNetworks, netip.PrefixFrom(a, a.BitLen()).String())
			g.owner[a] = n
		}
		if n == first {
			e.Sources = []netip.Prefix{g.spare}
		}
		e.Key = api.KeyOf(w)
		g.keys[n], endpoints[e.Key] = e.Key, e
		resources = append(resources, w)
	}
	for _, r := range resources {
		store.Apply(api.Change{Key: api.KeyOf(r), Resource: r})
	}
	g.oracle = policytest.NewOracle(store)
	w := &b.state.Dataplane
	w.Endpoints, w.Policy = endpoints, policy.NewCompiler(policytest.Node).Compile(store, nil)
	// XDP programs run where BPF_PROG_TEST_RUN has them, without an interface of ours.
	w.HostEndpoints = map[int]api.Key{b.index["eth0"]: g.hep, loopback: g.hep}
	w.RPF = desired.RPFLoose
	b.sync(t)
	g.fill()
	return g
}

// fill makes the samples: of each hook, packets of all kinds between all kinds of ends.
func (g *gauntlet) fill() {
	v4 := []string{w1, w2, w3, w4, w5, w6, node4, outside4, "203.0.113.200", "192.168.1.50", remotePlain4, remoteIPIP4, remoteVXLAN4, ipip4, "198.51.100.9", "198.18.0.7"}
	v6 := []string{x1, x2, x3, "fd01::4", "fd01::5", "fd01::6", node6, outside6, "2001:db8::2", "fd01::30", remotePlain6, remoteVXLAN6}
	for i := range 3000 {
		ends := v4
		if i%3 == 0 {
			ends = v6
		}
		src, dst := ends[g.rng.IntN(len(ends))], ends[g.rng.IntN(len(ends))]
		s := sample{hook: []loader.Program{loader.FromWorkload, loader.FromWorkload, loader.ToWorkload, loader.FromNetwork, loader.FromNetwork, loader.ToNetwork, loader.XDPNetwork}[i%7]}
		base := frame(src, dst)
		n := workloadOf(netip.MustParseAddr(src))
		switch s.hook {
		case loader.FromWorkload:
			if n == 0 {
				n = 1
				base = testbed.Ethernet(macOf(1), hostMAC).IP(netip.MustParseAddr(src), netip.MustParseAddr(dst))
			}
			s.on = fmt.Sprint("cali", n)
		case loader.ToWorkload:
			s.on, s.from = fmt.Sprint("cali", max(1, workloadOf(netip.MustParseAddr(dst)))), []string{"", "eth0", "cali1"}[g.rng.IntN(3)]
		default:
			s.on = "eth0"
			if s.hook == loader.ToNetwork {
				s.from = []string{"", "cali1"}[g.rng.IntN(2)]
			}
			base = g.inTunnel(s.hook, src, dst)
		}
		s.data = g.body(base, src, dst).Bytes()
		g.corpus = append(g.corpus, s)
	}
}

// inTunnel is a frame on the uplink, some of them in a tunnel.
func (g *gauntlet) inTunnel(hook loader.Program, src, dst string) testbed.Packet {
	six := strings.Contains(src, ":")
	outer := map[bool][]string{false: {ipip4, vxlan4, plain4, "10.10.2.66"}, true: {vxlan6, "fd10:10:2::66"}}[six]
	from := outer[g.rng.IntN(len(outer))]
	p := uplink()
	switch g.rng.IntN(3) {
	case 0:
		if !six {
			p = ipip(uplink(), from, node4).TOS(uint8(g.rng.IntN(4)))
		}
	case 1:
		p = vxlan(uplink(), from, map[bool]string{false: node4, true: node6}[six], 50000).Ethernet(peerVXLANMAC, vxlanMAC)
	}
	return p.IP(netip.MustParseAddr(src), netip.MustParseAddr(dst))
}

var somePorts = []uint16{1, 22, 53, 80, 1000, 4000, 4789, 7777, 33434}

// body puts something into an IP packet.
func (g *gauntlet) body(p testbed.Packet, src, dst string) testbed.Packet {
	port := func() uint16 { return somePorts[g.rng.IntN(len(somePorts))] }
	six := strings.Contains(src, ":")
	unreachable, code := uint8(3), uint8(3)
	if six {
		unreachable, code = 1, 4
	}
	if g.rng.IntN(20) == 0 {
		p = p.TTL(uint8(g.rng.IntN(2)))
	}
	switch g.rng.IntN(12) {
	case 0, 1, 2:
		return p.TCP(port(), port(), []string{"S", "SA", "A", "FA", "R"}[g.rng.IntN(5)]).Payload(g.rng.IntN(40))
	case 3, 4:
		return p.UDP(port(), port()).Payload(g.rng.IntN(40))
	case 5:
		return p.Echo(uint16(g.rng.IntN(4)), 1)
	case 6:
		return p.EchoReply(uint16(g.rng.IntN(4)), 1)
	case 7:
		quoted := testbed.IP(netip.MustParseAddr(dst), netip.MustParseAddr(src)).UDP(port(), port()).Payload(8)
		return p.ICMPError(unreachable, code, 0, quoted)
	case 8:
		return p.Protocol([]uint8{132, 136, 47, 89, 50}[g.rng.IntN(5)]).Payload(24)
	case 9:
		return p.Fragment(uint16(g.rng.IntN(4)), 0, true).UDP(port(), port()).Payload(16)
	case 10:
		return p.Protocol(17).Fragment(uint16(g.rng.IntN(4)), 24, g.rng.IntN(2) == 0).Payload(24)
	}
	if six {
		switch g.rng.IntN(3) {
		case 0:
			return p.Extension([]uint8{0, 43, 60}[g.rng.IntN(3)], 8).TCP(port(), port(), "S")
		case 1:
			return p.TTL(255).ICMP([]uint8{133, 134, 135, 136, 137}[g.rng.IntN(5)], 0, 0).Payload(24)
		}
		return p.Extension(60, 8).Extension(60, 8).UDP(port(), port())
	}
	return p.IPv4Options(1+g.rng.IntN(4)).TCP(port(), port(), "S")
}

// next makes one packet: a sample, most often changed, or nothing but chance.
func (g *gauntlet) next() sample {
	s := g.corpus[g.rng.IntN(len(g.corpus))]
	s.data = slices.Clone(s.data)
	if g.rng.IntN(50) == 0 {
		s.data = make([]byte, 14+g.rng.IntN(120))
		for i := range s.data {
			s.data[i] = byte(g.rng.Uint32())
		}
		copy(s.data[12:14], [][]byte{{8, 0}, {0x86, 0xdd}, {8, 6}, {0x81, 0}}[g.rng.IntN(4)])
		return s
	}
	for range []int{0, 0, 1, 1, 2, 3, 8}[g.rng.IntN(7)] {
		// Headers are where it matters.
		at := g.rng.IntN(min(len(s.data), 14+80))
		switch g.rng.IntN(9) {
		case 0:
			s.data[at] ^= 1 << g.rng.IntN(8)
		case 1:
			s.data[at] = byte(g.rng.Uint32())
		case 2:
			s.data[at] = []byte{0, 1, 0x7f, 0x80, 0xff, 4, 6, 17, 41, 43, 44, 51, 58, 60, 0x45, 0x46, 0x60}[g.rng.IntN(17)]
		case 3:
			s.data = s.data[:max(14, at)]
		case 4:
			s.data = append(s.data, make([]byte, g.rng.IntN(64))...)
		case 5: // another address, at either end
			other := g.corpus[g.rng.IntN(len(g.corpus))].data
			offset, size := 26+4*g.rng.IntN(2), 4
			if s.data[12] == 0x86 {
				offset, size = 22+16*g.rng.IntN(2), 16
			}
			if len(s.data) >= offset+size && len(other) >= offset+size && other[12] == s.data[12] {
				copy(s.data[offset:offset+size], other[offset:offset+size])
			}
		case 6: // two ends changed: an answer
			swap := func(a, b, n int) {
				if len(s.data) >= b+n {
					for i := range n {
						s.data[a+i], s.data[b+i] = s.data[b+i], s.data[a+i]
					}
				}
			}
			if s.data[12] == 0x86 {
				swap(22, 38, 16)
				swap(54, 56, 2)
			} else {
				swap(26, 30, 4)
				swap(34, 36, 2)
			}
		case 7:
			binary.BigEndian.PutUint16(s.data[16:], uint16(g.rng.Uint32()))
		case 8: // where another packet is seen
			o := g.corpus[g.rng.IntN(len(g.corpus))]
			s.hook, s.on, s.from = o.hook, o.on, o.from
		}
		if len(s.data) < 20 {
			break
		}
	}
	return s
}

// TestRandomPackets sends random packets through every program. None passes that the slow
// reading has dropped; each is counted once, and each drop for a reason. A long run:
//
//	go test ./pkg/control/dataplane -run TestRandomPackets -packets 10000000 -seed 2 -timeout 2h
func TestRandomPackets(t *testing.T) {
	g := newGauntlet(t)
	const batch = 50000
	dropped, began := make(map[loader.Program]uint64), time.Now()
	sent := make(map[loader.Program]uint64)
	left, wrong := *randomPackets, make(map[string]bool)
	for left > 0 {
		g.forget(t)
		g.opened, g.begun = make(map[tuple]bool), make(map[fragment]bool)
		if len(g.judged) > 1<<20 {
			clear(g.judged)
		}
		before := g.totals(t)
		shots, passes := make(map[loader.Program]uint64), make(map[loader.Program]uint64)
		err := g.host.Do(func() error {
			for range min(batch, left) {
				s := g.next()
				r, err := g.programs.Run(s.hook, s.data, loader.Context{Ifindex: g.ifindex(s), IngressIfindex: uint32(g.index[s.from])})
				if errors.Is(err, unix.EINVAL) {
					continue // too short for the kernel to be a packet
				}
				if err != nil {
					return fmt.Errorf("%s %x: %w", s.hook, s.data, err)
				}
				drop := s.hook == loader.XDPNetwork && r.Return == xdpDrop || s.hook != loader.XDPNetwork && r.Return == shot
				if why := g.forbids(s, r.Return == redirected); why != "" && !drop {
					passes[s.hook]++
					if wrong[string(s.hook)+why] {
						continue // one of each is enough
					}
					wrong[string(s.hook)+why] = true
					t.Errorf("%s on %s, from %q: returned %d, but %s:\n%s\n%x", s.hook, s.on, s.from, r.Return, why, testbed.TextMAC(s.data), s.data)
					continue
				}
				if drop {
					shots[s.hook]++
				} else {
					passes[s.hook]++
					g.note(s)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		left -= batch
		after := g.totals(t)
		for _, hook := range []loader.Program{loader.FromWorkload, loader.ToWorkload, loader.FromNetwork, loader.ToNetwork, loader.XDPNetwork} {
			d, p := after[hook][0]-before[hook][0], after[hook][1]-before[hook][1]
			if d != shots[hook] || p != passes[hook] {
				t.Fatalf("%s: %d dropped and %d passed, counted are %d and %d", hook, shots[hook], passes[hook], d, p)
			}
			dropped[hook] += d
			sent[hook] += d + p
		}
	}
	total := uint64(0)
	for _, hook := range slices.Sorted(maps.Keys(sent)) {
		t.Logf("%s: %d packets, %d dropped", hook, sent[hook], dropped[hook])
		total += sent[hook]
	}
	t.Logf("%d packets, %.0f a second", total, float64(total)/time.Since(began).Seconds())
	for c, n := range g.counters(t) {
		if n.Packets > 0 {
			t.Logf("%s %s %d", c.Hook, c.Reason, n.Packets)
		}
	}
}

// ifindex is that of the sample's interface. An XDP program's has to have one.
func (g *gauntlet) ifindex(s sample) uint32 {
	if s.hook == loader.XDPNetwork {
		return 0
	}
	return uint32(g.index[s.on])
}

// totals are the packets dropped and passed at each hook, for reasons that have names.
func (g *gauntlet) totals(t *testing.T) map[loader.Program][2]uint64 {
	out := make(map[loader.Program][2]uint64)
	for c, n := range g.counters(t) {
		v := out[loader.Program(c.Hook)]
		switch {
		case strings.HasPrefix(c.Reason, "drop_"):
			v[0] += n.Packets
		case strings.HasPrefix(c.Reason, "pass_"):
			v[1] += n.Packets
		}
		out[loader.Program(c.Hook)] = v
	}
	return out
}
