package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"calico-xdp/cmd/calicoctl/output"
	"calico-xdp/pkg/api"
	"calico-xdp/pkg/nodeapi"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// asking is how a command reaches the calico-node of this host, and what it makes of
// the answer.
type asking struct {
	a      *app
	runDir string
	node   string // a socket
	format string
}

// askFlags adds the flags that all commands have which ask calico-node. formats are the
// output's.
func askFlags(a *app, cmd *cobra.Command, formats ...string) *asking {
	q := &asking{a: a}
	flags := cmd.Flags()
	flags.StringVar(&q.runDir, "run-dir", "", "run directory of calico-node (default $CALICO_RUN_DIR, or "+nodeapi.DefaultRunDir+")")
	flags.StringVar(&q.node, "node", "", "socket of the calico-node to ask, in place of a run directory")
	flags.StringVarP(&q.format, "output", "o", "", "output: "+strings.Join(formats, ", "))
	complete(cmd, "output", formats...)
	validate := func(*cobra.Command, []string) error {
		if q.format != "" && !slices.Contains(formats, q.format) {
			return fmt.Errorf("--output: %q is none of %s", q.format, strings.Join(formats, ", "))
		}
		return nil
	}
	cmd.PreRunE = validate
	return q
}

// complete offers values of a flag to the shell.
func complete(cmd *cobra.Command, flag string, values ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

func (q *asking) directory() string {
	if q.node != "" {
		if filepath.Base(q.node) == filepath.Base(nodeapi.SocketPath("")) {
			return filepath.Dir(q.node)
		}
		return q.node
	}
	return cmp.Or(q.runDir, q.a.Env("CALICO_RUN_DIR"), nodeapi.DefaultRunDir)
}

func (q *asking) client() *nodeapi.Client { return nodeapi.NewClient(q.directory()) }

// failed says in one line what went wrong.
func (q *asking) failed(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("calico-node's socket %s is root's: run this as root", nodeapi.SocketPath(q.directory()))
	case errors.Is(err, nodeapi.ErrNotRunning):
		return fmt.Errorf("calico-node is not running on this host: nothing answers on %s", nodeapi.SocketPath(q.directory()))
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("calico-node has not answered in %s; calicoctl node status says how it is", answerTime)
	}
	return err
}

// document writes an answer for programs; false if it is to be for people.
func (q *asking) document(v any) (done bool, err error) {
	switch q.format {
	case "json":
		return true, output.WriteJSON(q.a.Out, v)
	case "yaml":
		data, err := yaml.Marshal(v)
		if err == nil {
			_, err = q.a.Out.Write(data)
		}
		return true, err
	}
	return false, nil
}

// endpoints offers this node's endpoints to the shell.
func (q *asking) endpoints(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), answerTime)
	defer cancel()
	status, err := q.client().Status(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	out := []cobra.Completion{"host"}
	for _, e := range status.Endpoints {
		out = append(out, e.Namespace+"/"+e.Name)
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// endpointFlag adds --endpoint.
func (q *asking) endpointFlag(cmd *cobra.Command, to *string, what string) {
	cmd.Flags().StringVar(to, "endpoint", "", what+": a name as in 'calicoctl why', or an address")
	_ = cmd.RegisterFlagCompletionFunc("endpoint", q.endpoints)
}

// policyFlag adds --policy.
func policyFlag(cmd *cobra.Command, to *string, what string) {
	cmd.Flags().StringVar(to, "policy", "", what+": NAME, NAMESPACE/NAME or KIND/[NAMESPACE/]NAME")
}

// protocolFlag adds --protocol.
func protocolFlag(cmd *cobra.Command, to *string, otherwise, what string) {
	cmd.Flags().StringVarP(to, "protocol", "p", otherwise, what+": tcp, udp, icmp, icmpv6, sctp, udplite or a number")
	complete(cmd, "protocol", "tcp", "udp", "icmp", "icmpv6", "sctp", "udplite")
}

// endName is an end of a flow for people: name and port. An IPv6 address has brackets
// in front of a port.
func endName(e nodeapi.End) string {
	name := e.String()
	switch {
	case e.Port == 0:
		return name
	case e.Name == "" && e.Address.Is6():
		return fmt.Sprintf("[%s]:%d", name, e.Port)
	}
	return fmt.Sprintf("%s:%d", name, e.Port)
}

// endAddress is an end's address and port.
func endAddress(e nodeapi.End) string {
	e.Name = ""
	return endName(e)
}

// icmpText is type and code of an ICMP message, empty for other packets.
func icmpText(kind, code *int) string {
	if kind == nil || code == nil {
		return ""
	}
	switch [2]int{*kind, *code} {
	case [2]int{8, 0}, [2]int{128, 0}:
		return " ping"
	case [2]int{0, 0}, [2]int{129, 0}:
		return " pong"
	}
	return fmt.Sprintf(" type %d code %d", *kind, *code)
}

// policyText names the policy of a rule for a table.
func policyText(r nodeapi.Rule) string {
	if r.Kind == "" {
		return "-"
	}
	return output.Name(api.Key{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name})
}

// ruleIndex is a rule's place in its policy for a table: "ingress[2]".
func ruleIndex(r nodeapi.Rule) string {
	switch {
	case r.Index >= 0:
		return fmt.Sprintf("%s[%d]", r.Direction, r.Index)
	case r.Kind == "":
		return r.Direction + " end"
	}
	return r.Direction + " closed"
}

// plain writes a table as 'calicoctl get' does.
func plain(w io.Writer, headings []string, rows [][]string) error {
	return output.Plain(w, headings, rows)
}
