package whole

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"calico-xdp/tools/testbed"
)

// hostEndpoint is a manifest of a host endpoint with the label host; more goes into its
// spec.
func hostEndpoint(name, node, iface, more string) string {
	return fmt.Sprintf("\n---\n{apiVersion: projectcalico.org/v3, kind: HostEndpoint, metadata: {name: %s, labels: {host: %s}}, spec: {node: %s, interfaceName: %q%s}}\n",
		name, name, node, iface, more)
}

func hostPolicy(name, spec string) string {
	return fmt.Sprintf("\n---\n{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: %s}, spec: {%s}}\n", name, spec)
}

const open = ", profiles: [projectcalico-default-allow]"

// on says which tries there are in both families from a namespace to a host.
func on(from *testbed.Namespace, v4, v6 netip.Addr, port uint16, udp, want bool) []try {
	return []try{{from: from, to: v4, port: port, udp: udp, want: want}, {from: from, to: v6, port: port, udp: udp, want: want}}
}

// TestFailsafe: a policy that denies everything leaves ssh, etcd and BGP reachable;
// emptying the list really closes them, and they come back with it.
func TestFailsafe(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 1}, embedded: true})
	a, b, router := c.nodes[0], c.nodes[1], c.lab.Router
	c.serve(a.Namespace, 8080, 68)
	c.serve(router, 53, 8080)
	ssh := testbed.StartTCP(t, router, a.Namespace, netip.AddrPortFrom(a.IPv4.Addr(), 22))
	other := testbed.StartTCP(t, router, a.Namespace, netip.AddrPortFrom(a.IPv4.Addr(), 9000))
	v4, v6 := a.IPv4.Addr(), a.IPv6.Addr()
	gateway4, gateway6 := a.Gateway4, a.Gateway6
	sessions := func() bool {
		s, err := a.api().BGP(t.Context())
		up := 0
		for _, p := range s.Peers {
			if err == nil && p.State == "up" {
				up++
			}
		}
		return up == 2
	}
	if !c.eventually(sessions) {
		t.Fatal("no BGP")
	}
	c.apply(hostEndpoint("one", a.name, "eth0", "") + hostEndpoint("two", b.name, "eth0", "") +
		hostPolicy("deny", "selector: has(host), ingress: [{action: Deny}], egress: [{action: Deny}]"))
	if !c.eventually(func() bool { return other.Stalls(quiet) }) {
		t.Error("a connection to another port goes on")
	}
	stuck := func(when string) {
		t.Helper()
		var tries []try
		tries = append(tries, on(router, v4, v6, 8080, false, false)...)
		tries = append(tries, on(router, v4, v6, 8080, true, false)...)
		tries = append(tries, on(router, v4, v6, 0, false, false)...)
		tries = append(tries, on(a.Namespace, gateway4, gateway6, 8080, false, false)...)
		tries = append(tries, on(a.Namespace, gateway4, gateway6, 0, false, false)...)
		c.tryAll(when, tries...)
	}
	closed := func(when string) {
		t.Helper()
		stuck(when)
		tries := []try{
			{from: router, to: v4, port: 22, want: true}, {from: router, to: v4, port: 2379, want: true}, {from: b.Namespace, to: v4, port: 2379, want: true},
		}
		tries = append(tries, on(b.Namespace, v4, v6, 179, false, true)...)
		tries = append(tries, on(router, v4, v6, 68, true, true)...)
		tries = append(tries, on(a.Namespace, gateway4, gateway6, 53, true, true)...)
		tries = append(tries, on(a.Namespace, gateway4, gateway6, 53, false, false)...)
		c.tryAll(when, tries...)
		if !ssh.Progresses(1<<18) || ssh.Err() != nil {
			t.Errorf("%s: ssh is cut: %v", when, ssh.Err())
		}
		if !other.Stalls(quiet) {
			t.Errorf("%s: a connection to another port goes on", when)
		}
		if !c.eventually(sessions) {
			t.Errorf("%s: no BGP", when)
		}
	}
	closed("deny all")
	// All of it made anew.
	a.daemon.Kill()
	b.daemon.Kill()
	stuck("no daemon")
	c.tryAll("no daemon", on(router, v4, v6, 68, true, true)...)
	a.start()
	b.restart() // with the etcd inside the other one
	a.waitReady()
	closed("started anew")

	failsafe := func(spec string) string {
		return fmt.Sprintf("{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: node.host1}, spec: {%s}}", spec)
	}
	c.apply(failsafe("failsafeInboundHostPorts: [], failsafeOutboundHostPorts: []"))
	if !c.eventually(func() bool { return ssh.Stalls(quiet) }) {
		t.Error("ssh goes on though the list is empty")
	}
	stuck("empty")
	var tries []try
	for _, port := range []uint16{22, 179, 2379} {
		tries = append(tries, on(router, v4, v6, port, false, false)...)
		tries = append(tries, on(b.Namespace, v4, v6, port, false, false)...)
	}
	tries = append(tries, on(router, v4, v6, 68, true, false)...)
	tries = append(tries, on(a.Namespace, gateway4, gateway6, 53, true, false)...)
	c.tryAll("empty", tries...)

	// A list of one's own.
	c.apply(failsafe(fmt.Sprintf("failsafeInboundHostPorts: [{protocol: tcp, port: 22, net: %s/32}, {protocol: udp, port: 8080}], failsafeOutboundHostPorts: []", gateway4)))
	if !ssh.Progresses(1<<18) || ssh.Err() != nil {
		t.Errorf("ssh is allowed again, and does not go on: %v", ssh.Err())
	}
	tries = []try{{from: router, to: v4, port: 22, want: true}, {from: router, to: v6, port: 22}, {from: b.Namespace, to: v4, port: 2379}}
	tries = append(tries, on(router, v4, v6, 8080, true, true)...)
	tries = append(tries, on(router, v4, v6, 8080, false, false)...)
	tries = append(tries, on(a.Namespace, gateway4, gateway6, 53, true, false)...)
	c.tryAll("own list", tries...)

	c.ctl("", "delete", "felixconfiguration", "node.host1")
	if !c.eventually(func() bool {
		ok, _ := try{from: b.Namespace, to: v4, port: 2379}.exchange()
		return ok
	}) {
		t.Error("etcd is not reachable again")
	}
	closed("default again")
	c.ctl("", "delete", "hostendpoint", "one")
	c.ctl("", "delete", "hostendpoint", "two")
	c.eventually(func() bool { ok, _ := try{from: router, to: v4, port: 8080}.exchange(); return ok })
	c.tryAll("host endpoints deleted", append(on(router, v4, v6, 8080, false, true), on(a.Namespace, gateway4, gateway6, 8080, false, true)...)...)
}

// TestHostEndpoint: the host's own traffic, on a named interface, by address and on all
// of them; what lives is cut and goes on; a restart keeps all of it.
func TestHostEndpoint(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 1}})
	a, b, router := c.nodes[0], c.nodes[1], c.lab.Router
	for _, n := range []*testbed.Namespace{a.Namespace, b.Namespace, router} {
		c.serve(n, 8080, 8081)
	}
	stream := testbed.StartTCP(t, router, a.Namespace, netip.AddrPortFrom(a.IPv4.Addr(), 9000))
	outward := testbed.StartTCP(t, a.Namespace, router, netip.AddrPortFrom(a.Gateway6, 9001))
	shut := testbed.StartTCP(t, router, a.Namespace, netip.AddrPortFrom(a.IPv4.Addr(), 9002))
	v4, v6 := a.IPv4.Addr(), a.IPv6.Addr()
	all := func(from *testbed.Namespace, v4, v6 netip.Addr, want bool) []try {
		var tries []try
		for _, udp := range []bool{false, true} {
			tries = append(tries, on(from, v4, v6, 8080, udp, want)...)
		}
		return append(tries, on(from, v4, v6, 0, false, want)...)
	}
	in, out := func(want bool) []try { return all(router, v4, v6, want) }, func(want bool) []try { return all(a.Namespace, a.Gateway4, a.Gateway6, want) }

	// The interface is not there yet.
	c.apply(hostEndpoint("later", a.name, "side0", ""))
	if s := a.status(); len(s.Problems) != 1 || !strings.Contains(fmt.Sprint(s.Problems), "side0") {
		t.Errorf("problems %+v", s.Problems)
	}
	c.tryAll("another interface", append(in(true), out(true)...)...)
	testbed.Veth(t, a.Namespace, "side0", router, "side1")
	a.AddAddress(t, "side0", "10.77.0.2/24")
	a.AddAddress(t, "side0", "fd77::2/64")
	router.AddAddress(t, "side1", "10.77.0.1/24")
	router.AddAddress(t, "side1", "fd77::1/64")
	side4, side6 := netip.MustParseAddr("10.77.0.2"), netip.MustParseAddr("fd77::2")
	if !c.eventually(func() bool {
		ok, _ := try{from: router, to: side6, port: 8080}.exchange()
		return !ok && len(a.status().Problems) == 0
	}) {
		t.Errorf("not guarded; problems %+v", a.status().Problems)
	}
	far4, far6 := netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("fd77::1")
	c.tryAll("it appears", append(append(in(true), out(true)...),
		append(all(router, side4, side6, false), all(a.Namespace, far4, far6, false)...)...)...)
	// By an address instead: the first name has it.
	c.apply(hostEndpoint("early", a.name, "", ", expectedIPs: [10.77.0.2]"+open))
	c.tryAll("by address", append(all(router, side4, side6, true), all(a.Namespace, far4, far6, true)...)...)
	c.delete("hostendpoint", "early")
	c.tryAll("by name again", append(all(router, side4, side6, false), all(a.Namespace, far4, far6, false)...)...)
	c.delete("hostendpoint", "later")
	c.tryAll("deleted", append(all(router, side4, side6, true), all(a.Namespace, far4, far6, true)...)...)

	// Policy on the uplink.
	policy := func(stream, outward string) string {
		return hostPolicy("uplink", fmt.Sprintf(`selector: host == 'uplink', types: [Ingress, Egress],
 ingress: [{action: %s, protocol: TCP, destination: {ports: [9000]}}, {action: Allow, protocol: TCP, source: {nets: [10.10.1.1/32]}, destination: {ports: [8080]}}, {action: Allow, protocol: TCP, source: {nets: ["fd10:10:1::1/128"]}, destination: {ports: [8080]}}, {action: Allow, protocol: UDP, destination: {ports: [8080, 5201]}}],
 egress: [{action: %s, protocol: TCP, destination: {ports: [9001]}}, {action: Allow, protocol: TCP, destination: {ports: [8081]}}]`, stream, outward))
	}
	c.apply(hostEndpoint("uplink", a.name, "eth0", "") + policy("Allow", "Allow"))
	enforced := func(when string) {
		t.Helper()
		var tries []try
		tries = append(tries, on(router, v4, v6, 8080, false, true)...)
		tries = append(tries, on(router, v4, v6, 8080, true, true)...)
		tries = append(tries, on(router, v4, v6, 8081, false, false)...)
		tries = append(tries, on(router, v4, v6, 0, false, false)...)
		tries = append(tries, on(b.Namespace, v4, v6, 8080, false, false)...)
		tries = append(tries, on(b.Namespace, v4, v6, 8080, true, true)...)
		tries = append(tries, on(a.Namespace, a.Gateway4, a.Gateway6, 8081, false, true)...)
		tries = append(tries, on(a.Namespace, a.Gateway4, a.Gateway6, 8080, false, false)...)
		tries = append(tries, on(a.Namespace, a.Gateway4, a.Gateway6, 8081, true, false)...)
		c.tryAll(when, tries...)
	}
	enforced("policy")
	goOn := func(when string, s *testbed.TCPStream) {
		t.Helper()
		if !s.Progresses(1<<18) || s.Err() != nil {
			t.Errorf("%s: stream: %v", when, s.Err())
		}
	}
	stops := func(when string, s *testbed.TCPStream) {
		t.Helper()
		if !s.Stalls(quiet) {
			t.Errorf("%s: the stream goes on", when)
		}
	}
	// Connections older than the host endpoint are judged in the direction that they were
	// opened in.
	goOn("older than the host endpoint", stream)
	goOn("older than the host endpoint", outward)
	stops("not allowed", shut)
	c.apply(policy("Deny", "Allow"))
	stops("denied", stream)
	goOn("the other one is not", outward)
	c.apply(policy("Allow", "Deny"))
	goOn("allowed again", stream)
	stops("denied", outward)
	c.apply(policy("Allow", "Allow"))
	goOn("allowed again", outward)

	// With the daemon away and back: no packet is lost, nothing opens.
	flood := testbed.StartFlood(t, router, a.Namespace, v4, testbed.FloodOptions{Protocol: "udp"})
	kept := func(when string) {
		t.Helper()
		if !flood.Progresses(40) {
			t.Errorf("%s: %s", when, flood.Report())
		}
		goOn(when, stream)
		goOn(when, outward)
		stops(when, shut)
	}
	kept("before")
	for range 2 {
		a.daemon.Kill()
		kept("killed")
		a.restart()
		kept("started anew")
	}
	a.stop()
	enforced("stopped")
	kept("stopped")
	a.restart()
	enforced("started anew")
	kept("started anew")
	if r := flood.Stop(); r.Lost != 0 || r.Refused != 0 {
		t.Errorf("flood: %s", r)
	}

	// On all interfaces, the side one too, but where another one is. Loopback is free.
	c.apply(hostEndpoint("all", a.name, "*", ""))
	enforced("all interfaces")
	c.tryAll("all interfaces", append(append(all(router, side4, side6, false), all(a.Namespace, far4, far6, false)...),
		all(a.Namespace, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback(), true)...)...)
	c.delete("hostendpoint", "uplink")
	c.tryAll("all interfaces, the uplink too", append(in(false), out(false)...)...)
	stops("all interfaces", stream)
	stops("all interfaces", outward)
	c.apply(hostEndpoint("all", a.name, "*", open))
	c.tryAll("its profile allows all", append(append(in(true), out(true)...), all(router, side4, side6, true)...)...)
	c.delete("hostendpoint", "all")
	c.tryAll("deleted", append(append(in(true), out(true)...), all(router, side4, side6, true)...)...)
	goOn("deleted", stream)
	if s := a.status(); len(s.Problems) != 0 || s.Error != "" {
		t.Errorf("%+v %s", s.Problems, s.Error)
	}
}

// TestHostEndpointForward: what the host forwards, for its workloads and others, and how
// it differs from what is its own.
func TestHostEndpointForward(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 1}})
	a, b, router := c.nodes[0], c.nodes[1], c.lab.Router
	near, far := make(map[string]*workload), make(map[string]*workload)
	for _, network := range []string{"plain", "vxlan"} {
		near[network], far[network] = c.attach(a, network, "near-"+network), c.attach(b, network, "far-"+network)
	}
	beside := c.attach(a, "plain", "beside")
	// Somebody whose router host1 is.
	inner := testbed.NewNamespace(t, "inner")
	testbed.Veth(t, a.Namespace, "side0", inner, "eth0")
	a.AddAddress(t, "side0", "10.77.0.1/24")
	inner.AddAddress(t, "eth0", "10.77.0.2/24")
	inner.AddRoute(t, "0.0.0.0/0", "10.77.0.1", "eth0")
	router.AddRoute(t, "10.77.0.0/24", a.IPv4.Addr().String(), "eth1")
	inner4, outer4 := netip.MustParseAddr("10.77.0.2"), a.Gateway4
	for _, n := range []*testbed.Namespace{a.Namespace, inner, router} {
		c.serve(n, 80, 5432)
	}
	c.apply(`{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: default}, spec: {defaultEndpointToHostAction: Accept}}`)
	workloads := func(network string, in80, in5432, out80, out5432 bool) []try {
		n, f := near[network], far[network]
		var tries []try
		tries = append(tries, on(f.Namespace, n.v4, n.v6, 80, false, in80)...)
		tries = append(tries, on(f.Namespace, n.v4, n.v6, 5432, true, in5432)...)
		tries = append(tries, on(n.Namespace, f.v4, f.v6, 80, false, out80)...)
		return append(tries, on(n.Namespace, f.v4, f.v6, 5432, true, out5432)...)
	}
	others := func(in80, in5432, out80, out5432 bool) []try {
		return []try{
			{from: router, to: inner4, port: 80, want: in80}, {from: router, to: inner4, port: 5432, udp: true, want: in5432},
			{from: inner, to: outer4, port: 80, want: out80}, {from: inner, to: outer4, port: 5432, udp: true, want: out5432},
		}
	}
	own := func(in, out, toWorkloads, toHost bool) []try {
		return []try{
			{from: router, to: a.IPv4.Addr(), port: 80, want: in}, {from: router, to: a.IPv6.Addr(), port: 5432, udp: true, want: in},
			{from: a.Namespace, to: a.Gateway4, port: 80, want: out}, {from: a.Namespace, to: a.Gateway6, port: 5432, udp: true, want: out},
			{from: a.Namespace, to: beside.v4, port: 80, want: toWorkloads}, {from: beside.Namespace, to: a.IPv4.Addr(), port: 80, want: toHost},
			{from: beside.Namespace, to: a.IPv6.Addr(), port: 5432, udp: true, want: toHost},
		}
	}
	together := func(lists ...[]try) (all []try) {
		for _, l := range lists {
			all = append(all, l...)
		}
		return append(all, try{from: near["plain"].Namespace, to: beside.v4, port: 80, want: true})
	}
	yes := true
	c.tryAll("before", together(workloads("plain", yes, yes, yes, yes), workloads("vxlan", yes, yes, yes, yes), others(yes, yes, yes, yes), own(yes, yes, yes, yes))...)

	// Without a policy that applies to it, what is forwarded passes.
	c.apply(hostEndpoint("uplink", a.name, "eth0", "") +
		hostPolicy("own", "selector: host == 'uplink', types: [Ingress, Egress], ingress: [{action: Deny}], egress: [{action: Deny}]"))
	c.tryAll("no applyOnForward", together(workloads("plain", yes, yes, yes, yes), workloads("vxlan", yes, yes, yes, yes), others(yes, yes, yes, yes), own(false, false, yes, yes))...)
	stream := testbed.StartTCP(t, far["plain"].Namespace, near["plain"].Namespace, netip.AddrPortFrom(near["plain"].v4, 7000))

	// What the tunnel carries does not pass eth0 as such.
	c.apply(hostPolicy("forward", `selector: host == 'uplink', applyOnForward: true, order: 1, types: [Ingress, Egress],
 ingress: [{action: Allow, protocol: TCP, destination: {ports: [80]}}], egress: [{action: Allow, protocol: UDP}]`))
	c.tryAll("applyOnForward", together(workloads("plain", yes, false, false, yes), workloads("vxlan", yes, yes, yes, yes), others(yes, false, false, yes))...)
	// Not order but place decides: for the host's own it is one more policy.
	c.tryAll("applyOnForward, the host's own",
		try{from: router, to: a.IPv4.Addr(), port: 80, want: true}, try{from: router, to: a.IPv4.Addr(), port: 5432, udp: true},
		try{from: a.Namespace, to: a.Gateway4, port: 80}, try{from: a.Namespace, to: a.Gateway4, port: 5432, udp: true, want: true})
	if !stream.Stalls(quiet) {
		t.Error("a forwarded connection goes on")
	}
	a.daemon.Kill()
	a.restart()
	c.tryAll("after a restart", together(workloads("plain", yes, false, false, yes), workloads("vxlan", yes, yes, yes, yes), others(yes, false, false, yes))...)
	c.delete("globalnetworkpolicy", "forward")
	if !stream.Progresses(1<<18) || stream.Err() != nil {
		t.Errorf("a forwarded connection does not go on: %v", stream.Err())
	}

	// Before the destination is translated; Allow spares the later stages.
	c.apply(hostPolicy("before", `selector: host == 'uplink', preDNAT: true, applyOnForward: true, order: 1, types: [Ingress],
 ingress: [{action: Allow, protocol: TCP, destination: {ports: [80]}}, {action: Deny, protocol: UDP, destination: {ports: [5432]}}]`) +
		hostPolicy("forward", `selector: host == 'uplink', applyOnForward: true, order: 2, types: [Ingress],
 ingress: [{action: Deny, protocol: TCP}, {action: Allow}]`))
	c.tryAll("preDNAT", together(workloads("plain", yes, false, yes, yes), workloads("vxlan", yes, yes, yes, yes), others(yes, false, yes, yes))...)
	c.tryAll("preDNAT, the host's own", try{from: router, to: a.IPv4.Addr(), port: 80, want: true}, try{from: router, to: a.IPv4.Addr(), port: 5432, udp: true})
	c.delete("globalnetworkpolicy", "before")
	c.tryAll("preDNAT deleted", together(workloads("plain", false, yes, yes, yes), others(false, yes, yes, yes))...)
	c.delete("globalnetworkpolicy", "forward")
	c.delete("hostendpoint", "uplink")

	// All interfaces: tunnels, too.
	c.apply(hostEndpoint("all", a.name, "*", "") + hostPolicy("all", `selector: host == 'all', applyOnForward: true, types: [Ingress, Egress],
 ingress: [{action: Deny, protocol: UDP, source: {selector: role == 'far'}}, {action: Allow}], egress: [{action: Deny, protocol: TCP, destination: {selector: role == 'far'}}, {action: Allow}]`))
	c.tryAll("all interfaces", together(workloads("plain", yes, false, false, yes), workloads("vxlan", yes, false, false, yes), others(yes, yes, yes, yes), own(yes, yes, yes, yes))...)
	// Workloads' interfaces are among them, for what is forwarded and before translation.
	c.apply(hostPolicy("all", `selector: host == 'all', applyOnForward: true, types: [Ingress, Egress],
 ingress: [{action: Deny, protocol: UDP, source: {selector: role == 'near'}}, {action: Allow}], egress: [{action: Deny, protocol: TCP, destination: {selector: role == 'beside', ports: [5432]}}, {action: Allow}]`) +
		hostPolicy("before", `selector: host == 'all', preDNAT: true, applyOnForward: true, order: 1, types: [Ingress],
 ingress: [{action: Deny, protocol: TCP, source: {selector: role == 'beside'}, destination: {ports: [80]}}]`))
	c.tryAll("all interfaces, workloads'", together(workloads("plain", yes, yes, yes, false), workloads("vxlan", yes, yes, yes, false), []try{
		{from: near["plain"].Namespace, to: beside.v4, port: 5432}, {from: near["plain"].Namespace, to: beside.v6, port: 80, udp: true},
		{from: beside.Namespace, to: near["plain"].v4, port: 80}, {from: beside.Namespace, to: near["plain"].v6, port: 5432, want: true},
		{from: beside.Namespace, to: a.IPv4.Addr(), port: 80}, {from: beside.Namespace, to: a.IPv4.Addr(), port: 5432, want: true},
		{from: a.Namespace, to: beside.v4, port: 5432, want: true},
	})...)
	c.delete("globalnetworkpolicy", "before")
	// Closed for the host's own: workloads reach it as endpoint-to-host action says.
	c.apply(hostPolicy("all", "selector: host == 'all', types: [Ingress, Egress], ingress: [{action: Deny}], egress: [{action: Deny}]"))
	for _, action := range []string{"Accept", "Return", "Drop"} {
		c.apply(fmt.Sprintf("{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: default}, spec: {defaultEndpointToHostAction: %s}}", action))
		c.tryAll("all interfaces, "+action, together(workloads("plain", yes, yes, yes, yes), workloads("vxlan", yes, yes, yes, yes), others(yes, yes, yes, yes), own(false, false, yes, action != "Drop"))...)
	}
	for _, n := range c.nodes {
		if s := n.status(); len(s.Problems) != 0 || s.Error != "" {
			t.Errorf("%s: %+v %s", n.name, s.Problems, s.Error)
		}
	}
}

// TestUntracked: each packet for itself, in XDP where it comes in, and where it leaves.
func TestUntracked(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1}})
	a, router := c.nodes[0], c.lab.Router
	c.serve(a.Namespace, 8080, 8081)
	c.serve(router, 8082)
	v4, v6 := a.IPv4.Addr(), a.IPv6.Addr()
	xdp := `calico_xdp_packets_total\{hook="xdp_network",reason="drop_untracked"`
	untracked := func(ingress, egress string) string {
		return hostPolicy("untracked", fmt.Sprintf("selector: host == 'uplink', doNotTrack: true, applyOnForward: true, order: 1, types: [Ingress, Egress], ingress: [%s], egress: [%s]", ingress, egress))
	}
	server, answers := "{action: Allow, protocol: UDP, destination: {ports: [8080]}}", "{action: Allow, protocol: UDP, source: {ports: [8080]}}"
	c.apply(hostEndpoint("uplink", a.name, "eth0", "") + untracked(server, answers))
	attached := func() bool { return strings.Contains(a.MustRun(t, "ip", "-details", "link", "show", "eth0"), "xdp") }
	if !attached() {
		t.Error("no XDP program")
	}
	c.tryAll("both directions", append(on(router, v4, v6, 8080, true, true), append(on(router, v4, v6, 8080, false, false), on(router, v4, v6, 8081, true, false)...)...)...)
	if n := a.counter(`calico_xdp_flows\b`); n != 0 {
		t.Logf("%v flows", n)
	}
	if a.counter(`calico_xdp_packets_total\{hook="from_network",reason="pass_untracked"`) == 0 ||
		a.counter(`calico_xdp_packets_total\{hook="to_network",reason="pass_`) == 0 {
		t.Error("nothing passes as untracked")
	}
	// Answers are judged alone.
	c.apply(untracked(server, ""))
	c.tryAll("no way out", on(router, v4, v6, 8080, true, false)...)
	c.apply(untracked("", answers))
	c.tryAll("no way in", on(router, v4, v6, 8080, true, false)...)
	// Denied: in XDP, though a later stage would allow it.
	before := a.counter(xdp)
	c.apply(untracked("{action: Deny, protocol: UDP, destination: {ports: [8081]}}", "{action: Deny, protocol: TCP, destination: {ports: [8082]}}") +
		hostPolicy("tracked", "selector: host == 'uplink', order: 2, types: [Ingress, Egress], ingress: [{action: Allow}], egress: [{action: Allow}]"))
	var tries []try
	tries = append(tries, on(router, v4, v6, 8081, true, false)...)
	tries = append(tries, on(router, v4, v6, 8081, false, true)...)
	tries = append(tries, on(router, v4, v6, 8080, true, true)...)
	tries = append(tries, on(a.Namespace, a.Gateway4, a.Gateway6, 8082, false, false)...)
	tries = append(tries, on(a.Namespace, a.Gateway4, a.Gateway6, 8082, true, true)...)
	c.tryAll("denied", tries...)
	if n := a.counter(xdp) - before; n < 2 {
		t.Errorf("XDP has dropped %v packets", n)
	}
	// A live connection stops at once, and goes on.
	stream := testbed.StartTCP(t, router, a.Namespace, netip.AddrPortFrom(v4, 9000))
	c.apply(untracked("{action: Deny, protocol: TCP, destination: {ports: [9000]}}", ""))
	if !stream.Stalls(quiet) {
		t.Error("the stream goes on")
	}
	a.daemon.Kill()
	time.Sleep(quiet)
	if !stream.Stalls(quiet) {
		t.Error("the stream goes on without the daemon")
	}
	a.restart()
	c.delete("globalnetworkpolicy", "untracked")
	if !stream.Progresses(1<<18) || stream.Err() != nil {
		t.Errorf("the stream does not go on: %v", stream.Err())
	}
	if !c.eventually(func() bool { return !attached() }) {
		t.Error("the XDP program stays without a policy")
	}
	c.tryAll("deleted", append(on(router, v4, v6, 8081, true, true), on(a.Namespace, a.Gateway4, a.Gateway6, 8082, false, true)...)...)
}
