package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"
	networking "k8s.io/api/networking/v1"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/nodeapi"
	"calico-xdp/pkg/policy"
	"calico-xdp/pkg/policy/policytest"
	"calico-xdp/tools/testbed"
)

// smallCluster has blue/w0 to w2 on this node and the reds on another one.
func smallCluster() *api.Store {
	store := api.NewStore()
	for i, x := range []struct{ namespace, name, node, pod, role string }{
		{"blue", "w0", policytest.Node, "web-1", "web"}, {"blue", "w1", policytest.Node, "db-1", "db"}, {"blue", "w2", policytest.Node, "", "lone"},
		{"red", "w0", "node-2", "web-1", "web"}, {"red", "w1", "node-2", "cache-1", "cache"},
	} {
		w := api.NewWorkloadEndpoint()
		w.Namespace, w.Name, w.Labels = x.namespace, x.name, map[string]string{"role": x.role}
		w.Spec.Node, w.Spec.Pod, w.Spec.Orchestrator, w.Spec.ContainerID = x.node, x.pod, "k8s", "0123456789ab"+x.role+x.namespace
		w.Spec.IPNetworks = []string{fmt.Sprintf("10.0.0.%d/32", i+1)}
		if x.role == "db" {
			w.Spec.IPNetworks = append(w.Spec.IPNetworks, "fd00::2/128")
		}
		if x.role != "lone" {
			w.Spec.Profiles = []string{"open"}
		}
		put(store, w)
	}
	p := v3.NewProfile()
	p.Name = "open"
	p.Spec = v3.ProfileSpec{Ingress: []v3.Rule{{Action: "Allow"}}, Egress: []v3.Rule{{Action: "Allow"}}}
	put(store, p)
	return store
}

func put(store *api.Store, r api.Resource) { store.Apply(api.Change{Key: api.KeyOf(r), Resource: r}) }

// globalPolicy is one that is for the ingress of a role.
func globalPolicy(tier, name string, order float64, role string, rules ...v3.Rule) *v3.GlobalNetworkPolicy {
	p := v3.NewGlobalNetworkPolicy()
	p.Name = name
	p.Spec = v3.GlobalNetworkPolicySpec{
		Tier: tier, Order: &order, Selector: "role == '" + role + "'", Types: []v3.PolicyType{v3.PolicyTypeIngress}, Ingress: rules,
	}
	return p
}

func TestAnswers(t *testing.T) {
	s := newStand(t)
	t.Run("names", func(t *testing.T) { testNames(t, s) })
	t.Run("refused", func(t *testing.T) { testRefused(t, s) })
	t.Run("words", func(t *testing.T) { testWords(t, s) })
}

func testNames(t *testing.T, s *stand) {
	store := smallCluster()
	h := v3.NewHostEndpoint()
	h.Name = "uplink"
	h.Spec.Node, h.Spec.InterfaceName, h.Spec.ExpectedIPs = policytest.Node, "eth0", []string{standNode}
	put(store, h)
	s.take(t, store)
	for text, want := range map[string]string{
		"blue/w0":          "workload blue/w0 here 10.0.0.1",
		"web-1":            "\"web-1\" can be wep/blue/w0, wep/red/w0: name one of them, or its address",
		"red/web-1":        "workload red/w0 on node-2 10.0.0.4",
		"db-1":             "workload blue/w1 here 10.0.0.2 fd00::2",
		"w2":               "workload blue/w2 here 10.0.0.3",
		"wep/red/w1":       "workload red/w1 on node-2 10.0.0.5",
		"0123456789abdb":   "workload blue/w1 here 10.0.0.2 fd00::2",
		"0123456789":       "\"0123456789\" is no address, and no workload endpoint, pod, workload, host endpoint or node has that name",
		"host":             "host node-1 here 10.10.1.2",
		"node-1":           "host node-1 here 10.10.1.2",
		"node/node-2":      "node node-2 on node-2 10.10.1.3",
		"uplink":           "host node-1 here 10.10.1.2",
		"hep/uplink":       "host node-1 here 10.10.1.2",
		"10.0.0.5":         "workload red/w1 on node-2 10.0.0.5",
		"::ffff:10.0.0.1":  "workload blue/w0 here 10.0.0.1",
		"10.10.1.3":        "node node-2 on node-2 10.10.1.3",
		"10.10.1.2":        "host node-1 here 10.10.1.2",
		"192.0.2.1":        "external  10.0.0.0 192.0.2.1",
		"fd00::2":          "workload blue/w1 here fd00::2",
		"10.0.0.0/24":      "10.0.0.0/24 is a network: name one address",
		"":                 "the name is empty",
		"green/w0":         "\"green/w0\" is no address, and no workload endpoint, pod, workload, host endpoint or node has that name",
		"pool/blue/w0":     "\"pool/blue/w0\" is no address, and no workload endpoint, pod, workload, host endpoint or node has that name",
		"a/b/c/d":          "\"a/b/c/d\" is no address, and no workload endpoint, pod, workload, host endpoint or node has that name",
		"wep/node-2":       "\"wep/node-2\" is no address, and no workload endpoint, pod, workload, host endpoint or node has that name",
		"namespace/red/w0": "\"namespace/red/w0\" is no address, and no workload endpoint, pod, workload, host endpoint or node has that name",
	} {
		p, err := s.resolve(s.view, text)
		got := fmt.Sprint(err)
		if err == nil {
			where := "on " + p.Node
			if p.Local {
				where = "here"
			}
			got = fmt.Sprintf("%s %s %s", p.Kind, strings.TrimPrefix(p.End.String(), "node "), where)
			if p.Kind == nodeapi.EndExternal {
				got = "external  10.0.0.0"
			}
			for _, a := range p.addresses {
				got += " " + a.String()
			}
		}
		if got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
		if question := (*nodeapi.QuestionError)(nil); err != nil && !errors.As(err, &question) {
			t.Errorf("%q: %v is not the asker's", text, err)
		}
	}
}

func testRefused(t *testing.T, s *stand) {
	s.take(t, smallCluster())
	kind := func(n int) *int { return &n }
	for _, test := range []struct {
		q    nodeapi.WhyQuestion
		want string
	}{
		{nodeapi.WhyQuestion{Source: "blue/w0", Destination: "db-1", Protocol: "tpc"}, `protocol "tpc" is none of TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite, and no number from 1 to 255`},
		{nodeapi.WhyQuestion{Source: "blue/w0", Destination: "db-1", Protocol: "icmp", Port: 7}, "ICMP has no ports"},
		{nodeapi.WhyQuestion{Source: "blue/w0", Destination: "db-1", Port: 65536}, "port 65536 is not a number from 1 to 65535"},
		{nodeapi.WhyQuestion{Source: "blue/w0", Destination: "db-1", ICMPType: kind(8)}, "TCP has no ICMP type"},
		{nodeapi.WhyQuestion{Source: "blue/w0", Destination: "db-1", Protocol: "1", ICMPCode: kind(256)}, "ICMP code 256 is not a number from 0 to 255"},
		{nodeapi.WhyQuestion{Source: "blue/w0", Destination: "db-1", Protocol: "1", ICMPType: kind(3)},
			"this ICMP message is an error: it passes with the flow that it quotes; ask about that flow"},
		{nodeapi.WhyQuestion{Source: "blue/w0", Destination: "fd00::2"}, "blue/w0 and blue/w1 do not have addresses of the same family"},
		{nodeapi.WhyQuestion{Source: "blue/w0", Destination: "db-1", Protocol: "icmpv6"}, "blue/w0 and blue/w1 do not have an IPv6 address each"},
		{nodeapi.WhyQuestion{Source: "blue/w0", Destination: "10.0.0.1"}, "blue/w0 and 10.0.0.1 are the same: what it sends to itself is nobody else's"},
	} {
		if _, err := s.Why(t.Context(), test.q); err == nil || err.Error() != test.want {
			t.Errorf("%+v: %v, want %s", test.q, err, test.want)
		}
	}
	early := NewAnswers("x", func(context.Context, func(View) error) error { return errNothingYet }, s.plane, slog.New(slog.DiscardHandler))
	if _, err := early.Why(t.Context(), nodeapi.WhyQuestion{}); !errors.Is(err, errNothingYet) {
		t.Errorf("got %v", err)
	}
}

// testWords checks what drops are explained with, also those that no rule makes.
func testWords(t *testing.T, s *stand) {
	store := smallCluster()
	tcp := numorstring.ProtocolFromString("TCP")
	put(store, globalPolicy("default", "empty", 1, "web"))
	put(store, globalPolicy("default", "logs", 1, "db", v3.Rule{Action: "Log"}))
	put(store, globalPolicy("nowhere", "lost", 1, "cache"))
	put(store, globalPolicy("default", "web2", 2, "web", v3.Rule{Action: "Allow", Protocol: &tcp, Destination: v3.EntityRule{Ports: []numorstring.Port{{MinPort: 443, MaxPort: 443}}}}))
	gone := api.NewWorkloadEndpoint()
	gone.Namespace, gone.Name, gone.Spec.Node, gone.Spec.IPNetworks = "green", "w0", policytest.Node, []string{"10.0.0.77"}
	put(store, gone)
	s.take(t, store)
	for _, test := range []struct {
		from, to string
		want     []string // the explanation, then parts of notes
	}{
		{"db-1", "blue/w0", []string{"denied at the end of tier default: 2 policies (GlobalNetworkPolicy empty, GlobalNetworkPolicy web2) select blue/w0 for ingress, and no rule of theirs matches"}},
		{"blue/w0", "db-1", []string{"denied at the end of tier default: GlobalNetworkPolicy logs selects blue/w1 for ingress, and no rule of it matches",
			"GlobalNetworkPolicy logs has only Log rules for ingress: it selects blue/w1 and allows nothing, so the end of the tier denies what it logs."}},
		{"blue/w2", "blue/w0", []string{"denied: no policy selects blue/w2 for egress, and it has no profile"}},
		{"blue/w0", "blue/w2", []string{"denied: no policy selects blue/w2 for ingress, and it has no profile"}},
		{"10.0.0.77", "blue/w0", []string{"the interface caligreen0 of green/w0 does not exist (yet)"}},
		{"blue/w0", "host", []string{"what workloads send to their own host is dropped: defaultEndpointToHostAction of FelixConfiguration is Drop"}},
		{"blue/w0", "224.0.0.1", []string{"multicast and broadcast do not leave a workload"}},
		{"red/w0", "red/w1", []string{"neither end is on this node, which has no say about the packet",
			"The egress policy of red/w0 and the ingress policy of red/w1 are asked on their node node-2. Ask there: calicoctl why 10.0.0.4 10.0.0.5 --protocol TCP --port 80"}},
		{"red/w0", "192.0.2.1", []string{"neither end is on this node, which has no say about the packet", "The egress policy of red/w0 is asked on its node node-2"}},
		{"host", "blue/w0", []string{"allowed: no policy of this node is about it", "What a node itself sends to its own workloads is subject to no policy."}},
	} {
		w, err := s.Why(t.Context(), nodeapi.WhyQuestion{Source: test.from, Destination: test.to})
		if err != nil {
			t.Errorf("%s -> %s: %v", test.from, test.to, err)
			continue
		}
		if w.Explanation != test.want[0] {
			t.Errorf("%s -> %s: %s\nwant %s", test.from, test.to, w.Explanation, test.want[0])
		}
		for _, part := range test.want[1:] {
			if !slices.ContainsFunc(w.Notes, func(n string) bool { return strings.Contains(n, part) }) {
				t.Errorf("%s -> %s: notes %q, want %s", test.from, test.to, w.Notes, part)
			}
		}
	}
}

func TestRuleText(t *testing.T) {
	tcp, ipv4 := numorstring.ProtocolFromString("TCP"), 4
	np := v3.NewNetworkPolicy()
	np.Namespace, np.Name = "blue", "p"
	np.Spec.Egress = []v3.Rule{
		{Action: "Allow"},
		{Action: "Deny", IPVersion: &ipv4, Protocol: &tcp, Metadata: &v3.RuleMetadata{Annotations: map[string]string{"a": "b"}},
			Source:      v3.EntityRule{Selector: "role == 'web'", Nets: []string{"10.0.0.0/8", "::/0"}},
			Destination: v3.EntityRule{NotSelector: "a in {'b', 'c'}", Ports: []numorstring.Port{{MinPort: 80, MaxPort: 80}, {MinPort: 1, MaxPort: 9}, numorstring.NamedPort("http")}}},
	}
	staged := &api.StagedKubernetesNetworkPolicy{}
	staged.Namespace, staged.Name = "blue", "k"
	staged.Spec.Ingress = []networking.NetworkPolicyIngressRule{{From: []networking.NetworkPolicyPeer{{IPBlock: &networking.IPBlock{CIDR: "10.0.0.0/8"}}}}}
	profile := v3.NewProfile()
	profile.Name, profile.Spec.Ingress = "p", []v3.Rule{{Action: "Pass", Source: v3.EntityRule{Selector: "!has(x)"}}}
	for _, test := range []struct {
		r    api.Resource
		id   policy.RuleID
		want string
	}{
		{np, policy.RuleID{Direction: "egress", Index: 0}, "{action: Allow}"},
		{np, policy.RuleID{Direction: "egress", Index: 1}, `{action: Deny, ipVersion: 4, protocol: TCP, source: {nets: [10.0.0.0/8, "::/0"], selector: role == 'web'}, ` +
			`destination: {ports: [80, "1:9", http], notSelector: "a in {'b', 'c'}"}}`},
		{np, policy.RuleID{Direction: "egress", Index: 2}, ""},
		{np, policy.RuleID{Direction: "egress", Index: -1}, ""},
		{np, policy.RuleID{Direction: "ingress", Index: 0}, ""},
		{staged, policy.RuleID{Direction: "ingress", Index: 0}, "{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}"},
		{staged, policy.RuleID{Direction: "egress", Index: 0}, ""},
		{profile, policy.RuleID{Direction: "ingress", Index: 0}, `{action: Pass, source: {selector: "!has(x)"}}`},
		{api.NewNode(), policy.RuleID{Direction: "ingress"}, ""},
		{nil, policy.RuleID{Direction: "ingress"}, ""},
	} {
		if got := ruleText(test.r, test.id); got != test.want {
			t.Errorf("%+v:\ngot  %s\nwant %s", test.id, got, test.want)
		}
	}
}

func TestOfPolicy(t *testing.T) {
	r := nodeapi.Rule{Kind: api.KindNetworkPolicy, Namespace: "blue", Name: "default.web", Tier: "default", Direction: "ingress"}
	for text, want := range map[string]bool{
		"": true, "default.web": true, "blue/default.web": true, "np/blue/default.web": true, "networkpolicy/blue/default.web": true,
		"NetworkPolicy/default.web": true, "gnp/default.web": false, "red/default.web": false, "web": false, "x/y/z": false,
	} {
		if ofPolicy(text, r) != want {
			t.Errorf("%q: want %v", text, want)
		}
	}
	if ofPolicy("x", nodeapi.Rule{Tier: "default"}) {
		t.Error("the end of a tier is of no policy")
	}
}

// lines is a log that tests look into.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) count(part string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), part)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// send has blue/w0 send a packet.
func (s *stand) send(t *testing.T, packets ...testbed.Packet) {
	t.Helper()
	if err := s.host.InjectAll("peercaliblue0", func(yield func([]byte) bool) {
		for _, p := range packets {
			if !yield(p.Bytes()) {
				return
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
}

func packet(to string) testbed.Packet {
	return testbed.Ethernet("02:00:00:00:00:01", "ee:ee:ee:ee:ee:ee").IP(netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr(to))
}

// TestTraffic sends packets, and looks at what is told of them.
func TestTraffic(t *testing.T) {
	s := newStand(t)
	for _, name := range []string{"caliblue0", "peercaliblue0"} {
		s.host.SetUp(t, name)
	}
	store := smallCluster()
	first := 1.0
	tier := &api.Tier{}
	tier.Name, tier.Spec.Order = "first", &first
	put(store, tier)
	tcp, udp := numorstring.ProtocolFromString("TCP"), numorstring.ProtocolFromString("UDP")
	put(store, globalPolicy("default", "late", 20, "db", v3.Rule{Action: "Allow", Protocol: &udp}))
	put(store, globalPolicy("default", "early", 10, "db", v3.Rule{Action: "Deny", Protocol: &tcp}))
	put(store, globalPolicy("first", "first.x", 99, "db", v3.Rule{Action: "Pass"}))
	s.take(t, store)

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	events := make(chan nodeapi.Event, 100)
	listening := make(chan bool)
	var done sync.WaitGroup
	done.Go(func() {
		f := nodeapi.EventFilter{Kinds: []nodeapi.EventKind{nodeapi.EventDrop}, Endpoint: "db-1", Policy: "early"}
		if err := s.Events(ctx, f, func(e nodeapi.Event) bool {
			if e.Kind == nodeapi.EventListening {
				close(listening)
			} else {
				events <- e
			}
			return true
		}); err != nil {
			t.Error(err)
		}
	})
	<-listening
	s.send(t, packet("10.0.0.2").UDP(5, 53), packet("10.0.0.3").UDP(5, 53), packet("10.0.0.2").TCP(6, 80, "S"), packet("10.0.0.2").ICMP(8, 0, 9),
		packet("10.0.0.5").UDP(7, 53).Payload(10))
	e := <-events
	if e.Rule == nil || e.Rule.ID != "default|GlobalNetworkPolicy|early|ingress|0" || e.Source.Name != "w0" || e.Destination.Name != "w1" ||
		e.Destination.Port != 80 || e.Interface != "caliblue0" || e.Verdict != nodeapi.VerdictDeny || e.Protocol != "TCP" {
		t.Errorf("the event is %+v", e)
	}
	cancel()
	done.Wait()
	if len(events) > 0 {
		t.Errorf("another event: %+v", <-events)
	}
	if err := s.Events(t.Context(), nodeapi.EventFilter{Kinds: []nodeapi.EventKind{"lost"}}, nil); err == nil {
		t.Error("nobody can listen to what is lost")
	}
	if err := s.Events(t.Context(), nodeapi.EventFilter{Endpoint: "nobody"}, nil); err == nil {
		t.Error("nobody has events")
	}

	rules := func(f nodeapi.RuleFilter) (out []string) {
		t.Helper()
		counts, err := s.Rules(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range counts {
			if c.Packets > 0 || f.Policy != "" {
				out = append(out, fmt.Sprintf("%s %s %d", c.Rule, c.Action, c.Packets))
			}
		}
		return out
	}
	for _, test := range []struct {
		f    nodeapi.RuleFilter
		want []string
	}{
		{nodeapi.RuleFilter{}, []string{
			"GlobalNetworkPolicy early ingress[0] Deny 1", "GlobalNetworkPolicy late ingress[0] Allow 1", "end of tier default (ingress) Deny 1",
			"end of all ingress policy Deny 1", "Profile open egress[0] Allow 5",
		}},
		{nodeapi.RuleFilter{Endpoint: "blue/w2"}, []string{"end of all ingress policy Deny 1"}},
		{nodeapi.RuleFilter{Policy: "gnp/first.x"}, []string{"GlobalNetworkPolicy first.x ingress[0] Pass 0"}},
	} {
		if got := rules(test.f); !slices.Equal(got, test.want) {
			t.Errorf("%+v:\ngot  %q\nwant %q", test.f, got, test.want)
		}
	}
	if _, err := s.Rules(t.Context(), nodeapi.RuleFilter{Endpoint: "red/w0"}); err == nil || err.Error() != "red/w0 is not on this node" {
		t.Errorf("got %v", err)
	}

	flows := func(f nodeapi.FlowFilter) (out []string) {
		t.Helper()
		if err := s.Flows(t.Context(), f, func(f nodeapi.Flow) bool {
			out = append(out, fmt.Sprintf("%s %s -> %s:%d %s %s %s", f.Protocol, f.Source, f.Destination, f.Destination.Port, f.State, f.Verdict, f.Path))
			return true
		}); err != nil {
			t.Fatal(err)
		}
		slices.Sort(out)
		return out
	}
	local, remote := "UDP blue/w0 -> blue/w1:53 new allow local", "UDP blue/w0 -> red/w1:53 new allow plain"
	for _, test := range []struct {
		f    nodeapi.FlowFilter
		want []string
	}{
		{nodeapi.FlowFilter{}, []string{local, remote}}, {nodeapi.FlowFilter{Endpoint: "red/w1"}, []string{remote}},
		{nodeapi.FlowFilter{Endpoint: "db-1", Protocol: "udp", Port: 53}, []string{local}}, {nodeapi.FlowFilter{Port: 54}, nil},
		{nodeapi.FlowFilter{Protocol: "tcp"}, nil}, {nodeapi.FlowFilter{Denied: true}, nil},
		{nodeapi.FlowFilter{Policy: "late"}, []string{local}}, {nodeapi.FlowFilter{Policy: "profile/open"}, []string{local, remote}},
		{nodeapi.FlowFilter{Endpoint: "host"}, nil},
	} {
		if got := flows(test.f); !slices.Equal(got, test.want) {
			t.Errorf("%+v: got %q, want %q", test.f, got, test.want)
		}
	}
	if n := len(flows(nodeapi.FlowFilter{Limit: 1})); n != 1 {
		t.Errorf("%d flows of one", n)
	}

	// Both ways of finding the flows that are there.
	for _, q := range []nodeapi.WhyQuestion{
		{Source: "blue/w0", Destination: "db-1", Protocol: "udp", Port: 53}, {Source: "blue/w0", Destination: "db-1", Protocol: "udp", Port: 53, SourcePort: 5},
		{Source: "db-1", Destination: "blue/w0", Protocol: "udp", Port: 5, SourcePort: 53}, // its answer
	} {
		if w, err := s.Why(t.Context(), q); err != nil || len(w.Flows) != 1 || w.Flows[0].Outdated || w.Flows[0].Source.Name != "w0" || w.Flows[0].Source.Port != 5 {
			t.Errorf("%+v: flows %+v, %v", q, w.Flows, err)
		}
	}
	put(store, globalPolicy("default", "early", 10, "db", v3.Rule{Action: "Deny"}))
	s.take(t, store)
	w, err := s.Why(t.Context(), nodeapi.WhyQuestion{Source: "blue/w0", Destination: "db-1", Protocol: "udp", Port: 53, SourcePort: 5})
	if err != nil || w.Verdict != nodeapi.VerdictDeny || len(w.Flows) != 1 || w.Flows[0].Verdict != nodeapi.VerdictAllow || !w.Flows[0].Outdated {
		t.Errorf("%+v, %v", w, err)
	}
	s.send(t, packet("10.0.0.2").UDP(5, 53))
	if w, err = s.Why(t.Context(), nodeapi.WhyQuestion{Source: "blue/w0", Destination: "db-1", Protocol: "udp", Port: 53, SourcePort: 5}); err != nil ||
		len(w.Flows) != 1 || w.Flows[0].Verdict != nodeapi.VerdictDeny || w.Flows[0].Reason != "drop_ingress_policy" || w.Flows[0].Outdated {
		t.Errorf("after another packet: %+v, %v", w.Flows, err)
	}
	tables, err := s.Tables(t.Context())
	if err != nil || !slices.ContainsFunc(tables, func(x nodeapi.Table) bool { return x.Name == "workloads" && x.Entries == 4 && x.Capacity > 4 }) {
		t.Errorf("tables %+v, %v", tables, err)
	}
}

// TestLogRules has many packets meet a Log rule: each gets a line, until there are too
// many.
func TestLogRules(t *testing.T) {
	s := newStand(t)
	for _, name := range []string{"caliblue0", "peercaliblue0"} {
		s.host.SetUp(t, name)
	}
	log := new(lines)
	s.log = slog.New(slog.NewTextHandler(log, nil))
	t.Cleanup(s.Close)
	listens := func() bool {
		settings, _, err := s.plane.Maps().Settings.Get(0)
		if err != nil {
			t.Fatal(err)
		}
		return settings.Events != 0
	}
	store := smallCluster()
	s.take(t, store)
	s.Observe(nil, s.view.State)
	if listens() {
		t.Error("it listens although nothing is to be logged")
	}
	p := globalPolicy("default", "log", 1, "db", v3.Rule{Action: "Log"}, v3.Rule{Action: "Allow"})
	put(store, p)
	s.take(t, store)
	for range 3 {
		s.Observe([]api.Change{{Key: api.KeyOf(p), Resource: p}}, s.view.State)
	}
	if !listens() {
		t.Fatal("it does not listen")
	}
	s.send(t, packet("10.0.0.2").UDP(5, 53))
	line := `level=INFO msg="packet met a Log rule" rule="GlobalNetworkPolicy log ingress[0]" verdict=allow protocol=UDP ` +
		`source="blue/w0 (10.0.0.1:5)" destination="blue/w1 (10.0.0.2:53)" by="GlobalNetworkPolicy log ingress[1]" interface=caliblue0` + "\n"
	if !testbed.Eventually(func() bool { return log.count(line) == 1 }) {
		t.Fatalf("the log is\n%s", log)
	}
	const more = 2 * logBurst
	var packets []testbed.Packet
	for i := range more {
		packets = append(packets, packet("10.0.0.2").UDP(uint16(1000+i), 53))
	}
	s.send(t, packets...)
	if !testbed.Eventually(func() bool { return log.count(`msg="more packets have met Log rules than are logged"`) > 0 }) {
		t.Errorf("the log does not say that packets are left out:\n%s", log)
	}
	if n := log.count("msg=\"packet met"); n < logBurst-1 || n > logBurst+10*logRate {
		t.Errorf("%d lines for %d packets", n, more+1)
	}

	store.Apply(api.Change{Key: api.KeyOf(p)})
	s.take(t, store)
	s.Observe([]api.Change{{Key: api.KeyOf(p)}}, s.view.State)
	if listens() {
		t.Error("it goes on listening")
	}
}
