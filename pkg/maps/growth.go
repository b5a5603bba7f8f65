package maps

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"
)

// growable are the tables whose size is not part of the layout.
var growable = []string{
	bpfMapEndpoints, bpfMapWorkloads, bpfMapRoutes, bpfMapPeers, bpfMapHostClasses, bpfMapNetClasses, bpfMapClassNodes, bpfMapPlaceNodes,
	bpfMapRulesetWords, bpfMapHostEndpoints, bpfMapFailsafe, bpfMapAllowedSources, bpfMapNatNets, bpfMapRuleNames, bpfMapRuleCounters, bpfMapFlows,
}

// Growth are larger tables that are about to take the place of those that only the
// daemon writes. Programs know tables, not names, so they have to be loaded anew:
//
//  1. Grow makes the tables and copies into them what the present ones hold
//  2. (the caller) programs are loaded onto Handles, and put on every hook
//  3. (the caller) Behind is added to the counters
//  4. Pin gives each the present one's name
//  5. Use makes it the one that Maps reads and writes
//
// Nobody but programs may write the tables meanwhile. To the programs it is the same whether they
// see the old table or the new one, so a process may end between any two steps: the
// next one finds each table under its name, whole, either this one or that.
type Growth struct {
	maps   *Maps
	made   map[string]*ebpf.Map
	copied []Counter // of rules, summed over CPUs
	pinned []string
}

// Grow makes larger tables, with as many entries as entries says by name. The growth
// has to be ended with Use or Close, before the next one.
func (m *Maps) Grow(entries map[string]int) (*Growth, error) {
	m.growing.Lock()
	g := &Growth{maps: m, made: make(map[string]*ebpf.Map)}
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		if err := g.add(name, entries[name]); err != nil {
			return nil, errors.Join(fmt.Errorf("map %s with %d entries: %w", name, entries[name], err), g.Close())
		}
	}
	return g, nil
}

func (g *Growth) add(name string, entries int) error {
	h := g.maps.all[name]
	if h == nil || h.copy == nil {
		return errors.New("it does not grow")
	}
	return h.use(func(present *ebpf.Map) error {
		if entries < int(present.MaxEntries()) {
			return fmt.Errorf("it has %d already", present.MaxEntries())
		}
		larger, err := g.maps.alike(name, entries)
		if err != nil {
			return err
		}
		g.made[name] = larger
		if err := h.copy(larger, present); err != nil || name != bpfMapRuleCounters {
			return err
		}
		g.copied, err = sums(larger, int(present.MaxEntries()))
		return err
	})
}

// Capacity is how many entries a table may have at most, as it is now.
func (m *Maps) Capacity(table string) int { return m.all[table].capacity() }

// Refused is how many entries there was no room for, ever; of flows, as long as the
// kernel has the tables.
func (m *Maps) Refused(table string) (uint64, error) {
	if table != bpfMapFlows {
		return m.all[table].refused.Load(), nil
	}
	var perCPU []uint64
	if err := m.all[bpfMapFlowsRefused].use(func(em *ebpf.Map) error { return em.Lookup(uint32(0), &perCPU) }); err != nil {
		return 0, err
	}
	var sum uint64
	for _, n := range perCPU {
		sum += n
	}
	return sum, nil
}

// EntryBytes is about what an entry of a table takes in the kernel's memory.
func (m *Maps) EntryBytes(table string) int {
	s := m.spec.Maps[table]
	key, value := int(s.KeySize+7)/8*8, int(s.ValueSize+7)/8*8
	switch s.Type {
	case ebpf.Array:
		return value
	case ebpf.PerCPUArray:
		return value * ebpf.MustPossibleCPU()
	case ebpf.LPMTrie:
		return 2 * (48 + key + value) // there may be as many inner nodes
	default:
		return 64 + key + value // with its share of the buckets
	}
}

// alike makes a table that is not pinned.
func (m *Maps) alike(name string, entries int) (*ebpf.Map, error) {
	s := m.spec.Maps[name].Copy()
	s.MaxEntries, s.Pinning = uint32(entries), ebpf.PinNone
	return ebpf.NewMap(s)
}

// Tables are the names of the tables that grow.
func (g *Growth) Tables() []string { return slices.Sorted(maps.Keys(g.made)) }

// Handles are Maps.Handles with the larger tables.
func (g *Growth) Handles() map[string]*ebpf.Map {
	out := g.maps.Handles()
	maps.Copy(out, g.made)
	return out
}

// Behind are the counts by rule that programs have added to the present table since it was
// copied, and that the larger one lacks.
func (g *Growth) Behind() (map[uint32]Counter, error) {
	if g.made[bpfMapRuleCounters] == nil {
		return nil, nil
	}
	now, err := g.maps.RuleCounters.Load(len(g.copied))
	if err != nil {
		return nil, err
	}
	out := make(map[uint32]Counter)
	for i, c := range now {
		if was := g.copied[i]; c != was {
			out[uint32(i)] = Counter{Packets: c.Packets - was.Packets, Bytes: c.Bytes - was.Bytes}
		}
	}
	return out, nil
}

// Pin puts a larger table where the next process looks for it.
func (g *Growth) Pin(name string) error {
	if g.maps.dir == "" {
		return nil
	}
	g.pinned = append(g.pinned, name)
	return repin(g.made[name], g.maps.dir, name)
}

// Use lets go of the former tables: from here on the larger ones are read and written.
func (g *Growth) Use() error {
	var errs []error
	for name, larger := range g.made {
		errs = append(errs, g.maps.all[name].become(larger))
	}
	g.made = nil
	g.maps.growing.Unlock()
	return errors.Join(errs...)
}

// Close gives the larger tables up, and takes back what Pin has done.
func (g *Growth) Close() error {
	var errs []error
	for _, name := range g.pinned {
		errs = append(errs, g.maps.all[name].use(func(present *ebpf.Map) error {
			return repin(present, g.maps.dir, name)
		}))
	}
	for _, larger := range g.made {
		errs = append(errs, larger.Close())
	}
	g.made = nil
	g.maps.growing.Unlock()
	return errors.Join(errs...)
}
