package api

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// kubernetesOrder is the order that Calico gives to Kubernetes' policies.
const kubernetesOrder = 1000.0

// KubernetesPolicyOf returns a staged policy of Kubernetes as the Calico policy that it
// would become. One of its rules can be several there: IngressFrom and EgressFrom say
// which.
func KubernetesPolicyOf(r *StagedKubernetesNetworkPolicy) *Policy {
	order := kubernetesOrder
	p := &Policy{
		Key: KeyOf(r), StagedAction: r.Spec.StagedAction,
		Tier: DefaultTier, Order: &order, Selector: podSelector(&r.Spec.PodSelector),
		IngressFrom: []int{}, EgressFrom: []int{},
	}
	for i, rule := range r.Spec.Ingress {
		for _, to := range kubernetesPorts(rule.Ports) {
			for _, from := range kubernetesPeers(rule.From) {
				to.Source = from
				p.Ingress, p.IngressFrom = append(p.Ingress, to), append(p.IngressFrom, i)
			}
		}
	}
	for i, rule := range r.Spec.Egress {
		for _, to := range kubernetesPorts(rule.Ports) {
			for _, peer := range kubernetesPeers(rule.To) {
				peer.Ports = to.Destination.Ports
				to.Destination = peer
				p.Egress, p.EgressFrom = append(p.Egress, to), append(p.EgressFrom, i)
			}
		}
	}
	for _, t := range r.Spec.PolicyTypes {
		p.Types = append(p.Types, v3.PolicyType(t))
	}
	if len(p.Types) == 0 {
		p.Types = []v3.PolicyType{v3.PolicyTypeIngress}
		if len(r.Spec.Egress) > 0 {
			p.Types = append(p.Types, v3.PolicyTypeEgress)
		}
	}
	return p
}

// kubernetesPorts returns a rule for each protocol of a list of ports; one that asks
// for nothing if the list is empty.
func kubernetesPorts(ports []networking.NetworkPolicyPort) []Rule {
	if len(ports) == 0 {
		return []Rule{{Action: v3.Allow}}
	}
	all := make(map[string]bool) // protocols of which every port is meant
	lists := make(map[string][]numorstring.Port)
	for _, p := range ports {
		protocol := numorstring.ProtocolTCP
		if p.Protocol != nil {
			protocol = string(*p.Protocol)
		}
		if p.Port == nil {
			all[protocol] = true
			lists[protocol] = nil
		} else {
			lists[protocol] = append(lists[protocol], kubernetesPort(p))
		}
	}
	var rules []Rule
	for _, name := range slices.Sorted(maps.Keys(lists)) {
		protocol := numorstring.ProtocolFromString(name)
		r := Rule{Action: v3.Allow, Protocol: &protocol}
		if !all[name] {
			r.Destination.Ports = lists[name]
		}
		rules = append(rules, r)
	}
	return rules
}

// kubernetesPort returns a port by number or name, or a range. What is none of them
// has a name that no port can have.
func kubernetesPort(p networking.NetworkPolicyPort) numorstring.Port {
	if p.Port.Type == intstr.String {
		return numorstring.NamedPort(p.Port.StrVal)
	}
	from, to := p.Port.IntVal, p.Port.IntVal
	if p.EndPort != nil {
		to = *p.EndPort
	}
	if from < 0 || to > 65535 || from > to {
		return numorstring.NamedPort(fmt.Sprintf("%d:%d", from, to))
	}
	return numorstring.Port{MinPort: uint16(from), MaxPort: uint16(to)}
}

// kubernetesPeers returns the sides of the rules that match one of the peers.
func kubernetesPeers(peers []networking.NetworkPolicyPeer) []EntityRule {
	if len(peers) == 0 {
		return []EntityRule{{}}
	}
	var sides []EntityRule
	for _, p := range peers {
		var e EntityRule
		if p.IPBlock != nil {
			e.Nets, e.NotNets = []string{p.IPBlock.CIDR}, p.IPBlock.Except
		} else {
			e.Selector = podSelector(p.PodSelector)
			if p.NamespaceSelector != nil {
				e.NamespaceSelector = "all()"
				if parts := labelSelector(p.NamespaceSelector); len(parts) > 0 {
					e.NamespaceSelector = strings.Join(parts, " && ")
				}
			}
		}
		sides = append(sides, e)
	}
	return sides
}

// podSelector returns a selector of Kubernetes' workloads.
func podSelector(s *metav1.LabelSelector) string {
	return strings.Join(append([]string{v3.LabelOrchestrator + " == 'k8s'"}, labelSelector(s)...), " && ")
}

// labelSelector returns the parts of a selector, which all have to hold. An operator
// that Kubernetes does not have becomes a selector that cannot be read.
func labelSelector(s *metav1.LabelSelector) (parts []string) {
	if s == nil {
		return nil
	}
	for _, key := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		parts = append(parts, fmt.Sprintf("%s == '%s'", key, s.MatchLabels[key]))
	}
	for _, e := range s.MatchExpressions {
		values := "{}"
		if len(e.Values) > 0 {
			values = "{'" + strings.Join(e.Values, "', '") + "'}"
		}
		switch e.Operator {
		case metav1.LabelSelectorOpIn:
			parts = append(parts, e.Key+" in "+values)
		case metav1.LabelSelectorOpNotIn:
			parts = append(parts, e.Key+" not in "+values)
		case metav1.LabelSelectorOpExists:
			parts = append(parts, "has("+e.Key+")")
		case metav1.LabelSelectorOpDoesNotExist:
			parts = append(parts, "!has("+e.Key+")")
		default:
			parts = append(parts, fmt.Sprintf("%s %s %s", e.Key, e.Operator, values))
		}
	}
	return parts
}
