package host

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/control/reconcile"
	"calico-xdp/tools/testbed"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// open starts a Network in a namespace.
func open(t *testing.T, ns *testbed.Namespace, o Options) *Network {
	t.Helper()
	return openLogging(t, ns, o, io.Discard)
}

func openLogging(t *testing.T, ns *testbed.Namespace, o Options, log io.Writer) *Network {
	t.Helper()
	var n *Network
	err := ns.Do(func() (err error) {
		n, err = New(o, slog.New(slog.NewTextHandler(log, nil)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// routes returns the routes that the kernel did not make itself, one a line,
// sorted, both families.
func routes(t *testing.T, ns *testbed.Namespace) string {
	t.Helper()
	var lines []string
	for _, family := range []string{"-4", "-6"} {
		for line := range strings.Lines(ns.MustRun(t, "ip", family, "route", "show", "table", "main")) {
			if !strings.Contains(line, "proto kernel") {
				lines = append(lines, strings.Join(strings.Fields(line), " "))
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func expectRoutes(t *testing.T, ns *testbed.Namespace, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := routes(t, ns); got != strings.Join(want, "\n") {
		t.Errorf("routes:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
}

// settle does what the control loop does once the datastore is in sync.
func settle(t *testing.T, n *Network, want *desired.State) {
	t.Helper()
	if err := errors.Join(n.Ensure(context.Background(), want), n.Prune(context.Background(), want)); err != nil {
		t.Fatal(err)
	}
}

// eventually runs rounds as signals come, as the control loop does, until ok or a
// deadline.
func eventually(t *testing.T, n *Network, want *desired.State, what string, ok func() bool) {
	t.Helper()
	done := testbed.Eventually(func() bool {
		select {
		case <-n.Changed():
			n.Ensure(context.Background(), want)
		default:
		}
		return ok()
	})
	if !done {
		t.Errorf("not in the end: %s", what)
	}
}

// fails waits until Ensure, which only knows of events that have arrived, fails
// with an error that contains text.
func fails(t *testing.T, n *Network, want *desired.State, text string) {
	t.Helper()
	var err error
	failed := testbed.Eventually(func() bool {
		err = n.Ensure(context.Background(), want)
		return err != nil && strings.Contains(err.Error(), text)
	})
	if !failed {
		t.Errorf("error %v, want one with %q", err, text)
	}
}

type routeMap = map[netip.Prefix]desired.KernelRoute

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func link(name string) desired.KernelRoute {
	return desired.KernelRoute{Kind: desired.KernelLink, Interface: name}
}

func via(address string, mtu int) desired.KernelRoute {
	return desired.KernelRoute{Kind: desired.KernelVia, Via: netip.MustParseAddr(address), MTU: mtu}
}

// from gives a route a source address.
func from(address string, r desired.KernelRoute) desired.KernelRoute {
	r.Source = netip.MustParseAddr(address)
	return r
}

var blackhole = desired.KernelRoute{Kind: desired.KernelBlackhole}

// fixture is a host of a fabric with one workload, and the state that suits it.
func fixture(t *testing.T) (*testbed.Host, *testbed.Workload, *desired.State) {
	t.Helper()
	testbed.CheckNoLeaks(t)
	host := testbed.NewHosts(t, 1).Hosts[0]
	w := host.AddWorkload(t, "cali1", netip.MustParseAddr("192.168.0.5"), netip.MustParseAddr("fd20::5"))
	want := &desired.State{Host: desired.Host{
		Workloads: map[string]desired.WorkloadLink{"cali1": {}},
		Routes: routeMap{
			prefix("192.168.0.0/26"):   blackhole,
			prefix("192.168.0.5/32"):   link("cali1"),
			prefix("192.168.0.6/32"):   from("10.10.1.2", link("cali1")),
			prefix("192.168.0.64/26"):  via("10.10.1.77", 0),
			prefix("192.168.0.128/26"): via("10.10.2.9", 1480),
			prefix("192.168.1.0/26"):   from("10.10.1.2", via("10.10.1.77", 1480)),
			prefix("fd20::/122"):       blackhole,
			prefix("fd20::5/128"):      link("cali1"),
			prefix("fd20::6/128"):      from("fd10:10:1::2", link("cali1")),
			prefix("fd20::40/122"):     via("fd10:10:1::77", 0),
			prefix("fd20::80/122"):     via("fd10:10:2::9", 1430),
			prefix("fd20::180/122"):    from("fd10:10:1::2", via("fd10:10:1::77", 0)),
		},
		ForwardIPv4: true, ForwardIPv6: true,
	}}
	return host, w, want
}

// defaults are the routes that the fixture's host has by itself, ours those that
// the state asks for.
var (
	defaults = []string{
		"default via 10.10.1.1 dev eth0 proto static",
		"default via fd10:10:1::1 dev eth0 proto static metric 1024 pref medium",
	}
	ours = []string{
		"192.168.0.128/26 via 10.10.1.1 dev eth0 proto 88 mtu 1480",
		"192.168.0.5 dev cali1 proto 88 scope link",
		"192.168.0.6 dev cali1 proto 88 scope link src 10.10.1.2",
		"192.168.0.64/26 via 10.10.1.77 dev eth0 proto 88",
		"192.168.1.0/26 via 10.10.1.77 dev eth0 proto 88 src 10.10.1.2 mtu 1480",
		"blackhole 192.168.0.0/26 proto 88",
		"blackhole fd20::/122 dev lo proto 88 metric 1024 pref medium",
		"fd20::40/122 via fd10:10:1::77 dev eth0 proto 88 metric 1024 pref medium",
		"fd20::5 dev cali1 proto 88 metric 1024 pref medium",
		"fd20::6 dev cali1 proto 88 src fd10:10:1::2 metric 1024 pref medium",
		"fd20::80/122 via fd10:10:1::1 dev eth0 proto 88 metric 1024 mtu 1430 pref medium",
		"fd20::180/122 via fd10:10:1::77 dev eth0 proto 88 src fd10:10:1::2 metric 1024 pref medium",
	}
)

func without(lines []string, part string) []string {
	return slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return strings.Contains(l, part) })
}

func TestState(t *testing.T) {
	host, w, want := fixture(t)
	host.Sysctl(t, "net.ipv4.ip_forward", "0")
	host.Sysctl(t, "net.ipv6.conf.all.forwarding", "0")
	host.Sysctl(t, "net.ipv6.conf.eth0.accept_ra", "1")
	host.SetDown(t, "cali1")
	n := open(t, host.Namespace, Options{})
	settle(t, n, want)
	expectRoutes(t, host.Namespace, slices.Concat(defaults, ours)...)
	for name, value := range map[string]string{
		"net.ipv4.ip_forward":                  "1",
		"net.ipv4.conf.cali1.proxy_arp":        "1",
		"net.ipv4.conf.cali1.rp_filter":        "1",
		"net.ipv4.conf.cali1.forwarding":       "1",
		"net.ipv4.neigh.cali1.proxy_delay":     "0",
		"net.ipv6.conf.all.forwarding":         "1",
		"net.ipv6.conf.cali1.forwarding":       "1",
		"net.ipv6.conf.cali1.accept_ra":        "0",
		"net.ipv6.conf.eth0.accept_ra":         "2",
		"net.ipv6.conf.default.accept_ra":      "0",
		"net.ipv4.conf.eth0.proxy_arp":         "0",
		"net.ipv4.conf.default.proxy_arp":      "0",
		"net.ipv4.conf.default.route_localnet": "0",
	} {
		if got := host.ReadSysctl(t, name); got != value {
			t.Errorf("%s is %s, want %s", name, got, value)
		}
	}
	for _, to := range []netip.Addr{host.IPv4.Addr(), host.IPv6.Addr()} {
		if !(testbed.Probe{Count: 3}).Reaches(w.Namespace, to) {
			t.Errorf("the workload does not reach %s", to)
		}
	}
	// Nothing changes when nothing is to do.
	before := routes(t, host.Namespace)
	settle(t, n, want)
	if after := routes(t, host.Namespace); after != before {
		t.Errorf("second round changed routes to\n%s", after)
	}
	if d := n.routes.Drift(); d != (reconcile.Drift{}) {
		t.Errorf("drift %+v", d)
	}
	if testutil.CollectAndCount(n.Collector()) != 15 {
		t.Error("metrics are incomplete")
	}

	// A workload goes, with its link; its routes are not wanted any more.
	w.MustRun(t, "ip", "link", "del", "eth0")
	delete(want.Host.Workloads, "cali1")
	delete(want.Host.Routes, prefix("192.168.0.5/32"))
	delete(want.Host.Routes, prefix("fd20::5/128"))
	settle(t, n, want)
	expectRoutes(t, host.Namespace, append(slices.Clone(defaults), without(ours, "cali1")...)...)
	if d := n.routes.Drift(); d != (reconcile.Drift{}) {
		t.Errorf("drift %+v", d)
	}
}

// TestMissingLink: a state that is older than the kernel's is no error.
func TestMissingLink(t *testing.T) {
	host, _, want := fixture(t)
	n := open(t, host.Namespace, Options{})
	want.Host.Workloads["cali9"] = desired.WorkloadLink{}
	want.Host.Routes[prefix("192.168.0.9/32")] = link("cali9")
	settle(t, n, want)
	expectRoutes(t, host.Namespace, slices.Concat(defaults, ours)...)
	host.AddWorkload(t, "cali9", netip.MustParseAddr("192.168.0.9"))
	eventually(t, n, want, "route to the link that came later", func() bool {
		return strings.Contains(routes(t, host.Namespace), "192.168.0.9 dev cali9")
	})
	if got := host.ReadSysctl(t, "net.ipv4.conf.cali9.proxy_arp"); got != "1" {
		t.Errorf("proxy_arp %s", got)
	}
}

// TestQuiet: our own writes must not make work.
func TestQuiet(t *testing.T) {
	host, _, want := fixture(t)
	n := open(t, host.Namespace, Options{})
	settle(t, n, want)
	// Bringing the link up and such have settled when a round without changes is
	// followed by no event.
	rounds := 0
	eventually(t, n, want, "silence", func() bool {
		rounds++
		return len(n.Changed()) == 0 && !n.lost.Load() && !n.moved.Load() && rounds > 20
	})
	want.Host.Routes[prefix("192.168.3.0/26")] = via("10.10.1.77", 0)
	want.Host.Routes[prefix("fd20::c0/122")] = via("fd10:10:1::77", 1400)
	want.Host.Routes[prefix("192.168.0.64/26")] = via("10.10.1.78", 0)
	delete(want.Host.Routes, prefix("192.168.0.128/26"))
	settle(t, n, want)
	// An event that comes after ours shows that ours have been seen.
	host.MustRun(t, "ip", "route", "add", "10.10.2.0/24", "via", "10.10.1.1")
	if !testbed.Eventually(func() bool { return n.moved.Load() }) {
		t.Fatal("no event for a foreign route")
	}
	if n.lost.Load() {
		t.Error("our own writes count as changes by others")
	}
	if d := n.routes.Drift(); d != (reconcile.Drift{}) {
		t.Errorf("drift %+v", d)
	}
}

func TestRestartAndDetach(t *testing.T) {
	host, _, want := fixture(t)
	host.MustRun(t, "ip", "route", "add", "192.168.9.0/24", "via", "10.10.1.1", "proto", "bird")
	foreign := "192.168.9.0/24 via 10.10.1.1 dev eth0 proto bird"
	first := open(t, host.Namespace, Options{})
	settle(t, first, want)
	// The next process has less to do; what the first one left goes only in Prune.
	left := prefix("192.168.0.64/26")
	delete(want.Host.Routes, left)
	delete(want.Host.Routes, prefix("fd20::80/122"))
	second := open(t, host.Namespace, Options{})
	if err := second.Ensure(context.Background(), want); err != nil {
		t.Fatal(err)
	}
	expectRoutes(t, host.Namespace, append(slices.Concat(defaults, ours), foreign)...)
	if err := second.Prune(context.Background(), want); err != nil {
		t.Fatal(err)
	}
	expectRoutes(t, host.Namespace,
		append(slices.Concat(defaults, without(without(ours, left.String()), "fd20::80/122")), foreign)...)

	var removed []string
	for range 2 {
		err := host.Do(func() (err error) {
			again, err := Detach()
			removed = append(removed, again...)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(removed) != 10 || removed[0] != "route 192.168.0.0/26" {
		t.Errorf("removed %q", removed)
	}
	expectRoutes(t, host.Namespace, append(slices.Clone(defaults), foreign)...)
}

func TestLinkFlap(t *testing.T) {
	host, _, want := fixture(t)
	n := open(t, host.Namespace, Options{})
	settle(t, n, want)
	all := strings.Join(sorted(slices.Concat(defaults, ours)), "\n")
	host.MustRun(t, "sh", "-c", "ip link set cali1 down; ip link set cali1 up")
	eventually(t, n, want, "routes after the workload's link was down", func() bool { return routes(t, host.Namespace) == all })

	// The uplink takes its routes with it; nothing of ours can be resolved while it
	// is down, and nothing is removed for that.
	host.SetDown(t, "eth0")
	fails(t, n, want, "192.168.0.64/26 via 10.10.1.77: ")
	host.SetUp(t, "eth0")
	host.AddRoute(t, "0.0.0.0/0", "10.10.1.1", "eth0")
	host.AddRoute(t, "::/0", "fd10:10:1::1", "eth0")
	eventually(t, n, want, "routes after the uplink was down", func() bool { return routes(t, host.Namespace) == all })
}

// equalLines compares lines that are sorted with lines that need not be.
func equalLines(text string, want []string) bool {
	return text == strings.Join(slices.Sorted(slices.Values(want)), "\n")
}
