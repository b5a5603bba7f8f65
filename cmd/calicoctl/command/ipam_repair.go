package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"calico-xdp/pkg/ipam"

	"github.com/spf13/cobra"
)

// repair does what an audit asks for.
type repair struct {
	allocator *ipam.Allocator
	out       io.Writer
	grace     time.Duration
	// everything: not only what is leaked and orphaned.
	everything bool
	nodes      []string // whose leaked addresses; empty: all
}

func (r repair) run(ctx context.Context, audit *ipam.Audit) error {
	var errs []error
	if r.everything {
		done, err := r.allocator.Repair(ctx, audit.Faults)
		for _, f := range done {
			fmt.Fprintf(r.out, "Repaired %s\n", f)
		}
		errs = append(errs, err)
		for _, u := range audit.Unassigned {
			ok, err := r.allocator.Adopt(ctx, u)
			if ok {
				fmt.Fprintf(r.out, "Assigned %s to %s\n", u.Address, u.User)
			}
			errs = append(errs, err)
		}
	}
	errs = append(errs, r.reclaim(ctx, audit))
	for _, h := range audit.LostHandles {
		errs = append(errs, r.allocator.DropHandle(ctx, h))
	}
	return errors.Join(errs...)
}

// reclaim releases what is leaked now and still is after the grace period.
func (r repair) reclaim(ctx context.Context, audit *ipam.Audit) error {
	var wanted []ipam.Assignment
	for _, al := range audit.Of(ipam.Leaked) {
		if r.mine(al.Node()) {
			wanted = append(wanted, al.Assignment)
		}
	}
	var orphans []ipam.Orphan
	for _, o := range audit.Orphans {
		if r.mine(o.Node) {
			orphans = append(orphans, o)
		}
	}
	if len(wanted)+len(orphans) == 0 {
		return nil
	}
	if r.grace > 0 {
		fmt.Fprintf(r.out, "%s to release, if still so in %s …\n", addresses(len(wanted)), r.grace)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(r.grace):
		}
	}
	freed, err := r.allocator.Reclaim(ctx, wanted)
	for _, as := range freed {
		fmt.Fprintf(r.out, "Released %s (handle %s)\n", as.Address, as.Handle)
	}
	errs := []error{err}
	for _, o := range orphans {
		if err := r.allocator.ReleaseOrphan(ctx, o); err != nil {
			errs = append(errs, fmt.Errorf("block %s: %w", o.Block, err))
			continue
		}
		fmt.Fprintf(r.out, "Released block %s: %s\n", o.Block, o.Text)
	}
	return errors.Join(errs...)
}

func (r repair) mine(node string) bool {
	return len(r.nodes) == 0 || slices.Contains(r.nodes, node)
}

func newIPAMGC(a *app) *cobra.Command {
	r := repair{}
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Release the addresses of workloads and nodes that are gone",
		Long: `Release the addresses of workloads and tunnels that do not exist any more, and the
blocks of nodes that are gone. calico-node does it by itself after 15 minutes, or
as KubeControllersConfiguration's leakGracePeriod says; this does it now.

An address has to be leaked at the beginning and after --grace. One that an
endpoint has is never released, even if the endpoint comes at that moment.`,
		Example: "  calicoctl ipam gc\n  calicoctl ipam gc --node=node-a --grace=1m",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			defer s.Close()
			r.allocator, r.out = ipam.New(s.Client), a.Out
			audit, err := r.allocator.Audit(cmd.Context())
			if err != nil {
				return err
			}
			return r.reclaim(cmd.Context(), audit)
		},
	}
	cmd.Flags().DurationVar(&r.grace, "grace", defaultFixGrace, "how long an address must look leaked")
	cmd.Flags().StringSliceVar(&r.nodes, "node", nil, "only of these nodes")
	return cmd
}

type ipamReleaseOptions struct {
	address string
	reports []string
	force   bool
}

func newIPAMRelease(a *app) *cobra.Command {
	var o ipamReleaseOptions
	cmd := &cobra.Command{
		Use:   "release (--ip=IP | --from-report=FILE...)",
		Short: "Release an address, or the leaked ones of a report",
		Long: `Release an address, whoever has it: only for addresses that nothing will release.
It is not taken from the workload that uses it.

Or release the leaked addresses of a report that "calicoctl ipam check -o FILE"
has written. Of several reports only what is leaked in all of them counts: two
that were written an hour apart prove more than one. At least one must be as new as
the last lock of the datastore. An address that is in use by now, or was
assigned anew, is left alone.`,
		Example: `  calicoctl ipam release --ip=192.168.1.2

  calicoctl datastore migrate lock
  calicoctl ipam check -o report.json
  calicoctl ipam release --from-report=report.json
  calicoctl datastore migrate unlock`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (o.address == "") == (len(o.reports) == 0) {
				return usageError{errors.New("--ip or --from-report is needed"), cmd.CommandPath()}
			}
			s, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			defer s.Close()
			if o.address != "" {
				return a.releaseAddress(cmd.Context(), ipam.New(s.Client), o.address)
			}
			return a.releaseReported(cmd.Context(), ipam.New(s.Client), o)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.address, "ip", "", "address to release")
	flags.StringArrayVar(&o.reports, "from-report", nil, "release the leaked addresses of this report; several times: those that all of them have")
	flags.BoolVar(&o.force, "force", false, "also with the datastore not locked, and with a report of another version")
	return cmd
}

func (a *app) releaseAddress(ctx context.Context, allocator *ipam.Allocator, text string) error {
	address, err := netip.ParseAddr(text)
	if err != nil {
		return fmt.Errorf("--ip: %q is not an address", text)
	}
	err = allocator.ReleaseAddress(ctx, address.Unmap(), ipam.Expect{})
	if errors.Is(err, ipam.ErrNotAssigned) {
		return fmt.Errorf("IP address %s is not assigned", address)
	}
	if err == nil {
		fmt.Fprintf(a.Out, "Successfully released IP address %s\n", address)
	}
	return err
}
