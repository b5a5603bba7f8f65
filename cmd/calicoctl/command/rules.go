package command

import (
	"context"
	"strconv"

	"calico-xdp/pkg/nodeapi"

	"github.com/spf13/cobra"
)

func newRules(a *app) *cobra.Command {
	var filter nodeapi.RuleFilter
	var used bool
	cmd := &cobra.Command{
		Use:   "rules",
		Short: "Show how much each policy rule has decided on this host",
		Long: `Show the packets and bytes that each rule of this host's endpoints has decided
about, in the order in which they are asked: by tier, policy and rule, profiles
last. "end" is what becomes of packets that no rule of a tier matches. Every packet
of a flow counts for the rules that judged the flow.

With STAGED, a rule has decided nothing: it counts the first packets of flows that
it would have decided about if the staged policies were enforced.

Counters start when the rule gets to this host, and survive restarts of
calico-node. In Prometheus they are calico_xdp_rule_packets_total.`,
		Example: `  # Everything, with the rules as they are written.
  calicoctl rules -o wide

  # What has this policy done so far?
  calicoctl rules --policy globalnetworkpolicy/databases

  # Which rules do packets of this pod meet?
  calicoctl rules --endpoint shop/web --used`,
		Args: noArgs,
	}
	q := askFlags(a, cmd, "table", "wide", "json", "yaml")
	q.endpointFlag(cmd, &filter.Endpoint, "only rules of this endpoint of this host")
	policyFlag(cmd, &filter.Policy, "only rules of this policy or profile")
	cmd.Flags().BoolVar(&used, "used", false, "only rules that have decided about a packet")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return q.rules(cmd.Context(), filter, used) }
	return cmd
}

func (q *asking) rules(ctx context.Context, filter nodeapi.RuleFilter, used bool) error {
	ctx, cancel := context.WithTimeout(ctx, whyTime)
	defer cancel()
	all, err := q.client().Rules(ctx, filter)
	if err != nil {
		return q.failed(err)
	}
	rules := []nodeapi.RuleCount{}
	for _, r := range all {
		if r.Packets > 0 || !used {
			rules = append(rules, r)
		}
	}
	if done, err := q.document(rules); done {
		return err
	}
	headings := []string{"TIER", "POLICY", "RULE", "ACTION", "PACKETS", "BYTES", "STAGED"}
	if q.format == "wide" {
		headings = append(headings, "TEXT")
	}
	var rows [][]string
	for _, r := range rules {
		tier, staged := r.Tier, ""
		if tier == "" {
			tier = "-"
		}
		if r.Staged {
			staged = "staged"
		}
		row := []string{tier, policyText(r.Rule), ruleIndex(r.Rule), r.Action,
			strconv.FormatUint(r.Packets, 10), strconv.FormatUint(r.Bytes, 10), staged}
		if q.format == "wide" {
			row = append(row, r.Text)
		}
		rows = append(rows, row)
	}
	return plain(q.a.Out, headings, rows)
}
