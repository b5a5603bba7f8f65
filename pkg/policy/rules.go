package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

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

// parseRule reads one rule of a policy in a namespace ("" for profiles and
// global policies). A rule with errUnenforced is returned as well, in the form
// that lets through less: what cannot be matched is not allowed, and is denied.
func parseRule(rule *api.Rule, namespace string) (*parsedRule, error) {
	r := &parsedRule{anyProtocol: true}
	if err := r.parseAction(rule.Action); err != nil {
		return nil, err
	}
	if v := rule.IPVersion; v != nil {
		if *v != 4 && *v != 6 {
			return nil, fmt.Errorf("ipVersion: %d is neither 4 nor 6", *v)
		}
		r.family = *v
	}
	if err := r.parseProtocol(rule.Protocol, rule.NotProtocol); err != nil {
		return nil, err
	}
	for i, e := range []*api.EntityRule{&rule.Source, &rule.Destination} {
		if err := r.parseSide(i, e, namespace); err != nil {
			return nil, err
		}
	}
	if err := r.parseICMP(rule.ICMP, rule.NotICMP); err != nil {
		return nil, err
	}
	return r, r.checkUnenforced(rule)
}

func (r *parsedRule) parseAction(a v3.Action) error {
	switch a {
	case v3.Allow:
		r.action = Allow
	case v3.Deny:
		r.action = Deny
	case v3.Log:
		r.action = Log
	case v3.Pass:
		r.action = Pass
	default:
		return fmt.Errorf("action: %q is none of Allow, Deny, Log, Pass", a)
	}
	return nil
}

func (r *parsedRule) checkUnenforced(rule *api.Rule) error {
	var err error
	switch {
	case rule.HTTP != nil && len(rule.HTTP.Methods)+len(rule.HTTP.Paths) > 0:
		err = fmt.Errorf("http: %w", errUnenforced)
	case rule.Source.Services != nil:
		err = fmt.Errorf("source.services: %w", errUnenforced)
	case rule.Destination.Services != nil:
		err = fmt.Errorf("destination.services: %w", errUnenforced)
	default:
		return nil
	}
	switch r.action {
	case Pass:
		r.action = Deny // the next tier might allow more than this one would
	case Allow, Log:
		r.never = true
	}
	return err
}

func (r *parsedRule) parseProtocol(is, not *numorstring.Protocol) error {
	if is != nil {
		n, ok := protocolNumber(*is)
		if !ok {
			return fmt.Errorf("protocol: %q is not known", is)
		}
		r.protocol, r.anyProtocol = n, false
	}
	if not == nil {
		return nil
	}
	n, ok := protocolNumber(*not)
	if !ok {
		return fmt.Errorf("notProtocol: %q is not known", not)
	}
	switch {
	case r.anyProtocol:
		r.protocol, r.anyProtocol, r.exclude = n, false, true
	case r.protocol == n:
		r.never = true
	}
	return nil
}

func (r *parsedRule) parseSide(i int, e *api.EntityRule, namespace string) error {
	s := &r.sides[i]
	name := [...]string{"source", "destination"}[i]
	var err error
	if s.nets, err = parsePrefixes(name+".nets", e.Nets); err != nil {
		return err
	}
	if s.notNets, err = parsePrefixes(name+".notNets", e.NotNets); err != nil {
		return err
	}
	r.limitFamily(s.nets)
	r.limitFamily(s.notNets)
	if s.match, s.not, err = entityMatch(name, e, namespace); err != nil {
		return err
	}
	if s.ports, s.names, err = parsePorts(e.Ports); err != nil {
		return fmt.Errorf("%s.ports: %w", name, err)
	}
	if s.notPorts, s.notNames, err = parsePorts(e.NotPorts); err != nil {
		return fmt.Errorf("%s.notPorts: %w", name, err)
	}
	if s.anyPort = len(e.Ports) == 0; s.anyPort {
		s.ports = allPorts
	}
	if s.asksPorts() && (r.anyProtocol || r.exclude || !hasPorts(r.protocol)) {
		return fmt.Errorf("%s.ports: the rule's protocol is not one that has ports", name)
	}
	return nil
}

// limitFamily narrows the rule to the family of the networks, if they are of one
// family: then the rule does not exist for the other.
func (r *parsedRule) limitFamily(nets []netip.Prefix) {
	has4 := slices.ContainsFunc(nets, func(n netip.Prefix) bool { return n.Addr().Is4() })
	has6 := slices.ContainsFunc(nets, func(n netip.Prefix) bool { return n.Addr().Is6() })
	if has4 == has6 {
		return
	}
	family := 4
	if has6 {
		family = 6
	}
	if r.family != 0 && r.family != family {
		r.never = true
	}
	r.family = family
}

func parsePorts(ports []numorstring.Port) (numbers spans, names []string, err error) {
	var list []span
	for _, p := range ports {
		switch {
		case p.PortName != "":
			names = append(names, p.PortName)
		case p.MinPort > p.MaxPort:
			return nil, nil, fmt.Errorf("%s is no range", p)
		default:
			list = append(list, span{p.MinPort, p.MaxPort})
		}
	}
	slices.Sort(names)
	return newSpans(list...), slices.Compact(names), nil
}

// parseICMP makes type and code the destination ports of the ICMP protocols.
func (r *parsedRule) parseICMP(is, not *api.ICMPFields) error {
	if is == nil && not == nil {
		return nil
	}
	if r.anyProtocol || r.exclude || r.protocol != protocolICMP && r.protocol != protocolICMPv6 {
		return errors.New("icmp: needs the protocol ICMP or ICMPv6")
	}
	s := &r.sides[destination]
	s.anyPort = false
	types, err := parseICMPFields(is)
	if err != nil {
		return fmt.Errorf("icmp: %w", err)
	}
	if types != nil {
		s.ports = types
	}
	if s.notPorts, err = parseICMPFields(not); err != nil {
		return fmt.Errorf("notICMP: %w", err)
	}
	return nil
}

func parseICMPFields(f *api.ICMPFields) (spans, error) {
	switch {
	case f == nil || f.Type == nil && f.Code == nil:
		return nil, nil // asks for nothing
	case f.Type == nil:
		return nil, errors.New("a code without a type")
	case *f.Type < 0 || *f.Type > 255:
		return nil, fmt.Errorf("type %d is not in 0 to 255", *f.Type)
	case f.Code == nil:
		first := uint16(*f.Type) << 8
		return spans{{first, first | 255}}, nil
	case *f.Code < 0 || *f.Code > 255:
		return nil, fmt.Errorf("code %d is not in 0 to 255", *f.Code)
	}
	only := uint16(*f.Type)<<8 | uint16(*f.Code)
	return spans{{only, only}}, nil
}
