package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"calico-xdp/tools/testbed"
)

// wire is a host with an uplink to another one.
type wire struct {
	*testbed.Namespace
	far     *testbed.Namespace
	address netip.Addr // of far
	ifindex int        // of the host's eth0
	links   Links
}

func newWire(t *testing.T, clsact bool) *wire {
	t.Helper()
	links := Links{Dir: filepath.Join("/sys/fs/bpf", fmt.Sprintf("loader-%d-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-"))), Clsact: clsact}
	testbed.CheckNoLeaks(t, links.Dir)
	w := &wire{
		Namespace: testbed.NewNamespace(t, "near"), far: testbed.NewNamespace(t, "far"),
		address: netip.MustParseAddr("10.0.0.2"), links: links,
	}
	testbed.Veth(t, w.Namespace, "eth0", w.far, "eth0")
	w.AddAddress(t, "eth0", "10.0.0.1/24")
	w.far.AddAddress(t, "eth0", "10.0.0.2/24")
	w.ifindex = w.Link(t, "eth0").Attrs().Index
	t.Cleanup(func() { os.RemoveAll(links.Dir) })
	return w
}

func (w *wire) attach(t *testing.T, p *Programs, a Attachment) {
	t.Helper()
	if err := w.Do(func() error { return p.Attach(a) }); err != nil {
		t.Fatal(err)
	}
}

// attached says what the kernel has on eth0's hooks, as "program id".
func (w *wire) attached(t *testing.T) map[Program]ebpf.ProgramID {
	t.Helper()
	out := make(map[Program]ebpf.ProgramID)
	err := w.Do(func() error {
		for _, hook := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			r, err := link.QueryPrograms(link.QueryOptions{Target: w.ifindex, Attach: hook})
			if errors.Is(err, unix.EINVAL) {
				continue // no tcx before Linux 6.6
			}
			if err != nil {
				return err
			}
			for _, p := range r.Programs {
				out[nameOf(t, p.ID)] = p.ID
			}
		}
		dev, err := netlink.LinkByIndex(w.ifindex)
		if err != nil {
			return err
		}
		if xdp := dev.Attrs().Xdp; xdp != nil && xdp.Attached {
			out[nameOf(t, ebpf.ProgramID(xdp.ProgId))] = ebpf.ProgramID(xdp.ProgId)
		}
		filters, err := ourFilters(dev)
		for name, f := range filters {
			out[name] = ebpf.ProgramID(f.(*netlink.BpfFilter).Id)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func nameOf(t *testing.T, id ebpf.ProgramID) Program {
	t.Helper()
	prog, err := ebpf.NewProgramFromID(id)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		t.Error(err)
		return ""
	}
	return Program(info.Name)
}

// counting is a foreign tc or XDP program that counts packets and lets them go on.
func counting(t *testing.T, typ ebpf.ProgramType) (*ebpf.Program, func() uint64) {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	onward := int32(-1)
	if typ == ebpf.XDP {
		onward = 2
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "foreign", Type: typ, License: "GPL", Instructions: asm.Instructions{
		asm.LoadMapValue(asm.R1, m.FD(), 0), asm.Mov.Imm(asm.R2, 1), asm.StoreXAdd(asm.R1, asm.R2, asm.DWord),
		asm.Mov.Imm(asm.R0, onward), asm.Return(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	return prog, func() (n uint64) {
		if err := m.Lookup(uint32(0), &n); err != nil {
			t.Error(err)
		}
		return n
	}
}

var networkPrograms = []Program{FromNetwork, ToNetwork, XDPNetwork}

// Programs are put on their hooks, replaced there while packets pass, and taken off.
func TestAttach(t *testing.T) {
	for name, clsact := range map[string]bool{"tcx": false, "clsact": true} {
		t.Run(name, func(t *testing.T) {
			w := newWire(t, clsact)
			versions := []*Programs{load(t, w.links), load(t, w.links)}
			for _, p := range networkPrograms {
				w.attach(t, versions[0], Attachment{p, w.ifindex})
			}
			before := w.attached(t)
			if len(before) != len(networkPrograms) {
				t.Fatalf("attached: %v", before)
			}
			flood := testbed.StartFlood(t, w.Namespace, w.far, w.address, testbed.FloodOptions{})
			if !flood.Progresses(10) {
				t.Fatalf("no traffic: %s", flood.Report())
			}
			pins := pinsOf(t, w.links.Dir)
			for i := range 100 {
				for _, p := range networkPrograms {
					w.attach(t, versions[(i+1)%2], Attachment{p, w.ifindex})
				}
			}
			w.attach(t, versions[1], Attachment{FromNetwork, w.ifindex})
			w.attach(t, versions[1], Attachment{FromNetwork, w.ifindex}) // twice is harmless
			flood.Progresses(10)
			if r := flood.Stop(); r.Lost != 0 || r.Refused != 0 || r.Duplicated != 0 {
				t.Errorf("while programs were replaced: %s", r)
			}
			after := w.attached(t)
			if len(after) != len(before) || after[FromNetwork] == before[FromNetwork] {
				t.Errorf("before %v, after %v", before, after)
			}
			if now := pinsOf(t, w.links.Dir); !slices.Equal(now, pins) {
				t.Errorf("pins before %v, after %v", pins, now)
			}
			// The programs outlive who attached them.
			for _, p := range versions {
				p.Close()
			}
			if n := len(w.attached(t)); n != len(before) {
				t.Errorf("%d programs are left after Close", n)
			}
			if got, sent := testbed.Ping(w.Namespace, w.address, 2); got != sent {
				t.Errorf("after Close: %d of %d", got, sent)
			}
			for _, p := range networkPrograms {
				for range 2 { // the second time there is nothing
					if err := w.Do(func() error { return w.links.Detach(Attachment{p, w.ifindex}) }); err != nil {
						t.Error(err)
					}
				}
			}
			w.wantNothing(t)
		})
	}
}

func pinsOf(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		// The link's id: a link that is made anew has another one.
		l, err := link.LoadPinnedLink(filepath.Join(dir, e.Name()), nil)
		if err != nil {
			t.Fatal(err)
		}
		info, err := l.Info()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s link %d", e.Name(), info.ID))
		l.Close()
	}
	return out
}

// wantNothing says that eth0 and the pin directory have nothing of ours.
func (w *wire) wantNothing(t *testing.T) {
	t.Helper()
	if left := w.attached(t); len(left) > 0 {
		t.Errorf("left on the hooks: %v", left)
	}
	if left := pinsOf(t, w.links.Dir); len(left) > 0 {
		t.Errorf("left pinned: %v", left)
	}
	if q := w.MustRun(t, "tc", "qdisc", "show", "dev", "eth0"); strings.Contains(q, "clsact") {
		t.Errorf("left: %s", q)
	}
}

// What an operator has detached, or an interface has lost, is attached again.
func TestAttachIgnoresDeadLinks(t *testing.T) {
	w := newWire(t, false)
	p := load(t, w.links)
	a := Attachment{FromNetwork, w.ifindex}
	w.attach(t, p, a)
	wantList := func(want map[Attachment]bool) {
		t.Helper()
		got, err := w.links.List()
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("links: %v, want %v", got, want)
		}
	}
	wantList(map[Attachment]bool{a: true})
	w.MustRun(t, "ip", "link", "del", "eth0")
	wantList(map[Attachment]bool{a: false})
	if err := w.Do(func() error { return p.Attach(a) }); err == nil {
		t.Error("attached to an interface that is gone")
	}
	// Another interface gets its number.
	w.MustRun(t, "ip", "link", "add", "eth0", "index", fmt.Sprint(w.ifindex), "type", "veth", "peer", "name", "eth1")
	w.attach(t, p, a)
	wantList(map[Attachment]bool{a: true})
	if _, ok := w.attached(t)[FromNetwork]; !ok {
		t.Error("not attached to the new interface")
	}
	w.MustRun(t, "ip", "link", "del", "eth0")
	wantList(map[Attachment]bool{a: false})
	if err := w.Do(func() error { return w.links.Detach(a) }); err != nil {
		t.Error(err)
	}
	wantList(map[Attachment]bool{})
	if got, err := (Links{Dir: w.links.Dir + "-none"}).List(); err != nil || len(got) != 0 {
		t.Errorf("no directory: %v %v", got, err)
	}
}

// Programs of others stay, and see what ours lets pass.
func TestAttachRespectsOthers(t *testing.T) {
	w := newWire(t, false)
	p := load(t, w.links)

	xdp, _ := counting(t, ebpf.XDP)
	var foreign link.Link
	attachXDP := func(flags link.XDPAttachFlags) {
		t.Helper()
		err := w.Do(func() (err error) {
			foreign, err = link.AttachXDP(link.XDPOptions{Program: xdp, Interface: w.ifindex, Flags: flags})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	a := Attachment{XDPNetwork, w.ifindex}
	for _, mode := range []link.XDPAttachFlags{link.XDPDriverMode, link.XDPGenericMode} {
		attachXDP(mode)
		err := w.Do(func() error { return p.Attach(a) })
		if err == nil || !strings.Contains(err.Error(), "another XDP program is on the interface and stays") {
			t.Errorf("foreign XDP program, mode %d: %v", mode, err)
		}
		if _, ok := w.attached(t)["foreign"]; !ok {
			t.Errorf("foreign XDP program, mode %d, is gone", mode)
		}
		foreign.Close()
	}
	// By netlink, as `ip link set dev eth0 xdp` does it.
	setXDP := func(fd int) {
		t.Helper()
		dev := w.Link(t, "eth0")
		if err := w.Do(func() error { return netlink.LinkSetXdpFd(dev, fd) }); err != nil {
			t.Fatal(err)
		}
	}
	setXDP(xdp.FD())
	if err := w.Do(func() error { return p.Attach(a) }); err == nil || !strings.Contains(err.Error(), "stays") {
		t.Errorf("foreign XDP program of netlink: %v", err)
	}
	setXDP(-1)
	w.attach(t, p, a)

	for _, hook := range []struct {
		ours   Program
		attach ebpf.AttachType
	}{{FromNetwork, ebpf.AttachTCXIngress}, {ToNetwork, ebpf.AttachTCXEgress}} {
		w.attach(t, p, Attachment{hook.ours, w.ifindex})
		prog, count := counting(t, ebpf.SchedCLS)
		var behind link.Link
		err := w.Do(func() (err error) {
			behind, err = link.AttachTCX(link.TCXOptions{Interface: w.ifindex, Program: prog, Attach: hook.attach, Anchor: link.Tail()})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		w.attach(t, p, Attachment{hook.ours, w.ifindex})
		testbed.Ping(w.Namespace, w.address, 3)
		if count() < 3 {
			t.Errorf("behind %s: %d packets, want at least 3", hook.ours, count())
		}
		if err := w.Do(func() error { return w.links.Detach(Attachment{hook.ours, w.ifindex}) }); err != nil {
			t.Error(err)
		}
		seen := count()
		testbed.Ping(w.Namespace, w.address, 3)
		if count() < seen+3 {
			t.Errorf("%s took the program behind it along", hook.ours)
		}
		behind.Close()
	}
}

// Filters of others on the same qdisc stay too.
func TestClsactRespectsOthers(t *testing.T) {
	w := newWire(t, true)
	p := load(t, w.links)
	w.attach(t, p, Attachment{FromNetwork, w.ifindex})
	w.attach(t, p, Attachment{ToNetwork, w.ifindex})
	prog, count := counting(t, ebpf.SchedCLS)
	foreign := clsactFilter(Attachment{FromNetwork, w.ifindex}, prog.FD())
	foreign.Name, foreign.Priority = "foreign", clsactPriority+1
	if err := w.Netlink().FilterAdd(foreign); err != nil {
		t.Fatal(err)
	}
	if testbed.Ping(w.Namespace, w.address, 3); count() < 3 {
		t.Errorf("behind ours: %d packets, want at least 3", count())
	}
	var removed []Attachment
	err := w.Do(func() (err error) {
		removed, err = DetachClsact()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(removed) != 2 {
		t.Errorf("removed %v", removed)
	}
	if left := w.attached(t); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	seen := count()
	if testbed.Ping(w.Namespace, w.address, 3); count() < seen+3 {
		t.Error("the filter of others is gone")
	}
}

// Interfaces that go away while we detach from them are no error.
func TestDetachFromWhatGoes(t *testing.T) {
	w := newWire(t, true)
	p := load(t, w.links)
	for round := range 20 {
		var ifindex []int
		for i := range 4 {
			name := fmt.Sprint("gone", i)
			testbed.Veth(t, w.Namespace, name, w.far, name)
			ifindex = append(ifindex, w.Link(t, name).Attrs().Index)
			w.attach(t, p, Attachment{FromWorkload, ifindex[i]})
			w.attach(t, p, Attachment{ToWorkload, ifindex[i]})
		}
		done := make(chan error)
		go func() {
			var errs []error
			for i := range ifindex {
				dev, err := w.far.Netlink().LinkByName(fmt.Sprint("gone", i))
				if err == nil {
					err = w.far.Netlink().LinkDel(dev)
				}
				errs = append(errs, err)
			}
			done <- errors.Join(errs...)
		}()
		err := w.Do(func() error {
			if round%2 == 0 {
				_, err := DetachClsact()
				return err
			}
			var errs []error
			for _, i := range ifindex {
				errs = append(errs, detachClsact(Attachment{FromWorkload, i}), detachClsact(Attachment{ToWorkload, i}))
			}
			return errors.Join(errs...)
		})
		if err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// Where a driver takes no XDP program, as a bridge's, ours is before the stack instead.
func TestXDPWithoutDriver(t *testing.T) {
	w := newWire(t, false)
	for _, command := range []string{"ip link add br0 type bridge", "ip link set eth0 master br0", "ip link set br0 up", "ip address del 10.0.0.1/24 dev eth0", "ip address add 10.0.0.1/24 dev br0"} {
		w.MustRun(t, strings.Fields(command)...)
	}
	p := load(t, w.links)
	a := Attachment{XDPNetwork, w.Link(t, "br0").Attrs().Index}
	w.attach(t, p, a)
	if text := w.MustRun(t, "ip", "link", "show", "dev", "br0"); !strings.Contains(text, "xdpgeneric") {
		t.Errorf("no XDP program before the stack:\n%s", text)
	}
	if !testbed.Eventually(func() bool { received, _ := testbed.Ping(w.Namespace, w.address, 3); return received == 3 }) {
		t.Error("nothing passes it")
	}
	if err := w.Do(func() error { return w.links.Detach(a) }); err != nil {
		t.Error(err)
	}
	if text := w.MustRun(t, "ip", "link", "show", "dev", "br0"); strings.Contains(text, "xdp") {
		t.Errorf("left:\n%s", text)
	}
}
