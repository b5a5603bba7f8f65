package loader

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	kernel "calico-xdp/pkg/maps"
)

// elves are the ELFs as they are embedded.
func elves(t *testing.T) map[string]*ebpf.CollectionSpec {
	t.Helper()
	out := make(map[string]*ebpf.CollectionSpec)
	for name, load := range map[string]func() (*ebpf.CollectionSpec, error){"tc": loadTc, "xdp": loadXdp, "sweep": loadSweep} {
		spec, err := load()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		out[name] = spec
	}
	return out
}

// tables makes the shared maps, each with as many entries as size says.
func tables(t *testing.T, size func(declared uint32) uint32) map[string]*ebpf.Map {
	t.Helper()
	out := make(map[string]*ebpf.Map)
	for _, spec := range elves(t) {
		for name, m := range spec.Maps {
			if strings.HasPrefix(name, ".") || out[name] != nil {
				continue
			}
			m.MaxEntries = size(m.MaxEntries)
			if m.Type == ebpf.RingBuf {
				m.MaxEntries = max(m.MaxEntries, uint32(os.Getpagesize()))
			}
			made, err := ebpf.NewMap(m)
			if err != nil {
				t.Fatalf("map %s: %v", name, err)
			}
			t.Cleanup(func() { made.Close() })
			out[name] = made
		}
	}
	return out
}

// load loads all programs onto small maps.
func load(t *testing.T, links Links) *Programs {
	t.Helper()
	p, err := Load(tables(t, func(n uint32) uint32 { return min(n, 1024) }), links)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// The verifier takes every program, whatever the sizes of the tables.
func TestVerifierTakesEveryProgram(t *testing.T) {
	for name, size := range map[string]func(uint32) uint32{
		"one entry":     func(uint32) uint32 { return 1 },
		"as declared":   func(n uint32) uint32 { return n },
		"twice as many": func(n uint32) uint32 { return 2 * n },
	} {
		t.Run(name, func(t *testing.T) {
			shared := tables(t, size)
			p, err := Load(shared, Links{})
			if err != nil {
				t.Fatalf("%+v", err)
			}
			defer p.Close()
			for program, prog := range p.byName {
				info, err := prog.Info()
				if err != nil {
					t.Fatal(err)
				}
				if ids, ok := info.MapIDs(); !ok || len(ids) == 0 {
					t.Errorf("%s uses no map", program)
				}
			}
		})
	}
}

// What is in the ELFs is what this package has names for.
func TestEveryProgramHasAName(t *testing.T) {
	var have []string
	for _, spec := range elves(t) {
		have = slices.AppendSeq(have, maps.Keys(spec.Programs))
	}
	slices.Sort(have)
	want := []string{
		string(Explain), string(FromNetwork), string(FromWorkload), sweepFlows, addCounts, string(ToNetwork), string(ToWorkload), string(XDPNetwork),
	}
	slices.Sort(want)
	if !slices.Equal(have, want) {
		t.Errorf("programs in the ELFs: %s, known: %s", have, want)
	}
	p := load(t, Links{})
	for name, prog := range p.byName {
		info, err := prog.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Name != string(name) {
			t.Errorf("the kernel shows %q for %s", info.Name, name)
		}
		if _, hooked := attachTypes[name]; hooked != (prog.Type() == ebpf.SchedCLS && name != Explain) {
			t.Errorf("%s is of type %s; it has a tcx hook: %v", name, prog.Type(), hooked)
		}
	}
}

// Every map that an ELF declares is made by pkg/maps, with the same layout, and each
// one that is made is used.
func TestMapsAreThoseOfThePrograms(t *testing.T) {
	m, err := kernel.Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	used := make(map[string]bool)
	for elf, spec := range elves(t) {
		for name, s := range spec.Maps {
			if strings.HasPrefix(name, ".") {
				continue
			}
			made := m.Handles()[name]
			if made == nil {
				t.Errorf("%s: map %s is not made", elf, name)
				continue
			}
			used[name] = true
			if err := s.Compatible(made); err != nil {
				t.Errorf("%s: map %s: %v", elf, name, err)
			}
			if len(name) > 15 {
				t.Errorf("map %s: the kernel cuts the name", name)
			}
		}
	}
	for name := range m.Handles() {
		if !used[name] {
			t.Errorf("map %s is made, but no program has it", name)
		}
	}
	if _, err := Load(map[string]*ebpf.Map{}, Links{}); err == nil || !strings.Contains(err.Error(), "no such shared map") {
		t.Errorf("without maps: %v", err)
	}
}

// Every variable of the sweep that Go sets or reads is there.
func TestSweepRuns(t *testing.T) {
	p := load(t, Links{})
	hz, err := p.ClockRate()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains([]int{100, 250, 300, 1000}, hz) {
		t.Errorf("%d Hz", hz)
	}
	r, err := p.Sweep(Timeouts{HZ: hz})
	if err != nil {
		t.Fatal(err)
	}
	if r.Kept != 0 || r.Removed != 0 || r.At == 0 {
		t.Errorf("sweep of an empty table: %+v", r)
	}
}

func TestRunRefusesUnknownPrograms(t *testing.T) {
	p := load(t, Links{})
	if _, err := p.Run("nothing", make([]byte, 64), Context{}); err == nil {
		t.Error("ran")
	}
	if _, err := p.Timer("nothing", make([]byte, 64), Context{}); err == nil {
		t.Error("timed")
	}
	if err := p.Attach(Attachment{"nothing", 1}); err == nil {
		t.Error("attached")
	}
	r, err := p.Run(XDPNetwork, make([]byte, 64), Context{})
	if err != nil || r.Return != 2 {
		t.Errorf("xdp_network: %v %v, want XDP_PASS", r.Return, err)
	}
}

// Whatever is measured is measured beside a program that does nothing.
func TestTimer(t *testing.T) {
	p := load(t, Links{})
	packet := make([]byte, 64)
	for _, name := range []Program{FromWorkload, XDPNetwork} {
		empty, err := NewEmpty(name)
		if err != nil {
			t.Fatal(err)
		}
		defer empty.Close()
		ours, err := p.Timer(name, packet, Context{})
		if err != nil {
			t.Fatal(err)
		}
		for of, timer := range map[string]*Timer{"empty": empty.Timer(packet), string(name): ours} {
			if _, took, err := timer.Run(1000); err != nil || took <= 0 {
				t.Errorf("%s: %v %v", of, took, err)
			}
		}
	}
	// What is asked for is where the packet is seen.
	outside, err := p.Timer(FromWorkload, packet, Context{Ifindex: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := outside.Run(1); err == nil {
		t.Error("ran on an interface that does not exist")
	}
}
