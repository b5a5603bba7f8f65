package host

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/tools/testbed"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

// changing computes states one after the other, as the control loop does.
type changing struct {
	*testing.T
	n        *Network
	store    *api.Store
	computer desired.Computer
	followed bool // the last round dealt with changes only
}

// apply makes a change of the resources, nil for none, and runs a round.
func (c *changing) apply(r api.Resource, there bool) {
	c.Helper()
	changes := []api.Change{}
	if r != nil {
		change := api.Change{Key: api.KeyOf(r)}
		if there {
			change.Resource = r
		}
		c.store.Apply(change)
		changes = append(changes, change)
	}
	if err := c.round(changes); err != nil {
		c.Fatal(err)
	}
}

func (c *changing) round(changes []api.Change) error {
	links, err := c.n.Links()
	if err != nil {
		return err
	}
	want := c.computer.Compute(desired.Input{Node: "a", Resources: c.store, Links: links}, changes)
	err = c.n.Ensure(c.Context(), want)
	c.followed = c.n.following
	return errors.Join(err, c.n.Prune(c.Context(), want))
}

func (c *changing) endpoint(name, iface string, addresses ...string) *api.WorkloadEndpoint {
	w := api.NewWorkloadEndpoint()
	w.Namespace, w.Name = "default", name
	w.Spec.Node, w.Spec.InterfaceName, w.Spec.IPNetworks = "a", iface, addresses
	return w
}

func (c *changing) node(name, v4 string) *api.Node {
	n := api.NewNode()
	n.Name = name
	n.Spec.BGP = &api.NodeBGPSpec{IPv4Address: v4}
	return n
}

// TestChanges: rounds that deal with changes leave in the kernel what rounds leave
// that deal with everything, and see what others did meanwhile.
func TestChanges(t *testing.T) {
	testbed.CheckNoLeaks(t)
	host := testbed.NewHosts(t, 1).Hosts[0]
	host.AddWorkload(t, "cali1", netip.MustParseAddr("10.65.0.1"))
	n := open(t, host.Namespace, Options{})
	c := &changing{T: t, n: n, store: api.NewStore()}
	pool := v3.NewIPPool()
	pool.Name, pool.Spec.CIDR, pool.Spec.IPIPMode = "pool", "10.65.0.0/16", v3.IPIPModeAlways
	c.apply(pool, true)
	c.apply(c.node("a", host.IPv4.String()), true)
	first := c.endpoint("first", "cali1", "10.65.0.1/32")
	c.apply(first, true)
	following := func(what string) {
		t.Helper()
		// Events of what a round does come after it.
		ok := testbed.Eventually(func() bool {
			c.apply(nil, false)
			return c.followed
		})
		if !ok {
			t.Fatalf("%s: each round deals with everything", what)
		}
	}
	following("settled")
	expect := func(what string, more ...string) {
		t.Helper()
		t.Run(what, func(t *testing.T) { expectRoutes(t, host.Namespace, append(slices.Clone(defaults), more...)...) })
	}
	one := "10.65.0.1 dev cali1 proto 88 scope link"
	expect("one endpoint", one)

	// Another node and its block, and an endpoint that comes before its link.
	c.apply(c.node("b", "10.10.1.77/24"), true)
	block := &api.IPAMBlock{CIDR: netip.MustParsePrefix("10.65.1.0/26"), Affinity: new("host:b")}
	block.Name = api.BlockName(block.CIDR)
	c.apply(block, true)
	if !c.followed {
		t.Error("a block makes a round deal with everything")
	}
	far := "10.65.1.0/26 via 10.10.1.77 dev eth0 proto 88 src 10.10.1.2 mtu 1480"
	expect("a block", one, far)
	second := c.endpoint("second", "cali2", "10.65.0.2/32")
	c.apply(second, true)
	waits := "blackhole 10.65.0.2 proto 88"
	expect("no link yet", one, far, waits)
	host.AddWorkload(t, "cali2", netip.MustParseAddr("10.65.0.2"))
	host.SetDown(t, "cali2")
	two := "10.65.0.2 dev cali2 proto 88 scope link"
	c.apply(nil, false)
	expect("link", one, two, far)
	for name, value := range map[string]string{"net.ipv4.conf.cali2.proxy_arp": "1", "net.ipv4.conf.cali2.rp_filter": "1"} {
		if got := host.ReadSysctl(t, name); got != value {
			t.Errorf("%s is %s", name, got)
		}
	}
	c.apply(c.endpoint("second", "cali2", "10.65.0.9/32"), true)
	expect("another address", one, "10.65.0.9 dev cali2 proto 88 scope link", far)
	c.apply(second, true)
	c.apply(c.node("b", "10.10.1.78/24"), true)
	far = "10.65.1.0/26 via 10.10.1.78 dev eth0 proto 88 src 10.10.1.2 mtu 1480"
	expect("another node address", one, two, far)
	c.apply(first, false)
	expect("an endpoint less", two, far)
	c.apply(first, true)
	following("changed much")

	// What others do is noticed by its event.
	repaired := func(what string, want ...string) {
		t.Helper()
		all := append(slices.Clone(defaults), want...)
		ok := testbed.Eventually(func() bool {
			c.round([]api.Change{}) // may fail on a link that is going
			return equalLines(routes(t, host.Namespace), all)
		})
		if !ok {
			t.Fatalf("%s: routes\n%s\nwant %q", what, routes(t, host.Namespace), all)
		}
	}
	host.MustRun(t, "ip", "route", "del", "10.65.1.0/26")
	repaired("a route deleted", one, two, far)
	host.MustRun(t, "ip", "route", "replace", "10.65.0.1/32", "dev", "cali2", "proto", "88")
	repaired("a route changed", one, two, far)
	host.SetDown(t, "cali1")
	repaired("a link down", one, two, far)
	host.MustRun(t, "ip", "link", "del", "cali2")
	repaired("a link gone", one, far, waits)
	host.AddWorkload(t, "cali2", netip.MustParseAddr("10.65.0.2"))
	repaired("a link anew", one, two, far)
	following("repaired")
	if got := host.ReadSysctl(t, "net.ipv4.conf.cali2.proxy_arp"); got != "1" {
		t.Errorf("proxy_arp of the new link is %s", got)
	}
	host.MustRun(t, "ip", "route", "replace", "10.10.1.78/32", "via", "10.10.1.1")
	repaired("another way", one, two, "10.65.1.0/26 via 10.10.1.1 dev eth0 proto 88 src 10.10.1.2 mtu 1480",
		"10.10.1.78 via 10.10.1.1 dev eth0")

	// Where a whole look finds nothing to do, the others have missed nothing.
	before := n.routes.Drift()
	n.Resync()
	c.apply(nil, false)
	if n.routes.Drift() != before {
		t.Errorf("drift %+v, before %+v", n.routes.Drift(), before)
	}
}
