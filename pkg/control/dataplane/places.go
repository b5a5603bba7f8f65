package dataplane

import (
	"errors"
	"log/slog"
	"net/netip"
	"sync/atomic"

	kernel "calico-xdp/pkg/maps"
)

// places keeps the kernel's place_nodes: what the tables workloads and routes say of IPv4
// addresses, once more. It follows what is put into them.
type places struct {
	trie      *addressTrie
	log       *slog.Logger
	workloads map[netip.Prefix]uint32 // slots
	routes    map[netip.Prefix]bool
	// wide are the IPv6 prefixes of routes that all IPv4 addresses are part of as the
	// kernel's tables have them.
	wide  map[netip.Prefix]bool
	built bool          // in the kernel
	drift atomic.Uint64 // times that someone else had changed it
}

func newPlaces(k *kernel.Maps, log *slog.Logger) *places {
	return &places{trie: newAddressTrie(k.PlaceNodes), log: log}
}

var (
	everywhere  = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	firstMapped = netip.AddrFrom16([16]byte{10: 0xff, 11: 0xff})
)

// at is the number of a prefix, if it has one of its own.
func (p *places) at(prefix netip.Prefix) (uint32, bool) {
	if slot, ok := p.workloads[prefix]; ok {
		return uint32(kernel.PlaceWorkload) + slot, true
	}
	if p.routes[prefix] || (prefix == everywhere && len(p.wide) > 0) {
		return uint32(kernel.PlaceRoute), true
	}
	return uint32(kernel.PlaceElsewhere), prefix == everywhere
}

// all are the prefixes with numbers of their own.
func (p *places) all() map[netip.Prefix]uint32 {
	out := make(map[netip.Prefix]uint32, len(p.workloads)+len(p.routes)+1)
	for prefix := range p.routes {
		out[prefix], _ = p.at(prefix)
	}
	for prefix := range p.workloads {
		out[prefix], _ = p.at(prefix)
	}
	out[everywhere], _ = p.at(everywhere)
	return out
}

// update brings the number of a prefix into the kernel.
func (p *places) update(prefix netip.Prefix) error {
	if !p.built {
		return nil
	}
	if n, ok := p.at(prefix); ok {
		p.trie.put(prefix, n)
		return p.trie.flush()
	}
	for bits := prefix.Bits() - 1; bits >= 0; bits-- {
		if n, ok := p.at(netip.PrefixFrom(prefix.Addr(), bits).Masked()); ok {
			p.trie.remove(prefix, n, bits)
			break
		}
	}
	return p.trie.flush()
}

// reload makes the trie what the tables are, when one has been read.
func (p *places) reload(before map[netip.Prefix]uint32) error {
	if p.workloads == nil || p.routes == nil {
		return nil
	}
	if !p.built {
		p.built = true
		return p.trie.build(p.all())
	}
	var errs []error
	after := p.all()
	for prefix, n := range after {
		if was, ok := before[prefix]; !ok || was != n {
			errs = append(errs, p.update(prefix))
		}
	}
	for prefix := range before {
		if _, stays := after[prefix]; !stays {
			errs = append(errs, p.update(prefix))
		}
	}
	nodes, err := p.trie.repair()
	if nodes > 0 {
		p.drift.Add(1)
		p.log.Warn("places of addresses were changed by someone else", "nodes", nodes)
	}
	return errors.Join(append(errs, err)...)
}

// workloadTable is the table workloads, with places.
type workloadTable struct {
	kernel.Table[kernel.Address, uint32]
	places *places
}

// single is the prefix of an IPv4 address.
func single(a kernel.Address) (netip.Prefix, bool) {
	addr := a.Addr()
	return netip.PrefixFrom(addr, addr.BitLen()), addr.Is4()
}

func (t workloadTable) Load() (map[kernel.Address]uint32, error) {
	slots, err := t.Table.Load()
	if err != nil {
		return nil, err
	}
	before := t.places.all()
	t.places.workloads = make(map[netip.Prefix]uint32, len(slots))
	for a, slot := range slots {
		if p, ok := single(a); ok {
			t.places.workloads[p] = slot
		}
	}
	return slots, t.places.reload(before)
}

func (t workloadTable) Put(a kernel.Address, slot uint32) error {
	err := t.Table.Put(a, slot)
	if p, ok := single(a); ok && err == nil && t.places.workloads != nil {
		t.places.workloads[p] = slot
		err = t.places.update(p)
	}
	return err
}

func (t workloadTable) Delete(a kernel.Address) error {
	err := t.Table.Delete(a)
	if p, ok := single(a); ok && err == nil {
		delete(t.places.workloads, p)
		err = t.places.update(p)
	}
	return err
}

// routeTable is the table routes, with places.
type routeTable struct {
	kernel.Table[kernel.Prefix, kernel.Route]
	places *places
}

// set notes that there is a route or is none, and says whose number that is; not ok if of
// no IPv4 address.
func (p *places) set(key kernel.Prefix, there bool) (prefix netip.Prefix, ok bool) {
	prefix = key.Prefix()
	set := p.routes
	if !prefix.Addr().Is4() {
		if !prefix.Contains(firstMapped) {
			return prefix, false
		}
		set = p.wide
	}
	if there {
		set[prefix] = true
	} else {
		delete(set, prefix)
	}
	if !prefix.Addr().Is4() {
		prefix = everywhere
	}
	return prefix, true
}

func (t routeTable) Load() (map[kernel.Prefix]kernel.Route, error) {
	routes, err := t.Table.Load()
	if err != nil {
		return nil, err
	}
	before := t.places.all()
	t.places.routes, t.places.wide = make(map[netip.Prefix]bool, len(routes)), make(map[netip.Prefix]bool)
	for key := range routes {
		t.places.set(key, true)
	}
	return routes, t.places.reload(before)
}

func (t routeTable) Put(key kernel.Prefix, route kernel.Route) error {
	err := t.Table.Put(key, route)
	if err == nil && t.places.routes != nil {
		if p, ok := t.places.set(key, true); ok {
			err = t.places.update(p)
		}
	}
	return err
}

func (t routeTable) Delete(key kernel.Prefix) error {
	err := t.Table.Delete(key)
	if err == nil {
		if p, ok := t.places.set(key, false); ok {
			err = t.places.update(p)
		}
	}
	return err
}
