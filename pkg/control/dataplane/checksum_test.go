package dataplane_test

import (
	"testing"

	"calico-xdp/pkg/control/dataplane"
	"calico-xdp/tools/testbed"
)

// Who segments TCP and completes checksums: the far end if nobody has to, as between
// virtual machines, the node's kernel if its NIC cannot, or the workload's.
func TestOffloads(t *testing.T) {
	f := newFleet(t, dataplane.Options{})
	a, c := f.workloads[0], f.workloads[2]
	local := f.nodes[0].workload(t, "calib", "192.168.1.2", "fd01::2")
	for _, setup := range []struct {
		name string
		make func()
	}{
		// Each adds to the ones before; TestPaths has all on.
		{"workload without", func() { wire(t, a.Namespace, "eth0") }},
		{"workload and node without", func() {
			wire(t, f.nodes[0].Namespace, "eth0")
			wire(t, f.nodes[2].Namespace, "eth0")
		}},
		{"node without", func() {
			a.MustRun(t, "ethtool", "-K", "eth0", "tx", "on", "sg", "on", "tso", "on", "gso", "on")
		}},
	} {
		setup.make()
		nodeWithout := setup.name != "workload without"
		for _, mode := range modes[:3] {
			t.Run(setup.name+"/"+mode.name, func(t *testing.T) {
				f.connect(t, mode.same, mode.other)
				seen := testbed.StartCapture(t, f.Fabric, f.Hosts[0].Port)
				for i, addr := range c.Addresses {
					exchange(t, a.Namespace, c.Namespace, addr)
					exchange(t, c.Namespace, a.Namespace, a.Addresses[i])
					stream(t, a.Namespace, local.Namespace, local.Addresses[i])
				}
				seen.Stop()
				for _, p := range seen.Packets() {
					if !nodeWithout {
						break
					}
					if bad := testbed.BadChecksums(p.Data); len(bad) > 0 || len(p.Data) > 1514 {
						t.Errorf("%d bytes, wrong checksums %v: %s", len(p.Data), bad, p)
						break
					}
				}
				if t.Failed() {
					f.log(t)
				}
			})
		}
	}
}
