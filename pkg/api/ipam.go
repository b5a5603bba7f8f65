package api

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// The IPAM kinds live outside the resources, under /calico/ipam/v2/: their JSON
// has neither kind nor metadata. Name and ResourceVersion are kept in the
// metadata here, in memory only.

// IPAMBlock is a block of addresses and who has them. Its name is
// [BlockName] of its CIDR.
type IPAMBlock struct {
	metav1.TypeMeta   `json:"-"`
	metav1.ObjectMeta `json:"-"`

	CIDR netip.Prefix `json:"cidr"`
	// Affinity is "host:<node>" or "virtual:<name>"; nil for a block that no
	// node owns.
	Affinity          *string      `json:"affinity"`
	AffinityClaimTime *metav1.Time `json:"affinity_claim_time,omitempty"`
	// Allocations has one element per address of the block: an index into
	// Attributes, or nil for a free address.
	Allocations []*int `json:"allocations"`
	// Unallocated holds the ordinals of the free addresses in the order in
	// which they are to be used: what was released comes last.
	Unallocated []int                 `json:"unallocated"`
	Attributes  []AllocationAttribute `json:"attributes"`
	// SequenceNumber grows with every write of the block.
	SequenceNumber uint64 `json:"sequenceNumber"`
	// SequenceNumberForAllocation holds, by ordinal, the SequenceNumber at
	// which the address was allocated.
	SequenceNumberForAllocation map[string]uint64 `json:"sequenceNumberForAllocation"`
	Deleted                     bool              `json:"deleted"`
}

// AllocationAttribute says who has an address.
type AllocationAttribute struct {
	HandleID  *string           `json:"handle_id,omitempty"`
	Secondary map[string]string `json:"secondary,omitempty"` // node, namespace, pod, type, …
}

// DeepCopyObject returns a copy that shares nothing with b.
func (b *IPAMBlock) DeepCopyObject() runtime.Object {
	out := new(*b)
	b.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Affinity = clone(b.Affinity)
	out.AffinityClaimTime = b.AffinityClaimTime.DeepCopy()
	out.Allocations = slices.Clone(b.Allocations)
	for i, a := range out.Allocations {
		out.Allocations[i] = clone(a)
	}
	out.Unallocated = slices.Clone(b.Unallocated)
	out.Attributes = slices.Clone(b.Attributes)
	for i, a := range out.Attributes {
		out.Attributes[i] = AllocationAttribute{HandleID: clone(a.HandleID), Secondary: maps.Clone(a.Secondary)}
	}
	out.SequenceNumberForAllocation = maps.Clone(b.SequenceNumberForAllocation)
	return out
}

// The states of a BlockAffinity.
const (
	AffinityPending         = "pending"
	AffinityConfirmed       = "confirmed"
	AffinityPendingDeletion = "pendingDeletion"
)

// BlockAffinity is a node's claim of a block. Its name is [AffinityName].
type BlockAffinity struct {
	metav1.TypeMeta   `json:"-"`
	metav1.ObjectMeta `json:"-"`

	State   string `json:"state"`
	Deleted bool   `json:"deleted"`
}

// DeepCopyObject returns a copy that shares nothing with a.
func (a *BlockAffinity) DeepCopyObject() runtime.Object {
	out := new(*a)
	a.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	return out
}

// Claim returns the node and the block, which only the name holds.
func (a *BlockAffinity) Claim() (node string, block netip.Prefix, err error) {
	return ParseAffinityName(a.Name)
}

// IPAMHandle counts the addresses that one handle has in each block. Its name
// is the handle's id.
type IPAMHandle struct {
	metav1.TypeMeta   `json:"-"`
	metav1.ObjectMeta `json:"-"`

	Block   map[string]int `json:"block"` // by CIDR, "192.168.46.128/26"
	Deleted bool           `json:"deleted"`
}

// DeepCopyObject returns a copy that shares nothing with h.
func (h *IPAMHandle) DeepCopyObject() runtime.Object {
	out := new(*h)
	h.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Block = maps.Clone(h.Block)
	return out
}

// IPAMConfig is the configuration that IPAM reads. Its name is "default". If
// there is none, [NewIPAMConfig] holds.
type IPAMConfig struct {
	metav1.TypeMeta   `json:"-"`
	metav1.ObjectMeta `json:"-"`

	StrictAffinity               bool   `json:"strict_affinity"`
	AutoAllocateBlocks           bool   `json:"auto_allocate_blocks"`
	MaxBlocksPerHost             int    `json:"maxBlocksPerHost,omitempty"` // 0: the built-in limit
	KubeVirtVMAddressPersistence string `json:"kubeVirtVMAddressPersistence,omitempty"`
}

// NewIPAMConfig returns the configuration of a cluster in which nobody set any.
func NewIPAMConfig() *IPAMConfig {
	c := &IPAMConfig{AutoAllocateBlocks: true, KubeVirtVMAddressPersistence: "Enabled"}
	c.SetName("default")
	return c
}

// DeepCopyObject returns a copy that shares nothing with c.
func (c *IPAMConfig) DeepCopyObject() runtime.Object {
	out := new(*c)
	c.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	return out
}

// BlockName returns how a block is named in keys: "192.168.46.128-26".
func BlockName(p netip.Prefix) string {
	return p.Addr().String() + "-" + strconv.Itoa(p.Bits())
}

// ParseBlockName reads what [BlockName] writes, and no other spelling of it: a
// block has one name.
func ParseBlockName(s string) (netip.Prefix, error) {
	i := strings.LastIndexByte(s, '-')
	if i < 0 {
		return netip.Prefix{}, fmt.Errorf("block name %q: no prefix length", s)
	}
	p, err := netip.ParsePrefix(s[:i] + "/" + s[i+1:])
	if err != nil || p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("block name %q: not a network", s)
	}
	if name := BlockName(p); name != s {
		return netip.Prefix{}, fmt.Errorf("block name %q: is written %q", s, name)
	}
	return p, nil
}

// AffinityName returns the name of the affinity of node to block:
// "node-a/192.168.46.128-26".
func AffinityName(node string, block netip.Prefix) string { return node + "/" + BlockName(block) }

// ParseAffinityName reads what [AffinityName] writes.
func ParseAffinityName(s string) (node string, block netip.Prefix, err error) {
	node, name, ok := strings.Cut(s, "/")
	if !ok || node == "" {
		return "", netip.Prefix{}, fmt.Errorf("block affinity name %q: no node", s)
	}
	block, err = ParseBlockName(name)
	return node, block, err
}
