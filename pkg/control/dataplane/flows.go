package dataplane

import (
	"errors"
	"net/netip"
	"time"

	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"
)

// Flow is one flow that the kernel's tables hold.
type Flow struct {
	// Packet is the first packet, as it was judged: its source has opened the flow. Of
	// ICMP the source port is 0 and the destination port type<<8|code.
	Packet policy.Packet
	State  FlowState
	Reason string // why it is cut; empty if it is not
	Rules  []Rule // that judged it
	// Local says which end has a local workload endpoint: source, destination.
	Local   [2]bool
	NextHop NextHop       // towards the end that is not local
	Idle    time.Duration // since its last packet, as far as known
	// Outdated says that something has changed since it was judged: its next packet has
	// it judged again.
	Outdated bool
}

// FlowState is how far a flow has come.
type FlowState string

const (
	FlowNew         FlowState = "new"         // no answer yet
	FlowAnswered    FlowState = "answered"    // the opener has not shown yet that it is real
	FlowEstablished FlowState = "established" // both ends have spoken
	FlowClosing     FlowState = "closing"     // one of them, or both, have ended it
)

// errEnough ends going through a table.
var errEnough = errors.New("enough")

// Flows calls yield with all flows, in no order, until it returns false. Packets go on
// meanwhile: a flow that comes, goes or is confirmed may be left out.
func (d *Dataplane) Flows(yield func(Flow) bool) error {
	at, err := d.flowTime()
	if err != nil {
		return err
	}
	for _, table := range []kernel.Table[kernel.FlowKey, kernel.Flow]{d.kernel.Flows, d.kernel.NewFlows} {
		err := table.Each(func(keys []kernel.FlowKey, flows []kernel.Flow) error {
			for i := range keys {
				if !yield(d.flow(&keys[i], &flows[i], at)) {
					return errEnough
				}
			}
			return nil
		})
		if errors.Is(err, errEnough) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// FlowOf returns the flow of a packet, whichever end sends it; false if there is none.
// That of an ICMP echo has its id in both ports.
func (d *Dataplane) FlowOf(p policy.Packet) (Flow, bool, error) {
	key := kernel.NewFlowKey(netip.AddrPortFrom(p.Source, p.SourcePort), netip.AddrPortFrom(p.Destination, p.DestinationPort), p.Protocol)
	for _, table := range []kernel.Table[kernel.FlowKey, kernel.Flow]{d.kernel.Flows, d.kernel.NewFlows} {
		flow, ok, err := table.Get(key)
		if err != nil {
			return Flow{}, false, err
		}
		if !ok {
			continue
		}
		at, err := d.flowTime()
		return d.flow(&key, &flow, at), true, err
	}
	return Flow{}, false, nil
}

// flowTime is the moment that flows are looked at.
type flowTime struct {
	now, hz     uint64            // jiffies, and how many are a second; 0: not known
	generations map[uint32]uint32 // of endpoints that were looked up, by slot
}

func (d *Dataplane) flowTime() (at flowTime, err error) {
	// The clock is the programs'.
	x, err := d.Explain(Question{Packet: policy.Packet{Source: netip.IPv4Unspecified(), Destination: netip.IPv4Unspecified()}})
	return flowTime{now: x.now, hz: d.sweep.hz.Load(), generations: make(map[uint32]uint32)}, err
}

// generation is that of an endpoint.
func (d *Dataplane) generation(slot uint32, at flowTime) uint32 {
	g, known := at.generations[slot]
	if !known {
		e, _, err := d.kernel.Endpoints.Get(slot)
		if err != nil {
			return 0 // a slot that the table does not have: its flows are judged again
		}
		g = e.Generation
		at.generations[slot] = g
	}
	return g
}

func (d *Dataplane) flow(key *kernel.FlowKey, raw *kernel.Flow, at flowTime) Flow {
	f := Flow{
		Packet: policy.Packet{
			Source: key.A.Addr(), Destination: key.B.Addr(), Protocol: key.Protocol,
			SourcePort: kernel.BigEndian16(key.A_port), DestinationPort: kernel.BigEndian16(key.B_port),
		},
		Local: [2]bool{raw.Slots[0] != 0, raw.Slots[1] != 0},
		Rules: d.rulesOf(raw.Rules[:]), NextHop: nextHop(raw.NextHop),
	}
	state := kernel.FlowState(raw.State)
	if state&kernel.FlowAOpened == 0 {
		p := &f.Packet
		p.Source, p.Destination = p.Destination, p.Source
		p.SourcePort, p.DestinationPort = p.DestinationPort, p.SourcePort
		f.Local[0], f.Local[1] = f.Local[1], f.Local[0]
	}
	if key.Protocol == protocolICMP || key.Protocol == protocolICMPv6 {
		f.Packet.SourcePort, f.Packet.DestinationPort = 0, raw.Opening
	}
	switch {
	case state&(kernel.FlowClosedA|kernel.FlowClosedB) != 0:
		f.State = FlowClosing
	case state&kernel.FlowConfirmed != 0:
		f.State = FlowEstablished
	case state&kernel.FlowReplied != 0:
		f.State = FlowAnswered
	default:
		f.State = FlowNew
	}
	if state&kernel.FlowDenied != 0 {
		f.Reason = d.kernel.ReasonName(raw.DeniedBy)
	}
	if at.now > raw.LastSeen && at.hz > 0 {
		f.Idle = time.Duration(at.now-raw.LastSeen) * time.Second / time.Duration(at.hz)
	}
	for end, slot := range raw.Slots {
		f.Outdated = f.Outdated || d.generation(slot, at) != raw.Generations[end]
	}
	return f
}
