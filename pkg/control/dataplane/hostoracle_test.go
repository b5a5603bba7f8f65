package dataplane

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/loader"
	"calico-xdp/pkg/policy"
	"calico-xdp/pkg/policy/policytest"
	"calico-xdp/tools/testbed"
)

// TestHostEndpointsAgreeWithOracle is TestProgramsAgreeWithOracle for a host endpoint on
// the interface and one on all of them, in all their stages: for what the host sends and
// receives, what it forwards, and what goes to its workloads and comes from them.
func TestHostEndpointsAgreeWithOracle(t *testing.T) {
	d := unhooked(t)
	host := testbed.NewHosts(t, 1).Hosts[0] // whose kernel forwards
	compiler := policy.NewCompiler(policytest.Node)
	pairs := make(map[string]int)
	count := func(what string, safe, answer bool) {
		pairs[what]++
		if safe || answer {
			pairs[what+", failsafe"]++
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		store := policytest.Stores().Draw(t, "store")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		endpoint := policytest.HostEndpoints().Draw(t, "host endpoint")
		everywhere := policytest.HostEndpoints().Draw(t, "host endpoint on all interfaces")
		everywhere.Name = "z-" + everywhere.Name
		h, all := api.KeyOf(endpoint), api.KeyOf(everywhere)
		store.Apply(api.Change{Key: h, Resource: endpoint})
		store.Apply(api.Change{Key: all, Resource: everywhere})
		tables := compiler.Compile(store, nil)
		if _, ok := tables.HostEndpoints[h]; !ok {
			t.Fatalf("%s is not compiled", h)
		}
		failsafe := make(map[desired.FailsafePort]bool)
		for range rng.IntN(12) {
			failsafe[randomFailsafe(rng)] = true
		}
		addresses, w := hosted(t, d, store, tables, map[int]api.Key{loopback: h, desired.TunnelIndex: all}, failsafe)
		oracle := policytest.NewOracle(store)
		owner := make(map[netip.Addr]api.Key)
		for key, e := range w.Endpoints {
			for _, a := range e.Addresses {
				owner[a] = key
			}
		}
		for range 100 {
			p := policytest.RandomPacket(rng, "", netip.Addr{})
			if rng.IntN(2) == 0 { // half of them to or from the host itself
				p = policytest.RandomPacket(rng, []string{"ingress", "egress"}[rng.IntN(2)], addresses[rng.IntN(2)])
			}
			if !expressible(p) {
				continue
			}
			fromHost, toHost := slices.Contains(addresses, p.Source), slices.Contains(addresses, p.Destination)
			if owner[p.Source] == (api.Key{}) && !fromHost {
				safe := isFailsafe(failsafe, false, p.Protocol, p.DestinationPort, p.Source)
				answer := isFailsafe(failsafe, true, p.Protocol, p.SourcePort, p.Source)
				want, untracked := judgeHost(oracle, h, "ingress", !toHost, safe, answer, p)
				if want == policy.Allow {
					want = delivered(oracle, owner[p.Destination], all, p)
				}
				if got := runAt(t, d, host.Do, loader.FromNetwork, loader.Context{}, p); got != want {
					t.Fatalf("%s, in, %+v: the program says %d, the oracle %d", h, p, got, want)
				}
				wantXDP := policy.Allow
				if untracked == policy.Deny {
					wantXDP = policy.Deny
				}
				if got := runAt(t, d, host.Do, loader.XDPNetwork, loader.Context{}, p); got != wantXDP {
					t.Fatalf("%s, in, %+v: the XDP program says %d, the oracle %d", h, p, got, untracked)
				}
				count("in", safe, answer)
			}
			if from := owner[p.Source]; from != (api.Key{}) {
				safe := isFailsafe(failsafe, false, p.Protocol, p.DestinationPort, p.Source)
				want := policy.Allow
				switch a := last(oracle.JudgeHost(all, "preDNAT", "ingress", p)); {
				case a == policy.Deny && !safe:
					want = policy.Deny
				case a != policy.Allow && !toHost && last(oracle.JudgeHost(all, "forward", "ingress", p)) == policy.Deny:
					want = policy.Deny
				case last(oracle.Judge(from, "egress", p)) != policy.Allow:
					want = policy.Deny
				default:
					want = delivered(oracle, owner[p.Destination], all, p)
				}
				if got := runAt(t, d, host.Do, loader.FromWorkload, loader.Context{}, p); got != want {
					t.Fatalf("%s, from a workload, %+v: the program says %d, the oracle %d", all, p, got, want)
				}
				count("from a workload", safe, false)
			}
			if owner[p.Source] == (api.Key{}) && owner[p.Destination] == (api.Key{}) && !toHost {
				safe := isFailsafe(failsafe, true, p.Protocol, p.DestinationPort, p.Destination)
				answer := isFailsafe(failsafe, false, p.Protocol, p.SourcePort, p.Destination)
				want, _ := judgeHost(oracle, h, "egress", !fromHost, safe, answer, p)
				c := loader.Context{}
				if !fromHost {
					c.IngressIfindex = loopback
				}
				if got := runAt(t, d, host.Do, loader.ToNetwork, c, p); got != want {
					t.Fatalf("%s, out, %+v: the program says %d, the oracle %d", h, p, got, want)
				}
				count("out", safe, answer)
			}
		}
	})
	t.Logf("%v pairs of policy and packet", pairs)
}

// hosted brings the resources into a dataplane with the host endpoint on the loopback
// interface, where BPF_PROG_TEST_RUN is. It returns two addresses of the host.
func hosted(t *rapid.T, d *Dataplane, store *api.Store, tables *policy.Tables, on map[int]api.Key, failsafe map[desired.FailsafePort]bool) ([]netip.Addr, *desired.Dataplane) {
	w := desired.Dataplane{
		Policy: tables, VXLANPort: 4789, Endpoints: localEndpoints(store), ToHost: desired.ToHostReturn,
		HostEndpoints: on, Failsafe: failsafe, Routes: make(map[netip.Prefix]desired.Route),
	}
	local := make(map[netip.Addr]bool)
	for _, e := range w.Endpoints {
		for _, a := range e.Addresses {
			local[a] = true
		}
	}
	var host []netip.Addr
	v4, v6 := policytest.Addresses()
	for _, family := range [][]netip.Addr{v4, v6} {
		i := slices.IndexFunc(family, func(a netip.Addr) bool { return !local[a] })
		host = append(host, family[i])
		w.Routes[netip.PrefixFrom(family[i], family[i].BitLen())] = desired.Route{Kind: desired.RouteHost}
	}
	state := &desired.State{Dataplane: w}
	pretendAttached(d, state)
	if err := d.Ensure(context.Background(), state); err != nil {
		t.Fatal(err)
	}
	if err := d.Prune(context.Background(), state); err != nil {
		t.Fatal(err)
	}
	return host, &state.Dataplane
}

func randomFailsafe(rng *rand.Rand) desired.FailsafePort {
	nets := []string{"", "10.0.0.0/28", "0.0.0.0/0", "::/0", "fd00::/16", "10.0.0.2/32"}
	p := desired.FailsafePort{
		Egress: rng.IntN(2) == 0, Protocol: []uint8{6, 17, 132}[rng.IntN(3)],
		Port: policytest.RandomPacket(rng, "", netip.Addr{}).DestinationPort,
	}
	if net := nets[rng.IntN(len(nets))]; net != "" {
		p.Net = netip.MustParsePrefix(net)
	}
	return p
}

func isFailsafe(ports map[desired.FailsafePort]bool, egress bool, protocol uint8, port uint16, other netip.Addr) bool {
	for p := range ports {
		if p.Egress == egress && p.Protocol == protocol && p.Port == port && (!p.Net.IsValid() || p.Net.Contains(other)) {
			return true
		}
	}
	return false
}

// delivered is what becomes of a packet where it goes, if that is a workload: its policy,
// and that of the host endpoint on all interfaces.
func delivered(o *policytest.Oracle, to, all api.Key, p policy.Packet) policy.Action {
	if to == (api.Key{}) {
		return policy.Allow
	}
	if a := last(o.Judge(to, "ingress", p)); a != policy.Allow {
		return a
	}
	if a := last(o.JudgeHost(all, "forward", "egress", p)); a == policy.Deny {
		return a
	}
	return policy.Allow
}

func last(steps []policytest.Step) policy.Action {
	if len(steps) == 0 {
		return policy.Continue
	}
	return steps[len(steps)-1].Action
}

// judgeHost is the order in which the stages are asked; untracked is what the first one
// says. A failsafe port is no matter of any stage but that for what is forwarded, and the
// first stage, which sees each packet alone, has no say about answers from one.
func judgeHost(o *policytest.Oracle, h api.Key, direction string, forwarded, safe, answer bool, p policy.Packet) (verdict, untracked policy.Action) {
	untracked = policy.Continue
	if !safe && !answer {
		untracked = last(o.JudgeHost(h, "untracked", direction, p))
	} else if last(o.JudgeHost(h, "untracked", direction, p)) == policy.Allow {
		untracked = policy.Allow
	}
	if untracked != policy.Continue {
		return untracked, untracked
	}
	if direction == "ingress" {
		if a := last(o.JudgeHost(h, "preDNAT", direction, p)); a == policy.Allow || a == policy.Deny && !safe {
			return a, untracked
		}
	}
	switch {
	case forwarded:
		if a := last(o.JudgeHost(h, "forward", direction, p)); a != policy.Continue {
			return a, untracked
		}
		return policy.Allow, untracked
	case safe:
		return policy.Allow, untracked
	}
	return last(o.JudgeHost(h, "normal", direction, p)), untracked
}
