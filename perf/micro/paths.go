package micro

import (
	"fmt"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/loader"
	"calico-xdp/tools/testbed"
)

// noPolicy is what a workload has that no policy selects: its profile.
var noPolicy = Tables{"no policy", func() []api.Resource { return nil }}

// conversation is a TCP connection between two addresses, and where its packets are
// seen.
type conversation struct {
	here, there end
	// wrap puts what comes from there into a tunnel.
	wrap func(*rig, testbed.Packet) testbed.Packet
}

// end is one end of a conversation: its address, and where its packets are seen.
type end struct {
	address  string
	hook     loader.Program
	on, from string // interfaces
}

func (c conversation) frame(r *rig, forth bool, flags string, payload int) Frame {
	src, dst, sport, dport := c.here, c.there, uint16(4000), uint16(80)
	if !forth {
		src, dst, sport, dport = dst, src, dport, sport
	}
	var p testbed.Packet
	if !forth && c.wrap != nil {
		p = c.wrap(r, r.ethernet(src.on)).IP(addr(src.address), addr(dst.address)).TTL(255)
	} else {
		p = r.ip(src.on, src.address, dst.address)
	}
	return Frame{Hook: src.hook, Packet: p.TCP(sport, dport, flags).Payload(payload), On: src.on, From: src.from}
}

// open makes the connection known as established.
func (c conversation) open(r *rig) []Frame {
	return []Frame{c.frame(r, true, "S", 0), c.frame(r, false, "SA", 0), c.frame(r, true, "A", 0)}
}

func (c conversation) forth(r *rig) []Frame { return []Frame{c.frame(r, true, "A", 10)} }
func (c conversation) back(r *rig) []Frame  { return []Frame{c.frame(r, false, "A", 10)} }

func workloadA(address string) end { return end{address, loader.FromWorkload, "a", ""} }
func workloadB(address string) end { return end{address, loader.FromWorkload, "b", ""} }
func network(address string) end   { return end{address, loader.FromNetwork, "uplink", "uplink"} }

// stack is what the host's stack delivers to a, from this interface or from the host.
func stack(address, from string) end { return end{address, loader.ToWorkload, "a", from} }

func ipip(r *rig, p testbed.Packet) testbed.Packet { return p.IPv4(ipipNode4, host4) }

func vxlan(node, host string) func(*rig, testbed.Packet) testbed.Packet {
	return func(r *rig, p testbed.Packet) testbed.Packet {
		return p.IP(addr(node), addr(host)).UDP(50000, 4789).VXLAN(4096).Ethernet(peerMAC, peerMAC)
	}
}

// localPath is the simplest of all.
const localPath = "established/local/v4"

// paths are those of established connections, there and back.
func paths() []Scenario {
	local4, local6 := conversation{here: workloadA(a4), there: workloadB(b4)}, conversation{here: workloadA(a6), there: workloadB(b6)}
	plain, plainV6 := conversation{here: workloadA(a4), there: network(plain4)}, conversation{here: workloadA(a6), there: network(plain6)}
	inIPIP := conversation{workloadA(a4), network(ipip4), ipip}
	inVXLAN := conversation{workloadA(a4), network(vxlan4), vxlan(vxlanNode4, host4)}
	inVXLAN6 := conversation{workloadA(a6), network(vxlan6), vxlan(vxlanNode6, host6)}
	host := conversation{here: workloadA(a4), there: stack(host4, "")}
	world := conversation{here: workloadA(a4), there: stack(outside4, "uplink")}
	const encap = 5.6
	path := func(name, about string, c conversation, back bool, want string, goal float64) Scenario {
		s := Scenario{
			Name: "established/" + name, About: about, Tables: noPolicy, Before: c.open, Packets: c.forth,
			Want: want, Goal: goal,
		}
		if c.wrap != nil {
			s.Once, s.Like, s.Roomy = true, localPath, !back
		}
		if back {
			s.Packets = c.back
		}
		return s
	}
	return []Scenario{
		path("local/v4", "between two workloads of this host, IPv4", local4, false, "pass_to_workload", 3.1),
		path("local/v6", "the same, IPv6", local6, false, "pass_to_workload", 3.1),
		path("local/reply", "the answers, IPv4", local4, true, "pass_to_workload", 3.1),
		path("remote/plain/v4", "to a workload of another node, not encapsulated", plain, false, "pass_to_node", 0),
		path("remote/plain/v6", "the same, IPv6", plainV6, false, "pass_to_node", 0),
		path("remote/plain/reply", "from a workload of another node, not encapsulated", plain, true, "pass_to_workload", 0),
		path("remote/ipip", "to a workload of another node, encapsulated", inIPIP, false, "pass_ipip", encap),
		path("remote/ipip/reply", "from one, decapsulated", inIPIP, true, "pass_to_workload", 0),
		path("remote/vxlan/v4", "to a workload of another node, encapsulated", inVXLAN, false, "pass_vxlan", encap),
		path("remote/vxlan/v4/reply", "from one, decapsulated", inVXLAN, true, "pass_to_workload", 0),
		path("remote/vxlan/v6", "the same as to, IPv6 in IPv6", inVXLAN6, false, "pass_vxlan", encap),
		path("remote/vxlan/v6/reply", "the same as from, IPv6 in IPv6", inVXLAN6, true, "pass_to_workload", 0),
		path("host", "to the host itself", host, false, "pass_to_host", 0),
		path("host/reply", "from the host itself", host, true, "pass_to_workload", 0),
		path("world", "to an address that only the host's routes know", world, false, "pass_to_stack", 0),
		path("world/reply", "from there, delivered by the host's stack", world, true, "pass_to_workload", 0),
		{
			Name: "open/local", About: "a first packet between two workloads of this host that is allowed, with the flow's entry",
			Tables: noPolicy, Once: true, Like: localPath, Fresh: true, Want: "pass_to_workload",
			Packets: func(r *rig) []Frame {
				out := make([]Frame, 16384)
				for i := range out {
					p := r.ip("a", a4, b4).TCP(uint16(10000+i), 81, "S")
					out[i] = Frame{Hook: loader.FromWorkload, Packet: p, On: "a"}
				}
				return out
			},
		},
	}
}

// drops are packets that go no further than it takes to see that.
func drops() []Scenario {
	one := func(name, about, want string, frame func(*rig) Frame) Scenario {
		return Scenario{
			Name: "drop/" + name, About: about, Tables: noPolicy, Want: "drop_" + want,
			Packets: func(r *rig) []Frame { return []Frame{frame(r)} },
		}
	}
	fromA := func(src, dst string, rest func(testbed.Packet) testbed.Packet) func(*rig) Frame {
		return func(r *rig) Frame {
			return Frame{Hook: loader.FromWorkload, Packet: rest(r.ip("a", src, dst)), On: "a"}
		}
	}
	syn := func(p testbed.Packet) testbed.Packet { return p.TCP(4000, 80, "S") }
	return []Scenario{
		one("unsupported", "what is not IP", "unsupported", func(r *rig) Frame {
			return Frame{Hook: loader.FromWorkload, Packet: r.ethernet("a").Payload(60), On: "a"}
		}),
		one("fragment", "a later fragment", "fragment", fromA(a4, b4, func(p testbed.Packet) testbed.Packet {
			return p.Protocol(17).Fragment(5, 1480, false).Payload(40)
		})),
		one("spoofed", "a first packet with a source that is not the workload's", "spoofed", fromA(b4, a4, syn)),
		one("no-endpoint", "a first packet to an address of this node that nobody has", "no_endpoint", fromA(a4, "192.168.0.50", syn)),
	}
}

func (t Tables) String() string { return fmt.Sprintf("tables %q", t.Name) }
