package dataplane

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"calico-xdp/pkg/policy"
)

// TestRememberedVerdicts asks rules again and again that take long to search, for every
// source and every port is in many of them, while rules, networks and rulesets come and
// go: what was found before must not answer for what there is now.
func TestRememberedVerdicts(t *testing.T) {
	type rule struct {
		net, port int
		allow     bool
	}
	rng := rand.New(rand.NewPCG(1, 2))
	any := func() rule { return rule{rng.IntN(20), rng.IntN(20), rng.IntN(2) == 0} }
	rules := make([]rule, 600)
	for i := range rules {
		rules[i] = any()
	}
	l := newLedger(t)
	write := func(name string) {
		text := make([]string, len(rules))
		for i, r := range rules {
			text[i] = fmt.Sprintf("{action: %s, protocol: UDP, source: {nets: [10.9.%d.0/24]}, destination: {ports: [%d]}}",
				map[bool]string{true: "Allow", false: "Deny"}[r.allow], r.net, 5000+r.port)
		}
		l.put(t, policyOf("GlobalNetworkPolicy", "default", name, strings.Join(text, ", ")))
	}
	check := func() {
		for net := range 40 {
			for port := range 20 {
				want := policy.Deny
				for _, r := range rules {
					if r.net == net && r.port == port {
						if r.allow {
							want = policy.Allow
						}
						break
					}
				}
				p := ask(1, 2, udp, uint16(5000+port))
				p.Source = netip.AddrFrom4([4]byte{10, 9, byte(net), 1})
				if got := run(t, l.Dataplane, "ingress", p); got != want {
					t.Fatalf("network %d, port %d: %d, want %d", net, port, got, want)
				}
			}
		}
	}
	for change := range 24 {
		name := fmt.Sprint("default.p", change/6)
		switch change % 6 {
		case 0: // another policy, in the place of the one before
			l.remove("GlobalNetworkPolicy", fmt.Sprint("default.p", change/6-1))
			l.free(t)
		case 1, 2: // some other rules
			for range 60 {
				rules[rng.IntN(len(rules))] = any()
			}
		case 3: // a network goes, and another comes
			from, to := rng.IntN(20), 20+rng.IntN(20)
			for i := range rules {
				if rules[i].net == from {
					rules[i].net = to
				}
			}
		case 4: // what is allowed is denied, and the other way round
			for i := range rules {
				rules[i].allow = !rules[i].allow
			}
		case 5:
			l.free(t)
			l.restart(t)
		}
		write(name)
		l.sync(t)
		check()
		check()
	}
}
