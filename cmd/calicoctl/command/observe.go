package command

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"calico-xdp/pkg/nodeapi"

	"github.com/spf13/cobra"
)

func newObserve(a *app) *cobra.Command {
	var filter nodeapi.EventFilter
	var count int
	var span time.Duration
	kinds := make(map[nodeapi.EventKind]*bool)
	cmd := &cobra.Command{
		Use:     "observe",
		Aliases: []string{"watch", "monitor"},
		Short:   "Watch what happens to packets on this host: drops, new flows, logged packets",
		Long: `Watch what happens to packets on this host, as it happens, each line with the rule
that decided. Without a choice of kinds all of them are shown:

  drop    a packet was dropped, by which rule or for which other reason
  flow    a flow was judged: for the first time, or again because policy changed
  log     a packet met a rule with the action Log
  staged  staged policies would have decided otherwise

The eBPF programs tell of events only while somebody watches, and not more than
some thousands in a second; how many were left out is shown. It goes on until it
is interrupted.`,
		Example: `  # Every drop, and who did it.
  calicoctl observe --drops

  # What one pod is up to, with addresses and interfaces.
  calicoctl observe --endpoint shop/web -o wide

  # Would the staged policies break something? Ten seconds of it, for programs.
  calicoctl observe --staged --for 10s -o json`,
		Args: noArgs,
	}
	q := askFlags(a, cmd, "text", "wide", "json")
	flags := cmd.Flags()
	for _, k := range []struct {
		name string
		kind nodeapi.EventKind
		what string
	}{
		{"drops", nodeapi.EventDrop, "packets that were dropped"}, {"flows", nodeapi.EventFlow, "flows that were judged"},
		{"logs", nodeapi.EventLog, "packets that met Log rules"}, {"staged", nodeapi.EventStaged, "where staged policies differ"},
	} {
		kinds[k.kind] = flags.Bool(k.name, false, "show "+k.what)
	}
	q.endpointFlag(cmd, &filter.Endpoint, "only events with this at one end")
	policyFlag(cmd, &filter.Policy, "only events that this policy has a part in")
	flags.IntVarP(&count, "count", "n", 0, "stop after so many events (default: never)")
	flags.DurationVar(&span, "for", 0, "stop after this time, such as 30s (default: never)")
	flags.BoolP("follow", "f", true, "go on until interrupted; --count and --for end it earlier")
	_ = flags.MarkHidden("follow")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		for kind, wanted := range kinds {
			if *wanted {
				filter.Kinds = append(filter.Kinds, kind)
			}
		}
		if count < 0 || span < 0 {
			return fmt.Errorf("--count and --for cannot be below zero")
		}
		ctx := cmd.Context()
		if span > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, span)
			defer cancel()
		}
		return q.observe(ctx, filter, count)
	}
	return cmd
}

func (q *asking) observe(ctx context.Context, filter nodeapi.EventFilter, count int) error {
	seen := 0
	for e, err := range q.client().Events(ctx, filter) {
		if err != nil {
			if ctx.Err() != nil {
				return nil // the time is up, or it was interrupted
			}
			return q.failed(err)
		}
		if e.Kind == nodeapi.EventListening {
			continue
		}
		if err := q.writeEvent(q.a.Out, e); err != nil {
			return err
		}
		if e.Kind == nodeapi.EventLost {
			continue
		}
		if seen++; seen == count {
			return nil
		}
	}
	if ctx.Err() == nil {
		return fmt.Errorf("calico-node has ended")
	}
	return nil
}

func (q *asking) writeEvent(out io.Writer, e nodeapi.Event) error {
	if q.format == "json" {
		enc := json.NewEncoder(out)
		enc.SetEscapeHTML(false)
		return enc.Encode(e)
	}
	_, err := fmt.Fprintln(out, eventLine(e, q.format == "wide"))
	return err
}

// eventLine is an event in one line.
func eventLine(e nodeapi.Event, wide bool) string {
	when := e.Time.Local().Format("15:04:05.000")
	if e.Kind == nodeapi.EventLost {
		return fmt.Sprintf("%s lost   %d events, which came too fast", when, e.Lost)
	}
	end := func(e nodeapi.End) string {
		if wide && e.Name != "" {
			return fmt.Sprintf("%s (%s)", e, endAddress(e))
		}
		return endName(e)
	}
	line := fmt.Sprintf("%s %-6s %s %s -> %s%s", when, e.Kind, e.Protocol, end(*e.Source), end(*e.Destination), icmpText(e.ICMPType, e.ICMPCode))
	verdict := map[nodeapi.Verdict]string{nodeapi.VerdictAllow: "allowed", nodeapi.VerdictDeny: "denied"}[e.Verdict]
	switch e.Kind {
	case nodeapi.EventDrop:
		line += ": " + e.Reason
		if e.Rule != nil {
			line += " by " + e.Rule.String()
		}
	case nodeapi.EventStaged:
		line += ": " + verdict
		if e.Rule != nil {
			line += fmt.Sprintf(", but %s would say %s", e.Rule, e.Rule.Action)
		}
	case nodeapi.EventLog:
		if e.Rule != nil {
			line += ": logged by " + e.Rule.String()
		}
		line += ", " + verdict + decidedBy(e.Rules)
	default:
		line += ": " + verdict + decidedBy(e.Rules)
	}
	if !wide {
		return line
	}
	if e.Kind != nodeapi.EventDrop && e.Reason != "" {
		line += " (" + e.Reason + ")"
	}
	line += fmt.Sprintf(", %d bytes at %s %s", e.Length, e.Hook, e.Interface)
	if len(e.Rules) > 1 {
		line += ", rules " + ruleList(e.Rules)
	}
	return line
}

func decidedBy(rules []nodeapi.Rule) string {
	if len(rules) == 0 {
		return ""
	}
	return " by " + rules[len(rules)-1].String()
}

func ruleList(rules []nodeapi.Rule) string {
	var names []string
	for _, r := range rules {
		names = append(names, r.String())
	}
	return strings.Join(names, "; ")
}
