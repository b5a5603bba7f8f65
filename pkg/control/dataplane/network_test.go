package dataplane

import (
	"bytes"
	"encoding/binary"
	"testing"

	"calico-xdp/pkg/loader"
	"calico-xdp/tools/testbed"
)

const (
	remotePlain4, remotePlain6 = "192.168.3.1", "fd03::1"
	remoteIPIP4                = "192.168.4.1"
	remoteVXLAN4, remoteVXLAN6 = "192.168.5.1", "fd05::1"

	neighborMAC = "02:00:00:00:99:99"
)

// uplink starts a frame that the network delivers.
func uplink() testbed.Packet { return testbed.Ethernet(neighborMAC, hostMAC) }

// wire checks an encapsulated frame byte for byte against one of the builder's, but
// for what is free: the identification of a packet that may be fragmented, the IPv4
// checksum that covers it, and the UDP source port within its range.
func wire(want func(port uint16) testbed.Packet) func(*testing.T, []byte, []byte) {
	return func(t *testing.T, _, out []byte) {
		t.Helper()
		out = bytes.Clone(out)
		port, udp := uint16(0), 0
		switch {
		case out[12] == 0x86 && out[20] == 17:
			udp = 14 + 40
		case out[12] == 8 && out[23] == 17:
			udp = 14 + 20
		}
		if udp > 0 {
			if port = binary.BigEndian.Uint16(out[udp:]); port < 49152 {
				t.Errorf("source port %d", port)
			}
		}
		expected := want(port).Bytes()
		if out[12] == 8 {
			if ^sum(out[14:34]) != 0 {
				t.Error("wrong checksum in the outer header")
			}
			if out[20]&0x40 == 0 { // may be fragmented
				copy(expected[18:20], out[18:20])
			}
			copy(expected[24:26], out[24:26])
		}
		if udp > 0 {
			copy(expected[udp+6:udp+8], []byte{0, 0}) // no checksum
		}
		if !bytes.Equal(out, expected) {
			t.Errorf("%s\n%x, want %s\n%x", testbed.TextMAC(out), out, testbed.TextMAC(expected), expected)
		}
	}
}

// tunnel puts an IPIP or VXLAN header of this node around a packet.
func ipip(p testbed.Packet, from, to string) testbed.Packet { return p.IPv4(from, to) }

func vxlan(p testbed.Packet, from, to string, port uint16) testbed.Packet {
	if bytes.Contains([]byte(from), []byte(":")) {
		return p.IPv6(from, to).UDP(port, 4789).VXLAN(4096)
	}
	return p.IPv4(from, to).UDP(port, 4789).VXLAN(4096)
}

// From a workload to workloads of other nodes.
func TestPacketsToOtherNodes(t *testing.T) {
	b := newBed(t)
	hook := loader.FromWorkload
	outer := testbed.Ethernet(macOf(first), hostMAC) // the kernel writes another one
	inVXLAN := func(from, to string, port uint16) testbed.Packet {
		return vxlan(outer, from, to, port).Ethernet(vxlanMAC, peerVXLANMAC)
	}
	b.fire(t, []trial{
		{name: "plain", hook: hook, packet: frame(w1, remotePlain4).TCP(4000, 80, "S"), want: "redirect pass_to_node",
			out: "02:00:00:00:00:01 > ee:ee:ee:ee:ee:ee IP 192.168.1.1 > 192.168.3.1: TCP 4000 > 80 [S] ttl 63"},
		{name: "plain 6", hook: hook, packet: frame(x1, remotePlain6).TCP(4000, 80, "S"), want: "redirect pass_to_node",
			out: "02:00:00:00:00:01 > ee:ee:ee:ee:ee:ee IP6 fd01::1 > fd03::1: TCP 4000 > 80 [S] ttl 63"},
		{name: "IPIP", hook: hook, packet: frame(w1, remoteIPIP4).TCP(4000, 80, "S").Payload(100), want: "redirect pass_ipip",
			check: wire(func(uint16) testbed.Packet {
				return ipip(outer, node4, ipip4).IPv4(w1, remoteIPIP4).TTL(63).TCP(4000, 80, "S").Payload(100)
			})},
		{name: "IPIP, do not fragment", hook: hook, packet: frame(w1, remoteIPIP4).DF().TCP(4000, 80, "S"), want: "redirect pass_ipip",
			check: wire(func(uint16) testbed.Packet {
				return ipip(outer, node4, ipip4).DF().IPv4(w1, remoteIPIP4).TTL(63).DF().TCP(4000, 80, "S")
			})},
		{name: "IPIP, tos", hook: hook, packet: frame(w1, remoteIPIP4).TTL(3).TOS(0xb9).UDP(1, 2), want: "redirect pass_ipip",
			check: wire(func(uint16) testbed.Packet {
				return ipip(outer, node4, ipip4).TOS(0xb9).IPv4(w1, remoteIPIP4).TTL(2).TOS(0xb9).UDP(1, 2)
			})},
		{name: "IPIP, congestion experienced", hook: hook, packet: frame(w1, remoteIPIP4).TOS(3).UDP(1, 2), want: "redirect pass_ipip",
			check: wire(func(uint16) testbed.Packet {
				return ipip(outer, node4, ipip4).TOS(3).IPv4(w1, remoteIPIP4).TTL(63).TOS(3).UDP(1, 2)
			})},
		{name: "IPIP, echo with options", hook: hook, packet: frame(w1, remoteIPIP4).IPv4Options(2).Echo(1, 2), want: "redirect pass_ipip",
			check: wire(func(uint16) testbed.Packet {
				return ipip(outer, node4, ipip4).IPv4(w1, remoteIPIP4).TTL(63).IPv4Options(2).Echo(1, 2)
			})},
		{name: "VXLAN", hook: hook, packet: frame(w1, remoteVXLAN4).TCP(4000, 80, "S").Payload(100), want: "redirect pass_vxlan",
			check: wire(func(port uint16) testbed.Packet {
				return inVXLAN(node4, vxlan4, port).IPv4(w1, remoteVXLAN4).TTL(63).TCP(4000, 80, "S").Payload(100)
			})},
		{name: "VXLAN, tos and do not fragment", hook: hook, packet: frame(w1, remoteVXLAN4).DF().TOS(0x2a).UDP(1, 2), want: "redirect pass_vxlan",
			check: wire(func(port uint16) testbed.Packet {
				p := testbed.Ethernet(macOf(first), hostMAC).IPv4(node4, vxlan4).TOS(0x2a).UDP(port, 4789).VXLAN(4096)
				return p.Ethernet(vxlanMAC, peerVXLANMAC).IPv4(w1, remoteVXLAN4).TTL(63).DF().TOS(0x2a).UDP(1, 2)
			})},
		{name: "VXLAN 6", hook: hook, packet: frame(x1, remoteVXLAN6).TCP(4000, 80, "S").Payload(100), want: "redirect pass_vxlan",
			check: wire(func(port uint16) testbed.Packet {
				return inVXLAN(node6, vxlan6, port).IPv6(x1, remoteVXLAN6).TTL(63).TCP(4000, 80, "S").Payload(100)
			})},
		{name: "VXLAN 6, traffic class", hook: hook, packet: frame(x1, remoteVXLAN6).TOS(0xb9).Echo(1, 2), want: "redirect pass_vxlan",
			check: wire(func(port uint16) testbed.Packet {
				p := testbed.Ethernet(macOf(first), hostMAC).IPv6(node6, vxlan6).TOS(0xb9).UDP(port, 4789).VXLAN(4096)
				return p.Ethernet(vxlanMAC, peerVXLANMAC).IPv6(x1, remoteVXLAN6).TTL(63).TOS(0xb9).Echo(1, 2)
			})},
		{name: "TTL 1", hook: hook, packet: frame(w1, remoteIPIP4).TTL(1).UDP(1, 2), want: "next pass_to_stack"},
		{name: "hop limit 1", hook: hook, packet: frame(x1, remoteVXLAN6).TTL(1).UDP(1, 2), want: "next pass_to_stack"},
		{name: "egress policy", hook: hook, packet: frame(w4, remoteIPIP4).UDP(1, 2), want: "shot drop_egress_policy"},
		{name: "the kernel has no route", hook: hook, packet: frame(w1, "192.168.6.1").UDP(1, 2), want: "shot drop_no_next_hop"},
		{name: "an established flow", hook: hook, packet: frame(w1, remoteIPIP4).TCP(4000, 80, "A"), want: "redirect pass_ipip",
			after: []trial{
				{hook: hook, packet: frame(w1, remoteIPIP4).TCP(4000, 80, "S")},
				{hook: loader.FromNetwork, packet: ipip(uplink(), ipip4, node4).IPv4(remoteIPIP4, w1).TCP(80, 4000, "SA")},
				{hook: hook, packet: frame(w1, remoteIPIP4).TCP(4000, 80, "A")},
			},
			check: wire(func(uint16) testbed.Packet {
				return ipip(outer, node4, ipip4).IPv4(w1, remoteIPIP4).TTL(63).TCP(4000, 80, "A")
			})},
	})

	// A flow keeps its source port, others have others.
	ports := make(map[uint16]bool)
	for src := range uint16(20) {
		was := uint16(0)
		for range 3 {
			did, _, out := b.run(t, trial{hook: hook, packet: frame(w1, remoteVXLAN4).TCP(3000+src, 80, "S")})
			if did != "redirect pass_vxlan" {
				t.Fatal(did)
			}
			port := binary.BigEndian.Uint16(out[34:])
			if was != 0 && port != was {
				t.Errorf("flow %d changes its port from %d to %d", src, was, port)
			}
			was = port
		}
		ports[was] = true
	}
	if len(ports) < 10 {
		t.Errorf("20 flows have %d source ports", len(ports))
	}
}

// From the network.
func TestPacketsFromTheNetwork(t *testing.T) {
	b := newBed(t)
	hook := loader.FromNetwork
	passes, ignored := "redirect pass_to_workload", "next pass_not_ours"
	toFirst := "ee:ee:ee:ee:ee:ee > 02:00:00:00:00:01 "
	inVXLAN := func(from, to string) testbed.Packet {
		return vxlan(uplink(), from, to, 50000).Ethernet(peerVXLANMAC, vxlanMAC)
	}
	udp := func(p testbed.Packet, from, to string) testbed.Packet { return p.IPv4(from, to).UDP(1, 2) }
	b.fire(t, []trial{
		{name: "plain", hook: hook, packet: frame(remotePlain4, w1).TCP(4000, 80, "S"), want: passes,
			out: toFirst + "IP 192.168.3.1 > 192.168.1.1: TCP 4000 > 80 [S] ttl 63"},
		{name: "plain 6", hook: hook, packet: frame(remotePlain6, x1).TCP(4000, 80, "S"), want: passes,
			out: toFirst + "IP6 fd03::1 > fd01::1: TCP 4000 > 80 [S] ttl 63"},
		{name: "the world", hook: hook, packet: frame(outside4, w1).UDP(1, 2), want: passes,
			out: toFirst + "IP 203.0.113.9 > 192.168.1.1: UDP 1 > 2 ttl 63"},
		{name: "another node", hook: hook, packet: frame(plain4, w1).UDP(1, 2), want: passes,
			out: toFirst + "IP 10.10.2.3 > 192.168.1.1: UDP 1 > 2 ttl 63"},
		{name: "IPIP", hook: hook, packet: ipip(uplink(), ipip4, node4).IPv4(remoteIPIP4, w1).TCP(4000, 80, "S").Payload(30), want: passes,
			out: toFirst + "IP 192.168.4.1 > 192.168.1.1: TCP 4000 > 80 [S] len 30 ttl 63"},
		{name: "IPIP with tos", hook: hook, packet: ipip(uplink(), ipip4, node4).TOS(0xb9).IPv4(remoteIPIP4, w1).TOS(0xb9).UDP(1, 2), want: passes,
			out: toFirst + "IP 192.168.4.1 > 192.168.1.1: UDP 1 > 2 ttl 63 tos 0xb9"},
		{name: "IPIP, from the node itself", hook: hook, packet: udp(ipip(uplink(), ipip4, node4), ipip4, w1), want: passes,
			out: toFirst + "IP 10.10.2.4 > 192.168.1.1: UDP 1 > 2 ttl 63"},
		{name: "VXLAN", hook: hook, packet: inVXLAN(vxlan4, node4).IPv4(remoteVXLAN4, w1).TCP(4000, 80, "S").Payload(30), want: passes,
			out: toFirst + "IP 192.168.5.1 > 192.168.1.1: TCP 4000 > 80 [S] len 30 ttl 63"},
		{name: "VXLAN 6", hook: hook, packet: inVXLAN(vxlan6, node6).IPv6(remoteVXLAN6, x1).UDP(1, 2).Payload(30), want: passes,
			out: toFirst + "IP6 fd05::1 > fd01::1: UDP 1 > 2 len 30 ttl 63"},
		{name: "to a link without MAC", hook: hook, packet: udp(ipip(uplink(), ipip4, node4), remoteIPIP4, w3), want: passes,
			out: "02:00:00:00:99:99 > ee:ee:ee:ee:ee:ee IP 192.168.4.1 > 192.168.1.3: UDP 1 > 2 ttl 63"},
		{name: "TTL 1 in IPIP", hook: hook, packet: ipip(uplink(), ipip4, node4).IPv4(remoteIPIP4, w1).TTL(1).UDP(1, 2), want: "next pass_to_stack",
			out: "02:00:00:00:99:99 > ee:ee:ee:ee:ee:ee IP 192.168.4.1 > 192.168.1.1: UDP 1 > 2 ttl 1"},
		{name: "TTL 1", hook: hook, packet: frame(outside4, w1).TTL(1).UDP(1, 2), want: "next pass_to_stack"},

		{name: "ingress policy", hook: hook, packet: frame(outside4, w4).UDP(1, 2), want: "shot drop_ingress_policy"},
		{name: "ingress policy in IPIP", hook: hook, packet: udp(ipip(uplink(), ipip4, node4), remoteIPIP4, w4), want: "shot drop_ingress_policy"},
		{name: "to the host", hook: hook, packet: frame(outside4, node4).TCP(4000, 22, "S"), want: ignored},
		{name: "to others", hook: hook, packet: frame(outside4, "198.51.100.1").UDP(1, 2), want: ignored},
		{name: "to nobody in the block", hook: hook, packet: frame(outside4, "192.168.1.50").UDP(1, 2), want: ignored},
		{name: "multicast", hook: hook, packet: frame(outside4, "224.0.0.5").Protocol(89).Payload(44), want: ignored},
		{name: "later fragment", hook: hook, packet: frame(outside4, w1).Protocol(17).Fragment(5, 1480, false).Payload(40), want: ignored},
		{name: "extension header", hook: hook, packet: frame(outside6, x1).Extension(60, 8).UDP(1, 2), want: "redirect pass_to_workload",
			out: toFirst + "IP6 2001:db8::9 > fd01::1: UDP 1 > 2 ttl 63"},
		{name: "total length beyond the packet", hook: hook, packet: frame(outside4, w1).UDP(1, 2), edit: put(16, 0xff, 0xff), want: ignored},
		{name: "ARP", hook: hook, packet: testbed.Ethernet(neighborMAC, "ff:ff:ff:ff:ff:ff").ARP(neighborMAC, "10.10.1.1", "", node4), want: ignored},
		{name: "ARP for the gateway", hook: hook, packet: testbed.Ethernet(neighborMAC, "ff:ff:ff:ff:ff:ff").ARP(neighborMAC, w1, "", "169.254.1.1"), want: ignored},
		{name: "neighbour solicitation", hook: hook, packet: frame("fd10:10:1::1", node6).TTL(255).ICMP(135, 0, 0).Payload(24), want: ignored},
		{name: "not IP", hook: hook, packet: frame(outside4, w1).UDP(1, 2), edit: put(12, 0x88, 0xcc), want: ignored},

		{name: "IPIP of a stranger", hook: hook, packet: udp(ipip(uplink(), "10.10.2.66", node4), remoteIPIP4, w1), want: ignored},
		{name: "VXLAN of a stranger", hook: hook, packet: udp(inVXLAN("10.10.2.66", node4), remoteVXLAN4, w1), want: ignored},
		{name: "VXLAN 6 of a stranger", hook: hook, packet: inVXLAN("fd10:10:2::66", node6).IPv6(remoteVXLAN6, x1).UDP(1, 2), want: ignored},
		{name: "IPIP to somebody else", hook: hook, packet: udp(ipip(uplink(), ipip4, "10.10.1.77"), remoteIPIP4, w1), want: ignored},
		{name: "VXLAN to somebody else", hook: hook, packet: udp(inVXLAN(vxlan4, "10.10.1.77"), remoteVXLAN4, w1), want: ignored},
		{name: "IPIP to a workload", hook: hook, packet: udp(ipip(uplink(), ipip4, w4), remoteIPIP4, w1), want: "shot drop_ingress_policy"},
		{name: "VXLAN of another network", hook: hook, want: ignored,
			packet: udp(uplink().IPv4(vxlan4, node4).UDP(50000, 4789).VXLAN(4097).Ethernet(peerVXLANMAC, vxlanMAC), remoteVXLAN4, w1)},
		{name: "VXLAN without its flag", hook: hook, packet: udp(inVXLAN(vxlan4, node4), remoteVXLAN4, w1), edit: put(14+20+8, 0), want: ignored},
		{name: "VXLAN on another port", hook: hook, want: ignored,
			packet: udp(uplink().IPv4(vxlan4, node4).UDP(50000, 4790).VXLAN(4096).Ethernet(peerVXLANMAC, vxlanMAC), remoteVXLAN4, w1)},
		{name: "fragment of IPIP", hook: hook, packet: ipip(uplink(), ipip4, node4).Fragment(5, 0, true).IPv4(remoteIPIP4, w1).UDP(1, 2), want: ignored},
		{name: "IPIP with options", hook: hook, packet: ipip(uplink(), ipip4, node4).IPv4Options(1).IPv4(remoteIPIP4, w1).UDP(1, 2), want: ignored},
		{name: "half an IP header in IPIP", hook: hook, packet: ipip(uplink(), ipip4, node4).Protocol(4).Payload(19), want: "shot drop_malformed"},
		{name: "IPv6 in VXLAN over IPv4", hook: hook, packet: inVXLAN(vxlan4, node4).IPv6(remoteVXLAN6, x1).UDP(1, 2), want: "shot drop_unsupported"},
		{name: "ARP in VXLAN", hook: hook, want: "shot drop_unsupported",
			packet: inVXLAN(vxlan4, node4).ARP(peerVXLANMAC, remoteVXLAN4, "", w1)},
		{name: "multicast in IPIP", hook: hook, packet: udp(ipip(uplink(), ipip4, node4), remoteIPIP4, "224.0.0.1"), want: "shot drop_multicast"},
		{name: "later fragment in IPIP", hook: hook, want: "shot drop_fragment",
			packet: ipip(uplink(), ipip4, node4).IPv4(remoteIPIP4, w1).Protocol(17).Fragment(5, 1480, false).Payload(40)},
		{name: "IPIP to the host", hook: hook, packet: udp(ipip(uplink(), ipip4, node4), remoteIPIP4, node4), want: ignored,
			out: "02:00:00:00:99:99 > ee:ee:ee:ee:ee:ee IP 192.168.4.1 > 10.10.1.2: UDP 1 > 2 ttl 64"},

		{name: "source of another node", hook: hook, packet: udp(ipip(uplink(), ipip4, node4), remoteVXLAN4, w1), want: "shot drop_wrong_node"},
		{name: "source of another node in VXLAN", hook: hook, packet: udp(inVXLAN(vxlan4, node4), remoteIPIP4, w1), want: "shot drop_wrong_node"},
		{name: "source from nowhere", hook: hook, packet: udp(ipip(uplink(), ipip4, node4), outside4, w1), want: "shot drop_wrong_node"},
		{name: "another node's address", hook: hook, packet: udp(ipip(uplink(), ipip4, node4), plain4, w1), want: "shot drop_wrong_node"},
		{name: "another node within a flow", hook: hook, want: "shot drop_wrong_node",
			packet: udp(ipip(uplink(), plain4, node4), remoteIPIP4, w1),
			after: []trial{
				{hook: hook, packet: udp(ipip(uplink(), ipip4, node4), remoteIPIP4, w1), want: passes, check: func(*testing.T, []byte, []byte) {}},
				{hook: loader.FromWorkload, packet: frame(w1, remoteIPIP4).UDP(2, 1), want: "redirect pass_ipip", check: func(*testing.T, []byte, []byte) {}},
			}},

		{name: "a workload's address", hook: hook, packet: uplink().IPv4(w2, w1).UDP(1, 2), want: "shot drop_martian"},
		{name: "a workload's address in IPIP", hook: hook, packet: udp(ipip(uplink(), ipip4, node4), w2, w1), want: "shot drop_martian"},
		{name: "an address of the block", hook: hook, packet: uplink().IPv4("192.168.1.50", w1).UDP(1, 2), want: "shot drop_martian"},
		{name: "the host's address", hook: hook, packet: uplink().IPv4(node4, w1).UDP(1, 2), want: "shot drop_martian"},
		{name: "the host's address 6", hook: hook, packet: uplink().IPv6(node6, x1).UDP(1, 2), want: "shot drop_martian"},
		{name: "a workload's address within a flow", hook: hook, packet: uplink().IPv4(w2, w1).UDP(1, 2), want: "shot drop_martian",
			after: []trial{
				{hook: loader.FromWorkload, packet: frame(w2, w1).UDP(1, 2)},
				{hook: loader.FromWorkload, packet: frame(w1, w2).UDP(2, 1)},
			}},
		{name: "the host's address within a flow", hook: hook, packet: uplink().IPv4(node4, w1).UDP(1, 2), want: "shot drop_martian",
			after: []trial{
				{hook: loader.ToWorkload, packet: frame(node4, w1).UDP(1, 2), want: "next pass_to_workload"},
				{hook: loader.FromWorkload, packet: frame(w1, node4).UDP(2, 1), want: "next pass_to_host"},
			}},
	})
}

// What the host itself sends.
func TestPacketsToTheNetwork(t *testing.T) {
	b := newBed(t)
	hook := loader.ToNetwork
	own := testbed.Ethernet(hostMAC, neighborMAC)
	same := func(t *testing.T, in, out []byte) {
		if !bytes.Equal(in, out) {
			t.Errorf("changed to %s", testbed.Text(out))
		}
	}
	const marked = 0x01000000
	b.fire(t, []trial{
		{name: "IPIP", hook: hook, packet: own.IPv4(node4, remoteIPIP4).TOS(0x12).TCP(4000, 80, "S"), want: "next pass_ipip",
			check: wire(func(uint16) testbed.Packet {
				return own.IPv4(node4, ipip4).TOS(0x12).IPv4(node4, remoteIPIP4).TOS(0x12).TCP(4000, 80, "S")
			})},
		{name: "VXLAN", hook: hook, packet: own.IPv4(node4, remoteVXLAN4).TCP(4000, 80, "S"), want: "next pass_vxlan",
			check: wire(func(port uint16) testbed.Packet {
				return vxlan(own, node4, vxlan4, port).Ethernet(vxlanMAC, peerVXLANMAC).IPv4(node4, remoteVXLAN4).TCP(4000, 80, "S")
			})},
		{name: "VXLAN 6", hook: hook, packet: own.IPv6(node6, remoteVXLAN6).Echo(1, 1), want: "next pass_vxlan",
			check: wire(func(port uint16) testbed.Packet {
				return vxlan(own, node6, vxlan6, port).Ethernet(vxlanMAC, peerVXLANMAC).IPv6(node6, remoteVXLAN6).Echo(1, 1)
			})},
		{name: "plain", hook: hook, packet: own.IPv4(node4, remotePlain4).UDP(1, 2), want: "next pass_to_node"},
		{name: "the world", hook: hook, packet: own.IPv4(node4, outside4).UDP(1, 2), want: "next pass_not_ours"},
		{name: "another node", hook: hook, packet: own.IPv4(node4, ipip4).UDP(1, 2), want: "next pass_not_ours"},
		{name: "ARP", hook: hook, packet: own.ARP(hostMAC, node4, "", "10.10.1.1"), want: "next pass_not_ours"},
		{name: "multicast", hook: hook, packet: own.IPv4(node4, "224.0.0.5").Protocol(89).Payload(44), want: "next pass_not_ours"},
		{name: "what we encapsulated", hook: hook, mark: marked, want: "next pass_to_node", check: same,
			packet: ipip(own, node4, ipip4).IPv4(w1, remoteIPIP4).UDP(1, 2)},
		{name: "what we forwarded", hook: hook, mark: marked | 7, packet: own.IPv4(w1, remoteIPIP4).UDP(1, 2), want: "next pass_to_node", check: same},
		{name: "another mark", hook: hook, mark: 7, packet: own.IPv4(node4, remotePlain4).UDP(1, 2), want: "next pass_to_node", check: same},
	})
	// A packet that left through from_workload carries the mark.
	var r loader.Result
	err := b.host.Do(func() (err error) {
		r, err = b.programs.Run(loader.FromWorkload, frame(w1, remoteIPIP4).UDP(1, 2).Bytes(), loader.Context{Ifindex: uint32(b.index["cali1"]), Mark: 7})
		return err
	})
	if err != nil || r.Mark != marked|7 {
		t.Errorf("mark %#x %v", r.Mark, err)
	}
}

// ICMP errors belong to the flow that they quote.
func TestICMPErrors(t *testing.T) {
	b := newBed(t)
	workload, network := loader.FromWorkload, loader.FromNetwork
	local := []trial{{hook: workload, packet: frame(w1, w2).UDP(1000, 53)}}
	out := []trial{{hook: workload, packet: frame(w1, outside4).UDP(1000, 53)}}
	out6 := []trial{{hook: workload, packet: frame(x1, outside6).UDP(1000, 53)}}
	in := []trial{{hook: network, packet: frame(outside4, w1).UDP(1000, 53)}}
	echo := []trial{{hook: workload, packet: frame(w1, outside4).Echo(7, 1)}}
	tunnel := []trial{{hook: workload, packet: frame(w1, remoteIPIP4).UDP(1000, 53)}}
	quote := func(from, to string) testbed.Packet { return testbed.IPv4(from, to).UDP(1000, 53).Payload(8) }
	quote6 := testbed.IPv6(x1, outside6).UDP(1000, 53).Payload(8)
	unchecked := func(*testing.T, []byte, []byte) {}
	b.fire(t, []trial{
		{name: "port unreachable", hook: workload, packet: frame(w2, w1).ICMPError(3, 3, 0, quote(w1, w2)), after: local,
			want: "redirect pass_to_workload", check: unchecked},
		{name: "of a local flow, from elsewhere", hook: workload, on: "cali3", after: local,
			packet: frame(w3, w1).ICMPError(3, 3, 0, quote(w1, w2)), want: "shot drop_spoofed"},
		{name: "with the quoted source as its own", hook: workload, after: local,
			packet: frame(w1, w1).ICMPError(3, 3, 0, quote(w1, w2)), want: "shot drop_spoofed"},
		{name: "of no flow", hook: workload, packet: frame(w2, w1).ICMPError(3, 3, 0, quote(w1, w2)), want: "shot drop_no_flow"},
		{name: "of another flow", hook: workload, packet: frame(w2, w1).ICMPError(3, 3, 0, testbed.IPv4(w1, w2).UDP(1001, 53)), after: local, want: "shot drop_no_flow"},
		{name: "wrong direction", hook: workload, packet: frame(w1, w2).ICMPError(3, 3, 0, quote(w1, w2)), after: local, want: "shot drop_spoofed"},
		{name: "against policy of who opened", hook: workload, want: "redirect pass_to_workload", check: unchecked,
			packet: frame(w6, w5).ICMPError(3, 3, 0, quote(w5, w6)),
			after:  []trial{{hook: workload, packet: frame(w5, w6).UDP(1000, 53)}}},

		{name: "too big, by a router", hook: network, packet: frame("10.77.0.1", w1).ICMPError(3, 4, 1400, quote(w1, outside4)), after: out,
			want: "redirect pass_to_workload", check: unchecked},
		{name: "time exceeded, by a router", hook: network, packet: frame("10.77.0.1", w1).ICMPError(11, 0, 0, quote(w1, outside4)), after: out,
			want: "redirect pass_to_workload", check: unchecked},
		{name: "parameter problem", hook: network, packet: frame("10.77.0.1", w1).ICMPError(12, 0, 0, quote(w1, outside4)), after: out,
			want: "redirect pass_to_workload", check: unchecked},
		{name: "too big 6", hook: network, packet: frame("2001:db8:7::1", x1).ICMPError(2, 0, 1400, quote6), after: out6,
			want: "redirect pass_to_workload", check: unchecked},
		{name: "unreachable 6", hook: network, packet: frame(outside6, x1).ICMPError(1, 4, 0, quote6), after: out6,
			want: "redirect pass_to_workload", check: unchecked},
		{name: "of an echo", hook: network, packet: frame("10.77.0.1", w1).ICMPError(11, 0, 0, testbed.IPv4(w1, outside4).Echo(7, 1)), after: echo,
			want: "redirect pass_to_workload", check: unchecked},
		{name: "of no flow, from the network", hook: network, packet: frame("10.77.0.1", w1).ICMPError(11, 0, 0, quote(w1, outside4)), want: "shot drop_no_flow"},
		{name: "to the world", hook: workload, packet: frame(w1, outside4).ICMPError(3, 3, 0, quote(outside4, w1)), after: in, want: "next pass_to_stack"},
		{name: "in IPIP", hook: network, after: tunnel, want: "redirect pass_to_workload", check: unchecked,
			packet: ipip(uplink(), ipip4, node4).IPv4(remoteIPIP4, w1).ICMPError(3, 3, 0, quote(w1, remoteIPIP4))},
		{name: "in IPIP, by the far node", hook: network, after: tunnel, want: "redirect pass_to_workload", check: unchecked,
			packet: ipip(uplink(), ipip4, node4).IPv4(ipip4, w1).ICMPError(11, 0, 0, quote(w1, remoteIPIP4))},
		{name: "about the tunnel, to the host", hook: network, want: "next pass_not_ours",
			packet: uplink().IPv4("10.77.0.1", node4).ICMPError(3, 4, 1400, testbed.IPv4(node4, ipip4).IPv4(w1, remoteIPIP4).UDP(1, 2))},
		{name: "an error makes no flow", hook: workload, packet: frame(w2, w1).UDP(53, 1000), want: "redirect pass_to_workload", check: unchecked,
			after: []trial{{hook: workload, packet: frame(w2, w1).ICMPError(3, 3, 0, quote(w1, w2)), want: "shot drop_no_flow"}}},
	})
}
