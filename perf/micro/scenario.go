// Package micro times single paths through the loaded programs with BPF_PROG_TEST_RUN:
// the real programs, on tables that the real sinks have filled, one packet buffer,
// nothing else.
package micro

import (
	"slices"

	"calico-xdp/pkg/loader"
	"calico-xdp/tools/testbed"
)

// Scenario is one path: on which tables, what comes, what becomes of it, and what it
// is compared with.
type Scenario struct {
	Name  string
	About string
	// Tables are the resources that it runs on.
	Tables Tables
	// Before are packets that come first, once; Packets those that are timed, in turn,
	// all at one hook.
	Before, Packets func(*rig) []Frame
	// Want is how each of Packets is counted: the name of an enum reason.
	Want string
	// Once is set where a run leaves the packet so that the next run on the same buffer
	// would be another case. Every run is a system call of its own then, on colder
	// caches; what that adds is found by measuring Like, a scenario before it on the same
	// tables, both ways.
	Once bool
	Like string
	// Roomy is set where, besides, the program pushes a header: its packets, and those of
	// Like, have room for it, as those that a workload sends.
	Roomy bool
	// Fresh is set where, besides, a packet is that case only the first time. There have
	// to be enough of them.
	Fresh bool
	// Of and Baseline are other scenarios where this one is nothing but their ratio. By
	// default the baseline is a program of the same type that does nothing.
	Of, Baseline string
	// Full is set for those that a short run leaves out.
	Full bool
	// Goal is the most that the ratio to the baseline may be; 0 for none.
	Goal float64
}

// Frame is a packet as it is seen at a hook.
type Frame struct {
	Hook   loader.Program
	Packet testbed.Packet
	On     string // the interface, as rig has it
	From   string // the interface it was received on; "" for the host's own
}

// Select are the scenarios that are chosen, and those that they need.
func Select(chosen func(Scenario) bool) []Scenario {
	all := All()
	needed := make(map[string]bool)
	for _, s := range slices.Backward(all) { // what is needed stands before
		if chosen(s) || needed[s.Name] {
			needed[s.Name], needed[s.Of], needed[s.Baseline], needed[s.Like] = true, true, true, true
		}
	}
	return slices.DeleteFunc(all, func(s Scenario) bool { return !needed[s.Name] })
}

// All is every scenario. A baseline stands before what is compared with it.
func All() []Scenario {
	return slices.Concat(paths(), drops(), earliest(), rulesets(), blocklists())
}
