package micro

import (
	"calico-xdp/pkg/api"
	"calico-xdp/pkg/loader"
)

// noPolicy is what a workload has that no policy selects: its profile.
var noPolicy = Tables{"no policy", func() []api.Resource { return nil }}

// conversation is a TCP connection between two addresses, seen at two hooks.
type conversation struct {
	here, there         string // addresses
	hereHook, thereHook loader.Program
	hereOn, thereOn     string // interfaces
	hereFrom            string
}

func (c conversation) frame(r *rig, forth bool, flags string, payload int) Frame {
	if forth {
		p := r.ip(c.hereOn, c.here, c.there).TCP(4000, 80, flags).Payload(payload)
		return Frame{Hook: c.hereHook, Packet: p, On: c.hereOn, From: c.hereFrom}
	}
	p := r.ip(c.thereOn, c.there, c.here).TCP(80, 4000, flags).Payload(payload)
	return Frame{Hook: c.thereHook, Packet: p, On: c.thereOn}
}

// open makes the connection known as established.
func (c conversation) open(r *rig) []Frame {
	return []Frame{c.frame(r, true, "S", 0), c.frame(r, false, "SA", 0), c.frame(r, true, "A", 0)}
}

func (c conversation) forth(r *rig) []Frame { return []Frame{c.frame(r, true, "A", 10)} }
func (c conversation) back(r *rig) []Frame  { return []Frame{c.frame(r, false, "A", 10)} }

func fromA(src, dst string) conversation {
	return conversation{
		here: src, there: dst, hereHook: loader.FromWorkload, hereOn: "a",
		thereHook: loader.FromNetwork, thereOn: "uplink",
	}
}

func local(src, dst string) conversation {
	c := fromA(src, dst)
	c.thereHook, c.thereOn = loader.FromWorkload, "b"
	return c
}

// paths are those of established connections and of what is dropped at once.
func paths() []Scenario {
	local4, local6 := local(a4, b4), local(a6, b6)
	plain, plainOver6 := fromA(a4, plain4), fromA(a6, plain6)
	return []Scenario{
		{Name: "established/local/v4", About: "between two workloads of this host, IPv4",
			Tables: noPolicy, Before: local4.open, Packets: local4.forth, Want: "pass_to_workload", Goal: 3.1},
		{Name: "established/local/v6", About: "the same, IPv6",
			Tables: noPolicy, Before: local6.open, Packets: local6.forth, Want: "pass_to_workload", Goal: 3.1},
		{Name: "established/local/reply", About: "the answers, IPv4",
			Tables: noPolicy, Before: local4.open, Packets: local4.back, Want: "pass_to_workload", Goal: 3.1},
		{Name: "established/remote/plain/v4", About: "to a workload of another node, not encapsulated",
			Tables: noPolicy, Before: plain.open, Packets: plain.forth, Want: "pass_to_node"},
		{Name: "established/remote/plain/v6", About: "the same, IPv6",
			Tables: noPolicy, Before: plainOver6.open, Packets: plainOver6.forth, Want: "pass_to_node"},
		{Name: "established/remote/plain/reply", About: "from a workload of another node, not encapsulated",
			Tables: noPolicy, Before: plain.open, Packets: plain.back, Want: "pass_to_workload"},
	}
}
