package maps

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

// pins is a directory for pins that is removed with the test.
func pins(t *testing.T) string {
	t.Helper()
	dir := filepath.Join("/sys/fs/bpf", fmt.Sprintf("maps-%d-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-")))
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func openFor(t *testing.T, dir string, o Options) *Maps {
	t.Helper()
	m, err := OpenWith(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// filled is one growable table: how to put its ith entry, and how to read all back as text.
type filled struct {
	put  func(m *Maps, i int) error
	read func(m *Maps) (map[string]string, error)
}

func text[K, V comparable](table func(*Maps) Table[K, V]) func(*Maps) (map[string]string, error) {
	return func(m *Maps) (map[string]string, error) {
		all, err := table(m).Load()
		out := make(map[string]string, len(all))
		for k, v := range all {
			out[fmt.Sprint(k)] = fmt.Sprint(v)
		}
		return out, err
	}
}

func address(i int) Address {
	return NewAddress(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
}

func prefix(i int) Prefix {
	return NewPrefix(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 12), byte(i >> 4), byte(i << 4)}), 28))
}

// nodes are those of a trie.
func nodes(of func(*Maps) *TrieNodes) filled {
	return filled{
		func(m *Maps, i int) error {
			if err := of(m).Reserve(i + 1); err != nil {
				return err
			}
			return of(m).Put(i, i%TrieWays, uint32(i+1))
		},
		func(m *Maps) (map[string]string, error) {
			all, err := of(m).Read(0, of(m).Len())
			out := make(map[string]string)
			for i, n := range all {
				if n != (TrieNode{}) {
					out[fmt.Sprint(i)] = fmt.Sprint(n)
				}
			}
			return out, err
		},
	}
}

var tables = map[string]filled{
	bpfMapEndpoints: {
		func(m *Maps, i int) error { return m.Endpoints.Put(uint32(i), Endpoint{Ifindex: uint32(i + 1)}) },
		text(func(m *Maps) Table[uint32, Endpoint] { return m.Endpoints }),
	},
	bpfMapWorkloads: {
		func(m *Maps, i int) error { return m.Workloads.Put(address(i), uint32(i)) },
		text(func(m *Maps) Table[Address, uint32] { return m.Workloads }),
	},
	bpfMapRoutes: {
		func(m *Maps, i int) error { return m.Routes.Put(prefix(i), Route{Kind: uint8(i), Node: address(i)}) },
		text(func(m *Maps) Table[Prefix, Route] { return m.Routes }),
	},
	bpfMapNatNets: {
		func(m *Maps, i int) error { return m.NATNets.Put(prefix(i), uint32(i)) },
		text(func(m *Maps) Table[Prefix, uint32] { return m.NATNets }),
	},
	bpfMapPeers: {
		func(m *Maps, i int) error { return m.Peers.Put(address(i), Peer{Mac: [6]uint8{byte(i)}}) },
		text(func(m *Maps) Table[Address, Peer] { return m.Peers }),
	},
	bpfMapHostClasses: {
		func(m *Maps, i int) error { return m.HostClasses.Put(address(i), uint32(i)) },
		text(func(m *Maps) Table[Address, uint32] { return m.HostClasses }),
	},
	bpfMapNetClasses: {
		func(m *Maps, i int) error { return m.NetClasses.Put(prefix(i), uint32(i)) },
		text(func(m *Maps) Table[Prefix, uint32] { return m.NetClasses }),
	},
	bpfMapClassNodes: nodes(func(m *Maps) *TrieNodes { return m.ClassNodes }),
	bpfMapPlaceNodes: nodes(func(m *Maps) *TrieNodes { return m.PlaceNodes }),
	bpfMapHostEndpoints: {
		func(m *Maps, i int) error { return m.HostEndpoints.Put(uint32(i), HostEndpoint{Egress: uint32(i)}) },
		text(func(m *Maps) Table[uint32, HostEndpoint] { return m.HostEndpoints }),
	},
	bpfMapFailsafe: {
		func(m *Maps, i int) error {
			return m.Failsafe.Put(FailsafeKey{PrefixLength: 32, Protocol: uint8(i >> 16), Port: uint16(i)}, uint32(i))
		},
		text(func(m *Maps) Table[FailsafeKey, uint32] { return m.Failsafe }),
	},
	bpfMapAllowedSources: {
		func(m *Maps, i int) error {
			return m.AllowedSources.Put(SourceKey{PrefixLength: 32, Ifindex: uint32(i)}, uint32(i))
		},
		text(func(m *Maps) Table[SourceKey, uint32] { return m.AllowedSources }),
	},
	bpfMapRuleNames: {
		func(m *Maps, i int) error {
			return m.RuleNames.Put(uint32(i), NewRuleName(fmt.Sprint(i), RuleAllow, false))
		},
		text(func(m *Maps) Table[uint32, RuleName] { return m.RuleNames }),
	},
	bpfMapRulesetWords: {
		func(m *Maps, i int) error {
			if err := m.Words.Reserve(i + 1); err != nil {
				return err
			}
			return m.Words.Write(i, []uint64{uint64(i + 1)})
		},
		func(m *Maps) (map[string]string, error) {
			words, err := m.Words.Read(0, m.Words.Len())
			out := make(map[string]string)
			for i, w := range words {
				if w != 0 {
					out[fmt.Sprint(i)] = fmt.Sprint(w)
				}
			}
			return out, err
		},
	},
	bpfMapRuleCounters: {
		func(m *Maps, i int) error {
			if err := m.RuleCounters.Reserve(i + 1); err != nil {
				return err
			}
			perCPU := make([]Counter, ebpf.MustPossibleCPU())
			perCPU[i%len(perCPU)] = Counter{Packets: uint64(i + 1), Bytes: 1}
			return m.RuleCounters.h.use(func(em *ebpf.Map) error { return em.Put(uint32(i), perCPU) })
		},
		func(m *Maps) (map[string]string, error) {
			all, err := m.RuleCounters.Load(m.RuleCounters.Len())
			out := make(map[string]string)
			for i, c := range all {
				if c.Packets != 0 {
					out[fmt.Sprint(i)] = fmt.Sprint(c.Packets, c.Bytes)
				}
			}
			return out, err
		},
	},
}

// declared makes all growable tables with so many entries.
func declared(n int) map[string]int {
	sizes := make(map[string]int)
	for name := range tables {
		sizes[name] = n
	}
	sizes[bpfMapFlows] = n
	return sizes
}

func TestEveryGrowableTableIsTested(t *testing.T) {
	names := append(slices.Collect(maps.Keys(tables)), bpfMapFlows)
	slices.Sort(names)
	if want := slices.Sorted(slices.Values(growable)); !slices.Equal(names, want) {
		t.Errorf("tested are %s, want %s", names, want)
	}
}

// contents is what all growable tables hold.
func contents(t *testing.T, m *Maps) map[string]map[string]string {
	t.Helper()
	out := make(map[string]map[string]string)
	for name, table := range tables {
		var err error
		if out[name], err = table.read(m); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func sameContents(t *testing.T, when string, got, want map[string]map[string]string) {
	t.Helper()
	for name := range want {
		if !maps.Equal(got[name], want[name]) {
			t.Errorf("%s: %s has %d entries, not the %d that it should have", when, name, len(got[name]), len(want[name]))
		}
	}
}

// A table takes exactly as many entries as it has room for. What is in it can be changed
// when it is full.
func TestTablesFillUpToTheLimit(t *testing.T) {
	const size = 600
	m := openFor(t, "", Options{Sizes: declared(size)})
	for name, table := range tables {
		for i := range size {
			if err := table.put(m, i); err != nil {
				t.Fatalf("%s: entry %d of %d: %v", name, i+1, size, err)
			}
		}
		for range 2 {
			if err := table.put(m, size); !errors.Is(err, ErrFull) {
				t.Errorf("%s: one entry more than %d: %v", name, size, err)
			}
		}
		if err := table.put(m, size-1); err != nil {
			t.Errorf("%s: an entry that is there: %v", name, err)
		}
		if n, err := m.Refused(name); n != 2 || err != nil {
			t.Errorf("%s: %d refused, %v, want 2", name, n, err)
		}
		if all, err := table.read(m); len(all) != size || err != nil {
			t.Errorf("%s: %d entries, %v", name, len(all), err)
		}
	}
}

// Whoever puts an entry into a full table has it grow.
func TestFullTablesGrow(t *testing.T) {
	const size, entries = 600, 10_000
	dir := pins(t)
	var m *Maps
	grown := make(map[string]int)
	m = openFor(t, dir, Options{Sizes: declared(size), Grow: func(table string, n int) error {
		grown[table]++
		g, err := m.Grow(map[string]int{table: 2 * n})
		if err != nil {
			return err
		}
		if err := g.Pin(table); err != nil {
			return errors.Join(err, g.Close())
		}
		return g.Use()
	}})
	for name, table := range tables {
		for i := range entries {
			if err := table.put(m, i); err != nil {
				t.Fatalf("%s: entry %d: %v", name, i, err)
			}
		}
		if all, err := table.read(m); len(all) != entries || err != nil {
			t.Errorf("%s: %d entries, %v", name, len(all), err)
		}
		if grown[name] < 3 || grown[name] > 5 {
			t.Errorf("%s grew %d times", name, grown[name])
		}
	}
	want := contents(t, m)
	again := openFor(t, dir, Options{Sizes: declared(size)})
	sameContents(t, "in the next process", contents(t, again), want)
	for name := range tables {
		if a, b := m.Capacity(name), again.Capacity(name); a != b {
			t.Errorf("%s has room for %d, then %d", name, a, b)
		}
	}
}

// All tables grow at once, and the process ends after any of the steps: the next one finds
// all that was in them, and no leftovers.
func TestGrowthThatEndsAnywhere(t *testing.T) {
	const size = 300
	sizes := declared(4 * size)
	delete(sizes, bpfMapFlows)
	for steps := range len(tables) + 2 {
		dir := pins(t)
		m := openFor(t, dir, Options{Sizes: declared(size)})
		for _, table := range tables {
			for i := range size {
				if err := table.put(m, i); err != nil {
					t.Fatal(err)
				}
			}
		}
		want := contents(t, m)
		g, err := m.Grow(sizes)
		if err != nil {
			t.Fatal(err)
		}
		pinned := g.Tables()[:min(steps, len(tables))]
		for _, name := range pinned {
			if err := g.Pin(name); err != nil {
				t.Fatal(err)
			}
		}
		if steps > len(tables) {
			if err := g.Use(); err != nil {
				t.Fatal(err)
			}
			sameContents(t, "after growing", contents(t, m), want)
		}
		// As if the process had ended while it pinned the next one.
		if err := os.Symlink(".", filepath.Join(dir, bpfMapFlows+comingSuffix)); err != nil {
			t.Fatal(err)
		}
		again := openFor(t, dir, Options{})
		sameContents(t, fmt.Sprintf("after %d steps", steps), contents(t, again), want)
		for name := range tables {
			if got := again.Capacity(name); (got == 4*size) != slices.Contains(pinned, name) {
				t.Errorf("after %d steps %s has room for %d", steps, name, got)
			}
		}
		names, err := os.ReadDir(dir)
		if err != nil || slices.ContainsFunc(names, func(e os.DirEntry) bool { return strings.HasSuffix(e.Name(), comingSuffix) }) {
			t.Errorf("after %d steps: %v, %v", steps, names, err)
		}
		if steps <= len(tables) {
			if err := g.Close(); err != nil {
				t.Fatal(err)
			}
			back := openFor(t, dir, Options{})
			sameContents(t, "after giving up", contents(t, back), want)
			for name := range tables {
				if got := back.Capacity(name); got != size {
					t.Errorf("after giving up %s has room for %d", name, got)
				}
			}
		}
		if err := Unpin(dir); err != nil {
			t.Error(err)
		}
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	}
}

// What cannot be is said.
func TestGrowthThatCannotBe(t *testing.T) {
	m := openFor(t, "", Options{Sizes: declared(100)})
	for name, n := range map[string]int{bpfMapSettings: 2, bpfMapFlows: 1000, bpfMapRoutes: 50, "nothing": 1} {
		if _, err := m.Grow(map[string]int{name: n}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s with %d entries: %v", name, n, err)
		}
	}
	g, err := m.Grow(map[string]int{bpfMapRoutes: 200}) // those that failed are over
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Use(); err != nil || m.Routes.Capacity() != 200 {
		t.Errorf("%d, %v", m.Routes.Capacity(), err)
	}
}

// Counts of a rule are not lost that were made after they were copied.
func TestCountsSinceTheCopy(t *testing.T) {
	m := openFor(t, "", Options{Sizes: declared(100)})
	put := tables[bpfMapRuleCounters].put
	if err := errors.Join(put(m, 3), put(m, 4)); err != nil {
		t.Fatal(err)
	}
	g, err := m.Grow(map[string]int{bpfMapRuleCounters: 200})
	if err != nil {
		t.Fatal(err)
	}
	perCPU := make([]Counter, ebpf.MustPossibleCPU())
	perCPU[0] = Counter{Packets: 10, Bytes: 1000}
	if err := m.RuleCounters.h.m.Put(uint32(3), perCPU); err != nil {
		t.Fatal(err)
	}
	behind, err := g.Behind()
	if err != nil || len(behind) != 1 || behind[3].Packets != 6 || behind[3].Bytes != 999 {
		t.Errorf("behind: %v, %v", behind, err)
	}
	if err := g.Use(); err != nil {
		t.Fatal(err)
	}
}
