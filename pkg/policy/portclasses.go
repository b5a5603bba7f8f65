package policy

import (
	"encoding/binary"
	"errors"
	"slices"

	"calico-xdp/pkg/api"
)

// portSpace is the space of source ports or of destination ports: it keeps the
// class of every port of every protocol that rules name.
type portSpace struct {
	*space
	classOf PortTable   // what is handed out
	changed []PortRange // there, in this result

	came, gone []*set // since the last result
	nameless   int    // ports for which there was no class left
	short      bool   // there are some, and it has been said
}

func newPortSpace() *portSpace {
	return &portSpace{space: newSpace(anyIPv4+1, uint32(noPortClass)), classOf: make(PortTable)}
}

// setOf returns the set of these ports.
func (p *portSpace) setOf(protocol uint8, s spans) *set {
	if ports(protocol) == 1 {
		s = spans{{0, 0}}
	}
	key := []byte{protocol}
	for _, r := range s {
		key = binary.BigEndian.AppendUint16(key, r.from)
		key = binary.BigEndian.AppendUint16(key, r.to)
	}
	x, fresh := p.set(key)
	if fresh {
		x.protocol, x.spans = protocol, s
		p.came = append(p.came, x)
	}
	return x
}

// forgetSet notes that no rule asks for a set any more.
func (p *portSpace) forgetSet(x *set) {
	if i := slices.Index(p.came, x); i >= 0 {
		p.came = slices.Delete(p.came, i, i+1) // it never counted
		return
	}
	p.gone = append(p.gone, x)
}

// noPortClass is the class of ports for which there was no number left: no rule
// matches them.
const noPortClass PortClass = 65534

var errPortClasses = errors.New("too many kinds of ports: some match no rule")

// edge is where a set that came or went begins or ends.
type edge struct {
	at    int // the first port that it is true for
	set   *set
	came  bool
	begin bool
}

// settle gives the ports of sets that came or went their classes.
func (p *portSpace) settle(result uint64) {
	p.changed = nil
	edges := make(map[uint8][]edge)
	for i, x := range slices.Concat(p.came, p.gone) {
		for _, s := range x.spans {
			edges[x.protocol] = append(edges[x.protocol],
				edge{int(s.from), x, i < len(p.came), true}, edge{int(s.to) + 1, x, i < len(p.came), false})
		}
	}
	p.came, p.gone = nil, nil
	for protocol := range 256 {
		list := edges[uint8(protocol)]
		slices.SortStableFunc(list, func(a, b edge) int { return a.at - b.at })
		var came, gone []*set
		for i := 0; i < len(list); {
			at := list[i].at
			for ; i < len(list) && list[i].at == at; i++ {
				within := &gone
				if list[i].came {
					within = &came
				}
				if list[i].begin {
					*within = append(*within, list[i].set)
				} else {
					k := slices.Index(*within, list[i].set)
					*within = slices.Delete(*within, k, k+1)
				}
			}
			if len(came)+len(gone) > 0 {
				p.move(uint8(protocol), at, list[i].at, came, gone, result)
			}
		}
	}
}

// move gives the ports from one up to another the classes that they have with
// these sets and without those.
func (p *portSpace) move(protocol uint8, from, to int, came, gone []*set, result uint64) {
	table := p.classOf[protocol]
	if table == nil {
		table = make([]PortClass, ports(protocol))
		p.classOf[protocol] = table
	}
	for first := from; first < to; {
		was, next := table[first], first+1
		for next < to && table[next] == was && was != noPortClass {
			next++
		}
		class := p.moved(protocol, uint16(first), was, next-first, came, gone, result)
		for port := first; port < next; port++ {
			table[port] = class
		}
		if class != was {
			p.note(PortRange{Protocol: protocol, From: uint16(first), To: uint16(next - 1), Class: class})
		}
		first = next
	}
}

// moved returns the class of n ports that had this one.
func (p *portSpace) moved(protocol uint8, port uint16, was PortClass, n int, came, gone []*set, result uint64) PortClass {
	all := p.sum[:0]
	if was == noPortClass {
		p.nameless -= n
		for _, x := range p.sets {
			if x.protocol == protocol && x.spans.contains(port) {
				all = append(all, x)
			}
		}
	} else {
		all = append(append(all, p.classes.entries[was].value...), came...)
		all = slices.DeleteFunc(all, func(x *set) bool { return slices.Contains(gone, x) })
	}
	slices.SortFunc(all, compareSets)
	p.sum = all
	class, ok := p.class(all, n)
	if was != noPortClass {
		p.classes.drop(uint32(was), n, result)
	}
	if !ok {
		p.nameless += n
		return noPortClass
	}
	return PortClass(class)
}

// note joins ranges that touch.
func (p *portSpace) note(r PortRange) {
	if last := len(p.changed) - 1; last >= 0 {
		if l := &p.changed[last]; l.Protocol == r.Protocol && l.Class == r.Class && int(l.To)+1 == int(r.From) {
			l.To = r.To
			return
		}
	}
	p.changed = append(p.changed, r)
}

// ports is how many ports a protocol has: types and codes for ICMP, one where there
// are none.
func ports(protocol uint8) int {
	if api.ProtocolHasPorts(protocol) || protocol == protocolICMP || protocol == protocolICMPv6 {
		return 65536
	}
	return 1
}
