package maps

import (
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

// Names of rules come back as they were; what is too long is cut and stays unique.
func TestRuleName(t *testing.T) {
	long := "default|NetworkPolicy|" + strings.Repeat("n", 300)
	for _, text := range []string{"", "||ingress|", "default|GlobalNetworkPolicy|p|egress|17", strings.Repeat("x", 253), "ü|ä"} {
		n := NewRuleName(text, RulePass, true)
		if n.String() != text || n.Action() != RulePass || !n.Staged() {
			t.Errorf("%q came back as %q %d %v", text, n, n.Action(), n.Staged())
		}
	}
	a, b := NewRuleName(long+"|ingress|1", RuleAllow, false), NewRuleName(long+"|ingress|2", RuleAllow, false)
	if a == b || a.String() == b.String() {
		t.Errorf("%q is the name of two rules", a)
	}
	if len(a.String()) != 253 || !strings.HasPrefix(long, a.String()[:200]) || a != NewRuleName(long+"|ingress|1", RuleAllow, false) {
		t.Errorf("%q stands for %q", a, long)
	}
}

// Counters are read and made zero by number, over more than one system call.
func TestRuleCounters(t *testing.T) {
	m, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		t.Fatal(err)
	}
	n := m.RuleCounters.Len()
	if n <= 2*loadBatch {
		t.Fatalf("%d counters", n)
	}
	for _, i := range []uint32{1, 5000, uint32(n) - 1} {
		perCPU := make([]Counter, cpus)
		perCPU[0], perCPU[cpus-1] = Counter{Packets: 1}, Counter{Packets: uint64(i), Bytes: 7}
		if err := m.all[bpfMapRuleCounters].m.Put(i, perCPU); err != nil {
			t.Fatal(err)
		}
	}
	read := func(want map[int]Counter) {
		t.Helper()
		all, err := m.RuleCounters.Load(n)
		if err != nil || len(all) != n {
			t.Fatalf("%d counters, %v", len(all), err)
		}
		for i, c := range all {
			if c.Packets != want[i].Packets || c.Bytes != want[i].Bytes {
				t.Errorf("counter %d is %v, want %v", i, c, want[i])
			}
		}
	}
	one := uint64(min(1, cpus-1))
	read(map[int]Counter{1: {Packets: 1 + one, Bytes: 7}, 5000: {Packets: 5000 + one, Bytes: 7}, n - 1: {Packets: uint64(n) - 1 + one, Bytes: 7}})
	some, err := m.RuleCounters.Load(2)
	if err != nil || len(some) != 2 {
		t.Errorf("%v, %v", some, err)
	}
	var most []uint32
	for i := range n - 1 {
		most = append(most, uint32(i))
	}
	if err := m.RuleCounters.Zero(most); err != nil {
		t.Fatal(err)
	}
	read(map[int]Counter{n - 1: {Packets: uint64(n) - 1 + one, Bytes: 7}})
	if err := m.RuleCounters.Zero(nil); err != nil {
		t.Error(err)
	}
}

// Entries are added and removed by the thousand, those that are absent too.
func TestAllAtOnce(t *testing.T) {
	m, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var keys []uint32
	var names []RuleName
	for i := range uint32(10_000) {
		keys, names = append(keys, i), append(names, NewRuleName(strings.Repeat("r", int(i%200)), RuleAction(i%5), false))
	}
	if err := m.RuleNames.PutAll(keys, names); err != nil {
		t.Fatal(err)
	}
	all, err := m.RuleNames.Load()
	if err != nil || len(all) != len(keys) || all[4711] != names[4711] {
		t.Fatalf("%d names, %v", len(all), err)
	}
	for _, k := range []uint32{0, 17, 4095, 4096, 9999} {
		if err := m.RuleNames.Delete(k); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.RuleNames.DeleteAll(keys[:9999]); err != nil {
		t.Fatal(err)
	}
	if err := m.RuleNames.DeleteAll(keys); err != nil {
		t.Fatal(err)
	}
	if all, err = m.RuleNames.Load(); err != nil || len(all) != 0 {
		t.Fatalf("%d names are left, %v", len(all), err)
	}
}
