package bgp

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"calico-xdp/pkg/control/desired"
)

// speaker marks the process that TestKilled kills: its value are the peers.
const speaker = "CALICO_XDP_BGP_TEST_SPEAKER"

// speak is that process: the node whose addresses come before the peers', in the
// namespace of the test's.
func speak(addresses string) {
	words := strings.Fields(addresses)
	own4, own6 := netip.MustParseAddr(words[0]), netip.MustParseAddr(words[1])
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	s := New(Options{ListenAddresses: []netip.Addr{own4, own6}}, log)
	want := &desired.State{BGP: desired.BGP{
		Enabled: true, AS: 64512, RouterID: own4, NextHop4: own4, NextHop6: own6,
		Peers: map[string]desired.BGPPeer{},
		Advertise: map[netip.Prefix]bool{
			netip.MustParsePrefix(block4(1)): true, netip.MustParsePrefix(block6(1)): true,
		},
	}}
	for _, text := range words[2:] {
		p := desired.BGPPeer{Address: netip.MustParseAddr(text), AS: 64512, Kind: desired.PeerMesh, ClusterNode: true}
		want.BGP.Peers[text] = p
	}
	if err := s.Prune(context.Background(), want); err != nil {
		log.Error("speaker", "error", err)
		os.Exit(1)
	}
	select {}
}

// TestKilled kills a node's process, which has sessions of both families with BIRD and
// FRR, again and again: while it is away and when it is back, its peers keep every
// route in the kernel, and of a stream of packets through these routes none is lost.
func TestKilled(t *testing.T) {
	f := newFabric(t)
	for _, a := range []string{f.address4(1).String() + "/24", f.address6(1).String() + "/64 nodad", "10.65.1.1/32", "fd00:65:0:1::1/128 nodad"} {
		run(t, "ip addr add "+a+" dev "+f.bridge)
	}
	birdHost, frrHost := f.host(2), f.host(3)
	birdHost.bird(fmt.Sprintf(`
template bgp calico { direct; graceful restart on; connect delay time 1; connect retry time 1; error wait time 1, 2; }
protocol static { ipv4; route 10.65.2.0/26 blackhole; }
protocol static { ipv6; route fd00:65:0:2::/122 blackhole; }
protocol bgp four from calico { local %s as 64512; neighbor %s as 64512; ipv4 { import all; export where source = RTS_STATIC; }; }
protocol bgp six from calico { local %s as 64512; neighbor %s as 64512; ipv6 { import all; export where source = RTS_STATIC; }; }
`, f.address4(2), f.address4(1), f.address6(2), f.address6(1)))
	frrHost.frr(strings.ReplaceAll(f.frrReflected(3, 64512, 1), " bgp graceful-restart\n", " bgp graceful-restart\n bgp graceful-restart preserve-fw-state\n"))

	var process *exec.Cmd
	launch := func() {
		t.Helper()
		process = exec.Command("/proc/self/exe")
		process.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s %s %s %s", speaker, f.address4(1), f.address6(1), f.address4(2), f.address6(2), f.address4(3), f.address6(3)))
		process.Stderr = t.Output()
		start(t, process, 0)
	}
	launch()
	eventually(t, "BIRD's routes", f.routesTo(1), birdHost.learned)
	eventually(t, "FRR's routes", f.routesTo(1), frrHost.learned)
	up := func() string {
		return fmt.Sprint(strings.Count(birdHost.birdc("show", "protocols"), "Established") +
			strings.Count(frrHost.vtysh("show bgp neighbors"), "BGP state = Established"))
	}
	eventually(t, "sessions", "4", up)

	removed := []func() string{birdHost.watchRoutes(), frrHost.watchRoutes()}
	var streams []*stream
	for _, h := range []*host{birdHost, frrHost} {
		for _, to := range []string{"10.65.1.1:9", "[fd00:65:0:1::1]:9"} {
			streams = append(streams, h.stream(to))
		}
	}
	for range 3 {
		process.Process.Kill()
		process.Wait()
		// With the process gone its sessions are.
		eventually(t, "sessions without the process", "0", up)
		time.Sleep(200 * time.Millisecond)
		launch()
		eventually(t, "sessions after the restart", "4", up)
		time.Sleep(2 * deferralTime * time.Second) // until after our End-of-RIB markers
	}
	for i, s := range streams {
		if sent, lost := s.stop(); lost != 0 || sent < 100 {
			t.Errorf("stream %d: of %d packets %d lost", i, sent, lost)
		}
	}
	for i, r := range removed {
		if got := r(); got != "" {
			t.Errorf("%s has removed from the kernel:\n%s", []string{"BIRD", "FRR"}[i], got)
		}
	}
	if got := birdHost.learned(); got != f.routesTo(1) {
		t.Errorf("BIRD's routes in the end:\n%s", got)
	}
	if got := frrHost.learned(); got != f.routesTo(1) {
		t.Errorf("FRR's routes in the end:\n%s", got)
	}
}

// stream is UDP packets from a host to an address of this namespace, one a millisecond.
type stream struct {
	t              *testing.T
	sender         *exec.Cmd
	receiver       net.PacketConn
	first, last, n atomic.Int64
}

// stream starts one. The sender numbers its packets; what has no route it counts too,
// by their absence.
func (h *host) stream(to string) *stream {
	h.t.Helper()
	ap := netip.MustParseAddrPort(to)
	conn, err := net.ListenPacket("udp", netip.AddrPortFrom(ap.Addr(), 0).String())
	if err != nil {
		h.t.Fatal(err)
	}
	s := &stream{t: h.t, receiver: conn}
	h.t.Cleanup(func() { conn.Close() })
	go func() {
		buffer := make([]byte, 64)
		for {
			n, _, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			var number int64
			fmt.Sscan(string(buffer[:n]), &number)
			s.first.CompareAndSwap(0, number)
			s.last.Store(max(s.last.Load(), number))
			s.n.Add(1)
		}
	}()
	s.sender = h.command("/proc/self/exe")
	s.sender.Path, s.sender.Args = "/usr/bin/nsenter", []string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", h.pid), executable(h.t)}
	s.sender.Env = append(os.Environ(), fmt.Sprintf("%s=%s", sending, netip.AddrPortFrom(ap.Addr(), uint16(conn.LocalAddr().(*net.UDPAddr).Port))))
	s.sender.Stderr = h.t.Output()
	start(h.t, s.sender, 0)
	eventually(h.t, "packets flow", "true", func() string { return fmt.Sprint(s.n.Load() > 0) })
	return s
}

func executable(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// stop ends the stream and says how many packets of it were sent, and lost.
func (s *stream) stop() (sent, lost int64) {
	s.sender.Process.Kill()
	s.sender.Wait()
	time.Sleep(50 * time.Millisecond)
	sent = s.last.Load() - s.first.Load() + 1
	return sent, sent - s.n.Load()
}

// sending marks the process that sends a stream: its value is where to.
const sending = "CALICO_XDP_BGP_TEST_SENDING"

func send(to string) {
	conn, err := net.Dial("udp", to)
	for number := 1; err == nil; number++ {
		conn.Write([]byte(fmt.Sprint(number))) // without a route it fails, and the number is missing
		time.Sleep(time.Millisecond)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
