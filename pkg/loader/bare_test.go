package loader

import (
	"slices"
	"strings"
	"testing"

	"calico-xdp/tools/testbed"
)

// What a generator sends is whole, differs as it is told to, and all of it arrives.
func TestGenerator(t *testing.T) {
	near, far := testbed.NewNamespace(t, "near"), testbed.NewNamespace(t, "far")
	testbed.Veth(t, near, "eth0", far, "eth0")
	far.MustRun(t, "ethtool", "-K", "eth0", "gro", "on")
	counter, err := NewCounter(true)
	if err != nil {
		t.Fatal(err)
	}
	defer counter.Close()
	if err := far.Do(func() error { return counter.AttachIngress(far.Link(t, "eth0").Attrs().Index) }); err != nil {
		t.Fatal(err)
	}
	capture := testbed.StartCapture(t, far, "eth0")
	p := testbed.Ethernet("02:00:00:00:00:01", "02:00:00:00:00:02").IPv4("10.255.255.254", "10.0.0.2").UDP(65000, 9)
	out := near.Link(t, "eth0").Attrs().Index
	generator, err := NewGenerator(out, p.Payload(18).Bytes(), Variety{Ports: 2, Sources: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer generator.Close()
	const sent = 12
	err = near.Do(func() error {
		_, err := generator.Send(sent)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	arrived := func() bool { n, err := counter.Count(); return err == nil && n >= sent }
	if !testbed.Eventually(arrived) {
		t.Fatal("not all have arrived")
	}
	for _, want := range []string{"10.255.255.254 > 10.0.0.2: UDP 65000", "10.255.255.255 > 10.0.0.2: UDP 65001", "11.0.0.0 > 10.0.0.2: UDP 65000"} {
		if !testbed.Eventually(func() bool { return capture.Has(func(l string) bool { return strings.Contains(l, want) }) }) {
			t.Errorf("no packet %q among %q", want, capture.Lines())
		}
	}
	for _, p := range capture.Packets() {
		// The builder's UDP checksum is that of the first packet.
		if slices.Contains(testbed.BadChecksums(p.Data), "IPv4") {
			t.Errorf("%s: wrong checksum", p)
		}
	}
}
