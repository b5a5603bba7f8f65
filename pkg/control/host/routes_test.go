package host

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/control/reconcile"
	"calico-xdp/tools/testbed"
)

func TestDrift(t *testing.T) {
	host, _, want := fixture(t)
	n := open(t, host.Namespace, Options{})
	settle(t, n, want)
	all := slices.Concat(defaults, ours)
	for _, test := range []struct {
		command string
		drift   reconcile.Drift
	}{
		{"ip route del 192.168.0.64/26", reconcile.Drift{Removed: 1}},
		{"ip route del blackhole 192.168.0.0/26", reconcile.Drift{Removed: 1}},
		{"ip -6 route del fd20::40/122", reconcile.Drift{Removed: 1}},
		{"ip -6 route del fd20::5/128", reconcile.Drift{Removed: 1}},
		{"ip route replace 192.168.0.64/26 via 10.10.1.78 proto 88", reconcile.Drift{Changed: 1}},
		{"ip route replace 192.168.0.128/26 via 10.10.1.1 proto 88", reconcile.Drift{Changed: 1}}, // lost its MTU
		{"ip route replace 192.168.0.128/26 via 10.10.1.1 mtu 1480 src 10.10.1.2 proto 88", reconcile.Drift{Changed: 1}},
		{"ip route replace 192.168.1.0/26 via 10.10.1.77 mtu 1480 proto 88", reconcile.Drift{Changed: 1}}, // lost its source
		{"ip route replace blackhole 192.168.0.5/32 proto 88", reconcile.Drift{Changed: 1}},
		{"ip route replace 192.168.0.64/26 proto 88 nexthop via 10.10.1.77 nexthop via 10.10.1.78", reconcile.Drift{Changed: 1}},
		{"ip -6 route replace fd20::40/122 via fd10:10:1::78 proto 88", reconcile.Drift{Changed: 1}},
		{"ip -6 route replace fd20::40/122 proto 88 nexthop via fd10:10:1::77 nexthop via fd10:10:1::78", reconcile.Drift{Changed: 1}},
		{"ip -6 route replace unreachable fd20::/122 proto 88", reconcile.Drift{Changed: 1}},
		{"ip route add 192.168.7.0/26 via 10.10.1.78 proto 88", reconcile.Drift{Added: 1}},
		{"ip route add 192.168.0.64/26 via 10.10.1.78 proto 88 metric 5", reconcile.Drift{Added: 1}},
		{"ip -6 route add fd20::1:0/122 via fd10:10:1::78 proto 88", reconcile.Drift{Added: 1}},
	} {
		before := n.routes.Drift()
		host.MustRun(t, strings.Fields(test.command)...)
		// The event of the change calls for it as well.
		n.Resync()
		settle(t, n, want)
		expectRoutes(t, host.Namespace, all...)
		d := n.routes.Drift()
		d = reconcile.Drift{Added: d.Added - before.Added, Removed: d.Removed - before.Removed, Changed: d.Changed - before.Changed}
		if d != test.drift {
			t.Errorf("%s: drift %+v, want %+v", test.command, d, test.drift)
		}
	}
	host.Sysctl(t, "net.ipv4.conf.cali1.proxy_arp", "0")
	n.Resync()
	settle(t, n, want)
	if got := host.ReadSysctl(t, "net.ipv4.conf.cali1.proxy_arp"); got != "1" || n.sysctls.Drift().Changed != 1 {
		t.Errorf("proxy_arp %s, drift %+v", got, n.sysctls.Drift())
	}
}

// TestDriftIsSeen repairs what others do without being asked to look.
func TestDriftIsSeen(t *testing.T) {
	host, _, want := fixture(t)
	n := open(t, host.Namespace, Options{})
	settle(t, n, want)
	all := strings.Join(sorted(slices.Concat(defaults, ours)), "\n")
	for _, command := range []string{
		"ip route del 192.168.0.64/26",
		"ip -6 route del fd20::5/128",
		"ip route replace 192.168.0.64/26 via 10.10.1.78 proto 88",
		"ip -6 route replace fd20::40/122 via fd10:10:1::78 proto 88",
	} {
		host.MustRun(t, strings.Fields(command)...)
		eventually(t, n, want, "repaired after "+command, func() bool { return routes(t, host.Namespace) == all })
	}
}

func sorted(s []string) []string { slices.Sort(s); return s }

func TestForeignRoutes(t *testing.T) {
	host, _, want := fixture(t)
	foreign := []string{
		"192.168.0.0/26 via 10.10.1.1 dev eth0 proto static metric 7",
		"192.168.9.0/24 via 10.10.1.1 dev eth0 proto bird",
		"fd20::/122 via fd10:10:1::1 dev eth0 proto static metric 7 pref medium",
		"fd20:9::/64 via fd10:10:1::1 dev eth0 proto bird metric 1024 pref medium",
	}
	for _, f := range foreign {
		family := "-4"
		if strings.Contains(f, "::") {
			family = "-6"
		}
		host.MustRun(t, append([]string{"ip", family, "route", "add"}, strings.Fields(f)...)...)
	}
	n := open(t, host.Namespace, Options{})
	settle(t, n, want)
	expectRoutes(t, host.Namespace, slices.Concat(defaults, ours, foreign)...)

	// One with the very key of ours stays, and is reported; the others are done.
	host.MustRun(t, "ip", "route", "add", "192.168.20.0/26", "via", "10.10.1.1", "proto", "bird")
	host.MustRun(t, "ip", "-6", "route", "add", "fd20::2000/122", "via", "fd10:10:1::1", "proto", "bird")
	want.Host.Routes[prefix("192.168.20.0/26")] = via("10.10.1.77", 0)
	want.Host.Routes[prefix("fd20::2000/122")] = via("fd10:10:1::77", 0)
	want.Host.Routes[prefix("192.168.21.0/26")] = via("10.10.1.77", 0)
	err := n.Ensure(context.Background(), want)
	for _, p := range []string{"192.168.20.0/26", "fd20::2000/122"} {
		if err == nil || !strings.Contains(err.Error(), "route "+p+": a route with protocol 12 is in the way") {
			t.Errorf("conflict over %s: %v", p, err)
		}
	}
	for _, line := range []string{"192.168.20.0/26 via 10.10.1.1 dev eth0 proto bird", "192.168.21.0/26 via 10.10.1.77"} {
		if !strings.Contains(routes(t, host.Namespace), line) {
			t.Errorf("no %q in\n%s", line, routes(t, host.Namespace))
		}
	}
	// When the other goes, ours comes.
	host.MustRun(t, "ip", "route", "del", "192.168.20.0/26")
	host.MustRun(t, "ip", "-6", "route", "del", "fd20::2000/122")
	eventually(t, n, want, "the way is free", func() bool { return n.Ensure(context.Background(), want) == nil })
	if all := routes(t, host.Namespace); !strings.Contains(all, "192.168.20.0/26 via 10.10.1.77 dev eth0 proto 88") ||
		!strings.Contains(all, "fd20::2000/122 via fd10:10:1::77 dev eth0 proto 88") {
		t.Errorf("routes\n%s", all)
	}
}

// TestTakeOver: the route to a workload that its CNI plugin has added becomes
// ours.
func TestTakeOver(t *testing.T) {
	host, _, want := fixture(t)
	host.MustRun(t, "ip", "route", "add", "192.168.0.5/32", "dev", "cali1", "scope", "link")
	host.MustRun(t, "ip", "-6", "route", "add", "fd20::5/128", "dev", "cali1")
	n := open(t, host.Namespace, Options{})
	settle(t, n, want)
	expectRoutes(t, host.Namespace, slices.Concat(defaults, ours)...)
}

func TestGatewayChange(t *testing.T) {
	host, _, want := fixture(t)
	n := open(t, host.Namespace, Options{})
	settle(t, n, want)
	has := func(lines ...string) func() bool {
		return func() bool {
			all := routes(t, host.Namespace)
			return !slices.ContainsFunc(lines, func(l string) bool { return !strings.Contains(all, l) })
		}
	}
	host.MustRun(t, "ip", "route", "replace", "default", "via", "10.10.1.254", "proto", "static")
	host.MustRun(t, "ip", "-6", "route", "replace", "default", "via", "fd10:10:1::fe", "proto", "static")
	eventually(t, n, want, "the new gateway", has(
		"192.168.0.128/26 via 10.10.1.254 dev eth0 proto 88 mtu 1480", "fd20::80/122 via fd10:10:1::fe dev eth0 proto 88"))
	// A more specific route to the other node's subnet.
	host.MustRun(t, "ip", "route", "add", "10.10.2.0/24", "via", "10.10.1.253")
	eventually(t, n, want, "the subnet's gateway", has("192.168.0.128/26 via 10.10.1.253 dev eth0 proto 88 mtu 1480"))
	// Several gateways: the first that lives.
	host.MustRun(t, "ip", "route", "replace", "10.10.2.0/24", "nexthop", "via", "10.10.1.251", "nexthop", "via", "10.10.1.252")
	eventually(t, n, want, "the first of two", has("192.168.0.128/26 via 10.10.1.251 dev eth0 proto 88 mtu 1480"))
	// A gateway that is on no subnet of the host.
	host.MustRun(t, "ip", "route", "replace", "10.10.2.0/24", "via", "172.16.0.1", "dev", "eth0", "onlink")
	eventually(t, n, want, "the onlink gateway", has("192.168.0.128/26 via 172.16.0.1 dev eth0 proto 88 onlink mtu 1480"))
	// Nowhere to go: the old route is better than none.
	host.MustRun(t, "ip", "route", "replace", "unreachable", "10.10.2.0/24")
	fails(t, n, want, "192.168.0.128/26 via 10.10.2.9: ")
	if err := n.Prune(context.Background(), want); err != nil {
		t.Error(err)
	}
	if !has("192.168.0.128/26 via 172.16.0.1")() {
		t.Error("a route was removed because its next hop is not known")
	}
}

// TestOwnRouteIsNoWay: a route of ours that covers another's next hop does not
// decide over it.
func TestOwnRouteIsNoWay(t *testing.T) {
	host, _, want := fixture(t)
	n := open(t, host.Namespace, Options{})
	want.Host.Routes[prefix("10.10.2.0/24")] = via("10.10.1.77", 0)
	want.Host.Routes[prefix("fd10:10:2::/64")] = via("fd10:10:1::77", 0)
	for range 2 {
		n.Resync()
		settle(t, n, want)
	}
	expectRoutes(t, host.Namespace, append(slices.Concat(defaults, ours),
		"10.10.2.0/24 via 10.10.1.77 dev eth0 proto 88",
		"fd10:10:2::/64 via fd10:10:1::77 dev eth0 proto 88 metric 1024 pref medium")...)
}

func TestNoNextHop(t *testing.T) {
	host, _, want := fixture(t)
	host.MustRun(t, "ip", "route", "del", "default")
	n := open(t, host.Namespace, Options{})
	want.Host.Routes[prefix("192.168.3.0/26")] = via(host.IPv4.Addr().String(), 0)
	want.Host.Routes[prefix("fd20::c0/122")] = via(host.IPv6.Addr().String(), 0)
	wanted := []string{
		"route 192.168.0.128/26 via 10.10.2.9: no route to it: network is unreachable",
		"route 192.168.3.0/26 via 10.10.1.2: it is this host's own",
		"route fd20::c0/122 via fd10:10:1::2: it is this host's own",
	}
	var err error
	told := testbed.Eventually(func() bool { // the kernel takes its time with an IPv6 address
		n.Resync()
		err = n.Ensure(context.Background(), want)
		return err != nil && err.Error() == strings.Join(wanted, "\n")
	})
	if !told {
		t.Errorf("error\n%v\nwant\n%s", err, strings.Join(wanted, "\n"))
	}
	// The others are done all the same.
	if err := n.Prune(context.Background(), want); err != nil {
		t.Error(err)
	}
	expectRoutes(t, host.Namespace, append(without(ours, "192.168.0.128"), defaults[1])...)
}

// TestLearnedRoutes has several next hops for one prefix, next hops that lead nowhere,
// routes that the host has of its own, and a start that does not know them yet.
func TestLearnedRoutes(t *testing.T) {
	host, _, want := fixture(t)
	learned := func(hops ...string) desired.KernelRoute {
		r := desired.KernelRoute{Kind: desired.KernelVia, Learned: true}
		for _, h := range hops {
			r.Also = append(r.Also, netip.MustParseAddr(h))
		}
		r.Via, r.Also = r.Also[0], r.Also[1:]
		return r
	}
	host.MustRun(t, "ip", "route", "add", "10.77.0.0/16", "via", "10.10.1.1", "proto", "static")
	routesWanted := want.Host.Routes
	set := func(more routeMap) {
		want.Host.Routes = maps.Clone(routesWanted)
		maps.Copy(want.Host.Routes, more)
	}
	set(routeMap{
		prefix("10.77.0.0/16"): learned("10.10.1.78"), // the host's own wins
		prefix("10.78.0.0/16"): learned("10.10.1.77", "10.10.1.78"),
		prefix("10.79.0.0/16"): learned("10.10.1.77", "172.31.0.1", "10.10.1.1"), // the second is behind the third
		prefix("fd78::/64"):    learned("fd10:10:1::77", "fd10:10:1::78"),
		prefix("fd79::/64"):    learned("fd99::1"), // behind the default route
		prefix("0.0.0.0/0"):    learned("10.10.1.78"),
	})
	n := open(t, host.Namespace, Options{})
	settle(t, n, want)
	kept := []string{
		"10.77.0.0/16 via 10.10.1.1 dev eth0 proto static",
		"10.77.0.0/16 via 10.10.1.78 dev eth0 proto 88 metric 32",
		"default via 10.10.1.78 dev eth0 proto 88 metric 32",
		"fd79::/64 via fd10:10:1::1 dev eth0 proto 88 metric 1056 pref medium",
	}
	got := routes(t, host.Namespace)
	for _, line := range kept {
		if !strings.Contains(got, line) {
			t.Errorf("no %q in\n%s", line, got)
		}
	}
	for p, hops := range map[string]string{
		"10.78.0.0/16": "via 10.10.1.77 via 10.10.1.78", "10.79.0.0/16": "via 10.10.1.1 via 10.10.1.77",
		"fd78::/64": "via fd10:10:1::77 via fd10:10:1::78",
	} {
		if got := gateways(t, host.Namespace, p); got != hops {
			t.Errorf("%s %s, want %s", p, got, hops)
		}
	}
	if d := drifted(n, want, t); d != (reconcile.Drift{}) {
		t.Errorf("drift without a change: %+v", d)
	}

	// One of two next hops goes, and comes back.
	for _, hops := range [][]string{{"10.10.1.78"}, {"10.10.1.77", "10.10.1.78"}} {
		set(routeMap{prefix("10.78.0.0/16"): learned(hops...), prefix("0.0.0.0/0"): learned("10.10.1.78")})
		settle(t, n, want)
		if got := gateways(t, host.Namespace, "10.78.0.0/16"); got != "via "+strings.Join(hops, " via ") {
			t.Errorf("after a change: %s", got)
		}
	}
	// The next process keeps what it has not heard of yet, until it has.
	n = open(t, host.Namespace, Options{})
	set(nil)
	want.Host.KeepLearned = true
	settle(t, n, want)
	if got := gateways(t, host.Namespace, "10.78.0.0/16"); got != "via 10.10.1.77 via 10.10.1.78" {
		t.Errorf("while learning: %s", got)
	}
	want.Host.KeepLearned = false
	settle(t, n, want)
	expectRoutes(t, host.Namespace, slices.Concat(defaults, ours, kept[:1])...)
}

// gateways are the next hops of a route of ours, as ip prints them, in order.
func gateways(t *testing.T, ns *testbed.Namespace, prefix string) string {
	t.Helper()
	family := "-4"
	if strings.Contains(prefix, ":") {
		family = "-6"
	}
	words := strings.Fields(ns.MustRun(t, "ip", family, "route", "show", prefix, "proto", "88"))
	var hops []string
	for i, w := range words {
		if w == "via" {
			hops = append(hops, "via "+words[i+1])
		}
	}
	slices.Sort(hops)
	return strings.Join(hops, " ")
}

// drifted reads the kernel's routes again and says what was different.
func drifted(n *Network, want *desired.State, t *testing.T) reconcile.Drift {
	t.Helper()
	before := n.routes.Drift()
	n.Resync()
	settle(t, n, want)
	d := n.routes.Drift()
	return reconcile.Drift{Added: d.Added - before.Added, Removed: d.Removed - before.Removed, Changed: d.Changed - before.Changed}
}
