package bgp

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"calico-xdp/pkg/control/desired"
)

// journal keeps a speaker's log.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

// warnings are the warnings and errors about a peer, without time and peer.
func (j *journal) warnings(peer string) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []string
	for line := range strings.Lines(j.text.String()) {
		if strings.Contains(line, "peer="+peer+" ") && !strings.Contains(line, "level=INFO") {
			_, text, _ := strings.Cut(line, "msg=")
			out = append(out, strings.ReplaceAll(strings.TrimSpace(text), " peer="+peer, ""))
		}
	}
	return lines(out...)
}

// TestFailures has one peer that is as it should be beside three that are not: a wrong
// AS, a wrong password, a session that comes and goes. Of each failure there is one
// line in the log, and the status says why.
func TestFailures(t *testing.T) {
	f := newFabric(t)
	run(t, "ip addr add "+f.address4(1).String()+"/24 dev "+f.bridge)
	bird := func(n int, more string) *host {
		h := f.host(n)
		h.bird(fmt.Sprintf(`
protocol static { ipv4; route %s blackhole; }
protocol bgp calico { local %s as 64512; neighbor %s as 64512; direct; graceful restart off;
  connect delay time 1; connect retry time 1; error wait time 1, 1; %s ipv4 { import all; export where source = RTS_STATIC; }; }
`, block4(n), f.address4(n), f.address4(1), more))
		return h
	}
	bird(2, "")
	bird(3, "")
	bird(4, `password "coffee";`)
	flapping := bird(5, "")

	log := &journal{}
	s := New(Options{ListenAddresses: []netip.Addr{f.address4(1)}}, slog.New(slog.NewTextHandler(log, nil)))
	n := &node{Speaker: s, t: t, want: desired.State{BGP: desired.BGP{
		Enabled: true, AS: 64512, RouterID: f.address4(1), NextHop4: f.address4(1), Peers: map[string]desired.BGPPeer{},
		Advertise: map[netip.Prefix]bool{netip.MustParsePrefix(block4(1)): true},
	}}}
	t.Cleanup(func() { s.Close() })
	s.diagnoses, s.watched.patience = time.Second, 3*time.Second
	for i := 2; i <= 5; i++ {
		p := desired.BGPPeer{Address: f.address4(i), AS: 64512, Kind: desired.PeerNode}
		switch i {
		case 3:
			p.AS = 65003
		case 4:
			p.Password = "tea"
		}
		n.want.BGP.Peers[fmt.Sprint(i)] = p
	}
	n.apply()
	info := func(i int) func() string {
		return func() string {
			peers, err := s.Status()
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range peers {
				if p.Address == f.address4(i) {
					// Active, Idle and OpenSent take turns while a session does not come up.
					_, reason, _ := strings.Cut(p.Info, " ")
					return strings.TrimSpace(p.State + " " + reason)
				}
			}
			return "no peer"
		}
	}
	eventually(t, "the good peer", "up", info(2))
	steady := never(t, "the good peer", "up", info(2))

	const wrongAS = "Bad peer AS (as number mismatch expected 65003, received 64512)"
	eventually(t, "the peer with another AS", "start BGP Error: "+wrongAS, info(3))
	const wrongPassword = "TCP MD5: segments with a wrong signature arrive, the passwords of the two ends differ"
	eventually(t, "the peer with another password", "start "+wrongPassword, info(4))

	eventually(t, "the flapping peer at first", "up", info(5))
	for i := range flapLimit + 1 {
		flapping.birdc("disable", "calico")
		eventually(t, fmt.Sprintf("the flapping peer, down %d", i), "start", func() string { return strings.Fields(info(5)())[0] })
		flapping.birdc("enable", "calico")
		eventually(t, fmt.Sprintf("the flapping peer, up %d", i), "up", func() string { return strings.Fields(info(5)())[0] })
	}
	if got, want := info(5)(), fmt.Sprintf("up Flapping: %d times down within 2m0s", flapLimit+1); got != want {
		t.Errorf("the flapping peer: %s, want %s", got, want)
	}
	steady()

	for i, want := range map[int]string{
		2: "",
		3: `"bgp session does not come up" reason="BGP Error: ` + wrongAS + `"`,
		4: `"bgp session does not come up" reason="` + wrongPassword + `"`,
		5: lines(
			`"bgp session down" reason="Received: Administrative shutdown"`,
			`"bgp session down" reason="Received: Administrative shutdown"`,
			`"bgp session down" reason="Received: Administrative shutdown"`,
			`"bgp session flaps; its ups and downs are not logged until it stays up" downs=4 within=2m0s reason="Received: Administrative shutdown"`),
	} {
		if got := log.warnings(f.address4(i).String()); got != want {
			t.Errorf("log about host %d:\n%s\nwant:\n%s", i, got, want)
		}
	}
	eventually(t, "learned", f.lines(block4(2)+" via 10.210.f.2", block4(5)+" via 10.210.f.5"), n.learned)
}
