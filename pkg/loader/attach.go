package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Links says how programs are attached and where that is remembered.
type Links struct {
	// Dir is a directory on a bpffs: every attachment is pinned there, so that it
	// outlives the process and the next one replaces its program in place.
	Dir string
	// Clsact attaches tc programs as filters of a clsact qdisc although the kernel
	// has tcx (6.6 and later).
	Clsact bool
}

// Attachment is one program on one interface.
type Attachment struct {
	Program Program
	Ifindex int
}

// attachTypes are the tcx hooks of the tc programs.
var attachTypes = map[Program]ebpf.AttachType{
	FromWorkload: ebpf.AttachTCXIngress,
	ToWorkload:   ebpf.AttachTCXEgress,
	FromNetwork:  ebpf.AttachTCXIngress,
	ToNetwork:    ebpf.AttachTCXEgress,
}

// Attach attaches a program to an interface, or puts it in the place of an older
// version without a gap. Calling it again is harmless.
func (p *Programs) Attach(a Attachment) error {
	err := p.use(a.Program, func(prog *ebpf.Program) error {
		switch {
		case a.Program == XDPNetwork:
			return p.links.attachXDP(prog, a)
		case p.links.Clsact:
			return attachClsact(prog, a)
		}
		err := p.links.attachTCX(prog, a)
		if errors.Is(err, ebpf.ErrNotSupported) {
			err = attachClsact(prog, a)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("program %s on interface %d: %w", a.Program, a.Ifindex, err)
	}
	return nil
}

// AttachAll is Attach for many, quickly, and returns what could not be attached.
func (p *Programs) AttachAll(list []Attachment) map[Attachment]error {
	failed := make(map[Attachment]error)
	var fresh []Attachment
	attach := func(a Attachment) {
		if err := p.Attach(a); err != nil {
			failed[a] = err
		}
	}
	for _, a := range list {
		if _, err := os.Lstat(p.links.pin(a)); err != nil {
			fresh = append(fresh, a)
		} else {
			attach(a) // only replaces the program, which does not wait
		}
	}
	defer p.links.hurry(len(fresh))()
	for _, a := range fresh {
		attach(a)
	}
	return failed
}

// update puts prog into the pinned link if there is one for this interface.
func (l Links) update(prog *ebpf.Program, a Attachment) (bool, error) {
	pinned, err := link.LoadPinnedLink(l.pin(a), nil)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer pinned.Close()
	if ifindex, err := linkIfindex(pinned); err != nil || ifindex != a.Ifindex {
		// Its interface is gone and the number was given to another one.
		return false, pinned.Unpin()
	}
	return true, pinned.Update(prog)
}

// keep pins a new link.
func (l Links) keep(made link.Link, a Attachment) error {
	if err := os.MkdirAll(l.Dir, 0o700); err != nil {
		return errors.Join(err, made.Close())
	}
	return errors.Join(made.Pin(l.pin(a)), made.Close())
}

func (l Links) attachTCX(prog *ebpf.Program, a Attachment) error {
	if done, err := l.update(prog, a); done || err != nil {
		return err
	}
	made, err := link.AttachTCX(link.TCXOptions{Interface: a.Ifindex, Program: prog, Attach: attachTypes[a.Program]})
	if err != nil {
		return err
	}
	return l.keep(made, a)
}

func (l Links) attachXDP(prog *ebpf.Program, a Attachment) error {
	if done, err := l.update(prog, a); done || err != nil {
		return err
	}
	made, err := link.AttachXDP(link.XDPOptions{Interface: a.Ifindex, Program: prog, Flags: link.XDPDriverMode})
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("another XDP program is on the interface and stays: %w", err)
	}
	if err != nil { // the driver cannot: before the stack instead
		made, err = link.AttachXDP(link.XDPOptions{Interface: a.Ifindex, Program: prog, Flags: link.XDPGenericMode})
	}
	if err != nil {
		return err
	}
	return l.keep(made, a)
}

// Detach takes a program off an interface. That it is not there is no error.
func (l Links) Detach(a Attachment) error {
	if err := detachClsact(a); err != nil {
		return fmt.Errorf("program %s on interface %d: %w", a.Program, a.Ifindex, err)
	}
	pinned, err := link.LoadPinnedLink(l.pin(a), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("program %s on interface %d: %w", a.Program, a.Ifindex, err)
	}
	return errors.Join(pinned.Unpin(), pinned.Close())
}

// DetachAll is Detach for many, quickly, and returns what could not be detached.
func (l Links) DetachAll(list []Attachment) map[Attachment]error {
	defer l.hurry(len(list))()
	failed := make(map[Attachment]error)
	for _, a := range list {
		if err := l.Detach(a); err != nil {
			failed[a] = err
		}
	}
	return failed
}

// List returns what is pinned. Live says whether the interface still exists.
func (l Links) List() (map[Attachment]bool, error) {
	out := make(map[Attachment]bool)
	entries, err := os.ReadDir(l.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		name, number, ok := strings.Cut(e.Name(), "-")
		ifindex, err := strconv.Atoi(number)
		if !ok || err != nil {
			continue
		}
		a := Attachment{Program(name), ifindex}
		pinned, err := link.LoadPinnedLink(l.pin(a), nil)
		if err != nil {
			return nil, fmt.Errorf("link %s: %w", e.Name(), err)
		}
		at, err := linkIfindex(pinned)
		out[a] = err == nil && at == ifindex
		pinned.Close()
	}
	return out, nil
}

func (l Links) pin(a Attachment) string {
	return filepath.Join(l.Dir, fmt.Sprintf("%s-%d", a.Program, a.Ifindex))
}

// linkIfindex is the interface a link is on; 0 once that is gone.
func linkIfindex(l link.Link) (int, error) {
	info, err := l.Info()
	if err != nil {
		return 0, err
	}
	if tcx := info.TCX(); tcx != nil {
		return int(tcx.Ifindex), nil
	}
	if xdp := info.XDP(); xdp != nil {
		return int(xdp.Ifindex), nil
	}
	return 0, fmt.Errorf("link type %v", info.Type)
}
