package api

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"
)

func (f *faults) node(s *NodeSpec) {
	if s.BGP != nil && reflect.ValueOf(*s.BGP).IsZero() {
		f.add("spec.bgp", nil, "is there and empty")
	}
}

func (f *faults) hostEndpoint(s *v3.HostEndpointSpec) {
	if s.Node == "" {
		f.add("spec.node", nil, "missing")
	}
	if s.InterfaceName == "" && len(s.ExpectedIPs) == 0 {
		f.add("spec.interfaceName", nil, "missing, and there are no expectedIPs either")
	}
	for i, p := range s.Ports {
		f.endpointPort(fmt.Sprintf("spec.ports[%d]", i), p.Protocol)
	}
}

func (f *faults) endpointPort(path string, p numorstring.Protocol) {
	if n, ok := NumberOf(p); ok && !takesPorts(n) {
		f.add(path+".protocol", p.String(), "expected TCP, UDP or SCTP")
	}
}

func (f *faults) workloadEndpoint(w *WorkloadEndpoint) {
	name, missing := w.name()
	for _, field := range missing {
		if field != "spec.node" { // has been checked as a name
			f.add(field, nil, "missing")
		}
	}
	if len(missing) == 0 && w.Name != "" && w.Name != name {
		f.add("metadata.name", w.Name, "the spec makes it %q", name)
	}
	for i, p := range w.Spec.Ports {
		at := fmt.Sprintf("spec.ports[%d]", i)
		f.endpointPort(at, p.Protocol)
		if p.Name == "" && p.HostPort == 0 {
			f.add(at+".name", nil, "missing, and there is no hostPort either")
		}
	}
	own := w.Addresses()
	for i, n := range w.Spec.IPNATs {
		at := fmt.Sprintf("spec.ipNATs[%d]", i)
		internal, err := parseSingle(n.InternalIP)
		external, err2 := parseSingle(n.ExternalIP)
		switch {
		case err != nil || err2 != nil: // has been noted with the field
		case internal.Is4() != external.Is4():
			f.add(at+".externalIP", n.ExternalIP, "not of internalIP's family")
		case !slices.Contains(own, internal):
			f.add(at+".internalIP", n.InternalIP, "not one of the endpoint's ipNetworks")
		}
	}
}

// networkSet refuses the label by which rules find a set's namespace.
func (f *faults) networkSet(r Resource) {
	if v, ok := r.GetLabels()[v3.LabelNamespace]; ok {
		f.add("metadata.labels["+v3.LabelNamespace+"]", v, "not for network sets to set")
	}
}

// ParsePeerIP reads the address of a BGP peer: "10.0.0.1", "10.0.0.1:1790",
// "fd00::1" or "[fd00::1]:1790". The port is 0 if there is none.
func ParsePeerIP(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" {
			return netip.AddrPort{}, fmt.Errorf("peer address %q has a zone", s)
		}
		return netip.AddrPortFrom(a, 0), nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Port() == 0 || ap.Addr().Zone() != "" || strings.HasPrefix(s, "[") != ap.Addr().Is6() {
		return netip.AddrPort{}, fmt.Errorf("peer address %q: expected an address, with :port or without", s)
	}
	return ap, nil
}
