package testbed

import (
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestHosts(t *testing.T) {
	CheckNoLeaks(t)
	lab := NewHosts(t, 3, 1, 1, 2)
	a, b, c := lab.Hosts[0], lab.Hosts[1], lab.Hosts[2]
	for _, to := range []*Host{b, c} {
		for _, addr := range []netip.Addr{to.IPv4.Addr(), to.IPv6.Addr()} {
			if received, sent := Ping(a.Namespace, addr, 3); received != sent || sent != 3 {
				t.Errorf("ping %s: %d of %d answered", addr, received, sent)
			}
		}
	}
	if got := a.ReadSysctl(t, "net.ipv4.ip_forward"); got != "1" {
		t.Errorf("ip_forward %s", got)
	}
	// A route is an address away from being unreachable.
	nowhere := netip.MustParseAddr("10.10.1.200")
	if (Probe{Count: 2, Wait: 1}).Reaches(a.Namespace, nowhere) {
		t.Errorf("%s answers", nowhere)
	}
}

// TestWorkload connects a workload by hand the way the host sink does.
func TestWorkload(t *testing.T) {
	CheckNoLeaks(t)
	host := NewHosts(t, 1).Hosts[0]
	w4, w6 := netip.MustParseAddr("192.168.0.7"), netip.MustParseAddr("fd20::7")
	w := host.AddWorkload(t, "cali0", w4, w6)
	host.Sysctl(t, "net.ipv4.conf.cali0.proxy_arp", "1")
	host.AddRoute(t, "192.168.0.7/32", "", "cali0")
	host.AddRoute(t, "fd20::7/128", "", "cali0")
	for _, to := range []netip.Addr{host.IPv4.Addr(), host.IPv6.Addr()} {
		if received, _ := Ping(w.Namespace, to, 2); received != 2 {
			t.Errorf("%s did not answer\n%s", to, w.MustRun(t, "ip", "route"))
		}
	}
	if !strings.Contains(host.MustRun(t, "ip", "-6", "addr", "show", "dev", "cali0"), HostLinkLocal) {
		t.Errorf("host side has no %s", HostLinkLocal)
	}
}

func TestProcesses(t *testing.T) {
	CheckNoLeaks(t)
	n := NewNamespace(t, "run")
	inside, err := os.Stat(n.Path())
	if err != nil {
		t.Fatal(err)
	}
	out := n.MustRun(t, "stat", "-L", "-c", "%i", "/proc/self/ns/net")
	outside, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if os.SameFile(inside, outside) {
		t.Error("the namespace is the test's own")
	}
	if strings.TrimSpace(out) != inode(t, n.Path()) {
		t.Errorf("command ran in %s", out)
	}
	if _, err := n.Run("sh", "-c", "echo no >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "no") {
		t.Errorf("failed command: %v", err)
	}
	p := n.Start(t, "sh", "-c", "echo here; exec sleep 100")
	if !Eventually(func() bool { return p.Output() == "here\n" }) {
		t.Errorf("output %q", p.Output())
	}
	p.Kill()
	select {
	case <-p.Exited():
	default:
		t.Error("killed process has not exited")
	}
}

func TestDoEnds(t *testing.T) {
	n := NewNamespace(t, "do")
	err := n.Do(func() error { return os.ErrClosed })
	if err != os.ErrClosed {
		t.Errorf("got %v", err)
	}
	if l, err := n.Listen("tcp", "127.0.0.1:80"); err != nil {
		t.Error(err)
	} else {
		defer l.Close()
		conn, err := n.Dial("tcp", "127.0.0.1:80")
		if err != nil {
			t.Error(err)
		} else {
			conn.Close()
		}
	}
}

func inode(t *testing.T, path string) string {
	t.Helper()
	var s syscall.Stat_t
	if err := syscall.Stat(path, &s); err != nil {
		t.Fatal(err)
	}
	return strconv.FormatUint(s.Ino, 10)
}
