package testbed

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Text describes an Ethernet frame in one line without its MACs:
//
//	IP 10.0.0.1 > 10.0.0.2: TCP 1 > 80 [S] ttl 64
//	IP 10.10.1.2 > 10.10.2.2: IPIP ttl 63 / IP6 fd00::1 > fd00::2: UDP 1 > 53 len 8 ttl 64
//	IP 10.10.1.2 > 10.10.2.2: VXLAN 4096 ttl 64 / IP …
//
// A VXLAN packet's UDP source port is left out, since any will do.
func Text(frame []byte) string { return describe(frame, layers.LayerTypeEthernet, false) }

// TextMAC is Text with "src > dst " before the headers that have MACs.
func TextMAC(frame []byte) string { return describe(frame, layers.LayerTypeEthernet, true) }

// TextIP describes a packet that starts with its IP header.
func TextIP(packet []byte) string { return describe(packet, ipLayer(packet), false) }

func ipLayer(packet []byte) gopacket.LayerType {
	if len(packet) > 0 && packet[0]>>4 == 6 {
		return layers.LayerTypeIPv6
	}
	return layers.LayerTypeIPv4
}

// section is the text of one IP header and what belongs to it.
type section struct {
	mac, head, body, tail string
}

func (s section) String() string {
	text := s.head
	if s.body != "" {
		text += " " + s.body
	}
	return s.mac + text + s.tail
}

func describe(data []byte, first gopacket.LayerType, macs bool) string {
	var done []string
	var now section
	next := func() {
		if now != (section{}) {
			done = append(done, now.String())
		}
		now = section{}
	}
	all := gopacket.NewPacket(data, first, gopacket.NoCopy).Layers()
	for i, l := range all {
		switch l := l.(type) {
		case *layers.Ethernet:
			next()
			if macs {
				now.mac = fmt.Sprintf("%s > %s ", l.SrcMAC, l.DstMAC)
			}
			if i == len(all)-1 || all[i+1].LayerType() == gopacket.LayerTypeDecodeFailure {
				now.head = fmt.Sprintf("ethertype %#04x", uint16(l.EthernetType))
			}
		case *layers.ARP:
			now.head = arpText(l)
		case *layers.IPv4:
			if now.head != "" {
				now.body = "IPIP"
				next()
			}
			now.head = fmt.Sprintf("IP %s > %s:", l.SrcIP, l.DstIP)
			now.body = protocolText(l.Protocol)
			if l.Flags&layers.IPv4MoreFragments != 0 || l.FragOffset != 0 {
				now.tail = fragmentText(uint32(l.Id), l.FragOffset, l.Flags&layers.IPv4MoreFragments != 0)
			}
			now.tail += fmt.Sprintf(" ttl %d%s", l.TTL, tosText(l.TOS))
		case *layers.IPv6:
			if now.head != "" {
				now.body = "IPIP"
				next()
			}
			now.head = fmt.Sprintf("IP6 %s > %s:", l.SrcIP, l.DstIP)
			now.body = protocolText(l.NextHeader)
			now.tail = fmt.Sprintf(" ttl %d%s", l.HopLimit, tosText(l.TrafficClass))
		case *layers.IPv6Fragment:
			now.body = protocolText(l.NextHeader)
			now.tail = fragmentText(l.Identification, l.FragmentOffset, l.MoreFragments) + now.tail
		case *layers.TCP:
			now.body = fmt.Sprintf("TCP %d > %d [%s]%s", l.SrcPort, l.DstPort, flagsText(l), lengthText(l.Payload))
		case *layers.UDP:
			now.body = fmt.Sprintf("UDP %d > %d%s", l.SrcPort, l.DstPort, lengthText(l.Payload))
		case *layers.VXLAN:
			now.body = fmt.Sprintf("VXLAN %d", l.VNI)
		case *layers.ICMPv4:
			now.body = icmpText(l.TypeCode.Type(), l.TypeCode.Code(), uint32(l.Id)<<16|uint32(l.Seq), l.Payload)
		case *layers.ICMPv6:
			// The library takes the second word for a part of what follows.
			if len(l.Payload) >= 4 {
				now.body = icmpv6Text(l.TypeCode.Type(), l.TypeCode.Code(), binary.BigEndian.Uint32(l.Payload), l.Payload[4:])
			}
		}
	}
	next()
	return strings.Join(done, " / ")
}

func arpText(a *layers.ARP) string {
	sender, _ := netip.AddrFromSlice(a.SourceProtAddress)
	target, _ := netip.AddrFromSlice(a.DstProtAddress)
	if a.Operation == layers.ARPRequest {
		return fmt.Sprintf("ARP who has %s tell %s", target, sender)
	}
	return fmt.Sprintf("ARP %s is at %x", sender, a.SourceHwAddress)
}

func protocolText(p layers.IPProtocol) string {
	switch p {
	case layers.IPProtocolTCP:
		return "TCP"
	case layers.IPProtocolUDP:
		return "UDP"
	case layers.IPProtocolICMPv4:
		return "ICMP"
	case layers.IPProtocolICMPv6:
		return "ICMPv6"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

func fragmentText(id uint32, offset uint16, more bool) string {
	plus := ""
	if more {
		plus = "+"
	}
	return fmt.Sprintf(" fragment %d at %d%s", id, int(offset)*8, plus)
}

func tosText(tos uint8) string {
	if tos == 0 {
		return ""
	}
	return fmt.Sprintf(" tos %#02x", tos)
}

func lengthText(payload []byte) string {
	if len(payload) == 0 {
		return ""
	}
	return fmt.Sprintf(" len %d", len(payload))
}

func flagsText(t *layers.TCP) string {
	text := ""
	for _, f := range []struct {
		set  bool
		name string
	}{{t.SYN, "S"}, {t.FIN, "F"}, {t.RST, "R"}, {t.PSH, "P"}, {t.ACK, "A"}, {t.URG, "U"}} {
		if f.set {
			text += f.name
		}
	}
	return text
}

func icmpText(typ, code uint8, rest uint32, payload []byte) string {
	switch typ {
	case layers.ICMPv4TypeEchoRequest, layers.ICMPv4TypeEchoReply:
		return "ICMP " + echoText(typ == layers.ICMPv4TypeEchoReply, rest, payload)
	case layers.ICMPv4TypeDestinationUnreachable:
		if code == layers.ICMPv4CodeFragmentationNeeded {
			return fmt.Sprintf("ICMP too big mtu %d (%s)", rest&0xffff, TextIP(payload))
		}
		return fmt.Sprintf("ICMP unreachable %d (%s)", code, TextIP(payload))
	case layers.ICMPv4TypeTimeExceeded:
		return fmt.Sprintf("ICMP time exceeded (%s)", TextIP(payload))
	}
	return fmt.Sprintf("ICMP type %d code %d", typ, code)
}

func icmpv6Text(typ, code uint8, rest uint32, payload []byte) string {
	switch typ {
	case layers.ICMPv6TypeEchoRequest, layers.ICMPv6TypeEchoReply:
		return "ICMPv6 " + echoText(typ == layers.ICMPv6TypeEchoReply, rest, payload)
	case layers.ICMPv6TypeDestinationUnreachable:
		return fmt.Sprintf("ICMPv6 unreachable %d (%s)", code, TextIP(payload))
	case layers.ICMPv6TypePacketTooBig:
		return fmt.Sprintf("ICMPv6 too big mtu %d (%s)", rest, TextIP(payload))
	case layers.ICMPv6TypeTimeExceeded:
		return fmt.Sprintf("ICMPv6 time exceeded (%s)", TextIP(payload))
	}
	if typ == layers.ICMPv6TypeNeighborSolicitation || typ == layers.ICMPv6TypeNeighborAdvertisement {
		kind := "who has"
		if typ == layers.ICMPv6TypeNeighborAdvertisement {
			kind = "here is"
		}
		if len(payload) >= 16 {
			target, _ := netip.AddrFromSlice(payload[:16])
			return fmt.Sprintf("ICMPv6 %s %s", kind, target)
		}
	}
	return fmt.Sprintf("ICMPv6 type %d code %d", typ, code)
}

func echoText(reply bool, rest uint32, payload []byte) string {
	kind := "echo"
	if reply {
		kind = "echo reply"
	}
	return fmt.Sprintf("%s %d %d%s", kind, rest>>16, rest&0xffff, lengthText(payload))
}

// BadChecksums names the headers of an Ethernet frame whose checksum is wrong. A
// frame captured where it was made has unfinished checksums; one that crossed
// the test's BPF program in test_run has not.
func BadChecksums(frame []byte) []string { return badChecksums(frame, layers.LayerTypeEthernet) }

// BadChecksumsIP is BadChecksums for a packet that starts with its IP header.
func BadChecksumsIP(packet []byte) []string { return badChecksums(packet, ipLayer(packet)) }

func badChecksums(data []byte, first gopacket.LayerType) []string {
	packet := gopacket.NewPacket(data, first, gopacket.Default)
	joinChecksums(packet.Layers())
	err, wrong := packet.VerifyChecksums()
	if err != nil {
		return []string{err.Error()}
	}
	var names []string
	for _, w := range wrong {
		// The two zeros of one's complement; the library knows one.
		if w.Actual == 0xffff && w.Correct == 0 {
			continue
		}
		names = append(names, w.Layer.LayerType().String())
	}
	return names
}
