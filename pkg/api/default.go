package api

import (
	"encoding/json"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// DefaultTier is the tier of policies that name none.
const DefaultTier = "default"

// AnnotationMetadata is written by Calico into every policy: the name as the
// user gave it.
const AnnotationMetadata = "projectcalico.org/metadata"

// Default fills in what Calico fills in when it writes r: kind and apiVersion,
// the namespace "default" for kinds that need one, and what the kind says of
// itself. It is idempotent.
func Default(r Resource) {
	kind := kindNamed(kindOf(r))
	if kind == nil {
		return
	}
	stamp(r, kind.Name)
	if kind.Namespaced && r.GetNamespace() == "" {
		r.SetNamespace("default")
	}
	switch r := r.(type) {
	case *IPPool:
		defaultPool(&r.Spec)
	case *Tier:
		setDefault(&r.Spec.Order, v3.DefaultTierOrder)
		setDefault(&r.Spec.DefaultAction, v3.Deny)
	case *FelixConfiguration:
		defaultFelix(&r.Spec)
	case *BGPConfiguration:
		setDefault(&r.Spec.ServiceLoadBalancerAggregation, v3.ServiceLoadBalancerAggregationEnabled)
	case *IPAMConfiguration:
		setDefault(&r.Spec.AutoAllocateBlocks, true)
	case *KubeControllersConfiguration:
		defaultKubeControllers(&r.Spec)
	case *Profile:
		defaultRules(r.Spec.Ingress, r.Spec.Egress)
	case *NetworkPolicy, *GlobalNetworkPolicy:
		defaultPolicy(r)
	case *StagedNetworkPolicy:
		r.Spec.StagedAction = orElse(r.Spec.StagedAction, v3.StagedActionSet)
		defaultPolicy(r)
	case *StagedGlobalNetworkPolicy:
		r.Spec.StagedAction = orElse(r.Spec.StagedAction, v3.StagedActionSet)
		defaultPolicy(r)
	case *StagedKubernetesNetworkPolicy:
		r.Spec.StagedAction = orElse(r.Spec.StagedAction, v3.StagedActionSet)
	case *HostEndpoint:
		for i := range r.Spec.Ports {
			canonicalProtocol(&r.Spec.Ports[i].Protocol)
		}
	case *WorkloadEndpoint:
		defaultWorkloadEndpoint(r)
	}
}

// setDefault makes *p point to v unless it points to something.
func setDefault[T any](p **T, v T) {
	if *p == nil {
		*p = new(v)
	}
}

// orElse returns v, or other if v is zero.
func orElse[T comparable](v, other T) T {
	var zero T
	if v == zero {
		return other
	}
	return v
}

func setLabel(r Resource, key, value string) {
	labels := r.GetLabels()
	if labels == nil {
		labels = make(map[string]string)
	}
	labels[key] = value
	r.SetLabels(labels)
}

func defaultPool(s *v3.IPPoolSpec) {
	blockSize := 26
	if p, err := parsePrefix(s.CIDR); err == nil {
		if p.Addr().Is6() {
			blockSize = 122
		}
		if p == p.Masked() {
			s.CIDR = p.String() // "FD00::/48" and "10.0.0.1" as Calico writes them
		}
	}
	s.BlockSize = orElse(s.BlockSize, blockSize)
	s.VXLANMode = orElse(s.VXLANMode, v3.VXLANModeNever)
	s.IPIPMode = orElse(s.IPIPMode, v3.IPIPModeNever)
	s.NodeSelector = orElse(s.NodeSelector, "all()")
	if len(s.AllowedUses) == 0 {
		s.AllowedUses = []v3.IPPoolAllowedUse{v3.IPPoolAllowedUseWorkload, v3.IPPoolAllowedUseTunnel}
	}
	setDefault(&s.AssignmentMode, v3.Automatic)
}

func defaultFelix(s *FelixConfigurationSpec) {
	setDefault(&s.NFTablesMode, v3.NFTablesMode("Auto"))
	setDefault(&s.NFTablesFlowTableOffload, v3.Disabled)
	setDefault(&s.BPFConnectTimeLoadBalancing, v3.BPFConnectTimeLBTCP)
	setDefault(&s.BPFHostNetworkedNATWithoutCTLB, v3.BPFHostNetworkedNATEnabled)
	setDefault(&s.FloatingIPs, v3.FloatingIPsDisabled)
}

func defaultKubeControllers(s *KubeControllersConfigurationSpec) {
	setDefault(&s.PrometheusMetricsPort, 9094)
	if n := s.Controllers.Node; n != nil {
		setDefault(&n.LeakGracePeriod, metav1.Duration{Duration: 15 * 60 * 1e9}) // a quarter of an hour
	}
	if b := s.Controllers.LoadBalancer; b != nil {
		b.AssignIPs = orElse(b.AssignIPs, v3.AllServices)
	}
}

// policyPlaces returns where the spec of a policy, as [PolicyOf] knows them, has its tier
// and types; nil if r is none.
func policyPlaces(r Resource) (tier *string, types *[]v3.PolicyType) {
	switch r := r.(type) {
	case *NetworkPolicy:
		return &r.Spec.Tier, &r.Spec.Types
	case *GlobalNetworkPolicy:
		return &r.Spec.Tier, &r.Spec.Types
	case *StagedNetworkPolicy:
		return &r.Spec.Tier, &r.Spec.Types
	case *StagedGlobalNetworkPolicy:
		return &r.Spec.Tier, &r.Spec.Types
	}
	return nil, nil
}

// defaultPolicy fills in tier and types, and the label and annotation that go with them.
func defaultPolicy(r Resource) {
	p, _ := PolicyOf(r)
	tier, types := policyPlaces(r)
	*tier = orElse(*tier, DefaultTier)
	if len(*types) == 0 && p.StagedAction != v3.StagedActionDelete {
		*types = DefaultTypes(p.Ingress, p.Egress)
	}
	defaultRules(p.Ingress, p.Egress)
	setLabel(r, v3.LabelTier, *tier)
	if r.GetName() == "" {
		return
	}
	annotations := r.GetAnnotations()
	if annotations == nil {
		annotations = make(map[string]string)
	}
	name, _ := json.Marshal(map[string]string{"name": r.GetName()}) // strings always marshal
	annotations[AnnotationMetadata] = string(name)
	r.SetAnnotations(annotations)
}

// FillTier says in spec and label of a policy which tier it is in. Calico 3.31 and
// before store neither for the default tier.
func FillTier(r Resource) {
	tier, _ := policyPlaces(r)
	if tier == nil {
		return
	}
	*tier = orElse(*tier, DefaultTier)
	if r.GetLabels()[v3.LabelTier] == "" {
		setLabel(r, v3.LabelTier, *tier)
	}
}

// DropMetadata takes [AnnotationMetadata] away, which is for the datastore alone.
func DropMetadata(r Resource) {
	annotations := r.GetAnnotations()
	delete(annotations, AnnotationMetadata)
	if len(annotations) == 0 {
		r.SetAnnotations(nil)
	}
}

func defaultRules(lists ...[]Rule) {
	for _, rules := range lists {
		for i := range rules {
			canonicalProtocol(rules[i].Protocol)
			canonicalProtocol(rules[i].NotProtocol)
		}
	}
}

func defaultWorkloadEndpoint(w *WorkloadEndpoint) {
	for i := range w.Spec.Ports {
		canonicalProtocol(&w.Spec.Ports[i].Protocol)
	}
	if name, missing := w.name(); w.Name == "" && len(missing) == 0 {
		w.Name = name
	}
	setLabel(w, v3.LabelNamespace, w.Namespace)
	if w.Spec.Orchestrator != "" {
		setLabel(w, v3.LabelOrchestrator, w.Spec.Orchestrator)
	}
}
