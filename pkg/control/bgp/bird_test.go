package bgp

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"calico-xdp/pkg/control/desired"
)

// birdHost is another host, a network namespace behind a veth pair, where BIRD
// speaks BGP with us and puts what it hears into the kernel.
type birdHost struct {
	t       *testing.T
	pid     int // of the process that holds the namespace
	dir     string
	bird    *exec.Cmd
	removed func() string // routes of ours that vanished from the kernel so far
}

const birdConfiguration = `
log stderr all;
router id 10.9.0.2;
protocol device { scan time 1; }
protocol direct { ipv4; ipv6; }
protocol kernel { ipv4 { import none; export where source = RTS_BGP; }; }
protocol kernel { ipv6 { import none; export where source = RTS_BGP; }; }
protocol static { ipv4; route 10.65.2.0/26 blackhole; }
protocol static static6 { ipv6; route fd00:65:0:2::/122 blackhole; }
template bgp node {
  local as 64512;
  direct;
  graceful restart on;
  connect delay time 1; connect retry time 2; error wait time 1, 2;
}
protocol bgp v4 from node {
  neighbor 10.9.0.1 as 64512;
  ipv4 { import all; export where source = RTS_STATIC; next hop self; };
}
protocol bgp v6 from node {
  neighbor fd00:9::1 as 64512;
  ipv6 { import all; export where source = RTS_STATIC; next hop self; };
}
`

// newBird starts the other host, 10.9.0.2 and fd00:9::2. We are .1 and ::1.
func newBird(t *testing.T) *birdHost {
	t.Helper()
	holder := start(t, exec.Command("sleep", "infinity"), syscall.CLONE_NEWNET)
	h := &birdHost{t: t, pid: holder.Process.Pid}
	link := fmt.Sprintf("bird%d", h.pid)
	run(t, "ip link add "+link+" type veth peer name eth0 netns "+strconv.Itoa(h.pid))
	t.Cleanup(func() { run(t, "ip link del "+link) })
	run(t, "ip link set "+link+" up")
	h.run("ip link set lo up")
	h.run("ip link set eth0 up")
	run(t, "ip addr add 10.9.0.1/24 dev "+link)
	h.run("ip addr add 10.9.0.2/24 dev eth0")
	run(t, "ip addr add fd00:9::1/64 nodad dev "+link)
	h.run("ip addr add fd00:9::2/64 nodad dev eth0")
	h.removed = (&host{t: t, pid: h.pid}).watchRoutes()

	h.dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(h.dir, "bird.conf"), []byte(birdConfiguration), 0o600); err != nil {
		t.Fatal(err)
	}
	h.startBird()
	return h
}

func (h *birdHost) startBird() {
	h.t.Helper()
	// -R: what is learned anew replaces what the kernel still has.
	h.bird = h.command("bird", "-f", "-R", "-c", filepath.Join(h.dir, "bird.conf"), "-s", filepath.Join(h.dir, "bird.ctl"))
	h.bird.Stderr = h.t.Output()
	start(h.t, h.bird, 0)
}

// birdc gives BIRD an order or asks it something.
func (h *birdHost) birdc(words ...string) string {
	h.t.Helper()
	out, err := exec.Command("birdc", append([]string{"-s", filepath.Join(h.dir, "bird.ctl")}, words...)...).CombinedOutput()
	if err != nil {
		h.t.Fatalf("birdc %s: %v: %s", words, err, out)
	}
	return string(out)
}

// start runs command until the test ends.
func start(t *testing.T, command *exec.Cmd, namespaces uintptr) *exec.Cmd {
	t.Helper()
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces}
	if err := command.Start(); err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	t.Cleanup(func() {
		command.Process.Kill()
		command.Wait()
	})
	return command
}

func run(t *testing.T, command string) {
	t.Helper()
	words := strings.Fields(command)
	if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
}

// command is a command on the other host.
func (h *birdHost) command(words ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", h.pid)}, words...)...)
}

func (h *birdHost) run(command string) string {
	h.t.Helper()
	out, err := h.command(strings.Fields(command)...).CombinedOutput()
	if err != nil {
		h.t.Fatalf("%s: %v: %s", command, err, out)
	}
	return string(out)
}

// routes are the kernel's routes that BIRD learned from us, as text.
func (h *birdHost) routes() string {
	var found []string
	for _, family := range []string{"-4", "-6"} {
		for _, line := range strings.Split(h.run("ip "+family+" route show proto bird"), "\n") {
			if words := strings.Fields(line); len(words) > 2 {
				found = append(found, strings.Join(words[:3], " "))
			}
		}
	}
	return lines(found...)
}

// newBirdPeer is a node of ours with all three sessions.
func newBirdPeer(t *testing.T) *node {
	own4, own6 := netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("fd00:9::1")
	s := New(Options{ListenAddresses: []netip.Addr{own4, own6}}, testLogger(t, "ours"))
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	peer := func(local, address string) desired.BGPPeer {
		return desired.BGPPeer{
			Local: netip.MustParseAddr(local), Address: netip.MustParseAddr(address), AS: 64512, Kind: desired.PeerMesh,
			ClusterNode: true, Passive: true, // BIRD has the greater address
		}
	}
	return &node{Speaker: s, t: t, want: desired.State{BGP: desired.BGP{
		Enabled: true, AS: 64512, RouterID: own4, NextHop4: own4, NextHop6: own6,
		Peers: map[string]desired.BGPPeer{
			"v4": peer("10.9.0.1", "10.9.0.2"), "v6": peer("fd00:9::1", "fd00:9::2"),
		},
		Advertise: map[netip.Prefix]bool{
			netip.MustParsePrefix("10.65.1.0/26"):      true,
			netip.MustParsePrefix("10.65.1.64/26"):     true,
			netip.MustParsePrefix("fd00:65:0:1::/122"): true,
		},
	}}}
}

func TestBIRD(t *testing.T) {
	alone(t, &birdLink)
	h := newBird(t)
	n := newBirdPeer(t)
	n.apply()
	theirs := lines("10.65.2.0/26 via 10.9.0.2", "fd00:65:0:2::/122 via fd00:9::2")
	eventually(t, "we learned", theirs, n.learned)
	ours := lines("10.65.1.0/26 via 10.9.0.1", "10.65.1.64/26 via 10.9.0.1", "fd00:65:0:1::/122 via fd00:9::1")
	eventually(t, "BIRD's kernel routes", ours, h.routes)
	eventually(t, "our sessions", lines(
		"10.9.0.2 node-to-node mesh up Established in 1 out 2",
		"fd00:9::2 node-to-node mesh up Established in 1 out 1"), n.status)

	delete(n.want.BGP.Advertise, netip.MustParsePrefix("10.65.1.64/26"))
	n.apply()
	eventually(t, "BIRD's kernel routes", lines("10.65.1.0/26 via 10.9.0.1", "fd00:65:0:1::/122 via fd00:9::1"), h.routes)
	h.birdc("disable", "static6")
	eventually(t, "we learned", "10.65.2.0/26 via 10.9.0.2", n.learned)
	h.birdc("enable", "static6")
	eventually(t, "we learned", theirs, n.learned)

	n.want.BGP.Enabled = false
	n.apply()
	eventually(t, "BIRD's kernel routes after we left", "", h.routes)
}

// TestGracefulRestart has one session at a time: see peerTable.restarting.
func TestGracefulRestart(t *testing.T) {
	alone(t, &birdLink)
	for _, test := range []struct{ family, keep, drop, hop, theirs string }{
		{"v4", "10.65.1.0/26", "10.65.1.64/26", "10.9.0.1", "10.65.2.0/26 via 10.9.0.2"},
		{"v6", "fd00:65:0:1::/122", "fd00:65:0:1::40/122", "fd00:9::1", "fd00:65:0:2::/122 via fd00:9::2"},
	} {
		t.Run(test.family, func(t *testing.T) {
			h := newBird(t)
			newNode := func() *node {
				n := newBirdPeer(t)
				n.want.BGP.Peers = map[string]desired.BGPPeer{"bird": n.want.BGP.Peers[test.family]}
				n.want.BGP.Advertise = map[netip.Prefix]bool{netip.MustParsePrefix(test.keep): true}
				return n
			}
			n := newNode()
			n.want.BGP.Advertise[netip.MustParsePrefix(test.drop)] = true
			n.apply()
			both := lines(test.keep+" via "+test.hop, test.drop+" via "+test.hop)
			eventually(t, "BIRD's kernel routes", both, h.routes)
			eventually(t, "we learned", test.theirs, n.learned)

			// Away: BIRD forgets nothing.
			connected := func() string {
				return fmt.Sprint(strings.Contains(h.birdc("show", "protocols"), "Established"))
			}
			eventually(t, "connected", "true", connected)
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "connected", "false", connected)
			if got := h.routes(); got != both {
				t.Errorf("BIRD's kernel routes while we are away:\n%s", got)
			}

			// Back, with one prefix less: that one goes, and nothing else did.
			n = newNode()
			n.apply()
			eventually(t, "BIRD's kernel routes", test.keep+" via "+test.hop, h.routes)
			eventually(t, "removed meanwhile", test.drop, h.removed)
			eventually(t, "we learned", test.theirs, n.learned)

			// Now BIRD dies and comes back: we forget nothing. (It takes GoBGP 5 s
			// to dial again, so not for each family.)
			if test.family == "v6" {
				return
			}
			session := func() string {
				if got := n.learned(); got != test.theirs {
					t.Errorf("while BIRD restarts, learned:\n%s", got)
				}
				peers, _ := n.Status()
				return peers[0].State
			}
			h.bird.Process.Kill()
			h.bird.Wait()
			eventually(t, "our sessions", "start", session)
			h.startBird()
			eventually(t, "our sessions", "up", session)
			if got := n.learned(); got != test.theirs {
				t.Errorf("after BIRD's restart we learned:\n%s", got)
			}
		})
	}
}
