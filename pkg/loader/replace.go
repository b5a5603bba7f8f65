package loader

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Hook is a place where a program of ours is, whoever has put it there.
type Hook struct {
	Attachment
	filter bool // it is a clsact filter, not a link
}

// Hooks are all the hooks in this network namespace that have a program of ours.
func (l Links) Hooks() ([]Hook, error) {
	var out []Hook
	list, err := l.List()
	if err != nil {
		return nil, err
	}
	for a, live := range list {
		if live {
			out = append(out, Hook{Attachment: a})
		}
	}
	devs, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("interfaces: %w", err)
	}
	for _, dev := range devs {
		filters, err := ourFilters(dev)
		if isGone(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("filters of interface %s: %w", dev.Attrs().Name, err)
		}
		for program := range filters {
			out = append(out, Hook{Attachment{program, dev.Attrs().Index}, true})
		}
	}
	slices.SortFunc(out, func(a, b Hook) int {
		return cmp.Or(cmp.Compare(a.Ifindex, b.Ifindex), cmp.Compare(a.Program, b.Program))
	})
	return out, nil
}

// Replace puts the program in the place of the one on the hook, without a gap. That the
// interface is gone is no error.
func (p *Programs) Replace(h Hook) error {
	err := p.use(h.Program, func(prog *ebpf.Program) error {
		if h.filter {
			return attachClsact(prog, h.Attachment)
		}
		_, err := p.links.update(prog, h.Attachment)
		return err
	})
	if err != nil && !isGone(err) {
		return fmt.Errorf("program %s on interface %d: %w", h.Program, h.Ifindex, err)
	}
	return nil
}

// isGone says whether an error comes of an interface that does not exist any more.
func isGone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOLINK) || errors.As(err, &netlink.LinkNotFoundError{})
}

// Become makes the programs of next, which are loaded onto other tables, those of p.
// Next is used up.
func (p *Programs) Become(next *Programs) error {
	p.mu.Lock()
	p.byName, next.byName = next.byName, p.byName
	p.sweep, next.sweep = next.sweep, p.sweep
	p.mu.Unlock()
	return next.Close()
}
