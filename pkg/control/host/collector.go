package host

import (
	"calico-xdp/pkg/control/reconcile"

	"github.com/prometheus/client_golang/prometheus"
)

// Collector counts what Ensure and Prune have met.
func (n *Network) Collector() prometheus.Collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("calico_xdp_host_"+name, help, append([]string{"table"}, labels...), nil)
	}
	return &collector{
		network: n,
		entries: desc("entries", "Entries of ours in the kernel's tables."),
		errors:  desc("errors_total", "Writes to the kernel's tables that failed."),
		drift:   desc("drift_total", "Entries that others had added, removed or changed.", "change"),
	}
}

type collector struct {
	network                *Network
	entries, errors, drift *prometheus.Desc
}

func (c *collector) Describe(out chan<- *prometheus.Desc) {
	out <- c.entries
	out <- c.errors
	out <- c.drift
}

func (c *collector) Collect(out chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	for name, t := range map[string]interface {
		Entries() int
		Failures() uint64
		Drift() reconcile.Drift
	}{"routes": c.network.routes, "addresses": c.network.tunnels, "sysctls": c.network.sysctls} {
		out <- prometheus.MustNewConstMetric(c.entries, prometheus.GaugeValue, float64(t.Entries()), name)
		counter(c.errors, t.Failures(), name)
		d := t.Drift()
		counter(c.drift, d.Added, name, "added")
		counter(c.drift, d.Removed, name, "removed")
		counter(c.drift, d.Changed, name, "changed")
	}
}
