package policy

import (
	"encoding/binary"
	"errors"
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

// portSet is a set of ports of one protocol that rules ask for, of source ports
// or of destination ports. ICMP type and code are destination ports.
type portSet struct {
	id          setID
	key         string
	destination bool
	protocol    uint8
	spans       spans
	used        uint64
	dead        bool
}

// portSets are the port sets in use.
type portSets struct {
	byKey   map[string]*portSet
	ordered []*portSet // by id
	next    setID
	version uint64 // changes whenever a set comes or goes
}

func newPortSets() *portSets {
	return &portSets{byKey: make(map[string]*portSet), next: 1}
}

func (p *portSets) of(destination bool, protocol uint8, s spans) *portSet {
	key := []byte{protocol, 0}
	if destination {
		key[1] = 1
	}
	for _, r := range s {
		key = binary.BigEndian.AppendUint16(key, r.from)
		key = binary.BigEndian.AppendUint16(key, r.to)
	}
	set := p.byKey[string(key)]
	if set == nil {
		set = &portSet{id: p.next, key: string(key), destination: destination, protocol: protocol, spans: s}
		p.next++
		p.version++
		p.byKey[set.key] = set
		p.ordered = append(p.ordered, set)
	}
	return set
}

// sweep drops sets as [sets.sweep] does.
func (p *portSets) sweep(result uint64) {
	p.ordered = slices.DeleteFunc(p.ordered, func(set *portSet) bool {
		if set.used != 0 && set.used+1 >= result {
			return false
		}
		set.dead = true
		delete(p.byKey, set.key)
		p.version++
		return true
	})
}

// portRanges cuts the ports of each protocol where a set begins or ends and
// gives a class to each piece.
func (c *Compiler) portRanges(destination bool) []PortRange {
	type edge struct {
		at    int // the first port that it is true for
		id    setID
		begin bool
	}
	edges := make(map[uint8][]edge)
	var protocols []uint8
	for _, set := range c.ports.ordered {
		if set.destination != destination {
			continue
		}
		if _, ok := edges[set.protocol]; !ok {
			protocols = append(protocols, set.protocol)
		}
		for _, s := range set.spans {
			edges[set.protocol] = append(edges[set.protocol],
				edge{int(s.from), set.id, true}, edge{int(s.to) + 1, set.id, false})
		}
	}
	slices.Sort(protocols)
	var out []PortRange
	for _, protocol := range protocols {
		list := edges[protocol]
		slices.SortFunc(list, func(a, b edge) int { return a.at - b.at })
		var inside []setID // by id
		for i := 0; i < len(list); {
			at := list[i].at
			for ; i < len(list) && list[i].at == at; i++ {
				k, found := slices.BinarySearch(inside, list[i].id)
				if list[i].begin {
					inside = slices.Insert(inside, k, list[i].id)
				} else if found {
					inside = slices.Delete(inside, k, k+1)
				}
			}
			if len(inside) == 0 {
				continue
			}
			out = append(out, PortRange{
				Protocol: protocol, From: uint16(at), To: uint16(list[i].at - 1), Class: c.portClass(inside),
			})
		}
	}
	return out
}

// noPortClass is the class of ports for which there was no number left: no rule
// matches them.
const noPortClass PortClass = 65534

var errPortClasses = errors.New("too many kinds of ports: some match no rule")

// portClass numbers the class of ports that are in these sets.
func (c *Compiler) portClass(ids []setID) PortClass {
	c.scratch = c.scratch[:0]
	for _, id := range ids {
		c.scratch = binary.LittleEndian.AppendUint32(c.scratch, uint32(id))
	}
	class, ok := c.portNumbers.take(c.scratch, c.result, func() []setID { return slices.Clone(ids) })
	if !ok {
		c.problems.add(Problem{Err: errPortClasses})
		return noPortClass
	}
	return PortClass(class)
}
