package bgp

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"calico-xdp/pkg/control/desired"
)

// TestPeerOptions has a node of AS 1.10 whose peers differ in what their BGPPeers say:
// which next hops they are told, as which AS the node speaks, whether its own AS may be
// in a path, how far away they are.
func TestPeerOptions(t *testing.T) {
	f := newFabric(t)
	f.add(pools + `---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {asNumber: "1.10", nodeToNodeMeshEnabled: false}
`)
	f.addNode("node1", 1, "")
	const own = 1<<16 + 10
	peers := map[int]struct {
		as   int
		spec string // of the BGPPeer
		bird string // more of BIRD's session
		tell string // the routes that BIRD announces, and what it does to them
	}{
		2: {as: own, tell: "route 10.65.2.0/26 blackhole;"},
		3: {as: 65103},
		4: {as: 65104, spec: "nextHopMode: Keep", tell: "route 10.65.4.0/26 blackhole;"},
		5: {as: 65105, spec: "localASNumber: 65009, numAllowedLocalASNumbers: 1, sourceAddress: None", tell: "route 10.65.5.0/26 blackhole;", bird: "own"},
		6: {as: 65106, tell: "route 10.65.6.0/26 blackhole;", bird: "own"},
		7: {as: own, spec: "nextHopMode: Self"},
		8: {as: 65108, tell: "route 10.98.0.0/16 blackhole;", bird: "far"},
	}
	n := f.start("node1", 1)
	hosts := make(map[int]*host)
	for number, p := range peers {
		address, as, reach, change := f.address4(number), own, "direct;", ""
		h := f.host(number)
		hosts[number] = h
		switch p.bird {
		case "own":
			change = fmt.Sprintf("bgp_path.prepend(%d);", own)
			if number == 5 {
				as = 65009
			}
		case "far": // behind a router, itself
			address, reach = netip.AddrFrom4([4]byte{10, 211, byte(f.number), 8}), "multihop;"
			h.run("ip addr add " + address.String() + "/32 dev lo")
			run(t, fmt.Sprintf("ip route add %s/32 via %s", address, f.address4(number)))
		}
		f.add(fmt.Sprintf("apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: host%d}\nspec: {peerIP: %s, asNumber: %d, %s}\n", number, address, p.as, p.spec))
		h.bird(fmt.Sprintf(`
protocol static { ipv4; %s }
protocol bgp { local %s as %d; neighbor %s as %d; %s connect delay time 1; connect retry time 1; error wait time 1, 2;
  ipv4 { import all; export filter { if source != RTS_STATIC then reject; %s accept; }; }; }
`, p.tell, address, p.as, f.address4(1), as, reach, change))
	}
	n.round()
	all := []*ours{n}
	until(t, "we learned", f.lines(
		"10.65.2.0/26 via 10.210.f.2", "10.65.4.0/26 via 10.210.f.4", "10.65.5.0/26 via 10.210.f.5", // not 10.65.6.0/26, which has been here
		fmt.Sprintf("10.98.0.0/16 via 10.211.%d.8", f.number)), all, n.learned)
	block := block4(1) + " via 10.210.f.1"
	for host, want := range map[int]string{
		2: f.lines(block, "10.65.4.0/26 via 10.210.f.4"), // in the other's path is its own AS
		3: f.lines(block, "10.65.2.0/26 via 10.210.f.1", "10.65.4.0/26 via 10.210.f.1", "10.65.5.0/26 via 10.210.f.1"),
		4: f.lines(block, "10.65.2.0/26 via 10.210.f.2", "10.65.5.0/26 via 10.210.f.5"),
		5: f.lines(block, "10.65.2.0/26 via 10.210.f.1", "10.65.4.0/26 via 10.210.f.1"),
		7: f.lines(block, "10.65.4.0/26 via 10.210.f.1"),
	} {
		until(t, fmt.Sprintf("host %d learned", host), want, all, hosts[host].learned)
	}
	for host, want := range map[int]string{3: fmt.Sprintf("BGP.as_path: %d\n", own), 5: "BGP.as_path: 65009\n"} {
		if got := hosts[host].birdc("show", "route", "all", block4(1)); !strings.Contains(got, want) {
			t.Errorf("host %d: not %s in\n%s", host, want, got)
		}
	}
	if got := n.status(); strings.Count(got, "up Established") != len(peers) {
		t.Errorf("sessions\n%s", got)
	}
}

// TestDeadForGood: of whom nothing is heard any more the routes go, when the time is over
// for which they are kept.
func TestDeadForGood(t *testing.T) {
	f := newFabric(t)
	run(t, "ip addr add "+f.address4(1).String()+"/24 dev "+f.bridge)
	h := f.host(2)
	protocols := fmt.Sprintf(`
protocol static { ipv4; route %s blackhole; }
protocol bgp { local %s as 64512; neighbor %s as 64512; direct; graceful restart; graceful restart time 2;
  connect delay time 1; connect retry time 1; error wait time 1, 2; ipv4 { import all; export where source = RTS_STATIC; }; }
`, block4(2), f.address4(2), f.address4(1))
	h.bird(protocols)
	s := New(Options{ListenAddresses: []netip.Addr{f.address4(1)}}, testLogger(t, "ours"))
	t.Cleanup(func() { s.Close() })
	n := &node{Speaker: s, t: t, want: desired.State{BGP: desired.BGP{
		Enabled: true, AS: 64512, RouterID: f.address4(1), NextHop4: f.address4(1),
		Peers: map[string]desired.BGPPeer{"bird": {
			Address: f.address4(2), Local: f.address4(1), AS: 64512, Kind: desired.PeerMesh, ClusterNode: true, Passive: true, RestartTime: 2,
		}},
		Advertise: map[netip.Prefix]bool{netip.MustParsePrefix(block4(1)): true},
	}}}
	n.apply()
	theirs, ours := f.text(block4(2)+" via 10.210.f.2"), f.text(block4(1)+" via 10.210.f.1")
	eventually(t, "we learned", theirs, n.learned)
	eventually(t, "BIRD learned", ours, h.learned)

	h.speak.Process.Kill()
	h.speak.Wait()
	eventually(t, "our session", "start", func() string {
		peers, _ := n.Status()
		return peers[0].State
	})
	eventually(t, "our session waits for its peer", "true", func() string {
		peers, _ := n.Status()
		return fmt.Sprint(strings.HasPrefix(peers[0].Info, "Passive "))
	})
	if err := testutil.CollectAndCompare(n.Collector(), strings.NewReader(f.text(`
# HELP calico_xdp_bgp_peer_losses_total How often the BGP session has gone down.
# TYPE calico_xdp_bgp_peer_losses_total counter
calico_xdp_bgp_peer_losses_total{peer="10.210.f.2",type="node-to-node mesh"} 1
`)), "calico_xdp_bgp_peer_losses_total"); err != nil {
		t.Error(err)
	}
	if got := n.learned(); got != theirs {
		t.Errorf("just after BIRD died, learned:\n%s", got)
	}
	eventually(t, "learned of a dead BIRD", "", n.learned)

	h.bird(protocols)
	eventually(t, "we learned again", theirs, n.learned)
	eventually(t, "BIRD learned again", ours, h.learned)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "BIRD's session", "false", func() string { return fmt.Sprint(strings.Contains(h.birdc("show", "protocols"), "Established")) })
	if got := h.learned(); got != ours {
		t.Errorf("just after we died, BIRD has:\n%s", got)
	}
	eventually(t, "BIRD's routes to a dead node", "", h.learned)
}
