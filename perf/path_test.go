// Package perf measures what each path costs. Figures are ratios to a program that
// does nothing, taken in the same run and interleaved with it, since machines differ
// and are noisy.
package perf

import (
	"net/netip"
	"slices"
	"testing"

	"calico-xdp/pkg/loader"
	"calico-xdp/pkg/maps"
	"calico-xdp/tools/testbed"
)

// The hop limit falls by one on every run on the same packet buffer, so a round
// cannot have more runs than this.
const runsPerRound = 250

// bench is two workloads that may talk, on tables of its own.
type bench struct {
	maps     *maps.Maps
	programs *loader.Programs
	empty    *loader.Empty
}

func newBench(b *testing.B) *bench {
	b.Helper()
	m, err := maps.Open("")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { m.Close() })
	programs, err := loader.Load(m.Handles(), loader.Links{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { programs.Close() })
	empty, err := loader.NewEmpty()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { empty.Close() })

	const loopback = 1 // where BPF_PROG_TEST_RUN says the packet is
	const ruleset = 1  // one rule, one class of everything: allow
	if err := m.Words.Write(ruleset, []uint64{1 | 1<<32, 1, uint64(maps.RuleAllow), 1, 1, 1, 1}); err != nil {
		b.Fatal(err)
	}
	for slot, w := range workloads {
		e := maps.Endpoint{
			Egress: ruleset, Ingress: ruleset, Generation: 1, Ifindex: loopback,
			Mac: w.mac, Flags: maps.EndpointVeth | maps.EndpointMAC,
		}
		if err := m.Endpoints.Put(uint32(slot+1), e); err != nil {
			b.Fatal(err)
		}
		for _, a := range w.addresses {
			if err := m.Workloads.Put(maps.NewAddress(netip.MustParseAddr(a)), uint32(slot+1)); err != nil {
				b.Fatal(err)
			}
		}
	}
	return &bench{m, programs, empty}
}

var workloads = []struct {
	mac       [6]byte
	addresses []string
}{
	{[6]byte{2, 0, 0, 0, 0, 1}, []string{"192.168.0.1", "fd00::1"}},
	{[6]byte{2, 0, 0, 0, 0, 2}, []string{"192.168.0.2", "fd00::2"}},
}

const (
	firstMAC  = "02:00:00:00:00:01"
	secondMAC = "02:00:00:00:00:02"
	hostMAC   = "ee:ee:ee:ee:ee:ee"
)

// establish makes both ends of a flow speak until it is in the flow table.
func (n *bench) establish(b *testing.B, there, back, again []byte) {
	b.Helper()
	for _, packet := range [][]byte{there, back, again} {
		if _, err := n.programs.Run(loader.FromWorkload, packet, loader.Context{}); err != nil {
			b.Fatal(err)
		}
	}
	flows, err := n.maps.Flows.Load()
	if err != nil {
		b.Fatal(err)
	}
	if len(flows) != 1 {
		b.Fatalf("%d flows are established, want 1", len(flows))
	}
}

// measure times packet at the hook beside the empty program, and reports the medians:
// nanoseconds above the empty program, and the ratio to it.
func (n *bench) measure(b *testing.B, hook loader.Program, packet []byte) {
	b.Helper()
	var path, empty []float64
	for b.Loop() {
		e, err := n.empty.Time(packet, runsPerRound)
		if err != nil {
			b.Fatal(err)
		}
		p, err := n.programs.Time(hook, packet, runsPerRound)
		if err != nil {
			b.Fatal(err)
		}
		empty, path = append(empty, float64(e.Nanoseconds())), append(path, float64(p.Nanoseconds()))
	}
	e, p := median(empty), median(path)
	b.ReportMetric(0, "ns/op") // the time of a round says nothing
	b.ReportMetric(e, "empty-ns")
	b.ReportMetric(p, "path-ns")
	b.ReportMetric(p-e, "above-ns")
	b.ReportMetric(p/e, "ratio")
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// An established flow between two workloads of this node.
func BenchmarkEstablishedLocal(b *testing.B) {
	ethernet := func(from string) testbed.Packet { return testbed.Ethernet(from, hostMAC) }
	for _, family := range []struct {
		name        string
		there, back testbed.Packet
	}{
		{"IPv4", ethernet(firstMAC).IPv4("192.168.0.1", "192.168.0.2"), ethernet(secondMAC).IPv4("192.168.0.2", "192.168.0.1")},
		{"IPv6", ethernet(firstMAC).IPv6("fd00::1", "fd00::2"), ethernet(secondMAC).IPv6("fd00::2", "fd00::1")},
	} {
		b.Run(family.name, func(b *testing.B) {
			n := newBench(b)
			there, back := family.there.TTL(255), family.back.TTL(255)
			n.establish(b,
				there.TCP(4000, 80, "S").Bytes(), back.TCP(80, 4000, "SA").Bytes(), there.TCP(4000, 80, "A").Bytes())
			n.measure(b, loader.FromWorkload, there.TCP(4000, 80, "A").Payload(10).Bytes())
		})
	}
}
