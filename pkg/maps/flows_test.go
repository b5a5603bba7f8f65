package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf"
)

func flowKey(i int) FlowKey {
	return NewFlowKey(
		netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1000),
		netip.MustParseAddrPort("192.168.0.1:80"), 6)
}

// flow is the ith one; every third is closed.
func flow(i int) Flow {
	f := Flow{LastSeen: uint64(i), State: uint32(FlowConfirmed)}
	if i%3 == 0 {
		f.State |= uint32(FlowClosedA)
	}
	return f
}

// seen looks a flow up as programs do: in the table in use, then in the others.
func seen(t *testing.T, m *Maps, key FlowKey) (Flow, bool) {
	t.Helper()
	p, err := m.flowPlaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []ebpf.MapID{p.now, p.other, p.last} {
		if id == 0 {
			continue
		}
		table, err := ebpf.NewMapFromID(id)
		if err != nil {
			t.Fatal(err)
		}
		var f Flow
		err = table.Lookup(&key, &f)
		table.Close()
		if err == nil {
			return f, true
		}
		if !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Fatal(err)
		}
	}
	return Flow{}, false
}

func putFlow(t *testing.T, id ebpf.MapID, i int, f Flow) {
	t.Helper()
	table, err := ebpf.NewMapFromID(id)
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	key := flowKey(i)
	if err := table.Put(&key, &f); err != nil {
		t.Fatal(err)
	}
}

func expectFlows(t *testing.T, when string, m *Maps, n int) {
	t.Helper()
	for i := range n {
		if f, ok := seen(t, m, flowKey(i)); !ok || f != flow(i) {
			t.Fatalf("%s: flow %d: %v %+v", when, i, ok, f)
		}
	}
}

// At no step a flow is missing, and a process that starts after any of them goes on.
func TestFlowsMoveStepByStep(t *testing.T) {
	const size, flows, larger = 300, 290, 1000
	const steps = 6
	for end := range steps + 1 {
		t.Run(fmt.Sprint(end), func(t *testing.T) {
			dir := pins(t)
			m := openFor(t, dir, Options{Sizes: declared(size)})
			p, err := m.flowPlaces()
			if err != nil {
				t.Fatal(err)
			}
			for i := range flows {
				putFlow(t, p.now, i, flow(i))
			}
			for step := range end {
				if step == 0 {
					err = m.GrowFlows(larger)
				} else if more, serr := m.StepFlows(); serr != nil || more != (step < steps-1) {
					t.Fatalf("step %d: more %v, %v", step, more, serr)
				}
				if err != nil {
					t.Fatal(err)
				}
				expectFlows(t, fmt.Sprint("after step ", step), m, flows)
			}
			m = openFor(t, dir, Options{Sizes: declared(size)})
			expectFlows(t, "in the next process", m, flows)
			want := larger
			if end == 0 {
				want = size
			}
			if got := m.Flows.Capacity(); got != want {
				t.Errorf("the table has room for %d, want %d", got, want)
			}
			for more := true; more; {
				if more, err = m.StepFlows(); err != nil {
					t.Fatal(err)
				}
				expectFlows(t, "on the way", m, flows)
			}
			if all, err := m.Flows.Load(); err != nil || len(all) != flows {
				t.Errorf("%d flows at the end, %v", len(all), err)
			}
			if p, err := m.flowPlaces(); err != nil || p.other != 0 || p.last != 0 {
				t.Errorf("places %v, %v", p, err)
			}
			again := openFor(t, dir, Options{})
			expectFlows(t, "in the process after that", again, flows)
			if got := again.Flows.Capacity(); got != want {
				t.Errorf("the table has room for %d in the process after that, want %d", got, want)
			}
			if err := Unpin(dir); err != nil {
				t.Error(err)
			}
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		})
	}
}

// moving is a table of flows that only has to be copied.
func moving(t *testing.T, size, larger, flows int) (m *Maps, p flowPlaces) {
	t.Helper()
	m = openFor(t, "", Options{Sizes: declared(size)})
	p, err := m.flowPlaces()
	if err != nil {
		t.Fatal(err)
	}
	for i := range flows {
		putFlow(t, p.now, i, flow(i))
	}
	if err := m.GrowFlows(larger); err != nil {
		t.Fatal(err)
	}
	for p.other != p.last || p.other == 0 {
		if _, err := m.StepFlows(); err != nil {
			t.Fatal(err)
		}
		if p, err = m.flowPlaces(); err != nil {
			t.Fatal(err)
		}
	}
	return m, p
}

// What programs have put into the new table stays, and nothing is put beside it.
func TestNewerFlowsStay(t *testing.T) {
	m, p := moving(t, 300, 600, 200)
	newer := Flow{LastSeen: 77777}
	for i := range 10 {
		putFlow(t, p.now, i, newer)
	}
	for more := true; more; {
		var err error
		if more, err = m.StepFlows(); err != nil {
			t.Fatal(err)
		}
	}
	all, err := m.Flows.Load()
	if err != nil || len(all) != 200 {
		t.Errorf("%d flows, %v", len(all), err)
	}
	for i := range 200 {
		want := flow(i)
		if i < 10 {
			want = newer
		}
		if all[flowKey(i)] != want {
			t.Errorf("flow %d is %+v", i, all[flowKey(i)])
		}
	}
}

// The new table may fill before all has come over: then both stay, until there is room.
func TestFlowsWaitForRoom(t *testing.T) {
	m, p := moving(t, 300, 400, 300)
	for i := range 200 {
		putFlow(t, p.now, 1000+i, flow(i))
	}
	for range 3 {
		if more, err := m.StepFlows(); !more || !errors.Is(err, ErrFull) {
			t.Fatalf("more %v, %v", more, err)
		}
		expectFlows(t, "without room", m, 300)
	}
	if err := m.GrowFlows(1000); err == nil {
		t.Error("two growths at a time")
	}
	for i := range 200 {
		if err := m.Flows.Delete(flowKey(1000 + i)); err != nil {
			t.Fatal(err)
		}
	}
	for more := true; more; {
		var err error
		if more, err = m.StepFlows(); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := m.Flows.Load(); err != nil || len(all) != 300 {
		t.Errorf("%d flows, %v", len(all), err)
	}
}
