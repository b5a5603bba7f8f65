package policy

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"

	"calico-xdp/pkg/api"
)

// The two sides of a packet.
const (
	source = iota
	destination
)

// parsedRule is one rule of a policy or profile as the resource says it, its
// texts read, nothing resolved yet.
type parsedRule struct {
	action Action
	family int // 4 or 6; 0: both
	never  bool
	sides  [2]parsedSide
	// The protocol's destination ports, or ICMP types and codes, are part of
	// sides[destination]. With exclude, it is every protocol but this one.
	protocol    uint8
	anyProtocol bool
	exclude     bool
}

// parsedSide is what a rule asks of the source or the destination.
type parsedSide struct {
	nets, notNets   []netip.Prefix
	match, not      *match // see entityMatch
	ports, notPorts spans
	names, notNames []string
	anyPort         bool // no ports and no names asked for
}

func (s *parsedSide) asksPorts() bool {
	return !s.anyPort || len(s.notPorts) > 0 || len(s.notNames) > 0
}

// portNames are the names that have to be resolved.
func (r *parsedRule) portNames() (names []portName) {
	for i := range r.sides {
		for _, name := range slices.Concat(r.sides[i].names, r.sides[i].notNames) {
			names = append(names, portName{name, r.protocol})
		}
	}
	return names
}

// errUnenforced is wrapped by the problem of a rule with a match that needs to
// look deeper than packets' headers, or at Kubernetes.
var errUnenforced = errors.New("cannot be enforced")

// parser reads one rule and gathers its faults.
type parser struct {
	*parsedRule
	faults []error
	// oddProtocol says that the rule's protocol could not be read.
	oddProtocol bool
}

func (p *parser) fault(field, format string, args ...any) {
	p.faults = append(p.faults, fmt.Errorf(field+": "+format, args...))
}

// parseRule reads one rule of a policy in a namespace ("" for profiles and global
// policies), and says what is wrong with it, field by field.
//
// A rule with faults denies all that it might mean, whatever its action: a match that
// cannot be read is left out, so that the rest of the rule is about more packets. Only
// Log, which decides nothing, means nothing then. What can be read but not be enforced
// lets less through: it is not allowed, and is denied.
func parseRule(rule *api.Rule, namespace string) (*parsedRule, []error) {
	p := &parser{parsedRule: &parsedRule{anyProtocol: true}}
	p.readAction(rule.Action)
	if v := rule.IPVersion; v != nil {
		if *v == 4 || *v == 6 {
			p.family = *v
		} else {
			p.fault("ipVersion", "%d is neither 4 nor 6", *v)
		}
	}
	p.readProtocol(rule.Protocol, rule.NotProtocol)
	for i, e := range []*api.EntityRule{&rule.Source, &rule.Destination} {
		p.readSide(i, e, namespace)
	}
	p.readICMP(rule.ICMP, rule.NotICMP)
	if len(p.faults) > 0 {
		if p.action == Log {
			p.never = true
		}
		p.action = Deny
	}
	p.readUnenforced(rule)
	return p.parsedRule, p.faults
}

func (p *parser) readAction(a v3.Action) {
	switch a {
	case v3.Allow:
		p.action = Allow
	case v3.Deny:
		p.action = Deny
	case v3.Log:
		p.action = Log
	case v3.Pass:
		p.action = Pass
	default:
		p.action = Deny
		p.fault("action", "%q is none of Allow, Deny, Log, Pass", a)
	}
}

// readUnenforced makes a rule let less through, of which a match cannot be enforced.
func (p *parser) readUnenforced(rule *api.Rule) {
	matches := unenforced(rule)
	if len(matches) == 0 {
		return
	}
	for _, m := range matches {
		p.fault(m.field, "%q %w", m.value, errUnenforced)
	}
	switch p.action {
	case Pass:
		p.action = Deny // the next tier might allow more than this one would
	case Allow, Log:
		p.never = true
	}
}

// unenforced are the matches of a rule that cannot be enforced.
func unenforced(rule *api.Rule) (matches []fieldValue) {
	if h := rule.HTTP; h != nil && len(h.Methods)+len(h.Paths) > 0 {
		var texts []string
		texts = append(texts, h.Methods...)
		for _, path := range h.Paths {
			texts = append(texts, cmp.Or(path.Exact, path.Prefix+"*"))
		}
		matches = append(matches, fieldValue{"http", strings.Join(texts, ",")})
	}
	for i, e := range []*api.EntityRule{&rule.Source, &rule.Destination} {
		if s := e.Services; s != nil {
			matches = append(matches, fieldValue{sides[i] + ".services", strings.TrimPrefix(s.Namespace+"/"+s.Name, "/")})
		}
	}
	return matches
}

// fieldValue is a field of a rule and what it says.
type fieldValue struct{ field, value string }

func (p *parser) readProtocol(is, not *numorstring.Protocol) {
	if is != nil {
		n, ok := api.NumberOf(*is)
		if p.protocol, p.anyProtocol, p.oddProtocol = n, !ok, !ok; !ok {
			p.fault("protocol", "%q is not known", is)
		}
	}
	if not == nil {
		return
	}
	n, ok := api.NumberOf(*not)
	switch {
	case !ok:
		p.fault("notProtocol", "%q is not known", not)
	case is == nil || p.oddProtocol:
		p.protocol, p.anyProtocol, p.exclude = n, false, true
	case p.protocol == n:
		p.never = true
	}
}

// sides are the names of the two sides.
var sides = [...]string{source: "source", destination: "destination"}

func (p *parser) readSide(i int, e *api.EntityRule, namespace string) {
	s, name := &p.parsedRule.sides[i], sides[i]
	var bad, badNot []error
	s.nets, bad = parsePrefixes(e.Nets)
	s.notNets, badNot = parsePrefixes(e.NotNets)
	p.all(name+".nets", bad)
	p.all(name+".notNets", badNot)
	if len(bad) > 0 {
		s.nets = nil
	} else {
		p.limitFamily(s.nets)
	}
	if len(badNot) == 0 {
		p.limitFamily(s.notNets)
	}
	s.match, s.not = p.readEntity(name, e, namespace)
	p.readPorts(i, e)
}

// all notes the faults of a field.
func (p *parser) all(field string, faults []error) {
	for _, err := range faults {
		p.fault(field, "%w", err)
	}
}

func (p *parser) readPorts(i int, e *api.EntityRule) {
	s, name := &p.parsedRule.sides[i], sides[i]
	s.anyPort, s.ports = true, allPorts
	if len(e.Ports)+len(e.NotPorts) == 0 {
		return
	}
	ports, names, bad := parsePorts(e.Ports)
	notPorts, notNames, badNot := parsePorts(e.NotPorts)
	p.all(name+".ports", bad)
	p.all(name+".notPorts", badNot)
	if p.anyProtocol || p.exclude || !api.ProtocolHasPorts(p.protocol) {
		// With a protocol that is not known that is said already.
		if len(bad)+len(badNot) == 0 && !p.oddProtocol {
			field, list := ".ports", e.Ports
			if len(e.Ports) == 0 {
				field, list = ".notPorts", e.NotPorts
			}
			p.fault(name+field, "%s: the rule's protocol is not one that has ports", portsText(list))
		}
		return
	}
	if len(e.Ports) > 0 && len(bad) == 0 {
		s.anyPort, s.ports, s.names = false, ports, names
	}
	s.notPorts, s.notNames = notPorts, notNames
}

// limitFamily narrows the rule to the family of the networks, if they are of one
// family: then the rule does not exist for the other.
func (p *parser) limitFamily(nets []netip.Prefix) {
	has4 := slices.ContainsFunc(nets, func(n netip.Prefix) bool { return n.Addr().Is4() })
	has6 := slices.ContainsFunc(nets, func(n netip.Prefix) bool { return n.Addr().Is6() })
	if has4 == has6 {
		return
	}
	family := 4
	if has6 {
		family = 6
	}
	if p.family != 0 && p.family != family {
		p.never = true
	}
	p.family = family
}

func parsePorts(ports []numorstring.Port) (numbers spans, names []string, faults []error) {
	var list []span
	for _, p := range ports {
		switch {
		case p.PortName != "" && !isPortName(p.PortName):
			faults = append(faults, fmt.Errorf("%q is no port, range of ports or name of one", p.PortName))
		case p.PortName != "":
			names = append(names, p.PortName)
		case p.MinPort > p.MaxPort:
			faults = append(faults, fmt.Errorf("%q is no range: it ends before it begins", p))
		default:
			list = append(list, span{p.MinPort, p.MaxPort})
		}
	}
	slices.Sort(names)
	return newSpans(list...), slices.Compact(names), faults
}

// portsText is a list of ports as people write it.
func portsText(ports []numorstring.Port) string {
	texts := make([]string, len(ports))
	for i, p := range ports {
		texts[i] = strings.Replace(p.String(), ":", "-", 1)
	}
	return strings.Join(texts, ",")
}

// isPortName says whether a text can be the name of a port.
func isPortName(s string) bool {
	number := true
	for _, r := range s {
		switch {
		case r >= '0' && r <= '9':
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r == '_', r == '.', r == '-':
			number = false
		default:
			return false
		}
	}
	return !number && len(s) <= 128
}

// readICMP makes type and code the destination ports of the ICMP protocols.
func (p *parser) readICMP(is, not *api.ICMPFields) {
	if is == nil && not == nil {
		return
	}
	types, ok := p.readICMPFields("icmp", is)
	notTypes, okNot := p.readICMPFields("notICMP", not)
	if p.anyProtocol || p.exclude || p.protocol != protocolICMP && p.protocol != protocolICMPv6 {
		if ok && okNot && !p.oddProtocol {
			field := "icmp"
			if is == nil {
				field = "notICMP"
			}
			p.fault(field, "the rule's protocol is neither ICMP nor ICMPv6")
		}
		return
	}
	s := &p.parsedRule.sides[destination]
	if s.anyPort = false; types != nil {
		s.ports = types
	}
	s.notPorts = notTypes
}

func (p *parser) readICMPFields(field string, f *api.ICMPFields) (types spans, ok bool) {
	switch {
	case f == nil || f.Type == nil && f.Code == nil:
		return nil, true // asks for nothing
	case f.Type == nil:
		p.fault(field+".code", "%d without a type", *f.Code)
		return nil, false
	case *f.Type < 0 || *f.Type > 255:
		p.fault(field+".type", "%d is not in 0 to 255", *f.Type)
		return nil, false
	case f.Code == nil:
		first := uint16(*f.Type) << 8
		return spans{{first, first | 255}}, true
	case *f.Code < 0 || *f.Code > 255:
		p.fault(field+".code", "%d is not in 0 to 255", *f.Code)
		return nil, false
	}
	only := uint16(*f.Type)<<8 | uint16(*f.Code)
	return spans{{only, only}}, true
}
