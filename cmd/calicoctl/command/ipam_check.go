package command

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"time"

	"calico-xdp/cmd/calicoctl/output"
	"calico-xdp/pkg/api"
	"calico-xdp/pkg/ipam"

	"github.com/spf13/cobra"
)

type ipamCheckOptions struct {
	all, problems bool
	fix           bool
	grace         time.Duration
	output        string
	kubeconfig    string
}

const defaultFixGrace = 10 * time.Second

func newIPAMCheck(a *app) *cobra.Command {
	var o ipamCheckOptions
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Find addresses that are leaked, used twice or used without being assigned",
		Long: `Compare what is assigned with who has an address: workload endpoints, and the
tunnels of nodes. The exit code is 1 if something is wrong. What is looked for:

  leaked      assigned to a workload or a tunnel that does not exist
  unassigned  in use and in a pool, but free in IPAM's eyes
  conflict    used by several, or by another one than it was assigned to
  orphan      blocks of nodes that do not exist, empty blocks of no pool
  fault       blocks, affinities and handles that contradict each other

--fix releases what is leaked, assigns what is unassigned, takes blocks away
from nodes that are gone, and makes blocks, affinities and handles agree. An
address counts as leaked if it was so at the beginning and after --grace; one that
an endpoint has is never released, even if the endpoint comes at that moment.
Conflicts are left to you: one of the workloads has to go. So are addresses that
nothing says the use of, assigned by hand or by other software; they are listed
and not counted.`,
		Example: `  # Is all well? What is wrong?
  calicoctl ipam check
  calicoctl ipam check --show-problem-ips

  # A report for "calicoctl ipam release --from-report", or for programs.
  calicoctl ipam check -o report.json
  calicoctl ipam check -o json

  # Repair what can be repaired.
  calicoctl ipam check --fix`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.ipamCheck(cmd.Context(), o) },
	}
	flags := cmd.Flags()
	flags.BoolVar(&o.all, "show-all-ips", false, "list all addresses that are assigned")
	flags.BoolVar(&o.problems, "show-problem-ips", false, "list all problems, however many")
	flags.BoolVar(&o.fix, "fix", false, "repair what can be repaired")
	flags.DurationVar(&o.grace, "grace", defaultFixGrace, "how long an address must look leaked before --fix releases it")
	flags.StringVarP(&o.output, "output", "o", "", `write a report to this file; "json": to standard output, and nothing else`)
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "accepted for compatibility")
	_ = flags.MarkHidden("kubeconfig")
	return cmd
}

func (a *app) ipamCheck(ctx context.Context, o ipamCheckOptions) error {
	s, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	allocator := ipam.New(s.Client)
	audit, err := allocator.Audit(ctx)
	if err != nil {
		return err
	}
	text := a.Out
	if o.output == "json" {
		text = io.Discard
	}
	if o.fix {
		r := repair{allocator: allocator, out: text, grace: o.grace, everything: true}
		if err := r.run(ctx, audit); err != nil {
			return err
		}
		if audit, err = allocator.Audit(ctx); err != nil {
			return err
		}
	}
	writeAudit(text, audit, o)
	switch o.output {
	case "":
	case "json":
		err = output.WriteJSON(a.Out, a.reportOf(audit))
	default:
		err = a.writeReport(o.output, audit)
	}
	if err != nil {
		return err
	}
	if n := audit.Problems(); n > 0 {
		return fmt.Errorf("IPAM: %s", plural(n, "problem"))
	}
	return nil
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// shortList is how many of a sort of problem are listed unless all are asked for.
const shortList = 20

func writeAudit(w io.Writer, r *ipam.Audit, o ipamCheckOptions) {
	fmt.Fprintf(w, "%s with %s assigned, %s, %s, %s, %s.\n", plural(r.Blocks, "block"), addresses(len(r.Allocations)),
		plural(r.Handles, "handle"), plural(r.Endpoints, "workload endpoint"), plural(r.Nodes, "node"), plural(len(r.Pools), "enabled pool"))
	if o.all {
		for _, al := range r.Allocations {
			state := "used by " + al.UserNames()
			switch {
			case al.State == ipam.Leaked:
				state = "leaked"
			case al.State == ipam.Unknown:
				state = "use unknown"
			case len(al.Users) == 0:
				state = "kept"
			}
			fmt.Fprintf(w, "  %s  %s  %s\n", al.Address, state, describe(al))
		}
	}
	section := func(title string, lines []string) {
		if len(lines) == 0 {
			return
		}
		fmt.Fprintf(w, "%s: %d\n", title, len(lines))
		for i, line := range lines {
			if i == shortList && !o.problems && !o.all {
				fmt.Fprintf(w, "  … and %d more (--show-problem-ips)\n", len(lines)-i)
				break
			}
			fmt.Fprintf(w, "  %s\n", line)
		}
	}
	var leaked, unknown, unassigned, foreign, conflicts, faults, leftovers, handles, orphans, unread []string
	for _, al := range r.Of(ipam.Leaked) {
		leaked = append(leaked, al.Address.String()+"  "+describe(al))
	}
	for _, al := range r.Of(ipam.Unknown) {
		unknown = append(unknown, al.Address.String()+"  "+describe(al))
	}
	for _, u := range r.Unassigned {
		unassigned = append(unassigned, u.Address.String()+"  used by "+u.User.String())
	}
	for _, u := range r.Foreign {
		foreign = append(foreign, u.Address.String()+"  used by "+u.User.String())
	}
	for _, c := range r.Conflicts {
		conflicts = append(conflicts, c.Address.String()+"  "+c.Text)
	}
	for _, f := range r.Faults {
		if f.Leftover {
			leftovers = append(leftovers, f.String())
		} else {
			faults = append(faults, f.String())
		}
	}
	for _, h := range r.LostHandles {
		handles = append(handles, h.ID)
	}
	for _, or := range r.Orphans {
		orphans = append(orphans, or.Block.String()+"  "+or.Text)
	}
	for _, k := range r.Unread {
		unread = append(unread, k.String())
	}
	section("Leaked", leaked)
	section("In use but not assigned", unassigned)
	section("Conflicts", conflicts)
	section("Faults", faults)
	section("Orphaned blocks", orphans)
	section("Handles without an address", handles)
	section("Stored objects that cannot be read", unread)
	section("Not counted: left by writers that died, or under way", leftovers)
	section("Not counted: assigned, and nothing says whether used", unknown)
	section("Not counted: in use, in no enabled pool", foreign)
	fmt.Fprintf(w, "Check complete; found %d problems.\n", r.Problems()) // Calico's words
}

func addresses(n int) string {
	if n == 1 {
		return "1 address"
	}
	return fmt.Sprintf("%d addresses", n)
}

func describe(al ipam.Allocation) string {
	out := "handle " + al.Handle
	if al.Handle == "" {
		out = "no handle"
	}
	for _, name := range slices.Sorted(maps.Keys(al.Attributes)) {
		out += " " + name + "=" + al.Attributes[name]
	}
	return out
}

// The report of `ipam check -o`, as Calico's calicoctl writes and reads it.
type (
	ipamReport struct {
		Version         string                        `json:"version"`
		ClusterGUID     string                        `json:"clusterGUID"`
		DatastoreLocked bool                          `json:"datastoreLocked"`
		ClusterRevision string                        `json:"clusterInformationRevision"`
		ClusterType     string                        `json:"clusterType"`
		Allocations     map[string][]reportAllocation `json:"allocations"`
		LeakedHandles   []reportHandle                `json:"leakedHandles,omitempty"`
		// Ours alone.
		Problems   int          `json:"problems"`
		Unassigned []reportUse  `json:"unassigned,omitempty"`
		Foreign    []reportUse  `json:"outsidePools,omitempty"`
		Conflicts  []reportText `json:"conflicts,omitempty"`
		Orphans    []reportText `json:"orphans,omitempty"`
		Faults     []reportText `json:"faults,omitempty"`
		Leftovers  []reportText `json:"leftovers,omitempty"`
		Unread     []string     `json:"unread,omitempty"`
	}
	reportAllocation struct {
		IP        string   `json:"ip"`
		Handle    string   `json:"handle,omitempty"`
		Sequence  *uint64  `json:"sequenceNumber,omitempty"`
		Pod       string   `json:"pod,omitempty"`
		Namespace string   `json:"namespace,omitempty"`
		Node      string   `json:"node,omitempty"`
		Type      string   `json:"type,omitempty"`
		InUse     bool     `json:"inUse"`
		Borrowed  bool     `json:"borrowed,omitempty"`
		Owners    []string `json:"owners"`
	}
	reportHandle struct {
		ID       string
		UID      *string
		Revision string
	}
	reportUse struct {
		IP   string `json:"ip"`
		User string `json:"user"`
	}
	reportText struct {
		Object string `json:"object"`
		Text   string `json:"text"`
	}
)

func (a *app) reportOf(r *ipam.Audit) ipamReport {
	out := ipamReport{Version: a.Build.Version, Allocations: map[string][]reportAllocation{}, Problems: r.Problems()}
	if c := r.Cluster; c != nil {
		out.ClusterGUID, out.ClusterType, out.ClusterRevision = c.Spec.ClusterGUID, c.Spec.ClusterType, c.ResourceVersion
		out.DatastoreLocked = api.Locked(c)
	}
	for _, al := range r.Allocations {
		ip := al.Address.String()
		entry := reportAllocation{
			IP: ip, Handle: al.Handle, Sequence: new(al.Sequence), Pod: al.Attributes[ipam.AttributePod],
			Namespace: al.Attributes[ipam.AttributeNamespace], Node: al.Node(), Type: al.Attributes[ipam.AttributeType],
			// Who reads this releases what is not in use.
			InUse: al.State != ipam.Leaked, Borrowed: al.Node() != al.Owner,
		}
		for _, u := range al.Users {
			entry.Owners = append(entry.Owners, u.String())
		}
		if al.State == ipam.Unknown {
			entry.Owners = append(entry.Owners, "(not known)")
		}
		out.Allocations[ip] = append(out.Allocations[ip], entry)
	}
	for _, h := range r.LostHandles {
		out.LeakedHandles = append(out.LeakedHandles, reportHandle{ID: h.ID, Revision: h.ResourceVersion})
	}
	for _, u := range r.Unassigned {
		out.Unassigned = append(out.Unassigned, reportUse{u.Address.String(), u.User.String()})
	}
	for _, u := range r.Foreign {
		out.Foreign = append(out.Foreign, reportUse{u.Address.String(), u.User.String()})
	}
	for _, c := range r.Conflicts {
		out.Conflicts = append(out.Conflicts, reportText{c.Address.String(), c.Text})
	}
	for _, o := range r.Orphans {
		out.Orphans = append(out.Orphans, reportText{o.Block.String(), o.Text})
	}
	for _, f := range r.Faults {
		list := &out.Faults
		if f.Leftover {
			list = &out.Leftovers
		}
		*list = append(*list, reportText{f.Object.String(), f.Text})
	}
	for _, k := range r.Unread {
		out.Unread = append(out.Unread, k.String())
	}
	return out
}

func (a *app) writeReport(path string, r *ipam.Audit) error {
	data, err := json.MarshalIndent(a.reportOf(r), "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o600)
}
