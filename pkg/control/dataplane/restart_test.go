package dataplane

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/loader"
	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"
	"calico-xdp/pkg/policy/policytest"
	"calico-xdp/tools/testbed"
)

// snapshot is all that the kernel's tables hold, but flows and counters, one entry a
// line, and of the rulesets those that an endpoint has, with their rules' names. Slot 0's generation is left
// out: it says that next hops have to be asked for again, which every start does.
func snapshot(t testing.TB, d *Dataplane) map[string]string {
	t.Helper()
	return snapshotWith(t, d, 1)
}

// generationless is a snapshot in which generations do not count: repairing may
// raise them.
func generationless(t testing.TB, d *Dataplane) map[string]string {
	t.Helper()
	return snapshotWith(t, d, 0)
}

func snapshotWith(t testing.TB, d *Dataplane, generations uint32) map[string]string {
	t.Helper()
	k, out := d.kernel, make(map[string]string)
	endpoints, err := k.Endpoints.Load()
	if err != nil {
		t.Fatal(err)
	}
	delete(endpoints, 0)
	for slot, e := range endpoints {
		if e.Generation *= generations; e != (kernel.Endpoint{}) {
			out[fmt.Sprint("endpoint ", slot)] = fmt.Sprintf("%+v", e)
		}
	}
	lines(t, out, "workload", k.Workloads)
	lines(t, out, "route", k.Routes)
	lines(t, out, "peer", k.Peers)
	lines(t, out, "host class", k.HostClasses)
	lines(t, out, "net class", k.NetClasses)
	lines(t, out, "settings", k.Settings)
	lines(t, out, "host endpoint", k.HostEndpoints)
	lines(t, out, "failsafe", k.Failsafe)
	lines(t, out, "failsafe ports", k.FailsafePorts)
	lines(t, out, "XDP rulesets", k.XDPRulesets)
	for name, nodes := range map[string]*kernel.TrieNodes{"class": k.ClassNodes, "place": k.PlaceNodes} {
		for at, value := range trieNumbers(t, nodes) {
			out[name+" from "+at] = fmt.Sprint(value)
		}
	}
	ports, err := k.Ports.Load()
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range ports {
		if p != (kernel.PortClass{}) {
			out[fmt.Sprint("port class ", i)] = fmt.Sprint(p.Destination, p.Source)
		}
	}
	used, counting := make(map[int]bool), make(map[uint32]bool)
	for _, e := range endpoints {
		for _, base := range []uint32{e.Egress, e.Ingress, e.StagedEgress, e.StagedIngress} {
			used[int(base)] = true
		}
	}
	hosts, err := hostRulesets(k.HostEndpoints)
	if err != nil {
		t.Fatal(err)
	}
	for _, base := range hosts {
		used[int(base)] = true
	}
	for _, r := range d.classifier.live {
		words, err := k.Words.Read(r.base, r.size)
		if err != nil {
			t.Fatal(err)
		}
		if used[r.base] {
			out[fmt.Sprint("ruleset ", r.base)] = fmt.Sprintf("%x", words)
			for _, n := range r.numbers() {
				counting[n] = true
			}
		}
	}
	names, err := k.RuleNames.Load()
	if err != nil {
		t.Fatal(err)
	}
	for n, name := range names {
		// What rulesets have that are about to be freed is too.
		numbered := d.classifier.rules.numbered
		if counting[n] || int(n) >= len(numbered) || numbered[n].uses == 0 {
			out[fmt.Sprint("rule name ", n)] = fmt.Sprint(name, name.Action(), name.Staged())
		}
	}
	return out
}

func lines[K, V comparable](t testing.TB, out map[string]string, name string, table kernel.Table[K, V]) {
	t.Helper()
	all, err := table.Load()
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range all {
		out[fmt.Sprint(name, " ", k)] = fmt.Sprintf("%+v", v)
	}
}

// difference is what became of a snapshot: "+ key value", "- key value".
func difference(before, after map[string]string) []string {
	var out []string
	for k, v := range before {
		if after[k] != v {
			out = append(out, fmt.Sprintf("- %s %s", k, v))
		}
	}
	for k, v := range after {
		if before[k] != v {
			out = append(out, fmt.Sprintf("+ %s %s", k, v))
		}
	}
	slices.Sort(out)
	return out
}

// compiled is the state of a node with these resources, compiled from nothing, as a
// process does that has just started.
func compiled(store *api.Store) *desired.State {
	w := desired.Dataplane{
		Node:      desired.NodeAddresses{IPv4: netip.MustParseAddr(node4), VXLANMAC: desired.MAC{0x66, 0, 0, 0, 0, 1}},
		Endpoints: localEndpoints(store),
		Routes: map[netip.Prefix]desired.Route{
			netip.MustParsePrefix(node4 + "/32"):    {Kind: desired.RouteHost},
			netip.MustParsePrefix("192.168.4.0/26"): {Kind: desired.RouteWorkload, Via: netip.MustParseAddr(ipip4), Encap: desired.EncapIPIP},
		},
		Peers:     map[netip.Addr]desired.Peer{netip.MustParseAddr(ipip4): {VXLANMAC: desired.MAC{0x66, 0, 0, 0, 0, 5}}},
		VXLANPort: 4789, VXLANVNI: 4096,
		HostEndpoints: make(map[int]api.Key),
		Failsafe: map[desired.FailsafePort]bool{
			{Protocol: 6, Port: 22}: true,
			{Protocol: 17, Port: 53, Egress: true, Net: netip.MustParsePrefix("10.0.0.0/8")}: true,
		},
		Policy: policy.NewCompiler(policytest.Node).Compile(store, nil),
	}
	for i, k := range slices.SortedFunc(maps.Keys(w.Policy.HostEndpoints), compareKeys) {
		w.HostEndpoints[200+i] = k
		w.HostEndpoints[desired.TunnelIndex] = k
	}
	// Interfaces have numbers of their own, the same after a restart.
	for i, k := range slices.SortedFunc(maps.Keys(w.Endpoints), compareKeys) {
		e := w.Endpoints[k]
		e.Ifindex = 100 + i
		w.Endpoints[k] = e
	}
	return &desired.State{Dataplane: w}
}

func apply(t testing.TB, d *Dataplane, s *desired.State) {
	t.Helper()
	pretendAttached(d, s)
	if err := d.Ensure(context.Background(), s); err != nil {
		t.Fatal(err)
	}
	if err := d.Prune(context.Background(), s); err != nil {
		t.Fatal(err)
	}
}

// addHosts adds host endpoints with policies at all stages.
func addHosts(store *api.Store) {
	put := func(r api.Resource) { store.Apply(api.Change{Key: api.KeyOf(r), Resource: r}) }
	for _, name := range []string{"eth8", "*"} {
		h := v3.NewHostEndpoint()
		h.Name = "h-" + strings.Replace(name, "*", "all", 1)
		h.Spec = v3.HostEndpointSpec{Node: policytest.Node, InterfaceName: name}
		put(h)
	}
	for i, stage := range []string{"untracked", "pre-dnat", "forward", "normal"} {
		p := v3.NewGlobalNetworkPolicy()
		p.Name = "h-" + stage
		order := float64(i)
		some := v3.EntityRule{Nets: []string{fmt.Sprintf("198.51.%d.0/24", i)}}
		p.Spec = v3.GlobalNetworkPolicySpec{
			Tier: "default", Order: &order, Selector: "all()",
			DoNotTrack: i == 0, PreDNAT: i == 1, ApplyOnForward: i < 3,
			Types:   []v3.PolicyType{v3.PolicyTypeIngress},
			Ingress: []v3.Rule{{Action: v3.Deny, Source: some}, {Action: v3.Allow, Destination: some}},
		}
		if i != 1 {
			p.Spec.Types = append(p.Spec.Types, v3.PolicyTypeEgress)
			p.Spec.Egress = p.Spec.Ingress
		}
		put(p)
	}
}

// rich is a store whose tables all have entries.
func rich(t testing.TB) *api.Store {
	t.Helper()
	for seed := range 1000 {
		store := policytest.Stores().Example(seed)
		addHosts(store)
		w := compiled(store).Dataplane
		hosts, nets := 0, 0
		for p := range w.Policy.Peers {
			if p.IsSingleIP() {
				hosts++
			} else {
				nets++
			}
		}
		if hosts > 2 && nets > 2 && len(w.Policy.DestinationPorts) > 2 && len(w.Endpoints) > 2 && len(w.Policy.Rulesets) > 3 {
			return store
		}
	}
	t.Fatal("no such store")
	return nil
}

// restarted is a dataplane that finds the tables and programs of a former one.
func restarted(d *Dataplane) *Dataplane {
	again := &Dataplane{options: d.options, log: slog.New(slog.DiscardHandler), links: d.links, attached: make(map[loader.Attachment]bool)}
	again.open(d.kernel, d.programs)
	return again
}

// A process that starts over finds everything as it should be.
func TestRestartRewritesNothing(t *testing.T) {
	staged := func(s *api.Store) bool {
		for _, r := range compiled(s).Dataplane.Policy.Endpoints {
			if r.StagedIngress != 0 {
				return true
			}
		}
		return false
	}
	for seed, left := 0, 6; left > 0; seed++ {
		store := policytest.Stores().Example(seed)
		if left <= 2 && !staged(store) {
			continue
		}
		left--
		d := unhooked(t)
		apply(t, d, compiled(store))
		before := snapshot(t, d)
		for range 2 {
			d = restarted(d)
			apply(t, d, compiled(store))
			if diff := difference(before, snapshot(t, d)); len(diff) > 0 {
				t.Fatalf("seed %d: %d entries are different after a restart:\n%s", seed, len(diff), strings.Join(diff[:min(20, len(diff))], "\n"))
			}
		}
	}
}

// Rulesets that are too large for one word a vector are found again too.
func TestRestartRewritesNoLargeRuleset(t *testing.T) {
	var text strings.Builder
	text.WriteString("apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: default.large}\nspec:\n  tier: default\n  selector: all()\n  types: [Ingress]\n  ingress:\n")
	for i := range 300 {
		fmt.Fprintf(&text, "  - {action: Allow, protocol: TCP, source: {nets: [10.%d.0.0/16]}, destination: {ports: [%d]}}\n", i%256, 1000+7*i)
	}
	large, err := api.Decode([]byte(text.String()))
	if err != nil {
		t.Fatal(err)
	}
	store := rich(t)
	store.Apply(api.Change{Key: api.KeyOf(large), Resource: large})
	d := unhooked(t)
	apply(t, d, compiled(store))
	rules := 0
	for _, r := range d.classifier.live {
		rules = max(rules, r.rules)
	}
	if rules < 300 {
		t.Fatalf("the largest ruleset has %d rules", rules)
	}
	before := snapshot(t, d)
	for range 2 {
		d = restarted(d)
		apply(t, d, compiled(store))
		if diff := difference(before, snapshot(t, d)); len(diff) > 0 {
			t.Fatalf("%d entries are different after a restart:\n%.2000s", len(diff), strings.Join(diff, "\n"))
		}
	}
}

// A process that starts over with another state changes what is different, and judges
// as one that has never been away.
func TestRestartWithAnotherState(t *testing.T) {
	d := unhooked(t)
	store := rich(t)
	s := compiled(store)
	apply(t, d, s)
	for _, change := range []struct {
		name string
		do   func(w *desired.Dataplane)
		want []string // the keys that change
	}{
		{"route", func(w *desired.Dataplane) {
			w.Routes[netip.MustParsePrefix("192.168.9.0/26")] = desired.Route{Kind: desired.RouteBlock}
			delete(w.Routes, netip.MustParsePrefix(node4+"/32"))
		}, []string{"route", "place"}},
		{"peer", func(w *desired.Dataplane) {
			w.Peers[netip.MustParseAddr(ipip4)] = desired.Peer{VXLANMAC: desired.MAC{0x66, 0, 0, 0, 0, 6}}
		}, []string{"peer"}},
		{"settings", func(w *desired.Dataplane) { w.ToHost = desired.ToHostAccept }, []string{"settings"}},
		{"MAC", func(w *desired.Dataplane) {
			k := withAddress(w)
			e := w.Endpoints[k]
			e.MAC = desired.MAC{2, 2, 2, 2, 2, 2}
			w.Endpoints[k] = e
		}, []string{"endpoint"}},
		{"endpoint", func(w *desired.Dataplane) {
			delete(w.Endpoints, withAddress(w))
		}, []string{"endpoint", "workload", "place", "ruleset", "rule name"}},
	} {
		t.Run(change.name, func(t *testing.T) {
			before := snapshot(t, d)
			change.do(&s.Dataplane)
			again := compiled(store)
			again.Dataplane.Routes, again.Dataplane.Peers = s.Dataplane.Routes, s.Dataplane.Peers
			again.Dataplane.Endpoints, again.Dataplane.ToHost = s.Dataplane.Endpoints, s.Dataplane.ToHost
			d = restarted(d)
			apply(t, d, again)
			diff := difference(before, snapshot(t, d))
			if len(diff) == 0 {
				t.Error("nothing changed")
			}
			for _, line := range diff {
				if !slices.ContainsFunc(change.want, func(p string) bool { return strings.HasPrefix(line[2:], p+" ") }) {
					t.Errorf("changed too: %s", line)
				}
			}
		})
	}
}

// Two processes, one after the other, over the same pins.
func TestPinsOutliveTheProcess(t *testing.T) {
	pins := filepath.Join("/sys/fs/bpf", fmt.Sprintf("dp-%d-pins", os.Getpid()))
	testbed.CheckNoLeaks(t, pins)
	ns := testbed.NewNamespace(t, "pins")
	do := func(fn func() error) {
		t.Helper()
		if err := ns.Do(fn); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { ns.Do(func() error { _, err := Detach(pins); return err }) })
	for i := range 4 {
		testbed.Veth(t, ns, fmt.Sprint("cali", i), ns, fmt.Sprint("peer", i))
	}
	testbed.Veth(t, ns, "side0", ns, "side1")
	store := rich(t)
	state := func() *desired.State {
		s := compiled(store)
		for i, k := range slices.SortedFunc(maps.Keys(s.Dataplane.Endpoints), compareKeys) {
			e := s.Dataplane.Endpoints[k]
			e.Ifindex = ns.Link(t, fmt.Sprint("cali", i%3)).Attrs().Index
			if s.Dataplane.Endpoints[k] = e; i >= 3 {
				delete(s.Dataplane.Endpoints, k)
			}
		}
		up := ns.Link(t, "cali3").Attrs().Index
		s.Dataplane.Uplinks = map[int]desired.Link{up: {Name: "cali3", Index: up, Up: true}}
		all, eth8 := hostKey("h-all"), hostKey("h-eth8")
		s.Dataplane.HostEndpoints = map[int]api.Key{desired.TunnelIndex: all, up: all, ns.Link(t, "side0").Attrs().Index: eth8}
		return s
	}
	var before map[string]string
	var links map[loader.Attachment]bool
	for round := range 3 {
		var d *Dataplane
		do(func() (err error) {
			d, err = New(Options{PinDir: pins, XDP: true}, slog.New(slog.DiscardHandler))
			return err
		})
		s := state()
		do(func() error { return d.Ensure(context.Background(), s) })
		do(func() error { return d.Prune(context.Background(), s) })
		now := snapshot(t, d)
		list, err := d.links.List()
		if err != nil {
			t.Fatal(err)
		}
		if want := 2*len(s.Dataplane.Endpoints) + 2*3; len(list) != want {
			t.Errorf("%d links, want %d", len(list), want)
		}
		if round > 0 {
			if diff := difference(before, now); len(diff) > 0 {
				t.Errorf("round %d: %s", round, strings.Join(diff, "\n"))
			}
			if !maps.Equal(list, links) {
				t.Errorf("links %v, then %v", links, list)
			}
		}
		before, links = now, list
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	// An interface that is gone while no process runs leaves no link behind.
	ns.MustRun(t, "ip", "link", "del", "cali3")
	var removed []string
	do(func() (err error) {
		removed, err = Detach(pins)
		return err
	})
	if len(removed) != len(links)+1 {
		t.Errorf("removed %v", removed)
	}
	if _, err := os.Stat(pins); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", pins, err)
	}
	do(func() error {
		left, err := Detach(pins) // again: there is nothing
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("removed %v", left)
		}
		return err
	})
}
