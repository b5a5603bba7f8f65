package policy

import (
	"encoding/binary"
	"slices"
)

// clause is a rule as the classifier knows it: what it asks for is resolved to
// sets. A rule that names ports becomes several clauses, one for each port
// number that the name stands for somewhere.
type clause struct {
	action Action
	index  int // of the rule in its policy's or profile's list; -1: none of them
	// The addresses of a side are in all sets of in and in none of out.
	in, out [2][]*peerSet
	ports   [2]portMatch
}

// portMatch asks for ports in a set, or out of it. No set: any.
type portMatch struct {
	set *portSet
	not bool
}

// appendKey appends what tells the clause from others.
func (c *clause) appendKey(b []byte) []byte {
	b = binary.AppendVarint(append(b, byte(c.action)), int64(c.index))
	for side := range c.in {
		for _, list := range [][]*peerSet{c.in[side], c.out[side]} {
			b = binary.AppendUvarint(b, uint64(len(list)))
			for _, s := range list {
				b = binary.AppendUvarint(b, uint64(s.id))
			}
		}
		port := uint64(0)
		if p := c.ports[side]; p.set != nil {
			port = uint64(p.set.id) << 1
			if p.not {
				port |= 1
			}
		}
		b = binary.AppendUvarint(b, port)
	}
	return b
}

// cell is one case of one side of a rule: some ports, and what is asked of the
// address then.
type cell struct {
	ports   spans
	any     bool // all ports: nothing asked
	in, out []*peerSet
}

// expand appends the clauses of a rule.
func (c *Compiler) expand(clauses []clause, r *parsedRule) []clause {
	if r.never {
		return clauses
	}
	for _, from := range c.cells(r, source) {
		for _, to := range c.cells(r, destination) {
			k := clause{action: r.action, index: r.index}
			k.in = [2][]*peerSet{from.in, to.in}
			k.out = [2][]*peerSet{from.out, to.out}
			switch r.family {
			case 4:
				k.in[source] = append(slices.Clip(k.in[source]), c.ipv4)
			case 6:
				k.out[source] = append(slices.Clip(k.out[source]), c.ipv4)
			}
			if !from.any {
				k.ports[source].set = c.ports.of(false, r.protocol, from.ports)
			}
			if !r.anyProtocol {
				k.ports[destination].set = c.ports.of(true, r.protocol, to.ports)
				k.ports[destination].not = r.exclude
			}
			clauses = append(clauses, k)
		}
	}
	return clauses
}

// cells returns the cases of one side; no two have a port in common. The numbers
// that the rule's port names stand for are a case each, because there the address
// has to be one whose endpoint names that port.
func (c *Compiler) cells(r *parsedRule, side int) []cell {
	s := &r.sides[side]
	var base cell
	if len(s.nets) > 0 {
		base.in = append(base.in, c.sets.ofNets(s.nets))
	}
	if len(s.notNets) > 0 {
		base.out = append(base.out, c.sets.ofNets(s.notNets))
	}
	if s.not != nil {
		base.out = append(base.out, c.sets.ofMatch(s.not))
	}
	nets := slices.Clip(base.in)
	if s.match != nil {
		base.in = append(base.in, c.sets.ofMatch(s.match))
	}
	base.any = !s.asksPorts()
	if len(s.names)+len(s.notNames) == 0 {
		if base.ports = s.ports.without(s.notPorts); len(base.ports) == 0 {
			return nil
		}
		return []cell{base}
	}

	named, notNamed := c.peers.resolve(s.names, r.protocol), c.peers.resolve(s.notNames, r.protocol)
	cases := newSpans(slices.Concat(named, notNamed)...)
	var cells []cell
	for _, number := range cases.numbers() {
		at := cell{ports: spans{{number, number}}, in: base.in, out: base.out}
		if s.notPorts.contains(number) {
			continue
		}
		if !s.ports.contains(number) {
			if !named.contains(number) {
				continue
			}
			at.in = append(nets, c.sets.ofMatch(s.withPort(s.names, r.protocol, number)))
		}
		if notNamed.contains(number) {
			at.out = append(slices.Clip(at.out), c.sets.ofMatch(s.withPort(s.notNames, r.protocol, number)))
		}
		cells = append(cells, at)
	}
	base.ports = s.ports.without(s.notPorts).without(cases)
	if len(base.ports) > 0 {
		base.any = false
		cells = append(cells, base)
	}
	return cells
}

// withPort is the side's match, or any endpoint, with a port of one of these
// names.
func (s *parsedSide) withPort(names []string, protocol uint8, number uint16) *match {
	m := new(match)
	if s.match != nil {
		*m = *s.match
	}
	m.portNames, m.portProtocol, m.portNumber = names, protocol, number
	return m
}
