package api

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"
	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func (f *faults) tier(t *Tier) {
	fixed := map[string]float64{
		DefaultTier:     v3.DefaultTierOrder,
		"kube-admin":    v3.AdminNetworkPolicyTierOrder,
		"kube-baseline": v3.BaselineAdminNetworkPolicyTierOrder,
		// What Calico 3.31 calls those two, and makes anew at every start.
		"adminnetworkpolicy":         v3.AdminNetworkPolicyTierOrder,
		"baselineadminnetworkpolicy": v3.BaselineAdminNetworkPolicyTierOrder,
	}
	if order, ok := fixed[t.Name]; ok && (t.Spec.Order == nil || *t.Spec.Order != order) {
		f.add("spec.order", deref(t.Spec.Order), "the order of this tier is %v", order)
	}
	if t.Name == DefaultTier && t.Spec.DefaultAction != nil && *t.Spec.DefaultAction != v3.Deny {
		f.add("spec.defaultAction", *t.Spec.DefaultAction, "the default action of this tier is Deny")
	}
}

// deref returns what p points to, nil for nil.
func deref[T any](p *T) any {
	if p == nil {
		return nil
	}
	return *p
}

func (f *faults) policy(p *Policy) {
	if p.StagedAction == v3.StagedActionDelete {
		if len(p.Ingress)+len(p.Egress)+len(p.Types) > 0 || p.Selector != "" || p.Order != nil {
			f.add("spec.stagedAction", p.StagedAction, "the policy to delete may have nothing but a tier")
		}
		return
	}
	for i, t := range p.Types {
		if slices.Contains(p.Types[:i], t) {
			f.add("spec.types", t, "is there twice")
		}
	}
	for _, s := range []struct{ path, selector string }{
		{"spec.selector", p.Selector}, {"spec.namespaceSelector", p.NamespaceSelector},
		{"spec.serviceAccountSelector", p.ServiceAccountSelector},
	} {
		if usesGlobal(s.selector) {
			f.add(s.path, s.selector, "global() is only for namespaceSelector in rules")
		}
	}
	if p.DoNotTrack && p.PreDNAT {
		f.add("spec.preDNAT", true, "not together with doNotTrack")
	}
	if (p.DoNotTrack || p.PreDNAT) && !p.ApplyOnForward {
		f.add("spec.applyOnForward", false, "doNotTrack and preDNAT need applyOnForward: true")
	}
	if p.PreDNAT && (len(p.Egress) > 0 || slices.Contains(p.Types, v3.PolicyTypeEgress)) {
		f.add("spec.preDNAT", true, "not with egress rules or type Egress")
	}
	f.rules("spec.ingress", p.Ingress)
	f.rules("spec.egress", p.Egress)
	for i, r := range p.Ingress {
		path := fmt.Sprintf("spec.ingress[%d]", i)
		if r.Destination.Services != nil {
			f.add(path+".destination.services", r.Destination.Services.Name, "only for the source of ingress rules")
		}
		f.serviceNamespace(path+".source.services", p, r.Source.Services)
	}
	for i, r := range p.Egress {
		path := fmt.Sprintf("spec.egress[%d]", i)
		if r.Source.Services != nil {
			f.add(path+".source.services", r.Source.Services.Name, "only for the destination of egress rules")
		}
		if r.HTTP != nil {
			f.add(path+".http", nil, "only for ingress rules")
		}
		f.serviceNamespace(path+".destination.services", p, r.Destination.Services)
	}
}

// serviceNamespace checks that a global policy says whose service it means.
func (f *faults) serviceNamespace(path string, p *Policy, s *v3.ServiceMatch) {
	if s != nil && p.Key.Namespace == "" && s.Namespace == "" {
		f.add(path+".namespace", nil, "missing: a global policy has no namespace of its own")
	}
}

// usesGlobal tells whether global() is anywhere in a selector that parses.
func usesGlobal(selector string) bool {
	s, err := ParseSelector(selector)
	return err == nil && contains(s.root, global{})
}

func (f *faults) rules(path string, rules []Rule) {
	for i := range rules {
		f.rule(fmt.Sprintf("%s[%d]", path, i), &rules[i])
	}
}

// rule checks how the fields of a rule go together.
func (f *faults) rule(path string, r *Rule) {
	protocol := protocolOf(r.Protocol)
	f.entity(path+".source", &r.Source, protocol)
	f.entity(path+".destination", &r.Destination, protocol)
	if s := r.Destination.Services; s != nil && len(r.Destination.Ports)+len(r.Destination.NotPorts) > 0 {
		f.add(path+".destination.ports", nil, "not together with services, which have ports")
	}
	// By number it means the same; some releases of Calico refuse that.
	if r.ICMP != nil && protocol != 1 && protocol != 58 {
		f.add(path+".icmp", nil, "needs protocol ICMP or ICMPv6")
	}
	for _, c := range []struct {
		field string
		icmp  *ICMPFields
	}{{".icmp", r.ICMP}, {".notICMP", r.NotICMP}} {
		if c.icmp != nil && c.icmp.Code != nil && c.icmp.Type == nil {
			f.add(path+c.field+".code", *c.icmp.Code, "needs a type")
		}
	}
	for _, c := range []struct {
		field    string
		protocol *numorstring.Protocol
	}{{".protocol", r.Protocol}, {".notProtocol", r.NotProtocol}} {
		switch n := protocolOf(c.protocol); {
		case r.IPVersion == nil:
		case n == 1 && *r.IPVersion != 4:
			f.add(path+c.field, c.protocol.String(), "ICMP needs ipVersion 4, not %d", *r.IPVersion)
		case n == 58 && *r.IPVersion != 6:
			f.add(path+c.field, c.protocol.String(), "ICMPv6 needs ipVersion 6, not %d", *r.IPVersion)
		}
	}
	f.families(path, r)
	if r.HTTP != nil {
		f.http(path, r)
	}
	if r.Metadata != nil {
		f.annotations(path+".metadata.annotations", r.Metadata.Annotations)
	}
}

// kubernetesPolicy checks what Kubernetes itself would refuse and Calico's nodes could not
// make rules of.
func (f *faults) kubernetesPolicy(s *v3.StagedKubernetesNetworkPolicySpec) {
	ports := func(path string, ports []networking.NetworkPolicyPort) {
		for i, p := range ports {
			at := fmt.Sprintf("%s.ports[%d]", path, i)
			if p.Port != nil && p.Port.Type == intstr.String {
				if _, err := numorstring.PortFromString(p.Port.StrVal); err != nil {
					f.add(at+".port", p.Port.StrVal, "expected a port or its name")
				}
			}
			switch {
			case p.Port != nil && p.Port.Type == intstr.Int && (p.Port.IntVal < 0 || p.Port.IntVal > 65535):
				f.add(at+".port", p.Port.IntVal, "expected ports from 0 to 65535")
			case p.EndPort == nil:
			case p.Port == nil || p.Port.Type != intstr.Int:
				f.add(at+".endPort", *p.EndPort, "needs a port by number")
			case *p.EndPort < p.Port.IntVal || *p.EndPort > 65535:
				f.add(at+".endPort", *p.EndPort, "expected a port from %d on", p.Port.IntVal)
			}
		}
	}
	for i, r := range s.Ingress {
		ports(fmt.Sprintf("spec.ingress[%d]", i), r.Ports)
	}
	for i, r := range s.Egress {
		ports(fmt.Sprintf("spec.egress[%d]", i), r.Ports)
	}
}

// protocolOf returns the protocol's number, 0 if there is none.
func protocolOf(p *numorstring.Protocol) uint8 {
	if p == nil {
		return 0
	}
	n, _ := NumberOf(*p)
	return n
}

// entity checks one side of a rule.
func (f *faults) entity(path string, e *EntityRule, protocol uint8) {
	if len(e.Ports)+len(e.NotPorts) > 0 && !takesPorts(protocol) {
		field := ".ports"
		if len(e.Ports) == 0 {
			field = ".notPorts"
		}
		f.add(path+field, nil, "needs protocol TCP, UDP or SCTP")
	}
	for _, s := range []struct{ field, selector string }{{".selector", e.Selector}, {".notSelector", e.NotSelector}} {
		if usesGlobal(s.selector) {
			f.add(path+s.field, s.selector, "global() is only for namespaceSelector")
		}
	}
	if s, err := ParseSelector(e.NamespaceSelector); err == nil && !s.IsGlobal() && contains(s.root, global{}) {
		f.add(path+".namespaceSelector", e.NamespaceSelector, "global() stands alone")
	}
	if e.Services == nil {
		return
	}
	if e.Services.Name == "" {
		f.add(path+".services.name", nil, "missing")
	}
	if e.Selector != "" || e.NotSelector != "" || e.NamespaceSelector != "" || e.ServiceAccounts != nil || len(e.Nets)+len(e.NotNets) > 0 {
		f.add(path+".services", e.Services.Name, "not together with selectors, service accounts or nets")
	}
}

// families checks that all nets of a rule have a length and are of one family,
// that of its ipVersion.
func (f *faults) families(path string, r *Rule) {
	version := 0
	if r.IPVersion != nil {
		version = *r.IPVersion
	}
	for _, l := range []struct {
		field string
		nets  []string
	}{
		{".source.nets", r.Source.Nets}, {".source.notNets", r.Source.NotNets},
		{".destination.nets", r.Destination.Nets}, {".destination.notNets", r.Destination.NotNets},
	} {
		for i, s := range l.nets {
			at := fmt.Sprintf("%s%s[%d]", path, l.field, i)
			p, err := netip.ParsePrefix(s)
			if err != nil {
				if _, err := netip.ParseAddr(s); err == nil {
					f.add(at, s, "a prefix length is missing")
				}
				continue // anything else was noted with the field
			}
			family := 4
			if p.Addr().Is6() {
				family = 6
			}
			if p.Bits() == 0 && strings.HasSuffix(l.field, ".notNets") {
				f.add(at, s, "without all addresses the rule matches nothing")
			}
			switch {
			case version == 0:
				version = family
			case version != family && r.IPVersion != nil:
				f.add(at, s, "the rule's ipVersion is %d", version)
			case version != family:
				f.add(at, s, "the rule has IPv%d nets already", version)
			}
		}
	}
}

func (f *faults) http(path string, r *Rule) {
	if r.Action != v3.Allow {
		f.add(path+".http", nil, "only for rules with action Allow")
	}
	if r.Protocol != nil && protocolOf(r.Protocol) != 6 {
		f.add(path+".protocol", r.Protocol.String(), "http needs protocol TCP")
	}
	for i, m := range r.HTTP.Methods {
		if slices.Contains(r.HTTP.Methods[:i], m) {
			f.add(path+".http.methods", m, "is there twice")
		}
	}
	for i, p := range r.HTTP.Paths {
		at, v := fmt.Sprintf("%s.http.paths[%d]", path, i), p.Exact+p.Prefix
		if (p.Exact == "") == (p.Prefix == "") {
			f.add(at, nil, "expected exact or prefix")
		} else if !strings.HasPrefix(v, "/") || strings.ContainsAny(v, "? #") {
			f.add(at, v, "expected a path that begins with / and has no blank, ? or #")
		}
	}
}
