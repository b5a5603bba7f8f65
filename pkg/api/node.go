package api

import (
	"fmt"
	"net/netip"
	"slices"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Node is one machine of the cluster.
type Node struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   NodeSpec   `json:"spec,omitempty"`
	Status NodeStatus `json:"status,omitempty"`
}

// NodeSpec holds a node's addresses. Tunnel addresses have no prefix length.
type NodeSpec struct {
	BGP *NodeBGPSpec `json:"bgp,omitempty"`

	IPv4VXLANTunnelAddr  string `json:"ipv4VXLANTunnelAddr,omitempty" validate:"omitempty,ipv4"`
	VXLANTunnelMACAddr   string `json:"vxlanTunnelMACAddr,omitempty" validate:"omitempty,mac"`
	IPv6VXLANTunnelAddr  string `json:"ipv6VXLANTunnelAddr,omitempty" validate:"omitempty,ipv6"`
	VXLANTunnelMACAddrV6 string `json:"vxlanTunnelMACAddrV6,omitempty" validate:"omitempty,mac"`

	OrchRefs   []OrchRef           `json:"orchRefs,omitempty"`
	Wireguard  *NodeWireguardSpec  `json:"wireguard,omitempty"`
	Addresses  []NodeAddress       `json:"addresses,omitempty"`
	Interfaces []NodeInterfaceSpec `json:"interfaces,omitempty"`
}

// NodeBGPSpec is a node's part in BGP. Addresses have a prefix length, which is
// the node's subnet ("10.10.0.1/24"); see [Node.IPv4].
type NodeBGPSpec struct {
	ASNumber                *numorstring.ASNumber `json:"asNumber,omitempty"`
	IPv4Address             string                `json:"ipv4Address,omitempty" validate:"omitempty,cidrv4"`
	IPv6Address             string                `json:"ipv6Address,omitempty" validate:"omitempty,cidrv6"`
	IPv4IPIPTunnelAddr      string                `json:"ipv4IPIPTunnelAddr,omitempty" validate:"omitempty,ipv4"`
	RouteReflectorClusterID string                `json:"routeReflectorClusterID,omitempty" validate:"omitempty,ipv4"` // "244.0.0.1"
}

// OrchRef is the node's name in an orchestrator.
type OrchRef struct {
	NodeName     string `json:"nodeName,omitempty"`
	Orchestrator string `json:"orchestrator" validate:"required"`
}

// NodeWireguardSpec holds the addresses of the WireGuard interfaces.
type NodeWireguardSpec struct {
	InterfaceIPv4Address string `json:"interfaceIPv4Address,omitempty" validate:"omitempty,ipv4"`
	InterfaceIPv6Address string `json:"interfaceIPv6Address,omitempty" validate:"omitempty,ipv6"`
}

// The types of a node's addresses.
const (
	AddressCalicoNodeIP = "CalicoNodeIP"
	AddressInternalIP   = "InternalIP"
	AddressExternalIP   = "ExternalIP"
)

// NodeAddress is an address by which the node is known, with or without prefix
// length.
type NodeAddress struct {
	Address string `json:"address" validate:"cidr"`
	Type    string `json:"type,omitempty" validate:"omitempty,oneof=CalicoNodeIP InternalIP ExternalIP"`
}

// NodeInterfaceSpec is an interface of the node and its addresses.
type NodeInterfaceSpec struct {
	Name      string   `json:"name,omitempty" validate:"omitempty,deviceName"`
	Addresses []string `json:"addresses,omitempty" validate:"omitempty,dive,cidr"`
}

// NodeStatus is what the node reports of itself.
type NodeStatus struct {
	WireguardPublicKey   string   `json:"wireguardPublicKey,omitempty" validate:"omitempty,wireguardPublicKey"`
	WireguardPublicKeyV6 string   `json:"wireguardPublicKeyV6,omitempty" validate:"omitempty,wireguardPublicKey"`
	PodCIDRs             []string `json:"podCIDRs,omitempty" validate:"omitempty,dive,net"`
}

// NewNode returns an empty Node that knows its kind.
func NewNode() *Node {
	return &Node{TypeMeta: metav1.TypeMeta{Kind: KindNode, APIVersion: v3.GroupVersionCurrent}}
}

// DeepCopyObject returns a copy that shares nothing with n.
func (n *Node) DeepCopyObject() runtime.Object {
	out := &Node{TypeMeta: n.TypeMeta, Spec: n.Spec, Status: n.Status}
	n.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Spec.BGP = clone(n.Spec.BGP)
	if n.Spec.BGP != nil {
		out.Spec.BGP.ASNumber = clone(n.Spec.BGP.ASNumber)
	}
	out.Spec.OrchRefs = slices.Clone(n.Spec.OrchRefs)
	out.Spec.Wireguard = clone(n.Spec.Wireguard)
	out.Spec.Addresses = slices.Clone(n.Spec.Addresses)
	out.Spec.Interfaces = slices.Clone(n.Spec.Interfaces)
	for i := range out.Spec.Interfaces {
		out.Spec.Interfaces[i].Addresses = slices.Clone(out.Spec.Interfaces[i].Addresses)
	}
	out.Status.PodCIDRs = slices.Clone(n.Status.PodCIDRs)
	return out
}

// IPv4 returns the node's BGP address with its subnet's length, not masked; the
// zero Prefix if the node has none.
func (n *Node) IPv4() netip.Prefix {
	if n.Spec.BGP == nil {
		return netip.Prefix{}
	}
	p, _ := ParseNodeAddress(n.Spec.BGP.IPv4Address)
	return p
}

// IPv6 is [Node.IPv4] for IPv6.
func (n *Node) IPv6() netip.Prefix {
	if n.Spec.BGP == nil {
		return netip.Prefix{}
	}
	p, _ := ParseNodeAddress(n.Spec.BGP.IPv6Address)
	return p
}

// ParseNodeAddress reads "10.10.0.1/24" and keeps the host bits. An address
// without length is taken as its own subnet (/32 or /128).
func ParseNodeAddress(s string) (netip.Prefix, error) {
	p, err := parsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("node address %q: not an address with or without prefix length", s)
	}
	return p, nil
}

// parsePrefix reads an address or a prefix, keeping the host bits.
func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q has a zone", s)
		}
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}
