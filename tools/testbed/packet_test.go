package testbed

import (
	"slices"
	"testing"
)

func TestPacketText(t *testing.T) {
	const a, b = "02:00:00:00:00:01", "02:00:00:00:00:02"
	eth := Ethernet(a, b)
	ip := eth.IPv4("10.0.0.1", "10.0.0.2")
	ip6 := eth.IPv6("fd00::1", "fd00::2")
	for _, test := range []struct {
		packet Packet
		want   string
	}{
		{ip.TCP(1, 80, "S"), "IP 10.0.0.1 > 10.0.0.2: TCP 1 > 80 [S] ttl 64"},
		{ip.TTL(3).TOS(0x10).TCP(1, 80, "PA").Payload(5), "IP 10.0.0.1 > 10.0.0.2: TCP 1 > 80 [PA] len 5 ttl 3 tos 0x10"},
		{ip.IPv4Options(3).UDP(1, 53).Payload(8), "IP 10.0.0.1 > 10.0.0.2: UDP 1 > 53 len 8 ttl 64"},
		{ip6.UDP(1, 53), "IP6 fd00::1 > fd00::2: UDP 1 > 53 ttl 64"},
		{ip6.Extension(0, 8).Extension(60, 16).TCP(1, 2, "A"), "IP6 fd00::1 > fd00::2: TCP 1 > 2 [A] ttl 64"},
		{ip.Echo(7, 1).Payload(4), "IP 10.0.0.1 > 10.0.0.2: ICMP echo 7 1 len 4 ttl 64"},
		{ip.EchoReply(7, 1), "IP 10.0.0.1 > 10.0.0.2: ICMP echo reply 7 1 ttl 64"},
		{ip6.Echo(7, 1).Payload(4), "IP6 fd00::1 > fd00::2: ICMPv6 echo 7 1 len 4 ttl 64"},
		{ip6.EchoReply(7, 1), "IP6 fd00::1 > fd00::2: ICMPv6 echo reply 7 1 ttl 64"},
		{
			ip.ICMPError(3, 4, 1400, IPv4("10.0.0.2", "10.0.0.1").UDP(53, 1).Payload(3)),
			"IP 10.0.0.1 > 10.0.0.2: ICMP too big mtu 1400 (IP 10.0.0.2 > 10.0.0.1: UDP 53 > 1 len 3 ttl 64) ttl 64",
		},
		{
			ip6.ICMPError(2, 0, 1280, IPv6("fd00::2", "fd00::1").TCP(80, 1, "A")),
			"IP6 fd00::1 > fd00::2: ICMPv6 too big mtu 1280 (IP6 fd00::2 > fd00::1: TCP 80 > 1 [A] ttl 64) ttl 64",
		},
		{
			ip.ICMPError(3, 1, 0, IPv4("10.0.0.2", "10.0.0.1").TCP(80, 1, "A")),
			"IP 10.0.0.1 > 10.0.0.2: ICMP unreachable 1 (IP 10.0.0.2 > 10.0.0.1: TCP 80 > 1 [A] ttl 64) ttl 64",
		},
		{
			eth.IPv4("10.10.1.2", "10.10.2.2").TTL(63).IPv4("10.0.0.1", "10.0.0.2").UDP(1, 2),
			"IP 10.10.1.2 > 10.10.2.2: IPIP ttl 63 / IP 10.0.0.1 > 10.0.0.2: UDP 1 > 2 ttl 64",
		},
		{
			eth.IPv4("10.10.1.2", "10.10.2.2").UDP(4000, 4789).VXLAN(4096).Ethernet(b, a).IPv6("fd00::1", "fd00::2").TCP(1, 2, "SA"),
			"IP 10.10.1.2 > 10.10.2.2: VXLAN 4096 ttl 64 / IP6 fd00::1 > fd00::2: TCP 1 > 2 [SA] ttl 64",
		},
		{ip.Fragment(9, 0, true).UDP(1, 2).Payload(8), "IP 10.0.0.1 > 10.0.0.2: UDP fragment 9 at 0+ ttl 64"},
		{ip.Fragment(9, 16, false).Protocol(17).Payload(8), "IP 10.0.0.1 > 10.0.0.2: UDP fragment 9 at 16 ttl 64"},
		{ip6.Fragment(9, 16, false).Protocol(17).Payload(8), "IP6 fd00::1 > fd00::2: UDP fragment 9 at 16 ttl 64"},
		{ip.Protocol(132).Payload(12), "IP 10.0.0.1 > 10.0.0.2: protocol 132 ttl 64"},
		{eth.ARP(a, "10.0.0.1", "", "10.0.0.2"), "ARP who has 10.0.0.2 tell 10.0.0.1"},
		{eth.ARP(a, "10.0.0.1", b, "10.0.0.2"), "ARP 10.0.0.1 is at 020000000001"},
		{IPv4("10.0.0.1", "10.0.0.2").UDP(1, 2), "IP 10.0.0.1 > 10.0.0.2: UDP 1 > 2 ttl 64"},
	} {
		if got := test.packet.String(); got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
	}
	vxlan := eth.IPv4("10.10.1.2", "10.10.2.2").UDP(4000, 4789).VXLAN(4096).Ethernet(b, a).IPv4("10.0.0.1", "10.0.0.2").UDP(1, 2)
	want := a + " > " + b + " IP 10.10.1.2 > 10.10.2.2: VXLAN 4096 ttl 64 / " + b + " > " + a + " IP 10.0.0.1 > 10.0.0.2: UDP 1 > 2 ttl 64"
	if got := TextMAC(vxlan.Bytes()); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestChecksums(t *testing.T) {
	frame := Ethernet("02:00:00:00:00:01", "02:00:00:00:00:02").IPv4("10.0.0.1", "10.0.0.2").TCP(1, 80, "S").Payload(3).Bytes()
	if bad := BadChecksums(frame); len(bad) != 0 {
		t.Errorf("fresh packet: %v", bad)
	}
	frame[len(frame)-1]++
	if bad := BadChecksums(frame); !slices.Equal(bad, []string{"TCP"}) {
		t.Errorf("changed payload: %v", bad)
	}
	frame[14+8]-- // TTL
	if bad := BadChecksums(frame); !slices.Equal(bad, []string{"IPv4", "TCP"}) {
		t.Errorf("changed TTL: %v", bad)
	}
}

// TestPacketsShareNothing builds two packets from one start.
func TestPacketsShareNothing(t *testing.T) {
	start := IPv4("10.0.0.1", "10.0.0.2")
	a, b := start.UDP(1, 2), start.TCP(3, 4, "")
	if got := a.String() + b.String(); got != "IP 10.0.0.1 > 10.0.0.2: UDP 1 > 2 ttl 64IP 10.0.0.1 > 10.0.0.2: TCP 3 > 4 [] ttl 64" {
		t.Error(got)
	}
}
