package dataplane

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"
	"calico-xdp/pkg/policy/policytest"
)

// ledger is a dataplane with the endpoints a (10.0.0.1), b (10.0.0.2) and c (10.0.0.3,
// with profiles only), all of the namespace blue, whose policies are text.
type ledger struct {
	*Dataplane
	store    *api.Store
	compiler *policy.Compiler
}

func newLedger(t testing.TB, resources ...string) *ledger {
	t.Helper()
	return newLedgerOn(t, unhooked(t), resources...)
}

func newLedgerOn(t testing.TB, d *Dataplane, resources ...string) *ledger {
	t.Helper()
	l := &ledger{Dataplane: d, store: api.NewStore(), compiler: policy.NewCompiler(policytest.Node)}
	endpoint := `{apiVersion: projectcalico.org/v3, kind: WorkloadEndpoint, metadata: {namespace: blue, name: NAME, labels: {app: NAME}},
		spec: {node: NODE, orchestrator: k8s, workload: NAME, pod: NAME, endpoint: eth0, interfaceName: caliNAME, profiles: [open], ipNetworks: [ADDRESS/32]}}`
	for i, name := range []string{"a", "b", "c"} {
		l.put(t, strings.NewReplacer("NAME", name, "NODE", policytest.Node, "ADDRESS", fmt.Sprint("10.0.0.", i+1)).Replace(endpoint))
	}
	l.put(t, `{apiVersion: projectcalico.org/v3, kind: Tier, metadata: {name: default}, spec: {order: 1000000}}`)
	l.put(t, `{apiVersion: projectcalico.org/v3, kind: Profile, metadata: {name: open}, spec: {ingress: [{action: Allow}], egress: [{action: Allow}]}}`)
	for _, text := range resources {
		l.put(t, text)
	}
	l.sync(t)
	return l
}

// policyOf is a global policy of a tier for endpoint b's ingress.
func policyOf(kind, tier, name, rules string) string {
	return fmt.Sprintf("{apiVersion: projectcalico.org/v3, kind: %s, metadata: {name: %s}, spec: {tier: %s, order: 10, selector: app == 'b', types: [Ingress], ingress: [%s]}}",
		kind, name, tier, rules)
}

func (l *ledger) put(t testing.TB, text string) {
	t.Helper()
	r, err := api.Decode([]byte(strings.ReplaceAll(text, "\t", " ")))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	l.store.Apply(api.Change{Key: api.KeyOf(r), Resource: r})
}

func (l *ledger) remove(kind, name string) {
	l.store.Apply(api.Change{Key: api.Key{Kind: kind, Name: name}})
}

func (l *ledger) sync(t testing.TB) {
	t.Helper()
	apply(t, l.Dataplane, &desired.State{Dataplane: desired.Dataplane{
		Policy: l.compiler.Compile(l.store, nil), Endpoints: localEndpoints(l.store),
	}})
}

// restart goes on as another process, which is to leave rulesets and names as they are.
func (l *ledger) restart(t testing.TB) {
	t.Helper()
	sound := snapshot(t, l.Dataplane)
	l.Dataplane, l.compiler = restarted(l.Dataplane), policy.NewCompiler(policytest.Node)
	l.sync(t)
	for _, line := range difference(sound, snapshot(t, l.Dataplane)) {
		if strings.HasPrefix(line[2:], "rule") {
			t.Errorf("after a restart: %s", line)
		}
	}
}

// free waits until the rulesets that have been left are freed, and their numbers.
func (l *ledger) free(t testing.TB) {
	t.Helper()
	l.sync(t)
	l.sync(t) // the compiler keeps them for one result more
	time.Sleep(grace + 10*time.Millisecond)
	l.sync(t)
}

// ask is a packet from one endpoint to a port of another one.
func ask(from, to byte, protocol uint8, port uint16) policy.Packet {
	return policy.Packet{
		Source: netip.AddrFrom4([4]byte{10, 0, 0, from}), Destination: netip.AddrFrom4([4]byte{10, 0, 0, to}),
		Protocol: protocol, SourcePort: 4000, DestinationPort: port,
	}
}

func reply(p policy.Packet) policy.Packet {
	p.Source, p.Destination, p.SourcePort, p.DestinationPort = p.Destination, p.Source, p.DestinationPort, p.SourcePort
	return p
}

// tally is what the rules of ingress policies and profiles have counted, a line for
// each: packets, action, rule.
func (l *ledger) tally(t testing.TB) []string {
	t.Helper()
	counts, err := l.Rules()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, c := range counts {
		if c.Packets == 0 || c.ID.Direction == "egress" {
			continue
		}
		line := fmt.Sprintf("%d %s %s", c.Packets, actionName(c.Action), c.ID)
		if c.ID.Staged {
			line += " staged"
		}
		out = append(out, line)
	}
	slices.Sort(out)
	return out
}

func (l *ledger) expect(t testing.TB, what string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := l.tally(t); !slices.Equal(got, want) {
		t.Errorf("%s: counted\n  %s\nwant\n  %s", what, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func (l *ledger) send(t testing.TB, p policy.Packet, want policy.Action) {
	t.Helper()
	if got := runOn(t, l.Dataplane, "egress", p); got != want {
		t.Errorf("%+v: %d, want %d", p, got, want)
	}
}

const alphaTier = `{apiVersion: projectcalico.org/v3, kind: Tier, metadata: {name: alpha}, spec: {order: 1}}`

// Each way to a verdict names its rule.
func TestRulesAreCounted(t *testing.T) {
	l := newLedger(t, alphaTier,
		policyOf("GlobalNetworkPolicy", "alpha", "alpha.first", `
			{action: Pass, protocol: TCP, destination: {ports: [80, 81]}},
			{action: Deny, protocol: TCP, destination: {ports: [82]}},
			{action: Log, protocol: TCP, destination: {ports: [83]}},
			{action: Allow, protocol: TCP, destination: {ports: ["83:84"]}}`),
		policyOf("GlobalNetworkPolicy", "default", "default.web", `{action: Allow, protocol: TCP, destination: {ports: [80]}}`),
	)
	for _, c := range []struct {
		name    string
		packet  policy.Packet
		verdict policy.Action
		want    []string
	}{
		{"pass, then allow", ask(1, 2, tcp, 80), policy.Allow, []string{"1 allow default|GlobalNetworkPolicy|default.web|ingress|0"}},
		{"pass, then the tier's end", ask(1, 2, tcp, 81), policy.Deny, []string{"1 deny default|||ingress|-1"}},
		{"deny", ask(1, 2, tcp, 82), policy.Deny, []string{"1 deny alpha|GlobalNetworkPolicy|alpha.first|ingress|1"}},
		{"log, then allow", ask(1, 2, tcp, 83), policy.Allow, []string{
			"1 log alpha|GlobalNetworkPolicy|alpha.first|ingress|2", "1 allow alpha|GlobalNetworkPolicy|alpha.first|ingress|3",
		}},
		{"allow", ask(1, 2, tcp, 84), policy.Allow, []string{"1 allow alpha|GlobalNetworkPolicy|alpha.first|ingress|3"}},
		{"the first tier's end", ask(1, 2, udp, 80), policy.Deny, []string{"1 deny alpha|||ingress|-1"}},
		{"profile", ask(1, 3, udp, 53), policy.Allow, []string{"1 allow |Profile|open|ingress|0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			zero(t, l.Dataplane)
			l.send(t, c.packet, c.verdict)
			l.expect(t, "", c.want...)
		})
	}
	t.Run("no profile allows", func(t *testing.T) {
		zero(t, l.Dataplane)
		l.put(t, `{apiVersion: projectcalico.org/v3, kind: Profile, metadata: {name: open}, spec: {egress: [{action: Allow}]}}`)
		l.sync(t)
		l.send(t, ask(1, 3, udp, 54), policy.Deny)
		l.expect(t, "", "1 deny |||ingress|")
	})
	t.Run("profile that does not exist", func(t *testing.T) {
		zero(t, l.Dataplane)
		l.remove("Profile", "open")
		l.sync(t)
		l.send(t, ask(2, 3, udp, 55), policy.Deny) // by what the sender's profile should say
		counts, err := l.Rules()
		if err != nil {
			t.Fatal(err)
		}
		if i := slices.IndexFunc(counts, func(c RuleCount) bool { return c.Packets > 0 }); i < 0 || counts[i].ID.String() != "|Profile|open|egress|-1" {
			t.Errorf("counted %v", counts)
		}
	})
}

// zero forgets what has been counted.
func zero(t testing.TB, d *Dataplane) {
	t.Helper()
	var all []uint32
	for n := range d.classifier.rules.numbered {
		all = append(all, uint32(n))
	}
	if err := d.kernel.RuleCounters.Zero(all); err != nil {
		t.Fatal(err)
	}
}

// Every packet of a live flow counts, of both directions, for the rules that judge the
// flow at that time; also of one that has been cut.
func TestPacketsOfALiveFlowAreCounted(t *testing.T) {
	const allow = `{action: Allow, protocol: UDP, destination: {ports: [53]}}`
	l := newLedger(t, policyOf("GlobalNetworkPolicy", "default", "default.old", allow))
	there := ask(1, 2, udp, 53)
	back := reply(there)
	talk := func(n int, want policy.Action) {
		t.Helper()
		for i := range n {
			l.send(t, there, want)
			if i%2 == 0 {
				l.send(t, back, want)
			}
		}
	}
	talk(10, policy.Allow)
	l.expect(t, "at first", "15 allow default|GlobalNetworkPolicy|default.old|ingress|0")
	counts, err := l.Rules()
	if err != nil {
		t.Fatal(err)
	}
	frame, _ := frameOf(there)
	for _, c := range counts {
		if c.Packets != 0 && (c.Packets != 15 || c.Bytes != uint64(15*len(frame))) {
			t.Errorf("%s: %d packets, %d bytes; the sender's and the receiver's rule judge 15 of %d bytes", c.ID, c.Packets, c.Bytes, len(frame))
		}
	}

	// Renamed: the same verdict, another rule.
	l.remove("GlobalNetworkPolicy", "default.old")
	l.put(t, policyOf("GlobalNetworkPolicy", "default", "default.new", allow))
	l.sync(t)
	talk(4, policy.Allow)
	l.expect(t, "renamed", "15 allow default|GlobalNetworkPolicy|default.old|ingress|0", "6 allow default|GlobalNetworkPolicy|default.new|ingress|0")
	l.free(t)
	talk(2, policy.Allow)
	l.expect(t, "later", "9 allow default|GlobalNetworkPolicy|default.new|ingress|0")

	// Behind another rule.
	l.put(t, policyOf("GlobalNetworkPolicy", "default", "default.new", `{action: Deny, protocol: TCP}, `+allow))
	l.sync(t)
	talk(2, policy.Allow)
	l.free(t)
	l.expect(t, "moved", "3 allow default|GlobalNetworkPolicy|default.new|ingress|1")

	// Gone: what comes is counted for what cuts it.
	l.put(t, policyOf("GlobalNetworkPolicy", "default", "default.new", `{action: Deny, protocol: TCP}`))
	l.sync(t)
	talk(6, policy.Deny)
	l.free(t)
	l.expect(t, "cut", "9 deny default|||ingress|-1")

	// Another action of the same rule is another count.
	l.put(t, policyOf("GlobalNetworkPolicy", "default", "default.new", allow))
	l.sync(t)
	talk(2, policy.Allow)
	l.put(t, policyOf("GlobalNetworkPolicy", "default", "default.new", strings.Replace(allow, "Allow", "Deny", 1)))
	l.sync(t)
	talk(2, policy.Deny)
	l.expect(t, "turned", "9 deny default|||ingress|-1",
		"3 allow default|GlobalNetworkPolicy|default.new|ingress|0", "3 deny default|GlobalNetworkPolicy|default.new|ingress|0")
}

// Staged policies change no verdict and no count of what is enforced. What they would
// decide is counted once for each judging of a flow, as long as they say the same.
func TestStagedPoliciesOnlyCount(t *testing.T) {
	l := newLedger(t, alphaTier, policyOf("GlobalNetworkPolicy", "default", "default.web", `{action: Allow, protocol: UDP}`))
	p := ask(1, 2, udp, 53)
	l.send(t, p, policy.Allow)
	l.expect(t, "none staged", "1 allow default|GlobalNetworkPolicy|default.web|ingress|0")
	before := generationOf(t, l.Dataplane, "b")

	l.put(t, policyOf("StagedGlobalNetworkPolicy", "alpha", "alpha.wall", `{action: Deny, protocol: UDP, destination: {ports: [53]}}, {action: Pass}`))
	l.sync(t)
	if now := generationOf(t, l.Dataplane, "b"); now == before {
		t.Error("flows go on as they were judged before")
	}
	for range 3 {
		l.send(t, p, policy.Allow)
		l.send(t, reply(p), policy.Allow)
	}
	l.expect(t, "staged", "7 allow default|GlobalNetworkPolicy|default.web|ingress|0",
		"1 deny alpha|StagedGlobalNetworkPolicy|alpha.wall|ingress|0 staged")
	l.send(t, ask(1, 2, udp, 54), policy.Allow)
	l.expect(t, "passed", "8 allow default|GlobalNetworkPolicy|default.web|ingress|0",
		"1 deny alpha|StagedGlobalNetworkPolicy|alpha.wall|ingress|0 staged",
		"1 allow default|GlobalNetworkPolicy|default.web|ingress|0 staged")

	// Another one: the flow is judged again, for the new count.
	l.put(t, policyOf("StagedGlobalNetworkPolicy", "alpha", "alpha.wall", `{action: Allow, protocol: UDP}`))
	l.sync(t)
	l.send(t, p, policy.Allow)
	l.free(t)
	l.expect(t, "changed", "9 allow default|GlobalNetworkPolicy|default.web|ingress|0",
		"1 allow alpha|StagedGlobalNetworkPolicy|alpha.wall|ingress|0 staged")

	l.restart(t)
	l.remove("StagedGlobalNetworkPolicy", "alpha.wall")
	l.sync(t)
	l.send(t, p, policy.Allow)
	l.free(t)
	l.expect(t, "not any more", "10 allow default|GlobalNetworkPolicy|default.web|ingress|0")
}

func generationOf(t testing.TB, d *Dataplane, name string) uint32 {
	t.Helper()
	for key, s := range d.endpoints.slots {
		if key.Name == name {
			return d.endpoints.records[s].Generation
		}
	}
	t.Fatalf("%s has no slot", name)
	return 0
}

// A process that starts over goes on counting where the one before has stopped, and
// frees what that one has left behind.
func TestCountersSurviveARestart(t *testing.T) {
	l := newLedger(t,
		policyOf("GlobalNetworkPolicy", "default", "default.web", `{action: Allow, protocol: UDP, destination: {ports: [53]}}`),
		policyOf("GlobalNetworkPolicy", "default", "default.gone", `{action: Allow, protocol: UDP, destination: {ports: [54]}}`))
	l.send(t, ask(1, 2, udp, 53), policy.Allow)
	l.send(t, ask(1, 2, udp, 54), policy.Allow)
	l.send(t, ask(1, 2, udp, 55), policy.Deny)
	l.expect(t, "before", "1 allow default|GlobalNetworkPolicy|default.web|ingress|0",
		"1 allow default|GlobalNetworkPolicy|default.gone|ingress|0", "1 deny default|||ingress|-1")
	// It ends between a name and its ruleset, and after a name has been lost.
	stale := kernel.NewRuleName("default|GlobalNetworkPolicy|default.stale|ingress|0", kernel.RuleAllow, false)
	if err := l.kernel.RuleNames.Put(300, stale); err != nil {
		t.Fatal(err)
	}
	l.remove("GlobalNetworkPolicy", "default.gone")
	l.Dataplane, l.compiler = restarted(l.Dataplane), policy.NewCompiler(policytest.Node)
	l.sync(t)
	l.send(t, ask(1, 2, udp, 53), policy.Allow)
	l.send(t, ask(1, 2, udp, 55), policy.Deny)
	l.expect(t, "after", "2 allow default|GlobalNetworkPolicy|default.web|ingress|0", "2 deny default|||ingress|-1")
	l.free(t)
	names, err := l.kernel.RuleNames.Load()
	if err != nil {
		t.Fatal(err)
	}
	for n, name := range names {
		if strings.Contains(name.String(), "gone") || strings.Contains(name.String(), "stale") {
			t.Errorf("%d is still there: %s", n, name)
		}
	}
	numbersAgree(t, l.Dataplane, l.compiler.Compile(l.store, nil))

	// Rules that come back begin anew.
	l.put(t, policyOf("GlobalNetworkPolicy", "default", "default.gone", `{action: Allow, protocol: UDP, destination: {ports: [54]}}`))
	l.sync(t)
	l.expect(t, "back", "2 allow default|GlobalNetworkPolicy|default.web|ingress|0", "2 deny default|||ingress|-1")
}

// Numbers are used again, not before nobody can be counting for what had them, and then
// from zero.
func TestNumbersAreFreed(t *testing.T) {
	l := newLedger(t)
	rule := func(i int) string {
		return policyOf("GlobalNetworkPolicy", "default", fmt.Sprint("default.p", i), `{action: Allow, protocol: UDP}`)
	}
	for i := range 300 {
		l.put(t, rule(i))
		l.remove("GlobalNetworkPolicy", fmt.Sprint("default.p", i-1))
		had := make(map[uint32]time.Time)
		for _, r := range l.classifier.extents.retired {
			for _, n := range r.numbers() {
				had[n] = r.at
			}
		}
		l.sync(t)
		done := time.Now()
		for n, at := range had {
			if id, _, ok := l.Rule(n); ok && id.Policy.Name == fmt.Sprint("default.p", i) && done.Sub(at) < grace {
				t.Fatalf("%s has number %d, which packets may still be counted for", id, n)
			}
		}
		p := ask(1, 2, udp, 53)
		forget(t, l.Dataplane, p)
		l.send(t, p, policy.Allow)
		counts, err := l.Rules()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range counts {
			if c.ID.Policy.Name == fmt.Sprint("default.p", i) && c.Packets > 1 {
				t.Fatalf("%s begins with %d packets", c.ID, c.Packets)
			}
		}
		if i%50 == 49 {
			l.free(t)
		}
	}
	l.free(t)
	given, without := l.classifier.rules.fill()
	if top := len(l.classifier.rules.numbered); given > 10 || without != 0 || top > 300 {
		t.Errorf("%d numbers are given, of %d ever, %d are missing", given, top, without)
	}
	if lists := len(l.classifier.rules.lists); lists > 10 {
		t.Errorf("%d lists are kept", lists)
	}
}

// ports is a policy of one rule for each of so many ports.
func ports(name string, n int) string {
	rules := make([]string, n)
	for i := range rules {
		rules[i] = fmt.Sprintf("{action: Allow, protocol: UDP, destination: {ports: [%d]}}", 1000+i)
	}
	return policyOf("GlobalNetworkPolicy", "default", name, strings.Join(rules, ", "))
}

// Rules for which there is no number judge as all others do. They get one when there are
// some again, and then the packets of flows that there are count.
func TestMoreRulesThanNumbers(t *testing.T) {
	d := unhookedWith(t, kernel.Options{Sizes: map[string]int{"rule_counters": 16, "rule_names": 16}})
	log := new(strings.Builder)
	d.log = slog.New(slog.NewTextHandler(log, nil))
	d.options.TableLimits = map[string]int{"rule_counters": 16, "rule_names": 16}
	d.open(d.kernel, d.programs)
	l := newLedgerOn(t, d, ports("default.z", 7))
	if _, without := l.classifier.rules.fill(); without != 0 {
		t.Fatalf("%d of a few rules have no number", without)
	}
	l.put(t, ports("default.a", 20))
	l.sync(t)
	l.sync(t)
	given, without := l.classifier.rules.fill()
	if given != 15 || without == 0 || strings.Count(log.String(), "rules are not counted") != 1 {
		t.Errorf("%d numbers are given, %d rules have none; logged\n%s", given, without, log)
	}
	for range 3 {
		l.send(t, ask(1, 2, udp, 1000), policy.Allow)
		l.send(t, ask(1, 2, udp, 1019), policy.Allow)
		l.send(t, ask(1, 2, udp, 1020), policy.Deny)
	}
	l.expect(t, "crowded", "3 allow default|GlobalNetworkPolicy|default.a|ingress|0", "3 deny default|||ingress|-1")

	sound := snapshot(t, l.Dataplane)
	l.Dataplane, l.compiler = restarted(l.Dataplane), policy.NewCompiler(policytest.Node)
	l.sync(t)
	for _, line := range difference(sound, snapshot(t, l.Dataplane)) {
		if strings.HasPrefix(line[2:], "rule") {
			t.Errorf("after a restart: %s", line)
		}
	}
	if _, now := l.classifier.rules.fill(); now != without {
		t.Errorf("%d rules have no number, %d after a restart", without, now)
	}

	l.put(t, ports("default.a", 9)) // those of the former one are needed meanwhile
	l.remove("GlobalNetworkPolicy", "default.z")
	l.free(t)
	l.free(t)
	if _, without := l.classifier.rules.fill(); without != 0 {
		t.Errorf("%d rules have no number although there are some", without)
	}
	l.send(t, ask(1, 2, udp, 1008), policy.Allow)
	l.expect(t, "roomy", "3 allow default|GlobalNetworkPolicy|default.a|ingress|0", "3 deny default|||ingress|-1",
		"1 allow default|GlobalNetworkPolicy|default.a|ingress|8")
}

// Where tables may grow they do, and what has been counted stays.
func TestNumbersGrow(t *testing.T) {
	var d *Dataplane
	d = unhookedWith(t, kernel.Options{
		Sizes: map[string]int{"rule_counters": 16, "rule_names": 16},
		Grow:  func(table string, entries int) error { return d.makeRoom(table, entries) },
	})
	l := newLedgerOn(t, d, ports("default.z", 5))
	for range 3 {
		l.send(t, ask(1, 2, udp, 1004), policy.Allow)
	}
	l.put(t, ports("default.a", 4000))
	l.sync(t)
	if _, without := l.classifier.rules.fill(); without != 0 {
		t.Errorf("%d rules have no number", without)
	}
	l.send(t, ask(1, 2, udp, 1004), policy.Allow)
	l.send(t, ask(1, 2, udp, 4999), policy.Allow)
	l.expect(t, "grown", "3 allow default|GlobalNetworkPolicy|default.z|ingress|4",
		"1 allow default|GlobalNetworkPolicy|default.a|ingress|4", "1 allow default|GlobalNetworkPolicy|default.a|ingress|3999")
	numbersAgree(t, l.Dataplane, l.compiler.Compile(l.store, nil))
}

// The rulesets of an endpoint that is not wanted any more stay until it is removed: a
// round can end before that.
func TestRulesetsStayAsLongAsTheyAreUsed(t *testing.T) {
	l := newLedger(t, ports("default.z", 5))
	s := l.endpoints.slots[api.Key{Kind: api.KindWorkloadEndpoint, Namespace: "blue", Name: "b"}]
	base := int(l.endpoints.records[s].Ingress)
	freed := func() bool {
		return slices.ContainsFunc(l.classifier.extents.free, func(e extent) bool { return e.base <= base && base < e.base+e.size })
	}
	l.store.Apply(api.Change{Key: api.Key{Kind: api.KindWorkloadEndpoint, Namespace: "blue", Name: "b"}})
	ensure := func() *desired.State {
		t.Helper()
		state := &desired.State{Dataplane: desired.Dataplane{Policy: l.compiler.Compile(l.store, nil), Endpoints: localEndpoints(l.store)}}
		pretendAttached(l.Dataplane, state)
		if err := l.Ensure(t.Context(), state); err != nil {
			t.Fatal(err)
		}
		return state
	}
	for range 4 {
		ensure()
		time.Sleep(grace)
	}
	if int(l.endpoints.records[s].Ingress) != base || freed() {
		t.Fatalf("the endpoint's ruleset is freed, and it has it still: %+v", l.endpoints.records[s])
	}
	if err := l.Prune(t.Context(), ensure()); err != nil {
		t.Fatal(err)
	}
	ensure()
	time.Sleep(grace)
	ensure()
	if !freed() {
		t.Error("the ruleset stays although nobody has it")
	}
}

// Policies whose names are too long for the table are told apart, after a restart too.
func TestRulesWithLongNames(t *testing.T) {
	long := "default." + strings.Repeat("n", 230)
	rule := `{action: Allow, protocol: UDP, destination: {ports: [%d]}}`
	l := newLedger(t,
		policyOf("GlobalNetworkPolicy", "default", long+"1", fmt.Sprintf(rule, 53)),
		policyOf("GlobalNetworkPolicy", "default", long+"2", fmt.Sprintf(rule, 54)))
	for range 2 {
		l.send(t, ask(1, 2, udp, 53), policy.Allow)
		l.send(t, ask(1, 2, udp, 54), policy.Allow)
		l.send(t, reply(ask(1, 2, udp, 54)), policy.Allow)
		l.restart(t)
	}
	l.expect(t, "at last", "2 allow default|GlobalNetworkPolicy|"+long+"1|ingress|0", "4 allow default|GlobalNetworkPolicy|"+long+"2|ingress|0")
}

// What counts nothing is not in the metrics, the rest with names for people.
func TestRuleMetrics(t *testing.T) {
	l := newLedger(t, alphaTier,
		policyOf("GlobalNetworkPolicy", "alpha", "alpha.first", `{action: Pass}`),
		policyOf("StagedGlobalNetworkPolicy", "alpha", "alpha.a", `{action: Deny, protocol: UDP}, {action: Pass}`),
		`{apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {namespace: blue, name: default.dns},
			spec: {tier: default, selector: app == 'b', types: [Ingress], ingress: [{action: Deny, protocol: TCP}, {action: Allow, protocol: UDP}]}}`)
	for range 3 {
		l.send(t, ask(1, 2, udp, 53), policy.Allow)
	}
	l.send(t, ask(1, 2, 132, 53), policy.Deny)
	registry := prometheus.NewRegistry()
	if err := registry.Register(l.Dataplane); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		for _, m := range f.Metric {
			line := f.GetName()
			for _, label := range m.Label {
				line += fmt.Sprintf(" %s=%q", label.GetName(), label.GetValue())
			}
			if strings.Contains(line, "rule") && !strings.Contains(line, "_table_") && !strings.Contains(line, "ruleset") {
				got = append(got, fmt.Sprint(line, " ", m.GetCounter().GetValue()+m.GetGauge().GetValue()))
			}
		}
	}
	udpBytes, _ := frameOf(ask(1, 2, udp, 53))
	sctpBytes, _ := frameOf(ask(1, 2, 132, 53))
	want := []string{`calico_xdp_drift_total table="rule_names" 0`, `calico_xdp_rules_without_number 0`}
	for _, m := range []struct {
		labels      string
		udps, sctps int
	}{
		{`action="allow" direction="egress" policy="Profile/open" rule="0" staged="false" tier=""`, 3, 1},
		{`action="allow" direction="ingress" policy="NetworkPolicy/blue/default.dns" rule="1" staged="false" tier="default"`, 3, 0},
		{`action="deny" direction="ingress" policy="" rule="default" staged="false" tier="default"`, 0, 1},
		{`action="deny" direction="ingress" policy="" rule="default" staged="true" tier="default"`, 0, 1},
		{`action="deny" direction="ingress" policy="StagedGlobalNetworkPolicy/alpha.a" rule="0" staged="true" tier="alpha"`, 1, 0},
	} {
		want = append(want, fmt.Sprint("calico_xdp_rule_packets_total ", m.labels, " ", m.udps+m.sctps),
			fmt.Sprint("calico_xdp_rule_bytes_total ", m.labels, " ", m.udps*len(udpBytes)+m.sctps*len(sctpBytes)))
	}
	slices.Sort(got)
	slices.Sort(want)
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("missing: %s", line)
		}
	}
	for _, line := range got {
		if !slices.Contains(want, line) {
			t.Errorf("not wanted: %s", line)
		}
	}
}
