package dataplane

import (
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"
)

// rules numbers the rules of the rulesets in the kernel: a ruleset's words say the
// numbers, and packets are counted by them. A rule has one number in all rulesets, as
// long as one in the kernel has the rule; when that is freed the number is too, which
// is when no packet can be counted for it any more.
//
// Rules are told apart by where they come from and what they do, so that no counter
// goes on under another action. In staged rulesets the rules of enforced policies have
// numbers of their own: they count what is not so.
type rules struct {
	kernel *kernel.Maps
	log    *slog.Logger
	drift  atomic.Uint64 // names that someone else had changed

	lists    map[policy.RuleID]*ruleList // by their rules' id, with index 0
	former   map[kernel.RuleName]uint32  // names of a former process that nobody has asked for yet
	dead     []uint32                    // without uses, to be freed
	nameless []uint32                    // whose names could not be written
	loaded   bool

	mu       sync.RWMutex   // for others than the control loop, who read what follows
	numbered []numberedRule // by number; 0 is none
	free     []uint32
	epoch    uint64 // numbers ever given
	without  int    // how many rules of rulesets have no number
}

// ruleList is the rules of one policy and direction, or what is at the end of a tier.
type ruleList struct {
	id      policy.RuleID // of its rules, with index 0
	numbers []ruleActions // by the rule's index + 1
	used    int           // how many numbers it has
}

// ruleActions are the numbers of a rule by what it does; 0 is none.
type ruleActions [policy.Continue + 1]uint32

type numberedRule struct {
	list   *ruleList // nil: of nobody
	index  int32
	uses   int32 // by rulesets in the kernel; one can have a rule more than once
	since  uint64
	action policy.Action
	dying  bool // among dead
}

func newRules(k *kernel.Maps, log *slog.Logger) *rules {
	return &rules{kernel: k, log: log, lists: make(map[policy.RuleID]*ruleList), numbered: make([]numberedRule, 1)}
}

// room is how many numbers can still be given.
func (r *rules) room() int { return r.capacity() - r.taken() }

// taken is how many numbers are given, and 0.
func (r *rules) taken() int { return len(r.numbered) - len(r.free) }

// capacity is one more than the highest number that there can be.
func (r *rules) capacity() int { return r.kernel.RuleCounters.Len() }

// reserve has the tables made larger if they have no room for a ruleset's rules. That
// they cannot be is no error: rules go without numbers then.
func (r *rules) reserve(from *policy.Ruleset, staged bool) {
	if r.room() >= from.Len() {
		return
	}
	need, numbers := 0, r.find(from, staged)
	for _, p := range from.Parts {
		last := int32(-2)
		for i, x := range p.Rules {
			if numbers[p.From+i] == 0 && x.Index != last {
				last = x.Index
				need++
			}
		}
	}
	_ = r.kernel.RuleCounters.Reserve(need + r.taken())
}

// walk goes through the rules of a ruleset and sets the numbers that they have. Of those
// that have none it asks otherwise, which is given the list that the rule is in, nil if
// that does not exist, and returns it too, should it have made it.
func (r *rules) walk(from *policy.Ruleset, staged bool, otherwise func(id policy.RuleID, a policy.Action, l *ruleList) (uint32, *ruleList)) []uint32 {
	numbers := make([]uint32, from.Len())
	for _, p := range from.Parts {
		id := p.ID
		id.Staged = id.Staged || staged
		l := r.lists[id]
		for i, x := range p.Rules {
			var n uint32
			if at := int(x.Index) + 1; l != nil && at < len(l.numbers) {
				n = l.numbers[at][x.Action]
			}
			if n == 0 {
				of := id
				of.Index = int(x.Index)
				n, l = otherwise(of, x.Action, l)
			}
			numbers[p.From+i] = n
		}
	}
	return numbers
}

// find returns the numbers that a ruleset's rules have; 0 for those that have none.
func (r *rules) find(from *policy.Ruleset, staged bool) []uint32 {
	return r.walk(from, staged, func(id policy.RuleID, a policy.Action, l *ruleList) (uint32, *ruleList) {
		if len(r.former) == 0 {
			return 0, l
		}
		return r.former[nameOf(id, a)], l
	})
}

// hold returns numbers for the rules of a ruleset that is about to be in the kernel,
// where those that are new have their names first. Rules that there is no number left
// for have 0; without counts them.
func (r *rules) hold(from *policy.Ruleset, staged bool) (numbers []uint32, without int) {
	r.reserve(from, staged)
	var given []uint32
	var names []kernel.RuleName
	r.mu.Lock()
	numbers = r.walk(from, staged, func(id policy.RuleID, a policy.Action, l *ruleList) (uint32, *ruleList) {
		name := nameOf(id, a)
		n := r.former[name]
		if n == 0 {
			if n = r.take(); n != 0 {
				given, names = append(given, n), append(names, name)
			}
		}
		return n, r.bind(n, l, id, a)
	})
	for _, n := range numbers {
		if n != 0 {
			r.numbered[n].uses++
		}
	}
	without = r.lack(numbers)
	r.mu.Unlock()
	if err := r.kernel.RuleNames.PutAll(given, names); err != nil {
		r.log.Error("names of rules are not written", "error", err)
		r.nameless = append(r.nameless, given...)
	}
	return numbers, without
}

// adopt notes that a ruleset of a former process is this one: its rules have the
// numbers that find has found for them.
func (r *rules) adopt(from *policy.Ruleset, staged bool, numbers []uint32) (without int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.walk(from, staged, func(id policy.RuleID, a policy.Action, l *ruleList) (uint32, *ruleList) {
		n := r.former[nameOf(id, a)]
		return n, r.bind(n, l, id, a)
	})
	return r.lack(numbers)
}

// lack counts the rules without a number.
func (r *rules) lack(numbers []uint32) (without int) {
	for _, n := range numbers {
		if n == 0 {
			without++
		}
	}
	if without > 0 && r.without == 0 {
		r.log.Warn("rules are not counted: there are more than numbers", "numbers", r.capacity()-1)
	}
	r.without += without
	return without
}

// take returns a number that is free; 0 if there is none.
func (r *rules) take() uint32 {
	if last := len(r.free) - 1; last >= 0 {
		n := r.free[last]
		r.free = r.free[:last]
		return n
	}
	if len(r.numbered) >= r.capacity() {
		return 0
	}
	r.numbered = append(r.numbered, numberedRule{})
	return uint32(len(r.numbered) - 1)
}

// bind gives a number, unless it is none, to a rule, and returns the list that the
// rule is in.
func (r *rules) bind(n uint32, l *ruleList, id policy.RuleID, a policy.Action) *ruleList {
	if n == 0 {
		return l
	}
	at := id.Index + 1
	if l == nil {
		id.Index = 0
		l = &ruleList{id: id}
		r.lists[id] = l
	}
	for len(l.numbers) <= at {
		l.numbers = append(l.numbers, ruleActions{})
	}
	l.numbers[at][a] = n
	l.used++
	r.epoch++
	x := &r.numbered[n]
	x.list, x.index, x.action, x.since = l, int32(at-1), a, r.epoch
	if len(r.former) > 0 {
		delete(r.former, nameOf(x.id(), a))
	}
	return l
}

// keep notes the numbers of a ruleset that is in the kernel without hold: that of a former
// process, or a copy. without counts those of its rules that have none.
func (r *rules) keep(numbers []uint32, without int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.without += without
	for _, n := range numbers {
		if n == 0 || int(n) >= r.capacity() {
			continue
		}
		r.grow(n)
		r.numbered[n].uses++
	}
}

// grow makes a number one of those that may have been given.
func (r *rules) grow(n uint32) {
	if int(n) >= len(r.numbered) {
		r.numbered = append(r.numbered, make([]numberedRule, int(n)+1-len(r.numbered))...)
	}
}

// release parts with the numbers of a ruleset that no packet can meet any more.
func (r *rules) release(numbers []uint32, without int) {
	r.mu.Lock()
	r.without -= without
	for _, n := range numbers {
		if n != 0 && int(n) < len(r.numbered) && r.numbered[n].uses > 0 {
			r.numbered[n].uses--
			r.doom(n)
		}
	}
	r.mu.Unlock()
	r.bury()
}

// doom has a number freed if it is without uses.
func (r *rules) doom(n uint32) {
	if x := &r.numbered[n]; x.uses == 0 && !x.dying {
		x.dying = true
		r.dead = append(r.dead, n)
	}
}

// bury frees the numbers without uses, their counters at zero. In this order a process
// that starts over, wherever this one has stopped, finds a name for each number that
// has to be freed.
func (r *rules) bury() {
	r.mu.Lock()
	r.dead = slices.DeleteFunc(r.dead, func(n uint32) bool {
		r.numbered[n].dying = r.numbered[n].uses == 0
		return !r.numbered[n].dying
	})
	r.mu.Unlock()
	if len(r.dead) == 0 {
		return
	}
	err := r.kernel.RuleCounters.Zero(r.dead)
	if err == nil {
		err = r.kernel.RuleNames.DeleteAll(r.dead)
	}
	if err != nil {
		r.log.Error("numbers of rules are not freed", "error", err)
		return
	}
	r.mu.Lock()
	for _, n := range r.dead {
		x := &r.numbered[n]
		if l := x.list; l != nil {
			l.numbers[x.index+1][x.action] = 0
			if l.used--; l.used == 0 {
				delete(r.lists, l.id)
			}
		}
		*x = numberedRule{}
	}
	r.free = append(r.free, r.dead...)
	r.mu.Unlock()
	r.dead = r.dead[:0]
}

// load reads back what rules a former process has numbered, or what has become of the
// names since.
func (r *rules) load() error {
	names, err := r.kernel.RuleNames.Load()
	if err != nil {
		return err
	}
	if r.loaded {
		return r.repair(names)
	}
	r.former = make(map[kernel.RuleName]uint32, len(names))
	var strange []uint32
	for n, name := range names {
		other, twice := r.former[name]
		switch {
		case n == 0 || int(n) >= r.capacity():
			strange = append(strange, n)
		case twice:
			strange = append(strange, max(n, other))
			r.former[name] = min(n, other)
		default:
			r.former[name] = n
		}
	}
	counters, err := r.kernel.RuleCounters.Load(r.kernel.RuleCounters.Len())
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.former {
		r.grow(n)
	}
	for n, c := range counters {
		if c != (kernel.Counter{}) {
			r.grow(uint32(n)) // its name may be gone; settle makes it zero
		}
	}
	if err := r.kernel.RuleNames.DeleteAll(strange); err != nil {
		return err
	}
	r.loaded = true
	return nil
}

// settle frees the numbers of a former process that no ruleset has.
func (r *rules) settle() {
	if r.former == nil {
		return
	}
	r.former = nil
	free := make(map[uint32]bool, len(r.free))
	for _, n := range r.free {
		free[n] = true
	}
	r.mu.Lock()
	for n := 1; n < len(r.numbered); n++ {
		if !free[uint32(n)] {
			r.doom(uint32(n))
		}
	}
	r.mu.Unlock()
	r.bury()
}

// repair makes the names in the kernel what they should be.
func (r *rules) repair(have map[uint32]kernel.RuleName) error {
	var errs []error
	wrong := func(n uint32, put func() error) {
		r.drift.Add(1)
		r.log.Warn("name of a rule was changed by someone else", "number", n)
		errs = append(errs, put())
	}
	for n, x := range r.numbered {
		n, had := uint32(n), have[uint32(n)]
		if x.list == nil {
			continue
		}
		delete(have, n)
		if want := nameOf(x.id(), x.action); want != had {
			wrong(n, func() error { return r.kernel.RuleNames.Put(n, want) })
		}
	}
	for n, name := range have {
		if r.former[name] != n || n == 0 {
			wrong(n, func() error { return r.kernel.RuleNames.Delete(n) })
		}
	}
	return errors.Join(errs...)
}

// mend tries again what could not be written.
func (r *rules) mend() {
	r.bury()
	r.nameless = slices.DeleteFunc(r.nameless, func(n uint32) bool {
		x := &r.numbered[n]
		return x.list == nil || r.kernel.RuleNames.Put(n, nameOf(x.id(), x.action)) == nil
	})
}

func (x *numberedRule) id() policy.RuleID {
	id := x.list.id
	id.Index = int(x.index)
	return id
}

func nameOf(id policy.RuleID, a policy.Action) kernel.RuleName {
	return kernel.NewRuleName(id.String(), actions[a], id.Staged)
}

// rule is what a number stands for.
func (r *rules) rule(n uint32) (id policy.RuleID, a policy.Action, ok bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if int(n) >= len(r.numbered) || r.numbered[n].list == nil {
		return policy.RuleID{}, 0, false
	}
	x := &r.numbered[n]
	return x.id(), x.action, true
}

// fill is how many numbers are given, and how many rules have none.
func (r *rules) fill() (given, without int) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.numbered) - 1 - len(r.free), r.without
}
