package policy

import (
	"net/netip"
	"testing"

	"github.com/projectcalico/api/pkg/lib/numorstring"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"

	"calico-xdp/pkg/api"
)

// With no number left for a kind of port, packets to such ports are denied and a
// problem says so.
func TestTooManyPortClassesDeny(t *testing.T) {
	w := api.NewWorkloadEndpoint()
	w.Namespace, w.Name = "default", "w"
	w.Spec.Node, w.Spec.Profiles = "node", []string{"p"}
	p := v3.NewProfile()
	p.Name = "p"
	tcp := numorstring.ProtocolFromString("TCP")
	for port := range uint16(4) {
		r := v3.Rule{Action: v3.Allow, Protocol: &tcp}
		r.Destination.Ports = []numorstring.Port{numorstring.SinglePort(port + 1)}
		p.Spec.Ingress = append(p.Spec.Ingress, r)
	}
	p.Spec.Ingress = append(p.Spec.Ingress, v3.Rule{Action: v3.Allow})

	c := NewCompiler("node")
	c.destinationPorts.classes.limit = 3
	tables := c.Compile(api.NewStore(w, p), nil)
	if len(tables.Problems) != 1 {
		t.Errorf("problems: %v", tables.Problems)
	}
	a := netip.MustParseAddr("10.0.0.1")
	for port, want := range []Action{Allow, Allow, Allow, Deny, Deny, Allow} {
		action, _ := tables.Verdict(tables.Endpoints[api.KeyOf(w)].Ingress, Packet{
			Source: a, Destination: a, Protocol: 6, SourcePort: 9, DestinationPort: uint16(port),
		})
		if action != want {
			t.Errorf("port %d: %v, want %v", port, action, want)
		}
	}
}
