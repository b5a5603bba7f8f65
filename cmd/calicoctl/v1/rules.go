package v1

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"calico-xdp/pkg/api"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"
)

// Rule is a rule as `profile rule json` has it. What v1 could not say is in fields of
// the later v1, with "!" for a negation.
type Rule struct {
	Action    string `json:"action,omitempty"`
	Protocol  *Text  `json:"protocol,omitempty"`
	IPVersion *int   `json:"ip_version,omitempty"`
	Entity
	ICMPType *int `json:"icmp_type,omitempty"`
	ICMPCode *int `json:"icmp_code,omitempty"`

	NotProtocol *Text `json:"!protocol,omitempty"`
	NotICMPType *int  `json:"!icmp_type,omitempty"`
	NotICMPCode *int  `json:"!icmp_code,omitempty"`
}

// Entity is both sides of a rule.
type Entity struct {
	SrcTag      string   `json:"src_tag,omitempty"`
	SrcNet      string   `json:"src_net,omitempty"`
	SrcNets     []string `json:"src_nets,omitempty"`
	SrcSelector string   `json:"src_selector,omitempty"`
	SrcPorts    []Text   `json:"src_ports,omitempty"`
	DstTag      string   `json:"dst_tag,omitempty"`
	DstNet      string   `json:"dst_net,omitempty"`
	DstNets     []string `json:"dst_nets,omitempty"`
	DstSelector string   `json:"dst_selector,omitempty"`
	DstPorts    []Text   `json:"dst_ports,omitempty"`

	NotSrcTag      string   `json:"!src_tag,omitempty"`
	NotSrcNet      string   `json:"!src_net,omitempty"`
	NotSrcNets     []string `json:"!src_nets,omitempty"`
	NotSrcSelector string   `json:"!src_selector,omitempty"`
	NotSrcPorts    []Text   `json:"!src_ports,omitempty"`
	NotDstTag      string   `json:"!dst_tag,omitempty"`
	NotDstNet      string   `json:"!dst_net,omitempty"`
	NotDstNets     []string `json:"!dst_nets,omitempty"`
	NotDstSelector string   `json:"!dst_selector,omitempty"`
	NotDstPorts    []Text   `json:"!dst_ports,omitempty"`
}

// Rules are those of a profile.
type Rules struct {
	ID       string `json:"id"`
	Inbound  []Rule `json:"inbound_rules"`
	Outbound []Rule `json:"outbound_rules"`
}

// Text is a number or a string in JSON. Numbers are written as such.
type Text string

// UnmarshalJSON implements json.Unmarshaler.
func (t *Text) UnmarshalJSON(data []byte) error {
	if data[0] == '"' {
		return json.Unmarshal(data, (*string)(t))
	}
	if _, err := strconv.Atoi(string(data)); err != nil {
		return fmt.Errorf("%s is neither a number nor a text", data)
	}
	*t = Text(data)
	return nil
}

// MarshalJSON implements json.Marshaler.
func (t Text) MarshalJSON() ([]byte, error) {
	if n, err := strconv.Atoi(string(t)); err == nil {
		return []byte(strconv.Itoa(n)), nil
	}
	return json.Marshal(string(t))
}

// ParseRules reads the JSON that `profile rule update` gets, strictly.
func ParseRules(data []byte) (Rules, error) {
	var r Rules
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return r, err
	}
	for _, name := range []string{"id", "inbound_rules", "outbound_rules"} {
		if fields[name] == nil {
			return r, fmt.Errorf("%s is missing", name)
		}
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	err := d.Decode(&r)
	return r, err
}

var tagSelector = regexp.MustCompile(`^\s*([A-Za-z0-9._/-]+) == ''\s*$`)

// FromV3 returns rules of v3 in the words of v1. What v1 has no words for is an error.
func FromV3(rules []api.Rule) ([]Rule, error) {
	out := []Rule{}
	for i, r := range rules {
		one, err := fromV3(r)
		if err != nil {
			return nil, fmt.Errorf("rule %d: %w", i+1, err)
		}
		out = append(out, one)
	}
	return out, nil
}

func fromV3(r api.Rule) (Rule, error) {
	if r.HTTP != nil || r.NotProtocol != nil && r.Protocol != nil ||
		r.Source.ServiceAccounts != nil || r.Destination.ServiceAccounts != nil || r.Source.Services != nil || r.Destination.Services != nil ||
		r.Source.NamespaceSelector+r.Destination.NamespaceSelector != "" {
		return Rule{}, errors.New("it has what only v3 can say: 'calicoctl get profile' shows it")
	}
	out := Rule{Action: strings.ToLower(string(r.Action)), IPVersion: r.IPVersion}
	out.Protocol, out.NotProtocol = protocolText(r.Protocol), protocolText(r.NotProtocol)
	if r.ICMP != nil {
		out.ICMPType, out.ICMPCode = r.ICMP.Type, r.ICMP.Code
	}
	if r.NotICMP != nil {
		out.NotICMPType, out.NotICMPCode = r.NotICMP.Type, r.NotICMP.Code
	}
	out.SrcTag, out.SrcSelector = splitSelector(r.Source.Selector)
	out.DstTag, out.DstSelector = splitSelector(r.Destination.Selector)
	out.NotSrcTag, out.NotSrcSelector = splitSelector(r.Source.NotSelector)
	out.NotDstTag, out.NotDstSelector = splitSelector(r.Destination.NotSelector)
	out.SrcNet, out.SrcNets = splitNets(r.Source.Nets)
	out.DstNet, out.DstNets = splitNets(r.Destination.Nets)
	out.NotSrcNet, out.NotSrcNets = splitNets(r.Source.NotNets)
	out.NotDstNet, out.NotDstNets = splitNets(r.Destination.NotNets)
	out.SrcPorts, out.DstPorts = portTexts(r.Source.Ports), portTexts(r.Destination.Ports)
	out.NotSrcPorts, out.NotDstPorts = portTexts(r.Source.NotPorts), portTexts(r.Destination.NotPorts)
	return out, nil
}

func protocolText(p *numorstring.Protocol) *Text {
	if p == nil {
		return nil
	}
	return new(Text(strings.ToLower(p.String())))
}

func splitSelector(s string) (tag, selector string) {
	if m := tagSelector.FindStringSubmatch(s); m != nil {
		return m[1], ""
	}
	return "", s
}

func splitNets(nets []string) (one string, many []string) {
	if len(nets) == 1 {
		return nets[0], nil
	}
	return "", nets
}

func portTexts(ports []numorstring.Port) (out []Text) {
	for _, p := range ports {
		out = append(out, Text(p.String()))
	}
	return out
}

// ToV3 returns v1 rules as v3 has them.
func ToV3(rules []Rule) ([]api.Rule, error) {
	var out []api.Rule
	for i, r := range rules {
		one, err := r.toV3()
		if err != nil {
			return nil, fmt.Errorf("rule %d: %w", i+1, err)
		}
		out = append(out, one)
	}
	return out, nil
}

func (r *Rule) toV3() (out api.Rule, err error) {
	actions := map[string]v3.Action{"": v3.Allow, "allow": v3.Allow, "deny": v3.Deny, "log": v3.Log, "pass": v3.Pass, "next-tier": v3.Pass}
	action, ok := actions[strings.ToLower(r.Action)]
	if !ok {
		return out, fmt.Errorf("action: %q is none of allow, deny, log, pass", r.Action)
	}
	out.Action, out.IPVersion = action, r.IPVersion
	if out.Protocol, err = protocolOf(r.Protocol); err != nil {
		return out, err
	}
	if out.NotProtocol, err = protocolOf(r.NotProtocol); err != nil {
		return out, err
	}
	if r.ICMPType != nil || r.ICMPCode != nil {
		out.ICMP = &v3.ICMPFields{Type: r.ICMPType, Code: r.ICMPCode}
	}
	if r.NotICMPType != nil || r.NotICMPCode != nil {
		out.NotICMP = &v3.ICMPFields{Type: r.NotICMPType, Code: r.NotICMPCode}
	}
	out.Source.Selector, out.Source.NotSelector = joinSelector(r.SrcTag, r.SrcSelector), joinSelector(r.NotSrcTag, r.NotSrcSelector)
	out.Destination.Selector, out.Destination.NotSelector = joinSelector(r.DstTag, r.DstSelector), joinSelector(r.NotDstTag, r.NotDstSelector)
	for _, n := range []struct {
		to   *[]string
		many []string
		one  string
	}{
		{&out.Source.Nets, r.SrcNets, r.SrcNet}, {&out.Source.NotNets, r.NotSrcNets, r.NotSrcNet},
		{&out.Destination.Nets, r.DstNets, r.DstNet}, {&out.Destination.NotNets, r.NotDstNets, r.NotDstNet},
	} {
		if *n.to, err = joinNets(n.many, n.one); err != nil {
			return out, err
		}
	}
	for _, p := range []struct {
		to   *[]numorstring.Port
		from []Text
	}{
		{&out.Source.Ports, r.SrcPorts}, {&out.Source.NotPorts, r.NotSrcPorts},
		{&out.Destination.Ports, r.DstPorts}, {&out.Destination.NotPorts, r.NotDstPorts},
	} {
		for _, text := range p.from {
			port, err := numorstring.PortFromString(strings.ReplaceAll(string(text), "-", ":"))
			if err != nil {
				return out, fmt.Errorf("port %s: %w", text, err)
			}
			*p.to = append(*p.to, port)
		}
	}
	return out, nil
}

func protocolOf(t *Text) (*numorstring.Protocol, error) {
	if t == nil {
		return nil, nil
	}
	if n, err := strconv.ParseUint(string(*t), 10, 8); err == nil {
		return new(numorstring.ProtocolFromInt(uint8(n))), nil
	}
	for _, name := range []string{"TCP", "UDP", "ICMP", "ICMPv6", "SCTP", "UDPLite"} {
		if strings.EqualFold(name, string(*t)) {
			return new(numorstring.ProtocolFromString(name)), nil
		}
	}
	return nil, fmt.Errorf("protocol: %q is not known", string(*t))
}

func joinSelector(tag, selector string) string {
	selector = strings.ReplaceAll(selector, "calico/k8s_ns", "projectcalico.org/namespace")
	switch {
	case tag == "":
		return selector
	case selector == "":
		return tag + " == ''"
	}
	return "(" + selector + ") && " + tag + " == ''"
}

// joinNets masks the host bits, which v1 let pass.
func joinNets(many []string, one string) ([]string, error) {
	if one != "" {
		many = append(slices.Clone(many), one)
	}
	var out []string
	for _, text := range many {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			a, err2 := netip.ParseAddr(text)
			if err2 != nil {
				return nil, fmt.Errorf("%q is not a network", text)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		out = append(out, p.Masked().String())
	}
	return out, nil
}
