package dataplane

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/gaissmai/bart"

	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"
)

// classifier keeps the tables that policy.h reads: rulesets, peer classes, port
// classes. It writes in an order in which every packet sees one whole policy:
//
//  1. new rulesets, whole, with rows for all classes
//  2. rows of new classes in the rulesets that are there; one that has no room for them is
//     placed anew, and endpoints refer to it from then on
//  3. ports and addresses get their new classes, or such that stand in for them
//  4. (the caller) endpoints switch to the new rulesets, with a new generation
//  5. what has a class that stands in gets its own
//
// In 3 an address gets a class that the rulesets which are about to be left take for that
// which it had: the new one if that is so, which it is when only rules have changed.
type classifier struct {
	kernel *kernel.Maps
	log    *slog.Logger

	rules   *rules
	extents *extents
	live    map[policy.RulesetID]*ruleset // what the last tables hold
	leaving []*ruleset                    // what endpoints may still refer to
	spare   []uint64                      // the words of one that was left, for the next one
	records records                       // who has which
	between standIns                      // what endpoints switch under

	peers, sources, destinations *numbers
	addresses                    map[netip.Prefix]uint32 // the kernel's classes
	singles                      int                     // of these, those of one address
	unplaced                     map[netip.Prefix]bool   // those that there was no room for
	carriers                     map[uint32]int          // how many addresses carry a class
	trie                         *addressTrie            // of IPv4 addresses, once more
	ports                        []kernel.PortClass      // by kernel.PortIndex

	drift atomic.Uint64 // rulesets that someone else had changed
	// asked is which rulesets endpoints have in the kernel and which they want.
	asked func() (map[hint]int, error)

	// numbered is the last result whose classes have numbers in the kernel, and whose it
	// is; applied that of compiler which is in the kernel whole; 0: unknown.
	numbered   uint64
	numberedBy *policy.Compiler
	applied    uint64
	compiler   *policy.Compiler
	failed     map[policy.RulesetID]error // the rulesets of applied that are not there
	moved      map[policy.RulesetID]bool  // in this round: rules are other ones, or counted otherwise

	// The view that the last tables in the kernel, those of result seen, have of the
	// addresses; nil in the first round.
	before     map[netip.Prefix]policy.PeerClass
	beforeNets *bart.Table[policy.PeerClass]
	seen       uint64
}

func newClassifier(k *kernel.Maps, of records, log *slog.Logger) *classifier {
	words := newExtents(k.Words.Len())
	words.more = func(n int) (int, error) { err := k.Words.Reserve(n); return k.Words.Len(), err }
	rules := newRules(k, log)
	c := &classifier{
		kernel: k, log: log, records: of,
		rules:        rules,
		extents:      words,
		live:         make(map[policy.RulesetID]*ruleset),
		peers:        newNumbers(),
		sources:      newNumbers(),
		destinations: newNumbers(),
		unplaced:     make(map[netip.Prefix]bool),
		trie:         newAddressTrie(k.ClassNodes),
	}
	words.freed = func(r *ruleset) {
		rules.release(r.numbers(), r.without)
	}
	return c
}

// placed is what became of the rulesets: where each is in the kernel, or why it is
// not, and whether it judges some address otherwise than before although it is the
// same.
type placed struct {
	bases   map[policy.RulesetID]uint32
	failed  map[policy.RulesetID]error
	touched map[policy.RulesetID]bool
}

// ensure brings the tables into the kernel, up to the switch of the endpoints. A
// ruleset that there is no room for is no error of the whole.
//
// What the tables say has changed is all that is written, if the kernel has the result
// before whole. Otherwise everything is compared.
func (c *classifier) ensure(t *policy.Tables, now time.Time) (placed, error) {
	c.extents.reap(now)
	c.rules.mend()
	c.reuse(now)
	c.moved = make(map[policy.RulesetID]bool)
	whole := c.applied
	if c.applied = 0; t.Compiler != c.compiler {
		whole = 0
	}
	var touched map[policy.RulesetID]bool
	var err error
	switch {
	case whole != 0 && t.Result == whole:
		err = c.placeChanged(t, [4][]uint32{})
		touched = c.moved
	case whole != 0 && t.Result == whole+1:
		touched, err = c.follow(t)
	default:
		touched, err = c.compare(t)
	}
	in := placed{bases: make(map[policy.RulesetID]uint32, len(c.live)), failed: c.failed, touched: touched}
	if closed := c.withoutRoom(t); len(closed) > 0 {
		maps.Copy(closed, c.failed)
		in.failed = closed
	}
	for id, r := range c.live {
		if in.failed[id] == nil {
			in.bases[id] = uint32(r.base)
		}
	}
	if err == nil {
		c.applied = t.Result
	}
	return in, err
}

// compare makes the kernel's tables what they should be, whatever they are.
func (c *classifier) compare(t *policy.Tables) (touched map[policy.RulesetID]bool, err error) {
	ports := portTable(t)
	c.number(t, ports)
	c.failed = make(map[policy.RulesetID]error)
	used := used(t)
	if c.before == nil {
		if err := c.adoptRulesets(t, used); err != nil {
			return nil, err
		}
	}
	for id, from := range t.Rulesets {
		how, wanted := used[id]
		staged := how == counting
		if r := c.live[id]; r != nil && !wanted {
			wanted, staged = true, r.staged
		}
		if wanted {
			c.note(id, from, staged, c.place(id, from, staged))
		}
	}
	c.leave(t)
	about, written := c.about(), c.writePorts(ports)
	touched, err = c.writeAddresses(t)
	return touched, errors.Join(about, written, err)
}

// about notes which rulesets endpoints are about to leave.
func (c *classifier) about() error {
	asked, err := c.asked()
	used, err2 := c.records.rulesets()
	at := make(map[uint32]*ruleset, len(c.live)+len(c.leaving))
	for _, r := range c.live {
		at[uint32(r.base)] = r
	}
	for _, r := range c.leaving {
		at[uint32(r.base)] = r
	}
	old := make(map[*ruleset]bool)
	for h := range asked {
		if r := at[h.base]; r != nil && c.live[h.id] != r {
			old[r] = true
		}
	}
	for _, base := range used {
		if r := at[base]; slices.Contains(c.leaving, r) {
			old[r] = true
		}
	}
	c.between.old = old
	return errors.Join(err, err2)
}

// use is what a ruleset is for.
type use int

const (
	counting use = iota + 1 // it is a staged one
	judging
)

// used are the rulesets that endpoints want. Host endpoints have no staged ones in the
// kernel.
func used(t *policy.Tables) map[policy.RulesetID]use {
	out := make(map[policy.RulesetID]use)
	for _, r := range t.Endpoints {
		out[r.StagedEgress], out[r.StagedIngress] = counting, counting
	}
	for _, r := range t.Endpoints {
		out[r.Egress], out[r.Ingress] = judging, judging
	}
	for _, h := range t.HostEndpoints {
		for _, id := range stages(h, new(kernel.HostEndpoint)) {
			out[id] = judging
		}
	}
	delete(out, 0)
	return out
}

// note keeps why a ruleset is not in the kernel, if it is not.
func (c *classifier) note(id policy.RulesetID, from *policy.Ruleset, staged bool, err error) {
	known := c.failed[id] != nil
	if delete(c.failed, id); err == nil {
		return
	}
	c.failed[id] = fmt.Errorf("ruleset of %d rules: %w", from.Len(), err)
	if staged && !known {
		c.log.Warn("staged policies are not counted", "error", c.failed[id]) // no endpoint says so
	}
}

// leave parts with the rulesets that are not in the tables any more.
func (c *classifier) leave(t *policy.Tables) {
	for id, r := range c.live {
		if t.Rulesets[id] == nil {
			c.leaving = append(c.leaving, r)
			delete(c.live, id)
			delete(c.failed, id)
		}
	}
}

// number gives every class in use its number in the kernel.
func (c *classifier) number(t *policy.Tables, ports []kernel.PortClass) {
	inUse, sources, destinations := map[uint32]bool{0: true}, map[uint32]bool{0: true}, map[uint32]bool{0: true}
	for _, class := range t.Peers {
		inUse[uint32(class)] = true
	}
	for r := range t.SourcePorts.Ranges() {
		sources[uint32(r.Class)] = true
	}
	for r := range t.DestinationPorts.Ranges() {
		destinations[uint32(r.Class)] = true
	}
	// After a restart the numbers of a former process are taken over. A number of the
	// compiler's can have got another meaning in a result that we have missed.
	missed := t.Result > c.numbered+1 || t.Compiler != c.numberedBy
	if c.numbered, c.numberedBy = t.Result, t.Compiler; missed {
		c.peers.forget()
		c.sources.forget()
		c.destinations.forget()
	}
	if c.before == nil || missed {
		pairs := make(map[[2]uint32]bool)
		for p, class := range t.Peers {
			if k, ok := c.addresses[p]; ok {
				pairs[[2]uint32{uint32(class), k}] = true
			}
		}
		c.peers.adopt(pairs)
		sourcePairs, destinationPairs := make(map[[2]uint32]bool), make(map[[2]uint32]bool)
		for i, p := range ports {
			if i > 0 && p == ports[i-1] && c.ports[i] == c.ports[i-1] {
				continue // as nearly all are
			}
			sourcePairs[[2]uint32{uint32(p.Source), uint32(c.ports[i].Source)}] = true
			destinationPairs[[2]uint32{uint32(p.Destination), uint32(c.ports[i].Destination)}] = true
		}
		c.sources.adopt(sourcePairs)
		c.destinations.adopt(destinationPairs)
	}
	c.between.spent = nil // assign finds what is free
	c.peers.assign(inUse, func(k uint32) bool { return c.carriers[k] > 0 })
	carried := func(dimension func(kernel.PortClass) uint16) func(uint32) bool {
		there := make(map[uint32]bool)
		for i, p := range c.ports {
			if i == 0 || p != c.ports[i-1] {
				there[uint32(dimension(p))] = true
			}
		}
		return func(k uint32) bool { return there[k] }
	}
	c.sources.assign(sources, carried(func(p kernel.PortClass) uint16 { return p.Source }))
	c.destinations.assign(destinations, carried(func(p kernel.PortClass) uint16 { return p.Destination }))
}

// place makes sure that a ruleset is in the kernel with rows for all classes: where
// it is, or at a new place.
func (c *classifier) place(id policy.RulesetID, from *policy.Ruleset, staged bool) error {
	r := c.live[id]
	if r != nil && c.fits(r) && !c.numberable(r) && r.staged == staged && sameRules(r.from, from) {
		if grown, ok := c.encode(r, from, r.numbers()); ok {
			was := r.words
			r.words = grown
			r.layOut(from)
			return c.writeRows(r, was)
		}
	}
	return c.placeAnew(id, from, staged)
}

// numberable says whether a ruleset has rules without a number that could have one now.
func (c *classifier) numberable(r *ruleset) bool {
	return r.without > 0 && c.rules.room() >= r.without
}

// fits says whether a ruleset has rows for all classes.
func (c *classifier) fits(r *ruleset) bool {
	return uint32(r.peers) >= c.peers.top && uint32(r.ports) >= max(c.sources.top, c.destinations.top)
}

// placeAnew brings a ruleset into the kernel at a new place.
func (c *classifier) placeAnew(id policy.RulesetID, from *policy.Ruleset, staged bool) error {
	r := newRuleset(from, capacity(c.peers.top), capacity(max(c.sources.top, c.destinations.top)))
	var err error
	if r.extent, err = c.extents.take(r.size); err != nil {
		return err
	}
	r.staged = staged
	r.counts, r.without = c.rules.hold(from, staged)
	r.words, _ = c.encode(r, from, r.counts)
	r.layOut(from)
	if err := c.kernel.Words.Write(r.base, r.words); err != nil {
		c.extents.release(r.extent)
		c.rules.release(r.counts, r.without)
		return err
	}
	if old := c.live[id]; old != nil {
		c.leaving = append(c.leaving, old)
		if old.staged != staged || old.without != r.without || !sameRules(old.from, from) {
			c.moved[id] = true
		}
	}
	c.live[id] = r
	return nil
}

// writeRows writes the words of r that differ from was.
func (c *classifier) writeRows(r *ruleset, was []uint64) error {
	// Vectors before the classes that point to them.
	for i := len(r.words) - 1; i >= 0; i-- {
		if r.words[i] != was[i] {
			if err := c.kernel.Words.Write(r.base+i, r.words[i:i+1]); err != nil {
				return err
			}
		}
	}
	return nil
}

// left is called when every endpoint has switched: what they have left is freed
// after the grace period. What is used still, by an endpoint that is about to be removed,
// stays until another time.
func (c *classifier) left(used []uint32, now time.Time) {
	c.leaving = slices.DeleteFunc(c.leaving, func(r *ruleset) bool {
		if slices.Contains(used, uint32(r.base)) {
			return false
		}
		c.extents.retire(r, now)
		r.counts = r.numbers()
		c.spare, r.words = r.words, nil
		return true
	})
	c.rules.settle()
}
