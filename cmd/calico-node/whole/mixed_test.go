package whole

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/ipam"
	"calico-xdp/tools/testbed"
)

// calicoHost is a host as Calico makes one: BIRD, the kernel's VXLAN device, and an
// IPIP device, which is the testbed's, since not every kernel has one.
type calicoHost struct {
	*testbed.Host
	c       *cluster
	name    string
	control string // BIRD's socket
	bird    *testbed.Process
}

const vxlanMAC = "66:0a:0b:0c:0d:0e"

// newCalicoHost writes the host's Node, with tunnel addresses, as Calico does.
func newCalicoHost(c *cluster, h *testbed.Host) *calicoHost {
	c.Helper()
	n := &calicoHost{Host: h, c: c, name: "calico2"}
	const node = `{apiVersion: projectcalico.org/v3, kind: Node, metadata: {name: %s}, spec: {bgp: {ipv4Address: %s, ipv6Address: "%s"%s}%s}}`
	c.apply(fmt.Sprintf(node, n.name, h.IPv4, h.IPv6, "", ""))
	tunnel := func(kind ipam.Tunnel, pool string) netip.Addr {
		c.Helper()
		a, err := ipam.New(c.store).EnsureTunnelAddress(c.Context(), n.name, kind, []string{pool})
		if err != nil {
			c.Fatal(err)
		}
		return a
	}
	ipip, vxlan := tunnel(ipam.IPIP, "ipip"), tunnel(ipam.VXLAN, "vxlan")
	c.apply(fmt.Sprintf(node, n.name, h.IPv4, h.IPv6, ", ipv4IPIPTunnelAddr: "+ipip.String(),
		fmt.Sprintf(", ipv4VXLANTunnelAddr: %s, vxlanTunnelMACAddr: %q", vxlan, vxlanMAC)))

	testbed.IPIPEndpoint(c, h, "tunl0", c.nodes[0].IPv4.Addr())
	h.AddAddress(c, "tunl0", ipip.String()+"/32")
	// A raw socket has no use for packets that are not segmented yet.
	c.lab.Fabric.MustRun(c, "ethtool", "-K", h.Port, "tx", "off", "tso", "off", "gso", "off", "sg", "off")
	h.MustRun(c, strings.Fields("ip link add vxlan.calico address "+vxlanMAC+" mtu 1450 type vxlan id 4096 dstport 4789 nolearning local "+
		h.IPv4.Addr().String()+" dev eth0")...)
	h.SetUp(c, "vxlan.calico")
	h.AddAddress(c, "vxlan.calico", vxlan.String()+"/32")
	return n
}

// attach adds a workload with an address of a network's pools.
func (n *calicoHost) attach(network, name string) *workload {
	n.c.Helper()
	r := ipam.Request{Node: n.name, Handle: name, IPv4: 1, Pools4: []string{network}, Attributes: map[string]string{ipam.AttributeNode: n.name}}
	if network == "plain" {
		r.IPv6, r.Pools6 = 1, []string{"plain6"}
	}
	got, err := ipam.New(n.c.store).AssignAuto(n.c.Context(), r)
	if err != nil {
		n.c.Fatal(err)
	}
	iface := "cali" + name
	w := &workload{name: name}
	var all []netip.Addr
	var text []string
	for _, a := range slices.Concat(got.IPv4, got.IPv6) {
		all, text = append(all, a), append(text, netip.PrefixFrom(a, a.BitLen()).String())
		if a.Is4() {
			w.v4 = a
		} else {
			w.v6 = a
		}
	}
	w.Namespace = n.AddWorkload(n.c, iface, all...).Namespace
	w.SetMTU(n.c, "eth0", 1450)
	n.Sysctl(n.c, "net.ipv4.conf."+iface+".proxy_arp", "1")
	for _, prefix := range text {
		n.AddRoute(n.c, prefix, "", iface)
	}
	e := api.NewWorkloadEndpoint()
	e.Namespace, e.Name = "default", api.WorkloadEndpointName(n.name, "cni", name, "eth0")
	e.Labels = map[string]string{"projectcalico.org/namespace": "default", "projectcalico.org/orchestrator": "cni", "network": network}
	e.Spec = api.WorkloadEndpointSpec{
		Node: n.name, Orchestrator: "cni", Workload: name, Endpoint: "eth0", ContainerID: name, InterfaceName: iface,
		IPNetworks: text, Profiles: []string{network},
	}
	if _, err := n.c.store.Create(n.c.Context(), e); err != nil {
		n.c.Fatal(err)
	}
	n.c.serve(w.Namespace, 80)
	return w
}

// blocks are those that a node has in a network.
func (c *cluster) blocks(node string, within netip.Prefix) []netip.Prefix {
	c.Helper()
	list, err := c.store.List(c.Context(), api.KindIPAMBlock, "")
	if err != nil {
		c.Fatal(err)
	}
	var out []netip.Prefix
	for _, r := range list {
		if b, ok := r.(*api.IPAMBlock); ok && b.Affinity != nil && *b.Affinity == "host:"+node && within.Overlaps(b.CIDR) {
			out = append(out, b.CIDR)
		}
	}
	return out
}

var (
	all4, all6 = netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")
	pool4      = map[string]netip.Prefix{
		"ipip": netip.MustParsePrefix("10.65.0.0/16"), "vxlan": netip.MustParsePrefix("10.66.0.0/16"), "plain": netip.MustParsePrefix("10.67.0.0/16"),
	}
)

// startBIRD starts BIRD as Calico configures it: the node's blocks are announced, what
// comes is taken, and put into the kernel but for pools with VXLAN.
func (n *calicoHost) startBIRD() {
	n.c.Helper()
	dir, other := n.c.TempDir(), n.c.nodes[0]
	text := fmt.Sprintf("log stderr { error, bug };\nrouter id %s;\nprotocol device { }\nprotocol direct { ipv4; ipv6; interface \"eth0\"; }\n", n.IPv4.Addr())
	for _, f := range []struct {
		family, own, other, kernel string
		blocks                     []netip.Prefix
	}{
		{"ipv4", n.IPv4.Addr().String(), other.IPv4.Addr().String(), "10.67.0.0/16", n.c.blocks(n.name, all4)},
		{"ipv6", n.IPv6.Addr().String(), other.IPv6.Addr().String(), "fd67::/48", n.c.blocks(n.name, all6)},
	} {
		text += fmt.Sprintf("protocol kernel { persist; graceful restart; %s { import none; export where source = RTS_BGP && net ~ %s; }; }\nprotocol static { %s;\n", f.family, f.kernel, f.family)
		export := ""
		for _, b := range f.blocks {
			text += fmt.Sprintf("  route %s blackhole;\n", b)
			export += fmt.Sprintf("if net = %s then accept; ", b)
		}
		text += fmt.Sprintf("}\nprotocol bgp Mesh_%s { local %s as 64512; neighbor %s as 64512; multihop; graceful restart; graceful restart time 120;\n"+
			"  connect delay time 1; connect retry time 1; error wait time 1, 2;\n"+
			"  %s { import all; export filter { %sreject; }; add paths on; gateway recursive; }; }\n", f.family, f.own, f.other, f.family, export)
	}
	path := filepath.Join(dir, "bird.conf")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		n.c.Fatal(err)
	}
	n.control = filepath.Join(dir, "bird.ctl")
	n.bird = n.Start(n.c, "bird", "-f", "-R", "-c", path, "-s", n.control)
}

// learned says whether BIRD has routes to all the prefixes.
func (n *calicoHost) learned(prefixes []netip.Prefix) func() bool {
	return func() bool {
		out, err := exec.Command("birdc", "-s", n.control, "show", "route", "protocol", "Mesh_ipv4").CombinedOutput()
		return err == nil && !slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return !strings.Contains(string(out), p.String()) })
	}
}

// encapsulate leads to the other node's blocks: those with IPIP through the device, as
// Calico's BIRD does with what it has learned; those with VXLAN as Felix does with what
// the other node's resource says.
func (n *calicoHost) encapsulate(other *node) {
	n.c.Helper()
	for _, p := range n.c.blocks(other.name, pool4["ipip"]) {
		n.AddRoute(n.c, p.String(), "", "tunl0")
	}
	r, err := n.c.store.Get(n.c.Context(), api.Key{Kind: api.KindNode, Name: other.name})
	if err != nil {
		n.c.Fatal(err)
	}
	spec := r.(*api.Node).Spec
	do := func(command string) { n.MustRun(n.c, strings.Fields(command)...) }
	do(fmt.Sprintf("bridge fdb add %s dev vxlan.calico dst %s self permanent", spec.VXLANTunnelMACAddr, other.IPv4.Addr()))
	do(fmt.Sprintf("ip neigh add %s lladdr %s dev vxlan.calico nud permanent", spec.IPv4VXLANTunnelAddr, spec.VXLANTunnelMACAddr))
	for _, p := range n.c.blocks(other.name, pool4["vxlan"]) {
		do(fmt.Sprintf("ip route add %s via %s dev vxlan.calico onlink", p, spec.IPv4VXLANTunnelAddr))
	}
}

// TestMixedCluster: a host of ours and one of Calico's, on one etcd and in one mesh, with
// workloads of both in the blocks of one pool.
func TestMixedCluster(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 1}, foreign: 1})
	a, b := c.nodes[0], newCalicoHost(c, c.lab.Hosts[1])
	ours, theirs := map[string]*workload{}, map[string]*workload{}
	networks := []string{"ipip", "vxlan", "plain"}
	for _, network := range networks {
		ours[network] = c.attach(a, network, "ours-"+network)
		theirs[network] = b.attach(network, "their"+network)
	}
	b.startBIRD()
	c.settle()
	if !c.eventually(b.learned(c.blocks(a.name, all4))) {
		out, _ := exec.Command("birdc", "-s", b.control, "show", "route").CombinedOutput()
		t.Fatalf("BIRD has not learned our blocks %v:\n%s", c.blocks(a.name, all4), out)
	}
	b.encapsulate(a)
	for _, p := range c.blocks(a.name, pool4["plain"]) {
		if !c.eventually(func() bool {
			return strings.Contains(b.MustRun(t, "ip", "route", "show", p.String()), "via 10.10.1.2 dev eth0 proto bird")
		}) {
			t.Errorf("no route of BIRD's to %s", p)
		}
	}
	if !c.eventually(func() bool {
		s, err := a.api().BGP(t.Context())
		return err == nil && len(s.Peers) == 2 && s.Peers[0].State == "up" && s.Peers[1].State == "up"
	}) {
		t.Error("the mesh is not whole")
	}

	wire := testbed.StartCapture(t, a.Namespace, "eth0")
	var tries []try
	for _, n := range networks {
		o, s := ours[n], theirs[n]
		for _, pair := range []struct {
			from *testbed.Namespace
			to   netip.Addr
		}{{o.Namespace, s.v4}, {s.Namespace, o.v4}} {
			tries = append(tries, try{from: pair.from, to: pair.to, want: true}, try{from: pair.from, to: pair.to, port: 80, want: true},
				try{from: pair.from, to: pair.to, port: 80, udp: true, want: true})
		}
	}
	o, s := ours["plain"], theirs["plain"]
	tries = append(tries, try{from: o.Namespace, to: s.v6, port: 80, want: true}, try{from: s.Namespace, to: o.v6, port: 80, want: true})
	c.tryAll("mixed", tries...)
	// Of another network, by its profile: policy holds for what Calico's node sends.
	c.tryAll("policy", try{from: theirs["ipip"].Namespace, to: ours["plain"].v4, port: 80})
	var seen []string
	for _, p := range wire.Packets() {
		seen = append(seen, p.String())
	}
	wire.Stop()
	for _, want := range []string{
		"10.10.1.2 > 10.10.1.3: IPIP", "10.10.1.3 > 10.10.1.2: IPIP", "10.10.1.2 > 10.10.1.3: VXLAN", "10.10.1.3 > 10.10.1.2: VXLAN",
	} {
		if !slices.ContainsFunc(seen, func(s string) bool { return strings.Contains(s, want) }) {
			t.Errorf("not on the wire: %s", want)
		}
	}

	// All sessions are lost, for good as it seems, then one daemon and the other.
	floods := make(map[string]*testbed.Flood)
	for _, n := range networks {
		floods["to "+n] = testbed.StartFlood(t, ours[n].Namespace, theirs[n].Namespace, theirs[n].v4, testbed.FloodOptions{})
		floods["from "+n] = testbed.StartFlood(t, theirs[n].Namespace, ours[n].Namespace, ours[n].v4, testbed.FloodOptions{})
	}
	goOn := func(when string) {
		t.Helper()
		for name, f := range floods {
			if !f.Progresses(40) {
				t.Errorf("%s: ping %s: %s", when, name, f.Report())
			}
		}
	}
	goOn("before")
	b.bird.Kill()
	if !c.eventually(func() bool {
		s, err := a.api().BGP(t.Context())
		return err == nil && s.Peers[0].State != "up" && s.Peers[1].State != "up"
	}) {
		t.Error("sessions with a dead BIRD stay up")
	}
	goOn("without BGP")
	b.startBIRD()
	if !c.eventually(b.learned(c.blocks(a.name, all4))) {
		t.Error("BIRD has not learned again")
	}
	a.daemon.Kill()
	time.Sleep(200 * time.Millisecond)
	a.restart()
	goOn("after restarts")
	if !c.eventually(b.learned(c.blocks(a.name, all4))) {
		t.Error("BIRD has lost routes")
	}
	for name, f := range floods {
		if report := f.Stop(); report.Lost != 0 {
			t.Errorf("ping %s: %s", name, report)
		}
	}
}
