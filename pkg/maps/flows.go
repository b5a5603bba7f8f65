package maps

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// flowPlaces are the ids of the tables in flow_tables; 0: none. They alone say how far
// the replacing of a table has come, so a process can go on with what a former one has
// begun. O is the old table, N the new one; see flow_tables in maps.h.
//
//	now else last
//	 O    -    -    nothing is being replaced
//	 O    N    -
//	 O    N    O
//	 N    N    O    from here on, N is Maps.Flows
//	 N    O    O    until all flows are in N
//	 N    -    O
//	 N    -    -
type flowPlaces struct{ now, other, last ebpf.MapID }

const (
	flowsNow  = uint32(bpfFlowTablesFLOWS_NOW)
	flowsElse = uint32(bpfFlowTablesFLOWS_ELSE)
	flowsLast = uint32(bpfFlowTablesFLOWS_LAST)
)

func (m *Maps) flowPlaces() (p flowPlaces, err error) {
	for at, id := range map[uint32]*ebpf.MapID{flowsNow: &p.now, flowsElse: &p.other, flowsLast: &p.last} {
		err := m.all[bpfMapFlowTables].use(func(tables *ebpf.Map) error {
			err := tables.Lookup(at, id)
			if errors.Is(err, ebpf.ErrKeyNotExist) {
				return nil
			}
			return err
		})
		if err != nil {
			return p, err
		}
	}
	return p, nil
}

// putFlows puts a table into flow_tables. When it returns no program uses the one any
// more that stood there: the kernel waits for them.
func (m *Maps) putFlows(at uint32, table *ebpf.Map) error {
	return m.all[bpfMapFlowTables].use(func(tables *ebpf.Map) error { return tables.Put(at, table) })
}

func (m *Maps) removeFlows(at uint32) error {
	return m.all[bpfMapFlowTables].use(func(tables *ebpf.Map) error { return tables.Delete(at) })
}

// placeFlows gives the programs the table of flows, or finds the one that they have:
// whose pin may not have come that far. What a former process has begun goes on until
// only the copying is left, which StepFlows does.
func (m *Maps) placeFlows() error {
	p, err := m.flowPlaces()
	if err != nil {
		return err
	}
	if p.now == 0 {
		return m.all[bpfMapFlows].use(func(flows *ebpf.Map) error { return m.putFlows(flowsNow, flows) })
	}
	if err := m.useFlows(p.now); err != nil {
		return err
	}
	for p.other != 0 && p.other != p.last {
		if _, err := m.StepFlows(); err != nil {
			return err
		}
		if p, err = m.flowPlaces(); err != nil {
			return err
		}
	}
	return nil
}

// useFlows makes the table with this id Maps.Flows, and pins it as that.
func (m *Maps) useFlows(id ebpf.MapID) error {
	h := m.all[bpfMapFlows]
	var same bool
	err := h.use(func(present *ebpf.Map) error {
		info, err := present.Info()
		if err != nil {
			return err
		}
		have, ok := info.ID()
		same = ok && have == id
		return nil
	})
	if err != nil || same {
		return err
	}
	table, err := ebpf.NewMapFromID(id)
	if err != nil {
		return fmt.Errorf("map %s: %w", bpfMapFlows, err)
	}
	if m.dir != "" {
		if err := repin(table, m.dir, bpfMapFlows); err != nil {
			return errors.Join(err, table.Close())
		}
	}
	m.growing.Lock()
	defer m.growing.Unlock()
	return h.become(table)
}

// GrowFlows begins to replace the table of flows by one with that many entries; StepFlows
// goes on. The flows stay, and no packet of theirs misses them. One goroutine may call
// these two.
func (m *Maps) GrowFlows(entries int) error {
	p, err := m.flowPlaces()
	if err != nil {
		return err
	}
	if p.other != 0 || p.last != 0 {
		return fmt.Errorf("map %s: it is being replaced already", bpfMapFlows)
	}
	larger, err := m.alike(bpfMapFlows, entries)
	if err != nil {
		return fmt.Errorf("map %s with %d entries: %w", bpfMapFlows, entries, err)
	}
	return errors.Join(m.putFlows(flowsElse, larger), larger.Close())
}

// StepFlows goes one step further in replacing the table of flows, and says whether
// there are more. It is ErrFull as long as the new table has no room for all that the old
// one holds.
func (m *Maps) StepFlows() (more bool, err error) {
	p, err := m.flowPlaces()
	if err != nil {
		return false, err
	}
	with := func(id ebpf.MapID, fn func(*ebpf.Map) error) error {
		table, err := ebpf.NewMapFromID(id)
		if err != nil {
			return fmt.Errorf("map %s: %w", bpfMapFlows, err)
		}
		return errors.Join(fn(table), table.Close())
	}
	switch {
	case p.other == 0 && p.last == 0:
		return false, nil
	case p.last == 0:
		err = with(p.now, func(old *ebpf.Map) error { return m.putFlows(flowsLast, old) })
	case p.now == p.last:
		err = with(p.other, func(larger *ebpf.Map) error { return m.putFlows(flowsNow, larger) })
	case p.now == p.other:
		if err = m.useFlows(p.now); err == nil {
			err = with(p.last, func(old *ebpf.Map) error { return m.putFlows(flowsElse, old) })
		}
	case p.other != 0:
		err = with(p.last, func(old *ebpf.Map) error {
			return m.all[bpfMapFlows].use(func(larger *ebpf.Map) error { return copyFlows(larger, old) })
		})
		if err == nil {
			err = m.removeFlows(flowsElse)
		}
	default:
		// The table stays open until the last program that has found it is done.
		return false, with(p.last, func(*ebpf.Map) error { return m.removeFlows(flowsLast) })
	}
	return true, err
}

// copyFlows gives the new table the flows that have not come over by themselves, while
// programs use both: what the new one has is newer.
func copyFlows(larger, old *ebpf.Map) error {
	return entries(old, func(keys []FlowKey, flows []Flow) error {
		for i := range keys {
			var err error
			if FlowState(flows[i].State)&(FlowClosedA|FlowClosedB) != 0 {
				err = copyClosed(larger, old, &keys[i])
			} else {
				_, err = addFlow(larger, &keys[i], &flows[i])
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// addFlow adds a flow, unless it is there.
func addFlow(table *ebpf.Map, key *FlowKey, flow *Flow) (added bool, err error) {
	err = table.Update(key, flow, ebpf.UpdateNoExist)
	switch {
	case errors.Is(err, ebpf.ErrKeyExist):
		return false, nil
	case errors.Is(err, unix.E2BIG):
		return false, ErrFull
	}
	return err == nil, err
}

// copyClosed copies a flow that programs may remove meanwhile, since it can start over:
// out of the old table first, then out of the new one. It must not come back.
func copyClosed(larger, old *ebpf.Map, key *FlowKey) error {
	var flow Flow
	err := old.Lookup(key, &flow)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if added, err := addFlow(larger, key, &flow); !added {
		return err
	}
	if err = old.Lookup(key, &flow); !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	if err = larger.Delete(key); errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}
