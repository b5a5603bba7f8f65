//go:build ipip

// For kernels that have the device: `make test-kernel` boots one.

package dataplane_test

import (
	"net/netip"
	"strings"
	"testing"

	"calico-xdp/pkg/control/desired"
	"calico-xdp/tools/testbed"
)

// Our IPIP and Linux's, set up as Calico's tunl0.
func TestIPIPWithLinux(t *testing.T) {
	for name, segmented := range map[string]bool{"in large pieces": false, "segmented on the way": true} {
		t.Run(name, func(t *testing.T) {
			f := newForeign(t, desired.EncapIPIP)
			for _, command := range []string{
				"ip link set tunl0 mtu 1480 up", "ip address add 192.168.2.0/32 dev tunl0",
				"ip route add 192.168.1.0/26 via 10.10.1.2 dev tunl0 onlink",
			} {
				f.host.MustRun(t, strings.Fields(command)...)
			}
			if segmented {
				for _, h := range f.Hosts {
					wire(t, f.Fabric, h.Port)
					wire(t, h.Namespace, "eth0")
				}
			}
			left := testbed.StartCapture(t, f.node.Namespace, "calia")
			arrived := testbed.StartCapture(t, f.host.Namespace, "tunl0")
			its, ours := f.its.Addresses[0], f.ours.Addresses[0]
			exchange(t, f.ours.Namespace, f.its.Namespace, its)
			exchange(t, f.its.Namespace, f.ours.Namespace, ours)
			exchange(t, f.ours.Namespace, f.host.Namespace, netip.MustParseAddr("192.168.2.0"))
			exchange(t, f.host.Namespace, f.ours.Namespace, ours)
			f.accepts(t, "tunl0")
			exchange(t, f.node.Namespace, f.its.Namespace, its)
			largest := 0
			for _, p := range left.Packets() {
				if strings.HasPrefix(p.String(), "IP 192.168.1.1 > 192.168.2.1: TCP") {
					largest = max(largest, len(p.Data))
				}
			}
			if largest < 4000 {
				t.Errorf("the largest TCP packet of our workload has %d bytes: no GSO", largest)
			}
			if len(arrived.Packets()) == 0 {
				t.Error("nothing has passed tunl0")
			}
			f.noWrongChecksums(t)
			if t.Failed() {
				t.Logf("%s\n%s", f.node.counts(t), f.host.MustRun(t, "ip", "-s", "link"))
			}
		})
	}
}
