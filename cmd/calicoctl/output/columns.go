package output

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"calico-xdp/pkg/api"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// maxSetWidth is where a list that may have thousands of members is cut.
const maxSetWidth = 80

// column is one column of a kind's table.
type column struct {
	heading string
	wide    bool // only in the wide form
	asked   bool // in neither, only where it is asked for
	cell    func(r api.Resource, c Cluster) string
}

// Cluster is what cells need to know beyond their own object.
type Cluster struct {
	// ASNumber is the cluster's default, which a node without its own uses.
	ASNumber numorstring.ASNumber
}

// col makes a column that both forms have; cell gets the kind's own Go type.
func col[T api.Resource](heading string, cell func(T) string) column {
	return column{heading: heading, cell: func(r api.Resource, _ Cluster) string {
		t, ok := r.(T)
		if !ok {
			return ""
		}
		return cell(t)
	}}
}

// wide makes a column of the wide form.
func wide[T api.Resource](heading string, cell func(T) string) column {
	c := col(heading, cell)
	c.wide = true
	return c
}

var name = column{heading: "NAME", cell: func(r api.Resource, _ Cluster) string { return r.GetName() }}

var namespace = column{heading: "NAMESPACE", cell: func(r api.Resource, _ Cluster) string { return r.GetNamespace() }}

// columnsOf returns the columns of a kind's table, headings and order as
// Calico's users know them. Where Calico's own table does not work (the wide
// forms of CalicoNodeStatus and WorkloadEndpoint) it is ours, and so is what the wide
// form of BGPFilter has beyond the numbers of rules.
func columnsOf(kind string) []column {
	switch kind {
	case api.KindNode:
		return []column{
			name,
			{heading: "ASN", wide: true, cell: nodeASN},
			wide("IPV4", func(n *api.Node) string { return nodeBGP(n).IPv4Address }),
			wide("IPV6", func(n *api.Node) string { return nodeBGP(n).IPv6Address }),
		}
	case api.KindIPPool:
		return []column{
			name,
			col("CIDR", func(p *api.IPPool) string { return p.Spec.CIDR }),
			wide("NAT", func(p *api.IPPool) string { return strconv.FormatBool(p.Spec.NATOutgoing) }),
			wide("IPIPMODE", func(p *api.IPPool) string { return string(p.Spec.IPIPMode) }),
			wide("VXLANMODE", func(p *api.IPPool) string { return string(p.Spec.VXLANMode) }),
			wide("DISABLED", func(p *api.IPPool) string { return strconv.FormatBool(p.Spec.Disabled) }),
			wide("DISABLEBGPEXPORT", func(p *api.IPPool) string { return strconv.FormatBool(p.Spec.DisableBGPExport) }),
			col("SELECTOR", func(p *api.IPPool) string { return p.Spec.NodeSelector }),
			wide("ASSIGNMENTMODE", func(p *api.IPPool) string { return text(p.Spec.AssignmentMode, "") }),
		}
	case api.KindProfile:
		return []column{name, wide("LABELS", func(p *api.Profile) string { return labels(p.Spec.LabelsToApply) })}
	case api.KindTier:
		return []column{name, col("ORDER", func(t *api.Tier) string { return order(t.Spec.Order) })}
	case api.KindGlobalNetworkSet:
		return []column{name, wide("NETS", func(s *api.GlobalNetworkSet) string { return Cut(s.Spec.Nets) })}
	case api.KindNetworkSet:
		return []column{name, wide("NETS", func(s *api.NetworkSet) string { return Cut(s.Spec.Nets) })}
	case api.KindIPReservation:
		return []column{name, wide("CIDRS", func(r *api.IPReservation) string { return Cut(r.Spec.ReservedCIDRs) })}
	case api.KindHostEndpoint:
		return []column{
			name,
			col("NODE", func(h *api.HostEndpoint) string { return h.Spec.Node }),
			wide("INTERFACE", func(h *api.HostEndpoint) string { return h.Spec.InterfaceName }),
			wide("IPS", func(h *api.HostEndpoint) string { return Cut(h.Spec.ExpectedIPs) }),
			wide("PROFILES", func(h *api.HostEndpoint) string { return Cut(h.Spec.Profiles) }),
		}
	case api.KindWorkloadEndpoint:
		return workloadEndpointColumns()
	case api.KindBGPConfiguration, api.KindBGPPeer, api.KindBGPFilter:
		return bgpColumns(kind)
	case api.KindClusterInformation:
		return []column{
			name,
			col("CLUSTERGUID", func(c *api.ClusterInformation) string { return c.Spec.ClusterGUID }),
			col("CLUSTERTYPE", func(c *api.ClusterInformation) string { return c.Spec.ClusterType }),
			col("CALICOVERSION", func(c *api.ClusterInformation) string { return c.Spec.CalicoVersion }),
			col("DATASTOREREADY", func(c *api.ClusterInformation) string { return text(c.Spec.DatastoreReady, "") }),
		}
	case api.KindIPAMConfiguration:
		return []column{
			name,
			col("STRICTAFFINITY", func(c *api.IPAMConfiguration) string { return strconv.FormatBool(c.Spec.StrictAffinity) }),
			col("AUTOALLOCATEBLOCKS", func(c *api.IPAMConfiguration) string { return text(c.Spec.AutoAllocateBlocks, "true") }),
			wide("MAXBLOCKSPERHOST", func(c *api.IPAMConfiguration) string { return strconv.Itoa(int(c.Spec.MaxBlocksPerHost)) }),
		}
	case api.KindCalicoNodeStatus:
		return []column{
			name,
			col("NODE", func(s *api.CalicoNodeStatus) string { return s.Spec.Node }),
			wide("CLASSES", func(s *api.CalicoNodeStatus) string { return join(s.Spec.Classes) }),
			wide("INTERVAL", func(s *api.CalicoNodeStatus) string { return text(s.Spec.UpdatePeriodSeconds, "") }),
			wide("LASTUPDATED", func(s *api.CalicoNodeStatus) string {
				if s.Status.LastUpdated.IsZero() {
					return ""
				}
				return s.Status.LastUpdated.UTC().Format("2006-01-02T15:04:05Z")
			}),
		}
	}
	if cs := policyColumns(kind); cs != nil {
		return cs
	}
	return []column{name}
}

// A WorkloadEndpoint's own name is long and repeats the other columns, so it is
// left to the wide form.
func workloadEndpointColumns() []column {
	return []column{
		wide("NAME", func(w *api.WorkloadEndpoint) string { return w.Name }),
		col("WORKLOAD", func(w *api.WorkloadEndpoint) string {
			if w.Spec.Pod != "" {
				return w.Spec.Pod
			}
			return w.Spec.Workload
		}),
		col("NODE", func(w *api.WorkloadEndpoint) string { return w.Spec.Node }),
		{heading: "ORCHESTRATOR", asked: true, cell: func(r api.Resource, _ Cluster) string { return r.(*api.WorkloadEndpoint).Spec.Orchestrator }},
		col("NETWORKS", func(w *api.WorkloadEndpoint) string { return join(w.Spec.IPNetworks) }),
		col("INTERFACE", func(w *api.WorkloadEndpoint) string { return w.Spec.InterfaceName }),
		wide("PROFILES", func(w *api.WorkloadEndpoint) string { return join(w.Spec.Profiles) }),
		wide("NATS", func(w *api.WorkloadEndpoint) string {
			nats := make([]string, len(w.Spec.IPNATs))
			for i, n := range w.Spec.IPNATs {
				nats[i] = n.ExternalIP + "->" + n.InternalIP
			}
			return join(nats)
		}),
	}
}

func policyColumns(kind string) []column {
	switch kind {
	case api.KindGlobalNetworkPolicy:
		return policy(func(p *api.GlobalNetworkPolicy) (string, *float64, string) {
			return p.Spec.Tier, p.Spec.Order, p.Spec.Selector
		})
	case api.KindNetworkPolicy:
		return policy(func(p *api.NetworkPolicy) (string, *float64, string) {
			return p.Spec.Tier, p.Spec.Order, p.Spec.Selector
		})
	case api.KindStagedGlobalNetworkPolicy:
		return policy(func(p *api.StagedGlobalNetworkPolicy) (string, *float64, string) {
			return p.Spec.Tier, p.Spec.Order, p.Spec.Selector
		})
	case api.KindStagedNetworkPolicy:
		return policy(func(p *api.StagedNetworkPolicy) (string, *float64, string) {
			return p.Spec.Tier, p.Spec.Order, p.Spec.Selector
		})
	case api.KindStagedKubernetesNetworkPolicy:
		return []column{
			name,
			wide("PODSELECTOR", func(p *api.StagedKubernetesNetworkPolicy) string {
				return metav1.FormatLabelSelector(&p.Spec.PodSelector)
			}),
		}
	}
	return nil
}

func policy[T api.Resource](spec func(T) (tier string, order *float64, selector string)) []column {
	return []column{
		name,
		col("TIER", func(p T) string { tier, _, _ := spec(p); return tier }),
		wide("ORDER", func(p T) string { _, o, _ := spec(p); return order(o) }),
		wide("SELECTOR", func(p T) string { _, _, s := spec(p); return s }),
	}
}

func bgpColumns(kind string) []column {
	switch kind {
	case api.KindBGPConfiguration:
		return []column{
			name,
			col("LOGSEVERITY", func(c *api.BGPConfiguration) string { return c.Spec.LogSeverityScreen }),
			col("MESHENABLED", func(c *api.BGPConfiguration) string { return text(c.Spec.NodeToNodeMeshEnabled, "-") }),
			col("ASNUMBER", func(c *api.BGPConfiguration) string { return text(c.Spec.ASNumber, "-") }),
		}
	case api.KindBGPPeer:
		return []column{
			name,
			col("PEERIP", func(p *api.BGPPeer) string { return p.Spec.PeerIP }),
			col("NODE", func(p *api.BGPPeer) string {
				switch {
				case p.Spec.Node != "":
					return p.Spec.Node
				case p.Spec.NodeSelector != "":
					return p.Spec.NodeSelector
				}
				return "(global)"
			}),
			col("ASN", func(p *api.BGPPeer) string { return p.Spec.ASNumber.String() }),
		}
	}
	return []column{
		name,
		col("NUMEXPORTV4", func(f *api.BGPFilter) string { return strconv.Itoa(len(f.Spec.ExportV4)) }),
		col("NUMIMPORTV4", func(f *api.BGPFilter) string { return strconv.Itoa(len(f.Spec.ImportV4)) }),
		col("NUMEXPORTV6", func(f *api.BGPFilter) string { return strconv.Itoa(len(f.Spec.ExportV6)) }),
		col("NUMIMPORTV6", func(f *api.BGPFilter) string { return strconv.Itoa(len(f.Spec.ImportV6)) }),
		wide("EXPORTV4", func(f *api.BGPFilter) string { return filters(f.Spec.ExportV4, filterV4) }),
		wide("IMPORTV4", func(f *api.BGPFilter) string { return filters(f.Spec.ImportV4, filterV4) }),
		wide("EXPORTV6", func(f *api.BGPFilter) string { return filters(f.Spec.ExportV6, filterV6) }),
		wide("IMPORTV6", func(f *api.BGPFilter) string { return filters(f.Spec.ImportV6, filterV6) }),
	}
}

func filterV4(r v3.BGPFilterRuleV4) string {
	var lengths *v3.BGPFilterPrefixLengthV6 // the two families' types have the same fields
	if r.PrefixLength != nil {
		lengths = &v3.BGPFilterPrefixLengthV6{Min: r.PrefixLength.Min, Max: r.PrefixLength.Max}
	}
	return filterV6(v3.BGPFilterRuleV6{
		CIDR: r.CIDR, PrefixLength: lengths, Source: r.Source, Interface: r.Interface,
		MatchOperator: r.MatchOperator, Action: r.Action,
	})
}

// filterV6 writes a rule as "Accept(In 77.0.0.0/16 24-28)": the action and what
// it needs to match.
func filterV6(r v3.BGPFilterRuleV6) string {
	var match []string
	if r.CIDR != "" {
		match = append(match, string(r.MatchOperator), r.CIDR)
	}
	if p := r.PrefixLength; p != nil {
		match = append(match, text(p.Min, "")+"-"+text(p.Max, ""))
	}
	if r.Source != "" {
		match = append(match, "from "+string(r.Source))
	}
	if r.Interface != "" {
		match = append(match, "on "+r.Interface)
	}
	if len(match) == 0 {
		return string(r.Action)
	}
	return string(r.Action) + "(" + strings.Join(match, " ") + ")"
}

func filters[R any](rules []R, one func(R) string) string {
	texts := make([]string, len(rules))
	for i, r := range rules {
		texts[i] = one(r)
	}
	return Cut(texts)
}

// nodeASN shows a number that the node has from the cluster in brackets.
func nodeASN(r api.Resource, c Cluster) string {
	n, ok := r.(*api.Node)
	if !ok {
		return ""
	}
	if as := nodeBGP(n).ASNumber; as != nil {
		return as.String()
	}
	return "(" + c.ASNumber.String() + ")"
}

func nodeBGP(n *api.Node) api.NodeBGPSpec {
	if n.Spec.BGP == nil {
		return api.NodeBGPSpec{}
	}
	return *n.Spec.BGP
}

// order writes a policy's or tier's order as Calico does: "<nil>" for none,
// 1e+06 for a million.
func order(o *float64) string {
	if o == nil {
		return "<nil>"
	}
	return fmt.Sprint(*o)
}

// text writes what p points to, or none.
func text[T any](p *T, none string) string {
	if p == nil {
		return none
	}
	return fmt.Sprint(*p)
}

func labels(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return join(out)
}

func join[S ~string](list []S) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = string(s)
	}
	return strings.Join(out, ",")
}

// Cut joins a list and ends it with "..." where it gets too long for a table.
func Cut(list []string) string {
	s := strings.Join(list, ",")
	if len(s) <= maxSetWidth {
		return s
	}
	return s[:maxSetWidth-3] + "..."
}
