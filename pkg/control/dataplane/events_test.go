package dataplane

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/loader"
	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// listen listens until the test ends.
func listen(t *testing.T, d *Dataplane, kinds EventKinds) *Listener {
	t.Helper()
	l, err := d.Listen(kinds)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// next waits for an event.
func next(t *testing.T, l *Listener) Event {
	t.Helper()
	select {
	case e := <-l.Events:
		if age := time.Since(e.Time); age < 0 || age > time.Minute {
			t.Errorf("an event is of %s", e.Time)
		}
		return e
	case <-time.After(10 * time.Second):
		t.Fatal("no event")
	}
	return Event{}
}

// silence fails if an event comes that should not.
func silence(t *testing.T, l *Listener) {
	t.Helper()
	select {
	case e := <-l.Events:
		t.Errorf("an event comes: %s", eventText(e))
	case <-time.After(50 * time.Millisecond):
	}
}

func eventText(e Event) string {
	text := fmt.Sprintf("%s at %s: protocol %d %s > %s", e.Kind, e.Hook, e.Protocol,
		netip.AddrPortFrom(e.Source, e.SourcePort), netip.AddrPortFrom(e.Destination, e.DestinationPort))
	if e.Reason != "" {
		text += " " + e.Reason
	}
	if e.Rule != nil {
		text += " by " + e.Rule.ID.String()
	}
	if len(e.Rules) > 0 {
		text += " of"
	}
	for _, r := range e.Rules {
		text += " " + r.ID.String()
	}
	return text
}

// logged are tables of resources in which the policies have something to log, and
// staged ones something to say.
func loggedPolicies(t *testing.T, b *bed) {
	t.Helper()
	store := api.NewStore()
	put := func(r api.Resource) { store.Apply(api.Change{Key: api.KeyOf(r), Resource: r}) }
	for n := 1; n <= workloads; n++ {
		w := api.NewWorkloadEndpoint()
		w.Namespace, w.Name = "default", fmt.Sprint("w", n)
		w.Spec.Node, w.Spec.InterfaceName = "here", fmt.Sprint("cali", n)
		w.Spec.IPNetworks = []string{fmt.Sprint("192.168.1.", n), fmt.Sprint("fd01::", n)}
		w.Labels = map[string]string{"n": fmt.Sprint(n)}
		put(w)
	}
	out := v3.NewGlobalNetworkPolicy()
	out.Name = "out"
	out.Spec = v3.GlobalNetworkPolicySpec{Selector: "all()", Types: []v3.PolicyType{"Egress"}, Egress: []v3.Rule{{Action: "Allow"}}}
	put(out)
	in := v3.NewGlobalNetworkPolicy()
	in.Name = "in"
	in.Spec = v3.GlobalNetworkPolicySpec{Selector: "n in {'2', '4'}", Types: []v3.PolicyType{"Ingress"}, Ingress: []v3.Rule{
		{Action: "Log"}, {Action: "Allow", Destination: v3.EntityRule{Selector: "n == '2'"}},
	}}
	put(in)
	staged := v3.NewStagedGlobalNetworkPolicy()
	staged.Name = "in"
	staged.Spec = v3.StagedGlobalNetworkPolicySpec{StagedAction: v3.StagedActionSet, Selector: "n in {'2', '4'}", Types: []v3.PolicyType{"Ingress"},
		Ingress: []v3.Rule{{Action: "Deny"}}}
	put(staged)
	tables := policy.NewCompiler("here").Compile(store, nil)
	for _, p := range tables.Problems {
		t.Fatalf("%s: %v", p.Object, p.Err)
	}
	b.state.Dataplane.Policy = tables
	b.sync(t)
}

const (
	ruleOut   = "default|GlobalNetworkPolicy|out|egress|0"
	ruleLog   = "default|GlobalNetworkPolicy|in|ingress|0"
	ruleIn    = "default|GlobalNetworkPolicy|in|ingress|1"
	ruleInEnd = "default|||ingress|-1"
)

// TestEvents has an event of each kind come about.
func TestEvents(t *testing.T) {
	b := newBed(t)
	loggedPolicies(t, b)
	send := func(to string, port uint16) {
		b.run(t, trial{hook: loader.FromWorkload, packet: frame(w1, to).TCP(4000, port, "S")})
	}
	pass, drop := "protocol 6 192.168.1.1:4000 > 192.168.1.2:80", "protocol 6 192.168.1.1:4000 > 192.168.1.4:80"
	for _, test := range []struct {
		kinds EventKinds
		to    string
		want  []string
	}{
		{EventDrop, w2, nil},
		{EventDrop, w4, []string{"drop at from_workload: " + drop + " drop_ingress_policy by " + ruleInEnd + " of " + ruleOut + " " + ruleInEnd}},
		{EventLog, w2, []string{"log at from_workload: " + pass + " by " + ruleLog + " of " + ruleOut + " " + ruleIn}},
		{EventLog, w4, []string{"log at from_workload: " + drop + " drop_ingress_policy by " + ruleLog + " of " + ruleOut + " " + ruleInEnd}},
		{EventFlow, w2, []string{"flow at from_workload: " + pass + " by " + ruleIn + " of " + ruleOut + " " + ruleIn}},
		{EventFlow, w4, []string{"flow at from_workload: " + drop + " drop_ingress_policy by " + ruleInEnd + " of " + ruleOut + " " + ruleInEnd}},
		{EventStaged, w2, []string{"staged at from_workload: " + pass + " by default|StagedGlobalNetworkPolicy|in|ingress|0 of " + ruleOut + " " + ruleIn}},
		{EventStaged, w4, nil}, // denied either way
		{EventDrop | EventLog, w4, []string{
			"log at from_workload: " + drop + " drop_ingress_policy by " + ruleLog + " of " + ruleOut + " " + ruleInEnd,
			"drop at from_workload: " + drop + " drop_ingress_policy by " + ruleInEnd + " of " + ruleOut + " " + ruleInEnd,
		}},
	} {
		t.Run(fmt.Sprint(test.kinds, " ", test.to), func(t *testing.T) {
			b.forget(t)
			l := listen(t, b.Dataplane, test.kinds)
			send(test.to, 80)
			for _, want := range test.want {
				e := next(t, l)
				if got := eventText(e); got != want {
					t.Errorf("got  %s\nwant %s", got, want)
				}
				if e.Ifindex != b.index["cali1"] || e.Length != 54 {
					t.Errorf("an event of %d bytes on interface %d", e.Length, e.Ifindex)
				}
			}
			silence(t, l)
			// A flow that goes on is judged no more.
			if test.to == w2 {
				send(test.to, 80)
				silence(t, l)
			}
			if n := l.Lost(); n != 0 {
				t.Errorf("%d events were lost", n)
			}
		})
	}
	l := listen(t, b.Dataplane, EventDrop)
	b.run(t, trial{hook: loader.FromWorkload, packet: frame("10.1.2.3", w2).ICMP(8, 0, 7), on: "cali1"})
	if got, want := eventText(next(t, l)), "drop at from_workload: protocol 1 10.1.2.3:0 > 192.168.1.2:2048 drop_spoofed"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestEventsCostNothingUnheard: programs emit events only while somebody listens, and
// the kernel's settings say so through everything that happens to them.
func TestEventsCostNothingUnheard(t *testing.T) {
	b := newBed(t)
	loggedPolicies(t, b)
	drop := trial{hook: loader.FromWorkload, packet: frame(w1, w4).TCP(4000, 80, "S"), want: "shot drop_ingress_policy"}
	settings := func() kernel.Settings {
		s, _, err := b.kernel.Settings.Get(0)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	generation := func() uint32 { return b.Dataplane.endpoints.records[0].Generation }
	quiet, judged := settings(), generation()
	if quiet.Events != 0 || quiet.EventRate != 0 {
		t.Fatalf("nobody listens, and the settings are %+v", quiet)
	}
	b.expect(t, drop)

	one, err := b.Listen(EventDrop)
	if err != nil {
		t.Fatal(err)
	}
	two, err := b.Listen(EventLog | EventFlow)
	if err != nil {
		t.Fatal(err)
	}
	silence(t, one) // what was before
	for range 2 {
		if s := settings(); EventKinds(s.Events) != EventDrop|EventLog|EventFlow || s.EventRate != eventRate {
			t.Fatalf("the settings are %+v", s)
		}
		b.Resync()
		b.sync(t)
	}
	if err := one.Close(); err != nil {
		t.Fatal(err)
	}
	b.sync(t)
	if s := settings(); EventKinds(s.Events) != EventLog|EventFlow {
		t.Fatalf("the settings are %+v", s)
	}
	// Someone else turns them off: that is drift.
	if err := b.kernel.Settings.Put(0, quiet); err != nil {
		t.Fatal(err)
	}
	b.Resync()
	b.sync(t)
	if s := settings(); EventKinds(s.Events) != EventLog|EventFlow {
		t.Fatalf("the settings are %+v", s)
	}
	for range 2 {
		if err := two.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if s := settings(); s != quiet {
		t.Errorf("the settings are %+v after all, and were %+v", s, quiet)
	}
	if n := generation(); n != judged {
		t.Error("flows are judged again because someone listened")
	}
	b.expect(t, drop)
	// It is not kept for the next one.
	three := listen(t, b.Dataplane, EventDrop)
	silence(t, three)
	b.expect(t, drop)
	if e := next(t, three); e.Kind != EventDrop {
		t.Errorf("got %s", eventText(e))
	}
}

// TestListeningBeforeTheFirstRound: who listens early gets what comes.
func TestListeningBeforeTheFirstRound(t *testing.T) {
	d := unhooked(t)
	l := listen(t, d, EventDrop)
	if s, _, err := d.kernel.Settings.Get(0); err != nil || s.Events != 0 {
		t.Fatalf("settings %+v before the first round, %v", s, err)
	}
	state := &desired.State{Dataplane: desired.Dataplane{Policy: twoRulesets(), VXLANVNI: 7}}
	if err := d.Ensure(context.Background(), state); err != nil {
		t.Fatal(err)
	}
	if s, _, err := d.kernel.Settings.Get(0); err != nil || EventKinds(s.Events) != EventDrop || s.VxlanVni != 7 {
		t.Fatalf("settings %+v, %v", s, err)
	}
	if _, err := d.programs.Run(loader.FromWorkload, frame(w1, w2).UDP(1, 2).Bytes(), loader.Context{}); err != nil {
		t.Fatal(err)
	}
	if e := next(t, l); e.Reason != "drop_spoofed" {
		t.Errorf("got %s", eventText(e))
	}
}

// TestEventRate floods: the budget holds, and what is beyond it is counted.
func TestEventRate(t *testing.T) {
	b := newBed(t)
	l := listen(t, b.Dataplane, EventDrop)
	const flood = 3 * eventRate
	packet := frame(w6, w1).UDP(1, 2).Bytes()
	began := time.Now()
	if err := b.host.Do(func() error {
		for range flood {
			if _, err := b.programs.Run(loader.FromWorkload, packet, loader.Context{Ifindex: uint32(b.index["cali6"])}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	got := 0
	for quiet := false; !quiet; {
		select {
		case e := <-l.Events:
			if got++; e.Reason != "drop_egress_policy" {
				t.Fatalf("got %s", eventText(e))
			}
		case <-time.After(200 * time.Millisecond):
			quiet = true
		}
	}
	if lost := int(l.Lost()); got+lost != flood {
		t.Errorf("%d packets: %d events and %d lost", flood, got, lost)
	}
	seconds := int(took/time.Second) + 2 // intervals that it may have touched
	if most := seconds * eventRate * runtime.NumCPU(); got > most {
		t.Errorf("%d events in %s", got, took)
	}
	if n, err := b.eventsLost(); err != nil || n == 0 && took < 500*time.Millisecond {
		t.Errorf("%d lost in all, %v", n, err)
	}
}

// TestSlowListener: one that does not take its events loses them, and holds up nobody.
func TestSlowListener(t *testing.T) {
	b := newBed(t)
	slow, quick := listen(t, b.Dataplane, EventDrop), listen(t, b.Dataplane, EventDrop)
	for range eventQueue {
		slow.events <- Event{}
	}
	b.expect(t, trial{hook: loader.FromWorkload, packet: frame(w6, w1).UDP(1, 2), want: "shot drop_egress_policy"})
	next(t, quick)
	if slow.Lost() != 1 || quick.Lost() != 0 {
		t.Errorf("%d and %d lost", slow.Lost(), quick.Lost())
	}
	if n := len(slices.Collect(func(yield func(Event) bool) {
		for len(slow.Events) > 0 && yield(<-slow.Events) {
		}
	})); n != eventQueue {
		t.Errorf("%d events wait", n)
	}
	want := `# HELP calico_xdp_events_lost_total Events that came faster than they could be told.
# TYPE calico_xdp_events_lost_total counter
calico_xdp_events_lost_total 1
`
	if err := testutil.CollectAndCompare(b.Dataplane, strings.NewReader(want), "calico_xdp_events_lost_total"); err != nil {
		t.Error(err)
	}
}
