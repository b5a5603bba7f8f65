package policy

import "slices"

// IANA's numbers of the protocols whose types and codes rules name.
const (
	protocolICMP   = 1
	protocolICMPv6 = 58
)

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
