// Package maps holds the kernel's tables, typed. The C in bpf/ is the source of
// every layout here; the generated types get the house's names.
package maps

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/rlimit"
)

// Names of the generated types.
type (
	Address  = bpfAddress
	Counter  = bpfCounter
	Endpoint = bpfEndpoint
	Event    = bpfEvent
	// EventBudget is per CPU.
	EventBudget  = bpfEventBudget
	Explanation  = bpfExplanation
	FailsafeKey  = bpfFailsafeKey
	HostEndpoint = bpfHostEndpoint
	RuleName     = bpfRuleName
	Flow         = bpfFlow
	FlowKey      = bpfFlowKey
	NextHop      = bpfNextHop
	Peer         = bpfPeer
	PortClass    = bpfPortClass
	Prefix       = bpfPrefix
	Route        = bpfRoute
	Settings     = bpfSettings
	Hook         = bpfHook
	Reason       = bpfReason
	Forward      = bpfForward
	FlowState    = bpfFlowState
	RouteKind    = bpfRouteKind
	ToHost       = bpfToHost
	RuleAction   = bpfRuleAction
)

// The enums' values.
const (
	EndpointVeth = uint32(bpfEndpointFlagsENDPOINT_VETH)
	EndpointMAC  = uint32(bpfEndpointFlagsENDPOINT_MAC)

	ForwardHost  = bpfForwardFORWARD_HOST
	ForwardStack = bpfForwardFORWARD_STACK
	ForwardNode  = bpfForwardFORWARD_NODE
	ForwardIPIP  = bpfForwardFORWARD_IPIP
	ForwardVXLAN = bpfForwardFORWARD_VXLAN

	FlowAOpened    = bpfFlowStateFLOW_A_OPENED
	FlowDenied     = bpfFlowStateFLOW_DENIED
	FlowConfirmed  = bpfFlowStateFLOW_CONFIRMED
	FlowClosedA    = bpfFlowStateFLOW_CLOSED_A
	FlowClosedB    = bpfFlowStateFLOW_CLOSED_B
	FlowHostOpened = bpfFlowStateFLOW_HOST_OPENED
	FlowTransit    = bpfFlowStateFLOW_TRANSIT
	FlowForwarded  = bpfFlowStateFLOW_FORWARDED
	FlowReplied    = bpfFlowStateFLOW_REPLIED

	RouteHost     = bpfRouteKindROUTE_HOST
	RouteWorkload = bpfRouteKindROUTE_WORKLOAD
	RouteBlock    = bpfRouteKindROUTE_BLOCK
	RoutePeerHost = bpfRouteKindROUTE_PEER_HOST

	ToHostDrop   = bpfToHostTO_HOST_DROP
	ToHostReturn = bpfToHostTO_HOST_RETURN
	ToHostAccept = bpfToHostTO_HOST_ACCEPT

	RuleDeny     = bpfRuleActionRULE_DENY
	RuleAllow    = bpfRuleActionRULE_ALLOW
	RulePass     = bpfRuleActionRULE_PASS
	RuleLog      = bpfRuleActionRULE_LOG
	RuleContinue = bpfRuleActionRULE_CONTINUE

	HostPolicyTracked   = bpfHostPolicyHOST_POLICY_TRACKED
	HostPolicyUntracked = bpfHostPolicyHOST_POLICY_UNTRACKED

	DirectionIngress = bpfDirectionDIRECTION_INGRESS
	DirectionEgress  = bpfDirectionDIRECTION_EGRESS

	EventLog    = bpfEventKindEVENT_LOG
	EventDrop   = bpfEventKindEVENT_DROP
	EventFlow   = bpfEventKindEVENT_FLOW
	EventStaged = bpfEventKindEVENT_STAGED

	HookFromWorkload = bpfHookHOOK_FROM_WORKLOAD
	HookToWorkload   = bpfHookHOOK_TO_WORKLOAD
	HookFromNetwork  = bpfHookHOOK_FROM_NETWORK
	HookToNetwork    = bpfHookHOOK_TO_NETWORK
	HookXDPNetwork   = bpfHookHOOK_XDP_NETWORK
	hookMax          = bpfHookHOOK_MAX
	reasonMax        = bpfReasonREASON_MAX
)

// Maps are the kernel's tables, open.
type Maps struct {
	Endpoints   Table[uint32, Endpoint]
	Workloads   Table[Address, uint32]
	Routes      Table[Prefix, Route]
	Peers       Table[Address, Peer]
	HostClasses Table[Address, uint32]
	NetClasses  Table[Prefix, uint32]
	Settings    Table[uint32, Settings]
	Flows       Table[FlowKey, Flow]
	NewFlows    Table[FlowKey, Flow]
	// HostEndpoints is by ifindex; see struct host_endpoint for 0.
	HostEndpoints Table[uint32, HostEndpoint]
	Failsafe      Table[FailsafeKey, uint32]
	RuleNames     Table[uint32, RuleName]
	RuleCounters  RuleCounters
	Explanations  Table[uint32, Explanation]
	Ports         *PortClasses
	Words         *Words

	all     map[string]*ebpf.Map
	dir     string
	hooks   []string
	reasons []string
}

// Open creates the maps, or opens those that a former process pinned in dir, a
// directory on a bpffs. With an empty dir nothing is pinned. A pinned map of
// another layout is an error: layouts are told apart by directory.
func Open(dir string) (*Maps, error) {
	spec, err := loadBpf()
	if err != nil {
		return nil, err
	}
	// Not fatal: kernels since 5.11 account BPF memory to the cgroup instead.
	_ = rlimit.RemoveMemlock()
	var opts ebpf.MapOptions
	if dir != "" {
		if err := makePinDir(dir); err != nil {
			return nil, err
		}
		opts.PinPath = dir
	}
	m := &Maps{all: make(map[string]*ebpf.Map), dir: dir}
	for name, s := range spec.Maps {
		if strings.HasPrefix(name, ".") {
			continue // the variables that carry the enums
		}
		if dir != "" {
			s.Pinning = ebpf.PinByName
		}
		em, err := ebpf.NewMapWithOptions(s, opts)
		if err != nil {
			m.Close()
			return nil, fmt.Errorf("map %s: %w", name, err)
		}
		m.all[name] = em
	}
	m.Endpoints = Table[uint32, Endpoint]{m.all[bpfMapEndpoints]}
	m.Workloads = Table[Address, uint32]{m.all[bpfMapWorkloads]}
	m.Routes = Table[Prefix, Route]{m.all[bpfMapRoutes]}
	m.Peers = Table[Address, Peer]{m.all[bpfMapPeers]}
	m.HostClasses = Table[Address, uint32]{m.all[bpfMapHostClasses]}
	m.NetClasses = Table[Prefix, uint32]{m.all[bpfMapNetClasses]}
	m.Settings = Table[uint32, Settings]{m.all[bpfMapSettings]}
	m.Flows = Table[FlowKey, Flow]{m.all[bpfMapFlows]}
	m.NewFlows = Table[FlowKey, Flow]{m.all[bpfMapNewFlows]}
	m.HostEndpoints = Table[uint32, HostEndpoint]{m.all[bpfMapHostEndpoints]}
	m.Failsafe = Table[FailsafeKey, uint32]{m.all[bpfMapFailsafe]}
	m.RuleNames = Table[uint32, RuleName]{m.all[bpfMapRuleNames]}
	m.RuleCounters = RuleCounters{m.all[bpfMapRuleCounters]}
	m.Explanations = Table[uint32, Explanation]{m.all[bpfMapExplanations]}
	if err := m.placeFlows(); err != nil {
		m.Close()
		return nil, err
	}
	m.hooks = enumNames(spec, "hook", "HOOK_", int(hookMax))
	m.reasons = enumNames(spec, "reason", "", int(reasonMax))
	if m.Ports, err = newPortClasses(m.all[bpfMapPortClasses]); err == nil {
		m.Words, err = newWords(m.all[bpfMapRulesetWords])
	}
	if err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// Handles gives the loader the maps that programs share, by name.
func (m *Maps) Handles() map[string]*ebpf.Map { return m.all }

// Close closes the maps; those that are pinned live on.
func (m *Maps) Close() error {
	var errs []error
	for _, em := range m.all {
		errs = append(errs, em.Close())
	}
	return errors.Join(errs...)
}

// Unpin removes the maps from the pin directory dir.
func Unpin(dir string) error {
	spec, err := loadBpf()
	if err != nil {
		return err
	}
	var errs []error
	for name := range spec.Maps {
		if strings.HasPrefix(name, ".") {
			continue
		}
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// enumNames reads the names of a C enum from BTF: index n is the name of value n,
// in lower case without the prefix.
func enumNames(spec *ebpf.CollectionSpec, enum, prefix string, n int) []string {
	names := make([]string, n)
	var e *btf.Enum
	if err := spec.Types.TypeByName(enum, &e); err != nil {
		return names
	}
	for _, v := range e.Values {
		// The first name of a value is its own; later ones are bounds.
		if v.Value < uint64(n) && names[v.Value] == "" {
			names[v.Value] = strings.ToLower(strings.TrimPrefix(v.Name, prefix))
		}
	}
	return names
}
