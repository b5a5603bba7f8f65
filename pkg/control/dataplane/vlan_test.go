package dataplane_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"calico-xdp/pkg/control/dataplane"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/tools/testbed"
)

// Hooks see packets of VLANs without their tags. An interface's workload and policy have
// nothing to do with them: they are of the VLAN's own interface.
func TestVLANs(t *testing.T) {
	lab := testbed.NewHosts(t, 1, 1)
	n := newNode(t, lab.Hosts[0], dataplane.Options{})
	one, two := n.workload(t, "cali1", "192.168.1.1", "fd01::1"), n.workload(t, "cali2", "192.168.1.2", "fd01::2")
	n.state.Dataplane.Routes[netip.MustParsePrefix("192.168.1.0/24")] = desired.Route{Kind: desired.RouteHost}
	n.sync(t)
	host := n.Link(t, "eth0").Attrs().HardwareAddr.String()
	hostSide := n.Link(t, "cali1").Attrs().HardwareAddr.String()
	passes := func(hook, reason string) bool {
		return testbed.Eventually(func() bool { return strings.Contains(n.counts(t), hook+" "+reason+" ") })
	}
	tag := func(frame []byte) []byte { return slices.Insert(slices.Clone(frame), 12, 0x81, 0x00, 0x00, 5) }
	for _, c := range []struct {
		name         string
		from         *testbed.Namespace
		iface        string
		frame        []byte
		hook         string
		tagged, bare string
	}{
		{"from a workload", one.Namespace, "eth0", testbed.Packet{}.Ethernet(one.MAC.String(), hostSide).
			IPv4("192.168.1.1", "192.168.1.2").UDP(1, 2).Payload(8).Bytes(), "from_workload", "drop_unsupported", "pass_to_workload"},
		{"from the network", lab.Fabric, lab.Hosts[0].Port, testbed.Packet{}.Ethernet("02:00:00:00:00:01", host).
			IPv4("203.0.113.9", "192.168.1.2").UDP(1, 2).Payload(8).Bytes(), "from_network", "pass_not_ours", "pass_to_workload"},
	} {
		received := testbed.StartCapture(t, two.Namespace, "eth0")
		if err := c.from.Inject(c.iface, tag(c.frame)); err != nil {
			t.Fatal(err)
		}
		if !passes(c.hook, c.tagged) || strings.Contains(n.counts(t), c.hook+" "+c.bare) {
			t.Errorf("%s, with a tag:\n%s", c.name, n.counts(t))
		}
		if err := c.from.Inject(c.iface, c.frame); err != nil {
			t.Fatal(err)
		}
		if !passes(c.hook, c.bare) {
			t.Errorf("%s, without:\n%s", c.name, n.counts(t))
		}
		if got := received.Lines(); slices.ContainsFunc(got, func(l string) bool { return strings.Contains(l, "vlan") }) {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
