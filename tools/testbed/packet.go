package testbed

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Packet is a packet under construction, outermost header first:
//
//	Ethernet("02::1", …).IPv4("10.0.0.1", "10.0.0.2").TCP(1, 80, "S").Bytes()
//
// Every method returns a new Packet, so that the rows of a table can start from
// a common one. Lengths, checksums and protocol numbers are filled in by Bytes.
type Packet struct {
	steps []func(*stack)
}

// stack is the headers of one packet while it is put together.
type stack struct {
	layers  []gopacket.SerializableLayer
	network gopacket.NetworkLayer // what the next checksum is about
}

// Ethernet starts a packet with an Ethernet header; MACs are written
// "02:00:00:00:00:01".
func Ethernet(src, dst string) Packet { return Packet{}.Ethernet(src, dst) }

// IPv4 starts a packet without an Ethernet header.
func IPv4(src, dst string) Packet { return Packet{}.IPv4(src, dst) }

// IPv6 starts a packet without an Ethernet header.
func IPv6(src, dst string) Packet { return Packet{}.IPv6(src, dst) }

// IP starts a packet of the addresses' family without an Ethernet header.
func IP(src, dst netip.Addr) Packet { return Packet{}.IP(src, dst) }

func (p Packet) with(step func(*stack)) Packet {
	return Packet{steps: append(slices.Clip(p.steps), step)}
}

// add puts a header under the others and names it in the one before.
func (s *stack) add(l gopacket.SerializableLayer, ether layers.EthernetType, proto layers.IPProtocol) {
	if len(s.layers) > 0 {
		switch above := s.layers[len(s.layers)-1].(type) {
		case *ethernet:
			above.EthernetType = ether
		case *layers.IPv4:
			above.Protocol = proto
		case *layers.IPv6:
			above.NextHeader = proto
		case *layers.IPv6Fragment:
			above.NextHeader = proto
		case *extension:
			above.next = proto
		}
	}
	s.layers = append(s.layers, l)
}

// top returns the last header of type L; a step that needs one that is not
// there is a mistake in the test.
func top[L any](s *stack) L {
	for _, l := range slices.Backward(s.layers) {
		if found, ok := l.(L); ok {
			return found
		}
	}
	panic(fmt.Sprintf("testbed: the packet has no %T yet", *new(L)))
}

func (s *stack) isIPv6() bool {
	_, ok := s.network.(*layers.IPv6)
	return ok
}

// Ethernet adds an Ethernet header, the inner one after VXLAN.
func (p Packet) Ethernet(src, dst string) Packet {
	return p.with(func(s *stack) {
		s.add(&ethernet{layers.Ethernet{SrcMAC: mustMAC(src), DstMAC: mustMAC(dst)}}, layers.EthernetTypeTransparentEthernetBridging, 0)
	})
}

// ARP adds an ARP packet: a request, or the answer if the target's MAC is given.
func (p Packet) ARP(senderMAC, sender, targetMAC, target string) Packet {
	return p.with(func(s *stack) {
		a := &layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4,
			HwAddressSize: 6, ProtAddressSize: 4, Operation: layers.ARPRequest,
			SourceHwAddress: mustMAC(senderMAC), SourceProtAddress: netip.MustParseAddr(sender).AsSlice(),
			DstHwAddress: make([]byte, 6), DstProtAddress: netip.MustParseAddr(target).AsSlice(),
		}
		if targetMAC != "" {
			a.Operation, a.DstHwAddress = layers.ARPReply, mustMAC(targetMAC)
		}
		s.add(a, layers.EthernetTypeARP, 0)
	})
}

// IPv4 adds an IPv4 header, TTL 64; under another IP header that is IPIP.
func (p Packet) IPv4(src, dst string) Packet {
	return p.with(func(s *stack) {
		ip := &layers.IPv4{
			Version: 4, TTL: 64,
			SrcIP: netip.MustParseAddr(src).AsSlice(), DstIP: netip.MustParseAddr(dst).AsSlice(),
		}
		s.add(ip, layers.EthernetTypeIPv4, layers.IPProtocolIPv4)
		s.network = ip
	})
}

// IPv6 adds an IPv6 header, hop limit 64.
func (p Packet) IPv6(src, dst string) Packet {
	return p.with(func(s *stack) {
		ip := &layers.IPv6{
			Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolNoNextHeader,
			SrcIP: netip.MustParseAddr(src).AsSlice(), DstIP: netip.MustParseAddr(dst).AsSlice(),
		}
		s.add(ip, layers.EthernetTypeIPv6, layers.IPProtocolIPv6)
		s.network = ip
	})
}

// IP adds an IP header of the addresses' family.
func (p Packet) IP(src, dst netip.Addr) Packet {
	if src.Is4() {
		return p.IPv4(src.String(), dst.String())
	}
	return p.IPv6(src.String(), dst.String())
}

// TTL sets the TTL or hop limit of the last IP header.
func (p Packet) TTL(n uint8) Packet {
	return p.with(func(s *stack) {
		if s.isIPv6() {
			top[*layers.IPv6](s).HopLimit = n
		} else {
			top[*layers.IPv4](s).TTL = n
		}
	})
}

// TOS sets the TOS or traffic class of the last IP header.
func (p Packet) TOS(n uint8) Packet {
	return p.with(func(s *stack) {
		if s.isIPv6() {
			top[*layers.IPv6](s).TrafficClass = n
		} else {
			top[*layers.IPv4](s).TOS = n
		}
	})
}

// DF forbids to fragment the packet.
func (p Packet) DF() Packet {
	return p.with(func(s *stack) { top[*layers.IPv4](s).Flags |= layers.IPv4DontFragment })
}

// Protocol sets the number of what follows the last IP header, for what the
// builder does not know.
func (p Packet) Protocol(number uint8) Packet {
	return p.with(func(s *stack) {
		switch ip := s.layers[len(s.layers)-1].(type) {
		case *layers.IPv4:
			ip.Protocol = layers.IPProtocol(number)
		case *layers.IPv6:
			ip.NextHeader = layers.IPProtocol(number)
		case *layers.IPv6Fragment:
			ip.NextHeader = layers.IPProtocol(number)
		case *extension:
			ip.next = layers.IPProtocol(number)
		}
	})
}

// IPv4Options adds n options of four no-operations each to the last IPv4 header.
// The decoder of the library cannot read a list that has an end.
func (p Packet) IPv4Options(n int) Packet {
	return p.with(func(s *stack) {
		ip := top[*layers.IPv4](s)
		for range 4 * n {
			ip.Options = append(ip.Options, layers.IPv4Option{OptionType: 1, OptionLength: 1})
		}
	})
}

// Fragment makes the packet a fragment: offset in bytes, a multiple of 8. What is
// added after it is the fragment's content.
func (p Packet) Fragment(id uint16, offset int, more bool) Packet {
	return p.with(func(s *stack) {
		if s.isIPv6() {
			s.add(&layers.IPv6Fragment{
				Identification: uint32(id), FragmentOffset: uint16(offset / 8), MoreFragments: more,
			}, 0, layers.IPProtocolIPv6Fragment)
			return
		}
		ip := top[*layers.IPv4](s)
		ip.Id, ip.FragOffset = id, uint16(offset/8)
		if more {
			ip.Flags |= layers.IPv4MoreFragments
		}
	})
}

// Extension adds an IPv6 extension header with this protocol number and size in
// bytes, a multiple of 8, all padding.
func (p Packet) Extension(proto uint8, size int) Packet {
	return p.with(func(s *stack) {
		s.add(&extension{size: size, next: layers.IPProtocolNoNextHeader}, 0, layers.IPProtocol(proto))
	})
}

// TCP adds a TCP header; flags are letters of "SAFRPU".
func (p Packet) TCP(src, dst uint16, flags string) Packet {
	return p.with(func(s *stack) {
		has := func(f string) bool { return strings.Contains(flags, f) }
		s.add(&layers.TCP{
			SrcPort: layers.TCPPort(src), DstPort: layers.TCPPort(dst), Window: 65535,
			SYN: has("S"), ACK: has("A"), FIN: has("F"), RST: has("R"), PSH: has("P"), URG: has("U"),
		}, 0, layers.IPProtocolTCP)
	})
}

// Seq sets the numbers of the TCP header.
func (p Packet) Seq(seq, ack uint32) Packet {
	return p.with(func(s *stack) {
		t := top[*layers.TCP](s)
		t.Seq, t.Ack = seq, ack
	})
}

// UDP adds a UDP header.
func (p Packet) UDP(src, dst uint16) Packet {
	return p.with(func(s *stack) {
		s.add(&layers.UDP{SrcPort: layers.UDPPort(src), DstPort: layers.UDPPort(dst)}, 0, layers.IPProtocolUDP)
	})
}

// VXLAN adds a VXLAN header, after UDP; the inner Ethernet header follows.
func (p Packet) VXLAN(vni uint32) Packet {
	return p.with(func(s *stack) { s.add(&layers.VXLAN{ValidIDFlag: true, VNI: vni}, 0, 0) })
}

// ICMP adds an ICMP or, under IPv6, ICMPv6 header whose second word is rest.
func (p Packet) ICMP(typ, code uint8, rest uint32) Packet {
	return p.with(func(s *stack) {
		if !s.isIPv6() {
			s.add(&layers.ICMPv4{
				TypeCode: layers.CreateICMPv4TypeCode(typ, code), Id: uint16(rest >> 16), Seq: uint16(rest),
			}, 0, layers.IPProtocolICMPv4)
			return
		}
		s.add(&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(typ, code)}, 0, layers.IPProtocolICMPv6)
		s.add(word(rest), 0, 0)
	})
}

// Echo adds an echo request.
func (p Packet) Echo(id, seq uint16) Packet { return p.echo(id, seq, echoRequest4, echoRequest6) }

// EchoReply adds the answer to one.
func (p Packet) EchoReply(id, seq uint16) Packet { return p.echo(id, seq, echoReply4, echoReply6) }

func (p Packet) echo(id, seq uint16, type4, type6 uint8) Packet {
	return p.with(func(s *stack) {
		typ := type4
		if s.isIPv6() {
			typ = type6
		}
		for _, step := range (Packet{}).ICMP(typ, 0, uint32(id)<<16|uint32(seq)).steps {
			step(s)
		}
	})
}

// ICMPError adds an ICMP error about another packet, quoted from its IP header
// on: rest is the MTU where the type has one.
func (p Packet) ICMPError(typ, code uint8, rest uint32, about Packet) Packet {
	return p.ICMP(typ, code, rest).Raw(about.Bytes())
}

// Payload adds n bytes, counting up from 0.
func (p Packet) Payload(n int) Packet {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return p.Raw(b)
}

// Raw adds bytes.
func (p Packet) Raw(b []byte) Packet {
	return p.with(func(s *stack) { s.layers = append(s.layers, gopacket.Payload(b)) })
}

// Bytes returns the packet as it is on the wire.
func (p Packet) Bytes() []byte {
	s := &stack{}
	for _, step := range p.steps {
		step(s)
	}
	joinChecksums(s.layers)
	buf := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, options, s.layers...); err != nil {
		panic("testbed: " + err.Error())
	}
	return buf.Bytes()
}

// joinChecksums tells each transport header the IP header above it, which its
// checksum covers.
func joinChecksums[L any](all []L) {
	var network gopacket.NetworkLayer
	for _, l := range all {
		switch l := any(l).(type) {
		case gopacket.NetworkLayer:
			network = l
		case interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}:
			if network != nil {
				l.SetNetworkLayerForChecksum(network) // fails for none but IP
			}
		}
	}
}

// String describes the packet as Text does.
func (p Packet) String() string {
	if len(p.steps) == 0 {
		return ""
	}
	b := p.Bytes()
	s := &stack{}
	p.steps[0](s)
	if _, ok := s.layers[0].(*ethernet); ok {
		return Text(b)
	}
	return TextIP(b)
}

func mustMAC(s string) net.HardwareAddr {
	mac, err := net.ParseMAC(s)
	if err != nil {
		panic("testbed: " + err.Error())
	}
	return mac
}

// ethernet is an Ethernet header that does not pad short frames, as a veth does
// not.
type ethernet struct{ layers.Ethernet }

func (e *ethernet) SerializeTo(b gopacket.SerializeBuffer, _ gopacket.SerializeOptions) error {
	h, err := b.PrependBytes(14)
	if err != nil {
		return err
	}
	copy(h, e.DstMAC)
	copy(h[6:], e.SrcMAC)
	binary.BigEndian.PutUint16(h[12:], uint16(e.EthernetType))
	return nil
}

// extension is an IPv6 extension header that holds nothing but padding.
type extension struct {
	next layers.IPProtocol
	size int
}

func (e *extension) LayerType() gopacket.LayerType { return layers.LayerTypeIPv6HopByHop }

func (e *extension) SerializeTo(b gopacket.SerializeBuffer, _ gopacket.SerializeOptions) error {
	h, err := b.PrependBytes(e.size)
	if err != nil {
		return err
	}
	clear(h)
	h[0], h[1] = byte(e.next), byte(e.size/8-1)
	h[2], h[3] = 1, byte(e.size-4) // PadN
	return nil
}

// word is the second word of an ICMPv6 header.
type word uint32

func (w word) LayerType() gopacket.LayerType { return gopacket.LayerTypePayload }

func (w word) SerializeTo(b gopacket.SerializeBuffer, _ gopacket.SerializeOptions) error {
	h, err := b.PrependBytes(4)
	if err != nil {
		return err
	}
	binary.BigEndian.PutUint32(h, uint32(w))
	return nil
}
