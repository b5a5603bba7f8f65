// Package maps holds the kernel's tables, typed. The C in bpf/ is the source of
// every layout here; the generated types get the house's names.
package maps

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

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
	Fragment     = bpfFragment
	FragmentKey  = bpfFragmentKey
	NextHop      = bpfNextHop
	Peer         = bpfPeer
	PortClass    = bpfPortClass
	Prefix       = bpfPrefix
	Route        = bpfRoute
	Settings     = bpfSettings
	SourceKey    = bpfSourceKey
	XDPRuleset   = bpfXdpRuleset
	Hook         = bpfHook
	Reason       = bpfReason
	Forward      = bpfForward
	FlowState    = bpfFlowState
	RouteKind    = bpfRouteKind
	ToHost       = bpfToHost
	RuleAction   = bpfRuleAction
	// WorkloadTunnel is a bit of Settings.WorkloadTunnels.
	WorkloadTunnel = bpfWorkloadTunnel
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

	FlowAOpened     = bpfFlowStateFLOW_A_OPENED
	FlowDenied      = bpfFlowStateFLOW_DENIED
	FlowConfirmed   = bpfFlowStateFLOW_CONFIRMED
	FlowClosedA     = bpfFlowStateFLOW_CLOSED_A
	FlowClosedB     = bpfFlowStateFLOW_CLOSED_B
	FlowHostOpened  = bpfFlowStateFLOW_HOST_OPENED
	FlowTransit     = bpfFlowStateFLOW_TRANSIT
	FlowForwarded   = bpfFlowStateFLOW_FORWARDED
	FlowReplied     = bpfFlowStateFLOW_REPLIED
	FlowMasqueraded = bpfFlowStateFLOW_MASQUERADED
	FlowUnjudged    = bpfFlowStateFLOW_UNJUDGED

	NATSource  = uint32(bpfNatNetNAT_SOURCE)
	NATInside  = uint32(bpfNatNetNAT_INSIDE)
	NATService = uint32(bpfNatNetNAT_SERVICE)

	RouteHost     = bpfRouteKindROUTE_HOST
	RouteWorkload = bpfRouteKindROUTE_WORKLOAD
	RouteBlock    = bpfRouteKindROUTE_BLOCK
	RoutePeerHost = bpfRouteKindROUTE_PEER_HOST

	ToHostDrop   = bpfToHostTO_HOST_DROP
	ToHostReturn = bpfToHostTO_HOST_RETURN
	ToHostAccept = bpfToHostTO_HOST_ACCEPT

	PlaceElsewhere = bpfPlacePLACE_ELSEWHERE
	PlaceRoute     = bpfPlacePLACE_ROUTE
	PlaceWorkload  = bpfPlacePLACE_WORKLOAD

	RuleDeny     = bpfRuleActionRULE_DENY
	RuleAllow    = bpfRuleActionRULE_ALLOW
	RulePass     = bpfRuleActionRULE_PASS
	RuleLog      = bpfRuleActionRULE_LOG
	RuleContinue = bpfRuleActionRULE_CONTINUE

	RuleSourceOnly = bpfRuleActionRULE_SOURCE_ONLY

	RulesetRules = bpfRulesetHeaderRULESET_RULES
	RulesetAny   = bpfRulesetHeaderRULESET_ANY

	HostPolicyTracked   = bpfHostPolicyHOST_POLICY_TRACKED
	HostPolicyUntracked = bpfHostPolicyHOST_POLICY_UNTRACKED

	WorkloadIPIP  = bpfWorkloadTunnelWORKLOAD_IPIP
	WorkloadVXLAN = bpfWorkloadTunnelWORKLOAD_VXLAN

	RPFDisabled = bpfRpfRPF_DISABLED
	RPFLoose    = bpfRpfRPF_LOOSE
	RPFStrict   = bpfRpfRPF_STRICT

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
	// ClassNodes say again what HostClasses and NetClasses say of IPv4, PlaceNodes what
	// Workloads and Routes do.
	ClassNodes, PlaceNodes *TrieNodes
	NATNets                Table[Prefix, uint32]
	Settings               Table[uint32, Settings]
	Flows                  Table[FlowKey, Flow]
	NewFlows               Table[FlowKey, Flow]
	Fragments              Table[FragmentKey, Fragment]
	// HostEndpoints is by ifindex; see struct host_endpoint for 0.
	HostEndpoints Table[uint32, HostEndpoint]
	Failsafe      Table[FailsafeKey, uint32]
	// AllowedSources has the slots of workloads that may send from these addresses.
	AllowedSources Table[SourceKey, uint32]
	FailsafePorts  Table[uint32, uint64]
	XDPRulesets    Table[uint32, XDPRuleset]
	RuleNames      Table[uint32, RuleName]
	RuleCounters   RuleCounters
	Explanations   Table[uint32, Explanation]
	Ports          *PortClasses
	Words          *Words

	all     map[string]*held
	spec    *ebpf.CollectionSpec
	dir     string
	hooks   []string
	reasons []string
	growing sync.Mutex // one table takes another's place at a time
}

// fixedTable is the table of that name, which does not grow as Grow does it.
func fixedTable[K, V comparable](m *Maps, name string) Table[K, V] { return Table[K, V]{m.all[name]} }

// Options say how large tables are.
type Options struct {
	// Sizes are the entries that tables hold which are made now, by name; by default
	// what the C declares. A table that a former process has pinned keeps its size.
	Sizes map[string]int
	// Grow makes room for that many entries in a table, with Maps.Grow. It is called
	// by whoever finds it full. Without it tables do not grow.
	Grow func(table string, entries int) error
	// Wrote is called after each write to a table that the daemon writes and packets
	// read: tests look at what a packet meets then.
	Wrote func(table string)
}

// Open creates the maps, or opens those that a former process pinned in dir, a
// directory on a bpffs. With an empty dir nothing is pinned. A pinned map of
// another layout is made anew if nothing is lost with it; else it is an error: layouts
// are told apart by directory.
func Open(dir string) (*Maps, error) { return OpenWith(dir, Options{}) }

// OpenWith is Open with options.
func OpenWith(dir string, o Options) (*Maps, error) {
	spec, err := loadBpf()
	if err != nil {
		return nil, err
	}
	// Not fatal: kernels since 5.11 account BPF memory to the cgroup instead.
	_ = rlimit.RemoveMemlock()
	if dir != "" {
		if err := makePinDir(dir); err != nil {
			return nil, err
		}
	}
	m := &Maps{all: make(map[string]*held), spec: spec, dir: dir}
	for name, s := range spec.Maps {
		if strings.HasPrefix(name, ".") {
			continue // the variables that carry the enums
		}
		if n := o.Sizes[name]; n > 0 {
			s.MaxEntries = uint32(n)
		}
		em, err := open(s, dir)
		if err != nil {
			m.Close()
			return nil, fmt.Errorf("map %s: %w", name, err)
		}
		m.all[name] = &held{name: name, m: em, grow: o.Grow, wrote: o.Wrote}
	}
	m.Endpoints = tableOf[uint32, Endpoint](m, bpfMapEndpoints)
	m.Workloads = tableOf[Address, uint32](m, bpfMapWorkloads)
	m.Routes = tableOf[Prefix, Route](m, bpfMapRoutes)
	m.Peers = tableOf[Address, Peer](m, bpfMapPeers)
	m.HostClasses = tableOf[Address, uint32](m, bpfMapHostClasses)
	m.NetClasses = tableOf[Prefix, uint32](m, bpfMapNetClasses)
	m.NATNets = tableOf[Prefix, uint32](m, bpfMapNatNets)
	m.HostEndpoints = tableOf[uint32, HostEndpoint](m, bpfMapHostEndpoints)
	m.AllowedSources = tableOf[SourceKey, uint32](m, bpfMapAllowedSources)
	m.Failsafe = tableOf[FailsafeKey, uint32](m, bpfMapFailsafe)
	m.RuleNames = tableOf[uint32, RuleName](m, bpfMapRuleNames)
	m.RuleCounters = newRuleCounters(m.all[bpfMapRuleCounters])
	m.FailsafePorts = fixedTable[uint32, uint64](m, bpfMapFailsafePorts)
	m.XDPRulesets = fixedTable[uint32, XDPRuleset](m, bpfMapXdpRulesets)
	m.Settings = fixedTable[uint32, Settings](m, bpfMapSettings)
	m.NewFlows = fixedTable[FlowKey, Flow](m, bpfMapNewFlows)
	m.Fragments = fixedTable[FragmentKey, Fragment](m, bpfMapFragments)
	m.Explanations = fixedTable[uint32, Explanation](m, bpfMapExplanations)
	m.Flows = fixedTable[FlowKey, Flow](m, bpfMapFlows) // grows in a way of its own
	m.hooks = enumNames(spec, "hook", "HOOK_", int(hookMax))
	m.reasons = enumNames(spec, "reason", "", int(reasonMax))
	if err := m.placeFlows(); err != nil {
		m.Close()
		return nil, err
	}
	if m.Ports, err = newPortClasses(m.all[bpfMapPortClasses]); err == nil {
		m.Words, err = newWords(m.all[bpfMapRulesetWords])
	}
	if err == nil {
		m.ClassNodes, err = newTrieNodes(m.all[bpfMapClassNodes])
	}
	if err == nil {
		m.PlaceNodes, err = newTrieNodes(m.all[bpfMapPlaceNodes])
	}
	if err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// open makes a map, or opens the one that is pinned in dir.
func open(s *ebpf.MapSpec, dir string) (*ebpf.Map, error) {
	if dir == "" {
		return ebpf.NewMap(s)
	}
	s.Pinning = ebpf.PinByName
	if err := os.Remove(filepath.Join(dir, s.Name+comingSuffix)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err // a former process ended before it took its place
	}
	pinned, err := ebpf.LoadPinnedMap(filepath.Join(dir, s.Name), nil)
	switch {
	case err == nil && slices.Contains(growable, s.Name):
		s.MaxEntries = pinned.MaxEntries()
		fallthrough
	case err == nil:
		if other := s.Compatible(pinned); other != nil && slices.Contains(passing, s.Name) {
			err = pinned.Unpin()
		} else if other != nil {
			err = fmt.Errorf("of another version (%w): stop calico-node and run calico-node --detach", other)
		}
		if err = errors.Join(err, pinned.Close()); err != nil {
			return nil, err
		}
	case !errors.Is(err, os.ErrNotExist):
		return nil, err
	}
	return ebpf.NewMapWithOptions(s, ebpf.MapOptions{PinPath: dir})
}

// passing are the tables that a former version's programs may go on with alone: what is
// in them is written before new programs are attached, or is of no consequence.
var passing = []string{
	bpfMapSettings, bpfMapCounters, bpfMapScratch, bpfMapSearches, bpfMapRemembered, bpfMapEvents, bpfMapEventBudgets, bpfMapExplanations,
	bpfMapFragments, bpfMapPathMtus,
}

// Handles gives the loader the maps that programs share, by name.
func (m *Maps) Handles() map[string]*ebpf.Map {
	out := make(map[string]*ebpf.Map, len(m.all))
	for name, h := range m.all {
		h.mu.RLock()
		out[name] = h.m
		h.mu.RUnlock()
	}
	return out
}

// Close closes the maps; those that are pinned live on.
func (m *Maps) Close() error {
	var errs []error
	for _, h := range m.all {
		errs = append(errs, h.close())
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
		for _, pin := range []string{name, name + comingSuffix} {
			if err := os.Remove(filepath.Join(dir, pin)); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
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
