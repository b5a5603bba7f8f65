package command_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"calico-xdp/pkg/nodeapi"

	"github.com/google/go-cmp/cmp"
)

// fixedTraffic answers with what it is given.
type fixedTraffic struct {
	why    nodeapi.Why
	rules  []nodeapi.RuleCount
	flows  []nodeapi.Flow
	events []nodeapi.Event
	tables []nodeapi.Table
	err    error
	asked  any
}

func (f *fixedTraffic) Why(_ context.Context, q nodeapi.WhyQuestion) (nodeapi.Why, error) {
	f.asked = q
	return f.why, f.err
}

func (f *fixedTraffic) Rules(_ context.Context, q nodeapi.RuleFilter) ([]nodeapi.RuleCount, error) {
	f.asked = q
	return f.rules, f.err
}

func (f *fixedTraffic) Flows(_ context.Context, q nodeapi.FlowFilter, yield func(nodeapi.Flow) bool) error {
	f.asked = q
	for i, flow := range f.flows {
		if !yield(flow) || i+1 == q.Limit {
			break
		}
	}
	return f.err
}

func (f *fixedTraffic) Events(ctx context.Context, q nodeapi.EventFilter, yield func(nodeapi.Event) bool) error {
	f.asked = q
	if f.err != nil {
		return f.err
	}
	for _, e := range append([]nodeapi.Event{{Kind: nodeapi.EventListening}}, f.events...) {
		if !yield(e) {
			return nil
		}
	}
	<-ctx.Done()
	return nil
}

func (f *fixedTraffic) Tables(context.Context) ([]nodeapi.Table, error) { return f.tables, f.err }

// asking returns a client of a node with this traffic.
func asking(t *testing.T, f *fixedTraffic) client {
	return client{env: map[string]string{"CALICO_RUN_DIR": serveNode(t, fixedNode{Traffic: f})}}
}

var (
	webEnd = nodeapi.End{Kind: nodeapi.EndWorkload, Namespace: "shop", Name: "web", Address: netip.MustParseAddr("10.65.0.2"),
		Node: "a", Interface: "cali1", Local: true}
	dbEnd   = nodeapi.End{Kind: nodeapi.EndWorkload, Namespace: "shop", Name: "db", Address: netip.MustParseAddr("10.65.1.9"), Node: "b"}
	hostEnd = nodeapi.End{Kind: nodeapi.EndHost, Name: "a", Node: "a", Address: netip.MustParseAddr("10.0.0.1"), Local: true}
	farEnd  = nodeapi.End{Kind: nodeapi.EndExternal, Address: netip.MustParseAddr("2001:db8::7")}

	egressRule = nodeapi.Rule{ID: "default|GlobalNetworkPolicy|out|egress|0", Tier: "default", Kind: "GlobalNetworkPolicy", Name: "out",
		Direction: "egress", Action: "Allow", Text: "{action: Allow}"}
	nearRule = nodeapi.Rule{ID: "security|NetworkPolicy|shop/db|ingress|1", Tier: "security", Kind: "NetworkPolicy", Namespace: "shop", Name: "db",
		Direction: "ingress", Index: 1, Action: "Allow", Text: "{action: Allow, protocol: TCP, destination: {ports: [5432]}}"}
	tierEnd    = nodeapi.Rule{ID: "security|||ingress|-1", Tier: "security", Direction: "ingress", Index: -1, Action: "Deny"}
	logRule    = nodeapi.Rule{Tier: "security", Kind: "NetworkPolicy", Namespace: "shop", Name: "db", Direction: "ingress", Action: "Log"}
	stagedRule = nodeapi.Rule{Tier: "security", Kind: "StagedNetworkPolicy", Namespace: "shop", Name: "next", Direction: "ingress", Index: 2,
		Action: "Allow", Text: "{action: Allow}", Staged: true}
	profileRule = nodeapi.Rule{Kind: "Profile", Name: "open", Direction: "ingress", Action: "Allow", Text: "{action: Allow}"}
	lastDrop    = nodeapi.Rule{ID: "|||egress|", Direction: "egress", Index: -1, Action: "Deny"}
)

func pointer[T any](v T) *T { return &v }

// deniedWhy is a drop at the end of a tier, with everything that one can have.
func deniedWhy() nodeapi.Why {
	local := dbEnd
	local.Node, local.Local, local.Interface = "a", true, "cali2"
	flow := nodeapi.Flow{Protocol: "TCP", Source: webEnd, Destination: local, State: "established", Verdict: nodeapi.VerdictAllow,
		Rules: []nodeapi.Rule{egressRule, nearRule}, Idle: 12.3}
	flow.Source.Port, flow.Destination.Port = 4000, 80
	old := flow
	old.Outdated, old.Idle, old.Rules, old.Source.Port = true, 0.1, old.Rules[:1], 4001
	return nodeapi.Why{
		Node: "a", Source: webEnd, Destination: local, Verdict: nodeapi.VerdictDeny, Reason: "drop_ingress_policy",
		Packet:      nodeapi.Packet{Protocol: "TCP", Source: webEnd.Address, Destination: local.Address, SourcePort: 49152, DestinationPort: 80, AnySourcePort: true},
		Explanation: "denied at the end of tier security: NetworkPolicy shop/db selects shop/db for ingress, and no rule of it matches",
		Hooks:       []string{"from_workload cali1"},
		Stages: []nodeapi.Stage{
			{Endpoint: "WorkloadEndpoint(shop/web)", Stage: "normal", Direction: "egress", Reached: true, Verdict: nodeapi.VerdictAllow, Rule: &egressRule,
				Tiers: []nodeapi.Tier{
					{Name: "security", Policies: []string{"GlobalNetworkPolicy p1", "GlobalNetworkPolicy p2"}, Outcome: "Pass"},
					{Name: "default", Policies: []string{"GlobalNetworkPolicy out"}, Matched: true, Outcome: "Allow", Rule: &egressRule},
				}},
			{Endpoint: "WorkloadEndpoint(shop/db)", Stage: "normal", Direction: "ingress", Reached: true, Verdict: nodeapi.VerdictDeny, Rule: &tierEnd,
				Tiers:  []nodeapi.Tier{{Name: "security", Policies: []string{"NetworkPolicy shop/db"}, Outcome: "Deny", Rule: &tierEnd}},
				Logged: []nodeapi.Rule{logRule},
				Nearest: []nodeapi.NearMiss{{Rule: nearRule, Missed: []nodeapi.Miss{
					{Field: "destination.ports", Rule: "5432", Have: "80", Text: "destination.ports (5432) contained 80"},
					{Field: "source.selector", Rule: "x == 'y'", Have: "web", Text: "source.selector (x == 'y') matched web"},
				}}},
				Staged: &nodeapi.StagedVerdict{Verdict: nodeapi.VerdictAllow, Rule: stagedRule}},
		},
		Flows: []nodeapi.Flow{flow, old},
		Notes: []string{"One.", "Two."},
	}
}

func TestWhyText(t *testing.T) {
	remote := nodeapi.Why{
		Node: "a", Source: webEnd, Destination: dbEnd, Verdict: nodeapi.VerdictAllow, Reason: "pass_ipip", Path: "in IPIP to node b (10.0.0.2) through eth0",
		Packet:      nodeapi.Packet{Protocol: "ICMP", Source: webEnd.Address, Destination: dbEnd.Address, ICMPType: pointer(8), ICMPCode: pointer(0)},
		Explanation: "allowed by Profile open egress[0]", Hooks: []string{"from_workload cali1", "to_network eth0"},
		Stages: []nodeapi.Stage{
			{Endpoint: "WorkloadEndpoint(shop/web)", Stage: "normal", Direction: "egress", Reached: true, Verdict: nodeapi.VerdictAllow, Rule: &profileRule,
				Tiers: []nodeapi.Tier{
					{Policies: []string{"Profile shut"}},
					{Policies: []string{"Profile open"}, Matched: true, Outcome: "Allow", Rule: &profileRule},
				}},
			{Endpoint: "HostEndpoint(eth0)", Stage: "untracked", Direction: "egress", Reached: true},
			{Endpoint: "HostEndpoint(eth0)", Stage: "forward", Direction: "egress", Reached: false, Verdict: nodeapi.VerdictDeny, Rule: &lastDrop,
				Explanation: "denied: no policy selects eth0 for egress, and it has no profile"},
		},
	}
	unknown := nodeapi.Why{
		Node: "a", Source: farEnd, Destination: nodeapi.End{Kind: nodeapi.EndNode, Name: "c"}, Verdict: nodeapi.VerdictUnknown,
		Packet:      nodeapi.Packet{Protocol: "UDP", Source: farEnd.Address, Destination: netip.MustParseAddr("2001:db8::9"), SourcePort: 7, DestinationPort: 53},
		Explanation: "neither end is on this node, which has no say about the packet",
	}
	for name, w := range map[string]nodeapi.Why{"why-denied": deniedWhy(), "why-remote": remote, "why-unknown": unknown} {
		t.Run(name, func(t *testing.T) {
			got := asking(t, &fixedTraffic{why: w}).ok(t, "why", "a", "b")
			golden(t, name+".txt", got)
		})
	}
}

func TestWhyForPrograms(t *testing.T) {
	f := &fixedTraffic{why: deniedWhy()}
	c := asking(t, f)
	var got nodeapi.Why
	if err := json.Unmarshal([]byte(c.ok(t, "why", "a", "b", "-o", "json")), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(f.why, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if out := c.ok(t, "why", "a", "b", "-oyaml"); !strings.Contains(out, "reason: drop_ingress_policy\n") {
		t.Error(out)
	}
}

func TestWhyQuestion(t *testing.T) {
	for _, test := range []struct {
		args string
		want nodeapi.WhyQuestion
	}{
		{"why shop/web 10.0.0.1", nodeapi.WhyQuestion{Source: "shop/web", Destination: "10.0.0.1", Protocol: "tcp"}},
		{"why a b -p udp --port 53 --source-port 9", nodeapi.WhyQuestion{Source: "a", Destination: "b", Protocol: "udp", Port: 53, SourcePort: 9}},
		{"why a b --protocol icmp --icmp-type 0", nodeapi.WhyQuestion{Source: "a", Destination: "b", Protocol: "icmp", ICMPType: pointer(0)}},
		{"why a b --protocol icmpv6 --icmp-type 128 --icmp-code 3", nodeapi.WhyQuestion{
			Source: "a", Destination: "b", Protocol: "icmpv6", ICMPType: pointer(128), ICMPCode: pointer(3)}},
	} {
		f := &fixedTraffic{}
		asking(t, f).ok(t, strings.Fields(test.args)...)
		if diff := cmp.Diff(any(test.want), f.asked); diff != "" {
			t.Errorf("%s: %s", test.args, diff)
		}
	}
	nowhere := client{env: map[string]string{"CALICO_RUN_DIR": "/nowhere"}}
	for _, test := range []struct {
		client     client
		args, want string
	}{
		{nowhere, "why a", "name a source and a destination\nRun 'calicoctl why --help' for usage.\n"},
		{nowhere, "why a b --port 70000", "--port: 70000 is not a number from 1 to 65535\n"},
		{nowhere, "why a b --source-port 0", "--source-port: 0 is not a number from 1 to 65535\n"},
		{nowhere, "why a b -o xml", "--output: \"xml\" is none of text, json, yaml\n"},
		{nowhere, "why a b", "calico-node is not running on this host: nothing answers on /nowhere/node.sock\n"},
		{nowhere, "why a b --node /else/node.sock", "calico-node is not running on this host: nothing answers on /else/node.sock\n"},
		{nowhere, "rules", "calico-node is not running on this host: nothing answers on /nowhere/node.sock\n"},
		{nowhere, "flows", "calico-node is not running on this host: nothing answers on /nowhere/node.sock\n"},
		{nowhere, "observe", "calico-node is not running on this host: nothing answers on /nowhere/node.sock\n"},
		{nowhere, "node tables", "calico-node is not running on this host: nothing answers on /nowhere/node.sock\n"},
		{nowhere, "flows --limit -1", "--limit: -1 is below zero\n"},
		{nowhere, "observe --count -1", "--count and --for cannot be below zero\n"},
		{nowhere, "observe -o yaml", "--output: \"yaml\" is none of text, wide, json\n"},
		{asking(t, &fixedTraffic{err: &nodeapi.QuestionError{Reason: "\"a\" can be wep/x/a, node/a: name one of them, or its address"}}), "why a b",
			"\"a\" can be wep/x/a, node/a: name one of them, or its address\n"},
		{asking(t, &fixedTraffic{err: errors.New("no kernel")}), "rules", "calico-node: no kernel\n"},
		{asking(t, &fixedTraffic{err: errors.New("no kernel")}), "observe", "calico-node: no kernel\n"},
		{asking(t, &fixedTraffic{err: errors.New("no kernel")}), "flows", "calico-node: no kernel\n"},
	} {
		if got := test.client.fails(t, strings.Fields(test.args)...); got != test.want {
			t.Errorf("%s: %q, want %q", test.args, got, test.want)
		}
	}
}

func TestWhyCompletes(t *testing.T) {
	f := fixedNode{Traffic: &fixedTraffic{}, status: nodeapi.Status{Endpoints: []nodeapi.Endpoint{{Namespace: "shop", Name: "web"}, {Namespace: "shop", Name: "db"}}}}
	c := client{env: map[string]string{"CALICO_RUN_DIR": serveNode(t, f)}}
	for args, want := range map[string]string{
		"__complete why shop/w":           "host\nshop/web\nshop/db\n:4\n",
		"__complete why a b c":            ":4\n",
		"__complete rules --endpoint ":    "host\nshop/web\nshop/db\n:4\n",
		"__complete why a b --protocol ":  "tcp\nudp\nicmp\nicmpv6\nsctp\nudplite\n:4\n",
		"__complete observe -o ":          "text\nwide\njson\n:4\n",
		"__complete why --run-dir /no a ": ":4\n",
	} {
		if got := c.run(t, strings.SplitN(args, " ", strings.Count(args, " ")+1)...).stdout; got != want {
			t.Errorf("%s: %q, want %q", args, got, want)
		}
	}
}

func TestRules(t *testing.T) {
	f := &fixedTraffic{rules: []nodeapi.RuleCount{
		{Rule: nearRule, Packets: 12, Bytes: 3456}, {Rule: tierEnd, Packets: 1, Bytes: 54}, {Rule: egressRule},
		{Rule: profileRule, Packets: 7, Bytes: 700}, {Rule: lastDrop}, {Rule: stagedRule, Packets: 2, Bytes: 108},
	}}
	c := asking(t, f)
	golden(t, "rules.txt", c.ok(t, "rules"))
	golden(t, "rules-wide.txt", c.ok(t, "rules", "--used", "-o", "wide", "--policy", "db", "--endpoint", "shop/db"))
	if want := (nodeapi.RuleFilter{Endpoint: "shop/db", Policy: "db"}); f.asked != any(want) {
		t.Errorf("asked %+v", f.asked)
	}
	var rules []nodeapi.RuleCount
	if err := json.Unmarshal([]byte(c.ok(t, "rules", "-ojson")), &rules); err != nil || len(rules) != 6 || rules[0].Packets != 12 || rules[1].Index != -1 {
		t.Errorf("%+v, %v", rules, err)
	}
	if got := asking(t, &fixedTraffic{}).ok(t, "rules", "-ojson"); got != "[]\n" {
		t.Errorf("no rules are %q", got)
	}
}

func testFlows() []nodeapi.Flow {
	at := func(e nodeapi.End, port int) nodeapi.End {
		e.Port = port
		return e
	}
	return []nodeapi.Flow{
		{Protocol: "TCP", Source: at(webEnd, 4000), Destination: at(dbEnd, 5432), State: "established", Verdict: nodeapi.VerdictAllow,
			Rules: []nodeapi.Rule{egressRule}, Path: "ipip", Idle: 0.2},
		{Protocol: "UDP", Source: at(farEnd, 999), Destination: at(webEnd, 53), State: "new", Verdict: nodeapi.VerdictDeny, Reason: "drop_ingress_policy",
			Rules: []nodeapi.Rule{tierEnd}, Path: "stack", Idle: 61, Outdated: true},
		{Protocol: "ICMP", Source: webEnd, Destination: hostEnd, State: "answered", Verdict: nodeapi.VerdictAllow, ICMPType: pointer(8), ICMPCode: pointer(0),
			Path: "host", Idle: 3},
	}
}

func TestFlows(t *testing.T) {
	f := &fixedTraffic{flows: testFlows()}
	c := asking(t, f)
	golden(t, "flows.txt", c.ok(t, "flows"))
	golden(t, "flows-wide.txt", c.ok(t, "flows", "-o", "wide", "--limit", "0"))
	out := c.ok(t, "flows", "--limit", "2", "--endpoint", "shop/web", "-p", "tcp", "--port", "80", "--denied", "--policy", "out")
	if !strings.HasSuffix(out, "\n\nThere are more than these 2: --limit 0 shows all.\n") || strings.Contains(out, "ICMP") {
		t.Error(out)
	}
	if want := (nodeapi.FlowFilter{Endpoint: "shop/web", Policy: "out", Denied: true, Protocol: "tcp", Port: 80, Limit: 3}); f.asked != any(want) {
		t.Errorf("asked %+v", f.asked)
	}
	var flows []nodeapi.Flow
	if err := json.Unmarshal([]byte(c.ok(t, "flows", "-ojson")), &flows); err != nil || len(flows) != 3 || flows[1].Idle != 61 {
		t.Errorf("%+v, %v", flows, err)
	}
}

func testEvents() []nodeapi.Event {
	at := time.Date(2026, 3, 4, 5, 6, 7, 89_000_000, time.Local)
	flows := testFlows()
	event := func(kind nodeapi.EventKind, f nodeapi.Flow, rule *nodeapi.Rule) nodeapi.Event {
		return nodeapi.Event{
			Kind: kind, Time: at, Verdict: f.Verdict, Reason: f.Reason, Rule: rule, Rules: f.Rules, Protocol: f.Protocol,
			Source: &f.Source, Destination: &f.Destination, ICMPType: f.ICMPType, ICMPCode: f.ICMPCode,
			Length: 98, Hook: "from_workload", Interface: "cali1",
		}
	}
	both := flows[0]
	both.Rules = []nodeapi.Rule{egressRule, nearRule}
	spoofed := flows[1]
	spoofed.Reason, spoofed.Rules = "drop_spoofed", nil
	return []nodeapi.Event{
		event(nodeapi.EventDrop, flows[1], &tierEnd), event(nodeapi.EventDrop, spoofed, nil),
		event(nodeapi.EventFlow, both, &nearRule), event(nodeapi.EventFlow, flows[1], &tierEnd), event(nodeapi.EventFlow, flows[2], nil),
		event(nodeapi.EventLog, both, &logRule), event(nodeapi.EventStaged, flows[1], &stagedRule),
		{Kind: nodeapi.EventLost, Time: at, Lost: 77},
	}
}

func TestObserve(t *testing.T) {
	f := &fixedTraffic{events: testEvents()}
	c := asking(t, f)
	golden(t, "observe.txt", c.ok(t, "observe", "--for", "300ms"))
	golden(t, "observe-wide.txt", c.ok(t, "observe", "--drops", "--endpoint", "shop/web", "--policy", "db", "--for", "300ms", "-owide"))
	if diff := cmp.Diff(any(nodeapi.EventFilter{Kinds: []nodeapi.EventKind{nodeapi.EventDrop}, Endpoint: "shop/web", Policy: "db"}), f.asked); diff != "" {
		t.Error(diff)
	}
	lines := strings.Split(strings.TrimSpace(c.ok(t, "observe", "-n", "3", "-ojson")), "\n")
	if len(lines) != 3 {
		t.Fatalf("got %q", lines)
	}
	for i, line := range lines {
		var e nodeapi.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(f.events[i], e, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Error(diff)
		}
	}
}

func TestNodeTables(t *testing.T) {
	c := asking(t, &fixedTraffic{tables: []nodeapi.Table{
		{Name: "flows", Entries: 1234, Capacity: 524288, Largest: 8388608}, {Name: "settings", Entries: 1, Capacity: 1},
		{Name: "routes", Entries: 1000, Capacity: 1000, Largest: 1000, Problem: "7 entries found no room"},
	}})
	want := `TABLE      ENTRIES   CAPACITY   FILL   LARGEST   PROBLEM                   
flows      1234      524288     0%     8388608                             
settings   1         1          100%   -                                   
routes     1000      1000       100%   1000      7 entries found no room   
`
	if diff := cmp.Diff(want, c.ok(t, "node", "tables")); diff != "" {
		t.Error(diff)
	}
}
