package micro

import (
	"fmt"
	"math/rand/v2"

	"calico-xdp/perf/bed"
	"calico-xdp/pkg/api"
	"calico-xdp/pkg/loader"
)

// earliest are packets at the XDP hook of an uplink.
func earliest() []Scenario {
	out := []Scenario{{
		Name: "xdp/pass", About: "the XDP program of an uplink without untracked policy", Tables: noPolicy, Want: "pass_not_ours",
		Packets: func(r *rig) []Frame { return []Frame{r.early("10.200.0.1", 80)} },
	}}
	for _, n := range []int{10, 100000} {
		nets := bed.Nets(n)
		tables := Tables{fmt.Sprint("untracked, ", n, " networks"), func() []api.Resource { return bed.Untracked("here", nets) }}
		denied := Scenario{
			Name: fmt.Sprint("xdp/deny/", n), About: "a packet from one of the networks in one set that an untracked policy denies",
			Tables: tables, Want: "drop_untracked", Full: n == 10, Packets: func(r *rig) []Frame {
				rng := rand.New(rand.NewPCG(6, uint64(n)))
				frames := make([]Frame, samples)
				for i := range frames {
					frames[i] = r.early(bed.Member(nets[rng.IntN(n)], i).String(), 80)
				}
				return frames
			},
		}
		if n == 100000 {
			denied.Goal = 6
		}
		passes := Scenario{
			Name: fmt.Sprint("xdp/allow/", n), About: "a packet from elsewhere, which passes on to from_network",
			Tables: tables, Want: "pass_not_ours", Full: n == 10, Packets: func(r *rig) []Frame {
				return []Frame{r.early(bed.Outside(nets, 1).String(), 80)}
			},
		}
		out = append(out, denied, passes)
	}
	return out
}

// early is a packet to the host, as it comes in.
func (r *rig) early(src string, port uint16) Frame {
	return Frame{Hook: loader.XDPNetwork, Packet: r.ip("uplink", src, host4).TCP(4000, port, "S"), On: "uplink"}
}
