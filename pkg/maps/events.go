package maps

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// EventReader takes events out of the kernel's ring buffer.
type EventReader struct {
	ring   *ringbuf.Reader
	record ringbuf.Record
}

// ReadEvents returns a reader of the events. There must be only one at a time; what
// was not read by the last one comes first.
func (m *Maps) ReadEvents() (*EventReader, error) {
	r := new(EventReader)
	err := m.all[bpfMapEvents].use(func(events *ebpf.Map) (err error) {
		r.ring, err = ringbuf.NewReader(events)
		return err
	})
	return r, err
}

// Next waits for the next event. After Close the error is os.ErrClosed.
func (r *EventReader) Next(e *Event) error {
	if err := r.ring.ReadInto(&r.record); err != nil {
		if errors.Is(err, os.ErrClosed) {
			return os.ErrClosed
		}
		return fmt.Errorf("map %s: %w", bpfMapEvents, err)
	}
	if _, err := binary.Decode(r.record.RawSample, binary.NativeEndian, e); err != nil {
		return fmt.Errorf("map %s: %w", bpfMapEvents, err)
	}
	return nil
}

// Close ends Next, wherever it waits.
func (r *EventReader) Close() error { return r.ring.Close() }

// EventsLost is how many events programs could not emit, ever: there were more than
// allowed, or nobody took them.
func (m *Maps) EventsLost() (lost uint64, err error) {
	var perCPU []EventBudget
	err = m.all[bpfMapEventBudgets].use(func(budgets *ebpf.Map) error { return budgets.Lookup(uint32(0), &perCPU) })
	for _, b := range perCPU {
		lost += b.Lost
	}
	return lost, err
}

// KernelTime is the clock that events have their time from.
func KernelTime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) != nil {
		return 0 // the clock is always there
	}
	return time.Duration(t.Nano())
}

// HookName is a hook's name: "from_workload".
func (m *Maps) HookName(h uint8) string { return nameAt(m.hooks, h) }

// ReasonName is a reason's name: "drop_ingress_policy".
func (m *Maps) ReasonName(r uint8) string { return nameAt(m.reasons, r) }

// Drops says whether a packet that ends for this reason is dropped.
func (r bpfReason) Drops() bool { return r > bpfReasonLAST_PASS }

func nameAt(names []string, i uint8) string {
	if int(i) < len(names) {
		return names[i]
	}
	return fmt.Sprint(i)
}
