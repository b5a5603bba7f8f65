package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"calico-xdp/pkg/control/desired"
	"calico-xdp/tools/testbed"
)

func TestLinks(t *testing.T) {
	testbed.CheckNoLeaks(t)
	ns := testbed.NewNamespace(t, "links")
	ns.MustRun(t, "ip", "link", "add", "eth0", "address", "02:00:00:00:00:01", "mtu", "1400", "type", "veth", "peer", "name", "far")
	ns.MustRun(t, "ip", "link", "add", "br0", "type", "bridge")
	ns.AddAddress(t, "eth0", "10.0.0.1/24")
	ns.AddAddress(t, "eth0", "10.0.0.2/32")
	ns.AddAddress(t, "eth0", "fd00::1/64")
	n := open(t, ns, Options{})
	describe := func() string {
		links, err := n.Links()
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for _, l := range links {
			l.Addresses = slices.DeleteFunc(l.Addresses, func(p netip.Prefix) bool { return p.Addr().IsLinkLocalUnicast() })
			line := fmt.Sprintf("%s %s mtu %d up %t %v", l.Name, l.Kind, l.MTU, l.Up, l.Addresses)
			if l.Name == "eth0" {
				line += fmt.Sprintf(" %s", l.MAC)
			}
			if l.Port || l.NoEthernet {
				line += fmt.Sprintf(" port %t, without Ethernet %t", l.Port, l.NoEthernet)
			}
			lines = append(lines, line)
		}
		return strings.Join(lines, "\n")
	}
	base := "lo device mtu 65536 up true [127.0.0.1/8 ::1/128]\nfar veth mtu 1500 up false []\n"
	want := base + "eth0 veth mtu 1400 up false [10.0.0.1/24 10.0.0.2/32 fd00::1/64] 02:00:00:00:00:01\n" +
		"br0 bridge mtu 1500 up false []"
	if got := describe(); got != want {
		t.Errorf("links\n%s\nwant\n%s", got, want)
	}
	// Every change is signalled, and seen by the time of the signal.
	for _, change := range []struct{ command, line string }{
		{"ip link set eth0 up", "eth0 veth mtu 1400 up true"},
		{"ip link set eth0 mtu 1300", "eth0 veth mtu 1300 up true"},
		{"ip addr add 10.0.0.3/24 dev eth0", "10.0.0.3/24"},
		{"ip link add eth7 type veth peer name far7", "eth7 veth"},
		{"ip link set eth7 master br0", "eth7 veth mtu 1500 up false [] port true, without Ethernet false"},
		{"ip tuntap add tun7 mode tun", "port false, without Ethernet true"},
		{"ip link del br0", "up false"},
	} {
		ns.MustRun(t, strings.Fields(change.command)...)
		seen := testbed.Eventually(func() bool {
			select {
			case <-n.Changed():
				return strings.Contains(describe(), change.line)
			default:
				return false
			}
		})
		if !seen {
			t.Errorf("%s: no signal, or not %q in\n%s", change.command, change.line, describe())
		}
	}
}

// TestLostEvents fills the socket's buffer while nobody reads. What happened
// meanwhile is noticed afterwards, and watching goes on.
func TestLostEvents(t *testing.T) {
	host, _, want := fixture(t)
	var log logBuffer
	n := openLogging(t, host.Namespace, Options{EventBuffer: 4096}, &log)
	settle(t, n, want)
	// With the table locked, an event about a route of ours blocks the watcher.
	n.table.mu.Lock()
	batch := host.Start(t, "sh", "-c",
		"for i in $(seq 200); do for j in 1 2 3 4 5; do echo route add 172.16.$i.$j/32 dev eth0 proto 88; done; done | ip -batch -;"+
			"ip route del 192.168.0.64/26; ip route flush root 172.16.0.0/16")
	<-batch.Exited()
	n.table.mu.Unlock()
	all := strings.Join(sorted(slices.Concat(defaults, ours)), "\n")
	eventually(t, n, want, "repaired after events were lost", func() bool { return routes(t, host.Namespace) == all })
	if !strings.Contains(log.String(), "lost events of the kernel") {
		t.Error("no event was lost: the test shows nothing")
	}
	host.MustRun(t, "ip", "-6", "route", "del", "fd20::5/128")
	eventually(t, n, want, "repaired by the new subscription", func() bool { return routes(t, host.Namespace) == all })
}

// logBuffer takes the log of several goroutines.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func TestLooseRPF(t *testing.T) {
	testbed.CheckNoLeaks(t)
	ns := testbed.NewNamespace(t, "rpf")
	try := func(o Options) error {
		return ns.Do(func() error {
			n, err := New(o, slog.New(slog.NewTextHandler(io.Discard, nil)))
			if err == nil {
				err = n.Close()
			}
			return err
		})
	}
	for _, test := range []struct {
		value  string
		ignore bool
		err    error
	}{{"0", false, nil}, {"1", false, nil}, {"2", false, ErrLooseRPF}, {"2", true, nil}} {
		ns.Sysctl(t, "net.ipv4.conf.all.rp_filter", test.value)
		if err := try(Options{IgnoreLooseRPF: test.ignore}); !errors.Is(err, test.err) {
			t.Errorf("rp_filter %s, ignore %t: %v", test.value, test.ignore, err)
		}
	}
}

func TestDetect(t *testing.T) {
	testbed.CheckNoLeaks(t)
	ns := testbed.NewNamespace(t, "detect")
	add := func(name string, up bool, addresses ...string) {
		ns.MustRun(t, "ip", "link", "add", name, "type", "bridge")
		for _, a := range addresses {
			ns.AddAddress(t, name, a)
		}
		if up {
			ns.SetUp(t, name)
		}
	}
	add("docker0", true, "172.17.0.1/16", "fd17::1/64")
	add("cali12", true, "10.1.0.1/24")
	add("br-1234", true, "10.2.0.1/24")
	add("eth7", false, "10.3.0.1/24")
	add("kube0", true, "10.4.0.1/32", "fd04::1/128")
	add("eth0", true, "169.254.0.9/16", "10.5.0.1/24", "10.5.0.2/24", "fd05::1/64")
	add("eth1", true, "10.6.0.1/24", "fd06::1/64")
	ns.AddRoute(t, "198.51.100.0/24", "10.6.0.9", "eth1")
	ns.AddRoute(t, "2001:db8::/32", "fd06::9", "eth1")
	n := open(t, ns, Options{})
	for _, test := range []struct {
		method string
		ipv6   bool
		want   string // address, interface, and a part of the reason; or of the error
	}{
		{"first-found", false, "10.5.0.1/24 eth0 first address of eth0; passed over lo (by name), docker0 (by name), " +
			"cali12 (by name), br-1234 (by name), eth7 (down), kube0 (no address with a subnet)"},
		{"", false, "10.5.0.1/24 eth0 first address"},
		{"first-found", true, "fd05::1/64 eth0 first address"},
		{"can-reach=198.51.100.7", false, "10.6.0.1/24 eth1 address of eth1 that packets to 198.51.100.7 are sent from"},
		{"can-reach=2001:db8::7", true, "fd06::1/64 eth1 address of eth1"},
		{"can-reach=203.0.113.1", false, "error: no route to 203.0.113.1"},
		{"can-reach=198.51.100.7", true, "error: 198.51.100.7 is of the other address family"},
		{"interface=eth1", false, "10.6.0.1/24 eth1 first address of eth1, which matches eth1"},
		{"interface=wlan.*,eth[1-9]", true, "fd06::1/64 eth1 first address of eth1, which matches eth[1-9]"},
		{"interface=docker.*", false, "172.17.0.1/16 docker0 first address"},
		{"interface=kube0", false, "10.4.0.1/32 kube0 first address"},
		{"interface=eth7", false, "error: no interface that is up and matches"},
		{"interface=(", false, "error: error parsing regexp"},
		{"skip-interface=eth0", false, "10.6.0.1/24 eth1 first address"},
		{"skip-interface=eth.*", false, "error: no interface has a usable address; passed over lo (by name)"},
		{"cidr=10.6.0.0/16,10.5.0.0/24", false, "10.5.0.1/24 eth0 address of eth0 in 10.5.0.0/24"},
		{"cidr=fd06::/32", true, "fd06::1/64 eth1 address of eth1 in fd06::/32"},
		{"cidr=10.99.0.0/16", false, "error: no interface that is up has an address"},
		{"cidr=10.99", false, "error: netip.ParsePrefix"},
		{"kubernetes-internal-ip", false, "error: this node does not talk to the Kubernetes API"},
		{"can-reach", false, "error: the method needs a value"},
		{"first-found=eth0", false, "error: the method takes no value"},
		{"guess", false, "error: no such method"},
	} {
		d, err := n.Detect(context.Background(), test.method, test.ipv6)
		got := fmt.Sprintf("%s %s %s", d.Prefix, d.Interface, d.Reason)
		if err != nil {
			got = "error: " + err.Error()
		}
		if !strings.HasPrefix(got, test.want) {
			t.Errorf("%s: got  %s\nwant %s", test.method, got, test.want)
		}
	}
	for address, want := range map[string]string{
		"10.6.0.1": "10.6.0.1/24 eth1", "fd05::1": "fd05::1/64 eth0", "10.7.0.1": "10.7.0.1/32 ",
	} {
		d, err := n.Complete(netip.MustParseAddr(address))
		if got := fmt.Sprintf("%s %s", d.Prefix, d.Interface); err != nil || got != want {
			t.Errorf("complete %s: %s, %v", address, got, err)
		}
	}
}

var _ interface {
	Changed() <-chan struct{}
	Links() ([]desired.Link, error)
} = (*Network)(nil)
