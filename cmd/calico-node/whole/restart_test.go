package whole

import (
	"fmt"
	"testing"
	"time"

	"calico-xdp/pkg/api"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"
)

// TestRestart: the daemon may end in any way and at any moment, and come back,
// and no packet is lost.
func TestRestart(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 1}})
	a, b := c.nodes[0], c.nodes[1]
	client, beside, far := c.attach(a, "ipip", "client"), c.attach(a, "ipip", "beside"), c.attach(b, "ipip", "db-ipip")
	clientVXLAN, farVXLAN := c.attach(a, "vxlan", "client-vxlan"), c.attach(b, "vxlan", "db-vxlan")
	c.settle()

	traffic := &runs{c: c}
	traffic.run("local", client, beside, false)
	traffic.run("ipip", client, far, false)
	traffic.run("vxlan", clientVXLAN, farVXLAN, false)
	traffic.run("vxlan, IPv6", farVXLAN, clientVXLAN, true)
	traffic.goOn("before")
	for round := range 3 {
		for _, n := range [][]*node{{a}, {b}, {a, b}}[round] {
			n.daemon.Kill()
		}
		traffic.goOn(fmt.Sprintf("killed, round %d", round))
		for _, n := range [][]*node{{a}, {b}, {a, b}}[round] {
			n.restart()
		}
		traffic.goOn(fmt.Sprintf("back, round %d", round))
	}
	for _, n := range c.nodes {
		n.stop()
		traffic.goOn("stopped")
		n.restart()
	}
	// Killed while it starts: whatever it was at.
	for _, after := range []time.Duration{20, 60, 120, 200, 300} {
		a.daemon.Kill()
		a.start()
		time.Sleep(after * time.Millisecond)
	}
	a.daemon.Kill()
	a.restart()
	traffic.goOn("back")
	traffic.end()

	for _, n := range c.nodes {
		if s := n.status(); s.Error != "" || len(s.Problems) != 0 {
			t.Errorf("%s: %s %v", n.name, s.Error, s.Problems)
		}
	}
}

// TestKillWhileEditing: killed in the middle of policy changes, the daemon's
// successor enforces the last of them; what every version allowed is never cut.
func TestKillWhileEditing(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 1}})
	a, b := c.nodes[0], c.nodes[1]
	client, beside, far := c.attach(a, "ipip", "client"), c.attach(a, "ipip", "db-beside"), c.attach(b, "ipip", "db-far")
	c.settle()
	traffic := &runs{c: c}
	traffic.run("local", client, beside, false)
	traffic.run("ipip", client, far, false)

	// Versions differ in rules, sets and ports; all of them allow the pings and
	// the streams' ports.
	edit := func(version int) {
		p := v3.NewGlobalNetworkPolicy()
		p.Name = "db"
		p.Spec.Selector = "role == 'db'"
		p.Spec.Types = []v3.PolicyType{v3.PolicyTypeIngress}
		icmp, tcp := numorstring.ProtocolFromString("ICMP"), numorstring.ProtocolFromString("TCP")
		port := func(from, to int) []numorstring.Port {
			return []numorstring.Port{{MinPort: uint16(from), MaxPort: uint16(to)}}
		}
		for i := range version % 7 {
			p.Spec.Ingress = append(p.Spec.Ingress, api.Rule{
				Action: v3.Deny, Protocol: &tcp,
				Source:      v3.EntityRule{Nets: []string{fmt.Sprintf("10.99.%d.0/24", version+i)}},
				Destination: v3.EntityRule{Ports: port(2000+100*i, 2050+100*version)},
			})
		}
		allowed := 5432
		if version%2 == 0 {
			allowed = 80
		}
		p.Spec.Ingress = append(p.Spec.Ingress,
			api.Rule{Action: v3.Allow, Protocol: &icmp},
			api.Rule{Action: v3.Allow, Protocol: &tcp, Destination: v3.EntityRule{Ports: port(7000, 7099)}},
			api.Rule{
				Action: v3.Allow, Protocol: &tcp, Source: v3.EntityRule{Selector: "role == 'client'"},
				Destination: v3.EntityRule{Ports: port(allowed, allowed)},
			})
		if _, _, err := c.store.Apply(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	version := 0
	for round := range 4 {
		for range 4 {
			version++
			edit(version)
			time.Sleep(time.Duration(round) * 2 * time.Millisecond)
		}
		a.daemon.Kill()
		b.daemon.Kill()
		version++
		edit(version) // nobody sees this one happen
		a.start()
		b.start()
		a.waitReady()
		b.waitReady()
		c.settle()
		odd := version%2 == 1
		for _, to := range []*workload{beside, far} {
			c.tryAll(fmt.Sprintf("version %d", version),
				try{from: client.Namespace, to: to.v4, port: 5432, want: odd},
				try{from: client.Namespace, to: to.v4, port: 80, want: !odd})
		}
		traffic.goOn(fmt.Sprintf("round %d", round))
	}
	traffic.end()
}
