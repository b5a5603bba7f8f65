package dataplane

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/policy"
)

// RuleCount is what a rule has decided about.
type RuleCount struct {
	// ID is where the rule comes from. Staged says that it has not decided but would
	// have if the staged policies were enforced; also rules of enforced ones can.
	ID             policy.RuleID
	Action         policy.Action
	Packets, Bytes uint64
}

// Rules returns what each rule has decided about that is in the kernel, in no order.
func (d *Dataplane) Rules() ([]RuleCount, error) { return d.classifier.rules.counts() }

// Rule returns what the number of a rule in the kernel's tables stands for; false if
// nothing.
func (d *Dataplane) Rule(number uint32) (policy.RuleID, policy.Action, bool) {
	return d.classifier.rules.rule(number)
}

// counts reads the counters of all rules that have a number.
func (r *rules) counts() ([]RuleCount, error) {
	r.mu.RLock()
	epoch, n := r.epoch, len(r.numbered)
	r.mu.RUnlock()
	counters, err := r.kernel.RuleCounters.Load(n)
	if err != nil {
		return nil, err
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out []RuleCount
	for i, c := range counters {
		// What has got its number since may have been counted for another rule.
		if x := &r.numbered[i]; x.list != nil && x.since <= epoch {
			out = append(out, RuleCount{x.id(), x.action, c.Packets, c.Bytes})
		}
	}
	return out, nil
}

var (
	ruleLabels      = []string{"tier", "policy", "direction", "rule", "action", "staged"}
	rulePacketsDesc = prometheus.NewDesc("calico_xdp_rule_packets_total",
		"Packets by the rule that decided about their flow; of a rule that logs, and of a staged one, the first of each flow only.", ruleLabels, nil)
	ruleBytesDesc = prometheus.NewDesc("calico_xdp_rule_bytes_total", "Bytes of these packets.", ruleLabels, nil)
	uncountedDesc = prometheus.NewDesc("calico_xdp_rules_without_number", "Rules of rulesets that are not counted: there are more than numbers.", nil, nil)
)

// collectRules hands out the rules that have counted anything: most never do.
func (d *Dataplane) collectRules(out chan<- prometheus.Metric) {
	_, without := d.classifier.rules.fill()
	out <- prometheus.MustNewConstMetric(uncountedDesc, prometheus.GaugeValue, float64(without))
	out <- prometheus.MustNewConstMetric(driftDesc, prometheus.CounterValue, float64(d.classifier.rules.drift.Load()), "rule_names")
	counts, err := d.Rules()
	if err != nil {
		out <- prometheus.NewInvalidMetric(rulePacketsDesc, err)
	}
	for _, c := range counts {
		if c.Packets == 0 {
			continue
		}
		labels := []string{c.ID.Tier, policyName(c.ID.Policy), c.ID.Direction, ruleName(c.ID), actionName(c.Action), strconv.FormatBool(c.ID.Staged)}
		out <- prometheus.MustNewConstMetric(rulePacketsDesc, prometheus.CounterValue, float64(c.Packets), labels...)
		out <- prometheus.MustNewConstMetric(ruleBytesDesc, prometheus.CounterValue, float64(c.Bytes), labels...)
	}
}

func actionName(a policy.Action) string {
	return [...]string{
		policy.Deny: "deny", policy.Allow: "allow", policy.Pass: "pass", policy.Log: "log", policy.Continue: "continue",
	}[a]
}

// policyName is kind/[namespace/]name; empty for what belongs to no policy.
func policyName(key api.Key) string {
	switch {
	case key == (api.Key{}):
		return ""
	case key.Namespace != "":
		return key.Kind + "/" + key.Namespace + "/" + key.Name
	}
	return key.Kind + "/" + key.Name
}

// ruleName is the index in the policy's list, "default" for what a tier or everything
// ends with, or "closed" for an object that denies as a whole.
func ruleName(id policy.RuleID) string {
	switch {
	case id.Index >= 0:
		return strconv.Itoa(id.Index)
	case id.Policy == (api.Key{}):
		return "default"
	}
	return "closed"
}
