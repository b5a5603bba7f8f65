package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/loader"
	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"
)

// Hook is where a packet is seen.
type Hook = kernel.Hook

const (
	HookFromWorkload = kernel.HookFromWorkload
	HookToWorkload   = kernel.HookToWorkload
	HookFromNetwork  = kernel.HookFromNetwork
	HookToNetwork    = kernel.HookToNetwork
)

// Question is the first packet of a flow, and where it is seen.
type Question struct {
	Packet  policy.Packet
	Hook    Hook
	Ifindex int         // of the interface
	From    int         // the interface that it was received on; 0: the host's own
	Tunnel  bool        // it has come out of a tunnel, or is to go into one
	MAC     desired.MAC // who sends it
}

// Explanation is what would become of a packet.
type Explanation struct {
	Reason  string // the C enum's name in lower case
	Dropped bool
	Rules   []Rule // that were asked and decided, one for each ruleset; the last one denied
	Logged  []Rule // the Log rules that were met
	// Staged are the rules of the staged rulesets, if there are any, of egress and
	// ingress.
	Staged [2]*Rule
	// Local says which end of the flow has a local workload endpoint: the sender, the
	// other one.
	Local [2]bool
	// NextHop is how it leaves for the end that is not local.
	NextHop NextHop
	// Masqueraded: the host's stack gives it an address of the host as source.
	Masqueraded bool
	// Unjudged: egress policy is asked where the host's stack leads it.
	Unjudged bool

	now uint64 // jiffies
}

// NextHop is how packets leave for what is no local workload.
type NextHop struct {
	Forward Forward
	Node    netip.Addr // the other node; invalid if there is none
	Ifindex int        // the uplink; 0 if the host's stack decides
}

// Forward is the way packets leave.
type Forward = kernel.Forward

const (
	ForwardHost  = kernel.ForwardHost
	ForwardStack = kernel.ForwardStack
	ForwardNode  = kernel.ForwardNode
	ForwardIPIP  = kernel.ForwardIPIP
	ForwardVXLAN = kernel.ForwardVXLAN
)

// Explain says what would become of a packet. It runs through the programs that judge
// real ones, on their tables; nothing is sent, remembered or counted.
func (d *Dataplane) Explain(q Question) (Explanation, error) {
	frame := buildFrame(q.Packet, q.MAC)
	d.explaining.Lock()
	defer d.explaining.Unlock()
	// On older kernels a packet that is judged on the same CPU meanwhile can get into
	// the answer; and one may be given halfway through a change.
	var last kernel.Explanation
	for i := range 8 {
		err := d.programs.Explain(frame, uint8(q.Hook), q.Tunnel, loader.Context{
			Ifindex: uint32(q.Ifindex), IngressIfindex: uint32(q.From),
		})
		if err != nil {
			return Explanation{}, err
		}
		raw, _, err := d.kernel.Explanations.Get(0)
		if err != nil {
			return Explanation{}, err
		}
		now := raw.Flow.LastSeen
		if raw.Flow.LastSeen = 0; i > 0 && raw == last {
			return d.explanation(&raw, q, now), nil
		}
		last = raw
	}
	return Explanation{}, errors.New("explain: the answer changes all the time")
}

func (d *Dataplane) explanation(raw *kernel.Explanation, q Question, now uint64) Explanation {
	e := Explanation{
		Reason: d.kernel.ReasonName(raw.Reason), Dropped: kernel.Reason(raw.Reason).Drops(),
		Rules: d.rulesOf(raw.Flow.Rules[:]), Logged: d.rulesOf(raw.Logged[:]),
		NextHop: nextHop(raw.Flow.NextHop), Masqueraded: kernel.FlowState(raw.Flow.State)&kernel.FlowMasqueraded != 0,
		Unjudged: kernel.FlowState(raw.Flow.State)&kernel.FlowUnjudged != 0, now: now,
	}
	for i, n := range raw.Staged {
		if rules := d.rulesOf([]uint32{n}); len(rules) > 0 {
			e.Staged[i] = &rules[0]
		}
	}
	e.Local = [2]bool{raw.Flow.Slots[0] != 0, raw.Flow.Slots[1] != 0}
	if kernel.FlowState(raw.Flow.State)&kernel.FlowAOpened == 0 {
		e.Local[0], e.Local[1] = e.Local[1], e.Local[0]
	}
	return e
}

func nextHop(h kernel.NextHop) NextHop {
	out := NextHop{Forward: Forward(h.Forward), Ifindex: int(h.Ifindex)}
	if a := (kernel.Address{Bytes: h.Node.Bytes}); a != (kernel.Address{}) {
		out.Node = a.Addr()
	}
	return out
}

// rulesOf are the rules with these numbers, up to the first that is 0. One that is not
// known is left out.
func (d *Dataplane) rulesOf(numbers []uint32) (out []Rule) {
	for _, n := range numbers {
		if n == 0 {
			break
		}
		if id, action, ok := d.Rule(n); ok {
			out = append(out, Rule{id, action})
		}
	}
	return out
}

// Rule is a rule of a ruleset in the kernel.
type Rule struct {
	ID     policy.RuleID
	Action policy.Action
}

func (r Rule) String() string { return fmt.Sprintf("%d by %s", r.Action, r.ID) }

const (
	protocolICMP   = 1
	protocolTCP    = 6
	protocolUDP    = 17
	protocolICMPv6 = 58
	protocolSCTP   = 132
	protocolLite   = 136

	hopLimit = 64
	tcpSYN   = 2
)

// buildFrame makes the Ethernet frame of a packet, as far as programs read it: its
// checksums are not filled in.
func buildFrame(p policy.Packet, from desired.MAC) []byte {
	body := make([]byte, 20)
	switch p.Protocol {
	case protocolTCP, protocolUDP, protocolSCTP, protocolLite:
		binary.BigEndian.PutUint16(body, p.SourcePort)
		binary.BigEndian.PutUint16(body[2:], p.DestinationPort)
	case protocolICMP, protocolICMPv6:
		binary.BigEndian.PutUint16(body, p.DestinationPort)
		binary.BigEndian.PutUint16(body[4:], p.SourcePort)
	}
	switch p.Protocol {
	case protocolTCP:
		body[12], body[13] = 5<<4, tcpSYN
	case protocolUDP, protocolLite:
		binary.BigEndian.PutUint16(body[4:], uint16(len(body)))
	}
	frame := append([]byte{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}, from[:]...)
	if p.Source.Is4() {
		source, destination := p.Source.As4(), p.Destination.As4()
		frame = append(frame, 8, 0, 0x45, 0, 0, byte(20+len(body)), 0, 0, 0x40, 0, hopLimit, p.Protocol, 0, 0)
		frame = append(frame, source[:]...)
		frame = append(frame, destination[:]...)
	} else {
		source, destination := p.Source.As16(), p.Destination.As16()
		frame = append(frame, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(body)), p.Protocol, hopLimit)
		frame = append(frame, source[:]...)
		frame = append(frame, destination[:]...)
	}
	return append(frame, body...)
}
