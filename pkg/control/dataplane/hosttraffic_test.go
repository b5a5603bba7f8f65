package dataplane_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"calico-xdp/pkg/control/dataplane"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/tools/testbed"
)

// silence is how long a test waits for what must not come.
const silence = 200 * time.Millisecond

func addressesOf(h *testbed.Host) []netip.Addr { return []netip.Addr{h.IPv4.Addr(), h.IPv6.Addr()} }

// A workload and its own host.
func TestHostAndItsWorkload(t *testing.T) {
	n := newNode(t, testbed.NewHosts(t, 1).Hosts[0], dataplane.Options{})
	w := n.workload(t, "calia", "192.168.1.1", "fd01::1")
	n.deliver(t, "calia", w.Addresses...)
	n.sync(t)
	for i, addr := range w.Addresses {
		exchange(t, n.Namespace, w.Namespace, addr)
		exchange(t, w.Namespace, n.Namespace, addressesOf(n.Host)[i])
	}
	t.Run("drop", func(t *testing.T) {
		n.state.Dataplane.ToHost = desired.ToHostDrop
		n.sync(t)
		quick := testbed.Probe{Wait: silence}
		for i, addr := range w.Addresses {
			if quick.Reaches(w.Namespace, addressesOf(n.Host)[i]) {
				t.Errorf("%s answers", addressesOf(n.Host)[i])
			}
			exchange(t, n.Namespace, w.Namespace, addr)
		}
		if !strings.Contains(n.counts(t), "from_workload drop_to_host") {
			t.Errorf("no drop_to_host:\n%s", n.counts(t))
		}
	})
	if t.Failed() {
		t.Log(n.counts(t))
	}
}

// A host and the workloads of other nodes: what the host sends is encapsulated, what
// it is sent comes plain, since the host's address is in no pool.
func TestHostAndRemoteWorkloads(t *testing.T) {
	f := newFleet(t, dataplane.Options{})
	host := f.nodes[0]
	for _, mode := range modes[:3] {
		t.Run(mode.name, func(t *testing.T) {
			f.connect(t, mode.same, mode.other)
			wire := testbed.StartCapture(t, f.Fabric, f.Hosts[0].Port)
			for i, w := range f.workloads[1:] {
				encap := []desired.Encap{mode.same, mode.other}[i]
				for j, addr := range w.Addresses {
					own := addressesOf(host.Host)[j]
					exchange(t, host.Namespace, w.Namespace, addr)
					exchange(t, w.Namespace, host.Namespace, own)
					there, back := onWire(host, f.nodes[i+1], encap, own, addr, 0), onWire(f.nodes[i+1], host, desired.EncapNone, addr, own, 0)
					f.oneWay(t, wire, there, fmt.Sprintf("%s > %s:", own, addr), true)
					f.oneWay(t, wire, back, fmt.Sprintf("%s > %s:", addr, own), false)
				}
			}
			wire.Stop()
			if t.Failed() {
				f.log(t)
			}
		})
	}
}

// oneWay checks that all packets with these addresses in them looked like that, and
// that large TCP was among them in one piece if it is the host's.
func (f *fleet) oneWay(t *testing.T, wire *testbed.Capture, want, addresses string, leaves bool) {
	t.Helper()
	largest := 0
	for _, p := range wire.Packets() {
		line := p.String()
		if !strings.Contains(line, addresses) || p.Outgoing == leaves {
			continue
		}
		if !strings.HasPrefix(line, want) {
			t.Errorf("on the wire: %s, want %s …", line, want)
			return
		}
		if strings.Contains(line, "TCP") {
			largest = max(largest, len(p.Data))
		}
	}
	if largest < 4000 {
		t.Errorf("%s …: the largest TCP packet has %d bytes: no GSO", want, largest)
	}
}

// A workload and what is neither a workload nor a node.
func TestWorkloadAndOutside(t *testing.T) {
	f := newFleet(t, dataplane.Options{})
	f.connect(t, desired.EncapVXLAN, desired.EncapVXLAN)
	w := f.workloads[0]
	for i, outside := range []string{"10.10.2.1", "fd10:10:2::1"} {
		exchange(t, w.Namespace, f.Router, netip.MustParseAddr(outside))
		exchange(t, f.Router, w.Namespace, w.Addresses[i])
	}
	if t.Failed() {
		f.log(t)
	}
}
