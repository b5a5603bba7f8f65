package dataplane

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"
)

// endpoints keeps the table of local endpoints. A slot's generation only ever
// grows, also when the slot changes hands: it is what tells flows that they have to
// be judged again.
type endpoints struct {
	table   kernel.Table[uint32, kernel.Endpoint]
	records map[uint32]kernel.Endpoint
	slots   map[api.Key]uint32
	rules   map[uint32]policy.Rulesets // what a slot was judged by; absent after a restart
	homes   map[kernel.Address]uint32  // slot of each address, of the last round
}

func newEndpoints(t kernel.Table[uint32, kernel.Endpoint]) *endpoints {
	return &endpoints{table: t, slots: make(map[api.Key]uint32), rules: make(map[uint32]policy.Rulesets)}
}

// load reads the table back.
func (e *endpoints) load() (err error) {
	e.records, err = e.table.Load()
	return err
}

// used are the rulesets that records refer to.
func (e *endpoints) used() (bases []uint32) {
	for _, r := range e.records {
		for _, base := range []uint32{r.Egress, r.Ingress, r.StagedEgress, r.StagedIngress} {
			if base != 0 {
				bases = append(bases, base)
			}
		}
	}
	return bases
}

// free finds slots for endpoints that have none.
type free struct {
	owned       map[uint32]bool
	byInterface map[uint32]uint32 // slots that a former process gave
	next        uint32
}

func (e *endpoints) free() *free {
	f := &free{owned: make(map[uint32]bool, len(e.slots)), byInterface: make(map[uint32]uint32), next: 1}
	for _, s := range e.slots {
		f.owned[s] = true
	}
	for s, r := range e.records {
		if s != 0 && !f.owned[s] && r.Ifindex != 0 {
			f.byInterface[r.Ifindex] = s
		}
	}
	return f
}

// slot is the one that a former process gave an endpoint's interface, or a free one.
func (f *free) slot(want desired.Endpoint, records map[uint32]kernel.Endpoint) uint32 {
	s, ok := f.byInterface[uint32(want.Ifindex)]
	if !ok || f.owned[s] {
		for f.owned[f.next] || records[f.next].Ifindex != 0 {
			f.next++ // it may be one for which the table has to grow
		}
		s = f.next
	}
	f.owned[s] = true
	return s
}

// taken is how many slots the table has to have.
func (e *endpoints) taken() int {
	top := uint32(0)
	for s, r := range e.records {
		if r.Ifindex != 0 {
			top = max(top, s)
		}
	}
	return int(top) + 1
}

// hints says who has and wants which ruleset.
func (e *endpoints) hints(w *desired.Dataplane) map[hint]int {
	out := make(map[hint]int)
	byInterface := make(map[uint32]kernel.Endpoint, len(e.records))
	for s, r := range e.records {
		if s != 0 {
			byInterface[r.Ifindex] = r
		}
	}
	for key, want := range w.Endpoints {
		r, rules := byInterface[uint32(want.Ifindex)], w.Policy.Endpoints[key]
		if s, known := e.slots[key]; known {
			r = e.records[s]
		}
		out[hint{r.Egress, rules.Egress}]++
		out[hint{r.Ingress, rules.Ingress}]++
		out[hint{r.StagedEgress, rules.StagedEgress}]++
		out[hint{r.StagedIngress, rules.StagedIngress}]++
	}
	return out
}

// ensure writes each endpoint's record: one write switches both policies. A record
// that judges otherwise than before gets a new generation. failing gets the endpoints
// that could not be taken up whole.
func (e *endpoints) ensure(w *desired.Dataplane, in placed, failing desired.EndpointErrors) {
	var fresh []desired.Endpoint
	for key, want := range w.Endpoints {
		if len(want.Addresses) == 0 {
			continue // closed: nothing it sends has a known source
		}
		if s, ok := e.slots[key]; ok {
			e.ensureOne(want, s, w.Policy.Endpoints[key], in, failing)
		} else {
			fresh = append(fresh, want)
		}
	}
	if len(fresh) == 0 {
		return
	}
	slices.SortFunc(fresh, func(a, b desired.Endpoint) int { return compareKeys(a.Key, b.Key) })
	free := e.free()
	for _, want := range fresh {
		e.ensureOne(want, free.slot(want, e.records), w.Policy.Endpoints[want.Key], in, failing)
	}
}

// ensureOne writes the record of an endpoint that has these rulesets.
func (e *endpoints) ensureOne(want desired.Endpoint, s uint32, rules policy.Rulesets, in placed, failing desired.EndpointErrors) {
	// A ruleset that is not in the kernel is 0, which drops; a staged one counts
	// nothing then, and nothing fails.
	if err := errors.Join(in.failed[rules.Egress], in.failed[rules.Ingress]); err != nil {
		failing[want.Key] = err
	}
	record := kernel.Endpoint{
		Egress: in.bases[rules.Egress], Ingress: in.bases[rules.Ingress],
		StagedEgress: in.bases[rules.StagedEgress], StagedIngress: in.bases[rules.StagedIngress],
		Ifindex: uint32(want.Ifindex), Mac: want.MAC, HostMac: want.HostMAC,
	}
	if want.Veth {
		record.Flags |= kernel.EndpointVeth
	}
	if want.MAC != (desired.MAC{}) {
		record.Flags |= kernel.EndpointMAC
	}
	was, known := e.records[s], false
	record.Generation = was.Generation
	if have, ok := e.slots[want.Key]; ok && have == s {
		_, known = e.rules[s]
	}
	switch {
	case in.touched[rules.Egress] || in.touched[rules.Ingress],
		in.touched[rules.StagedEgress] || in.touched[rules.StagedIngress],
		known && e.rules[s] != rules,
		!known && !sameBases(was, record),
		(was.Egress == 0) != (record.Egress == 0) || (was.Ingress == 0) != (record.Ingress == 0),
		(was.StagedEgress == 0) != (record.StagedEgress == 0) || (was.StagedIngress == 0) != (record.StagedIngress == 0),
		was.Ifindex != record.Ifindex || was.Mac != record.Mac || was.Flags != record.Flags:
		record.Generation++
	}
	if record != was {
		if err := e.put(s, record); err != nil {
			failing[want.Key] = err
			return
		}
	}
	e.slots[want.Key] = s
	e.rules[s] = rules
}

func sameBases(a, b kernel.Endpoint) bool {
	return a.Egress == b.Egress && a.Ingress == b.Ingress && a.StagedEgress == b.StagedEgress && a.StagedIngress == b.StagedIngress
}

func (e *endpoints) put(s uint32, r kernel.Endpoint) error {
	if err := e.table.Put(s, r); err != nil {
		return err
	}
	e.records[s] = r
	return nil
}

// bump makes all flows of a slot be judged again. Slot 0 is that of everything
// that is no local workload.
func (e *endpoints) bump(s uint32) error {
	r := e.records[s]
	r.Generation++
	return e.put(s, r)
}

// addresses are the wanted addresses with their slots.
func (e *endpoints) addresses(w *desired.Dataplane) map[kernel.Address]uint32 {
	out := make(map[kernel.Address]uint32, len(w.Endpoints))
	for key, want := range w.Endpoints {
		if s, ok := e.slots[key]; ok {
			for _, a := range want.Addresses {
				out[kernel.NewAddress(a)] = s
			}
		}
	}
	return out
}

// moved makes the flows of those slots be judged again that have lost an address:
// to another slot, or, with gone, to nobody.
func (e *endpoints) moved(homes map[kernel.Address]uint32, gone bool) error {
	losers := make(map[uint32]bool)
	for a, s := range e.homes {
		if to, stays := homes[a]; to != s && stays != gone {
			losers[s] = true
		}
	}
	if gone {
		e.homes = homes
	}
	var errs []error
	for s := range losers {
		errs = append(errs, e.bump(s))
	}
	return errors.Join(errs...)
}

// prune frees the slots of endpoints that are not wanted. The generation stays
// with the slot.
func (e *endpoints) prune(w *desired.Dataplane) error {
	kept := make(map[uint32]bool)
	for key, s := range e.slots {
		if want, ok := w.Endpoints[key]; ok && len(want.Addresses) > 0 {
			kept[s] = true
		} else {
			delete(e.slots, key)
		}
	}
	var errs []error
	for s, r := range e.records {
		if s == 0 || kept[s] || r.Ifindex == 0 {
			continue
		}
		delete(e.rules, s)
		errs = append(errs, e.put(s, kernel.Endpoint{Generation: r.Generation + 1}))
	}
	return errors.Join(errs...)
}

func compareKeys(a, b api.Key) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

func equalPrefixes(a, b []netip.Prefix) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.SortFunc(a, netip.Prefix.Compare)
	slices.SortFunc(b, netip.Prefix.Compare)
	return slices.Equal(a, b)
}
