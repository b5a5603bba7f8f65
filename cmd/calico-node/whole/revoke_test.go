package whole

import (
	"maps"
	"net/netip"
	"testing"

	"calico-xdp/tools/testbed"
)

// TestRevoke: a policy that no longer allows a TCP connection stops it in the
// middle; allowed again, the same connection goes on. Others do not notice.
func TestRevoke(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 1}})
	a, b := c.nodes[0], c.nodes[1]
	client, beside, far := c.attach(a, "ipip", "client"), c.attach(a, "ipip", "db-beside"), c.attach(b, "ipip", "db-far")
	client6, far6 := c.attach(a, "vxlan", "client-vxlan"), c.attach(b, "vxlan", "db-vxlan")
	other, another := c.attach(a, "ipip", "other"), c.attach(b, "ipip", "other-far")
	const open = `
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkSet, metadata: {name: friends, labels: {set: friends}}, spec: {nets: [10.65.0.0/16, "fd66::/48"]}}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: db}
spec:
  selector: role == 'db'
  types: [Ingress]
  ingress:
  - {action: Allow, protocol: TCP, source: {selector: role == 'client'}, destination: {ports: [5432, 6432]}}
  - {action: Allow, protocol: TCP, source: {selector: set == 'friends'}, destination: {ports: [6433]}}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: client}
spec:
  selector: role == 'client'
  types: [Egress]
  egress: [{action: Allow}]
`
	c.apply(open)
	stream := func(from, to *workload, ipv6 bool, port uint16) *testbed.TCPStream {
		return testbed.StartTCP(t, from.Namespace, to.Namespace, netip.AddrPortFrom(to.address(ipv6), port))
	}
	revoked := map[string]*testbed.TCPStream{
		"local": stream(client, beside, false, 6432), "ipip": stream(client, far, false, 6432),
		"vxlan, IPv6": stream(client6, far6, true, 6432),
	}
	byset := map[string]*testbed.TCPStream{
		"local, set": stream(client, beside, false, 6433), "ipip, set": stream(client, far, false, 6433),
		"vxlan, IPv6, set": stream(client6, far6, true, 6433),
	}
	traffic := &runs{c: c}
	traffic.run("unrelated", other, another, false)
	traffic.goOn("before")

	all := maps.Clone(revoked)
	maps.Copy(all, byset)
	cut := func(how string, streams map[string]*testbed.TCPStream) {
		t.Helper()
		for name, s := range streams {
			if !s.Stalls(quiet) {
				t.Errorf("%s: stream %s goes on", how, name)
			}
		}
		for name, s := range all {
			if streams[name] == nil && !s.Progresses(1<<17) {
				t.Errorf("%s: stream %s stops too", how, name)
			}
		}
		traffic.goOn(how)
		c.apply(open)
		for name, s := range all {
			if !s.Progresses(1<<18) || s.Err() != nil {
				t.Errorf("%s, and back: stream %s does not go on: %v", how, name, s.Err())
			}
		}
	}
	// The rule goes.
	c.apply(`
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: db}
spec:
  selector: role == 'db'
  types: [Ingress]
  ingress:
  - {action: Allow, protocol: TCP, source: {selector: role == 'client'}, destination: {ports: [5432]}}
  - {action: Allow, protocol: TCP, source: {selector: set == 'friends'}, destination: {ports: [6433]}}
`)
	cut("rule removed", revoked)
	// Its set empties.
	c.apply(`{apiVersion: projectcalico.org/v3, kind: GlobalNetworkSet, metadata: {name: friends, labels: {set: friends}}, spec: {nets: []}}`)
	cut("set emptied", byset)
	// The other end's policy.
	c.apply(`
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: client}
spec:
  selector: role == 'client'
  types: [Egress]
  egress: [{action: Allow, destination: {notPorts: [6432]}, protocol: TCP}]
`)
	cut("egress", revoked)
	// A policy in front.
	c.apply(`
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: first}, spec: {order: -10, selector: "role == 'db'",
 types: [Ingress], ingress: [{action: Deny, protocol: TCP, destination: {ports: ["6432:6433"]}}]}}`)
	for name, s := range all {
		if !s.Stalls(quiet) {
			t.Errorf("policy in front: stream %s goes on", name)
		}
	}
	c.delete("globalnetworkpolicy", "first")
	for name, s := range all {
		if !s.Progresses(1<<18) || s.Err() != nil {
			t.Errorf("policy in front deleted: stream %s does not go on: %v", name, s.Err())
		}
	}
	// Whether the daemon saw it happen or not.
	b.daemon.Kill()
	c.apply(`{apiVersion: projectcalico.org/v3, kind: GlobalNetworkSet, metadata: {name: friends, labels: {set: friends}}, spec: {nets: []}}`)
	if s := byset["ipip, set"]; !s.Progresses(1 << 18) {
		t.Error("host2's daemon is dead: its policy should stay as it was")
	}
	b.restart()
	cut("set emptied, unseen", byset)
	traffic.end()
}
