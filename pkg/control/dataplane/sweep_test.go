package dataplane

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"calico-xdp/pkg/loader"
	kernel "calico-xdp/pkg/maps"
)

// What was never answered does not wait for ever: a late "answer" would pass.
func TestSweepUnanswered(t *testing.T) {
	b := newBed(t)
	timeouts := loader.Timeouts{TCP: time.Hour, TCPClosed: 50 * time.Second, UDP: 40 * time.Second, ICMP: 30 * time.Second, Other: 20 * time.Second, HZ: 1000}
	start, err := b.programs.Sweep(timeouts)
	if err != nil {
		t.Fatal(err)
	}
	for port, flow := range []struct {
		protocol uint8
		ago      uint64 // jiffies
		stays    bool
	}{{tcp, 20_000, true}, {tcp, 51_000, false}, {udp, 20_000, true}, {udp, 41_000, false}, {icmp, 31_000, false}} {
		k := kernel.NewFlowKey(netip.AddrPortFrom(netip.MustParseAddr(w1), uint16(port+1)), netip.MustParseAddrPort(w2+":80"), flow.protocol)
		if err := b.kernel.NewFlows.Put(k, kernel.Flow{LastSeen: start.At - flow.ago}); err != nil {
			t.Fatal(err)
		}
		if _, err := b.programs.Sweep(timeouts); err != nil {
			t.Fatal(err)
		}
		if _, there, err := b.kernel.NewFlows.Get(k); err != nil || there != flow.stays {
			t.Errorf("%s, silent for %d: there %v, want %v (%v)", k, flow.ago, there, flow.stays, err)
		}
	}
}

// The sweep removes what has been silent for too long for its protocol and state.
func TestSweep(t *testing.T) {
	b := newBed(t)
	const hz = 1000
	timeouts := loader.Timeouts{TCP: 60 * time.Second, TCPClosed: 50 * time.Second, UDP: 40 * time.Second, ICMP: 30 * time.Second, Other: 20 * time.Second, HZ: hz}
	never := loader.Timeouts{TCP: time.Hour, TCPClosed: time.Hour, UDP: time.Hour, ICMP: time.Hour, Other: time.Hour, HZ: hz}
	start, err := b.programs.Sweep(never)
	if err != nil {
		t.Fatal(err)
	}
	var removed, kept uint32
	gone := make(map[kernel.FlowKey]bool)
	port := uint16(0)
	for _, test := range []struct {
		protocol uint8
		state    kernel.FlowState
		seconds  uint64
	}{
		{tcp, 0, 60}, {tcp, kernel.FlowDenied, 60}, {tcp, kernel.FlowClosedA, 50}, {tcp, kernel.FlowClosedB, 50}, {tcp, kernel.FlowClosedA | kernel.FlowClosedB, 50},
		{udp, 0, 40}, {136, 0, 40}, {icmp, 0, 30}, {58, 0, 30}, {132, 0, 20}, {47, 0, 20},
	} {
		for ago, lives := range map[uint64]bool{0: true, test.seconds*hz - 30*hz/2: true, test.seconds*hz + 1: false, test.seconds * hz * 3: false} {
			port++
			k := kernel.NewFlowKey(netip.AddrPortFrom(netip.MustParseAddr(w1), port), netip.MustParseAddrPort(w2+":80"), test.protocol)
			if err := b.kernel.Flows.Put(k, kernel.Flow{LastSeen: start.At - ago, State: uint32(test.state | kernel.FlowConfirmed)}); err != nil {
				t.Fatal(err)
			}
			gone[k] = !lives
			if lives {
				kept++
			} else {
				removed++
			}
		}
	}
	r, err := b.programs.Sweep(timeouts)
	if err != nil {
		t.Fatal(err)
	}
	if r.Removed != removed || r.Kept != kept {
		t.Errorf("removed %d and kept %d, want %d and %d", r.Removed, r.Kept, removed, kept)
	}
	for k, want := range gone {
		if _, there, err := b.kernel.Flows.Get(k); err != nil || there == want {
			t.Errorf("%s: there %v %v", k, there, err)
		}
	}
}

// A flow that is denied lives as long as its packets come: were it forgotten, the
// next answer would pass for a new flow.
func TestDeniedFlowsAreNotForgotten(t *testing.T) {
	b := newBed(t)
	for _, waiting := range []bool{false, true} {
		for _, protocol := range []uint8{udp, tcp} {
			d := dialog{b, w1, w2, protocol}
			d.establish(t)
			if waiting {
				b.forget(t)
				want(t, d.there(t, "S"), fine)
			}
			b.may(t, first, deny, allow)
			want(t, d.there(t, "A"), "shot drop_egress_policy")
			_, f := d.flow(t)
			f.LastSeen -= 100_000
			table := b.kernel.Flows
			if waiting {
				table = b.kernel.NewFlows
			}
			if err := table.Put(d.key(), f); err != nil {
				t.Fatal(err)
			}
			old := f.LastSeen
			want(t, d.back(t, "A"), "shot drop_egress_policy")
			if _, f := d.flow(t); f.LastSeen <= old {
				t.Errorf("protocol %d, waiting %v: last seen %d jiffies before", protocol, waiting, 100_000)
			}
			b.may(t, first, allow, allow)
		}
	}
}

// Flows that nobody answers do not displace those that are established.
func TestHalfOpenFlowsDisplaceNothing(t *testing.T) {
	b := newBed(t)
	dialogs := []dialog{{b, w1, w2, tcp}, {b, w5, w6, udp}, {b, w2, w3, icmp}}
	b.forget(t)
	for _, d := range dialogs {
		want(t, d.there(t, "S"), fine)
		want(t, d.back(t, "SA"), fine)
		want(t, d.there(t, "A"), fine)
	}
	raw := frame(w1, w2).TCP(1, 1, "S").Bytes()
	c := loader.Context{Ifindex: uint32(b.index["cali1"])}
	err := b.host.Do(func() error {
		for i := range uint32(200_000) {
			binary.BigEndian.PutUint32(raw[34:], 0x10000000+i) // both ports
			if r, err := b.programs.Run(loader.FromWorkload, raw, c); err != nil || r.Return != 7 {
				return fmt.Errorf("packet %d: %d %w", i, r.Return, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dialogs {
		d.want(t, "established")
		want(t, d.back(t, "A"), fine)
	}
	all, err := b.kernel.Flows.Load()
	if err != nil || len(all) != len(dialogs) {
		t.Errorf("%d established flows, %v", len(all), err)
	}
	waiting, err := b.kernel.NewFlows.Load()
	if err != nil || len(waiting) == 0 || len(waiting) > b.kernel.NewFlows.Capacity() {
		t.Errorf("%d waiting flows, %v", len(waiting), err)
	}
}
