package dataplane

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"calico-xdp/pkg/control/reconcile"
)

var (
	packetsDesc = prometheus.NewDesc("calico_xdp_packets_total", "Packets by hook and how they ended.", []string{"hook", "reason"}, nil)
	bytesDesc   = prometheus.NewDesc("calico_xdp_bytes_total", "Bytes by hook and how their packets ended.", []string{"hook", "reason"}, nil)
	flowsDesc   = prometheus.NewDesc("calico_xdp_flows", "Flows whose both ends have spoken, as of the last sweep.", nil, nil)
	maxDesc     = prometheus.NewDesc("calico_xdp_flows_limit", "How many flows the table holds at most.", nil, nil)
	driftDesc   = prometheus.NewDesc("calico_xdp_drift_total", "Table entries that someone else had added, removed or changed.", []string{"table"}, nil)
	lostDesc    = prometheus.NewDesc("calico_xdp_events_lost_total", "Events that came faster than they could be told.", nil, nil)
	noXDPDesc   = prometheus.NewDesc("calico_xdp_xdp_refused", "1 for an interface that should have the XDP program and takes none: another one is there, or its driver refuses.", []string{"ifindex"}, nil)
	sweptDesc   = prometheus.NewDesc("calico_xdp_flows_expired_total", "Flows removed because they were silent for too long.", nil, nil)
)

// Describe and Collect make the dataplane a prometheus.Collector: counters are read
// from the kernel at each scrape.
func (d *Dataplane) Describe(out chan<- *prometheus.Desc) { prometheus.DescribeByCollect(d, out) }

func (d *Dataplane) Collect(out chan<- prometheus.Metric) {
	counts, err := d.kernel.Counters()
	if err != nil {
		out <- prometheus.NewInvalidMetric(packetsDesc, err)
	}
	for _, c := range counts {
		out <- prometheus.MustNewConstMetric(packetsDesc, prometheus.CounterValue, float64(c.Packets), c.Hook, c.Reason)
		out <- prometheus.MustNewConstMetric(bytesDesc, prometheus.CounterValue, float64(c.Bytes), c.Hook, c.Reason)
	}
	d.collectTables(out)
	for name, t := range map[string]interface{ Drift() reconcile.Drift }{"workloads": d.workloads, "routes": d.routes, "peers": d.peers, "settings": d.listening.settings,
		"host_endpoints": d.hosts, "xdp_rulesets": d.early, "failsafe": d.failsafe, "failsafe_ports": d.ports, "nat_nets": d.natNets, "allowed_sources": d.sources} {
		drift := t.Drift()
		out <- prometheus.MustNewConstMetric(driftDesc, prometheus.CounterValue, float64(drift.Added+drift.Removed+drift.Changed), name)
	}
	out <- prometheus.MustNewConstMetric(driftDesc, prometheus.CounterValue, float64(d.classifier.drift.Load()), "ruleset_words")
	out <- prometheus.MustNewConstMetric(driftDesc, prometheus.CounterValue, float64(d.places.drift.Load()), "place_nodes")
	d.collectRules(out)
	if lost, err := d.eventsLost(); err != nil {
		out <- prometheus.NewInvalidMetric(lostDesc, err)
	} else {
		out <- prometheus.MustNewConstMetric(lostDesc, prometheus.CounterValue, float64(lost))
	}
	d.refusing.Lock()
	for a := range d.refused {
		out <- prometheus.MustNewConstMetric(noXDPDesc, prometheus.GaugeValue, 1, strconv.Itoa(a.Ifindex))
	}
	d.refusing.Unlock()
	kept, removed := d.sweep.result()
	out <- prometheus.MustNewConstMetric(flowsDesc, prometheus.GaugeValue, float64(kept))
	out <- prometheus.MustNewConstMetric(maxDesc, prometheus.GaugeValue, float64(d.kernel.Flows.Capacity()))
	out <- prometheus.MustNewConstMetric(sweptDesc, prometheus.CounterValue, float64(removed))
}
