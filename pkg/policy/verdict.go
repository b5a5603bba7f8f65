package policy

import (
	"iter"
	"math/bits"
	"net/netip"
)

// Packet is what the classifier looks at. For ICMP and ICMPv6 the destination
// port is type<<8|code and the source port 0; other protocols without ports have
// 0 in both.
type Packet struct {
	Source, Destination         netip.Addr
	Protocol                    uint8
	SourcePort, DestinationPort uint16
}

// Verdict is what a ruleset says about a packet: Allow, Deny or, if the ruleset
// leaves it to the next stage, Continue, and the rule
// that says so. It is the classifier of bpf/policy.h in Go, step for step: look
// up four classes, AND their rows, walk the set bits. An unknown ruleset denies.
func (t *Tables) Verdict(id RulesetID, p Packet) (Action, RuleID) {
	last := Rule{Action: Deny}
	for rule := range t.Matches(id, p) {
		last = rule
	}
	if last.Action != Allow && last.Action != Continue {
		last.Action = Deny
	}
	return last.Action, last.ID
}

// Matches returns the rules that a packet meets in a ruleset, in order: any
// number of Log and Pass, then the Allow or Deny that decides.
func (t *Tables) Matches(id RulesetID, p Packet) iter.Seq[Rule] {
	return func(yield func(Rule) bool) {
		for i := range t.matches(id, p) {
			if !yield(t.Rulesets[id].Rule(i)) {
				return
			}
		}
	}
}

// matches returns the indices of these rules.
func (t *Tables) matches(id RulesetID, p Packet) iter.Seq[int] {
	return func(yield func(int) bool) {
		s := t.Rulesets[id]
		if s == nil {
			return
		}
		dimensions := [...]*Dimension{s.Sources, s.Destinations, s.SourcePorts, s.DestinationPorts}
		classes := [...]uint32{
			uint32(t.PeerClass(p.Source)), uint32(t.PeerClass(p.Destination)),
			uint32(t.SourcePorts.Class(p.Protocol, p.SourcePort)),
			uint32(t.DestinationPorts.Class(p.Protocol, p.DestinationPort)),
		}
		from := 0 // rules before it are left by Pass
		for block := range s.Sources.Width {
			stored := ^uint64(0)
			for d, dimension := range dimensions {
				stored &= dimension.Vector(classes[d])[block].Stored
			}
			for ; stored != 0; stored &= stored - 1 {
				word := block*64 + bits.TrailingZeros64(stored)
				left := ^uint64(0)
				for d, dimension := range dimensions {
					left &= dimension.Word(classes[d], word)
				}
				for ; left != 0; left &= left - 1 {
					i := word*64 + bits.TrailingZeros64(left)
					if i < from {
						continue
					}
					if !yield(i) {
						return
					}
					switch rule := s.Rule(i); rule.Action {
					case Log:
					case Pass:
						from = int(rule.Next)
					default:
						return
					}
				}
			}
		}
	}
}

// PeerClass is the class of an address.
func (t *Tables) PeerClass(a netip.Addr) PeerClass {
	for length := a.BitLen(); length >= 0; length-- {
		prefix, err := a.Prefix(length)
		if err != nil {
			return 0
		}
		if class, ok := t.Peers[prefix]; ok {
			return class
		}
	}
	return 0
}
