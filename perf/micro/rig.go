package micro

import (
	"errors"
	"net/netip"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"

	"calico-xdp/perf/bed"
	"calico-xdp/pkg/api"
	"calico-xdp/pkg/loader"
	"calico-xdp/tools/testbed"
)

// Tables names resources of a rig, besides those that all have.
type Tables struct {
	Name      string
	Resources func() []api.Resource
}

// The addresses of a rig: two workloads of this host, and workloads of other nodes by
// the way that leads to them.
const (
	a4, a6         = "192.168.0.1", "fd00:0::1"
	b4, b6         = "192.168.0.2", "fd00:0::2"
	host4, host6   = "10.10.1.2", "fd10:10:1::2"
	plain4, plain6 = "192.168.1.1", "fd00:1::1"
	ipip4          = "192.168.16.1"
	vxlan4, vxlan6 = "192.168.32.1", "fd00:32::1"
	outside4       = "198.51.100.7"

	plainNode4 = "10.10.1.3"
	ipipNode4  = "10.10.1.4"
	vxlanNode4 = "10.10.1.5"
	vxlanNode6 = "fd10:10:1::5"
	peerMAC    = "66:00:00:00:00:05" // inside VXLAN
)

// programs are what is run by hand at a hook, on the dataplane's tables as large as they have
// become: the dataplane keeps its own to itself.
type programs struct {
	plain   *loader.Programs
	counted *loader.Counted
	room    *loader.Room
}

// rig is a bed with two workloads, a and b, whose programs are run by hand.
type rig struct {
	*bed.Bed
	index  map[string]uint32 // of the interfaces "a", "b" and "uplink"
	macs   map[string]string // of who sends there
	byHook map[loader.Program]*programs
}

func newRig(t testbed.T, tables Tables) *rig {
	t.Helper()
	lab := testbed.NewHosts(t, 1)
	r := &rig{Bed: bed.New(t, lab.Hosts[0], "here", bed.Options{XDP: true})}
	r.Apply(
		bed.Open(),
		bed.NodeAt("here", host4+"/24", host6+"/64"),
		bed.NodeAt("plain", plainNode4+"/24", "fd10:10:1::3/64"),
		bed.NodeAt("ipip", ipipNode4+"/24", ""),
		bed.NodeAt("vxlan", vxlanNode4+"/24", vxlanNode6+"/64"),
		bed.Pool("plain", "192.168.0.0/20", v3.IPIPModeNever, v3.VXLANModeNever),
		bed.Pool("ipip", "192.168.16.0/20", v3.IPIPModeAlways, v3.VXLANModeNever),
		bed.Pool("vxlan", "192.168.32.0/20", v3.IPIPModeNever, v3.VXLANModeAlways),
		bed.Pool("plain6", "fd00:0::/31", v3.IPIPModeNever, v3.VXLANModeNever),
		bed.Pool("vxlan6", "fd00:32::/32", v3.IPIPModeNever, v3.VXLANModeAlways),
		bed.Block("192.168.0.0/26", "here"), bed.Block("fd00:0::/122", "here"),
		bed.Block("192.168.1.0/26", "plain"), bed.Block("fd00:1::/122", "plain"),
		bed.Block("192.168.16.0/26", "ipip"),
		bed.Block("192.168.32.0/26", "vxlan"), bed.Block("fd00:32::/122", "vxlan"),
	)
	r.Apply(tables.Resources()...)
	r.index = map[string]uint32{"uplink": uint32(r.Link(t, "eth0").Attrs().Index)}
	r.macs = map[string]string{"uplink": lab.Router.Link(t, "eth1").Attrs().HardwareAddr.String()}
	for name, addresses := range map[string][]netip.Addr{
		"a": {netip.MustParseAddr(a4), netip.MustParseAddr(a6)},
		"b": {netip.MustParseAddr(b4), netip.MustParseAddr(b6)},
	} {
		w := r.Workload(t, name, map[string]string{"name": name}, addresses...)
		r.index[name] = uint32(r.Link(t, w.Interface).Attrs().Index)
		r.macs[name] = w.MAC.String()
	}
	if err := r.Sync(); err != nil {
		t.Fatalf("tables %s: %v", tables.Name, err)
	}
	r.byHook = make(map[loader.Program]*programs)
	t.Cleanup(func() {
		for _, p := range r.byHook {
			p.plain.Close()
			p.counted.Close()
			p.room.Close()
		}
	})
	return r
}

// at are the programs of a hook.
func (r *rig) at(hook loader.Program) (*programs, error) {
	if p := r.byHook[hook]; p != nil {
		return p, nil
	}
	tables := r.Maps().Handles()
	plain, err := loader.LoadOne(tables, hook)
	if err != nil {
		return nil, err
	}
	counted, err := loader.LoadCounted(tables, hook)
	if err != nil {
		return nil, errors.Join(err, plain.Close())
	}
	room, err := plain.NewRoom(hook)
	if err != nil {
		return nil, errors.Join(err, plain.Close(), counted.Close())
	}
	r.byHook[hook] = &programs{plain, counted, room}
	return r.byHook[hook], nil
}

// lookups is how many lookups in tables a frame takes.
func (r *rig) lookups(f Frame) (int, error) {
	p, err := r.at(f.Hook)
	if err != nil {
		return 0, err
	}
	before, err := p.counted.Use()
	if err != nil {
		return 0, err
	}
	if _, err := p.counted.Run(f.Hook, f.Packet.Bytes(), r.context(f)); err != nil {
		return 0, err
	}
	after, err := p.counted.Use()
	return int(after.Lookups - before.Lookups), err
}

// ip starts a packet as it comes in on an interface, with the longest life: a hop
// takes one off, and the same buffer is run many times.
func (r *rig) ip(on, src, dst string) testbed.Packet {
	return r.ethernet(on).IP(addr(src), addr(dst)).TTL(255)
}

func (r *rig) ethernet(on string) testbed.Packet {
	return testbed.Ethernet(r.macs[on], testbed.HostMAC)
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// timer prepares a frame to be timed, roomy one with room in front of it.
func (r *rig) timer(f Frame, roomy bool) (*loader.Timer, error) {
	p, err := r.at(f.Hook)
	if err != nil {
		return nil, err
	}
	if roomy {
		return p.room.Timer(f.Packet.Bytes(), r.context(f)), nil
	}
	return p.plain.Timer(f.Hook, f.Packet.Bytes(), r.context(f))
}

func (r *rig) context(f Frame) loader.Context {
	return loader.Context{Ifindex: r.index[f.On], IngressIfindex: r.index[f.From]}
}

// send runs a frame once and returns how it was counted. The kernel's own packets on
// these interfaces, neighbour discovery mostly, may be counted meanwhile.
func (r *rig) send(f Frame) ([]string, error) {
	p, err := r.at(f.Hook)
	if err != nil {
		return nil, err
	}
	before, err := r.counts(f.Hook)
	if err != nil {
		return nil, err
	}
	if _, err := p.plain.Run(f.Hook, f.Packet.Bytes(), r.context(f)); err != nil {
		return nil, err
	}
	after, err := r.counts(f.Hook)
	if err != nil {
		return nil, err
	}
	var moved []string
	for reason, n := range after {
		if n != before[reason] {
			moved = append(moved, reason)
		}
	}
	return moved, nil
}

// counts are the packets counted at a hook so far, by reason.
func (r *rig) counts(hook loader.Program) (map[string]uint64, error) {
	counters, err := r.Maps().Counters()
	out := make(map[string]uint64)
	for _, c := range counters {
		if c.Hook == string(hook) {
			out[c.Reason] = c.Packets
		}
	}
	return out, err
}
