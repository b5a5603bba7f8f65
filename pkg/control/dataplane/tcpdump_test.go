package dataplane_test

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"calico-xdp/pkg/control/dataplane"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/tools/testbed"

	"golang.org/x/sys/unix"
)

// decoded is what tcpdump says of a capture.
func decoded(t *testing.T, n *testbed.Namespace, c *testbed.Capture) string {
	t.Helper()
	c.Stop()
	pcap := filepath.Join(t.TempDir(), "packets.pcap")
	if err := c.WritePcap(pcap); err != nil {
		t.Fatal(err)
	}
	return n.MustRun(t, "tcpdump", "-nn", "-vv", "-r", pcap)
}

// says checks that tcpdump has said all of it, each in one packet, and complains about no
// packet that one of the words is in.
func says(t *testing.T, text string, about []string, want ...string) {
	t.Helper()
	var packets []string
	for line := range strings.Lines(text) {
		if len(line) > 2 && line[2] == ':' || len(packets) == 0 { // the time
			packets = append(packets, "")
		}
		packets[len(packets)-1] += strings.TrimSpace(line) + " "
	}
	for _, w := range want {
		found := false
		for _, p := range packets {
			found = found || containsAll(p, strings.Split(w, " … "))
		}
		if !found {
			t.Errorf("tcpdump does not say %q:\n%.20000s", w, text)
		}
	}
	for _, p := range packets {
		for _, bad := range []string{"bad cksum", "[bad", "wrong", "incorrect", "truncated", "missing", "unknown", "invalid", "bad-len"} {
			// A sum of 0 is allowed for tunnels in IPv6 (RFC 6935), which tcpdump does not know.
			if strings.Contains(strings.ReplaceAll(p, "[bad udp cksum 0x0000", ""), bad) && containsAny(p, about) {
				t.Errorf("tcpdump: %s", p)
				break
			}
		}
	}
}

// containsAll says whether all parts are in s, one behind the other.
func containsAll(s string, parts []string) bool {
	for _, part := range parts {
		_, rest, found := strings.Cut(s, part)
		if !found {
			return false
		}
		s = rest
	}
	return true
}

func containsAny(s string, parts []string) bool {
	for _, part := range parts {
		if strings.Contains(s, part) {
			return true
		}
	}
	return false
}

// What tcpdump makes of the answers that a workload gets from us, and of marks and fragments
// in tunnels.
func TestTcpdumpReadsAnswers(t *testing.T) {
	f := newFleet(t, dataplane.Options{})
	wire(t, f.nodes[0].Namespace, "eth0")
	f.connect(t, desired.EncapVXLAN, desired.EncapIPIP)
	from := f.workloads[0].Namespace
	f.nodes[0].SetMTU(t, "calia", 1500)
	f.workloads[0].SetMTU(t, "eth0", 1500)
	gateway := f.nodes[0].Link(t, "calia").Attrs().HardwareAddr.String()
	from.MustRun(t, "ip", "neigh", "flush", "all")
	at, on := testbed.StartCapture(t, from, "eth0"), testbed.StartCapture(t, f.Fabric, f.Hosts[0].Port)
	mtus := map[string]int{"192.168.2.1": 1450, "fd02::1": 1430, "192.168.3.1": 1480}
	for to, want := range mtus {
		newProbe(t, from, netip.MustParseAddr(to)).finds(t, to, want)
		mark(t, from, netip.MustParseAddr(to))
	}
	for _, to := range []string{"192.168.2.1", "192.168.3.1"} {
		conn, err := from.Dial("udp", to+":5000")
		if err != nil {
			t.Fatal(err)
		}
		allowFragments(t, conn.(*net.UDPConn))
		conn.Write(make([]byte, 4000))
		conn.Close()
	}
	// The last that was sent.
	on.Has(func(line string) bool {
		return strings.Contains(line, "192.168.3.1: UDP fragment") && !strings.Contains(line, "+ ")
	})
	answers := decoded(t, from, at)
	says(t, answers, []string{"ICMP", "ARP"},
		"ARP … Reply 169.254.1.1 is-at "+gateway,
		fmt.Sprintf("%s > 192.168.1.1: ICMP 192.168.2.1 unreachable - need to frag (mtu 1450)", f.Hosts[0].IPv4.Addr()),
		fmt.Sprintf("%s > 192.168.1.1: ICMP 192.168.3.1 unreachable - need to frag (mtu 1480)", f.Hosts[0].IPv4.Addr()),
		fmt.Sprintf("%s > fd01::1: [icmp6 sum ok] ICMP6, packet too big, mtu 1430", f.Hosts[0].IPv6.Addr()),
	)
	says(t, decoded(t, from, on), []string{"192.168.1.1", "fd01::1"},
		"tos 0xb9,ECT(1), ttl 64 … flags [DF], proto IPIP (4) … 10.10.1.2 > 10.10.2.4: … tos 0xb9,ECT(1), ttl 63 … flags [DF], proto UDP (17) … > 192.168.3.1.5001: [udp sum ok]",
		"tos 0xb9,ECT(1), ttl 64 … proto UDP (17) … 4789: [no cksum] VXLAN, flags [I] (0x08), vni 4096 … tos 0xb9,ECT(1), ttl 63 … > 192.168.2.1.5001: [udp sum ok]",
		"class 0xb9 … fd10:10:1::3.4789: … VXLAN, flags [I] (0x08), vni 4096 … class 0xb9 … fd02::1.5001: [udp sum ok]",
		"proto IPIP (4) … offset 0, flags [+], proto UDP (17) … 192.168.1.1. … > 192.168.3.1.5000: UDP, length 4000",
		"proto IPIP (4) … flags [+], proto UDP (17) … 192.168.1.1 > 192.168.3.1: ",
		"VXLAN … offset 0, flags [+], proto UDP (17) … 192.168.1.1. … > 192.168.2.1.5000: UDP, length 4000",
		"VXLAN … flags [none], proto UDP (17) … 192.168.1.1 > 192.168.2.1: ",
	)
}

// mark sends packets that ask for priority (EF) and can be told of congestion (ECT(1)).
func mark(t *testing.T, from *testbed.Namespace, to netip.Addr) {
	t.Helper()
	conn, err := from.Dial("udp", netip.AddrPortFrom(to, 5001).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	level, option := unix.IPPROTO_IP, unix.IP_TOS
	if to.Is6() {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	p := probe{conn.(*net.UDPConn), to.Is6()}
	p.control(func(fd int) { err = unix.SetsockoptInt(fd, level, option, 0xb9) })
	if err != nil {
		t.Fatal(err)
	}
	conn.Write([]byte("marked"))
}
