package whole

import (
	"flag"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/tools/testbed"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"
)

var edits = flag.Int("edits", 300, "policy edits under traffic")

// TestEditsUnderTraffic: every packet sees either the old or the new version of a policy.
// Port 5000 is open and port 6000 closed in all versions, but by other rules in odd ones
// than in even ones: the actions of one with the matches of the other, or only some of
// the classes of one, would close 5000 or open 6000. Every packet is judged by itself.
func TestEditsUnderTraffic(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1}})
	a := c.nodes[0]
	client, db := c.attach(a, "ipip", "client"), c.attach(a, "ipip", "db")
	udp := numorstring.ProtocolFromString("UDP")
	ports := func(from, to int) v3.EntityRule {
		return v3.EntityRule{Ports: []numorstring.Port{{MinPort: uint16(from), MaxPort: uint16(to)}}}
	}
	sources := func(nets ...string) v3.EntityRule { return v3.EntityRule{Nets: nets} }
	edit := func(version int) {
		p := v3.NewGlobalNetworkPolicy()
		p.Name = "db"
		p.Spec.Selector = "role == 'db'"
		p.Spec.Types = []v3.PolicyType{v3.PolicyTypeIngress}
		allow := api.Rule{Action: v3.Allow, Protocol: &udp, Destination: ports(4000+version%900, 5000+version%800)}
		nobody := sources(fmt.Sprintf("10.99.%d.0/24", version%250), fmt.Sprintf("10.65.0.0/%d", 30-version%3))
		if version%2 == 0 {
			p.Spec.Ingress = []api.Rule{{Action: v3.Deny, Source: sources("10.98.0.0/16")}, allow}
		} else {
			p.Spec.Ingress = []api.Rule{allow, {Action: v3.Deny, Source: sources("10.0.0.0/8")}}
			p.Spec.Ingress[0].Source.NotNets = nobody.Nets[:1]
		}
		for i := range version % 70 { // now and then beyond 64 rules
			p.Spec.Ingress = append(p.Spec.Ingress, api.Rule{
				Action: v3.Allow, Protocol: &udp, Source: sources(fmt.Sprintf("10.97.%d.0/24", (version+i)%250)),
				Destination: ports(6000-i, 6000+version%100),
			})
		}
		if _, _, err := c.store.Apply(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	edit(0)
	c.settle()
	const open, closed = 5000, 6000
	drops := func() float64 {
		return a.counter(`calico_xdp_packets_total\{hook="from_workload",reason="drop_`)
	}
	before := drops()
	spray := testbed.StartSpray(t, client.Namespace, db.Namespace, db.v4, 20000, open, closed)
	for version := range *edits {
		edit(version + 1)
	}
	c.settle()
	sent, received := spray.Stop()
	t.Logf("%d edits: %d packets to the open port sent, %d arrived; %d to the closed port, %d arrived",
		*edits, sent[open], received[open], sent[closed], received[closed])
	if sent[open] == 0 || received[open] != sent[open] {
		_, body := a.get(metrics)
		t.Log(strings.Join(regexp.MustCompile(`(?m)^calico_xdp_packets_total.*drop.*$`).FindAllString(body, -1), "\n"))
		t.Errorf("%d of %d allowed packets lost; %.0f dropped in all", sent[open]-received[open], sent[open], drops()-before)
	}
	if sent[closed] == 0 || received[closed] != 0 {
		t.Errorf("%d of %d denied packets arrived", received[closed], sent[closed])
	}
}

// TestLargeEditsUnderTraffic: an edit brings hundreds and thousands of addresses and ports
// that policy has to tell apart from then on, those of the packets among them, for which what
// is in the kernel has no room. The last one finds a daemon that was killed.
func TestLargeEditsUnderTraffic(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1}})
	a := c.nodes[0]
	client, db := c.attach(a, "ipip", "client"), c.attach(a, "ipip", "db")
	udp := numorstring.ProtocolFromString("UDP")
	port := func(n int) []numorstring.Port {
		return []numorstring.Port{{MinPort: uint16(n), MaxPort: uint16(n)}}
	}
	edit := func(n int) {
		p := v3.NewGlobalNetworkPolicy()
		p.Name = "db"
		p.Spec.Selector = "role == 'db'"
		p.Spec.Types = []v3.PolicyType{v3.PolicyTypeIngress}
		for i := range n {
			p.Spec.Ingress = append(p.Spec.Ingress, api.Rule{
				Action: v3.Deny, Protocol: &udp, Source: v3.EntityRule{Nets: []string{fmt.Sprintf("10.98.%d.%d/32", i/256, i%256)}},
				Destination: v3.EntityRule{Ports: port(20000 + i)},
			})
		}
		p.Spec.Ingress = append(p.Spec.Ingress,
			api.Rule{Action: v3.Deny, Protocol: &udp, Source: v3.EntityRule{Nets: []string{client.v4.String() + "/32"}}, Destination: v3.EntityRule{Ports: port(7000 + n)}},
			api.Rule{Action: v3.Allow, Protocol: &udp, Destination: v3.EntityRule{Ports: []numorstring.Port{{MinPort: 5000, MaxPort: uint16(5000 + n%900)}}}})
		if _, _, err := c.store.Apply(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	edit(0)
	c.settle()
	spray := testbed.StartSpray(t, client.Namespace, db.Namespace, db.v4, 20000, 5000, 6000)
	for _, n := range []int{130, 400, 1100, 3000} {
		edit(n)
		c.settle()
	}
	a.daemon.Kill()
	edit(7000)
	a.restart()
	c.settle()
	sent, received := spray.Stop()
	t.Logf("%d packets to the open port sent, %d arrived; %d to the closed port, %d arrived", sent[5000], received[5000], sent[6000], received[6000])
	if sent[5000] == 0 || received[5000] != sent[5000] {
		t.Errorf("%d of %d allowed packets lost", sent[5000]-received[5000], sent[5000])
	}
	if sent[6000] == 0 || received[6000] != 0 {
		t.Errorf("%d of %d denied packets arrived", received[6000], sent[6000])
	}
}

// TestRewritingUnrelatedPolicy: a policy of 1,000 rules that selects the endpoint too is
// rewritten, and packets that another one allows do not notice.
func TestRewritingUnrelatedPolicy(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1}})
	a := c.nodes[0]
	client, db := c.attach(a, "ipip", "client"), c.attach(a, "ipip", "db")
	c.apply(`
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: db}, spec: {order: 20, selector: "role == 'db'",
 types: [Ingress], ingress: [{action: Allow, protocol: UDP, destination: {ports: [5000]}}]}}`)
	rewrite := func(version int) {
		p := v3.NewGlobalNetworkPolicy()
		p.Name = "large"
		order := 10.0
		p.Spec.Order = &order
		p.Spec.Selector = "role == 'db'"
		p.Spec.Types = []v3.PolicyType{v3.PolicyTypeIngress}
		tcp := numorstring.ProtocolFromString("TCP")
		for i := range 1000 {
			port := uint16(10000 + i + version)
			p.Spec.Ingress = append(p.Spec.Ingress, api.Rule{
				Action: v3.Deny, Protocol: &tcp, Source: v3.EntityRule{Nets: []string{fmt.Sprintf("10.%d.%d.0/24", version%200, i%250)}},
				Destination: v3.EntityRule{Ports: []numorstring.Port{{MinPort: port, MaxPort: port}}},
			})
		}
		if _, _, err := c.store.Apply(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	rewrite(0)
	c.settle()
	spray := testbed.StartSpray(t, client.Namespace, db.Namespace, db.v4, 20000, 5000)
	rewrites := max(*edits/10, 10)
	for version := range rewrites {
		rewrite(version + 1)
	}
	c.settle()
	sent, received := spray.Stop()
	t.Logf("%d rewrites: %d packets sent, %d arrived", rewrites, sent[5000], received[5000])
	if sent[5000] == 0 || received[5000] != sent[5000] {
		t.Errorf("%d of %d packets lost", sent[5000]-received[5000], sent[5000])
	}
}
