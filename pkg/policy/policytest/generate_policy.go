package policytest

import (
	"fmt"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"

	"calico-xdp/pkg/api"
)

func networkPolicy(t *rapid.T, n int) api.Resource {
	name := fmt.Sprint("p", n)
	if maybe(t, 8) {
		name = fmt.Sprint("knp.default.p", n) // as Kubernetes' are stored
	}
	p := &v3.NetworkPolicy{TypeMeta: kind("NetworkPolicy"), ObjectMeta: meta(one(t, namespaces), name, nil)}
	p.Spec = networkPolicySpec(t)
	return p
}

func networkPolicySpec(t *rapid.T) (s v3.NetworkPolicySpec) {
	s.Tier, s.Order = policyTier(t), order(t)
	s.Selector = maybeSelector(t, 2)
	s.ServiceAccountSelector = maybeScope(t, 6)
	s.Types, s.Ingress, s.Egress = types(t), rules(t, 3), rules(t, 3)
	s.PerformanceHints = hints(t)
	return s
}

func globalNetworkPolicy(t *rapid.T, n int) api.Resource {
	p := &v3.GlobalNetworkPolicy{TypeMeta: kind("GlobalNetworkPolicy"), ObjectMeta: meta("", fmt.Sprint("p", n), nil)}
	p.Spec = globalNetworkPolicySpec(t)
	return p
}

func globalNetworkPolicySpec(t *rapid.T) (s v3.GlobalNetworkPolicySpec) {
	s.Tier, s.Order = policyTier(t), order(t)
	s.Selector = maybeSelector(t, 2)
	s.NamespaceSelector = maybeScope(t, 5)
	s.ServiceAccountSelector = maybeScope(t, 6)
	s.Types, s.Ingress, s.Egress = types(t), rules(t, 3), rules(t, 3)
	s.PerformanceHints = hints(t)
	switch rapid.IntRange(0, 9).Draw(t, "flags") {
	case 1:
		s.DoNotTrack, s.ApplyOnForward = true, true
	case 2:
		s.PreDNAT, s.ApplyOnForward = true, true
	case 3, 4:
		s.ApplyOnForward = true
	}
	return s
}

func hints(t *rapid.T) []v3.PolicyPerformanceHint {
	if maybe(t, 10) {
		return []v3.PolicyPerformanceHint{v3.PerfHintAssumeNeededOnEveryNode}
	}
	return nil
}

func stagedGlobalNetworkPolicy(t *rapid.T, n int) api.Resource {
	p := &v3.StagedGlobalNetworkPolicy{TypeMeta: kind("StagedGlobalNetworkPolicy"), ObjectMeta: meta("", fmt.Sprint("p", n), nil)}
	p.Spec = v3.StagedGlobalNetworkPolicySpec{StagedAction: stagedAction(t)}
	if s := globalNetworkPolicySpec(t); p.Spec.StagedAction != v3.StagedActionDelete {
		p.Spec.Tier, p.Spec.Order, p.Spec.Selector = s.Tier, s.Order, s.Selector
		p.Spec.NamespaceSelector, p.Spec.ServiceAccountSelector = s.NamespaceSelector, s.ServiceAccountSelector
		p.Spec.Types, p.Spec.Ingress, p.Spec.Egress = s.Types, s.Ingress, s.Egress
		p.Spec.DoNotTrack, p.Spec.PreDNAT, p.Spec.ApplyOnForward = s.DoNotTrack, s.PreDNAT, s.ApplyOnForward
	}
	return p
}

func stagedNetworkPolicy(t *rapid.T, n int) api.Resource {
	name := fmt.Sprint("p", n)
	if maybe(t, 8) {
		name = fmt.Sprint("knp.default.p", n)
	}
	p := &v3.StagedNetworkPolicy{TypeMeta: kind("StagedNetworkPolicy"), ObjectMeta: meta(one(t, namespaces), name, nil)}
	p.Spec = v3.StagedNetworkPolicySpec{StagedAction: stagedAction(t)}
	if s := networkPolicySpec(t); p.Spec.StagedAction != v3.StagedActionDelete {
		p.Spec.Tier, p.Spec.Order, p.Spec.Selector, p.Spec.ServiceAccountSelector = s.Tier, s.Order, s.Selector, s.ServiceAccountSelector
		p.Spec.Types, p.Spec.Ingress, p.Spec.Egress = s.Types, s.Ingress, s.Egress
	}
	return p
}

func stagedAction(t *rapid.T) v3.StagedAction {
	return v3.StagedAction(one(t, []string{"", "Set", "Set", "Learn", "Delete", "Ignore"}))
}

func stagedKubernetesNetworkPolicy(t *rapid.T, n int) api.Resource {
	p := &v3.StagedKubernetesNetworkPolicy{TypeMeta: kind("StagedKubernetesNetworkPolicy"), ObjectMeta: meta(one(t, namespaces), fmt.Sprint("p", n), nil)}
	p.Spec.StagedAction = stagedAction(t)
	p.Spec.PodSelector = labelSelector(t)
	p.Spec.PolicyTypes = [][]networking.PolicyType{nil, {"Ingress"}, {"Egress"}, {"Ingress", "Egress"}}[rapid.IntRange(0, 3).Draw(t, "types")]
	for range rapid.IntRange(0, 2).Draw(t, "ingress") {
		p.Spec.Ingress = append(p.Spec.Ingress, networking.NetworkPolicyIngressRule{From: kubernetesPeers(t), Ports: kubernetesPorts(t)})
	}
	for range rapid.IntRange(0, 2).Draw(t, "egress") {
		p.Spec.Egress = append(p.Spec.Egress, networking.NetworkPolicyEgressRule{To: kubernetesPeers(t), Ports: kubernetesPorts(t)})
	}
	return p
}

func kubernetesPeers(t *rapid.T) (out []networking.NetworkPolicyPeer) {
	for range rapid.IntRange(0, 2).Draw(t, "peers") {
		var p networking.NetworkPolicyPeer
		switch rapid.IntRange(0, 4).Draw(t, "peer") {
		case 0:
			p.IPBlock = &networking.IPBlock{CIDR: "10.0.0.0/24", Except: some(t, []string{"10.0.0.0/30", "10.0.0.8/32"}, 2)}
		case 1:
			p.IPBlock = &networking.IPBlock{CIDR: one(t, nets6)}
		case 2:
			s := labelSelector(t)
			p.PodSelector = &s
		case 3:
			s := labelSelector(t)
			p.NamespaceSelector = &s
		case 4:
			s, n := labelSelector(t), metav1.LabelSelector{}
			p.PodSelector, p.NamespaceSelector = &s, &n
		}
		out = append(out, p)
	}
	return out
}

func kubernetesPorts(t *rapid.T) (out []networking.NetworkPolicyPort) {
	for range rapid.IntRange(0, 2).Draw(t, "ports") {
		var p networking.NetworkPolicyPort
		if name := one(t, []string{"", "TCP", "UDP", "SCTP"}); name != "" {
			p.Protocol = new(core.Protocol(name))
		}
		switch rapid.IntRange(0, 3).Draw(t, "port") {
		case 0, 1:
			p.Port = new(intstr.FromInt32(int32(one(t, portList))))
		case 2:
			p.Port = new(intstr.FromString(one(t, portNames)))
		}
		if p.Port != nil && p.Port.Type == intstr.Int && maybe(t, 2) {
			p.EndPort = new(min(p.Port.IntVal+int32(rapid.IntRange(0, 100).Draw(t, "more")), 65535))
		}
		out = append(out, p)
	}
	return out
}

func labelSelector(t *rapid.T) (s metav1.LabelSelector) {
	if maybe(t, 2) {
		s.MatchLabels = map[string]string{one(t, labelNames): one(t, labelTexts)}
	}
	if maybe(t, 2) {
		e := metav1.LabelSelectorRequirement{Key: one(t, labelNames), Operator: metav1.LabelSelectorOperator(one(t, []string{"In", "NotIn", "Exists", "DoesNotExist"}))}
		if e.Operator == metav1.LabelSelectorOpIn || e.Operator == metav1.LabelSelectorOpNotIn {
			e.Values = []string{one(t, labelTexts), one(t, labelTexts)}
		}
		s.MatchExpressions = append(s.MatchExpressions, e)
	}
	return s
}

func policyTier(t *rapid.T) string {
	return one(t, []string{"", "default", "default", "alpha", "omega"})
}

func types(t *rapid.T) []v3.PolicyType {
	if faulty(t) {
		return [][]v3.PolicyType{{"Sideways"}, {"Ingress", "egress"}}[rapid.IntRange(0, 1).Draw(t, "types")]
	}
	return [][]v3.PolicyType{nil, nil, {"Ingress"}, {"Egress"}, {"Ingress", "Egress"}}[rapid.IntRange(0, 4).Draw(t, "types")]
}

// faulty is true now and then: where there should be something that cannot be read.
func faulty(t *rapid.T) bool { return maybe(t, 60) }
