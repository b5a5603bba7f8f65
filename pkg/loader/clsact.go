package loader

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Kernels before 6.6 have no tcx: there the programs are direct-action filters of a
// clsact qdisc, which outlive the process by themselves. Handle and priority are
// ours, so that the next process replaces the same filter.
const (
	clsactPriority = 1
	clsactHandle   = 0xca1c0
)

func clsactParent(p Program) uint32 {
	if p == FromWorkload || p == FromNetwork {
		return netlink.HANDLE_MIN_INGRESS
	}
	return netlink.HANDLE_MIN_EGRESS
}

func attachClsact(prog *ebpf.Program, a Attachment) error {
	qdisc := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: a.Ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("clsact qdisc: %w", err)
	}
	return netlink.FilterReplace(clsactFilter(a, prog.FD()))
}

func clsactFilter(a Attachment, fd int) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: a.Ifindex, Parent: clsactParent(a.Program), Handle: clsactHandle,
			Priority: clsactPriority, Protocol: unix.ETH_P_ALL,
		},
		Fd: fd, Name: string(a.Program), DirectAction: true,
	}
}

// ourFilters are our filters on an interface, by program.
func ourFilters(dev netlink.Link) (map[Program]netlink.Filter, error) {
	out := make(map[Program]netlink.Filter)
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		filters, err := netlink.FilterList(dev, parent)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue // no clsact qdisc
		}
		if err != nil {
			return nil, err
		}
		for _, f := range filters {
			if bf, ok := f.(*netlink.BpfFilter); ok && bf.Handle == clsactHandle && bf.Priority == clsactPriority {
				name, _, _ := strings.Cut(bf.Name, ":")
				out[Program(name)] = f
			}
		}
	}
	return out, nil
}

func detachClsact(a Attachment) error {
	if a.Program == XDPNetwork {
		return nil
	}
	dev, err := netlink.LinkByIndex(a.Ifindex)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	filters, err := ourFilters(dev)
	if err != nil || filters[a.Program] == nil {
		return err
	}
	return netlink.FilterDel(filters[a.Program])
}

// DetachClsact removes our filters from every interface of this network namespace
// and says which.
func DetachClsact() ([]Attachment, error) {
	devs, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("interfaces: %w", err)
	}
	var out []Attachment
	var errs []error
	for _, dev := range devs {
		filters, err := ourFilters(dev)
		errs = append(errs, err)
		for program, f := range filters {
			if err := netlink.FilterDel(f); err != nil {
				errs = append(errs, err)
				continue
			}
			out = append(out, Attachment{program, dev.Attrs().Index})
		}
	}
	return out, errors.Join(errs...)
}
