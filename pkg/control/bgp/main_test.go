package bgp

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"calico-xdp/pkg/control/desired"
)

// inside marks the process that runs the tests.
const inside = "CALICO_XDP_BGP_TEST_INSIDE"

// TestMain runs the tests in a process with a network namespace of its own:
// GoBGP dials and listens on whatever thread it happens to run, so a namespace
// per test is not enough. With the process, everything in the namespace goes.
func TestMain(m *testing.M) {
	if peers := os.Getenv(speaker); peers != "" {
		speak(peers)
	}
	if to := os.Getenv(sending); to != "" {
		send(to)
	}
	if os.Getenv(inside) != "" {
		for _, arguments := range []string{
			"link set lo up",
			"addr add fd00::1/128 dev lo nodad",
			"addr add fd00::2/128 dev lo nodad",
			"addr add fd00::3/128 dev lo nodad",
		} {
			if out, err := exec.Command("ip", strings.Fields(arguments)...).CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "ip %s: %v: %s\n", arguments, err, out)
				os.Exit(1)
			}
		}
		flag.Parse()
		if !strings.Contains(strings.Join(os.Args, " "), "-test.parallel") {
			flag.Set("test.parallel", "8") // tests mostly wait for timers
		}
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // the child dies with this thread
	child := exec.Command("/proc/self/exe", os.Args[1:]...)
	child.Env = append(os.Environ(), inside+"=1")
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := child.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tests need root, to make a network namespace:", err)
		os.Exit(1)
	}
}

// Tests that use the same addresses run one after the other, all else at the same time.
var loopback, birdLink sync.Mutex

func alone(t *testing.T, place *sync.Mutex) {
	t.Helper()
	t.Parallel()
	place.Lock()
	t.Cleanup(place.Unlock)
}

// node is a speaker on loopback addresses of its own and what it should be.
type node struct {
	*Speaker
	t    *testing.T
	want desired.State
}

// newNode is node n with 127.0.0.n, fd00::n, and one block of each family.
func newNode(t *testing.T, n int, as uint32) *node {
	t.Helper()
	v4 := netip.AddrFrom4([4]byte{127, 0, 0, byte(n)})
	v6 := netip.MustParseAddr(fmt.Sprintf("fd00::%d", n))
	s := New(Options{ListenAddresses: []netip.Addr{v4, v6}}, testLogger(t, fmt.Sprintf("node%d", n)))
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &node{Speaker: s, t: t, want: desired.State{BGP: desired.BGP{
		Enabled: true, AS: as, RouterID: v4, NextHop4: v4, NextHop6: v6,
		Peers: map[string]desired.BGPPeer{},
		Advertise: map[netip.Prefix]bool{
			netip.MustParsePrefix(fmt.Sprintf("10.65.%d.0/26", n)):      true,
			netip.MustParsePrefix(fmt.Sprintf("fd00:65:0:%d::/122", n)): true,
		},
	}}}
}

// peer adds sessions with other, one per family.
func (n *node) peer(other *node) {
	for _, ends := range [][2]netip.Addr{
		{n.want.BGP.NextHop4, other.want.BGP.NextHop4},
		{n.want.BGP.NextHop6, other.want.BGP.NextHop6},
	} {
		n.want.BGP.Peers[ends[1].String()] = desired.BGPPeer{
			Local: ends[0], Address: ends[1], AS: other.want.BGP.AS, Kind: desired.PeerMesh,
			ClusterNode: true, Passive: ends[1].String() > ends[0].String(),
		}
	}
}

// apply is one round of the control loop.
func (n *node) apply() {
	n.t.Helper()
	err := n.Ensure(context.Background(), &n.want)
	if err == nil {
		err = n.prune()
	} else if busy(err) {
		err = n.again()
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) prune() error {
	err := n.Prune(context.Background(), &n.want)
	if busy(err) {
		return n.again()
	}
	return err
}

// again makes rounds until the port is free: a listener that is closed stays for a moment
// where another test starts a process just then.
func (n *node) again() error {
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		err := n.Ensure(context.Background(), &n.want)
		if err == nil {
			err = n.Prune(context.Background(), &n.want)
		}
		if !busy(err) || time.Since(begin) > 5*time.Second {
			return err
		}
	}
}

func busy(err error) bool {
	return err != nil && strings.Contains(err.Error(), "address already in use")
}

// learned is Learned as text.
func (n *node) learned() string {
	var lines []string
	for _, r := range n.Learned() {
		lines = append(lines, r.Prefix.String()+" via "+strings.Trim(fmt.Sprint(r.NextHops), "[]"))
	}
	return strings.Join(lines, "\n")
}

// status is Status as text, without times.
func (n *node) status() string {
	n.t.Helper()
	peers, err := n.Status()
	if err != nil {
		n.t.Fatal(err)
	}
	var lines []string
	for _, p := range peers {
		lines = append(lines, fmt.Sprintf("%s %s %s %s in %d out %d", p.Address, p.Kind, p.State, p.Info, p.Received, p.Advertised))
	}
	return strings.Join(lines, "\n")
}

// eventually waits until got gives want.
func eventually(t *testing.T, what, want string, got func() string) {
	t.Helper()
	last := ""
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if last = got(); last == want {
			return
		}
	}
	t.Fatalf("%s:\n%s\nwant:\n%s", what, last, want)
}

func lines(l ...string) string { return strings.Join(l, "\n") }

// testLogger writes to t's log while t runs; GoBGP goes on writing afterwards.
func testLogger(t *testing.T, name string) *slog.Logger {
	level := slog.LevelInfo
	if os.Getenv("CALICO_XDP_TEST_DEBUG") != "" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level})).With("node", name)
}
