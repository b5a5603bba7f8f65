package dataplane

import (
	"errors"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/control/reconcile"
	kernel "calico-xdp/pkg/maps"
)

// sourceBits are the bits of a source_key in front of the address.
const sourceBits = 32

// sources keeps the table of addresses that workloads may send from besides their own. Flows
// of a workload whose entries change have to be judged again.
type sources struct {
	*reconcile.Tracked[kernel.SourceKey, uint32]
	table   kernel.Table[kernel.SourceKey, uint32]
	touched map[uint32]bool // slots
}

func newSources(d *Dataplane) *sources {
	s := &sources{table: d.kernel.AllowedSources, touched: make(map[uint32]bool)}
	s.Tracked = reconcile.TrackWith(sourceTable{s}, reconcile.Options[uint32]{
		Name: "allowed sources", Logger: d.log, Equal: func(a, b uint32) bool { return a == b },
	})
	return s
}

// sourceTable notes whose entries are written.
type sourceTable struct{ *sources }

func (t sourceTable) Load() (map[kernel.SourceKey]uint32, error) { return t.table.Load() }

func (t sourceTable) Put(k kernel.SourceKey, slot uint32) error {
	t.touched[slot] = true
	return t.table.Put(k, slot)
}

func (t sourceTable) Delete(k kernel.SourceKey) error {
	if slot, there, err := t.table.Get(k); err == nil && there {
		t.touched[slot] = true
	}
	return t.table.Delete(k)
}

// of are the wanted entries, for endpoints that have slots.
func (*sources) of(w *desired.Dataplane, slots map[api.Key]uint32) map[kernel.SourceKey]uint32 {
	out := make(map[kernel.SourceKey]uint32)
	for key, e := range w.Endpoints {
		slot, ok := slots[key]
		if !ok {
			continue
		}
		for _, p := range e.Sources {
			for _, net := range withoutMapped(p) {
				prefix := kernel.NewPrefix(net)
				out[kernel.SourceKey{PrefixLength: sourceBits + prefix.PrefixLength, Ifindex: uint32(e.Ifindex), Bytes: prefix.Bytes}] = slot
			}
		}
	}
	return out
}

// bump has the flows judged again of those whose entries were written.
func (s *sources) bump(e *endpoints) error {
	var errs []error
	for slot := range s.touched {
		if err := e.bump(slot); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(s.touched, slot)
	}
	return errors.Join(errs...)
}
