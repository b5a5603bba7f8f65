package dataplane_test

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"calico-xdp/pkg/control/dataplane"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/tools/testbed"
)

// foreign is a node of ours with a workload, 192.168.1.1 and fd01::1, and a host in
// another subnet that runs nothing of ours, with a workload of its own, 192.168.2.1
// and fd02::1.
type foreign struct {
	*testbed.Lab
	node *node
	host *testbed.Host
	ours *testbed.Workload
	its  *testbed.Workload
}

func newForeign(t *testing.T, encap desired.Encap) *foreign {
	t.Helper()
	f := &foreign{Lab: testbed.NewHosts(t, 2, 1, 2)}
	f.node, f.host = newNode(t, f.Hosts[0], dataplane.Options{}), f.Hosts[1]
	f.ours = f.node.workload(t, "calia", "192.168.1.1", "fd01::1")
	f.its = f.host.AddWorkload(t, "calib", netip.MustParseAddr("192.168.2.1"), netip.MustParseAddr("fd02::1"))
	f.its.SetMTU(t, "eth0", workloadMTU)
	f.host.Sysctl(t, "net.ipv4.conf.calib.proxy_arp", "1")
	f.host.AddRoute(t, "192.168.2.1/32", "", "calib")
	f.host.AddRoute(t, "fd02::1/128", "", "calib")
	f.node.deliver(t, "calia", f.ours.Addresses...)
	route(t, f.node.Namespace, "192.168.2.0/26", f.node.Gateway4)
	route(t, f.node.Namespace, "fd02::/122", f.node.Gateway6)
	// Answers to our host come plain.
	f.Router.AddRoute(t, "192.168.2.0/26", f.host.IPv4.Addr().String(), "eth2")
	f.Router.AddRoute(t, "fd02::/122", f.host.IPv6.Addr().String(), "eth2")
	f.node.knowsHost(f.host)
	f.node.knowsPrefix(f.host, netip.MustParsePrefix("192.168.2.0/26"), encap)
	f.node.knowsPrefix(f.host, netip.MustParsePrefix("fd02::/122"), encap)
	f.node.sync(t)
	return f
}

// wire turns the far end of an interface into a real NIC's: what leaves it is
// segmented and has its checksums.
func wire(t *testing.T, n *testbed.Namespace, iface string) {
	t.Helper()
	n.MustRun(t, "ethtool", "-K", iface, "tx", "off", "tso", "off", "gso", "off", "sg", "off")
}

// accepts makes the foreign host take what our host itself sends: it has no address in a
// pool, so the answer does not leave through the tunnel.
func (f *foreign) accepts(t *testing.T, device string) {
	t.Helper()
	f.host.Sysctl(t, "net.ipv4.conf."+strings.ReplaceAll(device, ".", "/")+".rp_filter", "2")
}

// vxlanDevices gives the foreign host what Calico gives a Linux node: a vxlan device
// per family, and of each other node the neighbour, the forwarding entry, the route.
func (f *foreign) vxlanDevices(t *testing.T, options ...string) {
	t.Helper()
	peer, own := vxlanMAC(f.node.Host).String(), vxlanMAC(f.host).String()
	for _, d := range []struct {
		name, local, remote, address, gateway, prefix string
		options                                       []string
	}{
		{"vxlan.calico", "10.10.2.3", "10.10.1.2", "192.168.2.0/32", "192.168.1.0", "192.168.1.0/26", options},
		{"vxlan-v6.calico", "fd10:10:2::3", "fd10:10:1::2", "fd02::/128", "fd01::", "fd01::/122", append([]string{"udp6zerocsumrx"}, options...)},
	} {
		do := func(command string) { f.host.MustRun(t, strings.Fields(command)...) }
		do(fmt.Sprintf("ip link add %s address %s mtu %d type vxlan id %d dstport 4789 nolearning local %s dev eth0 %s",
			d.name, own, workloadMTU, vni, d.local, strings.Join(d.options, " ")))
		do("ip link set " + d.name + " up")
		do("ip address add " + d.address + " dev " + d.name)
		do(fmt.Sprintf("bridge fdb add %s dev %s dst %s self permanent", peer, d.name, d.remote))
		do(fmt.Sprintf("ip neigh add %s lladdr %s dev %s nud permanent", d.gateway, peer, d.name))
		do(fmt.Sprintf("ip route add %s via %s dev %s onlink", d.prefix, d.gateway, d.name))
	}
}

// Our VXLAN and Linux's.
func TestVXLANWithLinux(t *testing.T) {
	for _, test := range []struct {
		name    string
		options []string
		real    bool // the fabric is one of real NICs
	}{
		{"with outer checksums", []string{"udpcsum", "noudp6zerocsumtx"}, false},
		{"without outer checksums", []string{"noudpcsum", "udp6zerocsumtx"}, false},
		{"segmented on the way", []string{"noudpcsum", "udp6zerocsumtx"}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newForeign(t, desired.EncapVXLAN)
			f.vxlanDevices(t, test.options...)
			if test.real {
				for _, h := range f.Hosts {
					wire(t, f.Fabric, h.Port)
					wire(t, h.Namespace, "eth0")
				}
			}
			left := testbed.StartCapture(t, f.node.Namespace, "calia")
			arrived := testbed.StartCapture(t, f.ours.Namespace, "eth0")
			for i, its := range f.its.Addresses {
				exchange(t, f.ours.Namespace, f.its.Namespace, its)
				exchange(t, f.its.Namespace, f.ours.Namespace, f.ours.Addresses[i])
			}
			// The host itself, with the address of its device.
			exchange(t, f.ours.Namespace, f.host.Namespace, netip.MustParseAddr("192.168.2.0"))
			exchange(t, f.host.Namespace, f.ours.Namespace, f.ours.Addresses[0])
			exchange(t, f.host.Namespace, f.ours.Namespace, f.ours.Addresses[1])
			f.accepts(t, "vxlan.calico")
			for _, its := range f.its.Addresses {
				exchange(t, f.node.Namespace, f.its.Namespace, its)
			}
			f.gso(t, left)
			f.noWrongChecksums(t)
			if t.Failed() {
				for _, p := range arrived.Packets() { // the kernel has not looked at others' sums yet
					if bad := testbed.BadChecksums(p.Data); len(bad) > 0 && !p.Outgoing && strings.Contains(p.String(), "ICMP") {
						t.Logf("wrong %v: %s\n%x", bad, p, p.Data)
					}
				}
				t.Logf("%s\n%s", f.node.counts(t), f.host.MustRun(t, "ip", "-s", "link"))
			}
		})
	}
}

// noWrongChecksums checks that neither side has counted one.
func (f *foreign) noWrongChecksums(t *testing.T) {
	t.Helper()
	for _, n := range []*testbed.Namespace{f.ours.Namespace, f.its.Namespace, f.host.Namespace, f.node.Namespace} {
		counts := n.MustRun(t, "nstat", "-asz", "TcpInCsumErrors", "UdpInCsumErrors", "Udp6InCsumErrors", "IcmpInCsumErrors", "Icmp6InCsumErrors", "IpInHdrErrors", "Ip6InHdrErrors")
		if strings.Count(counts, "CsumErrors") < 5 {
			t.Errorf("%s: not all is counted: %s", n.Name, counts)
		}
		for line := range strings.Lines(counts) {
			if fields := strings.Fields(line); len(fields) > 1 && !strings.HasPrefix(line, "#") && fields[1] != "0" {
				t.Errorf("%s: %s", n.Name, line)
			}
		}
	}
}

// gso checks that our workload's TCP left it in large pieces, to both families.
func (f *foreign) gso(t *testing.T, left *testbed.Capture) {
	t.Helper()
	for _, start := range []string{"IP 192.168.1.1 > 192.168.2.1: TCP", "IP6 fd01::1 > fd02::1: TCP"} {
		largest := 0
		for _, p := range left.Packets() {
			if strings.HasPrefix(p.String(), start) {
				largest = max(largest, len(p.Data))
			}
		}
		if largest < 4000 {
			t.Errorf("%s …: the largest has %d bytes: no GSO", start, largest)
		}
	}
}

// Our IPIP and one that is written by the RFC.
func TestIPIPWithForeignEndpoint(t *testing.T) {
	f := newForeign(t, desired.EncapIPIP)
	testbed.IPIPEndpoint(t, f.host, "ipip0", f.node.IPv4.Addr())
	f.host.AddAddress(t, "ipip0", "192.168.2.0/32")
	f.host.AddRoute(t, "192.168.1.0/26", "", "ipip0")
	// A raw socket has no use for packets that are not segmented yet.
	wire(t, f.Fabric, f.host.Port)
	left := testbed.StartCapture(t, f.node.Namespace, "eth0")
	its := f.its.Addresses[0]
	exchange(t, f.ours.Namespace, f.its.Namespace, its)
	exchange(t, f.its.Namespace, f.ours.Namespace, f.ours.Addresses[0])
	exchange(t, f.ours.Namespace, f.host.Namespace, netip.MustParseAddr("192.168.2.0"))
	exchange(t, f.host.Namespace, f.ours.Namespace, f.ours.Addresses[0])
	f.accepts(t, "ipip0")
	exchange(t, f.node.Namespace, f.its.Namespace, its)
	largest := 0
	for _, p := range left.Packets() {
		if p.Outgoing && strings.Contains(p.String(), "IP 10.10.1.2 > 10.10.2.3: IPIP ttl 64 / IP 192.168.1.1 > 192.168.2.1: TCP") {
			largest = max(largest, len(p.Data))
		}
	}
	if largest < 4000 {
		t.Errorf("the largest TCP packet in IPIP has %d bytes: no GSO", largest)
	}
	f.noWrongChecksums(t)
	if t.Failed() {
		t.Log(f.node.counts(t))
	}
}

// What tcpdump makes of our packets.
func TestTcpdumpReadsOurs(t *testing.T) {
	for _, test := range []struct {
		name  string
		encap desired.Encap
		outer []string
		v6    bool
	}{
		{"IPIP", desired.EncapIPIP, []string{"proto IPIP (4)", "10.10.1.2 > 10.10.2.4: IP ("}, false},
		{"VXLAN", desired.EncapVXLAN, []string{
			"10.10.2.4.4789: [no cksum] VXLAN, flags [I] (0x08), vni 4096",
			// None is allowed here too, for tunnels (RFC 6935), which tcpdump does not know.
			"fd10:10:2::4.4789: [bad udp cksum 0x0000",
		}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFleet(t, dataplane.Options{})
			wire(t, f.nodes[0].Namespace, "eth0")
			wire(t, f.nodes[2].Namespace, "eth0")
			f.connect(t, test.encap, test.encap)
			seen := testbed.StartCapture(t, f.Fabric, f.Hosts[0].Port)
			for _, addr := range f.workloads[2].Addresses {
				if addr.Is4() || test.v6 {
					exchange(t, f.workloads[0].Namespace, f.workloads[2].Namespace, addr)
				}
			}
			seen.Stop()
			pcap := filepath.Join(t.TempDir(), "wire.pcap")
			if err := seen.WritePcap(pcap); err != nil {
				t.Fatal(err)
			}
			text := f.Fabric.MustRun(t, "tcpdump", "-nn", "-vv", "-r", pcap)
			want := append(test.outer, "192.168.1.1 > 192.168.3.1: ICMP echo request", "(correct)", "[udp sum ok]")
			for _, want := range want {
				if !strings.Contains(text, want) {
					t.Errorf("tcpdump does not say %q:\n%.4000s", want, text)
				}
			}
			for _, bad := range []string{"bad cksum", "[bad", "incorrect", "wrong", "truncated", "missing", "unknown"} {
				for line := range strings.Lines(text) {
					if strings.Contains(strings.ReplaceAll(line, "[bad udp cksum 0x0000", ""), bad) {
						t.Errorf("tcpdump: %s", line)
						break
					}
				}
			}
		})
	}
}
