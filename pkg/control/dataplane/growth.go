package dataplane

import (
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/loader"
	kernel "calico-xdp/pkg/maps"
)

// A table that only the daemon writes is made larger when an entry does not fit, or
// before: when it is about to become, or has become, fuller than growAt. It at least
// doubles. The log warns of a table that is fuller than warnAt, which takes one that
// cannot grow.
const (
	growAt = 0.8
	warnAt = 0.9

	// growRetry is when it is tried again to make a table larger for which there was
	// no memory.
	growRetry = 10 * time.Second

	// memoryShare of the machine's memory is what one table may take.
	memoryShare = 8
)

// settle is how long a program may at most go on that has been replaced: they run for
// microseconds, and are not preempted.
const settle = 10 * time.Millisecond

// growth makes tables larger. But for what mu guards it is the control loop's.
type growth struct {
	limits map[string]int       // Options.TableLimits
	memory int                  // bytes that a table may take
	failed map[string]time.Time // when it was last not possible to make a table larger
	step   func(string)         // called between the steps of a growth: tests end it there

	mu    sync.Mutex
	fills map[string]*fill
}

func newGrowth(o Options) *growth {
	g := &growth{
		limits: o.TableLimits, failed: make(map[string]time.Time), step: func(string) {},
		fills: make(map[string]*fill),
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil {
		g.memory = int(uint64(info.Totalram) * uint64(info.Unit) / memoryShare)
	}
	return g
}

// limit is how many entries a table may get, which is no less than what it has room for.
func (d *Dataplane) limit(table string) int {
	if table == flows && d.sweep.fixed.Load() {
		return max(int(d.sweep.wanted.Load()), d.kernel.Capacity(table))
	}
	n := d.growth.limits[table]
	if n == 0 {
		n = 1 << bits.Len(uint(d.growth.memory/d.kernel.EntryBytes(table))) >> 1
	}
	return max(n, d.kernel.Capacity(table))
}

// larger is the size that a table gets which has to have room for so many entries; it is
// ErrFull if that is more than it may get.
func (d *Dataplane) larger(table string, entries int) (int, error) {
	limit := d.limit(table)
	if entries > limit {
		return 0, kernel.ErrFull
	}
	n := max(2*d.kernel.Capacity(table), entries+entries/4)
	return min(1<<bits.Len(uint(n-1)), limit), nil
}

// prepare gives tables the sizes that the configuration asks for, if these are larger,
// and that what is wanted needs as far as that is simple to say: one growth instead of
// many.
func (d *Dataplane) prepare(w *desired.Dataplane) {
	d.sweep.configure(w.Tables)
	sizes := make(map[string]int)
	for table, n := range map[string]int{"routes": w.Tables.Routes, "host_classes": w.Tables.Classes, "net_classes": w.Tables.Classes} {
		if n = min(n, d.limit(table)); n > d.kernel.Capacity(table) {
			sizes[table] = n
		}
	}
	need := map[string]int{
		"endpoints": len(w.Endpoints) + 1, "workloads": len(w.Endpoints), "routes": len(w.Routes), "peers": len(w.Peers),
		"host_endpoints": len(w.HostEndpoints), "failsafe": len(w.Failsafe), "nat_nets": len(w.NATNets),
	}
	if all := len(w.Policy.Peers); all > min(d.kernel.HostClasses.Capacity(), d.kernel.NetClasses.Capacity()) {
		need["host_classes"], need["net_classes"] = d.classifier.classesFor(w.Policy)
	}
	d.growFor(need, sizes)
}

// growFor makes room in tables that would be nearly full with so many entries. sizes are
// those that tables get anyway.
func (d *Dataplane) growFor(entries, sizes map[string]int) {
	for table, n := range entries {
		capacity := d.kernel.Capacity(table)
		if float64(n) <= growAt*float64(max(capacity, sizes[table])) {
			continue
		}
		if size, err := d.larger(table, min(max(n, capacity+1), d.limit(table))); err == nil && size > capacity {
			sizes[table] = max(sizes[table], size)
		}
	}
	maps.DeleteFunc(sizes, func(table string, _ int) bool { return d.blocked(table) })
	if len(sizes) > 0 {
		_ = d.grow(sizes) // logged there; nothing is refused yet
	}
}

// makeRoom makes a table larger that has no room for an entry: kernel.Options.Grow.
func (d *Dataplane) makeRoom(table string, entries int) error {
	size, err := d.larger(table, entries)
	if err != nil {
		return err
	}
	if d.blocked(table) {
		return kernel.ErrFull
	}
	return d.grow(map[string]int{table: size})
}

// blocked says that it was not possible a short time ago to make a table larger.
func (d *Dataplane) blocked(table string) bool {
	at, failed := d.growth.failed[table]
	return failed && time.Since(at) < growRetry
}

// grow gives tables these sizes. Programs go on meanwhile, and see the same entries
// before and after; see kernel.Growth. The error is an ErrFull; what is behind it is
// logged here.
func (d *Dataplane) grow(sizes map[string]int) error {
	start := time.Now()
	if err := d.growNow(sizes); err != nil {
		for table, size := range sizes {
			d.growth.failed[table] = time.Now()
			d.log.Error("table could not be made larger", "table", table, "entries", size, "error", err)
		}
		return kernel.ErrFull
	}
	for _, table := range slices.Sorted(maps.Keys(sizes)) {
		delete(d.growth.failed, table)
		d.log.Info("table was made larger", "table", table, "entries", sizes[table], "took", time.Since(start))
	}
	return nil
}

func (d *Dataplane) growNow(sizes map[string]int) error {
	step := d.growth.step
	larger, err := d.kernel.Grow(sizes)
	if err != nil {
		return err
	}
	step("filled")
	next, err := loader.Load(larger.Handles(), d.links)
	if err != nil {
		return errors.Join(err, larger.Close())
	}
	step("loaded")
	hooks, err := d.links.Hooks()
	if err == nil {
		err = d.changeOver(larger, next, hooks)
	}
	if err != nil {
		for _, h := range hooks {
			err = errors.Join(err, d.programs.Replace(h))
		}
		return errors.Join(err, larger.Close(), next.Close())
	}
	step("pinned")
	return errors.Join(larger.Use(), d.programs.Become(next))
}

// changeOver puts the programs that use the larger tables on all hooks.
func (d *Dataplane) changeOver(larger *kernel.Growth, next *loader.Programs, hooks []loader.Hook) error {
	for _, h := range hooks {
		if err := next.Replace(h); err != nil {
			return err
		}
		d.growth.step(fmt.Sprintf("%s on %d", h.Program, h.Ifindex))
	}
	if slices.Contains(larger.Tables(), "rule_counters") {
		time.Sleep(settle)
		behind, err := larger.Behind()
		if err != nil {
			return err
		}
		counts := make([]loader.RuleCount, 0, len(behind))
		for rule, c := range behind {
			counts = append(counts, loader.RuleCount{Rule: rule, Packets: c.Packets, Bytes: c.Bytes})
		}
		if err := next.AddCounts(counts); err != nil {
			return err
		}
		d.growth.step("counted")
	}
	for _, table := range larger.Tables() {
		if err := larger.Pin(table); err != nil {
			return err
		}
		d.growth.step(table + " pinned")
	}
	return nil
}
