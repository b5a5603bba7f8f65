package api

import (
	"fmt"
	"net/netip"
	"strings"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// defaultOrNode is for kinds of which the cluster has one object and every node
// may have one.
func (f *faults) defaultOrNode(r metav1.Object) {
	name := r.GetName()
	if node, ok := strings.CutPrefix(name, "node."); name != "default" && (!ok || node == "") {
		f.add("metadata.name", name, `expected "default" or "node.<name>"`)
	}
}

func (f *faults) felix(r *FelixConfiguration) {
	s := &r.Spec
	f.defaultOrNode(r)
	for _, p := range []struct {
		path  string
		value *int
	}{
		{"spec.vxlanPort", s.VXLANPort}, {"spec.healthPort", s.HealthPort},
		{"spec.prometheusMetricsPort", s.PrometheusMetricsPort}, {"spec.metadataPort", s.MetadataPort},
	} {
		if p.value != nil && (*p.value < 0 || *p.value > 65535) {
			f.add(p.path, *p.value, "expected a port from 0 to 65535")
		}
	}
	for _, m := range []struct {
		path  string
		value *int
	}{
		{"spec.ipipMTU", s.IPIPMTU}, {"spec.vxlanMTU", s.VXLANMTU}, {"spec.vxlanMTUV6", s.VXLANMTUV6},
		{"spec.wireguardMTU", s.WireguardMTU}, {"spec.wireguardMTUV6", s.WireguardMTUV6},
	} {
		if m.value != nil && (*m.value < 0 || *m.value > 65535) {
			f.add(m.path, *m.value, "expected an MTU from 0 (automatic) to 65535")
		}
	}
	if s.VXLANVNI != nil && (*s.VXLANVNI < 1 || *s.VXLANVNI > 1<<24-1) {
		f.add("spec.vxlanVNI", *s.VXLANVNI, "expected 1 to %d", 1<<24-1)
	}
	if s.NFTablesMode != nil {
		f.oneOf("spec.nftablesMode", string(*s.NFTablesMode), "Auto", "Enabled", "Disabled")
	}
	if s.FloatingIPs != nil {
		f.oneOf("spec.floatingIPs", string(*s.FloatingIPs), "Enabled", "Disabled")
	}
	if s.ChainInsertMode != "" {
		f.oneOf("spec.chainInsertMode", s.ChainInsertMode, "Insert", "Append")
	}
	f.failsafe("spec.failsafeInboundHostPorts", s.FailsafeInboundHostPorts)
	f.failsafe("spec.failsafeOutboundHostPorts", s.FailsafeOutboundHostPorts)
	f.felixAddresses(s)
	f.routeTables(s)
	if s.KubeNodePortRanges != nil {
		for i, p := range *s.KubeNodePortRanges {
			if p.PortName != "" {
				f.add(fmt.Sprintf("spec.kubeNodePortRanges[%d]", i), p.PortName, "expected numbers")
			}
		}
	}
	if s.OpenstackRegion != "" {
		f.problems("spec.openstackRegion", s.OpenstackRegion, validation.IsDNS1123Label("openstack-region-"+s.OpenstackRegion))
	}
}

func (f *faults) felixAddresses(s *FelixConfigurationSpec) {
	for _, a := range []struct{ path, check, value string }{
		{"spec.natOutgoingAddress", "ipv4", s.NATOutgoingAddress},
		{"spec.deviceRouteSourceAddress", "ipv4", s.DeviceRouteSourceAddress},
		{"spec.deviceRouteSourceAddressIPv6", "ipv6", s.DeviceRouteSourceAddressIPv6},
	} {
		if a.value == "" {
			continue
		}
		if why := textFault(a.check, a.value); why != "" {
			f.add(a.path, a.value, "%s", why)
		}
	}
	if s.ExternalNodesCIDRList != nil {
		for i, c := range *s.ExternalNodesCIDRList {
			if why := textFault("cidrv4", c); why != "" {
				f.add(fmt.Sprintf("spec.externalNodesList[%d]", i), c, "%s", why)
			}
		}
	}
}

// failsafe checks ports that policy never closes.
func (f *faults) failsafe(path string, ports *[]v3.ProtoPort) {
	if ports == nil {
		return
	}
	for i, p := range *ports {
		at := fmt.Sprintf("%s[%d]", path, i)
		if n, ok := ProtocolNumber(p.Protocol); p.Protocol != "" && (!ok || !takesPorts(n)) {
			f.add(at+".protocol", p.Protocol, "expected tcp, udp or sctp")
		}
		if p.Net != "" {
			if _, err := netip.ParsePrefix(p.Net); err != nil {
				f.add(at+".net", p.Net, "expected a network in CIDR notation")
			}
		}
	}
}

func (f *faults) routeTables(s *FelixConfigurationSpec) {
	if s.RouteTableRange != nil {
		if r := s.RouteTableRange; r.Min < 1 || r.Max < r.Min || r.Max > 250 {
			f.add("spec.routeTableRange", fmt.Sprintf("%d-%d", r.Min, r.Max), "expected a range within 1 to 250")
		}
		if s.RouteTableRanges != nil {
			f.add("spec.routeTableRange", nil, "not together with routeTableRanges")
		}
	}
	if s.RouteTableRanges == nil {
		return
	}
	tables := 0
	for i, r := range *s.RouteTableRanges {
		if r.Min < 1 || r.Max < r.Min || int64(r.Max) > 1<<32-1 {
			f.add(fmt.Sprintf("spec.routeTableRanges[%d]", i), fmt.Sprintf("%d-%d", r.Min, r.Max), "expected a range within 1 to 4294967295")
			return
		}
		tables += r.Max - r.Min + 1
	}
	if tables > 1<<16-1 {
		f.add("spec.routeTableRanges", tables, "more tables than 65535")
	}
}

// kubeControllers checks the templates of host endpoints, whose names go into those of
// the endpoints.
func (f *faults) kubeControllers(s *KubeControllersConfigurationSpec) {
	n := s.Controllers.Node
	if n == nil || n.HostEndpoint == nil {
		return
	}
	names := make(map[string]bool)
	for i, t := range n.HostEndpoint.Templates {
		at := fmt.Sprintf("spec.controllers.node.hostEndpoint.templates[%d]", i)
		switch {
		case t.GenerateName == "":
			f.add(at+".generateName", nil, "missing")
		case names[t.GenerateName]:
			f.add(at+".generateName", t.GenerateName, "there is one of this name already")
		}
		names[t.GenerateName] = true
		if len(t.InterfaceCIDRs) == 0 && t.InterfacePattern == "" {
			f.add(at+".interfaceCIDRs", nil, "missing, and there is no interfacePattern either")
		}
	}
}
