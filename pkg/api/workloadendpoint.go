package api

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// WorkloadEndpoint is one interface of a container or virtual machine.
type WorkloadEndpoint struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec WorkloadEndpointSpec `json:"spec,omitempty"`
}

// WorkloadEndpointSpec describes the interface. The orchestrator "k8s" names a
// workload by Pod, "cni" by ContainerID, all others by Workload.
type WorkloadEndpointSpec struct {
	Orchestrator       string `json:"orchestrator,omitempty"`
	Workload           string `json:"workload,omitempty"`
	Node               string `json:"node,omitempty" validate:"name"`
	ContainerID        string `json:"containerID,omitempty" validate:"omitempty,containerID"`
	Pod                string `json:"pod,omitempty"`
	Endpoint           string `json:"endpoint,omitempty"`
	ServiceAccountName string `json:"serviceAccountName,omitempty" validate:"omitempty,name"`

	// IPNetworks are single addresses, with or without /32 or /128; see
	// [WorkloadEndpoint.Addresses].
	IPNetworks  []string `json:"ipNetworks,omitempty" validate:"omitempty,dive,singleAddress"`
	IPNATs      []IPNAT  `json:"ipNATs,omitempty"`
	IPv4Gateway string   `json:"ipv4Gateway,omitempty" validate:"omitempty,ipv4"`
	IPv6Gateway string   `json:"ipv6Gateway,omitempty" validate:"omitempty,ipv6"`

	Profiles      []string       `json:"profiles,omitempty" validate:"omitempty,dive,name"`
	InterfaceName string         `json:"interfaceName,omitempty" validate:"deviceName"` // the host's side
	MAC           string         `json:"mac,omitempty" validate:"omitempty,mac"`
	Ports         []WorkloadPort `json:"ports,omitempty"`

	AllowSpoofedSourcePrefixes []string     `json:"allowSpoofedSourcePrefixes,omitempty" validate:"omitempty,dive,cidr"`
	QoSControls                *QoSControls `json:"qosControls,omitempty"`
}

// IPNAT is a floating address of the workload.
type IPNAT struct {
	InternalIP string `json:"internalIP" validate:"ip"`
	ExternalIP string `json:"externalIP" validate:"ip"`
}

// WorkloadPort is a named port that rules may refer to.
type WorkloadPort struct {
	Name     string               `json:"name" validate:"omitempty,portName"`
	Protocol numorstring.Protocol `json:"protocol"`
	Port     uint16               `json:"port" validate:"gt=0"`
	HostPort uint16               `json:"hostPort"`
	HostIP   string               `json:"hostIP" validate:"omitempty,ip"`
}

// QoSControls are limits of the interface: bandwidths in bits per second, bursts
// in bits, packet rates in packets per second. Zero is no limit.
type QoSControls struct {
	IngressBandwidth      int64             `json:"ingressBandwidth,omitempty" validate:"gte=0"`
	EgressBandwidth       int64             `json:"egressBandwidth,omitempty" validate:"gte=0"`
	IngressBurst          int64             `json:"ingressBurst,omitempty" validate:"gte=0"`
	EgressBurst           int64             `json:"egressBurst,omitempty" validate:"gte=0"`
	IngressPeakrate       int64             `json:"ingressPeakrate,omitempty" validate:"gte=0"`
	EgressPeakrate        int64             `json:"egressPeakrate,omitempty" validate:"gte=0"`
	IngressMinburst       int64             `json:"ingressMinburst,omitempty" validate:"gte=0"`
	EgressMinburst        int64             `json:"egressMinburst,omitempty" validate:"gte=0"`
	IngressPacketRate     int64             `json:"ingressPacketRate,omitempty" validate:"gte=0"`
	EgressPacketRate      int64             `json:"egressPacketRate,omitempty" validate:"gte=0"`
	IngressPacketBurst    int64             `json:"ingressPacketBurst,omitempty" validate:"gte=0"`
	EgressPacketBurst     int64             `json:"egressPacketBurst,omitempty" validate:"gte=0"`
	IngressMaxConnections int64             `json:"ingressMaxConnections,omitempty" validate:"gte=0"`
	EgressMaxConnections  int64             `json:"egressMaxConnections,omitempty" validate:"gte=0"`
	DSCP                  *numorstring.DSCP `json:"dscp,omitempty"`
}

// NewWorkloadEndpoint returns an empty WorkloadEndpoint that knows its kind.
func NewWorkloadEndpoint() *WorkloadEndpoint {
	return &WorkloadEndpoint{TypeMeta: metav1.TypeMeta{Kind: KindWorkloadEndpoint, APIVersion: v3.GroupVersionCurrent}}
}

// DeepCopyObject returns a copy that shares nothing with w.
func (w *WorkloadEndpoint) DeepCopyObject() runtime.Object {
	out := &WorkloadEndpoint{TypeMeta: w.TypeMeta, Spec: w.Spec}
	w.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	s := &out.Spec
	s.IPNetworks = slices.Clone(s.IPNetworks)
	s.IPNATs = slices.Clone(s.IPNATs)
	s.Profiles = slices.Clone(s.Profiles)
	s.Ports = slices.Clone(s.Ports)
	s.AllowSpoofedSourcePrefixes = slices.Clone(s.AllowSpoofedSourcePrefixes)
	if s.QoSControls != nil {
		s.QoSControls = clone(s.QoSControls)
		s.QoSControls.DSCP = clone(s.QoSControls.DSCP)
	}
	return out
}

// Addresses returns the endpoint's addresses in the order of its ipNetworks.
// What is not an address is left out: validation refuses it.
func (w *WorkloadEndpoint) Addresses() []netip.Addr {
	out := make([]netip.Addr, 0, len(w.Spec.IPNetworks))
	for _, s := range w.Spec.IPNetworks {
		if a, err := parseSingle(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// parseSingle reads one address, alone or with its full length.
func parseSingle(s string) (netip.Addr, error) {
	p, err := parsePrefix(s)
	if err != nil {
		return netip.Addr{}, err
	}
	if !p.IsSingleIP() {
		return netip.Addr{}, fmt.Errorf("%q is a network, not one address", s)
	}
	return p.Addr(), nil
}

// WorkloadEndpointName returns the name that a WorkloadEndpoint must have:
// node, orchestrator, workload (the pod for "k8s", the container's ID for "cni",
// "libnetwork" for that) and endpoint joined by '-', with the '-' inside each part
// doubled.
func WorkloadEndpointName(node, orchestrator, workload, endpoint string) string {
	parts := []string{node, orchestrator, workload, endpoint}
	for i, p := range parts {
		parts[i] = strings.ReplaceAll(p, "-", "--")
	}
	return strings.Join(parts, "-")
}

// name returns the name that w's spec makes, or which part is missing.
func (w *WorkloadEndpoint) name() (name string, missing []string) {
	workload, field := w.Spec.Workload, "spec.workload"
	switch w.Spec.Orchestrator {
	case v3.OrchestratorKubernetes:
		workload, field = w.Spec.Pod, "spec.pod"
	case v3.OrchestratorCNI: // Calico's plugin sets no workload
		workload, field = orElse(w.Spec.ContainerID, workload), "spec.containerID"
	case "libnetwork":
		workload = w.Spec.Orchestrator
	}
	for _, p := range []struct{ field, value string }{
		{"spec.node", w.Spec.Node}, {"spec.orchestrator", w.Spec.Orchestrator},
		{field, workload}, {"spec.endpoint", w.Spec.Endpoint},
	} {
		if p.value == "" {
			missing = append(missing, p.field)
		}
	}
	return WorkloadEndpointName(w.Spec.Node, w.Spec.Orchestrator, workload, w.Spec.Endpoint), missing
}
