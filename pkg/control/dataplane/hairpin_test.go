package dataplane_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"

	"calico-xdp/pkg/control/dataplane"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/tools/testbed"
)

// A workload that reaches itself through a service of the host's: the host's own rules
// translate both ends, and each half is a flow of its own.
func TestWorkloadToItselfThroughTheHost(t *testing.T) {
	n := newNode(t, testbed.NewHosts(t, 1).Hosts[0], dataplane.Options{})
	w := n.workload(t, "calia", "192.168.1.1", "fd01::1")
	n.deliver(t, "calia", w.Addresses...)
	n.sync(t)
	for _, rules := range []string{
		"add table ip hairpin", "add chain ip hairpin before { type nat hook prerouting priority -100; }",
		"add chain ip hairpin after { type nat hook postrouting priority 100; }",
		"add rule ip hairpin before ip daddr 10.96.0.1 tcp dport 80 dnat to 192.168.1.1:9000",
		"add rule ip hairpin after ip saddr 192.168.1.1 ip daddr 192.168.1.1 masquerade",
		"add table ip6 hairpin", "add chain ip6 hairpin before { type nat hook prerouting priority -100; }",
		"add chain ip6 hairpin after { type nat hook postrouting priority 100; }",
		"add rule ip6 hairpin before ip6 daddr fd96::1 tcp dport 80 dnat to [fd01::1]:9000",
		"add rule ip6 hairpin after ip6 saddr fd01::1 ip6 daddr fd01::1 masquerade",
	} {
		n.MustRun(t, "nft", rules)
	}
	for i, service := range []string{"10.96.0.1", "fd96::1"} {
		l, err := w.Listen("tcp", netip.AddrPortFrom(w.Addresses[i], 9000).String())
		if err != nil {
			t.Fatal(err)
		}
		testbed.Serve(t, l, testbed.Echo)
		if err := echoes(w.Namespace, net.JoinHostPort(service, "80")); err != nil {
			t.Errorf("%s: %v\n%s", service, err, n.counts(t))
		}
	}
}

// echoes sends something that comes back.
func echoes(from *testbed.Namespace, to string) error {
	conn, err := from.Dial("tcp", to)
	if err != nil {
		return err
	}
	defer conn.Close()
	const said = "who is there"
	if _, err := io.WriteString(conn, said); err != nil {
		return err
	}
	got := make([]byte, len(said))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != said {
		return fmt.Errorf("%q came back: %w", got, err)
	}
	return nil
}

// A workload's interface goes down and comes up: what goes to it ends, and goes on, by the
// same flows.
func TestInterfaceDownAndUp(t *testing.T) {
	f := newFleet(t, dataplane.Options{})
	f.connect(t, desired.EncapIPIP, desired.EncapVXLAN)
	local := f.nodes[0].workload(t, "calib", "192.168.1.2", "fd01::2")
	f.nodes[0].sync(t)
	to := f.workloads[0]
	var floods []*testbed.Flood
	for _, from := range []*testbed.Workload{local, f.workloads[1], f.workloads[2]} {
		for i := range from.Addresses {
			floods = append(floods, testbed.StartFlood(t, from.Namespace, to.Namespace, to.Addresses[i], testbed.FloodOptions{Protocol: "udp", Size: 100, Port: uint16(5201 + len(floods))}))
		}
	}
	for round := range 2 {
		for i, flood := range floods {
			if !flood.Progresses(10) {
				t.Errorf("round %d, flood %d: %s", round, i, flood.Report())
			}
		}
		f.nodes[0].SetDown(t, "calia")
		for _, flood := range floods {
			before := flood.Report().Answered
			if !testbed.Eventually(func() bool { r := flood.Report().Answered; ok := r == before; before = r; return ok }) {
				t.Errorf("answers through an interface that is down: %s", flood.Report())
			}
		}
		f.nodes[0].SetUp(t, "calia")
		f.nodes[0].deliver(t, "calia", to.Addresses...)
	}
	for i, flood := range floods {
		if !flood.Progresses(10) {
			t.Errorf("in the end, flood %d: %s", i, flood.Report())
		}
		flood.Stop()
	}
	if t.Failed() {
		f.log(t)
	}
}
