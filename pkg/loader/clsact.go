package loader

import (
	"errors"
	"fmt"

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
	filters, err := netlink.FilterList(dev, clsactParent(a.Program))
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil // no clsact qdisc
	}
	if err != nil {
		return err
	}
	for _, f := range filters {
		bf, ok := f.(*netlink.BpfFilter)
		if ok && bf.Handle == clsactHandle && bf.Priority == clsactPriority {
			return netlink.FilterDel(f)
		}
	}
	return nil
}
