package bgp

import (
	"fmt"
	"strings"
	"testing"

	"calico-xdp/pkg/api"
)

// TestReflectors is the topology of Kubespray's documentation: AS 65400, reflectors
// rr0 and rr1 in cluster 1.0.0.1, four nodes that each peer with both. One node is
// BIRD, one is FRR; the rest is ours.
func TestReflectors(t *testing.T) {
	f := newFabric(t)
	f.add(pools + `---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {asNumber: "65400", nodeToNodeMeshEnabled: false}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: peer-to-rrs}
spec: {nodeSelector: "!has(i-am-a-route-reflector)", peerSelector: has(i-am-a-route-reflector)}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: rr-mesh}
spec: {nodeSelector: has(i-am-a-route-reflector), peerSelector: has(i-am-a-route-reflector)}
`)
	f.addNode("rr0", 10, ", routeReflectorClusterID: 1.0.0.1")
	f.addNode("rr1", 11, ", routeReflectorClusterID: 1.0.0.1")
	for _, rr := range []string{"rr0", "rr1"} {
		n := f.resources.Get(api.Key{Kind: api.KindNode, Name: rr}).(*api.Node).DeepCopyObject().(*api.Node)
		n.Labels["i-am-a-route-reflector"] = "true"
		f.resources.Apply(api.Change{Key: api.KeyOf(n), Resource: n})
	}
	for i, name := range []string{"node2", "node3", "node4", "node5"} {
		f.addNode(name, 12+i, "")
	}

	birdHost, frrHost := f.host(14), f.host(15)
	protocols := `
protocol static { ipv4; route 10.65.14.0/26 blackhole; }
protocol static { ipv6; route fd00:65:0:14::/122 blackhole; }
`
	for _, rr := range []int{10, 11} {
		protocols += fmt.Sprintf(`
protocol bgp { local %s as 65400; neighbor %s as 65400; multihop; connect delay time 1; connect retry time 1; error wait time 1, 2;
  ipv4 { import all; export where source = RTS_STATIC; }; graceful restart on; }
protocol bgp { local %s as 65400; neighbor %s as 65400; multihop; connect delay time 1; connect retry time 1; error wait time 1, 2;
  ipv6 { import all; export where source = RTS_STATIC; }; graceful restart on; }
`, f.address4(14), f.address4(rr), f.address6(14), f.address6(rr))
	}
	birdHost.bird(protocols)
	frrHost.frr(f.frrReflected(15, 65400, 10, 11))

	all := []*ours{f.start("rr0", 10), f.start("rr1", 11), f.start("node2", 12), f.start("node3", 13)}
	for _, n := range all {
		n.round()
	}
	everywhere := func(why string) {
		t.Helper()
		for i, n := range all {
			until(t, n.name+" learned "+why, f.routesTo(without(10+i)...), all, n.learned)
		}
		until(t, "BIRD learned "+why, f.routesTo(without(14)...), all, birdHost.learned)
		until(t, "FRR learned "+why, f.routesTo(without(15)...), all, frrHost.learned)
	}
	everywhere("at first")

	for i, n := range all[2:] {
		until(t, n.name+"'s routes, of both reflectors", "20", all, func() string {
			received, _, err := n.Routes()
			if err != nil {
				t.Fatal(err)
			}
			count := 0
			for _, r := range received {
				// GoBGP tells the other reflector nothing of a route's originator, so that
				// one may tell the originator of it.
				if own := r.Prefix.String(); own != block4(12+i) && own != block6(12+i) {
					count++
				}
			}
			return fmt.Sprint(count)
		})
	}
	until(t, "BIRD's routes, of both reflectors", "20", all, func() string {
		return fmt.Sprint(strings.Count(birdHost.birdc("show", "route"), "unicast ["+"bgp"))
	})

	// Some may have all routes from one reflector, with the other's session still to come.
	for _, n := range all {
		until(t, n.name+"'s sessions that are not up", "", all, func() string { return withoutLines(n.status(), " up Established ") })
	}

	// One reflector goes: nobody but those who knew its own blocks sees a difference.
	steady := never(t, "BIRD's routes while a reflector goes and comes back", f.routesTo(without(14, 10)...), func() string {
		return withoutLines(birdHost.learned(), ".10.0/26", ":10::/122")
	})
	steady2 := never(t, "node2's routes while a reflector goes and comes back", f.routesTo(without(12, 10)...), func() string {
		return withoutLines(all[2].learned(), ".10.0/26", ":10::/122")
	})
	all[0].want.BGP.Enabled = false
	all[0].apply()
	for _, n := range all[1:] {
		until(t, n.name+" learned without rr0", "", all[1:], func() string {
			return strings.Join(onlyLines(n.learned(), ".10.0/26", ":10::/122"), "\n")
		})
	}
	all[0].round()
	everywhere("after the reflector has come back")
	steady()
	steady2()
}

// without are the hosts of the topology but some.
func without(but ...int) []int {
	var out []int
	for n := 10; n <= 15; n++ {
		if !strings.Contains(fmt.Sprint(but), fmt.Sprint(n)) {
			out = append(out, n)
		}
	}
	return out
}

func onlyLines(text string, parts ...string) []string {
	var out []string
	for _, line := range strings.Split(text, "\n") {
		for _, p := range parts {
			if strings.Contains(line, p) {
				out = append(out, line)
			}
		}
	}
	return out
}

func withoutLines(text string, parts ...string) string {
	var out []string
	for _, line := range strings.Split(text, "\n") {
		if len(onlyLines(line, parts...)) == 0 {
			out = append(out, line)
		}
	}
	return lines(out...)
}

// frrReflected is bgpd's configuration of node n, peer of reflectors.
func (f *fabric) frrReflected(n, as int, reflectors ...int) string {
	text := fmt.Sprintf("hostname frr\nrouter bgp %d\n bgp router-id %s\n no bgp ebgp-requires-policy\n no bgp network import-check\n no bgp default ipv4-unicast\n bgp graceful-restart\n timers bgp 5 15\n", as, f.address4(n))
	four, six := "", ""
	for _, rr := range reflectors {
		for _, a := range []string{f.address4(rr).String(), f.address6(rr).String()} {
			text += fmt.Sprintf(" neighbor %s remote-as %d\n neighbor %s timers connect 1\n", a, as, a)
		}
		four += fmt.Sprintf("  neighbor %s activate\n", f.address4(rr))
		six += fmt.Sprintf("  neighbor %s activate\n", f.address6(rr))
	}
	return text + " address-family ipv4 unicast\n  network " + block4(n) + "\n" + four + " exit-address-family\n" +
		" address-family ipv6 unicast\n  network " + block6(n) + "\n" + six + " exit-address-family\n"
}
