package whole

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"calico-xdp/tools/testbed"

	"golang.org/x/sys/unix"
)

// mirror is the port where a namespace tells its clients, by TCP and UDP, which address
// and port it takes them for.
const mirror = 9000

func (c *cluster) mirror(n *testbed.Namespace) {
	c.Helper()
	at := net.JoinHostPort("", strconv.Itoa(mirror))
	l, err := n.Listen("tcp", at)
	if err != nil {
		c.Fatal(err)
	}
	u, err := n.ListenPacket("udp", at)
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { u.Close() })
	// It answers from the address that it was asked at. The host's own choice would be its
	// address in the tunnel.
	udp := u.(*net.UDPConn)
	if raw, err := udp.SyscallConn(); err != nil {
		c.Fatal(err)
	} else if err := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1) }); err != nil {
		c.Fatal(err)
	}
	testbed.Serve(c, l, func(conn net.Conn) { fmt.Fprint(conn, conn.RemoteAddr()) })
	go func() {
		buf, control := make([]byte, 16), make([]byte, 128)
		for {
			_, n, _, from, err := udp.ReadMsgUDPAddrPort(buf, control)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil && n >= 36 {
				clear(control[32:36]) // through whatever interface: struct in6_pktinfo behind its header
				udp.WriteMsgUDPAddrPort([]byte(from.String()), control[:n], from)
			}
		}
	}()
}

// seenAs asks a mirror.
func seenAs(from *testbed.Namespace, network string, to netip.Addr) (netip.AddrPort, error) {
	return seenAt(from, network, netip.AddrPortFrom(to, mirror), patience)
}

// seenAt asks a mirror behind another address and port.
func seenAt(from *testbed.Namespace, network string, to netip.AddrPort, patience time.Duration) (netip.AddrPort, error) {
	conn, err := from.DialTimeout(network, to.String(), patience)
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer conn.Close()
	if network == "udp" {
		if _, err := conn.Write([]byte("?")); err != nil {
			return netip.AddrPort{}, err
		}
	}
	conn.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 64)
	n, err := conn.Read(buf)
	if err != nil {
		return netip.AddrPort{}, err
	}
	seen, err := netip.ParseAddrPort(string(buf[:n]))
	return netip.AddrPortFrom(seen.Addr().Unmap(), seen.Port()), err
}

// look is who asks whose mirror, and what it should see.
type look struct {
	from     *testbed.Namespace
	to, want netip.Addr
}

func (c *cluster) look(when string, looks ...look) {
	c.Helper()
	for _, l := range looks {
		for _, network := range []string{"tcp", "udp"} {
			seen, err := seenAs(l.from, network, l.to)
			if err != nil {
				c.Errorf("%s: %s to %s over %s: %v", when, l.from.Name, l.to, network, err)
			} else if seen.Addr() != l.want {
				c.Errorf("%s: %s to %s over %s is seen as %s, want %s", when, l.from.Name, l.to, network, seen, l.want)
			}
		}
	}
}

func felix(spec string) string {
	return fmt.Sprintf("{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: default}, spec: {defaultEndpointToHostAction: Return%s}}", spec)
}

func natPool(on bool) string {
	return fmt.Sprintf("{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: ipip}, spec: {cidr: 10.65.0.0/16, ipipMode: Always, blockSize: 29, natOutgoing: %v}}", on)
}

// TestNATOutgoing: who is outside all pools sees the node's address, everybody else the
// workload's; connections go on through every change of that, and of the daemon.
func TestNATOutgoing(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 1}})
	a, b, router := c.nodes[0], c.nodes[1], c.lab.Router
	const foreign = "table ip others {\n\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n\t\tip saddr 10.1.0.0/16 masquerade\n\t}\n}\n"
	a.MustRun(t, "nft", foreign)
	tables := func(when string, want bool) {
		t.Helper()
		if got := a.MustRun(t, "nft", "list", "table", "ip", "others"); got != foreign {
			t.Errorf("%s: others' table is\n%s", when, got)
		}
		if got := a.MustRun(t, "nft", "list", "ruleset"); strings.Contains(got, "calico-xdp") != want {
			t.Errorf("%s: tables\n%s", when, got)
		}
	}
	client, near, far := c.attach(a, "ipip", "client"), c.attach(a, "ipip", "db"), c.attach(b, "ipip", "db-far")
	other, otherFar := c.attach(a, "vxlan", "client-vxlan"), c.attach(b, "vxlan", "db-vxlan")
	for _, n := range []*testbed.Namespace{router, a.Namespace, b.Namespace, near.Namespace, far.Namespace, otherFar.Namespace} {
		c.mirror(n)
	}
	// The world knows the way to workloads, so that each is seen as what it is.
	for _, p := range []string{"10.65.0.0/16", "10.66.0.0/16"} {
		router.AddRoute(t, p, a.IPv4.Addr().String(), "eth1")
	}
	router.AddRoute(t, "fd66::/48", a.IPv6.Addr().String(), "eth1")
	a4, a6, b4, gateway4, gateway6 := a.IPv4.Addr(), a.IPv6.Addr(), b.IPv4.Addr(), a.Gateway4, a.Gateway6
	within := func(when string) {
		t.Helper()
		c.look(when, look{client.Namespace, near.v4, client.v4}, look{client.Namespace, far.v4, client.v4},
			look{other.Namespace, otherFar.v4, other.v4}, look{other.Namespace, otherFar.v6, other.v6},
			look{client.Namespace, a4, client.v4}, look{other.Namespace, gateway4, other.v4})
	}

	c.apply(felix(""))
	c.look("no pool has it", look{client.Namespace, gateway4, client.v4}, look{other.Namespace, gateway6, other.v6}, look{client.Namespace, b4, client.v4})
	within("no pool has it")
	tables("no pool has it", false)
	before := testbed.StartTCP(t, client.Namespace, router, netip.AddrPortFrom(gateway4, 7000))

	c.apply(natPool(true) + "\n---\n{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: vxlan6}, spec: {cidr: \"fd66::/48\", vxlanMode: Always, natOutgoing: true}}")
	translated := func(when string) {
		t.Helper()
		c.look(when, look{client.Namespace, gateway4, a4}, look{other.Namespace, gateway6, a6})
		within(when)
		if !before.Progresses(1<<18) || before.Err() != nil {
			t.Errorf("%s: the connection from before: %v", when, before.Err())
		}
	}
	translated("two pools have it")
	c.look("nodes are outside", look{client.Namespace, b4, a4})
	for to, want := range map[netip.Addr]bool{gateway4: true, far.v4: false} {
		if out, ok := a.calicoctl("why", client.v4.String(), to.String()); !ok || strings.Contains(out, "natOutgoing") != want {
			t.Errorf("why: %v %s", ok, out)
		}
	}
	tables("two pools have it", true)
	c.tryAll("two pools have it", try{from: client.Namespace, to: gateway4, want: true}, try{from: other.Namespace, to: gateway6, want: true})
	if !before.Progresses(1 << 18) {
		t.Errorf("the connection from before: %v", before.Err())
	}
	during := testbed.StartTCP(t, client.Namespace, router, netip.AddrPortFrom(gateway4, 7001))
	during6 := testbed.StartTCP(t, other.Namespace, router, netip.AddrPortFrom(gateway6, 7001))
	goOn := func(when string) {
		t.Helper()
		for name, s := range map[string]*testbed.TCPStream{"of before": before, "translated": during, "translated, IPv6": during6} {
			if !s.Progresses(1<<18) || s.Err() != nil {
				t.Errorf("%s: connection %s: %v", when, name, s.Err())
			}
		}
	}
	// A router's complaint about a translated packet finds the workload.
	conn, err := client.Dial("udp", netip.AddrPortFrom(gateway4, 9).String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Write([]byte("nobody listens"))
	conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := conn.Read(make([]byte, 8)); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("port unreachable does not come back: %v", err)
	}
	conn.Close()

	a.daemon.Kill()
	goOn("no daemon")
	translated("no daemon")
	a.restart()
	goOn("restarted")
	translated("restarted")

	c.apply(felix(", natOutgoingExclusions: IPPoolsAndHostIPs"))
	c.look("nodes are excluded", look{client.Namespace, b4, client.v4})
	translated("nodes are excluded")
	// Another pool, one of no workloads, says what else is inside.
	c.apply(fmt.Sprintf("{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: friends}, spec: {cidr: %s/32, blockSize: 32, disabled: true}}", gateway4))
	c.look("a pool around it", look{client.Namespace, gateway4, client.v4}, look{client.Namespace, b4, client.v4})
	c.delete("ippool", "friends")
	translated("that pool is gone")

	a.AddAddress(t, "eth0", "10.10.1.99/24")
	c.apply(felix(`, natOutgoingAddress: 10.10.1.99, natPortRange: "50000:50020"`))
	c.look("another address", look{client.Namespace, gateway4, netip.MustParseAddr("10.10.1.99")}, look{client.Namespace, b4, netip.MustParseAddr("10.10.1.99")},
		look{other.Namespace, gateway6, a6})
	for _, l := range []look{{client.Namespace, gateway4, a4}, {other.Namespace, gateway6, a6}} {
		for _, network := range []string{"tcp", "udp"} {
			if seen, err := seenAs(l.from, network, l.to); err != nil || seen.Port() < 50000 || seen.Port() > 50020 {
				t.Errorf("a range of ports: %s is seen as %s, %v", network, seen, err)
			}
		}
	}
	goOn("another address")
	c.apply(felix(", iptablesNATOutgoingInterfaceFilter: lo+"))
	c.look("on other interfaces only", look{client.Namespace, gateway4, client.v4})
	c.apply(felix(", nftablesMarkMask: 0x0ff00000"))
	translated("another mark")
	if got := a.MustRun(t, "nft", "list", "table", "ip", "calico-xdp"); !strings.Contains(got, "0x00100000") {
		t.Errorf("mark of 0x0ff00000:\n%s", got)
	}
	c.apply(felix(""))
	translated("as in the beginning")

	c.apply(natPool(false))
	c.look("off", look{client.Namespace, gateway4, client.v4}, look{other.Namespace, gateway6, a6}, look{client.Namespace, b4, client.v4})
	goOn("off")
	c.apply(natPool(true))
	goOn("on again")
	translated("on again")

	a.stop()
	if out, ok := a.finish("--detach"); !ok || !strings.Contains(out, "nftables table ip calico-xdp") {
		t.Errorf("detach: %v %s", ok, out)
	}
	tables("detached", false)
}

// TestNATAndService: a service's address is outside all pools. Where the host's own rules
// lead a packet to from there is, too, and sees an address of the host.
func TestNATAndService(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1}})
	a, router := c.nodes[0], c.lab.Router
	client := c.attach(a, "ipip", "client")
	c.mirror(router)
	c.apply(felix("") + "\n---\n" + natPool(true))
	a.MustRun(t, "nft", fmt.Sprintf("add table ip services; add chain ip services prerouting { type nat hook prerouting priority dstnat; }; "+
		"add rule ip services prerouting ip daddr 10.96.0.1 dnat to %s", a.Gateway4))
	c.look("service", look{client.Namespace, netip.MustParseAddr("10.96.0.1"), a.IPv4.Addr()})
}

// TestHostDNAT: a port of the host that its operator leads to a workload, with either of
// iptables' two ways into the kernel.
func TestHostDNAT(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1}})
	a, router := c.nodes[0], c.lab.Router
	web := c.attach(a, "ipip", "web")
	c.mirror(web.Namespace)
	c.mirror(router)
	c.apply(felix("") + "\n---\n" + natPool(true) + `
---
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: web}, spec: {selector: "role == 'web'", types: [Ingress],
 ingress: [{action: Allow, protocol: TCP, destination: {ports: [9000]}}, {action: Allow, protocol: UDP, destination: {ports: [9000]}}]}}`)
	for _, iptables := range []string{"iptables-nft", "iptables-legacy"} {
		rules := func(action string) {
			t.Helper()
			for _, protocol := range []string{"tcp", "udp"} {
				a.MustRun(t, iptables, action, "FORWARD", "-p", protocol, "-d", web.v4.String(), "--dport", "9000", "-j", "ACCEPT")
				a.MustRun(t, iptables, "-t", "nat", action, "PREROUTING", "-i", "eth0", "-p", protocol, "--dport", "9000",
					"-j", "DNAT", "--to", fmt.Sprintf("%s:9000", web.v4))
			}
		}
		outside := look{router, a.IPv4.Addr(), a.Gateway4}
		back := look{web.Namespace, a.Gateway4, a.IPv4.Addr()}
		rules("-A")
		c.look(iptables, outside, back)
		// As Docker has it: what is not named is not forwarded.
		a.MustRun(t, iptables, "-A", "FORWARD", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT")
		a.MustRun(t, iptables, "-P", "FORWARD", "DROP")
		c.look(iptables+", nothing else forwarded", outside)
		a.daemon.Kill()
		c.look(iptables+", no daemon", outside)
		a.restart()
		c.look(iptables+", restarted", outside)

		// A host endpoint that denies all but what is for the workload.
		c.apply(hostEndpoint("one", a.name, "eth0", "") +
			hostPolicy("dnat", `selector: has(host), preDNAT: true, applyOnForward: true, types: [Ingress], ingress: [
 {action: Allow, protocol: TCP, destination: {ports: [9000]}}, {action: Allow, protocol: UDP, destination: {ports: [9000]}}]`))
		c.look(iptables+", host endpoint", outside)
		c.tryAll(iptables+", host endpoint", try{from: router, to: a.IPv4.Addr(), port: 9091}) // metrics
		c.delete("gnp", "dnat")
		c.delete("hostendpoint", "one")

		a.MustRun(t, iptables, "-P", "FORWARD", "ACCEPT")
		rules("-D")
		a.MustRun(t, iptables, "-F")
		if seen, err := seenAs(router, "tcp", a.IPv4.Addr()); err == nil {
			t.Errorf("%s, no rule any more: seen as %s", iptables, seen)
		}
		c.look(iptables+", no rule any more", back)
	}
}
