package dataplane

import (
	"github.com/prometheus/client_golang/prometheus"
)

var (
	packetsDesc = prometheus.NewDesc("calico_xdp_packets_total", "Packets by hook and how they ended.", []string{"hook", "reason"}, nil)
	bytesDesc   = prometheus.NewDesc("calico_xdp_bytes_total", "Bytes by hook and how their packets ended.", []string{"hook", "reason"}, nil)
	flowsDesc   = prometheus.NewDesc("calico_xdp_flows", "Flows whose both ends have spoken, as of the last sweep.", nil, nil)
	maxDesc     = prometheus.NewDesc("calico_xdp_flows_limit", "How many flows the table holds at most.", nil, nil)
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
	kept, removed := d.sweep.result()
	out <- prometheus.MustNewConstMetric(flowsDesc, prometheus.GaugeValue, float64(kept))
	out <- prometheus.MustNewConstMetric(maxDesc, prometheus.GaugeValue, float64(d.kernel.Flows.Capacity()))
	out <- prometheus.MustNewConstMetric(sweptDesc, prometheus.CounterValue, float64(removed))
}
