package dataplane

import (
	"encoding/binary"
	"testing"

	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/loader"
	"calico-xdp/tools/testbed"
)

const (
	w1, w2, w3, w4, w5, w6 = "192.168.1.1", "192.168.1.2", "192.168.1.3", "192.168.1.4", "192.168.1.5", "192.168.1.6"
	x1, x2, x3             = "fd01::1", "fd01::2", "fd01::3"

	outside4, outside6 = "203.0.113.9", "2001:db8::9"

	// How a packet that was forwarded to the second workload starts.
	toSecond = "ee:ee:ee:ee:ee:ee > 02:00:00:00:00:02 "
)

// sctp is the start of an SCTP packet.
func sctp(p testbed.Packet, src, dst uint16) testbed.Packet {
	b := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, src), dst)
	return p.Protocol(132).Raw(append(b, make([]byte, 12)...))
}

// put overwrites bytes of a packet.
func put(at int, v ...byte) func([]byte) { return func(p []byte) { copy(p[at:], v) } }

// From one local workload to another.
func TestLocalPackets(t *testing.T) {
	b := newBed(t)
	hook := loader.FromWorkload
	passes := "redirect pass_to_workload"
	b.fire(t, []trial{
		{name: "TCP", hook: hook, packet: frame(w1, w2).TCP(4000, 80, "S"), want: passes,
			out: toSecond + "IP 192.168.1.1 > 192.168.1.2: TCP 4000 > 80 [S] ttl 63"},
		{name: "TCP 6", hook: hook, packet: frame(x1, x2).TCP(4000, 80, "S"), want: passes,
			out: toSecond + "IP6 fd01::1 > fd01::2: TCP 4000 > 80 [S] ttl 63"},
		{name: "UDP", hook: hook, packet: frame(w1, w2).UDP(4000, 53).Payload(100), want: passes,
			out: toSecond + "IP 192.168.1.1 > 192.168.1.2: UDP 4000 > 53 len 100 ttl 63"},
		{name: "UDP 6", hook: hook, packet: frame(x1, x2).UDP(4000, 53).Payload(100), want: passes,
			out: toSecond + "IP6 fd01::1 > fd01::2: UDP 4000 > 53 len 100 ttl 63"},
		{name: "UDP without content", hook: hook, packet: frame(w1, w2).UDP(1, 2), want: passes,
			out: toSecond + "IP 192.168.1.1 > 192.168.1.2: UDP 1 > 2 ttl 63"},
		{name: "echo", hook: hook, packet: frame(w1, w2).Echo(7, 1).Payload(8), want: passes,
			out: toSecond + "IP 192.168.1.1 > 192.168.1.2: ICMP echo 7 1 len 8 ttl 63"},
		{name: "echo 6", hook: hook, packet: frame(x1, x2).Echo(7, 1), want: passes,
			out: toSecond + "IP6 fd01::1 > fd01::2: ICMPv6 echo 7 1 ttl 63"},
		{name: "SCTP", hook: hook, packet: sctp(frame(w1, w2), 9, 10), want: passes,
			out: toSecond + "IP 192.168.1.1 > 192.168.1.2: protocol 132 ttl 63"},
		{name: "SCTP 6", hook: hook, packet: sctp(frame(x1, x2), 9, 10), want: passes,
			out: toSecond + "IP6 fd01::1 > fd01::2: protocol 132 ttl 63"},
		{name: "ESP", hook: hook, packet: frame(w1, w2).Protocol(50).Payload(20), want: passes,
			out: toSecond + "IP 192.168.1.1 > 192.168.1.2: protocol 50 ttl 63"},
		{name: "no content at all", hook: hook, packet: frame(w1, w2).Protocol(99), want: passes,
			out: toSecond + "IP 192.168.1.1 > 192.168.1.2: protocol 99 ttl 63"},
		{name: "options", hook: hook, packet: frame(w1, w2).IPv4Options(10).TCP(4000, 80, "S"), want: passes,
			out: toSecond + "IP 192.168.1.1 > 192.168.1.2: TCP 4000 > 80 [S] ttl 63"},
		{name: "hop-by-hop options", hook: hook, packet: frame(x1, x2).Extension(0, 8).UDP(1, 2), want: passes,
			out: toSecond + "IP6 fd01::1 > fd01::2: UDP 1 > 2 ttl 63"},
		{name: "ports alone behind options", hook: hook, packet: frame(x1, x2).Extension(60, 8).UDP(1, 2), edit: put(18, 0, 12), want: passes,
			out: toSecond + "IP6 fd01::1 > fd01::2: UDP 0 > 0 ttl 63"},
		{name: "three extension headers", hook: hook, packet: frame(x1, x2).Extension(0, 8).Extension(43, 8).Extension(60, 24).TCP(4000, 80, "S"), want: passes,
			edit: put(14+40+8+3, 0), out: toSecond + "IP6 fd01::1 > fd01::2: protocol 0 ttl 63"},
		{name: "mobility header", hook: hook, packet: frame(x1, x2).Protocol(135).Payload(24), want: passes,
			out: toSecond + "IP6 fd01::1 > fd01::2: protocol 135 ttl 63"},
		{name: "first fragment", hook: hook, packet: frame(w1, w2).Fragment(5, 0, true).UDP(1, 2).Payload(64), want: passes,
			out: toSecond + "IP 192.168.1.1 > 192.168.1.2: UDP fragment 5 at 0+ ttl 63"},
		{name: "tos stays", hook: hook, packet: frame(w1, w2).TOS(0xb9).UDP(1, 2), want: passes,
			out: toSecond + "IP 192.168.1.1 > 192.168.1.2: UDP 1 > 2 ttl 63 tos 0xb9"},
		{name: "padding behind the packet", hook: hook, packet: frame(w1, w2).UDP(1, 2), want: passes,
			raw: append(frame(w1, w2).UDP(1, 2).Bytes(), make([]byte, 18)...),
			out: toSecond + "IP 192.168.1.1 > 192.168.1.2: UDP 1 > 2 ttl 63"},
		{name: "to a link without MAC", hook: hook, packet: frame(w1, w3).UDP(1, 2), want: passes,
			out: "02:00:00:00:00:01 > ee:ee:ee:ee:ee:ee IP 192.168.1.1 > 192.168.1.3: UDP 1 > 2 ttl 63"},
		{name: "from a link without MAC", hook: hook, packet: frame(w3, w2).UDP(1, 2), want: passes,
			out: toSecond + "IP 192.168.1.3 > 192.168.1.2: UDP 1 > 2 ttl 63"},
		{name: "any MAC of a link without MAC", hook: hook, want: passes, on: "cali3",
			packet: testbed.Ethernet("02:12:34:56:78:9a", hostMAC).IPv4(w3, w2).UDP(1, 2),
			out:    toSecond + "IP 192.168.1.3 > 192.168.1.2: UDP 1 > 2 ttl 63"},
		{name: "to itself", hook: hook, packet: frame(w1, w1).UDP(1, 2), want: passes,
			out: "ee:ee:ee:ee:ee:ee > 02:00:00:00:00:01 IP 192.168.1.1 > 192.168.1.1: UDP 1 > 2 ttl 63"},

		{name: "TTL 2", hook: hook, packet: frame(w1, w2).TTL(2).UDP(1, 2), want: passes,
			out: toSecond + "IP 192.168.1.1 > 192.168.1.2: UDP 1 > 2 ttl 1"},
		{name: "TTL 1", hook: hook, packet: frame(w1, w2).TTL(1).UDP(1, 2), want: "next pass_to_stack"},
		{name: "TTL 0", hook: hook, packet: frame(w1, w2).TTL(0).UDP(1, 2), want: "next pass_to_stack"},
		{name: "hop limit 1", hook: hook, packet: frame(x1, x2).TTL(1).UDP(1, 2), want: "next pass_to_stack"},

		{name: "egress policy", hook: hook, packet: frame(w4, w1).UDP(1, 2), want: "shot drop_egress_policy"},
		{name: "ingress policy", hook: hook, packet: frame(w1, w4).UDP(1, 2), want: "shot drop_ingress_policy"},
		{name: "egress comes first", hook: hook, packet: frame(w6, w5).UDP(1, 2), want: "shot drop_egress_policy"},
		{name: "open both ways", hook: hook, packet: frame(w5, w6).UDP(1, 2), want: passes,
			out: "ee:ee:ee:ee:ee:ee > 02:00:00:00:00:06 IP 192.168.1.5 > 192.168.1.6: UDP 1 > 2 ttl 63"},
	})
	// Every checksum that the TTL can carry over into.
	t.Run("checksum", func(t *testing.T) {
		for id := range 0x400 {
			s := trial{hook: hook, raw: frame(w1, w2).UDP(1, 2).Bytes(), edit: func(p []byte) {
				binary.BigEndian.PutUint16(p[18:], uint16(id*0x40))
				copy(p[24:], []byte{0, 0})
				binary.BigEndian.PutUint16(p[24:], ^sum(p[14:34]))
			}, want: passes, out: toSecond + "IP 192.168.1.1 > 192.168.1.2: UDP 1 > 2 ttl 63"}
			b.expect(t, s)
			if t.Failed() {
				t.Fatalf("id %#x", id*0x40)
			}
		}
	})
}

func sum(b []byte) uint16 {
	var s uint32
	for ; len(b) > 1; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// What a workload may not send.
func TestPacketsThatWorkloadsMayNotSend(t *testing.T) {
	b := newBed(t)
	hook := loader.FromWorkload
	udp, udp6 := frame(w1, w2).UDP(1, 2).Payload(40), frame(x1, x2).UDP(1, 2).Payload(40)
	cut := func(p testbed.Packet, n int) []byte {
		raw := p.Bytes()[:n]
		if raw[12] == 8 {
			binary.BigEndian.PutUint16(raw[16:], uint16(n-14))
		} else {
			binary.BigEndian.PutUint16(raw[18:], uint16(n-54))
		}
		return raw
	}
	malformed, spoofed, multicast := "shot drop_malformed", "shot drop_spoofed", "shot drop_multicast"
	unsupported := "shot drop_unsupported"
	b.fire(t, []trial{
		{name: "another workload's address", hook: hook, packet: frame(w2, w1).UDP(1, 2), on: "cali1", want: spoofed},
		{name: "another workload's address 6", hook: hook, packet: frame(x2, x1).UDP(1, 2), on: "cali1", want: spoofed},
		{name: "nobody's address", hook: hook, packet: frame("10.1.2.3", w2).UDP(1, 2), on: "cali1", want: spoofed},
		{name: "an address of the block", hook: hook, packet: frame("192.168.1.60", w2).UDP(1, 2), on: "cali1", want: spoofed},
		{name: "the host's address", hook: hook, packet: frame(node4, w2).UDP(1, 2), on: "cali1", want: spoofed},
		{name: "no address", hook: hook, packet: frame("0.0.0.0", w2).UDP(68, 67), on: "cali1", want: spoofed},
		{name: "loopback", hook: hook, packet: frame("127.0.0.1", w2).UDP(68, 67), on: "cali1", want: spoofed},
		{name: "a workload of another node", hook: hook, packet: frame("192.168.3.1", w2).UDP(1, 2), on: "cali1", want: spoofed},
		{name: "on another interface", hook: hook, packet: frame(w1, w2).UDP(1, 2), on: "cali2", want: spoofed},
		{name: "on an interface without workload", hook: hook, packet: frame(w1, w2).UDP(1, 2), on: "eth0", want: spoofed},
		{name: "wrong MAC", hook: hook, want: spoofed,
			packet: testbed.Ethernet("02:00:00:00:00:02", hostMAC).IPv4(w1, w2).UDP(1, 2)},
		{name: "wrong MAC, first half", hook: hook, want: spoofed,
			packet: testbed.Ethernet("03:00:00:00:00:01", hostMAC).IPv4(w1, w2).UDP(1, 2)},
		{name: "spoofed within a flow", hook: hook, on: "cali3", want: spoofed,
			packet: frame(w1, w2).TCP(4000, 80, "A"),
			after: []trial{
				{hook: hook, packet: frame(w1, w2).TCP(4000, 80, "S")},
				{hook: hook, packet: frame(w2, w1).TCP(80, 4000, "SA")},
				{hook: hook, packet: frame(w1, w2).TCP(4000, 80, "A")},
			}},
		{name: "wrong MAC within a flow", hook: hook, want: spoofed,
			packet: testbed.Ethernet("02:00:00:00:00:02", hostMAC).IPv4(w1, w2).TCP(4000, 80, "A"),
			after: []trial{
				{hook: hook, packet: frame(w1, w2).TCP(4000, 80, "S")},
				{hook: hook, packet: frame(w2, w1).TCP(80, 4000, "SA")},
				{hook: hook, packet: frame(w1, w2).TCP(4000, 80, "A")},
			}},

		{name: "version", hook: hook, packet: udp, edit: put(14, 0x65), want: malformed},
		{name: "header length 4", hook: hook, packet: udp, edit: put(14, 0x44), want: malformed},
		{name: "header length 0", hook: hook, packet: udp, edit: put(14, 0x40), want: malformed},
		{name: "header longer than the packet", hook: hook, raw: cut(udp, 14+28), edit: put(14, 0x4f), want: malformed},
		{name: "total length beyond the packet", hook: hook, packet: udp, edit: put(16, 0xff, 0xff), want: malformed},
		{name: "total length one too much", hook: hook, packet: udp, edit: put(16, 0, 69), want: malformed},
		{name: "version 6", hook: hook, packet: udp6, edit: put(14, 0x45), want: malformed},
		{name: "payload length beyond the packet", hook: hook, packet: udp6, edit: put(18, 0xff, 0xff), want: malformed},
		{name: "payload length one too much", hook: hook, packet: udp6, edit: put(18, 0, 49), want: malformed},
		{name: "half a UDP header", hook: hook, raw: cut(udp, 14+20+3), want: malformed},
		{name: "half a UDP header 6", hook: hook, raw: cut(udp6, 14+40+3), want: malformed},
		{name: "half a TCP header", hook: hook, raw: cut(frame(w1, w2).TCP(1, 2, "S"), 14+20+19), want: malformed},
		{name: "half a TCP header 6", hook: hook, raw: cut(frame(x1, x2).TCP(1, 2, "S"), 14+40+19), want: malformed},
		{name: "half an ICMP header", hook: hook, raw: cut(frame(w1, w2).Echo(1, 2), 14+20+7), want: malformed},
		{name: "half an ICMPv6 header", hook: hook, raw: cut(frame(x1, x2).Echo(1, 2), 14+40+7), want: malformed},
		{name: "no ICMPv6 header", hook: hook, raw: cut(frame(x1, x2).Echo(1, 2), 14+40), want: malformed},
		{name: "half an SCTP header", hook: hook, raw: cut(sctp(frame(w1, w2), 1, 2), 14+20+3), want: malformed},
		{name: "total length less than its header", hook: hook, packet: udp, edit: put(16, 0, 19), want: malformed},
		{name: "total length 0", hook: hook, packet: udp, edit: put(16, 0, 0), want: malformed},
		{name: "options beyond the total length", hook: hook, packet: frame(w1, w2).Protocol(99).Payload(60), edit: func(p []byte) { p[14], p[17] = 0x4f, 59 }, want: malformed},
		{name: "TCP header beyond the total length", hook: hook, packet: frame(w1, w2).TCP(1, 2, "S"), edit: put(16, 0, 39), want: malformed},
		{name: "TCP header beyond the payload length", hook: hook, packet: frame(x1, x2).TCP(1, 2, "S"), edit: put(18, 0, 19), want: malformed},
		{name: "ports beyond the total length", hook: hook, packet: udp, edit: put(16, 0, 23), want: malformed},
		{name: "ports beyond the payload length", hook: hook, packet: udp6, edit: put(18, 0, 3), want: malformed},
		{name: "ports behind options beyond the payload length", hook: hook, packet: frame(x1, x2).Extension(60, 8).UDP(1, 2), edit: put(18, 0, 11), want: malformed},
		{name: "a router's words in no bytes", hook: hook, packet: frame(x1, x2).TTL(255).ICMP(135, 0, 0).Payload(24), edit: put(18, 0, 0), want: malformed},
		{name: "ICMP error whose quote is beyond the total length", hook: hook, packet: frame(w2, w1).ICMPError(3, 3, 0, testbed.IPv4(w1, w2).UDP(1, 2)),
			edit: put(16, 0, 20+8+20+3), want: malformed},
		{name: "ICMPv6 error whose quote is beyond the payload length", hook: hook, packet: frame(x2, x1).ICMPError(1, 4, 0, testbed.IPv6(x1, x2).UDP(1, 2)),
			edit: put(18, 0, 8+40+3), want: malformed},
		{name: "ICMP error that quotes nothing", hook: hook, packet: frame(w1, w2).ICMP(3, 1, 0), want: malformed},
		{name: "ICMPv6 error that quotes nothing", hook: hook, packet: frame(x1, x2).ICMP(1, 0, 0), want: malformed},

		{name: "later fragment", hook: hook, packet: frame(w1, w2).Protocol(17).Fragment(5, 1480, false).Payload(40), want: "shot drop_fragment"},
		{name: "middle fragment", hook: hook, packet: frame(w1, w2).Protocol(17).Fragment(5, 1480, true).Payload(40), want: "shot drop_fragment"},
		{name: "source route", hook: hook, packet: frame(x1, x2).Extension(43, 8).UDP(1, 2), edit: put(14+40+3, 1), want: unsupported},
		{name: "more extension headers than we read", hook: hook, want: unsupported,
			packet: frame(x1, x2).Extension(60, 8).Extension(60, 8).Extension(60, 8).Extension(60, 8).Extension(60, 8).Extension(60, 8).Extension(60, 8).UDP(1, 2)},
		{name: "hop-by-hop options that are not first", hook: hook, packet: frame(x1, x2).Extension(60, 8).Extension(0, 8).UDP(1, 2), want: malformed},
		{name: "extension header beyond the packet", hook: hook, packet: frame(x1, x2).Extension(60, 8).UDP(1, 2), edit: put(14+40+1, 200), want: malformed},
		{name: "neighbour discovery behind options", hook: hook, packet: frame(x1, x2).Extension(60, 8).ICMP(135, 0, 0), want: unsupported},
		{name: "ICMPv6 error behind options", hook: hook, packet: frame(x1, x2).Extension(60, 8).ICMP(1, 0, 0), want: unsupported},
		{name: "authentication header", hook: hook, packet: frame(x1, x2).Protocol(51).Payload(24), want: unsupported},

		{name: "multicast", hook: hook, packet: frame(w1, "224.0.0.251").UDP(5353, 5353), want: multicast},
		{name: "last multicast", hook: hook, packet: frame(w1, "239.255.255.255").UDP(1, 2), want: multicast},
		{name: "broadcast", hook: hook, packet: frame(w1, "255.255.255.255").UDP(68, 67), want: multicast},
		{name: "multicast 6", hook: hook, packet: frame(x1, "ff02::fb").UDP(5353, 5353), want: multicast},
		{name: "multicast listener report", hook: hook, packet: frame(x1, "ff02::16").Extension(0, 8).ICMP(143, 0, 0), want: multicast},

		{name: "not IP", hook: hook, packet: testbed.Ethernet(macOf(first), hostMAC).Payload(50), edit: put(12, 0x88, 0xcc), want: unsupported},
		{name: "VLAN", hook: hook, packet: udp, edit: put(12, 0x88, 0xa8), want: unsupported},
	})
}

// To the host, to nobody, and what is no IP.
func TestWorkloadPacketsToTheHost(t *testing.T) {
	b := newBed(t)
	hook := loader.FromWorkload
	arp := func(sender, target string) testbed.Packet {
		return testbed.Ethernet(macOf(first), "ff:ff:ff:ff:ff:ff").ARP(macOf(first), sender, "", target)
	}
	b.fire(t, []trial{
		{name: "gateway", hook: hook, packet: arp(w1, "169.254.1.1"), want: "redirect pass_neighbor",
			check: func(t *testing.T, _, out []byte) {
				want := testbed.Ethernet(hostMAC, macOf(first)).ARP(hostMAC, "169.254.1.1", macOf(first), w1).Bytes()
				if string(out) != string(want) {
					t.Errorf("answer\n%x, want\n%x", out, want)
				}
			}},
		{name: "gateway, padded", hook: hook, raw: append(arp(w1, "169.254.1.1").Bytes(), make([]byte, 18)...),
			want: "redirect pass_neighbor", check: func(t *testing.T, in, out []byte) {
				if len(out) != len(in) || testbed.Text(out) != "ARP 169.254.1.1 is at eeeeeeeeeeee" {
					t.Errorf("answer %s", testbed.Text(out))
				}
			}},
		{name: "somebody else", hook: hook, packet: arp(w1, w2), want: "next pass_neighbor"},
		{name: "gateway, for another workload", hook: hook, on: "cali1", packet: arp(w2, "169.254.1.1"), want: "shot drop_spoofed"},
		{name: "gateway, for an address that nobody has", hook: hook, packet: arp("192.168.1.50", "169.254.1.1"), want: "shot drop_spoofed"},
		{name: "another MAC in ARP", hook: hook, want: "shot drop_spoofed",
			packet: testbed.Ethernet(macOf(first), "ff:ff:ff:ff:ff:ff").ARP(macOf(second), w1, "", "169.254.1.1")},
		{name: "ARP from another MAC", hook: hook, want: "shot drop_spoofed",
			packet: testbed.Ethernet(macOf(second), "ff:ff:ff:ff:ff:ff").ARP(macOf(first), w1, "", "169.254.1.1")},
		{name: "ARP of IPv6", hook: hook, packet: arp(w1, "169.254.1.1"), edit: put(16, 0x86, 0xdd), want: "shot drop_unsupported"},
		{name: "gateway, for nobody", hook: hook, packet: arp("0.0.0.0", "169.254.1.1"), want: "next pass_neighbor"},
		{name: "ARP answer", hook: hook, want: "next pass_neighbor",
			packet: testbed.Ethernet(macOf(first), hostMAC).ARP(macOf(first), w1, hostMAC, "169.254.1.1")},
		{name: "half an ARP packet", hook: hook, raw: arp(w1, "169.254.1.1").Bytes()[:14+20], want: "shot drop_malformed"},
		{name: "neighbour solicitation", hook: hook, packet: frame(x1, "ff02::1:ffee:eeee").TTL(255).ICMP(135, 0, 0).Payload(24), want: "next pass_neighbor"},
		{name: "neighbour advertisement", hook: hook, packet: frame(x1, testbed.HostLinkLocal).TTL(255).ICMP(136, 0, 0).Payload(24), want: "next pass_neighbor"},
		{name: "neighbour solicitation that was routed", hook: hook, packet: frame(x1, "ff02::1:ffee:eeee").TTL(254).ICMP(135, 0, 0).Payload(24), want: "shot drop_multicast"},
		{name: "router solicitation", hook: hook, packet: frame(x1, "ff02::2").TTL(255).ICMP(133, 0, 0), want: "next pass_neighbor"},
		{name: "is the address in use", hook: hook, on: "cali1", want: "next pass_neighbor",
			packet: testbed.Ethernet(macOf(first), "33:33:00:00:00:01").IPv6("::", "ff02::1:ff00:1").TTL(255).ICMP(135, 0, 0).Payload(24)},
		{name: "from the link-local address", hook: hook, on: "cali1", want: "next pass_neighbor",
			packet: testbed.Ethernet(macOf(first), hostMAC).IPv6("fe80::1:1", "ff02::1:ffee:eeee").TTL(255).ICMP(135, 0, 0).Payload(24)},
		{name: "another workload's neighbour advertisement", hook: hook, on: "cali1", want: "shot drop_spoofed",
			packet: testbed.Ethernet(macOf(first), hostMAC).IPv6(x2, testbed.HostLinkLocal).TTL(255).ICMP(136, 0, 0).Payload(24)},
		{name: "another MAC's neighbour advertisement", hook: hook, on: "cali1", want: "shot drop_spoofed",
			packet: testbed.Ethernet(macOf(second), hostMAC).IPv6(x1, testbed.HostLinkLocal).TTL(255).ICMP(136, 0, 0).Payload(24)},
		{name: "neighbour discovery beyond the host", hook: hook, packet: frame(x1, x2).TTL(255).ICMP(135, 0, 0).Payload(24), want: "shot drop_spoofed"},
		{name: "neighbour discovery to the world", hook: hook, packet: frame(x1, outside6).TTL(255).ICMP(136, 0, 0).Payload(24), want: "shot drop_spoofed"},
		{name: "router advertisement", hook: hook, packet: frame(x1, "ff02::1").TTL(255).ICMP(134, 0, 0).Payload(8), want: "shot drop_spoofed"},
		{name: "redirect", hook: hook, packet: frame(x1, testbed.HostLinkLocal).TTL(255).ICMP(137, 0, 0).Payload(32), want: "shot drop_spoofed"},
		{name: "half a neighbour solicitation", hook: hook, raw: frame(x1, "ff02::1:ffee:eeee").TTL(255).ICMP(135, 0, 0).Payload(24).Bytes()[:14+44],
			want: "shot drop_malformed"},
	})
	for action, want := range map[desired.ToHostAction]string{
		desired.ToHostDrop: "shot drop_to_host", desired.ToHostReturn: "next pass_to_host", desired.ToHostAccept: "next pass_to_host",
	} {
		b.state.Dataplane.ToHost = action
		b.sync(t)
		b.fire(t, []trial{
			{name: "host", hook: hook, packet: frame(w1, node4).TCP(4000, 22, "S"), want: want},
			{name: "host 6", hook: hook, packet: frame(x1, node6).TCP(4000, 22, "S"), want: want},
			{name: "host with TTL 1", hook: hook, packet: frame(w1, node4).TTL(1).TCP(4000, 22, "S"), want: want},
			{name: "host's link-local address", hook: hook, packet: frame(x1, testbed.HostLinkLocal).Echo(1, 1), want: want},
			{name: "egress policy applies", hook: hook, packet: frame(w4, node4).TCP(4000, 22, "S"), want: "shot drop_egress_policy"},
			{name: "answer to the host", hook: hook, packet: frame(w4, node4).TCP(22, 4000, "SA"), want: "next pass_to_host",
				after: []trial{{hook: loader.ToWorkload, packet: frame(node4, w4).TCP(4000, 22, "S"), want: "next pass_to_workload"}}},
		})
	}
	b.fire(t, []trial{
		{name: "the world", hook: hook, packet: frame(w1, outside4).TCP(4000, 443, "S"), want: "next pass_to_stack"},
		{name: "the world 6", hook: hook, packet: frame(x1, outside6).TCP(4000, 443, "S"), want: "next pass_to_stack"},
		{name: "another node", hook: hook, packet: frame(w1, plain4).TCP(4000, 22, "S"), want: "next pass_to_stack"},
		{name: "nobody in the block", hook: hook, packet: frame(w1, "192.168.1.50").UDP(1, 2), want: "shot drop_no_endpoint"},
		{name: "nobody in the block 6", hook: hook, packet: frame(x1, "fd01::30").UDP(1, 2), want: "shot drop_no_endpoint"},
		{name: "nobody, and egress policy", hook: hook, packet: frame(w4, "192.168.1.50").UDP(1, 2), want: "shot drop_egress_policy"},
	})
	// A workload whose endpoint is gone, and one that has none yet.
	delete(b.state.Dataplane.Endpoints, key(second))
	delete(b.state.Dataplane.Policy.Endpoints, key(second))
	b.sync(t)
	b.fire(t, []trial{
		{name: "without endpoint", hook: hook, packet: frame(w2, w1).UDP(1, 2), want: "shot drop_spoofed"},
		{name: "without endpoint, to the host", hook: hook, packet: frame(w2, node4).UDP(1, 2), want: "shot drop_spoofed"},
		{name: "ARP without endpoint", hook: hook, on: "cali2", want: "shot drop_spoofed",
			packet: testbed.Ethernet(macOf(second), "ff:ff:ff:ff:ff:ff").ARP(macOf(second), w2, "", "169.254.1.1")},
		{name: "to what has no endpoint", hook: hook, packet: frame(w1, w2).UDP(1, 2), want: "shot drop_no_endpoint"},
		{name: "from the stack to what has no endpoint", hook: loader.ToWorkload, from: "eth0",
			packet: frame(outside4, w2).UDP(1, 2), want: "shot drop_no_endpoint"},
	})
	e := b.state.Dataplane.Endpoints[key(first)]
	e.Addresses = nil // closed
	b.state.Dataplane.Endpoints[key(first)] = e
	b.sync(t)
	b.fire(t, []trial{
		{name: "closed", hook: hook, packet: frame(w1, w3).UDP(1, 2), want: "shot drop_spoofed"},
		{name: "to a closed one", hook: hook, packet: frame(w3, w1).UDP(1, 2), want: "shot drop_no_endpoint"},
	})
}

// What the host's stack delivers.
func TestPacketsToWorkloads(t *testing.T) {
	b := newBed(t)
	hook := loader.ToWorkload
	passes := "next pass_to_workload"
	about := testbed.IPv4(w1, outside4).UDP(1000, 53).Payload(8)
	b.fire(t, []trial{
		{name: "the host's own", hook: hook, packet: frame(node4, w1).TCP(4000, 80, "S"), want: passes},
		{name: "the host's own 6", hook: hook, packet: frame(node6, x1).TCP(4000, 80, "S"), want: passes},
		{name: "no policy holds the host back", hook: hook, packet: frame(node4, w4).TCP(4000, 80, "S"), want: passes},
		{name: "nor from its link-local address", hook: hook, packet: frame(testbed.HostLinkLocal, "fd01::4").Echo(1, 1), want: passes},
		{name: "but who only says to be the host", hook: hook, from: "eth0", packet: frame(node4, w4).TCP(4000, 80, "S"), want: "shot drop_ingress_policy"},
		{name: "forwarded", hook: hook, from: "eth0", packet: frame(outside4, w1).TCP(4000, 80, "S"), want: passes},
		{name: "forwarded against policy", hook: hook, from: "eth0", packet: frame(outside4, w4).TCP(4000, 80, "S"), want: "shot drop_ingress_policy"},
		{name: "from a local workload", hook: hook, from: "cali2", packet: frame(w2, w1).UDP(1, 2), want: passes},
		{name: "from a local workload that may not", hook: hook, from: "cali4", packet: frame(w4, w1).UDP(1, 2), want: "shot drop_egress_policy"},
		{name: "ARP", hook: hook, packet: testbed.Ethernet(hostMAC, "ff:ff:ff:ff:ff:ff").ARP(hostMAC, node4, "", w1), want: "next pass_neighbor"},
		{name: "neighbour solicitation", hook: hook, packet: frame(testbed.HostLinkLocal, x1).TTL(255).ICMP(135, 0, 0).Payload(24), want: "next pass_neighbor"},
		{name: "the host says time exceeded", hook: hook, packet: frame(node4, w1).ICMPError(11, 0, 0, about), want: passes},
		{name: "somebody says so of no flow", hook: hook, from: "eth0", packet: frame("10.1.1.1", w1).ICMPError(11, 0, 0, about), want: "shot drop_no_flow"},
		{name: "somebody says so of a flow", hook: hook, from: "eth0", packet: frame("10.1.1.1", w1).ICMPError(11, 0, 0, about), want: passes,
			after: []trial{{hook: loader.FromWorkload, packet: frame(w1, outside4).UDP(1000, 53), want: "next pass_to_stack"}}},
		{name: "multicast", hook: hook, packet: frame(node4, "224.0.0.1").UDP(1, 2), want: "shot drop_multicast"},
		{name: "later fragment", hook: hook, from: "eth0", packet: frame(outside4, w1).Protocol(17).Fragment(5, 1480, false).Payload(40), want: "shot drop_fragment"},
		{name: "extension header", hook: hook, from: "eth0", packet: frame(outside6, x1).Extension(60, 8).UDP(1, 2), want: "next pass_to_workload"},
		{name: "half a UDP header", hook: hook, from: "eth0", raw: frame(outside6, x1).UDP(1, 2).Bytes()[:14+40+2], want: "shot drop_malformed"},
		{name: "not IP", hook: hook, raw: append(testbed.Ethernet(hostMAC, macOf(first)).Bytes()[:12], make([]byte, 50)...), want: "shot drop_unsupported"},
	})
}
