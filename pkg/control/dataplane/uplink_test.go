package dataplane_test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"calico-xdp/pkg/control/dataplane"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/tools/testbed"
)

// streams are TCP from the first workload to both others: to one in IPIP, whose node
// is a neighbour, and to one in VXLAN, behind the router; in IPv6 plain and in VXLAN.
func (f *fleet) streams(t *testing.T) []*testbed.TCPStream {
	t.Helper()
	f.connect(t, desired.EncapIPIP, desired.EncapVXLAN)
	var all []*testbed.TCPStream
	for _, to := range f.workloads[1:] {
		for _, addr := range to.Addresses {
			all = append(all, testbed.StartTCP(t, f.workloads[0].Namespace, to.Namespace, netip.AddrPortFrom(addr, 9000)))
		}
	}
	goOn(t, all, "at first")
	return all
}

func goOn(t *testing.T, streams []*testbed.TCPStream, when string) {
	t.Helper()
	for i, s := range streams {
		if !s.Progresses(2e5) || s.Err() != nil {
			t.Fatalf("stream %d stands still %s after %d bytes: %v", i, when, s.Acked(), s.Err())
		}
	}
}

// talk is a UDP flow that never changes its ports: what is asked through it comes back.
type talk struct {
	net.Conn
	to netip.Addr
}

// talks are such flows along the same ways as streams.
func (f *fleet) talks(t *testing.T) []talk {
	t.Helper()
	f.connect(t, desired.EncapIPIP, desired.EncapVXLAN)
	var all []talk
	for _, to := range f.workloads[1:] {
		for _, addr := range to.Addresses {
			at := netip.AddrPortFrom(addr, 7).String()
			server, err := to.ListenPacket("udp", at)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { server.Close() })
			go func() {
				var buf [64]byte
				for {
					n, from, err := server.ReadFrom(buf[:])
					if err != nil {
						return
					}
					server.WriteTo(buf[:n], from)
				}
			}()
			client, err := f.workloads[0].Dial("udp", at)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { client.Close() })
			all = append(all, talk{client, addr})
		}
	}
	answers(t, all, "at first")
	return all
}

// ask sends one question; an answer to an earlier one will do.
func (k talk) ask() bool {
	var buf [64]byte
	k.Write([]byte("?"))
	k.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	_, err := k.Read(buf[:])
	return err == nil
}

func answers(t *testing.T, talks []talk, when string) {
	t.Helper()
	for _, k := range talks {
		if !testbed.Eventually(k.ask) {
			t.Fatalf("no answer from %s %s", k.to, when)
		}
	}
}

// The neighbours that packets leave through change their addresses.
func TestNeighborChanges(t *testing.T) {
	f := newFleet(t, dataplane.Options{})
	// As gateways that move do, they say so; else the kernel finds out after a minute.
	for _, n := range []*testbed.Namespace{f.Router, f.nodes[0].Namespace, f.nodes[1].Namespace} {
		n.Sysctl(t, "net.ipv4.conf.all.arp_notify", "1")
		n.Sysctl(t, "net.ipv6.conf.all.ndisc_notify", "1")
	}
	streams := f.streams(t)
	a, b := f.nodes[0], f.nodes[1]

	f.Router.MustRun(t, "ip", "link", "set", "eth1", "address", "02:00:00:00:01:99")
	goOn(t, streams, "with another MAC of the gateway")
	b.MustRun(t, "ip", "link", "set", "eth0", "address", "02:00:00:00:02:99")
	goOn(t, streams, "with another MAC of the other node")
	a.MustRun(t, "ip", "link", "set", "eth0", "address", "02:00:00:00:03:99")
	goOn(t, streams, "with another MAC of the own node")

	f.Router.AddAddress(t, "eth1", "10.10.1.254/24")
	f.Router.AddAddress(t, "eth1", "fd10:10:1::fe/64")
	a.MustRun(t, "ip", "route", "replace", "default", "via", "10.10.1.254")
	a.MustRun(t, "ip", "-6", "route", "replace", "default", "via", "fd10:10:1::fe")
	f.Router.MustRun(t, "ip", "neigh", "flush", "all")
	goOn(t, streams, "with another gateway")
	if t.Failed() {
		f.log(t)
	}
}

// uplink tells the node how its uplink stands.
func (n *node) uplink(t *testing.T, name string, up bool) {
	t.Helper()
	i := n.Link(t, name).Attrs().Index
	uplinks := map[int]desired.Link{i: {Name: name, Index: i, Up: up}}
	for j, l := range n.state.Dataplane.Uplinks {
		if j != i {
			uplinks[j] = l
		}
	}
	n.state.Dataplane.Uplinks = uplinks
	n.sync(t)
}

// The uplink goes down, which takes the kernel's routes away, and comes back.
func TestUplinkDownAndUp(t *testing.T) {
	f := newFleet(t, dataplane.Options{})
	talks := f.talks(t)
	a := f.nodes[0]
	routes := func() {
		a.MustRun(t, "ip", "route", "replace", "default", "via", a.Gateway4.String())
		a.MustRun(t, "ip", "-6", "route", "replace", "default", "via", a.Gateway6.String())
		route(t, a.Namespace, "fd02::/64", f.Hosts[1].IPv6.Addr())
	}
	for _, test := range []struct {
		name  string
		steps []func()
	}{
		{"told of it in order", []func(){
			func() { a.SetDown(t, "eth0") },
			func() { a.uplink(t, "eth0", false) },
			func() { a.SetUp(t, "eth0") },
			routes,
			func() { a.uplink(t, "eth0", true) },
		}},
		{"told of it before the routes are back", []func(){
			func() { a.SetDown(t, "eth0") },
			func() { a.uplink(t, "eth0", false) },
			func() { a.SetUp(t, "eth0") },
			func() { a.uplink(t, "eth0", true) },
			func() {
				// What comes now has no way out.
				for _, k := range talks {
					k.ask()
				}
			},
			routes,
		}},
		{"not told of it", []func(){
			func() { a.SetDown(t, "eth0") },
			func() { a.SetUp(t, "eth0") },
			routes,
		}},
	} {
		for _, step := range test.steps {
			step()
		}
		answers(t, talks, "when the uplink is back and the node was "+test.name)
	}
	if t.Failed() {
		f.log(t)
	}
}

// The way to a node moves to a second uplink while packets flow.
func TestUplinkMoves(t *testing.T) {
	f := newFleet(t, dataplane.Options{})
	a := f.nodes[0]
	testbed.Veth(t, a.Namespace, "eth1", f.Fabric, "second")
	testbed.Bridge(t, f.Fabric, "subnet3")
	testbed.Veth(t, f.Router, "eth3", f.Fabric, "router3")
	testbed.AddPort(t, f.Fabric, "subnet3", "second")
	testbed.AddPort(t, f.Fabric, "subnet3", "router3")
	for _, p := range []string{"10.10.3.%d/24", "fd10:10:3::%d/64"} {
		a.AddAddress(t, "eth1", fmt.Sprintf(p, 2))
		f.Router.AddAddress(t, "eth3", fmt.Sprintf(p, 1))
	}
	talks := f.talks(t)
	a.uplink(t, "eth1", true)
	answers(t, talks, "with a second uplink")
	first := testbed.StartCapture(t, f.Fabric, a.Port)
	second := testbed.StartCapture(t, f.Fabric, "second")
	to := f.workloads[2]
	flood := testbed.StartFlood(t, f.workloads[0].Namespace, to.Namespace, to.Addresses[0], testbed.FloodOptions{})
	flood.Progresses(20)
	before := len(first.Lines())

	// What this node should be is the same: the dataplane is not told of it.
	a.MustRun(t, "ip", "route", "add", "10.10.2.0/24", "via", "10.10.3.1")
	a.MustRun(t, "ip", "route", "add", "fd10:10:2::/64", "via", "fd10:10:3::1")
	for _, outer := range []string{"IP 10.10.1.2 > 10.10.2.4: VXLAN", "IP6 fd10:10:1::2 > fd10:10:2::4: VXLAN"} {
		moved := testbed.Eventually(func() bool {
			answers(t, talks, "through the second uplink")
			return slices.ContainsFunc(second.Lines(), func(line string) bool { return strings.HasPrefix(line, outer) })
		})
		if !moved {
			t.Errorf("no %s … at the second uplink", outer)
		}
	}
	// The default route, still there, led through the first uplink meanwhile.
	if r := flood.Stop(); r.Lost > 0 || r.Duplicated > 0 {
		t.Errorf("flood: %s", r)
	}
	if before == 0 {
		t.Errorf("nothing left through the first uplink")
	}
	if t.Failed() {
		f.log(t)
	}
}
