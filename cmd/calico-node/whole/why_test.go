package whole

import (
	"context"
	"encoding/json"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"calico-xdp/pkg/nodeapi"
)

// whyPolicy is of several tiers, kinds and actions; what none of it matches is denied at
// the end of a tier.
const whyPolicy = `
{apiVersion: projectcalico.org/v3, kind: Tier, metadata: {name: first}, spec: {order: 5, defaultAction: Pass}}
---
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: first.no-clients}, spec: {tier: first, order: 1, selector: role == 'db', types: [Ingress],
 ingress: [{action: Deny, protocol: TCP, source: {selector: role == 'client'}}, {action: Log, protocol: TCP, destination: {ports: [80]}}, {action: Pass, protocol: ICMP}]}}
---
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: db}, spec: {order: 10, selector: role == 'db', types: [Ingress],
 ingress: [{action: Allow, protocol: TCP, source: {selector: role == 'web'}, destination: {ports: [5432]}}, {action: Allow, protocol: ICMP, source: {selector: role == 'web'}}]}}
---
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: client}, spec: {order: 20, selector: role == 'client', types: [Egress],
 egress: [{action: Allow, protocol: TCP, destination: {ports: [80, 5432]}}]}}
---
{apiVersion: projectcalico.org/v3, kind: StagedGlobalNetworkPolicy, metadata: {name: web}, spec: {order: 30, selector: role == 'web', types: [Ingress],
 ingress: [{action: Deny, protocol: TCP, destination: {ports: [80]}}, {action: Allow}]}}`

// why asks the nodes at both ends, as an operator would, and returns whether the packet
// arrives.
func (c *cluster) why(from, to *workload, ipv6 bool, protocol string, port uint16) (arrives bool, answers []nodeapi.Why) {
	c.Helper()
	arrives = true
	for _, n := range c.nodes {
		if n != from.node && n != to.node {
			continue
		}
		w, err := n.api().Why(c.Context(), nodeapi.WhyQuestion{
			Source: from.address(ipv6).String(), Destination: to.address(ipv6).String(), Protocol: protocol, Port: int(port),
		})
		if err != nil {
			c.Fatal(err)
		}
		for _, note := range w.Notes {
			if strings.HasPrefix(note, "The kernel") {
				c.Errorf("%s -> %s: %s", from.name, to.name, note)
			}
		}
		arrives = arrives && w.Verdict == nodeapi.VerdictAllow
		answers = append(answers, w)
	}
	return arrives, answers
}

// footprints are what packets leave behind on a node: what rules have counted, and flows.
func (n *node) footprints() string {
	n.c.Helper()
	_, body := n.get(metrics)
	lines := regexp.MustCompile(`(?m)^calico_xdp_(rule_packets|rule_bytes|events_lost)_total.*$`).FindAllString(body, -1)
	for f, err := range n.api().Flows(n.c.Context(), nodeapi.FlowFilter{}) {
		if err != nil {
			n.c.Fatal(err)
		}
		lines = append(lines, f.Protocol+" "+f.Source.String()+" "+f.Destination.String()+" "+f.State)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// calicoctl runs it against the node's daemon.
func (n *node) calicoctl(args ...string) (output string, ok bool) {
	n.c.Helper()
	cmd := n.command("calicoctl", args...)
	cmd.Env = append(cmd.Env, "CALICO_RUN_DIR="+n.dir+"/run")
	p := n.StartCmd(n.c, cmd)
	<-p.Exited()
	return p.Output(), p.Cmd.ProcessState.Success()
}

// TestWhy: what calico-node says of packets is what becomes of them, on one host and
// between two, and asking leaves no trace.
func TestWhy(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 1}})
	a, b := c.nodes[0], c.nodes[1]
	var all [][]*workload
	for _, n := range []string{"ipip", "vxlan"} {
		all = append(all, []*workload{
			c.attach(a, n, "client-"+n), c.attach(a, n, "web-beside-"+n), c.attach(b, n, "web-"+n), c.attach(b, n, "db-"+n),
		})
	}
	stranger := []*workload{all[0][0], all[1][2]} // of two networks
	c.apply(whyPolicy)
	c.settle()

	before := []string{a.footprints(), b.footprints()}
	var tries []try
	var answers [][]nodeapi.Why
	for _, members := range append(all, stranger) {
		for _, from := range members {
			for _, to := range members {
				for _, ipv6 := range []bool{false, true} {
					if from == to || !from.address(ipv6).IsValid() || !to.address(ipv6).IsValid() {
						continue
					}
					for _, x := range []struct {
						protocol string
						port     uint16
					}{{"TCP", 80}, {"TCP", 5432}, {"ICMP", 0}} {
						arrives, said := c.why(from, to, ipv6, x.protocol, x.port)
						tries = append(tries, try{from: from.Namespace, to: to.address(ipv6), port: x.port, want: arrives})
						answers = append(answers, said)
					}
				}
			}
		}
	}
	for i, n := range c.nodes {
		if after := n.footprints(); after != before[i] {
			t.Errorf("%s: asking has left traces:\n%s\nbefore:\n%s", n.name, after, before[i])
		}
	}
	c.tryAll("as calico-node says", tries...)
	denied := 0
	for i, said := range answers {
		if tries[i].want {
			continue
		}
		denied++
		for _, w := range said {
			if w.Verdict == nodeapi.VerdictDeny && w.Explanation == "" {
				t.Errorf("%s: a drop without a reason: %+v", tries[i], w)
			}
		}
	}
	if denied == 0 || denied == len(tries) {
		t.Errorf("%d of %d are denied", denied, len(tries))
	}
	t.Logf("%d questions, %d of them of packets that do not arrive", len(tries), denied)

	client, web, db := all[0][0], all[0][2], all[0][3]
	for _, test := range []struct {
		on   *node
		args []string
		want []string // parts of what it prints, in order
	}{
		{b, []string{"why", client.name, db.name, "--port", "5432"}, []string{
			"DENIED on node host2, at from_network eth0 (tunnel) (drop_ingress_policy)\n  denied by GlobalNetworkPolicy first.no-clients ingress[0]\n",
			"tier first: Deny by GlobalNetworkPolicy first.no-clients ingress[0]: {action: Deny, protocol: TCP, source: {selector: role == 'client'}}\n",
			"Note: The egress policy of default/host1-cni-client--ipip-eth0 is asked on its node host1",
		}},
		{b, []string{"why", web.name, db.v4.String()}, []string{
			"denied at the end of tier default: GlobalNetworkPolicy db selects default/host2-cni-db--ipip-eth0 for ingress, and no rule of it matches\n",
			"  tier first: no rule of GlobalNetworkPolicy first.no-clients matches: Pass by default\n",
			"  tier default: no rule of GlobalNetworkPolicy db matches: Deny by default\n",
			"  logged by GlobalNetworkPolicy first.no-clients ingress[1]\n",
			"  would be allowed by GlobalNetworkPolicy db ingress[0]: {action: Allow, protocol: TCP, source: {selector: role == 'web'}, destination: {ports: [5432]}}\n" +
				"    if destination.ports (5432) contained 80\n",
		}},
		{a, []string{"why", client.name, db.name, "-p", "udp", "--port", "53"}, []string{
			"DENIED on node host1, at from_workload cali", "would be allowed by GlobalNetworkPolicy client egress[0]", "if protocol (TCP) were UDP",
		}},
		{b, []string{"why", db.name, web.name}, []string{
			"ALLOWED", "(pass_to_workload)", "path: local, straight into interface", "with the staged policies: denied by StagedGlobalNetworkPolicy web ingress[0]: {action: Deny",
		}},
		{a, []string{"why", client.name, db.name}, []string{"ALLOWED on node host1", "path: in IPIP to node host2 (10.10.1.3) through eth0\n"}},
		{a, []string{"why", client.name, "host", "--port", "22"}, []string{"drop_egress_policy"}},
		{a, []string{"why", all[0][1].name, "host", "--port", "22"}, []string{"drop_to_host", "defaultEndpointToHostAction"}},
		{a, []string{"why", "host", client.name}, []string{"ALLOWED", "subject to no policy"}},
		{a, []string{"why", web.name, db.name}, []string{"NOT FOR THIS NODE TO SAY", "calicoctl why " + web.v4.String()}},
	} {
		out, ok := test.on.calicoctl(test.args...)
		rest := out
		for _, part := range test.want {
			_, after, found := strings.Cut(rest, part)
			if rest = after; !found || !ok {
				t.Errorf("%s: calicoctl %s: no %q (after what came before it) in\n%s", test.on.name, strings.Join(test.args, " "), part, out)
				break
			}
		}
	}
	for _, test := range [][2]string{
		{"why nobody host", `"nobody" is no address, and no workload endpoint, pod, workload, host endpoint or node has that name` + "\n"},
		{"why host1 host", "host1 and host are the same: what it sends to itself is nobody else's\n"},
	} {
		if out, ok := a.calicoctl(strings.Fields(test[0])...); ok || out != test[1] {
			t.Errorf("calicoctl %s: %v %q", test[0], ok, out)
		}
	}

	// Flows that are there are told of.
	conn, err := web.Dial("tcp", netip.AddrPortFrom(db.v4, 5432).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	known := regexp.MustCompile(`Such flows are there already\. .*
(?:  .*\n)*  TCP ` + conn.LocalAddr().String() + ` -> ` + conn.RemoteAddr().String() + `: \w+, allowed by .*GlobalNetworkPolicy db ingress\[0\], `)
	var out string
	if !c.eventually(func() bool {
		out, _ = b.calicoctl("why", web.name, db.name, "--port", "5432")
		return known.MatchString(out)
	}) {
		t.Errorf("no flow in\n%s", out)
	}
}

// TestObserve: what happens is told, with the rules that made it happen.
func TestObserve(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1}})
	a := c.nodes[0]
	client, web, db := c.attach(a, "ipip", "client"), c.attach(a, "ipip", "web"), c.attach(a, "ipip", "db")
	c.apply(whyPolicy)
	c.settle()
	name := func(w *workload) string { return "default/host1-cni-" + w.name + "-eth0" }

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	events := make(chan nodeapi.Event, 1000)
	go func() {
		defer close(events)
		for e, err := range a.api().Events(ctx, nodeapi.EventFilter{}) {
			if err != nil {
				t.Error(err)
				return
			}
			events <- e
		}
	}()
	// until returns the first event that is right.
	until := func(what string, right func(e nodeapi.Event) bool) nodeapi.Event {
		t.Helper()
		var last nodeapi.Event
		for e := range events {
			if last = e; right(e) {
				return e
			}
		}
		t.Fatalf("no %s; the last event was %+v", what, last)
		return last
	}
	between := func(e nodeapi.Event, kind nodeapi.EventKind, from, to *workload, port int) bool {
		return e.Kind == kind && e.Source.String() == name(from) && e.Destination.String() == name(to) && e.Destination.Port == port
	}
	until("beginning", func(e nodeapi.Event) bool { return e.Kind == nodeapi.EventListening })

	c.tryAll("allowed", try{from: client.Namespace, to: web.v4, port: 80, want: true})
	e := until("flow", func(e nodeapi.Event) bool { return between(e, nodeapi.EventFlow, client, web, 80) })
	if e.Verdict != nodeapi.VerdictAllow || len(e.Rules) != 2 || e.Rules[0].Name != "client" || e.Interface == "" || e.Hook != "from_workload" {
		t.Errorf("the flow is %+v", e)
	}
	c.tryAll("staged", try{from: client.Namespace, to: web.v4, port: 80, want: true})
	e = until("staged", func(e nodeapi.Event) bool { return between(e, nodeapi.EventStaged, client, web, 80) })
	if e.Rule == nil || e.Rule.String() != "StagedGlobalNetworkPolicy web ingress[0]" || e.Rule.Action != "Deny" {
		t.Errorf("staged is %+v", e)
	}
	c.tryAll("denied", try{from: client.Namespace, to: db.v4, port: 5432}, try{from: web.Namespace, to: db.v4, port: 80})
	seen := make(map[string]nodeapi.Event)
	until("drops and logged packet", func(e nodeapi.Event) bool {
		for what, is := range map[string]bool{
			"rule": between(e, nodeapi.EventDrop, client, db, 5432), "tier": between(e, nodeapi.EventDrop, web, db, 80),
			"log": between(e, nodeapi.EventLog, web, db, 80),
		} {
			if is {
				seen[what] = e
			}
		}
		return len(seen) == 3
	})
	for what, want := range map[string]string{
		"rule": "GlobalNetworkPolicy first.no-clients ingress[0]", "tier": "end of tier default (ingress)", "log": "GlobalNetworkPolicy first.no-clients ingress[1]",
	} {
		if e := seen[what]; e.Rule == nil || e.Rule.String() != want || e.Reason != "drop_ingress_policy" {
			t.Errorf("%s: %+v", what, e)
		}
	}

	// The same on the command line, and counted.
	out := make(chan string)
	go func() {
		text, _ := a.calicoctl("observe", "--drops", "--endpoint", client.name, "-n", "1")
		out <- text
	}()
	for deadline := time.After(30 * time.Second); ; {
		c.tryAll("denied", try{from: web.Namespace, to: db.v4, port: 80}, try{from: client.Namespace, to: db.v4, port: 5432})
		select {
		case text := <-out:
			if !regexp.MustCompile(`^\d\d:\d\d:\d\d\.\d{3} drop   TCP ` + name(client) + `:\d+ -> ` + name(db) +
				`:5432: drop_ingress_policy by GlobalNetworkPolicy first\.no-clients ingress\[0\]\n$`).MatchString(text) {
				t.Errorf("calicoctl observe says %q", text)
			}
		case <-deadline:
			t.Error("calicoctl observe does not end")
		default:
			continue
		}
		break
	}
	text, _ := a.calicoctl("rules", "--policy", "first.no-clients", "--used", "-o", "json")
	var rules []nodeapi.RuleCount
	if err := json.Unmarshal([]byte(text), &rules); err != nil || len(rules) != 2 || rules[0].Index != 0 || rules[1].Action != "Log" ||
		!strings.HasPrefix(rules[0].Text, "{action: Deny, protocol: TCP,") {
		t.Errorf("rules: %s", text)
	}
	if text, ok := a.calicoctl("rules", "--endpoint", db.name); !ok || !strings.Contains(text, "globalnetworkpolicy/db") || strings.Contains(text, "globalnetworkpolicy/client") {
		t.Errorf("rules of one endpoint:\n%s", text)
	}
	if text, ok := a.calicoctl("flows", "--endpoint", web.name, "-p", "tcp", "--port", "80"); !ok || !strings.Contains(text, name(client)+":") {
		t.Errorf("flows:\n%s", text)
	}
	if text, ok := a.calicoctl("node", "tables"); !ok || !strings.Contains(text, "\nflows ") {
		t.Errorf("tables:\n%s", text)
	}

	// A Log rule writes a line, whoever else listens.
	cancel()
	for range events {
	}
	line := regexp.MustCompile(`msg="packet met a Log rule" rule="GlobalNetworkPolicy first.no-clients ingress\[1\]" verdict=deny protocol=TCP ` +
		`source="` + name(web) + ` \(\S+:\d+\)" destination="` + name(db) + ` \(\S+:80\)" reason=drop_ingress_policy by="end of tier default \(ingress\)" interface=cali`)
	if !c.eventually(func() bool { return line.MatchString(a.daemon.Output()) }) {
		t.Errorf("no line for a Log rule in\n%s", a.daemon.Output())
	}
	c.delete("globalnetworkpolicy", "first.no-clients")
	n := len(line.FindAllString(a.daemon.Output(), -1))
	c.tryAll("no Log rule", try{from: web.Namespace, to: db.v4, port: 80})
	if again := len(line.FindAllString(a.daemon.Output(), -1)); again != n {
		t.Error("packets are logged without a Log rule")
	}
}
