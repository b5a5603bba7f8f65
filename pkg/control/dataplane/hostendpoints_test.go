package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"
)

func hostKey(name string) api.Key { return api.Key{Kind: api.KindHostEndpoint, Name: name} }

// hosting is a state with two host endpoints: "some" on interface 7, "rest" on 8, 9 and
// tunnels.
func hosting() *desired.State {
	tables := twoRulesets()
	tables.HostEndpoints = map[api.Key]policy.HostRulesets{
		hostKey("some"): {
			Untracked: policy.Rulesets{Ingress: allow}, PreDNAT: deny,
			Forward: policy.Rulesets{Egress: deny}, Normal: policy.Rulesets{Egress: allow, Ingress: deny},
		},
		hostKey("rest"): {Normal: policy.Rulesets{Egress: deny, Ingress: deny}},
	}
	return &desired.State{Dataplane: desired.Dataplane{
		HostEndpoints: map[int]api.Key{7: hostKey("some"), 8: hostKey("rest"), 9: hostKey("rest"), desired.TunnelIndex: hostKey("rest")},
		Failsafe:      map[desired.FailsafePort]bool{{Protocol: 6, Port: 22}: true},
		Policy:        tables,
	}}
}

func TestHostEndpointRecords(t *testing.T) {
	d, s := unhooked(t), hosting()
	apply(t, d, s)
	base := func(id policy.RulesetID) uint32 { return uint32(d.classifier.live[id].base) }
	some := kernel.HostEndpoint{
		UntrackedIngress: base(allow), PreDnat: base(deny), ForwardEgress: base(deny), Egress: base(allow), Ingress: base(deny),
	}
	rest := kernel.HostEndpoint{Egress: base(deny), Ingress: base(deny)}
	expect := func(when string, want map[uint32]kernel.HostEndpoint, policies uint8) {
		t.Helper()
		got, err := d.kernel.HostEndpoints.Load()
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %+v, want %+v", when, got, want)
		}
		if now, _, err := d.kernel.Settings.Get(0); err != nil || now.HostPolicy != policies {
			t.Errorf("%s: settings %+v %v", when, now, err)
		}
	}
	both := uint8(kernel.HostPolicyTracked | kernel.HostPolicyUntracked)
	expect("all", map[uint32]kernel.HostEndpoint{0: rest, 7: some, 8: rest, 9: rest}, both)

	w := &s.Dataplane
	delete(w.HostEndpoints, 8)
	w.HostEndpoints[desired.TunnelIndex] = hostKey("some")
	apply(t, d, s)
	expect("one less", map[uint32]kernel.HostEndpoint{0: some, 7: some, 9: rest}, both)

	w.HostEndpoints = map[int]api.Key{9: hostKey("rest")}
	apply(t, d, s)
	expect("nothing untracked", map[uint32]kernel.HostEndpoint{9: rest}, uint8(kernel.HostPolicyTracked))

	// What the compiler does not know drops.
	w.HostEndpoints = map[int]api.Key{9: hostKey("unknown")}
	apply(t, d, s)
	expect("unknown", map[uint32]kernel.HostEndpoint{9: {}}, uint8(kernel.HostPolicyTracked))

	w.HostEndpoints = nil
	apply(t, d, s)
	expect("none", map[uint32]kernel.HostEndpoint{}, 0)
}

// A stage whose ruleset has no room denies, and the host endpoint is named.
func TestHostEndpointWithoutItsRuleset(t *testing.T) {
	d, s := unhooked(t), hosting()
	d.classifier.extents = newExtents(16) // too few words for two rulesets
	pretendAttached(d, s)
	err := d.Ensure(context.Background(), s)
	var failing desired.EndpointErrors
	if !errors.As(err, &failing) || failing[hostKey("some")] == nil {
		t.Fatalf("got %v", err)
	}
	r, _, err := d.kernel.HostEndpoints.Get(7)
	if err != nil {
		t.Fatal(err)
	}
	for field, id := range stages(s.Dataplane.Policy.HostEndpoints[hostKey("some")], &r) {
		switch placed := d.classifier.live[id]; {
		case id == 0 && *field != 0, placed != nil && *field != uint32(placed.base), id != 0 && placed == nil && *field != denyAll:
			t.Errorf("ruleset %d is at %x of %+v", id, *field, r)
		}
	}
}

// Whatever changes about host endpoints, live flows are judged again; otherwise not.
func TestHostEndpointsMoveTheGeneration(t *testing.T) {
	d, s := unhooked(t), hosting()
	w := &s.Dataplane
	generation := func() uint32 {
		e, _, err := d.kernel.Endpoints.Get(0)
		if err != nil {
			t.Fatal(err)
		}
		return e.Generation
	}
	apply(t, d, s)
	for _, step := range []struct {
		name  string
		do    func()
		moves bool
	}{
		{"nothing", func() {}, false},
		{"another policy", func() {
			h := w.Policy.HostEndpoints[hostKey("rest")]
			h.Normal.Ingress = allow
			w.Policy.HostEndpoints[hostKey("rest")] = h
		}, true},
		{"a policy at a stage that had none", func() {
			h := w.Policy.HostEndpoints[hostKey("rest")]
			h.Forward.Ingress = allow
			w.Policy.HostEndpoints[hostKey("rest")] = h
		}, true},
		{"another interface", func() { w.HostEndpoints[10] = hostKey("rest") }, true},
		{"another host endpoint", func() { w.HostEndpoints[10] = hostKey("some") }, true},
		{"one interface less", func() { delete(w.HostEndpoints, 10) }, true},
		{"another failsafe port", func() { w.Failsafe[desired.FailsafePort{Protocol: 17, Port: 53}] = true }, true},
		{"one failsafe port less", func() { clear(w.Failsafe) }, true},
		{"nothing, again", func() {}, false},
	} {
		before := generation()
		step.do()
		apply(t, d, s)
		if now := generation(); (now != before) != step.moves {
			t.Errorf("%s: generation %d after %d", step.name, now, before)
		}
	}
	for name, touched := range map[string]struct {
		id   policy.RulesetID
		want bool
	}{"of a host endpoint": {deny, true}, "of nobody": {99, false}} {
		if got := hostTouched(w, placed{touched: map[policy.RulesetID]bool{touched.id: true}}); got != touched.want {
			t.Errorf("a ruleset %s is touched: %v", name, got)
		}
	}
}

func TestFailsafeKeys(t *testing.T) {
	text := func(net string) []string {
		p := desired.FailsafePort{Protocol: 6, Port: 22, Egress: true}
		if net != "" {
			p.Net = netip.MustParsePrefix(net)
		}
		var out []string
		for k := range failsafeOf(&desired.Dataplane{Failsafe: map[desired.FailsafePort]bool{p: true}}) {
			if k.Direction != uint8(kernel.DirectionEgress) || k.Protocol != 6 || k.Port != kernel.BigEndian16(22) {
				t.Errorf("%+v", k)
			}
			out = append(out, fmt.Sprintf("%s/%d", netip.AddrFrom16(k.Bytes), k.PrefixLength))
		}
		return out
	}
	for net, want := range map[string]string{
		"":           "[::/32]",
		"10.0.0.0/8": "[::ffff:10.0.0.0/136]",
		"0.0.0.0/0":  "[::ffff:0.0.0.0/128]",
		"fd00::/8":   "[fd00::/40]",
	} {
		if got := fmt.Sprint(text(net)); got != want {
			t.Errorf("%s: %s, want %s", net, got, want)
		}
	}
	// All of IPv6 is not IPv4, and no address of either is left out or twice in it.
	parts := withoutMapped(netip.MustParsePrefix("::/0"))
	for _, c := range []struct {
		address string
		want    int
	}{{"::", 1}, {"::1", 1}, {"::ffff:0:0:1", 1}, {"::fffe:10.0.0.1", 1}, {"fd00::1", 1}, {"2001:db8::1", 1}, {"ffff::", 1}} {
		n := 0
		for _, p := range parts {
			if p.Contains(netip.MustParseAddr(c.address)) {
				n++
			}
		}
		if n != c.want {
			t.Errorf("%s is in %d of %v", c.address, n, parts)
		}
	}
	mapped := netip.AddrFrom16(netip.MustParseAddr("10.0.0.1").As16())
	for _, p := range parts {
		if kernel.NewPrefix(p).PrefixLength <= 128 && samePrefix(p, mapped) {
			t.Errorf("%v has IPv4's %v", p, mapped)
		}
	}
}

// samePrefix is Contains, which IPv4 in IPv6 is never in.
func samePrefix(p netip.Prefix, a netip.Addr) bool {
	x, y := p.Addr().As16(), a.As16()
	for i := range p.Bits() {
		if (x[i/8]^y[i/8])&(0x80>>(i%8)) != 0 {
			return false
		}
	}
	return true
}
