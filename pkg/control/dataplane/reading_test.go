package dataplane

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/loader"
	"calico-xdp/pkg/policy"
)

// reading is a packet as a slow reader sees it. bad says why it is no packet that may pass
// a workload's interface.
type reading struct {
	bad            string
	ethertype      uint16
	source, target netip.Addr
	protocol       uint8
	ports          [2]uint16 // of source and destination; both the id of an echo
	icmp           uint16    // type << 8 | code
	flags          uint8     // TCP
	hops           uint8
	id             uint32 // of a fragmented packet
	part           string // "first" or "later" of one
	quoted         *reading
	discovery      bool // IPv6's, that has not been routed
	extended       bool // has IPv6 extension headers
	ecn            uint8
}

func bad(why string) reading { return reading{bad: why} }

// read reads what is behind an Ethernet header.
func read(ethertype uint16, b []byte) (r reading) {
	switch ethertype {
	case 0x0800:
		r = read4(b)
	case 0x86dd:
		r = read6(b)
	case 0x0806:
	default:
		r.bad = "it is not IP"
	}
	r.ethertype = ethertype
	return r
}

func read4(b []byte) reading {
	if len(b) < 20 || b[0]>>4 != 4 || b[0]&15 < 5 || int(binary.BigEndian.Uint16(b[2:])) > len(b) {
		return bad("no IPv4 header")
	}
	header, length := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if length < header {
		return bad("the IPv4 header ends too early")
	}
	b = b[:length] // what is behind its end is not of the packet
	r := reading{source: netip.AddrFrom4([4]byte(b[12:])), target: netip.AddrFrom4([4]byte(b[16:])), protocol: b[9], hops: b[8], ecn: b[1] & 3}
	field := binary.BigEndian.Uint16(b[6:])
	if more := field&0x2000 != 0; (more || field&0x1fff != 0) && isOddPart(len(b)-header, more) {
		return bad("no sender makes such a fragment")
	}
	if r.id = uint32(binary.LittleEndian.Uint16(b[4:])); field&0x1fff != 0 {
		r.part = "later"
		return r
	}
	if field&0x2000 != 0 {
		r.part = "first"
	}
	return r.upper(b[header:])
}

// isOddPart says of a fragment with so many bytes that it is none: but for the last one they
// have multiples of 8.
func isOddPart(bytes int, more bool) bool { return bytes <= 0 || more && bytes%8 != 0 }

func read6(b []byte) reading {
	if len(b) < 40 || b[0]>>4 != 6 || int(binary.BigEndian.Uint16(b[4:])) > len(b)-40 {
		return bad("no IPv6 header")
	}
	r := reading{source: netip.AddrFrom16([16]byte(b[8:])), target: netip.AddrFrom16([16]byte(b[24:])), protocol: b[6], hops: b[7], ecn: b[1] >> 4 & 3}
	if r.source.Is4In6() || r.target.Is4In6() {
		return bad("IPv4 in the clothes of IPv6")
	}
	payload := int(binary.BigEndian.Uint16(b[4:]))
	b = b[40:][:payload]
	whole := len(b)
	for i := 0; slices.Contains([]uint8{0, 43, 44, 51, 60}, r.protocol); i++ {
		if len(b) < 8 || r.protocol == 51 || r.protocol == 0 && i > 0 {
			return bad("extension headers")
		}
		next, size := b[0], 8+8*int(b[1])
		r.extended = true
		switch r.protocol {
		case 43:
			if b[3] != 0 {
				return bad("a source route")
			}
		case 44:
			size = 8
			field := binary.BigEndian.Uint16(b[2:])
			if isOddPart(payload-(whole-len(b))-8, field&1 != 0) {
				return bad("no sender makes such a fragment")
			}
			r.id = binary.LittleEndian.Uint32(b[4:])
			if r.part = "first"; field&0xfff8 != 0 {
				r.protocol, r.part = next, "later"
				return r
			} else if field&1 == 0 {
				r.part = ""
			}
		}
		if r.protocol = next; len(b) < size {
			return bad("extension headers end too early")
		}
		b = b[size:]
		hidden := reading{protocol: next}
		if len(b) > 0 {
			hidden.icmp = uint16(b[0]) << 8
		}
		if hidden.isError() || next == 58 && len(b) > 0 && b[0] >= 133 && b[0] <= 137 {
			return bad("what must not be behind extension headers")
		}
	}
	return r.upper(b)
}

// upper reads what is behind the IP header.
func (r reading) upper(b []byte) reading {
	need := map[uint8]int{6: 20, 17: 4, 132: 4, 136: 4, 1: 8, 58: 8}[r.protocol]
	if r.extended && r.protocol == 6 {
		need = 14 // its flags are all that is looked at there
	}
	if len(b) < need {
		return bad("no header of its protocol")
	}
	switch r.protocol {
	case 6:
		r.flags = b[13]
		fallthrough
	case 17, 132, 136:
		r.ports = [2]uint16{binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])}
	case 1, 58:
		r.icmp = binary.BigEndian.Uint16(b)
		is6 := r.protocol == 58
		if r.isError() {
			quoted := readQuoted(b[8:], r.source.Is6())
			if quoted.bad != "" {
				return bad("an error that quotes nothing")
			}
			r.quoted = &quoted
			return r
		}
		if isEcho(r.protocol, b[0]) {
			id := binary.BigEndian.Uint16(b[4:])
			r.ports = [2]uint16{id, id}
		}
		r.discovery = is6 && r.source.Is6() && b[0] >= 133 && b[0] <= 137 && r.hops == 255
	}
	return r
}

func (r reading) isError() bool {
	typ := r.icmp >> 8
	return r.protocol == 1 && (typ == 3 || typ == 11 || typ == 12) || r.protocol == 58 && typ >= 1 && typ <= 4
}

// readQuoted reads what an error quotes: the beginning of a packet, whose ends and ports
// are all that counts.
func readQuoted(b []byte, six bool) reading {
	var r reading
	header := 40
	if !six {
		if len(b) < 20 || b[0]>>4 != 4 || b[0]&15 < 5 {
			return bad("no IPv4 header")
		}
		r.source, r.target, r.protocol = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:])), b[9]
		if header = int(b[0]&15) * 4; binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
			return bad("a later fragment has no ports")
		}
	} else {
		if len(b) < 40 || b[0]>>4 != 6 {
			return bad("no IPv6 header")
		}
		r.source, r.target, r.protocol = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:])), b[6]
		if r.source.Is4In6() || r.target.Is4In6() {
			return bad("IPv4 in the clothes of IPv6")
		}
		if r.protocol == 44 {
			if header = 48; len(b) < header || binary.BigEndian.Uint16(b[42:])&0xfff8 != 0 {
				return bad("a later fragment has no ports")
			}
			r.protocol = b[40]
		}
	}
	need := map[uint8]int{6: 4, 17: 4, 132: 4, 136: 4, 1: 8, 58: 8}[r.protocol]
	if len(b) < header+need {
		return bad("no header of its protocol")
	}
	switch b = b[header:]; {
	case need == 4:
		r.ports = [2]uint16{binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])}
	case need == 8 && isEcho(r.protocol, b[0]):
		id := binary.BigEndian.Uint16(b[4:])
		r.ports = [2]uint16{id, id}
	}
	return r
}

func isEcho(protocol, typ uint8) bool {
	return protocol == 1 && (typ == 8 || typ == 0) || protocol == 58 && (typ == 128 || typ == 129)
}

func (r reading) tuple() tuple {
	return tuple{netip.AddrPortFrom(r.source, r.ports[0]), netip.AddrPortFrom(r.target, r.ports[1]), r.protocol}
}

func (t tuple) back() tuple { return tuple{t.to, t.from, t.protocol} }

// packet is the packet as policy sees it.
func (r reading) packet() policy.Packet {
	p := policy.Packet{Source: r.source, Destination: r.target, Protocol: r.protocol, SourcePort: r.ports[0], DestinationPort: r.ports[1]}
	if r.protocol == 1 || r.protocol == 58 {
		p.SourcePort, p.DestinationPort = 0, r.icmp
	}
	return p
}

// says is what the resources say about a packet.
func (g *gauntlet) says(k api.Key, stage, direction string, p policy.Packet) policy.Action {
	question := fmt.Sprint(k.Name, stage, direction, p)
	if allowed, known := g.judged[question]; known {
		return map[bool]policy.Action{true: policy.Allow, false: policy.Deny}[allowed]
	}
	var verdict policy.Action
	if stage == "" {
		verdict = last(g.oracle.Judge(k, direction, p))
	} else if verdict = last(g.oracle.JudgeHost(k, stage, direction, p)); verdict == policy.Continue {
		verdict = policy.Allow
	}
	g.judged[question] = verdict == policy.Allow
	return verdict
}

var block4, block6 = netip.MustParsePrefix("192.168.1.0/26"), netip.MustParsePrefix("fd01::/122")

func inBlock(a netip.Addr) bool { return block4.Contains(a) || block6.Contains(a) }

func isHosts(a netip.Addr) bool {
	return a == netip.MustParseAddr(node4) || a == netip.MustParseAddr(node6) || a.Is6() && a.IsLinkLocalUnicast()
}

func isGroup(a netip.Addr) bool {
	return a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// known says whether a packet is of a flow that one which may pass has opened.
func (g *gauntlet) known(t tuple) bool { return g.opened[t] || g.opened[t.back()] }

// forbids says why a packet must not pass; "" if nothing is known against it. It knows
// flows, and none that has ended, so it is never stricter than it has to be. delivered says
// that the packet has gone to where it ends, not to the host's stack.
func (g *gauntlet) forbids(s sample, delivered bool) string {
	r := read(binary.BigEndian.Uint16(s.data[12:]), s.data[14:])
	switch s.hook {
	case loader.FromWorkload:
		return g.forbidsFrom(s, r)
	case loader.ToWorkload:
		return g.forbidsTo(s, r)
	case loader.FromNetwork:
		return g.forbidsIn(s, r, delivered)
	case loader.XDPNetwork:
		if why := martian(r); why != "" {
			return why
		}
		if r.extended {
			return "" // from_network asks about it
		}
		return g.forbidsRaw(r, "ingress")
	}
	if r.toNode() {
		return "" // it goes through a tunnel, where that policy is not asked
	}
	return g.forbidsRaw(r, "egress")
}

// toNode says whether the packet is for a workload of another node.
func (r reading) toNode() bool {
	for _, p := range []string{"192.168.3.0/26", "192.168.4.0/26", "192.168.5.0/26", "192.168.6.0/26", "fd03::/122", "fd05::/122"} {
		if netip.MustParsePrefix(p).Contains(r.target) {
			return true
		}
	}
	return false
}

// forbidsRaw is what the untracked policy of the uplink says of a packet that it can judge.
func (g *gauntlet) forbidsRaw(r reading, direction string) string {
	if r.bad != "" || !r.source.IsValid() || r.part != "" || r.quoted != nil || r.discovery || isGroup(r.target) {
		return ""
	}
	if g.says(g.hep, "untracked", direction, r.packet()) == policy.Deny {
		return "untracked policy denies it"
	}
	return ""
}

// martian says that a source is one that no network has.
func martian(r reading) string {
	a := r.source
	if r.bad != "" || !a.IsValid() || r.discovery {
		return ""
	}
	if isGroup(r.target) && a.IsUnspecified() {
		return ""
	}
	switch {
	case a.Is4() && (a.As4()[0] == 0 || a.As4()[0] == 127), isGroup(a), a.Is6() && (a.IsLoopback() || a.IsUnspecified()):
		return "no network has its source"
	case a == netip.MustParseAddr(node4), a == netip.MustParseAddr(node6):
		return "its source is this node"
	}
	return ""
}

// forbidsFrom is about what a workload sends.
func (g *gauntlet) forbidsFrom(s sample, r reading) string {
	var n int
	fmt.Sscanf(s.on, "cali%d", &n)
	mac := g.state.Dataplane.Endpoints[g.keys[n]].MAC
	ownMAC := n == plainLink || bytes.Equal(s.data[6:12], mac[:])
	owns := func(a netip.Addr) bool {
		return g.owner[a] == n || n == first && g.spare.Contains(a) && g.owner[a] == 0
	}
	if r.bad != "" {
		return r.bad
	}
	if r.ethertype == 0x0806 {
		b := s.data[14:]
		if len(b) < 28 {
			return "half an ARP packet"
		}
		sender := netip.AddrFrom4([4]byte(b[14:]))
		if sender.IsUnspecified() && binary.BigEndian.Uint16(b[6:]) == 1 {
			return ""
		}
		if !owns(sender) || n != plainLink && (!ownMAC || !bytes.Equal(b[8:14], mac[:])) {
			return "ARP for somebody else"
		}
		return ""
	}
	if r.discovery {
		switch typ := r.icmp >> 8; {
		case typ == 134 || typ == 137:
			return "a router's words"
		case !isGroup(r.target) && !isHosts(r.target):
			return "discovery beyond the host"
		case r.source.IsLinkLocalUnicast() || r.source.IsUnspecified():
			return ""
		case !owns(r.source) || !ownMAC:
			return "discovery for somebody else"
		}
		return ""
	}
	if isGroup(r.target) {
		return "multicast"
	}
	if r.quoted != nil {
		q := r.quoted.tuple()
		if r.source != q.to.Addr() || !g.known(q) {
			return "an error about no flow of its own"
		}
		return ""
	}
	if !owns(r.source) || !ownMAC {
		return "its source is not the workload's"
	}
	if r.part == "later" {
		if !g.begun[fragment{s.hook, r.source, r.target, r.id, r.protocol}] {
			return "its first fragment has not passed"
		}
		return ""
	}
	if g.known(r.tuple()) {
		return ""
	}
	if g.says(g.keys[n], "", "egress", r.packet()) != policy.Allow {
		return "egress policy denies it"
	}
	return g.forbidsDelivery(r)
}

// forbidsDelivery is about who receives a packet that opens a flow.
func (g *gauntlet) forbidsDelivery(r reading) string {
	m := g.owner[r.target]
	if m == 0 && inBlock(r.target) {
		return "nobody has its destination"
	}
	if m != 0 && g.says(g.keys[m], "", "ingress", r.packet()) != policy.Allow {
		return "ingress policy denies it"
	}
	return ""
}

// forbidsTo is about what the host's stack gives to a workload.
func (g *gauntlet) forbidsTo(s sample, r reading) string {
	if r.ethertype == 0x0806 || r.discovery {
		return ""
	}
	if r.bad != "" {
		return r.bad
	}
	if isGroup(r.target) {
		return "multicast"
	}
	if r.quoted != nil {
		if s.from != "" && !g.known(r.quoted.tuple()) {
			return "an error about no flow"
		}
		return ""
	}
	if r.part == "later" {
		if !g.begun[fragment{s.hook, r.source, r.target, r.id, r.protocol}] {
			return "its first fragment has not passed"
		}
		return ""
	}
	if g.known(r.tuple()) {
		return ""
	}
	if g.owner[r.target] == 0 {
		return "nobody has its destination"
	}
	if isHosts(r.source) && s.from == "" {
		return ""
	}
	if isHosts(r.source) && s.from == s.on {
		r.source = r.target // it has sent that to itself, and the host's stack has masqueraded it
	}
	if a := g.owner[r.source]; a != 0 && g.says(g.keys[a], "", "egress", r.packet()) != policy.Allow {
		return "egress policy denies it"
	}
	return g.forbidsDelivery(r)
}

// forbidsIn is about what comes from the network, out of a tunnel or not.
func (g *gauntlet) forbidsIn(s sample, r reading, delivered bool) string {
	inner, node, tunnel := g.opens(s.data)
	if tunnel {
		r = inner
		if r.bad != "" || r.discovery || isGroup(r.target) {
			return "not what comes out of a tunnel"
		}
	}
	if r.bad != "" || !r.source.IsValid() || r.discovery {
		return ""
	}
	if r.quoted != nil {
		if delivered && !g.known(r.quoted.tuple()) {
			return "an error about no flow"
		}
		return ""
	}
	if r.part == "later" {
		if tunnel && !g.begun[fragment{s.hook, r.source, r.target, r.id, r.protocol}] {
			return "its first fragment has not passed"
		}
		return ""
	}
	if g.known(r.tuple()) {
		return ""
	}
	if why := martian(r); why != "" {
		return why
	}
	if !tunnel {
		if why := g.forbidsRaw(r, "ingress"); why != "" {
			return why
		}
	}
	if isGroup(r.target) {
		return ""
	}
	opens := r.protocol != 6 || r.flags&0x12 == 2
	m := g.owner[r.target]
	if tunnel && (m != 0 || opens) && r.source != node && g.nodeOf(r.source) != node {
		return "its source does not live on the node that sends it"
	}
	if (m != 0 || opens) && (g.owner[r.source] != 0 || m != 0 && (inBlock(r.source) || isHosts(r.source))) {
		return "its source lives here"
	}
	// What the stack forwards to a workload is judged on its interface.
	if m == 0 || !delivered {
		return ""
	}
	return g.forbidsDelivery(r)
}

// nodeOf is the node that has a remote workload's address.
func (g *gauntlet) nodeOf(a netip.Addr) netip.Addr {
	for p, r := range g.state.Dataplane.Routes {
		if p.Contains(a) && r.Via.IsValid() {
			return r.Via
		}
	}
	return netip.Addr{}
}

// opens reads what is in a tunnel of one that this node knows.
func (g *gauntlet) opens(frame []byte) (inner reading, node netip.Addr, tunnel bool) {
	ethertype, b := binary.BigEndian.Uint16(frame[12:]), frame[14:]
	var protocol uint8
	var to netip.Addr
	switch {
	case ethertype == 0x0800 && len(b) >= 20 && b[0]&15 == 5 && binary.BigEndian.Uint16(b[6:])&0x3fff == 0:
		protocol, node, to, b = b[9], netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:])), b[20:]
	case ethertype == 0x86dd && len(b) >= 40 && b[6] == 17:
		protocol, node, to, b = 17, netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:])), b[40:]
	}
	if _, known := g.state.Dataplane.Peers[node]; !known || to != netip.MustParseAddr(node4) && to != netip.MustParseAddr(node6) {
		return inner, node, false
	}
	switch {
	case protocol == 4 && ethertype == 0x0800:
		return read(0x0800, b), node, true
	case protocol == 17 && len(b) >= 16 && binary.BigEndian.Uint16(b[2:]) == 4789 && b[8]&8 != 0 && binary.BigEndian.Uint32(b[12:])>>8 == 4096:
		if len(b) < 30 || binary.BigEndian.Uint16(b[28:]) != ethertype {
			return bad("another protocol in the tunnel"), node, true
		}
		return read(ethertype, b[30:]), node, true
	}
	return inner, node, false
}

// note takes note of a packet that has passed: of the flow that it may have opened, and of
// the fragments that may follow it.
func (g *gauntlet) note(s sample) {
	r := read(binary.BigEndian.Uint16(s.data[12:]), s.data[14:])
	if s.hook == loader.FromNetwork {
		if inner, _, tunnel := g.opens(s.data); tunnel {
			r = inner
		}
	}
	if r.bad != "" || !r.source.IsValid() || r.quoted != nil || r.part == "later" || s.hook == loader.XDPNetwork {
		return
	}
	if r.part == "first" {
		g.begun[fragment{s.hook, r.source, r.target, r.id, r.protocol}] = true
	}
	g.opened[r.tuple()] = true
}
