package bgp

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"calico-xdp/pkg/control/desired"
)

func TestExchange(t *testing.T) {
	alone(t, &loopback)
	a, b := newNode(t, 1, 64512), newNode(t, 2, 64512)
	a.peer(b)
	b.peer(a)
	a.apply()
	b.apply()
	eventually(t, "a learned", lines("10.65.2.0/26 via 127.0.0.2", "fd00:65:0:2::/122 via fd00::2"), a.learned)
	eventually(t, "b learned", lines("10.65.1.0/26 via 127.0.0.1", "fd00:65:0:1::/122 via fd00::1"), b.learned)
	select {
	case <-a.Changed():
	default:
		t.Error("learned routes without a signal")
	}
	eventually(t, "a's peers", lines(
		"127.0.0.2 node-to-node mesh up Established in 1 out 1",
		"fd00::2 node-to-node mesh up Established in 1 out 1"), a.status)
	peers, err := a.Status()
	if err != nil {
		t.Fatal(err)
	}
	if peers[0].Since.IsZero() || peers[0].Name != "127.0.0.2" {
		t.Errorf("peer %+v", peers[0])
	}

	eventually(t, "traffic classes of a's sessions", fmt.Sprint([]int{networkControl, networkControl}), func() string {
		var found []int
		err := eachSocket(a.watched.connections(), func(fd int, is6 bool) error {
			level, option := unix.IPPROTO_IP, unix.IP_TOS
			if is6 {
				level, option = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
			}
			class, err := unix.GetsockoptInt(fd, level, option)
			found = append(found, class)
			return err
		})
		if err != nil {
			t.Error(err)
		}
		return fmt.Sprint(found)
	})

	t.Run("metrics", func(t *testing.T) {
		err := testutil.CollectAndCompare(a.Collector(), strings.NewReader(`
# HELP calico_xdp_bgp_peer_up 1 if the BGP session is established.
# TYPE calico_xdp_bgp_peer_up gauge
calico_xdp_bgp_peer_up{peer="127.0.0.2",type="node-to-node mesh"} 1
calico_xdp_bgp_peer_up{peer="fd00::2",type="node-to-node mesh"} 1
# HELP calico_xdp_bgp_learned_routes Best routes learned from BGP peers.
# TYPE calico_xdp_bgp_learned_routes gauge
calico_xdp_bgp_learned_routes{family="v4"} 1
calico_xdp_bgp_learned_routes{family="v6"} 1
`), "calico_xdp_bgp_peer_up", "calico_xdp_bgp_learned_routes")
		if err != nil {
			t.Error(err)
		}
	})

	b.want.BGP.Advertise = map[netip.Prefix]bool{
		netip.MustParsePrefix("10.65.2.64/26"):     true,
		netip.MustParsePrefix("fd00:65:0:2::/122"): true,
	}
	b.apply()
	eventually(t, "a learned", lines("10.65.2.64/26 via 127.0.0.2", "fd00:65:0:2::/122 via fd00::2"), a.learned)
	b.want.BGP.Advertise = nil
	b.apply()
	eventually(t, "a learned", "", a.learned)
	if got, want := b.learned(), lines("10.65.1.0/26 via 127.0.0.1", "fd00:65:0:1::/122 via fd00::1"); got != want {
		t.Errorf("b learned:\n%s", got)
	}

	// Without BGP, the peer hears at once that we are gone.
	a.want.BGP = desired.BGP{}
	a.apply()
	eventually(t, "b learned", "", b.learned)
	if got := a.status(); got != "" {
		t.Errorf("a's peers: %s", got)
	}
}

// established is when each session came up and over which connection, by peer.
func established(n *node) map[string]string {
	n.watched.mu.Lock()
	defer n.watched.mu.Unlock()
	found := map[string]string{}
	for address, p := range n.watched.peers {
		if p.up {
			found[address.String()] = fmt.Sprint(p.since, p.connection)
		}
	}
	return found
}

func TestChangesLeaveOtherSessionsAlone(t *testing.T) {
	alone(t, &loopback)
	a, b, c := newNode(t, 1, 64512), newNode(t, 2, 64512), newNode(t, 3, 64512)
	for _, n := range []*node{b, c} {
		a.peer(n)
		n.peer(a)
		n.apply()
	}
	a.apply()
	all := lines("10.65.2.0/26 via 127.0.0.2", "10.65.3.0/26 via 127.0.0.3", "fd00:65:0:2::/122 via fd00::2", "fd00:65:0:3::/122 via fd00::3")
	eventually(t, "a learned", all, a.learned)
	before := established(a)

	// A name, a prefix: no session ends.
	a.want.BGP.Peers["b"] = a.want.BGP.Peers["127.0.0.2"]
	delete(a.want.BGP.Peers, "127.0.0.2")
	a.want.BGP.Advertise[netip.MustParsePrefix("10.65.1.64/26")] = true
	a.apply()
	eventually(t, "c learned", lines("10.65.1.0/26 via 127.0.0.1", "10.65.1.64/26 via 127.0.0.1", "fd00:65:0:1::/122 via fd00::1"), c.learned)
	if got := established(a); fmt.Sprint(got) != fmt.Sprint(before) {
		t.Errorf("sessions %v\nwere %v", got, before)
	}
	if peers, _ := a.Status(); peers[0].Name != "b" {
		t.Errorf("renamed peer is %+v", peers[0])
	}

	// c moves to another AS: its IPv4 session alone starts anew on our side.
	c.want.BGP.AS = 64999
	c.apply()
	moved := a.want.BGP.Peers["127.0.0.3"]
	moved.AS = 64999
	a.want.BGP.Peers["127.0.0.3"] = moved
	delete(a.want.BGP.Peers, "fd00::3")
	a.apply()
	eventually(t, "a learned", lines("10.65.2.0/26 via 127.0.0.2", "10.65.3.0/26 via 127.0.0.3", "fd00:65:0:2::/122 via fd00::2"), a.learned)
	after := established(a)
	for _, peer := range []string{"127.0.0.2", "fd00::2"} {
		if after[peer] != before[peer] {
			t.Errorf("session with %s is %s, was %s", peer, after[peer], before[peer])
		}
	}
	eventually(t, "the session with c is another one", "true", func() string {
		return fmt.Sprint(established(a)["127.0.0.3"] != before["127.0.0.3"])
	})
}

func TestOwnPrefixIsNotLearned(t *testing.T) {
	alone(t, &loopback)
	a, b, c := newNode(t, 1, 64512), newNode(t, 2, 64513), newNode(t, 3, 64514)
	a.peer(b)
	b.peer(a)
	b.peer(c)
	c.peer(b)
	for _, n := range []*node{a, b, c} {
		for name, p := range n.want.BGP.Peers {
			p.Kind = "global"
			n.want.BGP.Peers[name] = p
		}
	}
	block := netip.MustParsePrefix("10.65.1.0/26")
	a.want.BGP.Advertise = map[netip.Prefix]bool{block: true}
	b.want.BGP.Advertise = map[netip.Prefix]bool{block: true, netip.MustParsePrefix("10.65.1.1/32"): true}
	c.want.BGP.Advertise = nil
	for _, n := range []*node{a, b, c} {
		n.apply()
	}
	// More specific than ours is another node's: an address it has borrowed.
	eventually(t, "a learned", "10.65.1.1/32 via 127.0.0.2", a.learned)
	eventually(t, "c learned", lines("10.65.1.0/26 via 127.0.0.2", "10.65.1.1/32 via 127.0.0.2"), c.learned)
	a.want.BGP.Advertise = nil
	a.apply()
	eventually(t, "a learned", lines("10.65.1.0/26 via 127.0.0.2", "10.65.1.1/32 via 127.0.0.2"), a.learned)

	// b passes on to c nothing that it has from a.
	a.want.BGP.Advertise = map[netip.Prefix]bool{netip.MustParsePrefix("10.65.7.0/26"): true}
	a.apply()
	eventually(t, "b learned", "10.65.7.0/26 via 127.0.0.1", b.learned)
	b.want.BGP.Advertise[netip.MustParsePrefix("10.65.2.0/26")] = true // comes after it would have
	b.apply()
	eventually(t, "c learned", lines("10.65.1.0/26 via 127.0.0.2", "10.65.1.1/32 via 127.0.0.2", "10.65.2.0/26 via 127.0.0.2"), c.learned)
}

func TestGlobalChangeRestarts(t *testing.T) {
	alone(t, &loopback)
	a, b := newNode(t, 1, 64512), newNode(t, 2, 64513)
	a.peer(b)
	b.peer(a)
	a.apply()
	b.apply()
	both := lines("10.65.1.0/26 via 127.0.0.1", "fd00:65:0:1::/122 via fd00::1")
	eventually(t, "b learned", both, b.learned)
	a.want.BGP.AS = 64515
	a.want.BGP.RouterID = netip.MustParseAddr("192.0.2.1")
	a.want.BGP.ListenPort = 1790
	a.apply()
	eventually(t, "b learned", "", b.learned)
	b.peer(a)
	for address, p := range b.want.BGP.Peers {
		p.Port = 1790
		b.want.BGP.Peers[address] = p
	}
	b.apply()
	eventually(t, "b learned", both, b.learned)
}

func TestNothingStartsBeforeTheStateIsWhole(t *testing.T) {
	alone(t, &loopback)
	a := newNode(t, 1, 64512)
	a.peer(newNode(t, 2, 64512))
	if err := a.Ensure(context.Background(), &a.want); err != nil {
		t.Fatal(err)
	}
	if a.library != nil {
		t.Error("started before the datastore was in sync")
	}
	if err := a.prune(); err != nil {
		t.Fatal(err)
	}
	if peers, _ := a.Status(); len(peers) != 2 || peers[0].State != "start" || peers[0].Since.IsZero() {
		t.Errorf("sessions after: %+v", peers)
	}
}

// TestPending: a speaker that has not started waits for what it has to announce; one
// that has goes on.
func TestPending(t *testing.T) {
	alone(t, &loopback)
	a := newNode(t, 1, 64512)
	a.peer(newNode(t, 2, 64512))
	a.want.BGP.Pending = true
	a.apply()
	a.apply()
	if a.library != nil || !a.Learning() {
		t.Error("started before all was known that it has to announce")
	}
	a.want.BGP.Pending = false
	a.apply()
	if peers, _ := a.Status(); len(peers) != 2 {
		t.Errorf("sessions: %+v", peers)
	}
	a.want.BGP.Pending = true
	a.want.BGP.Advertise[netip.MustParsePrefix("10.65.9.0/26")] = true
	a.apply()
	if paths, err := (pathTable{a.library}).Load(); err != nil || len(paths) != 3 {
		t.Errorf("paths %v, %v", paths, err)
	}
}

func TestResyncRepairs(t *testing.T) {
	alone(t, &loopback)
	a, b := newNode(t, 1, 64512), newNode(t, 2, 64512)
	a.peer(b)
	b.peer(a)
	a.apply()
	b.apply()
	both := lines("10.65.1.0/26 via 127.0.0.1", "fd00:65:0:1::/122 via fd00::1")
	eventually(t, "b learned", both, b.learned)
	eventually(t, "a's sessions", "2", func() string { return fmt.Sprint(len(established(a))) })
	sessions := established(a)

	a.Resync()
	a.apply()
	if got := established(a); fmt.Sprint(got) != fmt.Sprint(sessions) {
		t.Errorf("sessions after a look without drift: %v, were %v", got, sessions)
	}
	// Removed, added, changed in place.
	table := pathTable{a.library}
	for prefix := range a.want.BGP.Advertise {
		if prefix.Addr().Is6() {
			if err := table.Delete(prefix); err != nil {
				t.Fatal(err)
			}
		} else if err := table.Put(prefix, netip.MustParseAddr("127.0.0.9")); err != nil {
			t.Fatal(err)
		}
	}
	if err := table.Put(netip.MustParsePrefix("10.66.0.0/16"), a.want.BGP.NextHop4); err != nil {
		t.Fatal(err)
	}
	peers := &peerTable{library: a.library}
	if err := peers.Delete(netip.MustParseAddr("127.0.0.2")); err != nil {
		t.Fatal(err)
	}
	a.Resync()
	a.apply()
	eventually(t, "b learned", both, b.learned)
	got, err := table.Load()
	if err != nil || len(got) != 2 {
		t.Errorf("paths %v, %v", got, err)
	}
}

func TestPassword(t *testing.T) {
	alone(t, &loopback)
	a, b := newNode(t, 1, 64512), newNode(t, 2, 64512)
	a.peer(b)
	b.peer(a)
	secret := func(n *node, password string) {
		for name, p := range n.want.BGP.Peers {
			p.Password = password
			n.want.BGP.Peers[name] = p
		}
		n.apply()
	}
	both := lines("10.65.1.0/26 via 127.0.0.1", "fd00:65:0:1::/122 via fd00::1")
	secret(a, "tea")
	secret(b, "tea")
	eventually(t, "with the same password b learned", both, b.learned)
	secret(a, "coffee")
	eventually(t, "with another password b learned", "", b.learned)
	peers := b.want.BGP.Peers
	b.want.BGP.Peers = nil
	b.apply()
	b.want.BGP.Peers = peers
	secret(a, "")
	secret(b, "")
	eventually(t, "without password b learned", both, b.learned)
}

func TestPortTaken(t *testing.T) {
	alone(t, &loopback)
	a := newNode(t, 1, 64512)
	l, err := net.Listen("tcp", "[fd00::1]:179")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Prune(context.Background(), &a.want); err == nil {
		t.Error("started on a port that is taken")
	} else if !strings.Contains(err.Error(), "[fd00::1]:179") {
		t.Error(err)
	}
	l.Close()
	a.apply()
}

func TestPathWithoutAddress(t *testing.T) {
	alone(t, &loopback)
	a := newNode(t, 1, 64512)
	a.want.BGP.NextHop6 = netip.Addr{}
	err := a.prune()
	if err == nil || !strings.Contains(err.Error(), "fd00:65:0:1::/122") {
		t.Errorf("error %v", err)
	}
	paths, err := pathTable{a.library}.Load()
	if err != nil || len(paths) != 1 {
		t.Errorf("paths %v, %v", paths, err)
	}
}

func TestListenAddresses(t *testing.T) {
	own := netip.MustParseAddr("10.0.0.1")
	b := &desired.BGP{ListenOn: []netip.Addr{own}}
	for _, test := range []struct {
		options Options
		state   *desired.BGP
		want    string
	}{
		{Options{}, &desired.BGP{}, "[0.0.0.0 ::]"},
		{Options{}, b, "[10.0.0.1]"},
		{Options{ListenAddresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}, b, "[127.0.0.1]"},
	} {
		if got := fmt.Sprint(New(test.options, testLogger(t, "node")).listenAddresses(test.state)); got != test.want {
			t.Errorf("listens on %s, want %s", got, test.want)
		}
	}
}
