// Package macro sends real packets between network namespaces, through the product and
// through what does the same work otherwise, side by side and in turns.
package macro

import (
	"net/netip"

	"calico-xdp/perf/bed"
	"calico-xdp/pkg/api"
	"calico-xdp/tools/testbed"
)

// The addresses of a site.
const (
	worldAddress = "10.10.1.1"
	hostAddress  = "10.10.1.2"
	aAddress     = "192.168.0.1"
	bAddress     = "192.168.0.2"
	block        = "192.168.0.0/26"
)

// site is a host with two workloads, a and b, and one machine before it that stands
// for the world: every address that is not the host's is there.
type site struct {
	host  *testbed.Host
	world *testbed.Namespace
	a, b  *testbed.Workload
	bed   *bed.Bed // where the product looks after the host
}

// newHost makes the host and the world; who makes the site adds the workloads.
func newHost(t testbed.T, hint string) *site {
	t.Helper()
	s := &site{world: testbed.NewNamespace(t, hint+"-world")}
	s.host = &testbed.Host{
		Namespace: testbed.NewNamespace(t, hint), IPv4: netip.MustParsePrefix(hostAddress + "/24"),
	}
	for name, value := range map[string]string{
		"net.ipv4.ip_forward": "1", "net.ipv4.conf.all.rp_filter": "0", "net.ipv4.conf.default.rp_filter": "0",
	} {
		s.host.Sysctl(t, name, value)
		s.world.Sysctl(t, name, value)
	}
	testbed.Veth(t, s.host.Namespace, "eth0", s.world, "eth0")
	s.host.AddAddress(t, "eth0", hostAddress+"/24")
	s.world.AddAddress(t, "eth0", worldAddress+"/24")
	s.host.AddRoute(t, "0.0.0.0/0", worldAddress, "eth0")
	s.world.AddRoute(t, block, hostAddress, "eth0")
	receiveFrames(t, s.host.Namespace, "eth0")
	return s
}

// receiveFrames lets a veth take the frames that the generator at its far end makes.
// All sites have it set, so that none has an advantage by it.
func receiveFrames(t testbed.T, n *testbed.Namespace, iface string) {
	t.Helper()
	n.MustRun(t, "ethtool", "-K", iface, "gro", "on")
}

var workloads = []struct{ name, address string }{{"a", aAddress}, {"b", bAddress}}

// newOurs is a site that the product looks after, with these resources.
func newOurs(t testbed.T, resources []api.Resource) *site {
	t.Helper()
	s := newHost(t, "ours")
	b := bed.New(t, s.host, "here", bed.Options{})
	s.bed = b
	b.Apply(bed.Open(), bed.NodeAt("here", hostAddress+"/24", ""), bed.Block(block, "here"))
	b.Apply(resources...)
	made := make([]*testbed.Workload, len(workloads))
	for i, w := range workloads {
		made[i] = b.Workload(t, w.name, map[string]string{"name": w.name}, netip.MustParseAddr(w.address))
		receiveFrames(t, s.host.Namespace, made[i].Interface)
	}
	s.a, s.b = made[0], made[1]
	if err := b.Sync(); err != nil {
		t.Fatalf("resources: %v", err)
	}
	return s
}

// newKernel is a site whose host's stack forwards, without a rule.
func newKernel(t testbed.T, hint string) *site {
	t.Helper()
	s := newHost(t, hint)
	made := make([]*testbed.Workload, len(workloads))
	for i, w := range workloads {
		iface := "cali" + w.name
		made[i] = s.host.AddWorkload(t, iface, netip.MustParseAddr(w.address))
		s.host.Sysctl(t, "net.ipv4.conf."+iface+".proxy_arp", "1")
		s.host.Sysctl(t, "net.ipv4.neigh."+iface+".proxy_delay", "0")
		s.host.AddRoute(t, w.address+"/32", "", iface)
		// A flood's sink lets no answer pass.
		s.host.MustRun(t, "ip", "neigh", "replace", w.address, "dev", iface, "lladdr", made[i].MAC.String(), "nud", "permanent")
		receiveFrames(t, s.host.Namespace, iface)
	}
	s.a, s.b = made[0], made[1]
	return s
}
