// Package loader brings the BPF programs into the kernel and onto hooks. It knows
// nothing of Calico.
package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
)

// Programs are loaded programs. They stay attached through links and filters that
// outlive them; an attached program is replaced in place by a later Attach.
type Programs struct {
	links Links

	mu     sync.RWMutex // held for writing by Become
	byName map[Program]*ebpf.Program
	sweep  *ebpf.Collection
}

// Program names one program, as the C does.
type Program string

const (
	FromWorkload Program = "from_workload"
	ToWorkload   Program = "to_workload"
	FromNetwork  Program = "from_network"
	ToNetwork    Program = "to_network"
	XDPNetwork   Program = "xdp_network"
	// Explain is on no hook.
	Explain Program = "explain"
)

// Programs that only the daemon runs.
const (
	sweepFlows = "sweep_flows"
	addCounts  = "add_counts"
)

// Load loads every program on top of the shared maps. links says where attachments
// are kept.
func Load(shared map[string]*ebpf.Map, links Links) (*Programs, error) {
	p := &Programs{byName: make(map[Program]*ebpf.Program), links: links}
	links.hurry(0)() // nothing of a process before
	for _, load := range []func() (*ebpf.CollectionSpec, error){loadTc, loadXdp} {
		coll, err := loadCollection(load, shared)
		if err != nil {
			p.Close()
			return nil, err
		}
		for name, prog := range coll.Programs {
			p.byName[Program(name)] = prog
			delete(coll.Programs, name)
		}
		coll.Close()
	}
	var err error
	if p.sweep, err = loadCollection(loadSweep, shared); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// LoadOne loads a program on top of the shared maps, to be run by hand.
func LoadOne(shared map[string]*ebpf.Map, name Program) (*Programs, error) {
	return loadOne(shared, name, func(*ebpf.ProgramSpec) error { return nil })
}

// loadOne is LoadOne of a program that is changed first.
func loadOne(shared map[string]*ebpf.Map, name Program, change func(*ebpf.ProgramSpec) error) (*Programs, error) {
	coll, err := loadCollection(func() (*ebpf.CollectionSpec, error) {
		spec, err := specOf(name)
		if err != nil {
			return nil, err
		}
		return spec, change(spec.Programs[string(name)])
	}, shared)
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	return &Programs{byName: map[Program]*ebpf.Program{name: coll.DetachProgram(string(name))}}, nil
}

// specOf is the collection that has a program, without the others.
func specOf(name Program) (*ebpf.CollectionSpec, error) {
	load := loadTc
	if name == XDPNetwork {
		load = loadXdp
	}
	spec, err := load()
	if err != nil {
		return nil, err
	}
	if spec.Programs[string(name)] == nil {
		return nil, fmt.Errorf("program %s: there is none", name)
	}
	maps.DeleteFunc(spec.Programs, func(n string, _ *ebpf.ProgramSpec) bool { return n != string(name) })
	return spec, nil
}

func loadCollection(load func() (*ebpf.CollectionSpec, error), shared map[string]*ebpf.Map) (*ebpf.Collection, error) {
	spec, err := load()
	if err != nil {
		return nil, err
	}
	replace := make(map[string]*ebpf.Map)
	for name, m := range spec.Maps {
		s := shared[name]
		if s == nil {
			if strings.HasPrefix(name, ".") {
				continue // variables of the ELF's own
			}
			return nil, fmt.Errorf("map %s: no such shared map", name)
		}
		m.MaxEntries = s.MaxEntries() // sizes are the owner's business
		replace[name] = s
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
	var ve *ebpf.VerifierError
	if errors.As(err, &ve) {
		return nil, fmt.Errorf("verifier: %+v", ve)
	}
	return coll, err
}

// Close gives the programs back; what is attached stays attached.
func (p *Programs) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, prog := range p.byName {
		errs = append(errs, prog.Close())
	}
	if p.sweep != nil {
		p.sweep.Close()
	}
	return errors.Join(errs...)
}

// use calls fn with a program, which stays open until fn returns.
func (p *Programs) use(name Program, fn func(*ebpf.Program) error) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	prog := p.byName[name]
	if prog == nil {
		return errors.New("not loaded")
	}
	return fn(prog)
}

// Sweep removes flows that have been silent for too long.
func (p *Programs) Sweep(t Timeouts) (SweepResult, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var r SweepResult
	for name, d := range map[string]time.Duration{
		"tcp_timeout": t.TCP, "tcp_closed_timeout": t.TCPClosed, "udp_timeout": t.UDP,
		"icmp_timeout": t.ICMP, "other_timeout": t.Other,
	} {
		if err := p.sweep.Variables[name].Set(uint64(d.Seconds() * float64(t.HZ))); err != nil {
			return r, fmt.Errorf("variable %s: %w", name, err)
		}
	}
	// The packet is not looked at, but has to be one.
	if _, err := p.sweep.Programs[sweepFlows].Run(&ebpf.RunOptions{Data: make([]byte, 64)}); err != nil {
		return r, fmt.Errorf("program %s: %w", sweepFlows, err)
	}
	for name, out := range map[string]any{
		"flows_kept": &r.Kept, "flows_waiting": &r.Waiting, "flows_removed": &r.Removed, "swept_at": &r.At,
	} {
		if err := p.sweep.Variables[name].Get(out); err != nil {
			return r, fmt.Errorf("variable %s: %w", name, err)
		}
	}
	return r, nil
}

// RuleCount is what a rule's counter gets more.
type RuleCount struct {
	Rule           uint32
	Packets, Bytes uint64
}

// struct rule_count of sweep.c: where its members are, and how many are taken at a time.
const (
	ruleCountSize = 24
	ruleCounts    = 128
)

// AddCounts adds to the counters of rules, while programs count.
func (p *Programs) AddCounts(counts []RuleCount) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for some := range slices.Chunk(counts, ruleCounts) {
		packet := make([]byte, 16, 16+len(some)*ruleCountSize)
		for _, c := range some {
			packet = binary.NativeEndian.AppendUint32(packet, c.Rule)
			packet = binary.NativeEndian.AppendUint32(packet, 0)
			packet = binary.NativeEndian.AppendUint64(packet, c.Packets)
			packet = binary.NativeEndian.AppendUint64(packet, c.Bytes)
		}
		if _, err := p.sweep.Programs[addCounts].Run(&ebpf.RunOptions{Data: packet}); err != nil {
			return fmt.Errorf("program %s: %w", addCounts, err)
		}
	}
	return nil
}

// Timeouts say how long a flow may be silent. HZ is the kernel's clock rate, see
// ClockRate.
type Timeouts struct {
	TCP, TCPClosed, UDP, ICMP, Other time.Duration
	HZ                               int
}

// SweepResult is what a sweep found: flows kept in flows, and in new_flows, and what it
// removed from both. At is the time of the sweep in jiffies.
type SweepResult struct {
	Kept, Waiting, Removed uint32
	At                     uint64
}

// ClockRate measures how fast jiffies run: one of the rates that Linux is built
// with. It takes 50 ms.
func (p *Programs) ClockRate() (int, error) {
	none := Timeouts{TCP: 1 << 50, TCPClosed: 1 << 50, UDP: 1 << 50, ICMP: 1 << 50, Other: 1 << 50, HZ: 1000}
	begin := time.Now()
	first, err := p.Sweep(none)
	if err != nil {
		return 0, err
	}
	time.Sleep(50 * time.Millisecond)
	second, err := p.Sweep(none)
	if err != nil {
		return 0, err
	}
	measured := float64(second.At-first.At) / time.Since(begin).Seconds()
	best := 100
	for _, hz := range []int{250, 300, 1000} {
		if math.Abs(measured-float64(hz)) < math.Abs(measured-float64(best)) {
			best = hz
		}
	}
	return best, nil
}
