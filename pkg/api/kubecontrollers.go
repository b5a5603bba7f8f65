package api

import (
	"maps"
	"slices"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// KubeControllersConfiguration is kept for those who run kube-controllers
// beside us. Upstream's status always has a running configuration; the stored
// one may be empty.
type KubeControllersConfiguration struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   KubeControllersConfigurationSpec   `json:"spec,omitempty"`
	Status KubeControllersConfigurationStatus `json:"status,omitempty"`
}

// KubeControllersConfigurationStatus is what the controllers report.
type KubeControllersConfigurationStatus struct {
	RunningConfig   *KubeControllersConfigurationSpec `json:"runningConfig,omitempty"`
	EnvironmentVars map[string]string                 `json:"environmentVars,omitempty"`
}

// DeepCopyObject returns a copy that shares nothing with c.
func (c *KubeControllersConfiguration) DeepCopyObject() runtime.Object {
	out := &KubeControllersConfiguration{TypeMeta: c.TypeMeta}
	c.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Spec = *c.Spec.clone()
	if c.Status.RunningConfig != nil {
		out.Status.RunningConfig = c.Status.RunningConfig.clone()
	}
	out.Status.EnvironmentVars = maps.Clone(c.Status.EnvironmentVars)
	return out
}

// KubeControllersConfigurationSpec is upstream's but for one name far inside.
type KubeControllersConfigurationSpec struct {
	LogSeverityScreen      string            `json:"logSeverityScreen,omitempty" validate:"omitempty,logLevel"`
	HealthChecks           string            `json:"healthChecks,omitempty" validate:"omitempty,oneof=Enabled Disabled"`
	EtcdV3CompactionPeriod *metav1.Duration  `json:"etcdV3CompactionPeriod,omitempty" validate:"omitempty"`
	PrometheusMetricsPort  *int              `json:"prometheusMetricsPort,omitempty"` // 0: none
	Controllers            ControllersConfig `json:"controllers"`
	DebugProfilePort       *int32            `json:"debugProfilePort,omitempty"`
}

// ControllersConfig says which controllers run, and how.
type ControllersConfig struct {
	Node             *NodeControllerConfig                `json:"node,omitempty"`
	Policy           *v3.PolicyControllerConfig           `json:"policy,omitempty"`
	WorkloadEndpoint *v3.WorkloadEndpointControllerConfig `json:"workloadEndpoint,omitempty"`
	ServiceAccount   *v3.ServiceAccountControllerConfig   `json:"serviceAccount,omitempty"`
	Namespace        *v3.NamespaceControllerConfig        `json:"namespace,omitempty"`
	LoadBalancer     *v3.LoadBalancerControllerConfig     `json:"loadBalancer,omitempty"`
}

// NodeControllerConfig is about nodes, their host endpoints and leaked addresses.
type NodeControllerConfig struct {
	ReconcilerPeriod *metav1.Duration        `json:"reconcilerPeriod,omitempty" validate:"omitempty"`
	SyncLabels       string                  `json:"syncLabels,omitempty" validate:"omitempty,oneof=Enabled Disabled"`
	HostEndpoint     *AutoHostEndpointConfig `json:"hostEndpoint,omitempty"`
	LeakGracePeriod  *metav1.Duration        `json:"leakGracePeriod,omitempty"` // 0: never
}

// AutoHostEndpointConfig says which host endpoints nodes get by themselves.
type AutoHostEndpointConfig struct {
	AutoCreate                string                     `json:"autoCreate,omitempty" validate:"omitempty,oneof=Enabled Disabled"`
	CreateDefaultHostEndpoint v3.DefaultHostEndpointMode `json:"createDefaultHostEndpoint,omitempty" validate:"omitempty,createDefaultHostEndpoint"`
	Templates                 []HostEndpointTemplate     `json:"templates,omitempty" validate:"omitempty"`
}

// HostEndpointTemplate makes host endpoints. What upstream's type calls interfaceSelector
// is interfacePattern in every Calico that came out.
type HostEndpointTemplate struct {
	GenerateName     string            `json:"generateName,omitempty" validate:"omitempty,name"`
	InterfaceCIDRs   []string          `json:"interfaceCIDRs,omitempty" validate:"cidrs"`
	InterfacePattern string            `json:"interfacePattern,omitempty" validate:"omitempty,regexp"`
	Labels           map[string]string `json:"labels,omitempty" validate:"omitempty,labels"`
	NodeSelector     string            `json:"nodeSelector,omitempty" validate:"omitempty,selector"`
}

func (s *KubeControllersConfigurationSpec) clone() *KubeControllersConfigurationSpec {
	out := clone(s)
	out.EtcdV3CompactionPeriod = clone(s.EtcdV3CompactionPeriod)
	out.PrometheusMetricsPort, out.DebugProfilePort = clone(s.PrometheusMetricsPort), clone(s.DebugProfilePort)
	c := &s.Controllers
	out.Controllers = ControllersConfig{
		Node: clone(c.Node), Policy: c.Policy.DeepCopy(), WorkloadEndpoint: c.WorkloadEndpoint.DeepCopy(),
		ServiceAccount: c.ServiceAccount.DeepCopy(), Namespace: c.Namespace.DeepCopy(), LoadBalancer: c.LoadBalancer.DeepCopy(),
	}
	n := out.Controllers.Node
	if n == nil {
		return out
	}
	n.ReconcilerPeriod, n.LeakGracePeriod, n.HostEndpoint = clone(n.ReconcilerPeriod), clone(n.LeakGracePeriod), clone(n.HostEndpoint)
	if n.HostEndpoint != nil {
		n.HostEndpoint.Templates = slices.Clone(n.HostEndpoint.Templates)
		for i := range n.HostEndpoint.Templates {
			t := &n.HostEndpoint.Templates[i]
			t.InterfaceCIDRs, t.Labels = slices.Clone(t.InterfaceCIDRs), maps.Clone(t.Labels)
		}
	}
	return out
}
