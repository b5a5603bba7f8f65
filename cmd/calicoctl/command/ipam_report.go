package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/ipam"
)

// releaseReported releases what all reports call leaked, as far as it still is.
func (a *app) releaseReported(ctx context.Context, allocator *ipam.Allocator, o ipamReleaseOptions) error {
	audit, err := allocator.Audit(ctx)
	if err != nil {
		return err
	}
	if audit.Cluster == nil {
		return errors.New("the datastore does not say which cluster it is of: there is no ClusterInformation")
	}
	leaked, handles, err := a.readReports(audit.Cluster, o)
	if err != nil {
		return err
	}
	if !api.Locked(audit.Cluster) {
		if !o.force {
			return errors.New("the datastore is not locked: lock it (calicoctl datastore migrate lock) and write a new report, or use --force")
		}
		fmt.Fprintln(a.Err, "Warning: the datastore is not locked.")
	}

	var reclaim []ipam.Assignment
	var errs []error
	released, kept, gone := 0, 0, len(leaked)
	for _, al := range audit.Allocations {
		reported, ok := leaked[al.Address]
		if !ok {
			continue
		}
		switch {
		case al.Handle != reported.Handle || reported.Sequence != nil && al.Sequence != *reported.Sequence:
			continue // released since, and assigned anew
		case al.State == ipam.Leaked:
			reclaim = append(reclaim, al.Assignment)
		case al.State == ipam.Unknown: // the report's writer knew better
			err := allocator.ReleaseAddress(ctx, al.Address, ipam.Expect{Handle: al.Handle, Sequence: al.Sequence})
			if err == nil {
				released++
			}
			if !errors.Is(err, ipam.ErrNotAssigned) && !errors.Is(err, ipam.ErrNotOwner) {
				errs = append(errs, err)
			}
		default:
			kept++
		}
		gone--
	}
	freed, err := allocator.Reclaim(ctx, reclaim)
	released += len(freed)
	errs = append(errs, err)
	for _, h := range handles {
		errs = append(errs, allocator.DropHandle(ctx, ipam.LostHandle{ID: h.ID, ResourceVersion: h.Revision}))
	}
	fmt.Fprintf(a.Out, "Released %s", addresses(released))
	if kept > 0 {
		fmt.Fprintf(a.Out, "; %d in use by now, left alone", kept)
	}
	if gone > 0 {
		fmt.Fprintf(a.Out, "; %d released before", gone)
	}
	fmt.Fprintln(a.Out, ".")
	if err := errors.Join(errs...); err != nil {
		return err
	}
	fmt.Fprintln(a.Out, "You may now unlock the datastore.")
	return nil
}

// readReports returns what is leaked in all of the reports.
func (a *app) readReports(cluster *api.ClusterInformation, o ipamReleaseOptions) (map[netip.Addr]reportAllocation, []reportHandle, error) {
	var leaked map[netip.Addr]reportAllocation
	var handles map[string]reportHandle
	fresh := false
	for _, path := range o.reports {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, nil, err
		}
		var r ipamReport
		if err := json.Unmarshal(data, &r); err != nil {
			return nil, nil, fmt.Errorf("%s: not a report: %w", path, err)
		}
		if r.ClusterGUID != cluster.Spec.ClusterGUID {
			return nil, nil, fmt.Errorf("%s: a report of another cluster (%s)", path, r.ClusterGUID)
		}
		if r.Version != a.Build.Version {
			if !o.force {
				return nil, nil, fmt.Errorf("%s: written by version %s, this is %s; --force takes it all the same", path, r.Version, a.Build.Version)
			}
			fmt.Fprintf(a.Err, "Warning: %s was written by version %s.\n", path, r.Version)
		}
		fresh = fresh || r.ClusterRevision == cluster.ResourceVersion
		leaked, handles = r.and(leaked, handles)
	}
	if !fresh {
		return nil, nil, errors.New("all reports are older than the last lock or unlock of the datastore: write a new one")
	}
	var out []reportHandle
	for _, h := range handles {
		out = append(out, h)
	}
	return leaked, out, nil
}

// and returns what is leaked in r and in what former reports have in common, nil:
// there were none.
func (r ipamReport) and(leaked map[netip.Addr]reportAllocation, handles map[string]reportHandle) (map[netip.Addr]reportAllocation, map[string]reportHandle) {
	addresses, lost := make(map[netip.Addr]reportAllocation), make(map[string]reportHandle)
	for ip, list := range r.Allocations {
		address, err := netip.ParseAddr(ip)
		for _, al := range list {
			before, ok := leaked[address]
			same := ok && before.Handle == al.Handle && (before.Sequence == nil || al.Sequence == nil || *before.Sequence == *al.Sequence)
			if err == nil && !al.InUse && (leaked == nil || same) {
				addresses[address] = al
			}
		}
	}
	for _, h := range r.LeakedHandles {
		if before, ok := handles[h.ID]; handles == nil || ok && before.Revision == h.Revision {
			lost[h.ID] = h
		}
	}
	return addresses, lost
}
