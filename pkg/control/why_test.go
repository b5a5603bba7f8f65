package control

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/dataplane"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/nodeapi"
	"calico-xdp/pkg/policy"
	"calico-xdp/pkg/policy/policytest"
	"calico-xdp/tools/testbed"
)

// stand is a node's dataplane, on a host with links for the workloads blue and red, w0
// to w3, that answers questions about resources.
type stand struct {
	*Answers
	host     *testbed.Host
	plane    *dataplane.Dataplane
	compiler *policy.Compiler
	links    []desired.Link
	view     View
}

const (
	standNode = "10.10.1.2" // policytest.Node's address, on eth0
	farNode   = "10.10.1.3" // node-2's
)

func newStand(t *testing.T) *stand {
	t.Helper()
	s := &stand{host: testbed.NewHosts(t, 1).Hosts[0], compiler: policy.NewCompiler(policytest.Node)}
	names := []string{"eth0"}
	for _, namespace := range []string{"blue", "red"} {
		for n := range 4 {
			name := fmt.Sprintf("cali%s%d", namespace, n)
			testbed.Veth(t, s.host.Namespace, name, s.host.Namespace, "peer"+name)
			names = append(names, name)
		}
	}
	for _, name := range names {
		attrs := s.host.Link(t, name).Attrs()
		l := desired.Link{Name: name, Index: attrs.Index, Kind: "veth", MTU: attrs.MTU, Up: true, MAC: desired.MAC(attrs.HardwareAddr)}
		if name == "eth0" {
			l.Addresses = []netip.Prefix{netip.MustParsePrefix(standNode + "/24")}
		}
		s.links = append(s.links, l)
	}
	pins := filepath.Join("/sys/fs/bpf", "why-"+s.host.Name)
	t.Cleanup(func() {
		if err := s.host.Do(func() error { _, err := dataplane.Detach(pins); return err }); err != nil {
			t.Error(err)
		}
	})
	if err := s.host.Do(func() (err error) {
		s.plane, err = dataplane.New(dataplane.Options{PinDir: pins}, slog.New(slog.DiscardHandler))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.plane.Close() })
	s.Answers = NewAnswers(policytest.Node, func(_ context.Context, f func(View) error) error {
		return s.host.Do(func() error { return f(s.view) }) // interfaces are this thread's
	}, s.plane, slog.New(slog.DiscardHandler))
	return s
}

// fataler is a test or a part of a property test.
type fataler interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

// take brings resources into the dataplane. Workloads get the interfaces of their names.
func (s *stand) take(t fataler, store *api.Store) {
	t.Helper()
	put := func(r api.Resource) { store.Apply(api.Change{Key: api.KeyOf(r), Resource: r}) }
	for key, w := range api.All[*api.WorkloadEndpoint](store, api.KindWorkloadEndpoint) {
		w = w.DeepCopyObject().(*api.WorkloadEndpoint)
		w.Spec.InterfaceName = "cali" + key.Namespace + strings.TrimPrefix(key.Name, "w")
		put(w)
	}
	for name, address := range map[string]string{policytest.Node: standNode, "node-2": farNode} {
		n := api.NewNode()
		n.Name = name
		n.Spec.BGP = &api.NodeBGPSpec{IPv4Address: address + "/24"}
		put(n)
	}
	tables := s.compiler.Compile(store, nil)
	state := desired.Compute(desired.Input{Node: policytest.Node, Resources: store, Links: s.links, Policy: tables})
	if err := s.host.Do(func() error {
		if err := s.plane.Ensure(context.Background(), state); err != nil {
			return err
		}
		return s.plane.Prune(context.Background(), state)
	}); err != nil {
		t.Fatal(err)
	}
	s.view = View{Node: policytest.Node, Resources: store, Tables: tables, State: state}
	s.names = newNames(policytest.Node)
}

// TestWhyAgrees asks about random packets under random resources. What the answer makes
// of the policies has to be what the programs say, and what a slow reading of the
// resources does.
func TestWhyAgrees(t *testing.T) {
	s := newStand(t)
	pairs := 0
	rapid.Check(t, func(t *rapid.T) {
		store := policytest.Stores().Draw(t, "store")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		s.take(t, store)
		oracle := policytest.NewOracle(store)
		v4, v6 := policytest.Addresses()
		v4 = append(v4, netip.MustParseAddr(standNode), netip.MustParseAddr(farNode))
		for range 30 {
			p := policytest.RandomPacket(rng, "", netip.Addr{})
			if family := v4; rng.IntN(3) > 0 {
				if p.Source.Is6() {
					family = v6
				}
				p.Source, p.Destination = family[rng.IntN(len(family))], family[rng.IntN(len(family))]
			}
			q, ok := questionOf(p)
			if !ok || p.Source == p.Destination {
				continue
			}
			w, err := s.Why(context.Background(), q)
			if err != nil {
				t.Fatalf("%+v: %v", q, err)
			}
			s.checkWhy(t, oracle, p, w)
			pairs++
		}
	})
	t.Logf("%d pairs of resources and packet", pairs)
}

// questionOf asks about a packet, if the question can be asked.
func questionOf(p policy.Packet) (nodeapi.WhyQuestion, bool) {
	q := nodeapi.WhyQuestion{Source: p.Source.String(), Destination: p.Destination.String(), Protocol: api.ProtocolName(p.Protocol)}
	switch {
	case p.Protocol == 0, p.Protocol == 1 && p.Source.Is6(), p.Protocol == 58 && p.Source.Is4():
		return q, false
	case isICMP(p.Protocol):
		if isError(p) {
			return q, false
		}
		q.ICMPType, q.ICMPCode = icmpOf(p.Protocol, p.DestinationPort)
	default:
		q.Port, q.SourcePort = int(p.DestinationPort), int(p.SourcePort)
		if api.ProtocolHasPorts(p.Protocol) && (q.Port == 0 || q.SourcePort == 0) {
			return q, false // 0 stands for a default
		}
	}
	return q, true
}

func (s *stand) checkWhy(t fataler, oracle *policytest.Oracle, p policy.Packet, w nodeapi.Why) {
	t.Helper()
	for _, n := range w.Notes {
		if strings.HasPrefix(n, "The kernel") {
			t.Fatalf("%+v: %s\n%+v", p, n, w)
		}
	}
	if w.Explanation == "" || w.Verdict == "" {
		t.Fatalf("%+v: no words: %+v", p, w)
	}
	for _, st := range w.Stages {
		kind, rest, _ := strings.Cut(strings.TrimSuffix(st.Endpoint, ")"), "(")
		key := api.Key{Kind: kind, Name: rest}
		var steps []policytest.Step
		if kind == api.KindWorkloadEndpoint {
			key.Namespace, key.Name, _ = strings.Cut(rest, "/")
			steps = oracle.Judge(key, st.Direction, p)
		} else {
			steps = oracle.JudgeHost(key, st.Stage, st.Direction, p)
		}
		if len(steps) == 0 && st.Verdict == "" && st.Staged != nil {
			continue // nothing but staged policies
		}
		last := steps[len(steps)-1]
		verdict := map[policy.Action]nodeapi.Verdict{policy.Allow: nodeapi.VerdictAllow, policy.Deny: nodeapi.VerdictDeny}[last.Action]
		if verdict != st.Verdict || st.Rule == nil || last.Rule.String() != st.Rule.ID {
			t.Fatalf("%+v: the stage is\n%+v\nand the oracle says %v", p, st, steps)
		}
		if st.Verdict == nodeapi.VerdictDeny && st.Explanation == "" {
			t.Fatalf("%+v: a drop without words: %+v", p, st)
		}
		var logged []string
		for _, step := range steps {
			if step.Action == policy.Log {
				logged = append(logged, step.Rule.String())
			}
		}
		if !slices.EqualFunc(st.Logged, logged, func(r nodeapi.Rule, id string) bool { return r.ID == id }) {
			t.Fatalf("%+v: logged are %v, and the oracle says %v", p, st.Logged, logged)
		}
	}
	// Whom the packet concerns on this node, and what they say in all.
	verdict := nodeapi.VerdictAllow
	for _, st := range w.Stages {
		if st.Verdict == nodeapi.VerdictDeny && !st.Failsafe {
			verdict = nodeapi.VerdictDeny
		}
	}
	if w.Verdict == nodeapi.VerdictAllow && verdict == nodeapi.VerdictDeny || w.Verdict == nodeapi.VerdictDeny && verdict == nodeapi.VerdictAllow && isPolicyDrop(w.Reason) {
		t.Fatalf("%+v: %+v", p, w)
	}
	for side, e := range map[string]nodeapi.End{"egress": w.Source, "ingress": w.Destination} {
		asked := slices.ContainsFunc(w.Stages, func(st nodeapi.Stage) bool {
			return st.Direction == side && st.Endpoint == fmt.Sprintf("WorkloadEndpoint(%s/%s)", e.Namespace, e.Name)
		})
		hosts := w.Source.Kind == nodeapi.EndHost // its own packets to its workloads
		if e.Kind == nodeapi.EndWorkload && e.Local && !asked && len(w.Hooks) > 0 && !hosts {
			t.Fatalf("%+v: the %s policy of %s was not asked: %+v", p, side, e, w)
		}
	}
}
