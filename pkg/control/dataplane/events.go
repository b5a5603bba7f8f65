package dataplane

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/control/reconcile"
	kernel "calico-xdp/pkg/maps"
)

// eventRate is how many events each CPU may emit in a second: more than a person reads,
// and little beside what the packets themselves cost.
const eventRate = 2000

// eventQueue is how many events wait for a listener that is slow.
const eventQueue = 4096

// EventKinds is a set of kinds of events.
type EventKinds uint8

const (
	EventLog    = EventKinds(kernel.EventLog)
	EventDrop   = EventKinds(kernel.EventDrop)
	EventFlow   = EventKinds(kernel.EventFlow)
	EventStaged = EventKinds(kernel.EventStaged)
)

// Event is what has happened to a packet.
type Event struct {
	Kind EventKinds // one
	Time time.Time
	// Hook and Reason are the C enums' names in lower case. Reason is the drop's; of
	// other kinds that of the verdict so far, empty while that is to allow.
	Hook, Reason string
	Ifindex      int
	Length       int // bytes, with the Ethernet header

	Source, Destination netip.Addr
	Protocol            uint8
	// Of ICMP the source port is 0 and the destination port type<<8|code.
	SourcePort, DestinationPort uint16

	Rule  *Rule  // that the kind speaks of; nil if none is
	Rules []Rule // that judged the flow, as far as they are known
}

// Listener gets events. It has to be closed.
type Listener struct {
	Events <-chan Event

	events chan Event
	kinds  EventKinds
	since  time.Duration // kernel's time
	missed atomic.Uint64
	lost   uint64 // in the kernel, when it began to listen
	d      *Dataplane
}

// listening is who listens, and what the kernel's settings say of it.
type listening struct {
	comings sync.Mutex          // held while the reader comes or goes: there is one at a time
	reader  *kernel.EventReader // nil: nobody listens
	done    sync.WaitGroup      // until the reader has ended

	missed atomic.Uint64 // by all listeners, ever

	mu        sync.Mutex
	listeners map[*Listener]bool

	settings *reconcile.Tracked[uint32, kernel.Settings]
	table    *settingsTable
	base     *kernel.Settings // what the state says, without events; nil before the first round
}

// settingsTable is the table of settings. It counts the writes that change more than who
// listens.
type settingsTable struct {
	kernel.Table[uint32, kernel.Settings]
	last   kernel.Settings
	writes int
}

func withoutEvents(s kernel.Settings) kernel.Settings {
	s.Events, s.EventRate = 0, 0
	return s
}

func (t *settingsTable) Load() (map[uint32]kernel.Settings, error) {
	out, err := t.Table.Load()
	t.last = withoutEvents(out[0])
	return out, err
}

func (t *settingsTable) Put(k uint32, v kernel.Settings) error {
	if now := withoutEvents(v); now != t.last {
		t.last = now
		t.writes++
	}
	return t.Table.Put(k, v)
}

func newListening(t kernel.Table[uint32, kernel.Settings], log *slog.Logger) *listening {
	l := &listening{listeners: make(map[*Listener]bool), table: &settingsTable{Table: t}}
	l.settings = reconcile.TrackWith(l.table, reconcile.Options[kernel.Settings]{
		Name: "settings", Logger: log, Equal: func(a, b kernel.Settings) bool { return a == b },
	})
	return l
}

// ensure makes the settings what the state says, and who listens. It returns how many
// writes have changed what the state says.
func (l *listening) ensure(w *desired.Dataplane) (writes int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.table.writes
	base := settingsOf(w)[0]
	l.base = &base
	err = l.write()
	return l.table.writes - before, err
}

// write brings the settings into the kernel, unless it is too early for that.
func (l *listening) write() error {
	if l.base == nil {
		return nil
	}
	s := *l.base
	for x := range l.listeners {
		s.Events |= uint8(x.kinds)
		s.EventRate = eventRate
	}
	return l.settings.Ensure(map[uint32]kernel.Settings{0: s})
}

func (l *listening) resync() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settings.Resync()
}

// Listen has events of these kinds handed out, from now on. Programs emit only events
// that someone listens to. Those that come faster than they are taken are lost, and
// counted.
func (d *Dataplane) Listen(kinds EventKinds) (*Listener, error) {
	l := d.listening
	l.comings.Lock()
	defer l.comings.Unlock()
	if l.reader == nil {
		reader, err := d.kernel.ReadEvents()
		if err != nil {
			return nil, err
		}
		l.reader = reader
		l.done.Go(func() { d.read(reader) })
	}
	x := &Listener{kinds: kinds, since: kernel.KernelTime(), events: make(chan Event, eventQueue), d: d}
	x.Events = x.events
	lost, err := d.kernel.EventsLost()
	x.lost = lost
	if err = errors.Join(err, l.set(x, true)); err != nil {
		return nil, errors.Join(err, l.set(x, false), l.quiet())
	}
	return x, nil
}

// Close ends listening.
func (x *Listener) Close() error {
	l := x.d.listening
	l.comings.Lock()
	defer l.comings.Unlock()
	return errors.Join(l.set(x, false), l.quiet())
}

// Lost is how many events have been lost since it listens, other listeners' kinds among
// them.
func (x *Listener) Lost() uint64 {
	lost, err := x.d.kernel.EventsLost()
	if err != nil || lost < x.lost {
		lost = x.lost
	}
	return lost - x.lost + x.missed.Load()
}

// set lets one listen, or no longer.
func (l *listening) set(x *Listener, listens bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if listens {
		l.listeners[x] = true
	} else {
		delete(l.listeners, x)
	}
	return l.write()
}

// quiet lets go of the ring buffer if nobody listens.
func (l *listening) quiet() error {
	l.mu.Lock()
	some := len(l.listeners) > 0
	l.mu.Unlock()
	if some || l.reader == nil {
		return nil
	}
	err := l.reader.Close()
	l.done.Wait()
	l.reader = nil
	return err
}

// close ends all listening, so that programs emit no events for nobody.
func (l *listening) close() error {
	l.comings.Lock()
	defer l.comings.Unlock()
	l.mu.Lock()
	clear(l.listeners)
	var err error
	if l.reader != nil {
		err = l.write()
	}
	l.mu.Unlock()
	return errors.Join(err, l.quiet())
}

// read hands out events until the reader is closed.
func (d *Dataplane) read(reader *kernel.EventReader) {
	l := d.listening
	boot := time.Now().Add(-kernel.KernelTime())
	var raw kernel.Event
	for {
		err := reader.Next(&raw)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			d.log.Error("events are not read", "error", err)
			return
		}
		var e *Event
		l.mu.Lock()
		for x := range l.listeners {
			if uint8(x.kinds)&raw.Kind == 0 || time.Duration(raw.Time) < x.since {
				continue
			}
			if e == nil {
				e = d.event(&raw, boot)
			}
			select {
			case x.events <- *e:
			default:
				x.missed.Add(1)
				l.missed.Add(1)
			}
		}
		l.mu.Unlock()
	}
}

// event reads what a program has written.
func (d *Dataplane) event(raw *kernel.Event, boot time.Time) *Event {
	e := &Event{
		Kind: EventKinds(raw.Kind), Time: boot.Add(time.Duration(raw.Time)),
		Hook: d.kernel.HookName(raw.Hook), Ifindex: int(raw.Ifindex), Length: int(raw.Length),
		Source:      kernel.Address{Bytes: raw.Source.Bytes}.Addr(),
		Destination: kernel.Address{Bytes: raw.Destination.Bytes}.Addr(),
		Protocol:    raw.Protocol,
		SourcePort:  kernel.BigEndian16(raw.SourcePort), DestinationPort: kernel.BigEndian16(raw.DestinationPort),
		Rules: d.rulesOf(raw.Rules[:]),
	}
	if kernel.Reason(raw.Reason).Drops() {
		e.Reason = d.kernel.ReasonName(raw.Reason)
	}
	if rules := d.rulesOf([]uint32{raw.Rule}); len(rules) > 0 {
		e.Rule = &rules[0]
	}
	return e
}

// EventsLost is how many events nobody has got, ever.
func (d *Dataplane) eventsLost() (uint64, error) {
	lost, err := d.kernel.EventsLost()
	return lost + d.listening.missed.Load(), err
}

func (k EventKinds) String() string {
	for name, kind := range map[string]EventKinds{"log": EventLog, "drop": EventDrop, "flow": EventFlow, "staged": EventStaged} {
		if k == kind {
			return name
		}
	}
	return fmt.Sprint(uint8(k))
}
