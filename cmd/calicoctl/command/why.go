package command

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"calico-xdp/pkg/nodeapi"

	"github.com/spf13/cobra"
)

// whyTime is how long the daemon may take to answer: it may be busy with a change, and
// looks through all its flows.
const whyTime = 20 * time.Second

func newWhy(a *app) *cobra.Command {
	var question nodeapi.WhyQuestion
	var kind, code int
	cmd := &cobra.Command{
		Use:   "why SOURCE DESTINATION",
		Short: "Say what becomes of a packet, and which rule decides it",
		Long: `Say what becomes of the first packet of a flow, and why.

SOURCE and DESTINATION are addresses, or names: of a workload endpoint, a pod or
workload, a host endpoint or a node; with its namespace as NAMESPACE/NAME where
that is needed, with its kind as wep/NAMESPACE/NAME, hep/NAME or node/NAME. "host"
is the node itself.

The calico-node of this host runs the packet through the eBPF programs that judge
real ones, on their tables: nothing is sent, no flow comes of it and no counter
moves. It answers for what is decided on this host; for an end on another one it
says where to ask.

A packet that is dropped although no rule denies it is shown with the policies
that apply and the rule that came nearest to allow it.`,
		Example: `  # Why can the web server not reach the database?
  calicoctl why shop/web shop/db --port 5432

  # May this address ping that pod? May it reach this host's ssh?
  calicoctl why 192.0.2.7 shop/web --protocol icmp
  calicoctl why 192.0.2.7 host --port 22

  # For programs.
  calicoctl why shop/web 10.65.1.9 --protocol udp --port 53 -o json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageError{fmt.Errorf("name a source and a destination"), cmd.CommandPath()}
			}
			return nil
		},
	}
	q := askFlags(a, cmd, "text", "json", "yaml")
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) >= 2 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return q.endpoints(cmd, args, word)
	}
	flags := cmd.Flags()
	protocolFlag(cmd, &question.Protocol, "tcp", "protocol of the packet")
	flags.IntVar(&question.Port, "port", 0, "destination port (default 80 for protocols with ports)")
	flags.IntVar(&question.SourcePort, "source-port", 0, "source port (default: any)")
	flags.IntVar(&kind, "icmp-type", 0, "ICMP type (default: that of a ping)")
	flags.IntVar(&code, "icmp-code", 0, "ICMP code")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		question.Source, question.Destination = args[0], args[1]
		if flags.Changed("icmp-type") {
			question.ICMPType = &kind
		}
		if flags.Changed("icmp-code") {
			question.ICMPCode = &code
		}
		for _, name := range []string{"port", "source-port"} {
			if n, _ := flags.GetInt(name); flags.Changed(name) && (n < 1 || n > 65535) {
				return fmt.Errorf("--%s: %d is not a number from 1 to 65535", name, n)
			}
		}
		return q.why(cmd.Context(), question)
	}
	return cmd
}

func (q *asking) why(ctx context.Context, question nodeapi.WhyQuestion) error {
	ctx, cancel := context.WithTimeout(ctx, whyTime)
	defer cancel()
	w, err := q.client().Why(ctx, question)
	if err != nil {
		return q.failed(err)
	}
	if done, err := q.document(w); done {
		return err
	}
	return writeWhy(q.a.Out, w)
}

// writeWhy writes the answer for people.
func writeWhy(out io.Writer, w nodeapi.Why) error {
	var b strings.Builder
	p := w.Packet.String()
	if w.Packet.AnySourcePort {
		p += " (any source port)"
	}
	fmt.Fprintln(&b, p)
	fmt.Fprintf(&b, "  from %s\n  to   %s\n\n", describeEnd(w.Source), describeEnd(w.Destination))

	switch w.Verdict {
	case nodeapi.VerdictAllow:
		b.WriteString("ALLOWED")
	case nodeapi.VerdictDeny:
		b.WriteString("DENIED")
	default:
		b.WriteString("NOT FOR THIS NODE TO SAY")
	}
	if len(w.Hooks) > 0 {
		fmt.Fprintf(&b, " on node %s, at %s", w.Node, strings.Join(w.Hooks, ", then "))
	}
	if w.Reason != "" {
		fmt.Fprintf(&b, " (%s)", w.Reason)
	}
	fmt.Fprintf(&b, "\n  %s\n", w.Explanation)
	if w.Path != "" {
		fmt.Fprintf(&b, "  path: %s\n", w.Path)
	}
	for _, s := range w.Stages {
		b.WriteString("\n")
		writeStage(&b, s)
	}
	if len(w.Flows) > 0 {
		b.WriteString("\nSuch flows are there already. A flow is judged by its first packet, and again when policy has changed:\n")
		for _, f := range w.Flows {
			fmt.Fprintf(&b, "  %s\n", flowLine(f))
		}
	}
	if len(w.Notes) > 0 {
		b.WriteString("\n")
	}
	for _, n := range w.Notes {
		fmt.Fprintf(&b, "Note: %s\n", n)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// describeEnd says who is at an end.
func describeEnd(e nodeapi.End) string {
	switch e.Kind {
	case nodeapi.EndWorkload:
		text := fmt.Sprintf("workload endpoint %s on ", e)
		if e.Local {
			return text + fmt.Sprintf("this node, interface %s", e.Interface)
		}
		return text + "node " + e.Node
	case nodeapi.EndHost:
		return fmt.Sprintf("this node, %s", e.Name)
	case nodeapi.EndNode:
		return e.String()
	}
	return "outside the cluster"
}

// writeStage writes what one policy says.
func writeStage(b *strings.Builder, s nodeapi.Stage) {
	name := s.Direction
	if s.Stage != "normal" {
		name = s.Stage + " " + name
	}
	verdict := map[nodeapi.Verdict]string{nodeapi.VerdictAllow: "allowed", nodeapi.VerdictDeny: "denied"}[s.Verdict]
	switch {
	case verdict == "":
		verdict = "left to the next stage"
	case !s.Reached:
		verdict = "not asked; it would be " + verdict
	case s.Failsafe:
		verdict = "denied, but it is for a failsafe port"
	}
	fmt.Fprintf(b, "%s policy of %s: %s\n", strings.ToUpper(name[:1])+name[1:], s.Endpoint, verdict)
	decided := false
	for _, t := range s.Tiers {
		writeTier(b, t)
		decided = t.Outcome == "Allow" || t.Outcome == "Deny"
	}
	if !decided && s.Explanation != "" {
		fmt.Fprintf(b, "  %s\n", s.Explanation)
	}
	for _, r := range s.Logged {
		fmt.Fprintf(b, "  logged by %s\n", r)
	}
	for _, n := range s.Nearest {
		var missed []string
		for _, m := range n.Missed {
			missed = append(missed, m.Text)
		}
		fmt.Fprintf(b, "  would be allowed by %s%s\n    if %s\n", n.Rule, ruleSuffix(n.Rule), strings.Join(missed, "\n    and "))
	}
	if d := s.Staged; d != nil {
		fmt.Fprintf(b, "  with the staged policies: %s by %s%s\n",
			map[nodeapi.Verdict]string{nodeapi.VerdictAllow: "allowed", nodeapi.VerdictDeny: "denied"}[d.Verdict], d.Rule, ruleSuffix(d.Rule))
	}
}

func writeTier(b *strings.Builder, t nodeapi.Tier) {
	name := "tier " + t.Name
	if t.Name == "" {
		name = strings.Join(t.Policies, ", ")
	}
	switch {
	case t.Matched && t.Rule != nil:
		fmt.Fprintf(b, "  %s: %s by %s%s\n", name, t.Outcome, t.Rule, ruleSuffix(*t.Rule))
	case t.Name == "":
		fmt.Fprintf(b, "  %s: no rule matches\n", name)
	case t.Outcome != "":
		fmt.Fprintf(b, "  %s: no rule of %s matches: %s by default\n", name, list(t.Policies), t.Outcome)
	default:
		fmt.Fprintf(b, "  %s: no rule of %s matches\n", name, list(t.Policies))
	}
}

// list names a few of many.
func list(names []string) string {
	const most = 6
	if len(names) > most {
		return fmt.Sprintf("%s and %d more policies", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

func ruleSuffix(r nodeapi.Rule) string {
	if r.Text == "" {
		return ""
	}
	return ": " + r.Text
}
