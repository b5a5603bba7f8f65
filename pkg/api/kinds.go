package api

import (
	"slices"
	"strings"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

// The names of the kinds, as in the JSON's "kind".
const (
	KindBGPConfiguration              = v3.KindBGPConfiguration
	KindBGPFilter                     = v3.KindBGPFilter
	KindBGPPeer                       = v3.KindBGPPeer
	KindBlockAffinity                 = v3.KindBlockAffinity
	KindCalicoNodeStatus              = v3.KindCalicoNodeStatus
	KindClusterInformation            = v3.KindClusterInformation
	KindFelixConfiguration            = v3.KindFelixConfiguration
	KindGlobalNetworkPolicy           = v3.KindGlobalNetworkPolicy
	KindGlobalNetworkSet              = v3.KindGlobalNetworkSet
	KindHostEndpoint                  = v3.KindHostEndpoint
	KindIPAMBlock                     = "IPAMBlock"
	KindIPAMConfig                    = "IPAMConfig"
	KindIPAMConfiguration             = v3.KindIPAMConfiguration
	KindIPAMHandle                    = "IPAMHandle"
	KindIPPool                        = v3.KindIPPool
	KindIPReservation                 = v3.KindIPReservation
	KindKubeControllersConfiguration  = v3.KindKubeControllersConfiguration
	KindNetworkPolicy                 = v3.KindNetworkPolicy
	KindNetworkSet                    = v3.KindNetworkSet
	KindNode                          = "Node"
	KindProfile                       = v3.KindProfile
	KindStagedGlobalNetworkPolicy     = v3.KindStagedGlobalNetworkPolicy
	KindStagedKubernetesNetworkPolicy = v3.KindStagedKubernetesNetworkPolicy
	KindStagedNetworkPolicy           = v3.KindStagedNetworkPolicy
	KindTier                          = v3.KindTier
	KindWorkloadEndpoint              = "WorkloadEndpoint"
)

// Kind is one kind of resource.
type Kind struct {
	Name       string // "IPPool"
	Plural     string // as in keys of the datastore: "ippools"
	Namespaced bool
	Aliases    []string // more names that users may write, lower case
	Internal   bool     // IPAM's and our own: stored outside the resources, not for users
	New        func() Resource
}

// Kinds returns all kinds, in the order in which they can be created: what
// others refer to comes first.
func Kinds() []*Kind { return slices.Clone(kinds) }

// FindKind returns the kind that a user calls name: its name, plural or an
// alias, in any case. The exact name of a kind comes first: "IPAMConfig" is the
// internal kind, "ipamconfig" short for IPAMConfiguration.
func FindKind(name string) (*Kind, bool) {
	if k := kindNamed(name); k != nil {
		return k, true
	}
	name = strings.ToLower(name)
	for _, k := range kinds {
		if name == strings.ToLower(k.Name) || name == k.Plural || slices.Contains(k.Aliases, name) {
			return k, true
		}
	}
	return nil, false
}

// kindNamed returns the kind with exactly this name, or nil.
func kindNamed(name string) *Kind {
	for _, k := range kinds {
		if k.Name == name {
			return k
		}
	}
	return nil
}

// kinds is never changed.
var kinds = []*Kind{
	{Name: KindClusterInformation, Plural: "clusterinformations", Aliases: []string{"clusterinfo", "clusterinfos"},
		New: func() Resource { return v3.NewClusterInformation() }},
	{Name: KindTier, Plural: "tiers",
		New: func() Resource { return stamp(&Tier{}, KindTier) }},
	{Name: KindFelixConfiguration, Plural: "felixconfigurations", Aliases: []string{"felixconfig", "felixconfigs"},
		New: func() Resource { return stamp(&FelixConfiguration{}, KindFelixConfiguration) }},
	{Name: KindBGPConfiguration, Plural: "bgpconfigurations", Aliases: []string{"bgpconfig", "bgpconfigs"},
		New: func() Resource { return v3.NewBGPConfiguration() }},
	{Name: KindKubeControllersConfiguration, Plural: "kubecontrollersconfigurations",
		Aliases: []string{"kubecontrollersconfig", "kubecontrollersconfigs"},
		New:     func() Resource { return stamp(&KubeControllersConfiguration{}, KindKubeControllersConfiguration) }},
	{Name: KindIPAMConfiguration, Plural: "ipamconfigurations", Aliases: []string{"ipamconfig", "ipamconfigs"},
		New: func() Resource { return stamp(&IPAMConfiguration{}, KindIPAMConfiguration) }},
	{Name: KindNode, Plural: "nodes", Aliases: []string{"no", "nos"},
		New: func() Resource { return NewNode() }},
	{Name: KindIPPool, Plural: "ippools", Aliases: []string{"ipp", "ipps", "pool", "pools"},
		New: func() Resource { return v3.NewIPPool() }},
	{Name: KindIPReservation, Plural: "ipreservations", Aliases: []string{"reservation", "reservations"},
		New: func() Resource { return v3.NewIPReservation() }},
	{Name: KindBGPFilter, Plural: "bgpfilters",
		New: func() Resource { return v3.NewBGPFilter() }},
	{Name: KindBGPPeer, Plural: "bgppeers", Aliases: []string{"bgpp", "bgpps", "bp", "bps"},
		New: func() Resource { return v3.NewBGPPeer() }},
	{Name: KindProfile, Plural: "profiles", Aliases: []string{"pro", "pros"},
		New: func() Resource { return v3.NewProfile() }},
	{Name: KindGlobalNetworkSet, Plural: "globalnetworksets",
		New: func() Resource { return v3.NewGlobalNetworkSet() }},
	{Name: KindNetworkSet, Plural: "networksets", Namespaced: true, Aliases: []string{"netsets"},
		New: func() Resource { return v3.NewNetworkSet() }},
	{Name: KindGlobalNetworkPolicy, Plural: "globalnetworkpolicies", Aliases: []string{"gnp", "gnps"},
		New: func() Resource { return v3.NewGlobalNetworkPolicy() }},
	{Name: KindNetworkPolicy, Plural: "networkpolicies", Namespaced: true,
		Aliases: []string{"np", "nps", "policy", "policies", "pol", "pols"},
		New:     func() Resource { return v3.NewNetworkPolicy() }},
	{Name: KindStagedGlobalNetworkPolicy, Plural: "stagedglobalnetworkpolicies", Aliases: []string{"sgnp", "sgnps"},
		New: func() Resource { return v3.NewStagedGlobalNetworkPolicy() }},
	{Name: KindStagedNetworkPolicy, Plural: "stagednetworkpolicies", Namespaced: true, Aliases: []string{"snp", "snps", "stagedpolicy", "stagedpolicies", "spol", "spols"},
		New: func() Resource { return v3.NewStagedNetworkPolicy() }},
	{Name: KindStagedKubernetesNetworkPolicy, Plural: "stagedkubernetesnetworkpolicies", Namespaced: true,
		Aliases: []string{"sknp", "sknps"},
		New:     func() Resource { return v3.NewStagedKubernetesNetworkPolicy() }},
	{Name: KindHostEndpoint, Plural: "hostendpoints", Aliases: []string{"hep", "heps"},
		New: func() Resource { return v3.NewHostEndpoint() }},
	{Name: KindWorkloadEndpoint, Plural: "workloadendpoints", Namespaced: true, Aliases: []string{"wep", "weps"},
		New: func() Resource { return NewWorkloadEndpoint() }},
	{Name: KindCalicoNodeStatus, Plural: "caliconodestatuses",
		New: func() Resource { return v3.NewCalicoNodeStatus() }},
	{Name: KindIPAMConfig, Plural: "ipamconfig", Internal: true,
		New: func() Resource { return stamp(&IPAMConfig{}, KindIPAMConfig) }},
	{Name: KindBlockAffinity, Plural: "blockaffinities", Internal: true,
		New: func() Resource { return stamp(&BlockAffinity{}, KindBlockAffinity) }},
	{Name: KindIPAMBlock, Plural: "ipamblocks", Internal: true,
		New: func() Resource { return stamp(&IPAMBlock{}, KindIPAMBlock) }},
	{Name: KindIPAMHandle, Plural: "ipamhandles", Internal: true,
		New: func() Resource { return stamp(&IPAMHandle{}, KindIPAMHandle) }},
	{Name: KindTrial, Plural: "trials", Internal: true,
		New: func() Resource { return stamp(&Trial{}, KindTrial) }},
	{Name: KindTrialHold, Plural: "trialholds", Internal: true,
		New: func() Resource { return stamp(&TrialHold{}, KindTrialHold) }},
	{Name: KindEnforcementQuery, Plural: "enforcementqueries", Internal: true,
		New: func() Resource { return stamp(&EnforcementQuery{}, KindEnforcementQuery) }},
}

// stamp writes kind and apiVersion into r.
func stamp[R Resource](r R, kind string) R {
	r.GetObjectKind().SetGroupVersionKind(v3.SchemeGroupVersion.WithKind(kind))
	return r
}

// kindOf returns the name of r's kind by its Go type, so that it is right for
// objects built in code too; "" for types that are not ours.
func kindOf(r Resource) string {
	switch r.(type) {
	case *BGPConfiguration:
		return KindBGPConfiguration
	case *BGPFilter:
		return KindBGPFilter
	case *BGPPeer:
		return KindBGPPeer
	case *BlockAffinity:
		return KindBlockAffinity
	case *CalicoNodeStatus:
		return KindCalicoNodeStatus
	case *ClusterInformation:
		return KindClusterInformation
	case *EnforcementQuery:
		return KindEnforcementQuery
	case *FelixConfiguration:
		return KindFelixConfiguration
	case *GlobalNetworkPolicy:
		return KindGlobalNetworkPolicy
	case *GlobalNetworkSet:
		return KindGlobalNetworkSet
	case *HostEndpoint:
		return KindHostEndpoint
	case *IPAMBlock:
		return KindIPAMBlock
	case *IPAMConfig:
		return KindIPAMConfig
	case *IPAMConfiguration:
		return KindIPAMConfiguration
	case *IPAMHandle:
		return KindIPAMHandle
	case *IPPool:
		return KindIPPool
	case *IPReservation:
		return KindIPReservation
	case *KubeControllersConfiguration:
		return KindKubeControllersConfiguration
	case *NetworkPolicy:
		return KindNetworkPolicy
	case *NetworkSet:
		return KindNetworkSet
	case *Node:
		return KindNode
	case *Profile:
		return KindProfile
	case *StagedGlobalNetworkPolicy:
		return KindStagedGlobalNetworkPolicy
	case *StagedKubernetesNetworkPolicy:
		return KindStagedKubernetesNetworkPolicy
	case *StagedNetworkPolicy:
		return KindStagedNetworkPolicy
	case *Tier:
		return KindTier
	case *Trial:
		return KindTrial
	case *TrialHold:
		return KindTrialHold
	case *WorkloadEndpoint:
		return KindWorkloadEndpoint
	}
	return ""
}
