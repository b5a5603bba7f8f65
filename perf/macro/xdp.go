package macro

import (
	"fmt"
	"net/netip"

	"calico-xdp/perf/bed"
	"calico-xdp/pkg/loader"
	"calico-xdp/tools/testbed"
)

// earliest are packets that an untracked policy denies before the kernel has made
// anything of them.
func earliest() []Scenario {
	var out []Scenario
	for _, n := range []int{10, 100000} {
		out = append(out, Scenario{
			Name: fmt.Sprint("denied/networks/", n), Quick: n == 100000,
			About:   "64-byte packets to the host from a network in the set that an untracked policy denies; the peer drops without looking",
			Figures: []Figure{{Unit: "packets/s", Goals: map[string]float64{"XDP_DROP": 0.85}}},
			Lanes: func(r *Run, t testbed.T) []lane {
				nets := bed.Nets(n)
				from := largest(nets)
				s := newOurs(t, bed.Untracked("here", nets))
				out := []lane{{"calico-xdp", r.attacking(t, s, from, s.deniedEarly)}}
				bare := newKernel(t, "bare")
				out = append(out, lane{"XDP_DROP", r.attacking(t, bare, from, dropAll(t, bare))})
				return out
			},
		})
	}
	return out
}

// largest is a network with room for many addresses.
func largest(nets []netip.Prefix) netip.Prefix {
	best := nets[0]
	for _, p := range nets {
		if p.Bits() < best.Bits() {
			best = p
		}
	}
	return best
}

func (r *Run) attacking(t testbed.T, s *site, from netip.Prefix, dropped func() (uint64, error)) sampler {
	mac := s.host.Link(t, "eth0").Attrs().HardwareAddr.String()
	p := testbed.Ethernet(s.world.Link(t, "eth0").Attrs().HardwareAddr.String(), mac).
		IP(from.Addr(), s.host.IPv4.Addr()).UDP(1024, 9).Payload(frameBytes - 42)
	f := newFlood(t, s.world, p.Bytes(), loader.Variety{Ports: 1000, Sources: min(200, 1<<(32-from.Bits()))}, dropped)
	return f.sampler(r.Sample)
}

// deniedEarly is how many packets the product has denied in XDP.
func (s *site) deniedEarly() (uint64, error) {
	counters, err := s.bed.Maps().Counters()
	var n uint64
	for _, c := range counters {
		if c.Hook == string(loader.XDPNetwork) && c.Reason == "drop_untracked" {
			n += c.Packets
		}
	}
	return n, err
}

// dropAll drops whatever comes to the host.
func dropAll(t testbed.T, s *site) func() (uint64, error) {
	t.Helper()
	in := s.host.Link(t, "eth0").Attrs().Index
	p, err := loader.NewXDPCounter(true)
	if err == nil {
		t.Cleanup(func() { p.Close() })
		err = s.host.Do(func() error { return p.AttachXDP(in) })
	}
	if err != nil {
		t.Fatalf("XDP_DROP: %v", err)
	}
	return p.Count
}
