package dataplane

import (
	"fmt"
	"testing"

	"calico-xdp/pkg/loader"
	"calico-xdp/tools/testbed"
)

// Fragments pass under the first one's verdict, in order; see policytest for verdicts.
func TestFragments(t *testing.T) {
	b := newBed(t)
	for _, family := range []struct{ name, from, to, outside string }{
		{"IPv4", w1, w2, outside4}, {"IPv6", x1, x2, outside6},
	} {
		for _, way := range []struct {
			name, from string
			hook       loader.Program
			passes     string
		}{
			{"from a workload", family.from, loader.FromWorkload, "redirect pass_to_workload"},
			{"from the network", family.outside, loader.FromNetwork, "redirect pass_to_workload"},
			{"from the stack", family.outside, loader.ToWorkload, "next pass_to_workload"},
		} {
			part := func(id uint16, offset, size int, more bool) testbed.Packet {
				p := frame(way.from, family.to)
				if offset == 0 && size >= 8 {
					return p.Fragment(id, 0, more).UDP(4000, 53).Payload(size - 8)
				}
				if family.name == "IPv6" {
					// What follows the fragment header is the payload as it is.
					return p.Fragment(id, offset, more).UDP(0x6162, 0x6364).Payload(size - 8)
				}
				return p.Protocol(17).Fragment(id, offset, more).Payload(size)
			}
			// On from_network what belongs to no workload's flow is the host's.
			lost := "shot drop_fragment"
			if way.hook == loader.FromNetwork {
				lost = "next pass_not_ours"
			}
			send := func(p testbed.Packet, want string) trial {
				// Only what becomes of them is of interest.
				return trial{name: "fragment", hook: way.hook, packet: p, want: want, on: map[bool]string{true: "eth0"}[way.hook == loader.FromNetwork],
					from: map[bool]string{true: "eth0"}[way.hook == loader.ToWorkload], check: func(*testing.T, []byte, []byte) {}}
			}
			first := func(id uint16) trial { return send(part(id, 0, 64, true), way.passes) }
			for name, sequence := range map[string][]trial{
				"in order":            {first(1), send(part(1, 64, 64, true), way.passes), send(part(1, 128, 40, false), way.passes)},
				"without the first":   {send(part(1, 64, 64, true), lost)},
				"of another packet":   {first(1), send(part(2, 64, 64, false), lost)},
				"one is missing":      {first(1), send(part(1, 128, 40, false), lost)},
				"overlap":             {first(1), send(part(1, 32, 64, false), lost), send(part(1, 56, 64, false), lost)},
				"twice":               {first(1), send(part(1, 64, 64, true), way.passes), send(part(1, 64, 64, true), lost)},
				"behind the last":     {first(1), send(part(1, 64, 40, false), way.passes), send(part(1, 104, 40, false), lost)},
				"two packets at once": {first(1), first(2), send(part(1, 64, 40, false), way.passes), send(part(2, 64, 40, false), way.passes)},
			} {
				t.Run(fmt.Sprintf("%s %s %s", family.name, way.name, name), func(t *testing.T) {
					b.forget(t)
					for _, s := range sequence {
						b.expect(t, s)
					}
				})
			}
		}
	}
	malformed := "shot drop_malformed"
	b.fire(t, []trial{
		{name: "too small for its header", hook: loader.FromWorkload, packet: frame(w1, w2).Fragment(5, 0, true).Protocol(6).Payload(8), want: malformed},
		{name: "too small for its header, with something behind it", hook: loader.FromWorkload, want: malformed,
			raw: append(frame(w1, w2).Fragment(5, 0, true).Protocol(6).Payload(8).Bytes(), make([]byte, 18)...)},
		{name: "beyond what a packet can hold", hook: loader.FromWorkload, packet: frame(w1, w2).Protocol(17).Fragment(5, 65528, false).Payload(64), want: malformed},
		{name: "not a multiple of eight", hook: loader.FromWorkload, packet: frame(w1, w2).Fragment(5, 0, true).UDP(1, 2).Payload(5), want: malformed},
		{name: "the only fragment", hook: loader.FromWorkload, packet: frame(x1, x2).Fragment(5, 0, false).UDP(1, 2), want: "redirect pass_to_workload",
			check: func(*testing.T, []byte, []byte) {}},
	})
}
