package bgp

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"calico-xdp/pkg/control/desired"
)

// TestOptionsChangeWhileDown has a peer that only listens, as many routers do, and whose
// session cannot come up as it is configured here: each mistake is mended while it is
// down, and the session with another peer lasts.
func TestOptionsChangeWhileDown(t *testing.T) {
	f := newFabric(t)
	run(t, "ip addr add "+f.address4(1).String()+"/24 dev "+f.bridge)
	bird := func(n, as, we int, more string) string {
		return fmt.Sprintf(`
protocol static { ipv4; route %s blackhole; }
protocol bgp calico { local %s as %d; neighbor %s as %d; multihop; %s
  connect delay time 1; connect retry time 1; error wait time 1, 2;
  ipv4 { import all; export filter { if source != RTS_STATIC then reject; bgp_path.prepend(64512); accept; }; }; }
`, block4(n), f.address4(n), as, f.address4(1), we, more)
	}
	steady, router := f.host(2), f.host(3)
	steady.bird(bird(2, 65102, 64512, ""))
	router.bird(bird(3, 65103, 64512, "passive on;"))
	s := New(Options{ListenAddresses: []netip.Addr{f.address4(1)}}, testLogger(t, "ours"))
	t.Cleanup(func() { s.Close() })
	p := desired.BGPPeer{Address: f.address4(3), Local: f.address4(1), AS: 65103, Kind: desired.PeerGlobal}
	n := &node{Speaker: s, t: t, want: desired.State{BGP: desired.BGP{
		Enabled: true, AS: 64512, RouterID: f.address4(1), NextHop4: f.address4(1),
		Peers:     map[string]desired.BGPPeer{"steady": {Address: f.address4(2), Local: f.address4(1), AS: 65102, Kind: desired.PeerGlobal, AllowLocalAS: 1}},
		Advertise: map[netip.Prefix]bool{netip.MustParsePrefix(block4(1)): true},
	}}}
	theirs, ours := f.text(block4(2)+" via 10.210.f.2"), f.text(block4(1)+" via 10.210.f.1")
	apply := func(change func()) {
		change()
		n.want.BGP.Peers["router"] = p
		n.apply()
	}
	apply(func() { p.Hops = 1 }) // the router does not send with the largest TTL
	eventually(t, "learned", theirs, n.learned)
	before := established(n)[f.address4(2).String()]
	// Tried at least once.
	eventually(t, "a connection", "true", func() string { return fmt.Sprint(!strings.Contains(n.status(), "10.210.f.3 global start Idle")) })

	apply(func() { p.Hops = 0 })
	eventually(t, "the router learned, TTL security being off", ours, router.learned)
	eventually(t, "learned", theirs, n.learned) // our AS is in the router's path
	apply(func() { p.AllowLocalAS = 1 })
	eventually(t, "learned, our AS being allowed", lines(theirs, f.text(block4(3)+" via 10.210.f.3")), n.learned)

	router.write("bird.conf", router.preamble()+bird(3, 65103, 65009, "passive on;"))
	router.birdc("configure")
	eventually(t, "the router learned, expecting another AS", "", router.learned)
	apply(func() { p.LocalAS, p.Local = 65009, netip.Addr{} })
	eventually(t, "the router learned of the other AS", ours, router.learned)

	router.write("bird.conf", router.preamble()+bird(3, 65103, 65009, `passive on; password "tea";`))
	router.birdc("configure")
	eventually(t, "the router learned, expecting a password", "", router.learned)
	apply(func() { p.Password = "tea" })
	eventually(t, "the router learned with the password", ours, router.learned)
	apply(func() { p.RestartTime, p.NextHop = 77, desired.NextHopSelf })
	eventually(t, "the router learned for another time", ours, router.learned)
	eventually(t, "restart time", "true", func() string {
		return fmt.Sprint(strings.Contains(router.birdc("show", "protocols", "all", "calico"), "Restart time: 77"))
	})
	if now := established(n)[f.address4(2).String()]; now != before {
		t.Errorf("the other session is %s, was %s", now, before)
	}
}
