package command

import (
	"context"
	"fmt"
	"time"

	"calico-xdp/pkg/nodeapi"

	"github.com/spf13/cobra"
)

// defaultFlows is how many flows are shown unless told otherwise.
const defaultFlows = 1000

func newFlows(a *app) *cobra.Command {
	var filter nodeapi.FlowFilter
	cmd := &cobra.Command{
		Use:   "flows",
		Short: "Show the connections that this host knows, with verdict and rules",
		Long: `Show the flows in this host's tables: who opened each, to whom, how far it has come,
whether it is allowed, and the rule that said so last.

  new          no answer yet
  answered     the one who opened it has not shown yet that it is real
  established  both ends have spoken
  closing      one end has closed it

When policy changes, a flow is judged again with its next packet; until then -o wide
calls it outdated. A flow that was allowed and no longer is stays as denied: its
packets are dropped in both directions. What never was allowed leaves no flow;
'calicoctl observe --drops' shows it. The order is that of the kernel's tables: none.`,
		Example: `  # The connections of one pod.
  calicoctl flows --endpoint shop/web

  # What has a policy cut?
  calicoctl flows --denied --policy globalnetworkpolicy/databases -o wide

  # All of them, for programs.
  calicoctl flows --limit 0 -o json`,
		Args: noArgs,
	}
	q := askFlags(a, cmd, "table", "wide", "json", "yaml")
	q.endpointFlag(cmd, &filter.Endpoint, "only flows with this at one end")
	policyFlag(cmd, &filter.Policy, "only flows that this policy has judged")
	protocolFlag(cmd, &filter.Protocol, "", "only flows of this protocol")
	flags := cmd.Flags()
	flags.IntVar(&filter.Port, "port", 0, "only flows to this destination port")
	flags.BoolVar(&filter.Denied, "denied", false, "only flows that were cut")
	flags.IntVar(&filter.Limit, "limit", defaultFlows, "show at most so many; 0: all")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return q.flows(cmd.Context(), filter) }
	return cmd
}

func (q *asking) flows(ctx context.Context, filter nodeapi.FlowFilter) error {
	if filter.Limit < 0 {
		return fmt.Errorf("--limit: %d is below zero", filter.Limit)
	}
	limit := filter.Limit
	if limit > 0 {
		filter.Limit++ // to see whether there are more
	}
	flows := []nodeapi.Flow{}
	more := false
	for f, err := range q.client().Flows(ctx, filter) {
		if err != nil {
			return q.failed(err)
		}
		if more = limit > 0 && len(flows) == limit; more {
			break
		}
		flows = append(flows, f)
	}
	if done, err := q.document(flows); done {
		return err
	}
	headings := []string{"PROTOCOL", "SOURCE", "DESTINATION", "STATE", "VERDICT", "IDLE", "RULE"}
	if q.format == "wide" {
		headings = []string{"PROTOCOL", "SOURCE", "ADDRESS", "DESTINATION", "ADDRESS", "STATE", "VERDICT", "IDLE", "WAY", "RULES"}
	}
	var rows [][]string
	for _, f := range flows {
		rule := ""
		if n := len(f.Rules); n > 0 {
			rule = f.Rules[n-1].String()
		}
		protocol, verdict := f.Protocol+icmpText(f.ICMPType, f.ICMPCode), string(f.Verdict)
		row := []string{protocol, endName(f.Source), endName(f.Destination), f.State, verdict, idle(f.Idle), rule}
		if q.format == "wide" {
			if f.Reason != "" {
				verdict += " (" + f.Reason + ")"
			}
			if f.Outdated {
				verdict += ", outdated"
			}
			row = []string{protocol, f.Source.String(), endAddress(f.Source), f.Destination.String(), endAddress(f.Destination),
				f.State, verdict, idle(f.Idle), f.Path, ruleList(f.Rules)}
		}
		rows = append(rows, row)
	}
	if err := plain(q.a.Out, headings, rows); err != nil || !more {
		return err
	}
	_, err := fmt.Fprintf(q.a.Out, "\nThere are more than these %d: --limit 0 shows all.\n", limit)
	return err
}

func idle(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	if d < time.Second {
		return "now"
	}
	return d.Round(time.Second).String()
}

// flowLine is a flow in one line.
func flowLine(f nodeapi.Flow) string {
	verdict := "allowed"
	if f.Verdict == nodeapi.VerdictDeny {
		verdict = "cut (" + f.Reason + ")"
	}
	text := fmt.Sprintf("%s %s -> %s%s: %s, %s", f.Protocol, endAddress(f.Source), endAddress(f.Destination),
		icmpText(f.ICMPType, f.ICMPCode), f.State, verdict)
	if len(f.Rules) > 0 {
		text += " by " + ruleList(f.Rules)
	}
	if f.Outdated {
		text += " before policy changed"
	}
	if d := idle(f.Idle); d != "now" {
		return text + ", silent for " + d
	}
	return text + ", active"
}
