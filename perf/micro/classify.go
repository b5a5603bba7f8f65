package micro

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"

	"calico-xdp/perf/bed"
	"calico-xdp/pkg/api"
	"calico-xdp/pkg/loader"
)

// A first packet that is denied leaves nothing behind, so it can be run again and
// again: it costs what the classification costs, without the insert.

// samples is how many different packets a classification is timed with.
const samples = 64

// rulesets are first packets from the network to a workload with policies of that many
// rules.
func rulesets() []Scenario {
	var out []Scenario
	for _, n := range []int{1, 10, 100, 1000, 10000} {
		rules := rulesOf(n)
		s := Scenario{
			Name: fmt.Sprint("classify/rules/", n), About: "a first packet that one of the rules denies, over 3 policies, each rule with a network and a port of its own",
			Tables: underRules(rules), Packets: denied(rules[:max(n-1, 1)]), Want: "drop_ingress_policy", Full: n != 10 && n != 10000,
		}
		if n == 10 {
			s.Goal = 6.8
		}
		out = append(out, s)
	}
	out = append(out, over("classify/rules/10000", "classify/rules/10", 1.25))
	for _, n := range []int{10, 10000} {
		out = append(out, Scenario{
			Name: fmt.Sprint("classify/local/", n), About: "a first packet from a workload of the host, which the last rule denies",
			Tables: underRules(rulesOf(n)), Packets: func(r *rig) []Frame {
				return []Frame{{Hook: loader.FromWorkload, Packet: r.ip("a", a4, b4).TCP(4000, 80, "S"), On: "a"}}
			}, Want: "drop_ingress_policy",
		})
	}
	out = append(out, over("classify/local/10000", "classify/local/10", 1.25))
	for _, n := range []int{10, 10000} {
		rules := bed.CrossedRules(n)
		tables := Tables{fmt.Sprint(n, " crossed rules"), func() []api.Resource { return bed.Policies("name == 'b'", rules) }}
		out = append(out, Scenario{
			Name: fmt.Sprint("classify/crossed/", n), About: "the same with rules out of 100 networks and 100 ports, paired at random",
			Tables: tables, Packets: denied(rules), Want: "drop_ingress_policy", Full: true,
		})
	}
	crossed := over("classify/crossed/10000", "classify/crossed/10", 0)
	crossed.Full = true
	return append(out, crossed)
}

// rulesOf are n rules of which the last, if it is not the only one, denies what workloads of
// the host send.
func rulesOf(n int) []bed.Rule {
	if n == 1 {
		return bed.Rules(1)
	}
	return append(bed.Rules(n-1), bed.Rule{Source: netip.MustParsePrefix("192.168.0.0/26"), Port: 80})
}

func underRules(rules []bed.Rule) Tables {
	return Tables{fmt.Sprint(len(rules), " rules"), func() []api.Resource { return bed.Policies("name == 'b'", rules) }}
}

// over compares one scenario with another one.
func over(of, baseline string, goal float64) Scenario {
	return Scenario{
		Name: of + "-over-" + strings.TrimPrefix(baseline, "classify/"), About: "the ratio of the two",
		Of: of, Baseline: baseline, Goal: goal,
	}
}

// denied are packets at random that rules deny.
func denied(rules []bed.Rule) func(*rig) []Frame {
	return func(r *rig) []Frame {
		var deny []bed.Rule
		seen := make(map[bed.Rule]bool) // of each pair the first rule decides
		for _, rule := range rules {
			pair := rule
			pair.Allow = false
			if !rule.Allow && !seen[pair] {
				deny = append(deny, rule)
			}
			seen[pair] = true
		}
		rng := rand.New(rand.NewPCG(3, uint64(len(rules))))
		out := make([]Frame, samples)
		for i := range out {
			rule := deny[rng.IntN(len(deny))]
			out[i] = r.arrives(bed.Member(rule.Source, i).String(), rule.Port)
		}
		return out
	}
}

// arrives is the first packet of a connection to b from the network.
func (r *rig) arrives(src string, port uint16) Frame {
	return Frame{Hook: loader.FromNetwork, Packet: r.ip("uplink", src, b4).TCP(4000, port, "S"), On: "uplink", From: "uplink"}
}

// blocklists are first packets from networks of a set of that many.
func blocklists() []Scenario {
	var out []Scenario
	for _, n := range []int{10, 100, 1000, 10000, 100000} {
		nets := bed.Nets(n)
		tables := Tables{fmt.Sprint(n, " networks"), func() []api.Resource { return bed.Blocklist("name == 'b'", nets) }}
		out = append(out, Scenario{
			Name: fmt.Sprint("classify/networks/", n), About: "a first packet from one of the networks of 20 to 32 bits in one set, which is denied",
			Tables: tables, Packets: listed(nets), Want: "drop_ingress_policy", Full: n > 10 && n < 100000,
		})
	}
	return append(out, over("classify/networks/100000", "classify/networks/10", 1.5))
}

// listed are packets from some of the networks.
func listed(nets []netip.Prefix) func(*rig) []Frame {
	return func(r *rig) []Frame {
		rng := rand.New(rand.NewPCG(4, uint64(len(nets))))
		out := make([]Frame, samples)
		for i := range out {
			out[i] = r.arrives(bed.Member(nets[rng.IntN(len(nets))], i).String(), 80)
		}
		return out
	}
}
