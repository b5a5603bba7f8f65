package policy

import (
	"net/netip"
	"slices"
)

// The parts of a packet that rules ask about; those of addresses are the sides.
const (
	sourcePorts = destination + 1 + iota
	destinationPorts
	parts
)

// clause is a rule as the classifier knows it: what it asks for is resolved to
// sets. A rule that names ports becomes several clauses, one for each port number
// that the name stands for somewhere.
type clause struct {
	action Action
	terms  [parts]*term
}

func (k *clause) sourceOnly() bool {
	return k.terms[destination] == nil && k.terms[sourcePorts] == nil && k.terms[destinationPorts] == nil
}

// cell is one case of one side of a rule: some ports, and what is asked of the
// address then.
type cell struct {
	ports   spans
	any     bool // all ports: nothing asked
	in, out []*set
}

// expand returns the clauses of a rule.
func (c *Compiler) expand(r *parsedRule) (clauses []clause) {
	if r.never {
		return nil
	}
	asksFamily := r.family != 0 && len(r.sides[source].nets)+len(r.sides[destination].nets) == 0
	to := c.cells(r, destination)
	if len(to) == 0 {
		return nil
	}
	for _, from := range c.cells(r, source) {
		if asksFamily {
			if r.family == 4 {
				from.in = append(slices.Clip(from.in), c.addresses.ipv4)
			} else {
				from.out = append(slices.Clip(from.out), c.addresses.ipv4)
			}
		}
		k := clause{action: r.action}
		k.terms[source] = c.addresses.term(slices.Clone(from.in), slices.Clone(from.out))
		if !from.any {
			k.terms[sourcePorts] = c.sourcePorts.term([]*set{c.sourcePorts.setOf(r.protocol, from.ports)}, nil)
		}
		for _, to := range to {
			k.terms[destination] = c.addresses.term(slices.Clone(to.in), slices.Clone(to.out))
			if !r.anyProtocol {
				in, out := []*set{c.destinationPorts.setOf(r.protocol, to.ports)}, []*set(nil)
				if r.exclude {
					in, out = out, in
				}
				k.terms[destinationPorts] = c.destinationPorts.term(in, out)
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
		base.in = append(base.in, c.addresses.setOfNets(ofFamily(s.nets, r.family)))
	}
	if len(s.notNets) > 0 {
		base.out = append(base.out, c.addresses.setOfNets(s.notNets))
	}
	if s.not != nil {
		base.out = append(base.out, c.setOf(s.not))
	}
	nets := slices.Clip(base.in)
	if s.match != nil {
		base.in = append(base.in, c.setOf(s.match))
	}
	base.any = !s.asksPorts()
	if len(s.names)+len(s.notNames) == 0 {
		if base.ports = s.ports.without(s.notPorts); len(base.ports) == 0 {
			return nil
		}
		return []cell{base}
	}

	named, notNamed := c.ports.resolve(s.names, r.protocol), c.ports.resolve(s.notNames, r.protocol)
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
			at.in = append(nets, c.setOf(s.withPort(s.names, r.protocol, number)))
		}
		if notNamed.contains(number) {
			at.out = append(slices.Clip(at.out), c.setOf(s.withPort(s.notNames, r.protocol, number)))
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

// ofFamily leaves out the networks that the rule's family (0: any) excludes.
func ofFamily(nets []netip.Prefix, family int) []netip.Prefix {
	if family == 0 {
		return nets
	}
	return slices.DeleteFunc(slices.Clone(nets), func(n netip.Prefix) bool { return n.Addr().Is4() != (family == 4) })
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
