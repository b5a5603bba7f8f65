package macro

import (
	"fmt"
	"net/netip"

	"calico-xdp/perf/bed"
	"calico-xdp/pkg/loader"
	"calico-xdp/tools/testbed"
)

// First packets per second: every packet opens a connection, from another port and
// address each time, and is allowed. All who keep state make an entry for it.

// variety is enough for no two packets of a run to be of one connection.
var variety = loader.Variety{Ports: 60000, Sources: 200}

// firsts are those scenarios.
func firsts() []Scenario {
	var out []Scenario
	for _, n := range []int{10, 100, 1000, 10000} {
		out = append(out, Scenario{
			Name: fmt.Sprint("first/rules/", n), Quick: n == 10000,
			About: "first packets of TCP connections from the network that the last rule allows",
			Lanes: func(r *Run, t testbed.T) []lane {
				rules := bed.Rules(n)
				last := rules[n-1]
				out := lanes(t, r.underRules(rules, true), func(s *site) sampler {
					return r.opening(t, s, bed.Member(last.Source, 0), last.Port)
				})
				if n == 10 {
					return out
				}
				few := bed.Rules(10)
				return append(out, lane{"calico-xdp/10", r.opening(t, newOurs(t, bed.Policies("name == 'b'", few)), bed.Member(few[9].Source, 0), few[9].Port)})
			},
			// Not less than one by the 1.25 that a classification may cost more.
			Figures: []Figure{{Unit: "packets/s", Goals: map[string]float64{"calico-xdp/10": 1 / 1.25}}},
		})
	}
	for _, n := range []int{10, 1000, 100000} {
		out = append(out, Scenario{
			Name: fmt.Sprint("first/networks/", n), Quick: n == 100000,
			About: "the same from addresses that a set of denied networks does not hold",
			Lanes: func(r *Run, t testbed.T) []lane {
				nets := bed.Nets(n)
				from := bed.Outside(nets, variety.Sources)
				out := lanes(t, r.underBlocklist(nets, true), func(s *site) sampler {
					return r.opening(t, s, from, 80)
				})
				if n == 10 {
					return out
				}
				return append(out, lane{"calico-xdp/10", r.opening(t, newOurs(t, bed.Blocklist("name == 'b'", bed.Nets(10))), from, 80)})
			},
			Figures: []Figure{{Unit: "packets/s", Goals: map[string]float64{"calico-xdp/10": 1 / 1.5}}},
		})
	}
	return out
}

// opening sends first packets only, from that address on.
func (r *Run) opening(t testbed.T, s *site, from netip.Addr, port uint16) sampler {
	p := s.fromWorld(t, from).TCP(1024, port, "S").Payload(frameBytes - 54)
	f := newFlood(t, s.world, p.Bytes(), variety, sink(t, s.b))
	return f.sampler(r.Sample)
}
