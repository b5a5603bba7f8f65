package dataplane

import (
	"fmt"
	"strings"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/loader"
	"calico-xdp/pkg/policy"
	"calico-xdp/pkg/policy/policytest"
)

// TestEveryStepOfARelabeling: what labels say of an endpoint decides which rules it has and
// which addresses these are about, both at once.
func TestEveryStepOfARelabeling(t *testing.T) {
	text := func(format string, args ...any) api.Resource {
		r, err := api.Decode([]byte(fmt.Sprintf(format, args...)))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	workload := func(n int, node, side string) api.Resource {
		return text(`{apiVersion: projectcalico.org/v3, kind: WorkloadEndpoint, metadata: {namespace: blue, name: w%d, labels: {%s}}, spec: {node: %s,
  orchestrator: k8s, workload: w%d, pod: w%d, endpoint: eth0, interfaceName: cali%d, profiles: [team], ipNetworks: [10.0.0.%d/32, "fd00::%d/128"]}}`,
			n, side, node, n, n, n, n, n)
	}
	profile := func(side string) api.Resource {
		return text(`{apiVersion: projectcalico.org/v3, kind: Profile, metadata: {name: team}, spec: {labelsToApply: {team: %s}}}`, side)
	}
	packet := func(from, to int) probe {
		p := ask(byte(from), byte(to), 6, 80)
		if to == 1 {
			return probe{loader.ToWorkload, loader.Context{IngressIfindex: loopback}, p, true}
		}
		return probe{loader.FromWorkload, loader.Context{}, p, true}
	}
	s := newStepper(t)
	for _, another := range []bool{false, true} {
		for name, change := range map[string][]api.Resource{
			"the endpoint":         {workload(1, policytest.Node, "side: r")},
			"both":                 {workload(1, policytest.Node, "side: r"), workload(3, "node-2", "side: r")},
			"the peer, and rules":  {workload(3, "node-2", "side: r"), text(sides, "extra", "all()", "1", "side == 'r'", "side == 'r'")},
			"a profile":            {profile("r")},
			"a profile, and a net": {profile("r"), text(`{apiVersion: projectcalico.org/v3, kind: GlobalNetworkSet, metadata: {name: n}, spec: {nets: [10.0.0.0/29]}}`)},
		} {
			t.Run(fmt.Sprintf("%s, by another process: %v", name, another), func(t *testing.T) {
				store := api.NewStore()
				put := func(r api.Resource) api.Change {
					c := api.Change{Key: api.KeyOf(r), Resource: r}
					store.Apply(c)
					return c
				}
				put(profile("l"))
				put(workload(1, policytest.Node, "side: l"))
				put(workload(2, policytest.Node, "side: r"))
				put(workload(3, "node-2", "side: l"))
				put(workload(4, "node-2", "side: r"))
				for _, is := range []string{"l", "r"} {
					self := fmt.Sprintf("side == '%s'", is)
					if strings.HasPrefix(name, "a profile") {
						self = fmt.Sprintf("team == '%s'", is)
					}
					put(text(sides, "side-"+is, self, "10", self, self))
				}
				compiler := policy.NewCompiler(policytest.Node)
				s.apply(t, s.want(store, compiler.Compile(store, nil)))
				var changes []api.Change
				for _, r := range change {
					changes = append(changes, put(r))
				}
				if another {
					s.Dataplane, compiler, changes = restarted(s.Dataplane), policy.NewCompiler(policytest.Node), nil
				}
				want := s.want(store, compiler.Compile(store, changes))
				var packets []probe
				for _, p := range []probe{packet(3, 1), packet(4, 1), packet(1, 3), packet(1, 4)} {
					p.context.Ifindex = uint32(s.index[api.Key{Kind: api.KindWorkloadEndpoint, Namespace: "blue", Name: "w1"}])
					packets = append(packets, p)
				}
				for _, line := range s.follow(t, want, packets, 1, 0, nil) {
					t.Error(line)
				}
			})
		}
	}
}

// sides is a policy that lets those it selects send from and to some, and the other way round.
const sides = `{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: %s}, spec: {selector: "%s", order: %s, types: [Ingress, Egress],
  ingress: [{action: Allow, source: {selector: "%s"}}], egress: [{action: Allow, destination: {selector: "%[4]s"}, source: {selector: "%[5]s"}}]}}`
