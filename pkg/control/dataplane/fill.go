package dataplane

import (
	"cmp"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	entriesDesc  = prometheus.NewDesc("calico_xdp_table_entries", "Entries of a table; of flows as of the last sweep.", []string{"table"}, nil)
	capacityDesc = prometheus.NewDesc("calico_xdp_table_capacity", "How many entries a table holds at most, as large as it is now.", []string{"table"}, nil)
	limitDesc    = prometheus.NewDesc("calico_xdp_table_limit", "How many entries a table may grow to.", []string{"table"}, nil)
	refusedDesc  = prometheus.NewDesc("calico_xdp_table_full_total", "Times that there was no room in a table, and none could be made.", []string{"table"}, nil)
)

// TableFill is how full a table is. Limit is the capacity that it may grow to.
type TableFill struct {
	Table                    string
	Entries, Capacity, Limit int
	Refused                  uint64 // times that there was no room
}

// fill is what is known of how full a table is, and what of it is in the log.
type fill struct {
	entries int
	level   level
	refused uint64
}

// level is how full a table is, as far as the log is concerned.
type level int

const (
	roomy level = iota
	nearlyFull
	full // and something did not fit since it was last looked
)

// noteFill takes note of how many entries a table has.
func (d *Dataplane) noteFill(table string, entries int) {
	capacity, limit := d.kernel.Capacity(table), d.limit(table)
	what := "table is full; what does not fit stays closed"
	switch {
	case table == flows:
		what = "table is full; flows that do not fit go on as unconfirmed ones"
	case strings.HasPrefix(table, "rule_"):
		what = "table is full; rules that do not fit are not counted"
	}
	refused, err := d.kernel.Refused(table)
	if err != nil {
		d.log.Error("table cannot be read", "table", table, "error", err)
	}
	d.growth.mu.Lock()
	defer d.growth.mu.Unlock()
	f := d.growth.fills[table]
	if f == nil {
		f = &fill{refused: refused}
		d.growth.fills[table] = f
	}
	l := roomy
	switch {
	case table == newFlows: // the oldest make room
	case refused > f.refused && (table != flows || capacity >= limit):
		l = full // flows' table may be about to grow
	case float64(entries) > warnAt*float64(capacity):
		l = nearlyFull
	}
	if l != f.level {
		args := []any{"table", table, "entries", entries, "capacity", capacity, "limit", limit}
		switch l {
		case full:
			d.log.Error(what, args...)
		case nearlyFull:
			d.log.Warn("table is nearly full", args...)
		default:
			d.log.Info("table has room again", args...)
		}
	}
	f.entries, f.level, f.refused = entries, l, refused
}

// entries is how many entries the tables have that only the daemon writes.
func (d *Dataplane) entries() map[string]int {
	hosts, nets := d.classifier.classes()
	rules, _ := d.classifier.rules.fill()
	return map[string]int{
		"endpoints": d.endpoints.taken(), "workloads": d.workloads.Entries(), "routes": d.routes.Entries(),
		"peers": d.peers.Entries(), "host_classes": hosts, "net_classes": nets, "ruleset_words": d.classifier.extents.taken(),
		"host_endpoints": d.hosts.Entries(), "failsafe": d.failsafe.Entries(), "nat_nets": d.natNets.Entries(),
		"allowed_sources": d.sources.Entries(),
		"rule_counters":   rules + 1, "rule_names": rules, // no rule has number 0
	}
}

// noteFills takes note of these, at the end of Ensure.
func (d *Dataplane) noteFills() {
	for table, n := range d.entries() {
		d.noteFill(table, n)
	}
}

// notePruned does at the end of Prune, when nothing can have been refused.
func (d *Dataplane) notePruned() {
	entries := d.entries()
	d.growth.mu.Lock()
	defer d.growth.mu.Unlock()
	for table, f := range d.growth.fills {
		if n, ok := entries[table]; ok {
			f.entries = n
		}
	}
}

// Tables says how full the tables are that can become full.
func (d *Dataplane) Tables() []TableFill {
	d.growth.mu.Lock()
	defer d.growth.mu.Unlock()
	out := make([]TableFill, 0, len(d.growth.fills))
	for table, f := range d.growth.fills {
		out = append(out, TableFill{
			Table: table, Entries: f.entries, Capacity: d.kernel.Capacity(table), Limit: d.limit(table), Refused: f.refused,
		})
	}
	slices.SortFunc(out, func(a, b TableFill) int { return cmp.Compare(a.Table, b.Table) })
	return out
}

func (d *Dataplane) collectTables(out chan<- prometheus.Metric) {
	for _, t := range d.Tables() {
		out <- prometheus.MustNewConstMetric(entriesDesc, prometheus.GaugeValue, float64(t.Entries), t.Table)
		out <- prometheus.MustNewConstMetric(capacityDesc, prometheus.GaugeValue, float64(t.Capacity), t.Table)
		out <- prometheus.MustNewConstMetric(limitDesc, prometheus.GaugeValue, float64(t.Limit), t.Table)
		out <- prometheus.MustNewConstMetric(refusedDesc, prometheus.CounterValue, float64(t.Refused), t.Table)
	}
}
