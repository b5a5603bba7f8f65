package testbed

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket/pcapgo"
)

// pair is two namespaces with a veth between them.
func pair(t *testing.T) (a, b *Namespace, b4, b6 netip.Addr) {
	t.Helper()
	a, b = NewNamespace(t, "a"), NewNamespace(t, "b")
	Veth(t, a, "eth0", b, "eth0")
	a.AddAddress(t, "eth0", "10.0.0.1/24")
	a.AddAddress(t, "eth0", "fd00::1/64")
	b.AddAddress(t, "eth0", "10.0.0.2/24")
	b.AddAddress(t, "eth0", "fd00::2/64")
	return a, b, netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")
}

func TestFlood(t *testing.T) {
	CheckNoLeaks(t)
	a, b, b4, b6 := pair(t)
	for _, target := range []netip.Addr{b4, b6} {
		for _, protocol := range []string{"icmp", "udp"} {
			f := StartFlood(t, a, b, target, FloodOptions{Protocol: protocol})
			if !f.Progresses(20) {
				t.Fatalf("%s to %s: %s", protocol, target, f.Report())
			}
			if r := f.Stop(); r.Lost != 0 || r.Duplicated != 0 || r.Reordered != 0 || r.Answered < 20 {
				t.Errorf("%s to %s: %s", protocol, target, r)
			}
		}
	}
}

// TestFloodLoss counts what is lost while the far side cannot answer.
func TestFloodLoss(t *testing.T) {
	a, b, b4, _ := pair(t)
	f := StartFlood(t, a, b, b4, FloodOptions{Protocol: "udp"})
	f.Progresses(10)
	// The answers of the far side are what gets lost.
	b.MustRun(t, "ip", "route", "add", "blackhole", "10.0.0.1/32")
	if !Eventually(func() bool { return f.Report().LongestGap > 10 }) {
		t.Errorf("no gap: %s", f.Report())
	}
	b.MustRun(t, "ip", "route", "del", "blackhole", "10.0.0.1/32")
	if !f.Progresses(10) {
		t.Error("does not go on")
	}
	if r := f.Stop(); r.Lost <= 10 || r.Lost+r.Answered != r.Sent {
		t.Errorf("%s", r)
	}
}

func TestTCPStream(t *testing.T) {
	CheckNoLeaks(t)
	a, b, b4, b6 := pair(t)
	six := StartTCP(t, a, b, netip.AddrPortFrom(b6, 5000))
	s := StartTCP(t, a, b, netip.AddrPortFrom(b4, 5000))
	if !s.Progresses(1<<20) || !six.Progresses(1<<20) {
		t.Fatalf("acknowledged %d and %d bytes", s.Acked(), six.Acked())
	}
	b.SetDown(t, "eth0")
	if !s.Stalls(100 * time.Millisecond) {
		t.Error("goes on over a link that is down")
	}
	b.SetUp(t, "eth0")
	if !s.Progresses(1 << 20) {
		t.Error("does not go on")
	}
	if err := s.Err(); err != nil {
		t.Error(err)
	}
}

func TestCapture(t *testing.T) {
	CheckNoLeaks(t)
	a, b, b4, _ := pair(t)
	c := StartCapture(t, a, "eth0")
	Probe{Count: 1, Size: 20}.Ping(a, b4)
	c.Stop()
	var out, in string
	for _, p := range c.Packets() {
		switch {
		case !strings.Contains(p.String(), "ICMP echo"):
		case p.Outgoing:
			out = p.String()
		default:
			in = p.String()
		}
	}
	if !strings.HasPrefix(out, "IP 10.0.0.1 > 10.0.0.2: ICMP echo ") || !strings.HasSuffix(out, " 0 len 20 ttl 64") {
		t.Errorf("out %q", out)
	}
	if !strings.HasPrefix(in, "IP 10.0.0.2 > 10.0.0.1: ICMP echo reply ") {
		t.Errorf("in %q", in)
	}
	path := filepath.Join(t.TempDir(), "c.pcap")
	if err := c.WritePcap(path); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range c.Packets() {
		if frame, _, err := r.ReadPacketData(); err != nil || !bytes.Equal(frame, p.Data) {
			t.Fatalf("file has %q, %v; want %q", Text(frame), err, p)
		}
	}

	c = StartCapture(t, b, "eth0")
	frame := Ethernet(a.Link(t, "eth0").Attrs().HardwareAddr.String(), b.Link(t, "eth0").Attrs().HardwareAddr.String()).
		IPv4("10.0.0.9", "10.0.0.2").UDP(1, 2).Payload(3)
	if err := a.Inject("eth0", frame.Bytes()); err != nil {
		t.Fatal(err)
	}
	if !c.Has(func(l string) bool { return l == frame.String() }) {
		t.Errorf("injected frame did not arrive: %q", c.Lines())
	}
}
