package dataplane

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"
	"calico-xdp/pkg/policy/policytest"
)

// A ninth workload, which the bed does not have room for.
const ninth, w9 = 9, "192.168.1.9"

// fullBed is a bed whose tables are exactly full and do not grow. Its rulesets tell two
// classes of addresses apart.
func fullBed(t *testing.T) (*bed, *bytes.Buffer) {
	t.Helper()
	sizes := map[string]int{
		"endpoints": workloads + 1, "workloads": 2 * workloads, "routes": 16, "peers": 6, "host_classes": 1, "net_classes": 2,
		"ruleset_words": 1 + 2*(headerWords+1+4*capacity(1)), "host_endpoints": 1, "failsafe": 1, "nat_nets": 1,
		"rule_counters": 3, "rule_names": 2,
	}
	var log bytes.Buffer
	d := growing(t, Options{TableSizes: sizes, TableLimits: sizes})
	d.log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelInfo}))
	b := bedOn(t, d)
	w := &b.state.Dataplane
	w.Policy.Peers[netip.MustParsePrefix("10.77.0.1/32")] = 1
	w.Policy.Peers[netip.MustParsePrefix("10.78.0.0/16")] = 1
	w.HostEndpoints = map[int]api.Key{b.index["eth0"]: {Kind: api.KindHostEndpoint, Name: "eth0"}}
	w.Policy.HostEndpoints = map[api.Key]policy.HostRulesets{
		{Kind: api.KindHostEndpoint, Name: "eth0"}: {Normal: policy.Rulesets{Egress: allow, Ingress: allow}},
	}
	w.Failsafe = map[desired.FailsafePort]bool{{Protocol: tcp, Port: 22}: true}
	w.NATNets = map[netip.Prefix]desired.NATNet{netip.MustParsePrefix("192.168.0.0/16"): {Inside: true}}
	b.sync(t)
	for _, f := range b.Tables() {
		if f.Table == "allowed_sources" {
			continue // nobody wants any
		}
		if f.Entries != sizes[f.Table] || f.Capacity != f.Entries || f.Refused != 0 {
			t.Errorf("not exactly full: %+v", f)
		}
	}
	log.Reset()
	return b, &log
}

// Whatever table is full: what does not fit is closed, which is said, and nothing else
// changes.
func TestFullTables(t *testing.T) {
	newcomer := func(b *bed, ruleset policy.RulesetID) {
		e := b.state.Dataplane.Endpoints[key(sendOnly)]
		e.Key, e.Interface, e.Ifindex = key(ninth), "lo", 1
		e.MAC, e.Addresses = desired.MAC{2, 0, 0, 0, 0, ninth}, []netip.Addr{netip.MustParseAddr(w9)}
		b.state.Dataplane.Endpoints[e.Key] = e
		b.state.Dataplane.Policy.Endpoints[e.Key] = policy.Rulesets{Egress: ruleset, Ingress: ruleset}
	}
	leave := func(b *bed, n int) { delete(b.state.Dataplane.Endpoints, key(n)) }
	extra := netip.MustParsePrefix("10.99.9.9/32")
	hep := api.Key{Kind: api.KindHostEndpoint, Name: "cali1"}
	for _, test := range []struct {
		name, table string
		add, remove func(b *bed)
		endpoint    api.Key // that is reported, if one is
	}{
		{"endpoint", "endpoints", func(b *bed) { newcomer(b, allow) }, func(b *bed) { leave(b, shut) }, key(ninth)},
		{"address", "workloads", func(b *bed) {
			e := b.state.Dataplane.Endpoints[key(plainLink)]
			e.Addresses = append(slices.Clone(e.Addresses), netip.MustParseAddr(w9))
			b.state.Dataplane.Endpoints[e.Key] = e
		}, func(b *bed) { leave(b, shut) }, key(plainLink)},
		{"route", "routes", func(b *bed) {
			b.state.Dataplane.Routes[extra] = desired.Route{Kind: desired.RoutePeerHost}
		}, func(b *bed) { delete(b.state.Dataplane.Routes, netip.MustParsePrefix("192.168.5.0/26")) }, api.Key{}},
		{"peer", "peers", func(b *bed) {
			b.state.Dataplane.Peers[extra.Addr()] = desired.Peer{}
		}, func(b *bed) { delete(b.state.Dataplane.Peers, netip.MustParseAddr(vxlan4)) }, api.Key{}},
		{"failsafe port", "failsafe", func(b *bed) {
			b.state.Dataplane.Failsafe[desired.FailsafePort{Protocol: tcp, Port: 179}] = true
		}, func(b *bed) { delete(b.state.Dataplane.Failsafe, desired.FailsafePort{Protocol: tcp, Port: 22}) }, api.Key{}},
		{"net of natOutgoing", "nat_nets", func(b *bed) {
			b.state.Dataplane.NATNets[extra] = desired.NATNet{Inside: true}
		}, func(b *bed) { delete(b.state.Dataplane.NATNets, netip.MustParsePrefix("192.168.0.0/16")) }, api.Key{}},
		{"host endpoint", "host_endpoints", func(b *bed) {
			b.state.Dataplane.HostEndpoints[1] = hep
			b.state.Dataplane.Policy.HostEndpoints[hep] = policy.HostRulesets{Normal: policy.Rulesets{Egress: allow, Ingress: allow}}
		}, func(b *bed) { delete(b.state.Dataplane.HostEndpoints, b.index["eth0"]) }, api.Key{}},
		{"address of a set", "host_classes", func(b *bed) { b.state.Dataplane.Policy.Peers[extra] = 1 },
			func(b *bed) { delete(b.state.Dataplane.Policy.Peers, netip.MustParsePrefix("10.77.0.1/32")) }, api.Key{}},
		{"net of a set", "net_classes", func(b *bed) { b.state.Dataplane.Policy.Peers[netip.MustParsePrefix("10.79.0.0/16")] = 1 },
			func(b *bed) { delete(b.state.Dataplane.Policy.Peers, netip.MustParsePrefix("10.78.0.0/16")) }, api.Key{}},
		{"ruleset", "ruleset_words", func(b *bed) {
			b.state.Dataplane.Policy.Rulesets[9] = twoRulesets().Rulesets[allow]
			b.may(t, sendOnly, 9, 9)
		}, func(b *bed) {
			for _, n := range []int{shut, hearOnly} {
				b.state.Dataplane.Policy.Endpoints[key(n)] = policy.Rulesets{Egress: allow, Ingress: allow}
			}
			delete(b.state.Dataplane.Policy.Rulesets, deny)
		}, key(sendOnly)},
	} {
		t.Run(test.name, func(t *testing.T) {
			b, log := fullBed(t)
			round := func() error {
				pretendAttached(b.Dataplane, b.state)
				return errors.Join(b.Ensure(context.Background(), b.state), b.Prune(context.Background(), b.state))
			}
			d := dialog{b, w1, w2, tcp}
			d.establish(t)
			if test.name == "ruleset" { // may syncs, which fails
				b.state.Dataplane.Policy.Rulesets[9] = twoRulesets().Rulesets[allow]
				b.state.Dataplane.Policy.Endpoints[key(sendOnly)] = policy.Rulesets{Egress: 9, Ingress: 9}
			} else {
				test.add(b)
			}
			for range 3 {
				err := round()
				if !desired.Partial(err) || !strings.Contains(err.Error(), kernel.ErrFull.Error()) {
					t.Fatalf("%v", err)
				}
				var failing desired.EndpointErrors
				if errors.As(err, &failing) != (test.endpoint != api.Key{}) || len(failing) > 1 || failing != nil && failing[test.endpoint] == nil {
					t.Errorf("failing endpoints: %v", failing)
				}
				want(t, d.back(t, "A"), fine)
				want(t, dialog{b, w5, w6, udp}.there(t, ""), map[bool]string{false: fine, true: "shot drop_egress_policy"}[test.endpoint == key(sendOnly)])
			}
			for _, f := range b.Tables() {
				if full := f.Table == test.table; (f.Refused > 0) != full || f.Entries > f.Capacity {
					t.Errorf("%+v", f)
				}
			}
			if n := strings.Count(log.String(), `msg="table is full`); n != 1 {
				t.Errorf("logged %d times:\n%s", n, log)
			}
			test.remove(b)
			var err error
			for range 2 { // what leaves makes room at the end of a round
				err = round()
			}
			if err != nil {
				t.Errorf("with room: %v", err)
			}
			want(t, d.back(t, "A"), fine)
		})
	}
}

// An address of a set that there is no room for is not allowed what it should not be:
// where nothing but its own deny rule would have stopped it, the ruleset is closed.
func TestAddressesWithoutRoom(t *testing.T) {
	const policies = `
kind: GlobalNetworkPolicy
metadata: {name: default.only}
spec:
  selector: role == 'only'
  ingress: [{action: Allow, source: {selector: role == 'friend'}}]
---
kind: GlobalNetworkPolicy
metadata: {name: default.but}
spec:
  selector: role == 'but'
  ingress: [{action: Deny, source: {selector: role == 'friend'}}, {action: Allow}]
---
kind: GlobalNetworkPolicy
metadata: {name: default.all}
spec:
  selector: role == 'all'
  ingress: [{action: Allow, source: {selector: role == 'friend'}}, {action: Log, source: {selector: role == 'friend'}}, {action: Allow}]
`
	store := api.NewStore()
	add := func(text string) {
		r, err := api.Decode([]byte("apiVersion: projectcalico.org/v3\n" + text))
		if err != nil {
			t.Fatal(err)
		}
		api.Default(r)
		store.Apply(api.Change{Key: api.KeyOf(r), Resource: r})
	}
	for text := range strings.SplitSeq(policies, "---\n") {
		add(strings.TrimPrefix(text, "\n"))
	}
	endpoint := func(role, node, address string) {
		add("kind: WorkloadEndpoint\nmetadata: {name: " + node + "-k8s-" + role + "-eth0, namespace: default, labels: {role: " + role +
			"}}\nspec: {orchestrator: k8s, pod: " + role + ", endpoint: eth0, node: " + node + ", interfaceName: cali" + role +
			", ipNetworks: [" + address + "/32]}")
	}
	for i, role := range []string{"only", "but", "all"} {
		endpoint(role, policytest.Node, "192.168.1."+string(rune('1'+i)))
	}
	endpoint("friend", "elsewhere", "192.168.9.9")
	limit := map[string]int{"host_classes": 1}
	d := growing(t, Options{TableSizes: limit, TableLimits: limit})
	s := compiled(store)
	pretendAttached(d, s)
	// Something else takes the only place.
	if err := d.kernel.HostClasses.Put(kernel.NewAddress(netip.MustParseAddr("10.0.0.1")), 0); err != nil {
		t.Fatal(err)
	}
	err := d.Ensure(context.Background(), s)
	var failing desired.EndpointErrors
	if !errors.As(err, &failing) || !desired.Partial(err) {
		t.Fatal(err)
	}
	for key := range s.Dataplane.Endpoints {
		if but := strings.Contains(key.Name, "-but-"); (failing[key] != nil) != but {
			t.Errorf("%s: %v", key.Name, failing[key])
		}
	}
	if err := d.Prune(context.Background(), s); err != nil {
		t.Fatal(err)
	}
	if err := d.Ensure(context.Background(), s); err != nil {
		t.Errorf("with room: %v", err)
	}
	if n := testutil.CollectAndCount(d, "calico_xdp_table_full_total"); n != len(d.Tables()) {
		t.Errorf("%d metrics of %d tables", n, len(d.Tables()))
	}
}

// Tables that have grown are found as they are: nothing is rewritten.
func TestRestartAfterGrowthRewritesNothing(t *testing.T) {
	small := map[string]int{
		"endpoints": 2, "workloads": 2, "routes": 1, "peers": 1, "host_classes": 1, "net_classes": 1, "ruleset_words": 64,
	}
	store := rich(t)
	d := growing(t, Options{TableSizes: small})
	apply(t, d, compiled(store))
	before, sizes := snapshot(t, d), d.Tables()
	for _, f := range sizes {
		if declared := small[f.Table]; declared > 0 && f.Capacity <= declared {
			t.Errorf("%+v has not grown", f)
		}
	}
	d = restarted(d)
	d.growth.step = func(step string) { t.Errorf("grows again: %s", step) }
	apply(t, d, compiled(store))
	if diff := difference(before, snapshot(t, d)); len(diff) > 0 {
		t.Errorf("%d entries are different:\n%.2000s", len(diff), strings.Join(diff, "\n"))
	}
	if again := d.Tables(); !slices.Equal(sizes, again) {
		t.Errorf("%+v, then %+v", sizes, again)
	}
}
