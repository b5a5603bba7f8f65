package v1

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"calico-xdp/pkg/api"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"
)

// manifest is any object of the v1 API.
type manifest struct {
	APIVersion string          `json:"apiVersion"`
	Kind       string          `json:"kind"`
	Metadata   json.RawMessage `json:"metadata"`
	Spec       json.RawMessage `json:"spec"`
}

type metadata struct {
	Name         string            `json:"name"`
	Labels       map[string]string `json:"labels"`
	Tags         []string          `json:"tags"`
	Annotations  map[string]string `json:"annotations"`
	Scope        string            `json:"scope"`
	Node         string            `json:"node"`
	PeerIP       string            `json:"peerIP"`
	CIDR         string            `json:"cidr"`
	Workload     string            `json:"workload"`
	Orchestrator string            `json:"orchestrator"`
	ActiveID     string            `json:"activeInstanceID"`
}

// manifestRule is a rule of the v1 API, which has the same content as [Rule].
type manifestRule struct {
	Action      string         `json:"action"`
	IPVersion   *int           `json:"ipVersion"`
	Protocol    *Text          `json:"protocol"`
	ICMP        *v3.ICMPFields `json:"icmp"`
	NotProtocol *Text          `json:"notProtocol"`
	NotICMP     *v3.ICMPFields `json:"notICMP"`
	Source      manifestSide   `json:"source"`
	Destination manifestSide   `json:"destination"`
}

type manifestSide struct {
	Tag         string   `json:"tag"`
	Net         string   `json:"net"`
	Nets        []string `json:"nets"`
	Selector    string   `json:"selector"`
	Ports       []Text   `json:"ports"`
	NotTag      string   `json:"notTag"`
	NotNet      string   `json:"notNet"`
	NotNets     []string `json:"notNets"`
	NotSelector string   `json:"notSelector"`
	NotPorts    []Text   `json:"notPorts"`
}

func (m *manifestRule) rule() Rule {
	s, d := m.Source, m.Destination
	r := Rule{Action: m.Action, Protocol: m.Protocol, IPVersion: m.IPVersion, NotProtocol: m.NotProtocol, Entity: Entity{
		SrcTag: s.Tag, SrcNet: s.Net, SrcNets: s.Nets, SrcSelector: s.Selector, SrcPorts: s.Ports,
		NotSrcTag: s.NotTag, NotSrcNet: s.NotNet, NotSrcNets: s.NotNets, NotSrcSelector: s.NotSelector, NotSrcPorts: s.NotPorts,
		DstTag: d.Tag, DstNet: d.Net, DstNets: d.Nets, DstSelector: d.Selector, DstPorts: d.Ports,
		NotDstTag: d.NotTag, NotDstNet: d.NotNet, NotDstNets: d.NotNets, NotDstSelector: d.NotSelector, NotDstPorts: d.NotPorts,
	}}
	if m.ICMP != nil {
		r.ICMPType, r.ICMPCode = m.ICMP.Type, m.ICMP.Code
	}
	if m.NotICMP != nil {
		r.NotICMPType, r.NotICMPCode = m.NotICMP.Type, m.NotICMP.Code
	}
	return r
}

func convertRules(in []manifestRule) ([]api.Rule, error) {
	rules := make([]Rule, len(in))
	for i := range in {
		rules[i] = in[i].rule()
	}
	return ToV3(rules)
}

// Convert returns the v3 resource of a v1 manifest, in JSON. Fields that v1 does not have
// are refused.
func Convert(data []byte) (api.Resource, error) {
	var m manifest
	var meta metadata
	if err := strictly(data, &m); err != nil {
		return nil, err
	}
	if m.APIVersion != "v1" {
		return nil, fmt.Errorf("%s: apiVersion: %q is not v1", m.Kind, m.APIVersion)
	}
	if err := strictly(m.Metadata, &meta); err != nil {
		return nil, fmt.Errorf("%s: metadata: %w", m.Kind, err)
	}
	if len(m.Spec) == 0 || string(m.Spec) == "null" {
		m.Spec = []byte("{}")
	}
	r, err := convert(strings.ToLower(m.Kind), meta, m.Spec)
	if err != nil {
		return nil, fmt.Errorf("%s(%s): %w", m.Kind, meta.Name+meta.CIDR+meta.PeerIP, err)
	}
	api.Default(r) // types that are not given follow from the rules, as with Calico's own conversion
	api.DropMetadata(r)
	return r, nil
}

func strictly(data []byte, to any) error {
	if len(data) == 0 {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	return d.Decode(to)
}

func convert(kind string, meta metadata, spec []byte) (api.Resource, error) {
	switch kind {
	case "bgppeer":
		return convertPeer(meta, spec)
	case "hostendpoint":
		return convertHostEndpoint(meta, spec)
	case "ippool":
		return convertPool(meta, spec)
	case "node":
		return convertNode(meta, spec)
	case "policy":
		return convertPolicy(meta, spec)
	case "profile":
		return convertProfile(meta, spec)
	case "workloadendpoint":
		return convertWorkloadEndpoint(meta, spec)
	}
	return nil, errors.New("is none of bgpPeer, hostEndpoint, ipPool, node, policy, profile, workloadEndpoint")
}

func convertPeer(meta metadata, data []byte) (api.Resource, error) {
	var spec struct {
		ASNumber numorstring.ASNumber `json:"asNumber"`
	}
	if err := strictly(data, &spec); err != nil {
		return nil, err
	}
	peer, err := netip.ParseAddr(meta.PeerIP)
	if err != nil {
		return nil, fmt.Errorf("metadata.peerIP: %q is not an address", meta.PeerIP)
	}
	node := ""
	if meta.Scope == "node" {
		node = meta.Node
	}
	p := v3.NewBGPPeer()
	p.Name = PeerName(node, peer)
	p.Spec.PeerIP, p.Spec.ASNumber, p.Spec.Node = peer.String(), spec.ASNumber, NodeName(node)
	return p, nil
}

func names(old []string) (out []string) {
	for _, n := range old {
		out = append(out, Name(n))
	}
	return out
}

func convertHostEndpoint(meta metadata, data []byte) (api.Resource, error) {
	var spec struct {
		InterfaceName string            `json:"interfaceName"`
		ExpectedIPs   []string          `json:"expectedIPs"`
		Profiles      []string          `json:"profiles"`
		Ports         []v3.EndpointPort `json:"ports"`
	}
	if err := strictly(data, &spec); err != nil {
		return nil, err
	}
	h := v3.NewHostEndpoint()
	h.Name, h.Labels = NodeName(meta.Node)+"."+Name(meta.Name), meta.Labels
	h.Spec = v3.HostEndpointSpec{
		Node: NodeName(meta.Node), InterfaceName: spec.InterfaceName, ExpectedIPs: spec.ExpectedIPs,
		Profiles: names(spec.Profiles), Ports: spec.Ports,
	}
	return h, nil
}

func convertPool(meta metadata, data []byte) (api.Resource, error) {
	var spec struct {
		IPIP struct {
			Enabled bool   `json:"enabled"`
			Mode    string `json:"mode"`
		} `json:"ipip"`
		NAT      bool `json:"nat-outgoing"`
		Disabled bool `json:"disabled"`
	}
	if err := strictly(data, &spec); err != nil {
		return nil, err
	}
	cidr, err := netip.ParsePrefix(meta.CIDR)
	if err != nil {
		return nil, fmt.Errorf("metadata.cidr: %q is not a network", meta.CIDR)
	}
	p := v3.NewIPPool()
	p.Name = PoolName(cidr.Masked())
	p.Spec.CIDR, p.Spec.NATOutgoing, p.Spec.Disabled = cidr.Masked().String(), spec.NAT, spec.Disabled
	switch {
	case spec.IPIP.Enabled && strings.EqualFold(spec.IPIP.Mode, "cross-subnet"):
		p.Spec.IPIPMode = v3.IPIPModeCrossSubnet
	case spec.IPIP.Enabled:
		p.Spec.IPIPMode = v3.IPIPModeAlways
	}
	return p, nil
}

func convertNode(meta metadata, data []byte) (api.Resource, error) {
	n := api.NewNode()
	if err := strictly(data, &n.Spec); err != nil {
		return nil, err
	}
	n.Name, n.Labels = NodeName(meta.Name), meta.Labels
	return n, nil
}

func convertPolicy(meta metadata, data []byte) (api.Resource, error) {
	var spec struct {
		Order          *float64       `json:"order"`
		Selector       string         `json:"selector"`
		Ingress        []manifestRule `json:"ingress"`
		Egress         []manifestRule `json:"egress"`
		Types          []string       `json:"types"`
		DoNotTrack     bool           `json:"doNotTrack"`
		PreDNAT        bool           `json:"preDNAT"`
		ApplyOnForward bool           `json:"applyOnForward"`
	}
	if err := strictly(data, &spec); err != nil {
		return nil, err
	}
	p := v3.NewGlobalNetworkPolicy()
	p.Name, p.Annotations = PolicyName(meta.Name), meta.Annotations
	var errIn, errOut error
	p.Spec.Ingress, errIn = convertRules(spec.Ingress)
	p.Spec.Egress, errOut = convertRules(spec.Egress)
	p.Spec.Order, p.Spec.Selector = spec.Order, joinSelector("", spec.Selector)
	p.Spec.DoNotTrack, p.Spec.PreDNAT = spec.DoNotTrack, spec.PreDNAT
	p.Spec.ApplyOnForward = spec.ApplyOnForward || spec.DoNotTrack || spec.PreDNAT
	for _, t := range spec.Types {
		p.Spec.Types = append(p.Spec.Types, map[string]v3.PolicyType{"ingress": v3.PolicyTypeIngress, "egress": v3.PolicyTypeEgress}[strings.ToLower(t)])
	}
	return p, errors.Join(errIn, errOut)
}

func convertProfile(meta metadata, data []byte) (api.Resource, error) {
	var spec struct {
		Ingress []manifestRule `json:"ingress"`
		Egress  []manifestRule `json:"egress"`
	}
	if err := strictly(data, &spec); err != nil {
		return nil, err
	}
	p := v3.NewProfile()
	p.Name, p.Annotations = Name(meta.Name), meta.Annotations
	p.Spec.LabelsToApply = make(map[string]string)
	for k, v := range meta.Labels {
		p.Spec.LabelsToApply[k] = v
	}
	for _, tag := range meta.Tags {
		if _, ok := p.Spec.LabelsToApply[tag]; ok {
			return nil, fmt.Errorf("metadata.tags: %q is a label too: rename one", tag)
		}
		p.Spec.LabelsToApply[tag] = ""
	}
	var errIn, errOut error
	p.Spec.Ingress, errIn = convertRules(spec.Ingress)
	p.Spec.Egress, errOut = convertRules(spec.Egress)
	return p, errors.Join(errIn, errOut)
}

func convertWorkloadEndpoint(meta metadata, data []byte) (api.Resource, error) {
	w := api.NewWorkloadEndpoint()
	if err := strictly(data, &w.Spec); err != nil {
		return nil, err
	}
	w.Labels = meta.Labels
	delete(w.Labels, "calico/k8s_ns") // v3's own label says it
	w.Spec.Node, w.Spec.Orchestrator = NodeName(meta.Node), Name(meta.Orchestrator)
	w.Spec.Endpoint, w.Spec.Profiles = Name(meta.Name), names(w.Spec.Profiles)
	w.Namespace = "default"
	if meta.Orchestrator == "k8s" {
		namespace, pod, ok := strings.Cut(meta.Workload, ".")
		if !ok {
			return nil, fmt.Errorf("metadata.workload: %q is not NAMESPACE.POD", meta.Workload)
		}
		w.Namespace, w.Spec.Pod, w.Spec.ContainerID = namespace, pod, meta.ActiveID
		if w.Spec.ContainerID == "" {
			w.Spec.ContainerID = "unknown-" + Name(pod)
		}
		return w, nil
	}
	w.Spec.Workload = Name(meta.Workload)
	return w, nil
}
