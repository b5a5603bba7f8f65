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
	if err := netlink.QdiscAdd(clsactQdisc(a.Ifindex)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("clsact qdisc: %w", err)
	}
	return netlink.FilterReplace(clsactFilter(a, prog.FD()))
}

func clsactQdisc(ifindex int) netlink.Qdisc {
	return &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
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

// dump lists anew what has changed while the kernel was listing it.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	out, err := list()
	for try := 0; try < 10 && errors.Is(err, netlink.ErrDumpInterrupted); try++ {
		out, err = list()
	}
	return out, err
}

// ourFilters are our filters on an interface, by program.
func ourFilters(dev netlink.Link) (map[Program]netlink.Filter, error) {
	out := make(map[Program]netlink.Filter)
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		filters, err := dump(func() ([]netlink.Filter, error) { return netlink.FilterList(dev, parent) })
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
	if err == nil && filters[a.Program] != nil {
		if err = netlink.FilterDel(filters[a.Program]); err == nil {
			err = removeEmptyClsact(dev)
		}
	}
	return unlessGone(err, dev)
}

// unlessGone forgets an error about an interface that has gone meanwhile: its filters and
// its qdisc have gone with it, in whatever order.
func unlessGone(err error, dev netlink.Link) error {
	if err == nil || isGone(err) {
		return nil
	}
	if _, gone := netlink.LinkByIndex(dev.Attrs().Index); isGone(gone) {
		return nil
	}
	return err
}

// removeEmptyClsact removes the clsact qdisc when nobody's filter is left on it.
func removeEmptyClsact(dev netlink.Link) error {
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		filters, err := dump(func() ([]netlink.Filter, error) { return netlink.FilterList(dev, parent) })
		if err != nil {
			return err
		}
		if len(filters) > 0 {
			return nil
		}
	}
	return netlink.QdiscDel(clsactQdisc(dev.Attrs().Index))
}

// DetachClsact removes our filters from every interface of this network namespace
// and says which.
func DetachClsact() ([]Attachment, error) {
	devs, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("interfaces: %w", err)
	}
	var out []Attachment
	var errs []error
	for _, dev := range devs {
		filters, err := ourFilters(dev)
		errs = append(errs, unlessGone(err, dev))
		for program, f := range filters {
			if err := netlink.FilterDel(f); err != nil {
				errs = append(errs, unlessGone(err, dev))
				continue
			}
			out = append(out, Attachment{program, dev.Attrs().Index})
		}
		if len(filters) > 0 {
			errs = append(errs, unlessGone(removeEmptyClsact(dev), dev))
		}
	}
	return out, errors.Join(errs...)
}
