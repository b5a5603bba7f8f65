package policytest

import (
	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"
	"pgregory.net/rapid"
)

func rules(t *rapid.T, most int) []v3.Rule {
	var out []v3.Rule
	for range rapid.IntRange(0, most).Draw(t, "rules") {
		out = append(out, Rules().Draw(t, "rule"))
	}
	return out
}

// Rules generates rules: those that Calico's validation accepts, some, such as with
// port 0 or host bits in a net, that it refuses and we understand, and some with a
// fault.
func Rules() *rapid.Generator[v3.Rule] {
	return rapid.Custom(func(t *rapid.T) v3.Rule {
		r := soundRule(t)
		if maybe(t, 20) {
			spoil(t, &r)
		}
		if maybe(t, 20) {
			r.Metadata = &v3.RuleMetadata{Annotations: map[string]string{"why": "not"}}
		}
		return r
	})
}

// spoil puts a fault into a rule.
func spoil(t *rapid.T, r *v3.Rule) {
	e := []*v3.EntityRule{&r.Source, &r.Destination}[rapid.IntRange(0, 1).Draw(t, "side")]
	bad := numorstring.ProtocolFromString(one(t, []string{"NONE", "300", "0"}))
	number := rapid.SampledFrom([]int{-1, 256}).Draw(t, "number")
	odd := []numorstring.Port{numorstring.SinglePort(80), {MinPort: 81, MaxPort: 80}}
	switch rapid.IntRange(0, 13).Draw(t, "fault") {
	case 0:
		r.Action = v3.Action(one(t, []string{"", "Drop", "allow"}))
	case 1:
		r.IPVersion = &number
	case 2:
		r.Protocol = &bad
	case 3:
		r.NotProtocol = &bad
	case 4:
		e.Nets = append(e.Nets, "10.0.0.0/33")
	case 5:
		e.NotNets = append(e.NotNets, "fd00::/x")
	case 6:
		e.Selector = "app ="
	case 7:
		e.NotSelector = "app ="
	case 8:
		e.NamespaceSelector = "app ="
	case 9:
		e.ServiceAccounts = &v3.ServiceAccountMatch{Names: some(t, accounts[1:], 1), Selector: "app ="}
	case 10:
		e.Ports = odd // of whatever protocol
	case 11:
		e.NotPorts = append(odd, numorstring.NamedPort("80:79"))
	case 12:
		r.ICMP = &v3.ICMPFields{Code: &number}
	case 13:
		r.NotICMP = &v3.ICMPFields{Type: &number}
	}
}

func soundRule(t *rapid.T) v3.Rule {
	r := v3.Rule{Action: v3.Action(one(t, []string{"Allow", "Allow", "Deny", "Deny", "Pass", "Log"}))}
	family := rapid.IntRange(0, 5).Draw(t, "family") // 4 and 6 say so, 0 leaves it open
	if family == 4 || family == 5 {
		version := 4 + family%2*2
		r.IPVersion = &version
	}
	ports := false
	switch rapid.IntRange(0, 3).Draw(t, "protocol") {
	case 0:
		p := numorstring.ProtocolFromString(one(t, []string{"TCP", "TCP", "UDP", "SCTP", "UDPLite"}))
		if maybe(t, 4) {
			p = numorstring.ProtocolFromInt(uint8(rapid.SampledFrom([]int{6, 17}).Draw(t, "number")))
		}
		r.Protocol = &p
		ports = true
	case 1:
		p := aProtocol(t)
		r.Protocol = &p
		if s := p.String(); s == "ICMP" || s == "ICMPv6" {
			r.ICMP, r.NotICMP = icmp(t), icmp(t)
		}
	}
	if maybe(t, 6) {
		p := aProtocol(t)
		r.NotProtocol = &p
	}
	nets := nets4
	if family == 5 || family%2 == 1 {
		nets = nets6
	}
	r.Source, r.Destination = entity(t, nets, ports), entity(t, nets, ports)
	switch rapid.IntRange(0, 40).Draw(t, "unenforced") {
	case 1:
		r.HTTP = &v3.HTTPMatch{Methods: []string{"GET"}}
	case 2:
		r.Destination.Services = &v3.ServiceMatch{Name: "svc", Namespace: "blue"}
	}
	return r
}

func aProtocol(t *rapid.T) numorstring.Protocol {
	name := one(t, protocols)
	if name == "47" {
		return numorstring.ProtocolFromInt(47)
	}
	return numorstring.ProtocolFromString(name)
}

func icmp(t *rapid.T) *v3.ICMPFields {
	if !maybe(t, 2) {
		return nil
	}
	f := new(v3.ICMPFields)
	if maybe(t, 6) {
		return f
	}
	n := rapid.SampledFrom([]int{0, 3, 8, 128}).Draw(t, "icmp")
	f.Type = &n
	if maybe(t, 2) {
		code := rapid.IntRange(0, 1).Draw(t, "code")
		f.Code = &code
	}
	return f
}

func entity(t *rapid.T, nets []string, ports bool) v3.EntityRule {
	var e v3.EntityRule
	if maybe(t, 3) {
		e.Nets = some(t, nets, 3)
	}
	if maybe(t, 5) {
		e.NotNets = some(t, nets, 2)
	}
	e.Selector = maybeSelector(t, 3)
	e.NotSelector = maybeSelector(t, 5)
	e.NamespaceSelector = maybeScope(t, 6)
	if maybe(t, 8) {
		e.ServiceAccounts = &v3.ServiceAccountMatch{Names: some(t, accounts[1:], 1), Selector: maybeSelector(t, 2)}
	}
	if ports {
		if maybe(t, 3) {
			e.Ports = somePorts(t)
		}
		if maybe(t, 5) {
			e.NotPorts = somePorts(t)
		}
	}
	return e
}

func somePorts(t *rapid.T) []numorstring.Port {
	var out []numorstring.Port
	for range rapid.IntRange(1, 3).Draw(t, "ports") {
		a, b := one(t, portList), one(t, portList)
		switch rapid.IntRange(0, 3).Draw(t, "port") {
		case 0, 1:
			out = append(out, numorstring.SinglePort(a))
		case 2:
			out = append(out, numorstring.Port{MinPort: min(a, b), MaxPort: max(a, b)})
		default:
			out = append(out, numorstring.NamedPort(one(t, portNames)))
		}
	}
	return out
}
