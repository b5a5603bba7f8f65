package whole

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"calico-xdp/pkg/api"
	"calico-xdp/tools/testbed"
)

// tunnel is the node's own address in one of the pools that encapsulate.
func (n *node) tunnel(pool string) netip.Addr {
	n.c.Helper()
	var text string
	there := n.c.eventually(func() bool {
		r, err := n.c.store.Get(n.c.Context(), api.Key{Kind: api.KindNode, Name: n.name})
		if err != nil {
			return false
		}
		spec := r.(*api.Node).Spec
		text = map[string]string{"vxlan": spec.IPv4VXLANTunnelAddr, "vxlan6": spec.IPv6VXLANTunnelAddr}[pool]
		if pool == "ipip" && spec.BGP != nil {
			text = spec.BGP.IPv4IPIPTunnelAddr
		}
		return text != ""
	})
	if !there {
		n.c.Fatalf("%s has no address in %s", n.name, pool)
	}
	return netip.MustParseAddr(text)
}

// TestHostsInTunnels: a host is known in a tunnel by its address there, both ways, and
// by whatever address a process of its has bound, wherever that is.
func TestHostsInTunnels(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 2}})
	a, b := c.nodes[0], c.nodes[1]
	c.apply(openProfile)
	a.AddAddress(t, "lo", "172.31.0.1/32") // a service of the host's
	c.lab.Router.AddRoute(t, "172.31.0.1/32", a.IPv4.Addr().String(), "eth1")
	wire := testbed.StartCapture(t, c.lab.Fabric, a.Port)
	for i, pool := range []string{"ipip", "vxlan", "vxlan6"} {
		t.Run(pool, func(t *testing.T) {
			address := []string{"10.65.202.1", "10.66.202.1", "fd66::202:1"}[i]
			s := script{n: b, iface: fmt.Sprintf("cali%d", i), role: "open", addresses: []string{netip.PrefixFrom(netip.MustParseAddr(address), netip.MustParseAddr(address).BitLen()).String()}}
			w := s.plug(c)
			s.put(c)
			c.settle()
			to, own, its := netip.MustParseAddr(address), a.tunnel(pool), b.tunnel(pool)
			// The address is the host's, and nobody else's choice.
			if !c.eventually(func() bool { return sourceTo(a.Namespace, to) == own }) {
				t.Fatalf("to %s from %s, want %s", to, sourceTo(a.Namespace, to), own)
			}
			for _, other := range []netip.Addr{a.IPv4.Addr(), a.IPv6.Addr(), netip.MustParseAddr("10.10.1.1"), netip.MustParseAddr("fd10:10:1::1")} {
				if from := sourceTo(a.Namespace, other); other.Is4() == to.Is4() && from == own {
					t.Errorf("to %s from %s", other, from)
				}
			}
			for _, try := range []struct {
				name     string
				from, to *testbed.Namespace
				addr     netip.Addr
			}{
				{"host to workload", a.Namespace, w.Namespace, to},
				{"workload to host", w.Namespace, a.Namespace, own},
				{"host to host", a.Namespace, b.Namespace, its},
				{"workload to the node's address", w.Namespace, a.Namespace, addressOf(a, to)},
				{"workload to another address of the host", w.Namespace, a.Namespace, netip.MustParseAddr("172.31.0.1")},
			} {
				if try.addr.Is4() != to.Is4() {
					continue
				}
				for _, size := range []int{8, 1300} {
					flood := testbed.StartFlood(t, try.from, try.to, try.addr, testbed.FloodOptions{Protocol: "udp", Size: size})
					if !flood.Progresses(10) {
						t.Errorf("%s, UDP of %d bytes: %s", try.name, size, flood.Report())
					}
					flood.Stop()
				}
				stream := testbed.StartTCP(t, try.from, try.to, netip.AddrPortFrom(try.addr, 9000))
				if !stream.Progresses(1e6) {
					t.Errorf("%s, TCP: %v", try.name, stream.Err())
				}
				stream.Stop()
			}
			// On the wire nothing between the two is plain, and no ARP is sent from there.
			for _, line := range wire.Lines() {
				if strings.HasPrefix(line, fmt.Sprintf("IP %s ", own)) || strings.HasPrefix(line, fmt.Sprintf("IP6 %s ", own)) ||
					strings.HasPrefix(line, "ARP") && strings.Contains(line, "tell "+own.String()) {
					t.Errorf("on the wire: %s", line)
				}
			}
		})
	}
	// A peer's process that answers a connection goes away, and comes back, with the
	// address: it is repaired when somebody removes it, and gone after --detach.
	own := a.tunnel("ipip")
	a.MustRun(t, "ip", "address", "del", own.String()+"/32", "dev", "lo")
	if !c.eventually(func() bool { return sourceTo(a.Namespace, netip.MustParseAddr("10.65.202.1")) == own }) {
		t.Errorf("the address %s does not come back", own)
	}
	a.stop()
	if out, ok := a.finish("--detach"); !ok || !strings.Contains(out, "address "+own.String()) {
		t.Errorf("detach: %s", out)
	}
	if left := a.MustRun(t, "ip", "address", "show", "dev", "lo"); strings.Contains(left, own.String()) {
		t.Errorf("left: %s", left)
	}
}

// addressOf is the node's own address of the family of another one.
func addressOf(n *node, like netip.Addr) netip.Addr {
	if like.Is4() {
		return n.IPv4.Addr()
	}
	return n.IPv6.Addr()
}

// sourceTo is the address that a host sends from to another one; invalid if it cannot.
func sourceTo(n *testbed.Namespace, to netip.Addr) netip.Addr {
	conn, err := n.Dial("udp", netip.AddrPortFrom(to, 9).String())
	if err != nil {
		return netip.Addr{}
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
}

// TestTraceroute: every node on the way is seen, through tunnels too, and so is a closed
// port at its end. What they say is read by tcpdump.
func TestTraceroute(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 2}})
	a, b := c.nodes[0], c.nodes[1]
	c.apply(openProfile)
	for i, pool := range []string{"ipip", "vxlan", "vxlan6", "plain", "plain6"} {
		t.Run(pool, func(t *testing.T) {
			at := map[string]string{"ipip": "10.65.%d.1", "vxlan": "10.66.%d.1", "vxlan6": "fd66::%d:1", "plain": "10.67.%d.1", "plain6": "fd67::%d:1"}[pool]
			var workloads []*workload
			for j, n := range c.nodes {
				addr := netip.MustParseAddr(fmt.Sprintf(at, 201+j))
				s := script{n: n, iface: fmt.Sprintf("cali%d", i), role: "open", addresses: []string{netip.PrefixFrom(addr, addr.BitLen()).String()}}
				workloads = append(workloads, s.plug(c))
				s.put(c)
			}
			c.settle()
			if strings.HasPrefix(pool, "plain") {
				for j, n := range c.nodes {
					addr := netip.MustParseAddr(fmt.Sprintf(at, 201+j))
					c.lab.Router.AddRoute(t, netip.PrefixFrom(addr, addr.BitLen()).String(), addressOf(n, addr).String(), fmt.Sprint("eth", j+1))
				}
			}
			to := netip.MustParseAddr(fmt.Sprintf(at, 202))
			hosts := [][]netip.Addr{{addressOf(a, to)}, {addressOf(b, to)}}
			tunnelled := !strings.HasPrefix(pool, "plain")
			if tunnelled {
				hosts[1] = append(hosts[1], b.tunnel(pool))
			}
			seen := testbed.StartCapture(t, workloads[0].Namespace, "eth0")
			// Each hop may be lost once: the kernel limits how many errors it sends.
			said := make(map[int]netip.Addr)
			last := map[bool]int{true: 3, false: 4}[tunnelled]
			c.eventually(func() bool {
				for ttl := 1; ttl <= last; ttl++ {
					if !said[ttl].IsValid() {
						said[ttl] = expire(t, workloads[0].Namespace, seen, to, ttl)
					}
				}
				return said[1].IsValid() && said[last-1].IsValid() && said[last].IsValid()
			})
			if !slices.Contains(hosts[0], said[1]) {
				t.Errorf("the first node says nothing: %v", said)
			}
			if !slices.Contains(hosts[1], said[last-1]) {
				t.Errorf("the second node says nothing: %v, want one of %v", said, hosts[1])
			}
			if said[last] != to {
				t.Errorf("its end says nothing: %v", said)
			}
			pcap := filepath.Join(t.TempDir(), "errors.pcap")
			seen.Stop()
			if err := seen.WritePcap(pcap); err != nil {
				t.Fatal(err)
			}
			text := c.lab.Fabric.MustRun(t, "tcpdump", "-nn", "-vv", "-r", pcap)
			for _, want := range map[bool][]string{
				true: {"ICMP time exceeded in-transit", fmt.Sprintf("ICMP %s udp port 33434 unreachable", to)}, false: {"ICMP6, time exceeded in-transit", fmt.Sprintf("unreachable port, %s udp port 33434", to)},
			}[to.Is4()] {
				if !strings.Contains(text, want) {
					t.Errorf("tcpdump does not say %q:\n%s", want, text)
				}
			}
			for line := range strings.Lines(text) {
				if strings.Contains(line, "ICMP") && (strings.Contains(line, "wrong") || strings.Contains(line, "bad cksum")) {
					t.Errorf("tcpdump: %s", line)
				}
			}
		})
	}
}

// sendUDP sends one packet that lives for so many hops.
func sendUDP(to netip.Addr, port, hops int) error {
	family, level, option := unix.AF_INET, unix.IPPROTO_IP, unix.IP_TTL
	var target unix.Sockaddr
	if to.Is4() {
		target = &unix.SockaddrInet4{Port: port, Addr: to.As4()}
	} else {
		family, level, option = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS
		target = &unix.SockaddrInet6{Port: port, Addr: to.As16()}
	}
	s, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	if err := unix.SetsockoptInt(s, level, option, hops); err != nil {
		return err
	}
	return unix.Sendto(s, []byte("expires"), 0, target)
}

// expire sends UDP that lives for so many hops, and returns who says that it has ended.
func expire(t *testing.T, from *testbed.Namespace, seen *testbed.Capture, to netip.Addr, ttl int) netip.Addr {
	t.Helper()
	before := len(seen.Packets())
	err := from.Do(func() error { return sendUDP(to, 33434, ttl) })
	if err != nil {
		return netip.Addr{}
	}
	var who netip.Addr
	deadline := time.Now().Add(500 * time.Millisecond)
	for !who.IsValid() && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond)
		for _, p := range seen.Packets()[before:] {
			line := p.String()
			if p.Outgoing || !strings.Contains(line, "ICMP") || !strings.Contains(line, "exceeded") && !strings.Contains(line, "unreachable") {
				continue
			}
			fields := strings.Fields(line)
			if a, err := netip.ParseAddr(fields[1]); err == nil {
				who = a
			}
		}
	}
	return who
}
