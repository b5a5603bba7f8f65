package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"

	"calico-xdp/pkg/api"
)

// probe compares one packet with rules, field by field.
type probe struct {
	c      *Compiler
	packet Packet
	family int
	there  [2][]*peer // who has each side's address
}

func (c *Compiler) newProbe(packet Packet) *probe {
	p := &probe{c: c, packet: packet, family: familyOf(packet.Source)}
	for side, a := range []netip.Addr{packet.Source, packet.Destination} {
		if a.IsValid() {
			p.there[side] = c.addresses.peersAt(a)
		}
	}
	return p
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return 4
	}
	return 6
}

// peersAt returns who has an address, in order of their keys.
func (a *addresses) peersAt(addr netip.Addr) (peers []*peer) {
	for _, p := range a.places.Supernets(netip.PrefixFrom(addr, addr.BitLen())) {
		peers = append(peers, p.peers...)
	}
	slices.SortFunc(peers, func(a, b *peer) int { return compareKeys(a.key, b.key) })
	return slices.Compact(peers)
}

// missed gathers the fields that a packet does not fit, and if asked for, what they
// want.
type missed struct {
	fields []FieldMiss
	text   bool
}

func (m *missed) add(field string, want, got func() string) {
	f := FieldMiss{Field: field}
	if m.text {
		f.Want, f.Got = want(), got()
	}
	m.fields = append(m.fields, f)
}

// misses returns the fields of a rule that the packet does not fit; none if it fits
// all, or if no packet could.
func (p *probe) misses(s sourceRule, text bool) []FieldMiss {
	rule := s.rule.text
	r, faults := parseRule(rule, s.block.list.namespace)
	other := unenforced(rule)
	if len(faults) > len(other) || r.never && len(other) == 0 {
		return nil
	}
	m := &missed{text: text}
	is := func(s string) func() string { return func() string { return s } }
	if v := rule.IPVersion; v != nil && *v != p.family {
		m.add("ipVersion", func() string { return strconv.Itoa(*v) }, func() string { return strconv.Itoa(p.family) })
	}
	got := func() string { return api.ProtocolName(p.packet.Protocol) }
	if rule.Protocol != nil && r.protocol != p.packet.Protocol {
		m.add("protocol", func() string { return api.ProtocolName(r.protocol) }, got)
	}
	if rule.NotProtocol != nil {
		if n, _ := api.NumberOf(*rule.NotProtocol); n == p.packet.Protocol {
			m.add("notProtocol", func() string { return "not " + api.ProtocolName(n) }, got)
		}
	}
	for side, e := range []*api.EntityRule{&rule.Source, &rule.Destination} {
		p.missesOfSide(m, r, side, e)
	}
	p.missesOfICMP(m, rule)
	for _, x := range other {
		m.add(x.field, is(x.value), is("what is not looked at"))
	}
	return m.fields
}

// missesOfSide looks at the fields of one side.
func (p *probe) missesOfSide(m *missed, r *parsedRule, side int, e *api.EntityRule) {
	s, name := &r.sides[side], sides[side]
	addr := [...]netip.Addr{p.packet.Source, p.packet.Destination}[side]
	before := len(m.fields)
	address := func() string { return addr.String() }
	within := func(n netip.Prefix) bool { return n.Contains(addr) }
	ofFamily := func(n netip.Prefix) bool { return familyOf(n.Addr()) == p.family }
	if len(s.nets) > 0 && !slices.ContainsFunc(s.nets, within) {
		m.add(name+".nets", func() string { return someOf(e.Nets) }, address)
	}
	if len(s.notNets) > 0 && (slices.ContainsFunc(s.notNets, within) || !slices.ContainsFunc(s.notNets, ofFamily)) {
		m.add(name+".notNets", func() string {
			if !slices.ContainsFunc(s.notNets, ofFamily) {
				return fmt.Sprintf("IPv%d and not %s", familyOf(s.notNets[0].Addr()), someOf(e.NotNets))
			}
			return "not " + someOf(e.NotNets)
		}, address)
	}
	p.missesOfSelectors(m, s, side, e)
	if len(e.Ports)+len(e.NotPorts) > 0 {
		p.missesOfPorts(m, r, side, e, len(m.fields) > before)
	}
}

// missesOfPorts looks at the ports of one side. If the address does not fit, a port's
// name is taken for that of any endpoint that the rule might mean.
func (p *probe) missesOfPorts(m *missed, r *parsedRule, side int, e *api.EntityRule, elsewhere bool) {
	s, name := &r.sides[side], sides[side]
	number := [...]uint16{p.packet.SourcePort, p.packet.DestinationPort}[side]
	has := api.ProtocolHasPorts(p.packet.Protocol)
	got := func() string {
		if !has {
			return "none"
		}
		return strconv.Itoa(int(number))
	}
	// named says whether the port has one of these names.
	named := func(names []string) bool {
		if len(names) == 0 {
			return false
		}
		want := s.withPort(names, r.protocol, number)
		if x := p.c.addresses.sets["m"+want.key()]; elsewhere && x != nil && p.anywhere(x, s) {
			return true
		}
		return slices.ContainsFunc(p.there[side], func(x *peer) bool { return want.selects(x.identity) })
	}
	if !s.anyPort && (!has || !s.ports.contains(number) && !named(s.names)) {
		m.add(name+".ports", func() string { return p.portsWanted(s, side, r.protocol, portsText(e.Ports)) }, got)
	}
	if has && (s.notPorts.contains(number) || !elsewhere && named(s.notNames)) {
		m.add(name+".notPorts", func() string { return "not " + portsText(e.NotPorts) }, got)
	}
}

// anywhere says whether a member of a set has an address that fits the nets of a side.
// It looks at some of them only: among many there is one.
func (p *probe) anywhere(x *set, s *parsedSide) bool {
	const most = 100
	seen := 0
	for i := range x.members {
		for _, member := range i.peers {
			for _, at := range member.places {
				if seen++; seen > most {
					return true
				}
				addr := at.prefix.Addr()
				within := func(n netip.Prefix) bool { return n.Contains(addr) }
				if familyOf(addr) == p.family && (len(s.nets) == 0 || slices.ContainsFunc(s.nets, within)) && !slices.ContainsFunc(s.notNets, within) &&
					(s.not == nil || !slices.ContainsFunc(p.c.addresses.peersAt(addr), func(y *peer) bool { return s.not.selects(y.identity) })) {
					return true
				}
			}
		}
	}
	return false
}

// portsWanted adds to the names of ports what they are at the packet's address.
func (p *probe) portsWanted(s *parsedSide, side int, protocol uint8, text string) string {
	var known []string
	for _, x := range p.there[side] {
		for _, port := range x.identity.ports {
			if port.protocol == protocol && slices.Contains(s.names, port.name) {
				known = append(known, fmt.Sprintf("%s is %d", port.name, port.number))
			}
		}
	}
	if len(known) == 0 {
		return text
	}
	slices.Sort(known)
	return text + " (" + strings.Join(slices.Compact(known), ", ") + ")"
}

// missesOfICMP looks at type and code, which are the packet's destination port.
func (p *probe) missesOfICMP(m *missed, rule *api.Rule) {
	has := p.packet.Protocol == protocolICMP || p.packet.Protocol == protocolICMPv6
	number := func(n int) func() string {
		return func() string {
			if !has {
				return "none"
			}
			return strconv.Itoa(n)
		}
	}
	kind, code := int(p.packet.DestinationPort>>8), int(p.packet.DestinationPort&255)
	if f := rule.ICMP; f != nil {
		if f.Type != nil && (!has || *f.Type != kind) {
			m.add("icmp.type", func() string { return strconv.Itoa(*f.Type) }, number(kind))
		}
		if f.Code != nil && (!has || *f.Code != code) {
			m.add("icmp.code", func() string { return strconv.Itoa(*f.Code) }, number(code))
		}
	}
	if f := rule.NotICMP; f != nil && f.Type != nil && has && *f.Type == kind {
		switch {
		case f.Code == nil:
			m.add("notICMP.type", func() string { return fmt.Sprint("not ", *f.Type) }, number(kind))
		case *f.Code == code:
			m.add("notICMP.code", func() string { return fmt.Sprintf("not %d with type %d", *f.Code, *f.Type) }, number(code))
		}
	}
}

// missesOfSelectors looks at the selectors of one side: of those who have the address
// one has to fit all of them. If nobody does, the one who is nearest tells which not.
func (p *probe) missesOfSelectors(m *missed, s *parsedSide, side int, e *api.EntityRule) {
	name := sides[side]
	if s.not != nil {
		at := slices.IndexFunc(p.there[side], func(x *peer) bool { return s.not.selects(x.identity) })
		if at >= 0 {
			m.add(name+".notSelector", func() string { return "not " + e.NotSelector }, func() string { return p.there[side][at].describe("", e.NotSelector) })
		}
		return
	}
	if s.match == nil || slices.ContainsFunc(p.there[side], func(x *peer) bool { return s.match.selects(x.identity) }) {
		return
	}
	var nearest *peer
	fields := s.match.fields()
	for _, x := range p.there[side] {
		if f := s.match.missedBy(x.identity); nearest == nil || len(f) < len(fields) {
			nearest, fields = x, f
		}
	}
	for _, field := range fields {
		m.add(name+"."+field, func() string { return s.match.wants(field, e) }, func() string {
			switch {
			case nearest == nil:
				return "no endpoint or network set"
			case field == "namespaceSelector":
				return nearest.describe(namespaceLabels, e.NamespaceSelector)
			case field == "serviceAccounts" && e.ServiceAccounts != nil:
				return nearest.describe(serviceAccountLabels, e.ServiceAccounts.Selector)
			case field == "notSelector":
				return nearest.describe("", e.NotSelector)
			}
			return nearest.describe("", e.Selector)
		})
	}
}

// fields are the fields of a rule that a match is made of and that have to be there
// for anybody to fit it.
func (m *match) fields() (fields []string) {
	if m.selector != nil {
		fields = append(fields, "selector")
	}
	if m.namespaces != nil {
		fields = append(fields, "namespaceSelector")
	}
	if m.accounts != nil || len(m.accountNames) > 0 {
		fields = append(fields, "serviceAccounts")
	}
	if len(fields) == 0 {
		fields = append(fields, "notSelector")
	}
	return fields
}

// missedBy returns the fields of a match that an identity does not fit. That it is of
// another namespace counts for the first.
func (m *match) missedBy(i *identity) (fields []string) {
	namespace, _ := i.label(v3.LabelNamespace)
	outside := m.namespace != "" && namespace != m.namespace
	for _, field := range m.fields() {
		alone := match{}
		switch field {
		case "selector":
			alone.selector = m.selector
		case "namespaceSelector":
			alone.namespaces = m.namespaces
		case "serviceAccounts":
			alone.accounts, alone.accountNames = m.accounts, m.accountNames
		case "notSelector":
			alone.notSelector = m.notSelector
		}
		if outside || !alone.selects(i) {
			fields, outside = append(fields, field), false
		}
	}
	if m.notSelector != nil && !slices.Contains(fields, "notSelector") && m.notSelector.MatchesFunc(i.label) {
		fields = append(fields, "notSelector")
	}
	return fields
}

// wants says what a field of a match asks for.
func (m *match) wants(field string, e *api.EntityRule) string {
	within := ""
	if m.namespace != "" && field == m.fields()[0] {
		within = " in namespace " + m.namespace
	}
	switch field {
	case "selector":
		return e.Selector + within
	case "namespaceSelector":
		return e.NamespaceSelector
	case "notSelector":
		return "not " + e.NotSelector + within
	}
	var parts []string
	if a := e.ServiceAccounts; len(a.Names) > 0 {
		parts = append(parts, strings.Join(a.Names, ","))
	}
	if a := e.ServiceAccounts; a.Selector != "" {
		parts = append(parts, a.Selector)
	}
	return strings.Join(parts, " and ") + within
}

// describe names the peer and those of its labels, of the ones under a prefix, that a
// selector speaks of.
func (p *peer) describe(prefix, selector string) string {
	labels := make(map[string]string)
	for _, l := range p.identity.labels {
		name, ok := strings.CutPrefix(l.name, prefix)
		if ok && strings.Contains(selector, name) {
			labels[name] = l.value
		}
	}
	text := p.key.String()
	if account, ok := p.identity.label(v3.LabelServiceAccount); ok && prefix == serviceAccountLabels {
		text += " of " + account
	}
	for i, name := range slices.Sorted(maps.Keys(labels)) {
		text += [...]string{" with ", ", "}[min(i, 1)] + name + "='" + labels[name] + "'"
	}
	return text
}

// someOf lists the first few of many.
func someOf(list []string) string {
	const most = 8
	if len(list) <= most {
		return strings.Join(list, ",")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ","), len(list)-most)
}
