package maps

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// placeFlows gives the programs the table of flows, unless they have one.
func (m *Maps) placeFlows() error {
	tables, now := m.all[bpfMapFlowTables], uint32(bpfFlowTablesFLOWS_NOW)
	var inner uint32 // the table's id
	err := tables.Lookup(now, &inner)
	if err == nil {
		return nil
	}
	if !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("map %s: %w", bpfMapFlowTables, err)
	}
	if err := tables.Put(now, m.all[bpfMapFlows]); err != nil {
		return fmt.Errorf("map %s: %w", bpfMapFlowTables, err)
	}
	return nil
}
