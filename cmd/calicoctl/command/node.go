package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"calico-xdp/cmd/calicoctl/output"
	"calico-xdp/pkg/nodeapi"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// answerTime is how long the daemon may take to say how it is.
const answerTime = 4 * time.Second

// recent is how long ago a change may be to be shown by its time of day.
const recent = 20 * time.Hour

func newNode(a *app) *cobra.Command {
	cmd := group("node", "This host's calico-node",
		"Start, end and ask the calico-node on this host.", "  calicoctl node run --ip=autodetect\n  calicoctl node status\n  calicoctl node tables",
		newNodeRun(a), newNodeStop(a), newNodeStatus(a), newNodeRoutes(a), newNodeTables(a), newNodeCheckSystem(a), newNodeDiags(a))
	// As in 2015: "node --ip=…" starts it, "node bgp peer" is about its own peers.
	peers := newLegacyPeers(a, "bgppeer", true)
	peers.Hidden = true
	bgp := group("bgp", "BGP peers of this node, in the grammar of 2015", "BGP peers of this node alone.", "  calicoctl node bgp peer show", newLegacyPeers(a, "peer", true))
	bgp.Hidden = true
	cmd.AddCommand(peers, bgp)
	var o nodeRunOptions
	o.flags(cmd)
	for _, name := range []string{"ip", "ip6", "as", "name", "ip-autodetection-method", "ip6-autodetection-method", "backend", "log-dir", "run-dir", "no-default-ippools", "dryrun", "foreground"} {
		_ = cmd.Flags().MarkHidden(name)
	}
	help := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 || cmd.Flags().NFlag() == 0 {
			return help(cmd, args)
		}
		return a.nodeRun(cmd.Context(), o)
	}
	return cmd
}

func newNodeTables(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tables",
		Short: "Show how full the kernel's tables are",
		Long: `Show how full the eBPF tables of this host are. A table that is full grows by itself
up to LARGEST; where that is not enough, what does not fit is closed, and said here,
in the log and in 'calicoctl node status'.`,
		Example: `  calicoctl node tables

  # For programs.
  calicoctl node tables -o json`,
		Args: noArgs,
	}
	q := askFlags(a, cmd, "table", "json", "yaml")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), answerTime)
		defer cancel()
		tables, err := q.client().Tables(ctx)
		if err != nil {
			return q.failed(err)
		}
		if done, err := q.document(tables); done {
			return err
		}
		return writeTables(a.Out, tables)
	}
	return cmd
}

func writeTables(w io.Writer, tables []nodeapi.Table) error {
	var rows [][]string
	for _, t := range tables {
		fill, largest := "-", "-"
		if t.Capacity > 0 {
			fill = fmt.Sprintf("%d%%", 100*t.Entries/t.Capacity)
		}
		if t.Largest > 0 {
			largest = strconv.Itoa(t.Largest)
		}
		rows = append(rows, []string{t.Name, strconv.Itoa(t.Entries), strconv.Itoa(t.Capacity), fill, largest, t.Problem})
	}
	return plain(w, []string{"TABLE", "ENTRIES", "CAPACITY", "FILL", "LARGEST", "PROBLEM"}, rows)
}

func newNodeStatus(a *app) *cobra.Command {
	var runDir, format string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show whether calico-node runs on this host, and its BGP sessions",
		Long: `Show whether calico-node runs on this host, and the state of its BGP sessions.
What it could not apply follows, if there is anything. Fails if it does not run.`,
		Example: `  calicoctl node status

  # Everything that the node knows of itself: addresses, endpoints, sync.
  calicoctl node status -o yaml

  # One of several on the same machine.
  calicoctl node status --run-dir /run/calico-b`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.nodeStatus(cmd.Context(), cmp.Or(runDir, a.Env("CALICO_RUN_DIR"), nodeapi.DefaultRunDir), format)
		},
	}
	cmd.Flags().StringVar(&runDir, "run-dir", "", "run directory of calico-node (default $CALICO_RUN_DIR, or "+nodeapi.DefaultRunDir+")")
	cmd.Flags().StringVarP(&format, "output", "o", "", "output: table, json, yaml")
	return cmd
}

// nodeReport is the output of node status for programs.
type nodeReport struct {
	nodeapi.Status
	BGP nodeapi.BGPStatus `json:"bgp"`
}

func (a *app) nodeStatus(ctx context.Context, runDir, format string) error {
	switch format {
	case "", "table", "ps", "json", "yaml":
	default:
		return fmt.Errorf("--output: %q is none of table, json, yaml", format)
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	client := nodeapi.NewClient(runDir)
	var (
		r   nodeReport
		err error
	)
	if r.Status, err = client.Status(ctx); err == nil {
		r.BGP, err = client.BGP(ctx)
	}
	if errors.Is(err, nodeapi.ErrNotRunning) {
		//lint:ignore ST1005 Calico's own words, which scripts look for
		return errors.New("Calico process is not running.")
	}
	if err != nil {
		return err
	}
	switch format {
	case "json":
		return output.WriteJSON(a.Out, r)
	case "yaml":
		data, err := yaml.Marshal(r)
		if err != nil {
			return err
		}
		_, err = a.Out.Write(data)
		return err
	}
	return writeNodeStatus(a.Out, r, time.Now())
}

func writeNodeStatus(w io.Writer, r nodeReport, now time.Time) error {
	fmt.Fprintln(w, "Calico process is running.")
	if !r.BGP.Enabled {
		fmt.Fprintf(w, "\nBGP is not in use (backend %q).\n", r.Backend)
	} else {
		for _, family := range []string{"v4", "v6"} {
			if err := writePeers(w, family, r.BGP.Peers, now); err != nil {
				return err
			}
		}
	}
	if !r.InSync {
		fmt.Fprintln(w, "\nThe node has not applied everything in the datastore yet.")
	}
	if r.Error != "" {
		fmt.Fprintf(w, "\nThe last round did not complete: %s\n", r.Error)
	}
	if len(r.Problems) > 0 {
		fmt.Fprintln(w, "\nNot applied, or not whole")
		for _, p := range r.Problems {
			fmt.Fprintf(w, "  %s: %s\n", p.Object, strings.ReplaceAll(p.Error, "\n", "\n    "))
		}
	}
	_, err := fmt.Fprintln(w)
	return err
}

func writePeers(w io.Writer, family string, peers []nodeapi.BGPPeerStatus, now time.Time) error {
	fmt.Fprintf(w, "\nIP%s BGP status\n", family)
	var rows [][]string
	for _, p := range peers {
		if p.Family == family {
			rows = append(rows, []string{p.Address, p.Type, p.State, since(p.Since, now), p.Info})
		}
	}
	if rows == nil {
		_, err := fmt.Fprintf(w, "No IP%s peers found.\n", family)
		return err
	}
	return output.Bordered(w, []output.Column{
		{Heading: "PEER ADDRESS"}, {Heading: "PEER TYPE"}, {Heading: "STATE"}, {Heading: "SINCE"}, {Heading: "INFO"},
	}, rows)
}

// since writes a time as users of BIRD know it: the time of day, or the date if
// that was long ago.
func since(t, now time.Time) string {
	switch {
	case t.IsZero():
		return ""
	case now.Sub(t) < recent:
		return t.Local().Format(time.TimeOnly)
	}
	return t.Local().Format(time.DateOnly)
}
