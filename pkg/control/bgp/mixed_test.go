package bgp

import (
	"fmt"
	"strings"
	"testing"

	"calico-xdp/pkg/api"
)

// calico is BIRD's configuration of host n as Calico's confd writes it, in the grammar
// of BIRD 2: blocks as blackholes, announced whole and nothing beneath them, otherwise
// what is in a pool; passive where the other address, as text, is greater.
func (f *fabric) calico(n int, peers ...int) string {
	text := fmt.Sprintf(`
protocol static { ipv4; route %[1]s blackhole; }
protocol static { ipv6; route %[2]s blackhole; }
function calico_export_to_bgp_peers() {
  if ( net = %[1]s ) then { accept; }
  if ( net ~ %[1]s ) then { reject; }
  if ( net ~ 10.65.0.0/16 ) then { accept; }
}
function calico_export_to_bgp_peers6() {
  if ( net = %[2]s ) then { accept; }
  if ( net ~ %[2]s ) then { reject; }
  if ( net ~ fd00:65::/48 ) then { accept; }
}
template bgp bgp_template {
  description "Connection to BGP peer";
  local as 64512; multihop; graceful restart; graceful restart time 120;
  connect delay time 1; connect retry time 3; error wait time 5, 60;
}
`, block4(n), block6(n))
	for _, p := range peers {
		for _, six := range []bool{false, true} {
			own, other, name, channel, export := f.address4(n), f.address4(p), "Mesh_4_", "ipv4", "calico_export_to_bgp_peers"
			if six {
				own, other, name, channel, export = f.address6(n), f.address6(p), "Mesh_6_", "ipv6", "calico_export_to_bgp_peers6"
			}
			passive := ""
			if other.String() > own.String() {
				passive = "passive on;"
			}
			text += fmt.Sprintf(`
protocol bgp %s%d from bgp_template { neighbor %s as 64512; source address %s; %s
  %s { import all; export filter { %s(); reject; }; add paths on; gateway recursive; }; }
`, name, p, other, own, passive, channel, export)
		}
	}
	return text
}

// TestMixedCluster has nodes of ours in one mesh with nodes of Calico's. One of ours
// becomes a route reflector and the mesh ends, all at once: no route of any node is lost
// on the way.
func TestMixedCluster(t *testing.T) {
	f := newFabric(t)
	f.add(pools + `---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: peer-to-rrs}
spec: {nodeSelector: "!has(i-am-a-route-reflector)", peerSelector: has(i-am-a-route-reflector)}
`)
	for n := 1; n <= 4; n++ {
		f.addNode(fmt.Sprintf("node%d", n), n, "")
	}
	b, c := f.host(3), f.host(4)
	b.bird(f.calico(3, 1, 2, 4))
	c.bird(f.calico(4, 1, 2, 3))
	all := []*ours{f.start("node1", 1), f.start("node2", 2)}
	for _, n := range all {
		n.round()
	}
	until(t, "node1 learned", f.routesTo(2, 3, 4), all, all[0].learned)
	until(t, "node2 learned", f.routesTo(1, 3, 4), all, all[1].learned)
	until(t, "Calico's node3 learned", f.routesTo(1, 2, 4), all, b.learned)
	until(t, "Calico's node4 learned", f.routesTo(1, 2, 3), all, c.learned)

	// Calico's nodes change as ours do, within a moment: to the reflector alone.
	steady1 := never(t, "node1's routes while the mesh ends", f.routesTo(3, 4), func() string { return withoutLines(all[0].learned(), ".2.0/26", ":2::/122") })
	var steady []func()
	for i, h := range []*host{b, c} {
		steady = append(steady, never(t, fmt.Sprintf("node%d's route to node1", 3+i), f.routesTo(1), func() string {
			return lines(onlyLines(h.learned(), "10.65.1.0/26", "fd00:65:0:1::/122")...)
		}))
	}
	n := f.resources.Get(api.Key{Kind: api.KindNode, Name: "node2"}).(*api.Node).DeepCopyObject().(*api.Node)
	n.Labels["i-am-a-route-reflector"], n.Spec.BGP.RouteReflectorClusterID = "true", "244.0.0.1"
	f.resources.Apply(api.Change{Key: api.KeyOf(n), Resource: n})
	f.add(`apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {nodeToNodeMeshEnabled: false}
`)
	for _, n := range all {
		n.round()
	}
	until(t, "node2 learned", f.routesTo(1, 3, 4), all, all[1].learned)
	sessions := func(want int) func() string {
		return func() string {
			peers, _ := all[0].Status()
			up := 0
			for _, p := range peers {
				if p.State == "up" {
					up++
				}
			}
			return fmt.Sprint(len(peers) == want && up == want)
		}
	}
	until(t, "node1's sessions are those with the reflector", "true", all, sessions(2))
	until(t, "node1 learned by the reflector", f.routesTo(2, 3, 4), all, all[0].learned)
	// Calico's nodes learn of each other and of node1 from the reflector when their own
	// sessions are gone.
	b.write("bird.conf", strings.Replace(b.preamble()+f.calico(3, 2), "Mesh_", "Node_", -1))
	c.write("bird.conf", strings.Replace(c.preamble()+f.calico(4, 2), "Mesh_", "Node_", -1))
	steady1()
	for _, stop := range steady {
		stop()
	}
	b.birdc("configure")
	c.birdc("configure")
	until(t, "Calico's node3 learned by the reflector", f.routesTo(1, 2, 4), all, b.learned)
	until(t, "Calico's node4 learned by the reflector", f.routesTo(1, 2, 3), all, c.learned)
}
