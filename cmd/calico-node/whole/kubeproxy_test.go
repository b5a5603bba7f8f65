package whole

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"calico-xdp/tools/testbed"
)

// proxy is what makes a host's kernel lead services to workloads, as kube-proxy has it.
type proxy struct {
	name  string
	start func(c *cluster, n *node, services []service)
	stop  func(c *cluster, n *node)
}

// service is an address and port of no interface, or a port of the host's, and where it leads.
type service struct {
	ip         netip.Addr // not valid: any of the host's own
	port       uint16
	to         netip.AddrPort
	masquerade bool // clients see a server that sees the host
}

// proxies are kube-proxy's modes, with the rules that it writes: chains by service and
// endpoint, the mark of what is to be masqueraded, and its masquerading.
func proxies() []proxy {
	all := []proxy{{
		name: "nft",
		start: func(c *cluster, n *node, services []service) {
			for _, family := range []string{"ip", "ip6"} {
				script := fmt.Sprintf("table %s kube-proxy {\n", family)
				var rules string
				for i, s := range services {
					if s.to.Addr().Is4() != (family == "ip") {
						continue
					}
					script += fmt.Sprintf("chain endpoint-%d {\n%s saddr %s jump mark-for-masquerade\n", i, family, s.to.Addr())
					if s.masquerade {
						script += "jump mark-for-masquerade\n"
					}
					for _, protocol := range []string{"tcp", "udp"} {
						script += fmt.Sprintf("meta l4proto %s dnat to %s\n", protocol, s.to)
					}
					script += "}\n"
					match := fmt.Sprintf("%s daddr %s", family, s.ip)
					if !s.ip.IsValid() {
						match = "fib daddr type local"
					}
					rules += fmt.Sprintf("%s meta l4proto { tcp, udp } th dport %d goto endpoint-%d\n", match, s.port, i)
				}
				script += "chain services {\n" + rules + "}\n"
				n.MustRun(c, "nft", "table "+family+" kube-proxy { chain mark-for-masquerade { mark set mark or 0x4000; }; }\n"+script+`
chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
chain nat-output { type nat hook output priority -100; jump services; }
chain nat-postrouting { type nat hook postrouting priority srcnat; mark & 0x4000 == 0 return; mark set mark xor 0x4000; masquerade fully-random; }
}
`)
			}
		},
		stop: func(c *cluster, n *node) {
			n.MustRun(c, "nft", "delete table ip kube-proxy; delete table ip6 kube-proxy")
		},
	}}
	for _, variant := range []string{"nft", "legacy"} {
		all = append(all, proxy{
			name: "iptables-" + variant,
			start: func(c *cluster, n *node, services []service) {
				for _, ipv6 := range []bool{false, true} {
					var rules strings.Builder
					rules.WriteString("*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-POSTROUTING - [0:0]\n")
					for i := range services {
						fmt.Fprintf(&rules, ":KUBE-SEP-%d - [0:0]\n", i)
					}
					rules.WriteString(`-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
`)
					for i, s := range services {
						if s.to.Addr().Is6() != ipv6 {
							continue
						}
						match := "-d " + s.ip.String()
						if !s.ip.IsValid() {
							match = "-m addrtype --dst-type LOCAL"
						}
						fmt.Fprintf(&rules, "-A KUBE-SEP-%d -s %s -j KUBE-MARK-MASQ\n", i, s.to.Addr())
						if s.masquerade {
							fmt.Fprintf(&rules, "-A KUBE-SEP-%d -j KUBE-MARK-MASQ\n", i)
						}
						for _, protocol := range []string{"tcp", "udp"} {
							fmt.Fprintf(&rules, "-A KUBE-SEP-%d -p %s -m %s -j DNAT --to-destination %s\n", i, protocol, protocol, s.to)
							fmt.Fprintf(&rules, "-A KUBE-SERVICES %s -p %s -m %s --dport %d -j KUBE-SEP-%d\n", match, protocol, protocol, s.port, i)
						}
					}
					rules.WriteString("COMMIT\n")
					c.restore(n, variant, ipv6, rules.String())
				}
			},
			stop: func(c *cluster, n *node) {
				for _, tables := range []string{"iptables-", "ip6tables-"} {
					n.MustRun(c, tables+variant, "-t", "nat", "-F")
					n.MustRun(c, tables+variant, "-t", "nat", "-X")
				}
			},
		})
	}
	return all
}

// restore gives a host's iptables a table.
func (c *cluster) restore(n *node, variant string, ipv6 bool, rules string) {
	c.Helper()
	command := "iptables-" + variant + "-restore"
	if ipv6 {
		command = "ip6tables-" + variant + "-restore"
	}
	n.MustRun(c, "sh", "-c", command+" <<'END'\n"+rules+"END\n")
}

func (c *cluster) lookAt(when string, from *testbed.Namespace, service netip.AddrPort, want netip.Addr) {
	c.Helper()
	for _, network := range []string{"tcp", "udp"} {
		seen, err := seenAt(from, network, service, patience/4)
		switch {
		case err != nil:
			c.Errorf("%s: %s to %s over %s: %v", when, from.Name, service, network, err)
		case want.IsValid() && seen.Addr() != want:
			c.Errorf("%s: %s to %s over %s is seen as %s, want %s", when, from.Name, service, network, seen, want)
		}
	}
}

// serviceList makes up services of which each has its own address, or port of the host's.
type serviceList struct{ all []service }

func (l *serviceList) add(to netip.AddrPort, masquerade bool) netip.AddrPort {
	n := len(l.all) + 1
	ip := netip.AddrFrom4([4]byte{10, 96, 0, byte(n)})
	if to.Addr().Is6() {
		ip = netip.MustParseAddr(fmt.Sprintf("fd96::%x", n))
	}
	l.all = append(l.all, service{ip: ip, port: 80, to: to, masquerade: masquerade})
	return netip.AddrPortFrom(ip, 80)
}

func (l *serviceList) addPort(to netip.AddrPort, masquerade bool) (port uint16) {
	port = uint16(30000 + len(l.all))
	l.all = append(l.all, service{port: port, to: to, masquerade: masquerade})
	return port
}

// TestKubeProxy: services that the host's own stack translates answer, whoever asks and
// wherever the server is.
func TestKubeProxy(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 1}})
	a, b, router := c.nodes[0], c.nodes[1], c.lab.Router
	c.apply(felix(""))
	type use struct {
		name   string
		from   *testbed.Namespace
		to     netip.AddrPort
		seenAs netip.Addr // not valid: an address of the host's
	}
	var uses []use
	var services serviceList
	for _, network := range []struct {
		name     string
		families []bool
	}{{"ipip", []bool{false}}, {"vxlan", []bool{false, true}}, {"plain", []bool{false, true}}} {
		client, near, far := c.attach(a, network.name, "client-"+network.name), c.attach(a, network.name, "near-"+network.name), c.attach(b, network.name, "far-"+network.name)
		for _, w := range []*workload{client, near, far} {
			c.mirror(w.Namespace)
		}
		for _, ipv6 := range network.families {
			own, host, world := client.address(ipv6), a.IPv4.Addr(), a.Gateway4
			if ipv6 {
				host, world = a.IPv6.Addr(), a.Gateway6
			}
			for _, server := range []*workload{near, far} {
				to, name := netip.AddrPortFrom(server.address(ipv6), mirror), fmt.Sprintf("%s at %s", server.name, server.address(ipv6))
				at := services.add(to, false)
				uses = append(uses, use{name, client.Namespace, at, own}, use{name + ", the host", a.Namespace, at, netip.Addr{}},
					use{name + ", masqueraded", client.Namespace, services.add(to, true), netip.Addr{}},
					// Of another node, through a port of this node's.
					use{name + ", a port of the host's, masqueraded", far.Namespace, netip.AddrPortFrom(host, services.addPort(to, true)), netip.Addr{}},
					use{name + ", a port of the host's, masqueraded, from outside", router, netip.AddrPortFrom(host, services.addPort(to, true)), netip.Addr{}})
			}
			port := services.addPort(netip.AddrPortFrom(near.address(ipv6), mirror), false)
			uses = append(uses, use{near.name + ", a port of the host's", far.Namespace, netip.AddrPortFrom(host, port), far.address(ipv6)},
				use{near.name + ", a port of the host's, from outside", router, netip.AddrPortFrom(host, port), world},
				use{client.name + ", itself", client.Namespace, services.add(netip.AddrPortFrom(own, mirror), false), netip.Addr{}})
		}
	}
	c.apply(`{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: servers}, spec: {selector: "role in {'near', 'far', 'client'}", types: [Ingress],
 ingress: [{action: Allow, protocol: TCP, destination: {ports: [9000]}}, {action: Allow, protocol: UDP, destination: {ports: [9000]}}]}}`)
	for _, p := range proxies() {
		p.start(c, a, services.all)
		var done sync.WaitGroup
		for _, u := range uses {
			done.Go(func() { c.lookAt(p.name+", "+u.name, u.from, u.to, u.seenAs) })
		}
		done.Wait()
		p.stop(c, a)
	}
}

// TestKubeProxyAndPolicy: policy judges what a service leads to, as if there were none, and a
// change of it reaches live connections.
func TestKubeProxyAndPolicy(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 1}, environ: []string{"CALICO_SERVICE_CIDRS=10.96.0.0/16,fd96::/64"}})
	a, b := c.nodes[0], c.nodes[1]
	c.apply(felix(""))
	const web = 8000 // where servers serve
	type path struct {
		client, stranger, server *workload
		service                  netip.AddrPort
		nobody                   netip.AddrPort // a service that leads to where nobody listens
		long, longAt             netip.AddrPort // for a long connection: the service, and where it leads
	}
	var services serviceList
	var paths []path
	for _, network := range []string{"ipip", "vxlan", "plain"} {
		client, stranger := c.attach(a, network, "client-"+network), c.attach(a, network, "stranger-"+network)
		for _, server := range []*workload{c.attach(a, network, "near-"+network), c.attach(b, network, "far-"+network)} {
			c.serve(server.Namespace, web)
			for _, to := range []netip.Addr{server.v4, server.v6} {
				if !to.IsValid() {
					continue
				}
				p := path{client: client, stranger: stranger, server: server, longAt: netip.AddrPortFrom(to, uint16(7000+len(paths)))}
				p.service, p.nobody = services.add(netip.AddrPortFrom(to, web), false), services.add(netip.AddrPortFrom(to, 9), false)
				p.long = services.add(p.longAt, false)
				paths = append(paths, p)
			}
		}
	}
	proxies()[0].start(c, a, services.all)
	tryAll := func(when string, client, stranger bool) {
		t.Helper()
		var all []try
		for _, p := range paths {
			for _, udp := range []bool{false, true} {
				all = append(all, try{from: p.client.Namespace, to: p.service.Addr(), port: p.service.Port(), udp: udp, want: client},
					try{from: p.stranger.Namespace, to: p.service.Addr(), port: p.service.Port(), udp: udp, want: stranger})
			}
		}
		c.tryAll(when, all...)
	}
	servers := hostPolicy("servers", `selector: "role in {'near', 'far'}", types: [Ingress], ingress: [{action: Allow, source: {selector: "role == 'client'"}}]`)
	nobody := hostPolicy("servers", `selector: "role in {'near', 'far'}", types: [Ingress]`)
	c.apply(servers)
	tryAll("clients may", true, false)

	streams := make([]*testbed.TCPStream, len(paths))
	for i, p := range paths {
		// What a server has to say about a packet comes from the service.
		conn, err := p.client.Dial("udp", p.nobody.String())
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte("nobody listens"))
		conn.SetReadDeadline(time.Now().Add(patience))
		if _, err := conn.Read(make([]byte, 8)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: port unreachable does not come back: %v", p.server.name, err)
		}
		conn.Close()
		streams[i] = testbed.StartTCPAt(t, p.client.Namespace, p.server.Namespace, p.long, p.longAt)
	}
	goOn := func(when string) {
		t.Helper()
		for i, s := range streams {
			if !s.Progresses(1<<18) || s.Err() != nil {
				t.Errorf("%s: a connection to %s by %s: no progress: %v", when, paths[i].longAt, paths[i].long, s.Err())
			}
		}
	}
	stop := func(when string) {
		t.Helper()
		for i, s := range streams {
			if !c.eventually(func() bool { return s.Stalls(quiet) }) {
				t.Errorf("%s: a connection to %s by %s goes on", when, paths[i].longAt, paths[i].long)
			}
		}
	}
	goOn("allowed")
	a.daemon.Kill()
	goOn("no daemon")
	a.restart()
	goOn("restarted")
	c.apply(nobody)
	stop("ingress denied")
	tryAll("ingress denied", false, false)
	c.apply(servers)
	goOn("allowed again")

	// Egress policy, too, is about the server, and says so where it denies.
	clients := func(to, action string) string {
		return hostPolicy("clients", `selector: "role in {'client', 'stranger'}", types: [Egress], egress: [{action: `+action+`, destination: {selector: "`+to+`"}}]`)
	}
	c.apply(clients("role in {'near', 'far'}", "Allow"))
	goOn("egress allowed")
	tryAll("egress allowed", true, false)
	c.apply(clients("role in {'client'}", "Allow"))
	stop("egress denied")
	tryAll("egress denied", false, false)
	c.apply(clients("role in {'near', 'far'}", "Allow"))
	goOn("egress allowed again")
	// A rule about the services' addresses has no say.
	c.apply(hostPolicy("clients", `selector: "role in {'client', 'stranger'}", types: [Egress],
 egress: [{action: Allow, destination: {nets: [10.96.0.0/16]}}, {action: Allow, destination: {nets: ["fd96::/64"]}}]`))
	stop("egress to services' addresses")
	tryAll("egress to services' addresses", false, false)
	c.apply(clients("role in {'near', 'far'}", "Allow"))
	goOn("egress allowed after all")
}

// TestUnjudgedServices: where a service leads to what no policy can judge, or nowhere, a workload
// that may not send there does not.
func TestUnjudgedServices(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1}, environ: []string{"CALICO_SERVICE_CIDRS=10.96.0.0/16,fd96::/64"}})
	a, router := c.nodes[0], c.lab.Router
	c.apply(felix(""))
	client := c.attach(a, "vxlan", "client")
	c.mirror(client.Namespace)
	c.mirror(a.Namespace)
	c.mirror(router)
	var services serviceList
	var all []netip.AddrPort
	for _, to := range []netip.Addr{a.IPv4.Addr(), a.IPv6.Addr(), a.Gateway4, a.Gateway6, client.v4, client.v6} {
		all = append(all, services.add(netip.AddrPortFrom(to, mirror), false))
		if to != client.v4 && to != client.v6 {
			all = append(all, services.add(netip.AddrPortFrom(to, mirror), true))
		}
	}
	router.AddRoute(t, "10.66.0.0/16", a.IPv4.Addr().String(), "eth1")
	router.AddRoute(t, "fd66::/48", a.IPv6.Addr().String(), "eth1")
	proxies()[0].start(c, a, services.all)
	tryAll := func(when string, want bool) {
		t.Helper()
		var tries []try
		for _, at := range all {
			tries = append(tries, try{from: client.Namespace, to: at.Addr(), port: at.Port(), udp: true, want: want},
				try{from: client.Namespace, to: at.Addr(), port: at.Port(), want: want})
		}
		c.tryAll(when, tries...)
	}
	c.apply(hostPolicy("egress", `selector: "role == 'client'", types: [Egress]`))
	tryAll("nothing allowed", false)
	drops := testbed.StartCapture(t, router, "eth1")
	if ok, _ := (try{from: client.Namespace, to: netip.MustParseAddr("10.96.200.1"), port: 80, udp: true}).exchange(); ok {
		t.Error("a service that is none answers")
	}
	drops.Stop()
	if drops.Has(func(line string) bool { return strings.Contains(line, "10.96.200.1") }) {
		t.Error("what is for a service that is none leaves the host")
	}
	c.apply(hostPolicy("egress", `selector: "role == 'client'", types: [Egress], egress: [{action: Allow}]`))
	tryAll("all allowed", true)
}
