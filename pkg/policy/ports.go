package policy

import (
	"slices"
	"strings"

	"github.com/projectcalico/api/pkg/lib/numorstring"
)

// IANA's numbers of the protocols that rules name or that have ports.
const (
	protocolICMP    = 1
	protocolTCP     = 6
	protocolUDP     = 17
	protocolICMPv6  = 58
	protocolSCTP    = 132
	protocolUDPLite = 136
)

func protocolNumber(p numorstring.Protocol) (uint8, bool) {
	switch strings.ToLower(p.String()) {
	case "tcp":
		return protocolTCP, true
	case "udp":
		return protocolUDP, true
	case "icmp":
		return protocolICMP, true
	case "icmpv6":
		return protocolICMPv6, true
	case "sctp":
		return protocolSCTP, true
	case "udplite":
		return protocolUDPLite, true
	}
	n, err := p.NumValue()
	return n, err == nil
}

func hasPorts(protocol uint8) bool {
	switch protocol {
	case protocolTCP, protocolUDP, protocolSCTP, protocolUDPLite:
		return true
	}
	return false
}

// span is a range of ports, both ends in it.
type span struct{ from, to uint16 }

// spans is a set of ports: sorted, with gaps between the ranges.
type spans []span

var allPorts = spans{{0, 65535}}

func newSpans(list ...span) spans {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b span) int { return int(a.from) - int(b.from) })
	out := list[:0]
	for _, s := range list {
		if last := len(out) - 1; last >= 0 && int(s.from) <= int(out[last].to)+1 {
			out[last].to = max(out[last].to, s.to)
			continue
		}
		out = append(out, s)
	}
	return out
}

func (s spans) contains(port uint16) bool {
	return slices.ContainsFunc(s, func(r span) bool { return r.from <= port && port <= r.to })
}

func (s spans) numbers() []uint16 {
	var out []uint16
	for _, r := range s {
		for n := int(r.from); n <= int(r.to); n++ {
			out = append(out, uint16(n))
		}
	}
	return out
}

// without returns s without what is in other.
func (s spans) without(other spans) spans {
	var out spans
	for _, r := range s {
		from := int(r.from)
		for _, o := range other {
			if o.to < r.from || o.from > r.to {
				continue
			}
			if int(o.from) > from {
				out = append(out, span{uint16(from), o.from - 1})
			}
			from = int(o.to) + 1
		}
		if from <= int(r.to) {
			out = append(out, span{uint16(from), r.to})
		}
	}
	return out
}
