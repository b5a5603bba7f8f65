package policytest

import (
	"net/netip"
	"slices"
	"strings"

	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/policy"
)

// newKubernetesPolicy reads a policy of Kubernetes as Kubernetes does.
func newKubernetesPolicy(r *api.StagedKubernetesNetworkPolicy) aPolicy {
	p := aPolicy{tier: "default", order: 1000, stages: []string{"normal"}, rules: make(map[string][]aRule)}
	p.selectors = append(p.selectors, func(labels map[string]string) bool { return isPod(labels) && has(labels, "", &r.Spec.PodSelector) })
	types := r.Spec.PolicyTypes
	if len(types) == 0 {
		types = []networking.PolicyType{"Ingress"}
		if len(r.Spec.Egress) > 0 {
			types = append(types, "Egress")
		}
	}
	if slices.Contains(types, "Ingress") {
		p.rules["ingress"] = []aRule{}
		for i, rule := range r.Spec.Ingress {
			p.rules["ingress"] = append(p.rules["ingress"], aRule{i, func(o *Oracle, packet policy.Packet) policy.Action {
				return o.kubernetes(rule.From, rule.Ports, r.Namespace, packet.Source, packet)
			}})
		}
	}
	if slices.Contains(types, "Egress") {
		p.rules["egress"] = []aRule{}
		for i, rule := range r.Spec.Egress {
			p.rules["egress"] = append(p.rules["egress"], aRule{i, func(o *Oracle, packet policy.Packet) policy.Action {
				return o.kubernetes(rule.To, rule.Ports, r.Namespace, packet.Destination, packet)
			}})
		}
	}
	return p
}

func isPod(labels map[string]string) bool { return labels["projectcalico.org/orchestrator"] == "k8s" }

// kubernetes applies a rule about a peer and the destination's port.
func (o *Oracle) kubernetes(peers []networking.NetworkPolicyPeer, ports []networking.NetworkPolicyPort, namespace string, peer netip.Addr, p policy.Packet) policy.Action {
	matchesPeer := len(peers) == 0 || slices.ContainsFunc(peers, func(x networking.NetworkPolicyPeer) bool {
		if x.IPBlock != nil {
			within := func(net string) bool { return netip.MustParsePrefix(net).Contains(peer) }
			return within(x.IPBlock.CIDR) && !slices.ContainsFunc(x.IPBlock.Except, within)
		}
		return slices.ContainsFunc(o.at(peer), func(there object) bool {
			if !isPod(there.labels) || x.PodSelector != nil && !has(there.labels, "", x.PodSelector) {
				return false
			}
			if x.NamespaceSelector == nil {
				return there.labels["projectcalico.org/namespace"] == namespace
			}
			return has(there.labels, "pcns.", x.NamespaceSelector)
		})
	})
	matchesPort := len(ports) == 0 || slices.ContainsFunc(ports, func(x networking.NetworkPolicyPort) bool {
		protocol := 6
		if x.Protocol != nil {
			protocol = map[string]int{"TCP": 6, "UDP": 17, "SCTP": 132}[string(*x.Protocol)]
		}
		if protocol != int(p.Protocol) {
			return false
		}
		switch {
		case x.Port == nil:
			return true
		case x.Port.Type == intstr.String:
			return slices.ContainsFunc(o.at(p.Destination), func(there object) bool {
				return slices.Contains(there.ports, port{x.Port.StrVal, protocol, p.DestinationPort})
			})
		case x.EndPort != nil:
			return int32(p.DestinationPort) >= x.Port.IntVal && int32(p.DestinationPort) <= *x.EndPort
		}
		return int32(p.DestinationPort) == x.Port.IntVal
	})
	if matchesPeer && matchesPort {
		return policy.Allow
	}
	return 0
}

// has says whether the labels with this prefix are selected.
func has(labels map[string]string, prefix string, s *metav1.LabelSelector) bool {
	for k, v := range s.MatchLabels {
		if is, ok := labels[prefix+k]; !ok || is != v {
			return false
		}
	}
	for _, e := range s.MatchExpressions {
		v, ok := labels[prefix+e.Key]
		in := ok && slices.Contains(e.Values, v)
		if !map[metav1.LabelSelectorOperator]bool{"In": in, "NotIn": !in, "Exists": ok, "DoesNotExist": !ok}[e.Operator] {
			return false
		}
	}
	return true
}

// prefixed are the labels that have a prefix, without it.
func prefixed(labels map[string]string, prefix string) map[string]string {
	view := make(map[string]string)
	for k, v := range labels {
		if rest, ok := strings.CutPrefix(k, prefix); ok {
			view[rest] = v
		}
	}
	return view
}
