package api

import (
	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// The kinds whose Go types projectcalico/api has whole.
type (
	BGPConfiguration              = v3.BGPConfiguration
	BGPFilter                     = v3.BGPFilter
	BGPPeer                       = v3.BGPPeer
	CalicoNodeStatus              = v3.CalicoNodeStatus
	ClusterInformation            = v3.ClusterInformation
	GlobalNetworkPolicy           = v3.GlobalNetworkPolicy
	GlobalNetworkSet              = v3.GlobalNetworkSet
	HostEndpoint                  = v3.HostEndpoint
	IPPool                        = v3.IPPool
	IPReservation                 = v3.IPReservation
	NetworkPolicy                 = v3.NetworkPolicy
	NetworkSet                    = v3.NetworkSet
	Profile                       = v3.Profile
	StagedGlobalNetworkPolicy     = v3.StagedGlobalNetworkPolicy
	StagedKubernetesNetworkPolicy = v3.StagedKubernetesNetworkPolicy
	StagedNetworkPolicy           = v3.StagedNetworkPolicy
)

// The parts of policies and profiles.
type (
	Rule       = v3.Rule
	EntityRule = v3.EntityRule
	ICMPFields = v3.ICMPFields
)

// The kinds below have fields that the projectcalico/api we build against does
// not know and that Calico writes. Their specs are upstream's plus those.

// Tier is a set of policies applied together. Upstream's type has no status.
type Tier struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   v3.TierSpec `json:"spec,omitempty"`
	Status TierStatus  `json:"status,omitempty"`
}

// TierStatus is written empty on etcd.
type TierStatus struct {
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// DeepCopyObject returns a copy that shares nothing with t.
func (t *Tier) DeepCopyObject() runtime.Object {
	out := &Tier{TypeMeta: t.TypeMeta}
	t.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	t.Spec.DeepCopyInto(&out.Spec)
	for _, c := range t.Status.Conditions {
		out.Status.Conditions = append(out.Status.Conditions, *c.DeepCopy())
	}
	return out
}

// IPAMConfiguration is the resource that users edit; IPAM itself reads
// [IPAMConfig].
type IPAMConfiguration struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec IPAMConfigurationSpec `json:"spec,omitempty"`
}

// IPAMConfigurationSpec has one more field than upstream's.
type IPAMConfigurationSpec struct {
	StrictAffinity   bool  `json:"strictAffinity"`
	MaxBlocksPerHost int32 `json:"maxBlocksPerHost,omitempty" validate:"gte=0"` // 0: no limit of its own
	// AutoAllocateBlocks is whether a node may take new blocks by itself. Default: true.
	AutoAllocateBlocks *bool `json:"autoAllocateBlocks,omitempty"`
	// KubeVirtVMAddressPersistence is Enabled or Disabled.
	KubeVirtVMAddressPersistence *string `json:"kubeVirtVMAddressPersistence,omitempty" validate:"omitempty,oneof=Enabled Disabled"`
}

// DeepCopyObject returns a copy that shares nothing with c.
func (c *IPAMConfiguration) DeepCopyObject() runtime.Object {
	out := &IPAMConfiguration{TypeMeta: c.TypeMeta, Spec: c.Spec}
	c.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Spec.AutoAllocateBlocks = clone(c.Spec.AutoAllocateBlocks)
	out.Spec.KubeVirtVMAddressPersistence = clone(c.Spec.KubeVirtVMAddressPersistence)
	return out
}

// FelixConfiguration is the node agent's configuration, of the cluster
// ("default") or of one node ("node.<name>").
type FelixConfiguration struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec FelixConfigurationSpec `json:"spec,omitempty"`
}

// FelixConfigurationSpec is upstream's and the fields that came later.
type FelixConfigurationSpec struct {
	v3.FelixConfigurationSpec `json:",inline"`

	// NFTablesFlowTableOffload is Enabled or Disabled. Default: Disabled.
	NFTablesFlowTableOffload *string `json:"nftablesFlowTableOffload,omitempty" validate:"omitempty,oneof=Enabled Disabled"`
	// The next two are about Felix's own eBPF dataplane and are only kept.
	BPFJITHardening         *string `json:"bpfJITHardening,omitempty" validate:"omitempty,oneof=Auto Strict"`
	BPFKubeProxyHealthzPort *int    `json:"bpfKubeProxyHealthzPort,omitempty" validate:"omitempty,gte=1,lte=65535"`
}

// DeepCopyObject returns a copy that shares nothing with c.
func (c *FelixConfiguration) DeepCopyObject() runtime.Object {
	out := &FelixConfiguration{TypeMeta: c.TypeMeta}
	c.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	c.Spec.FelixConfigurationSpec.DeepCopyInto(&out.Spec.FelixConfigurationSpec)
	out.Spec.NFTablesFlowTableOffload = clone(c.Spec.NFTablesFlowTableOffload)
	out.Spec.BPFJITHardening = clone(c.Spec.BPFJITHardening)
	out.Spec.BPFKubeProxyHealthzPort = clone(c.Spec.BPFKubeProxyHealthzPort)
	return out
}
