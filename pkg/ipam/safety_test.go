package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"calico-xdp/pkg/api"
)

// TestRacingNodes: nodes that want addresses of a small pool at once never get
// the same, and nothing is left when they have given them back.
func TestRacingNodes(t *testing.T) {
	w := newWorld(t)
	w.pool("p", "10.0.0.0/26", 29, nil)
	var mu sync.Mutex
	held := make(map[netip.Addr]string)
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			a, node := New(w.connect()), fmt.Sprint("node-", n)
			for round := range 9 {
				handle := fmt.Sprint(node, ".", round%3)
				got, err := a.AssignAuto(t.Context(), Request{Node: node, Handle: handle, IPv4: 1 + round%3})
				if errors.Is(err, ErrExhausted) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for _, addr := range got.IPv4 {
					if other, ok := held[addr]; ok {
						t.Errorf("%s is %s's and %s's", addr, other, handle)
					}
					held[addr] = handle
				}
				mu.Unlock()
				if round%3 == 2 {
					mu.Lock()
					for addr, h := range held {
						if h == handle {
							delete(held, addr)
						}
					}
					mu.Unlock()
					if _, err := a.ReleaseHandle(t.Context(), handle, nil); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	w.consistent("after the race", false)
	n := 0
	usage := must(w.Usage(t.Context()))
	for _, b := range usage[0].Blocks {
		for _, as := range b.InUse {
			if n++; held[as.Address] != as.Handle {
				t.Errorf("%s is %s's, not %s's", as.Address, as.Handle, held[as.Address])
			}
		}
	}
	if n != len(held) {
		t.Errorf("%d in use, %d held", n, len(held))
	}
	w.leave(t.Context(), held)
	w.expect("")
}

// leave releases all handles and nodes.
func (w *world) leave(ctx context.Context, held map[netip.Addr]string) {
	w.Helper()
	for _, h := range held {
		if _, err := w.ReleaseHandle(ctx, h, nil); err != nil {
			w.Error(err)
		}
	}
	for n := range 8 {
		if err := w.ReleaseNode(ctx, fmt.Sprint("node-", n)); err != nil {
			w.Error(err)
		}
	}
}

// TestRacingOnOneHandle: writers that share a handle and release it under each
// other's hands never leave an address that the handle does not count.
func TestRacingOnOneHandle(t *testing.T) {
	w := newWorld(t)
	w.pool("p", "10.0.0.0/26", 29, nil)
	var wg sync.WaitGroup
	for n := range 6 {
		wg.Go(func() {
			a, node := New(w.connect()), fmt.Sprint("node-", n)
			for round := range 9 {
				got, err := a.AssignAuto(t.Context(), Request{Node: node, Handle: "shared", IPv4: 2})
				switch {
				case err != nil:
				case round%3 == n%3:
					_, err = a.ReleaseHandle(t.Context(), "shared", nil)
				case round%3 == 1:
					if err = a.ReleaseAddress(t.Context(), got.IPv4[0], Expect{Handle: "shared"}); errors.Is(err, ErrNotAssigned) {
						err = nil // with the handle, by someone else
					}
				}
				if err != nil && !errors.Is(err, ErrExhausted) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	w.consistent("after the race", false)
	w.leave(t.Context(), map[netip.Addr]string{{}: "shared"})
	w.expect("")
}

// An operation of the tests below. Those of the same test use different nodes
// and, some of them, the same handle.
type operation struct {
	name string
	// prepare makes what the operation works on, before any fault.
	prepare func(*Allocator) error
	run     func(context.Context, *Allocator) error
}

// operations are everything that writes.
func operations(node, handle string) []operation {
	assign := func(ctx context.Context, a *Allocator, n int) error {
		_, err := a.AssignAuto(ctx, Request{Node: node, Handle: handle, IPv4: n})
		return err
	}
	owned := func(a *Allocator) error { return assign(context.Background(), a, 3) }
	return []operation{
		{"claim and assign", nil, func(ctx context.Context, a *Allocator) error { return assign(ctx, a, 1) }},
		{"assign over blocks", owned, func(ctx context.Context, a *Allocator) error { return assign(ctx, a, 3) }},
		{"ask for too many", owned, func(ctx context.Context, a *Allocator) error {
			err := assign(ctx, a, 20)
			if errors.Is(err, ErrExhausted) && !errors.Is(err, errCrash) {
				return nil
			}
			return err
		}},
		{"assign given", nil, func(ctx context.Context, a *Allocator) error {
			err := a.AssignAddress(ctx, AddressRequest{Address: netip.MustParseAddr("10.0.0.5"), Node: node, Handle: handle})
			if errors.Is(err, ErrTaken) {
				return nil
			}
			return err
		}},
		{"release handle", owned, func(ctx context.Context, a *Allocator) error {
			_, err := a.ReleaseHandle(ctx, handle, nil)
			return err
		}},
		{"release address", owned, func(ctx context.Context, a *Allocator) error {
			as, err := a.AddressesOf(ctx, handle)
			if err != nil || len(as) == 0 {
				return err
			}
			err = a.ReleaseAddress(ctx, as[0].Address, Expect{Handle: handle})
			if errors.Is(err, ErrNotAssigned) || errors.Is(err, ErrNotOwner) {
				return nil
			}
			return err
		}},
		{"release node", owned, func(ctx context.Context, a *Allocator) error { return a.ReleaseNode(ctx, node) }},
	}
}

func (o operation) begin(w *world) {
	w.Helper()
	if o.prepare != nil {
		if err := o.prepare(w.Allocator); err != nil {
			w.Fatal(err)
		}
	}
}

// recovered checks that an allocator that comes after a crash needs nothing
// special: the node assigns, handles and nodes are released, nothing is left.
func (w *world) recovered(when string) {
	w.Helper()
	w.consistent(when, true)
	ctx := context.Background()
	seen := make(map[netip.Addr]bool)
	for _, u := range must(w.Usage(ctx)) {
		for _, b := range u.Blocks {
			for _, as := range b.InUse {
				if seen[as.Address] {
					w.Errorf("%s: %s twice", when, as.Address)
				}
				seen[as.Address] = true
			}
		}
	}
	for _, node := range []string{"a", "b"} {
		if _, err := w.AssignAuto(ctx, Request{Node: node, Handle: "later", IPv4: 1}); err != nil && !errors.Is(err, ErrExhausted) {
			w.Errorf("%s: %v", when, err)
		}
	}
	w.consistent(when+", then assigned", true)
	for _, handle := range []string{"ha", "hb", "h", "later"} {
		if _, err := w.ReleaseHandle(ctx, handle, nil); err != nil {
			w.Errorf("%s: %v", when, err)
		}
	}
	for _, node := range []string{"a", "b"} {
		if err := w.ReleaseNode(ctx, node); err != nil {
			w.Errorf("%s: %v", when, err)
		}
	}
	if left := w.text(); left != "" {
		w.Fatalf("%s: left:\n%s", when, left)
	}
}

// TestCrash stops every operation before and after each of its writes. With
// "dies" nothing follows, not even the undoing; without, the one write's answer
// is an error and the operation goes on as it sees fit.
func TestCrash(t *testing.T) {
	w := newWorld(t)
	w.pool("p", "10.0.0.0/28", 30, nil)
	for _, o := range operations("a", "h") {
		for _, dies := range []bool{false, true} {
			for _, done := range []bool{false, true} {
				if dies && !done {
					continue // as after the write before
				}
				for at := 1; ; at++ {
					when := fmt.Sprintf("%s, write %d, done %v, dies %v", o.name, at, done, dies)
					w.reset()
					o.begin(w)
					h := &hooked{Store: w.store}
					h.hook = func(n int, write func() (api.Resource, error)) (api.Resource, error) {
						switch {
						case n < at, n > at && !dies:
							return write()
						case n == at && done:
							if _, err := write(); err != nil {
								return nil, err // the fault would hide it
							}
						}
						return nil, errCrash
					}
					before := w.text()
					err := o.run(t.Context(), New(h))
					if h.writes < at {
						if err != nil {
							t.Fatalf("%s: %v", when, err)
						}
						break
					}
					if !errors.Is(err, errCrash) {
						t.Errorf("%s: %v", when, err)
					}
					if !dies && !done && o.name == "assign over blocks" {
						// What was assigned in the failed request is given back.
						if n := len(must(w.AddressesOf(t.Context(), "h"))); n != 3 {
							t.Errorf("%s: %d addresses\nbefore:\n%s\nafter:\n%s", when, n, before, w.text())
						}
					}
					w.recovered(when)
				}
			}
		}
	}
}

// TestInterleaved lets one operation happen as a whole before each write of
// another, on different handles and on the same.
func TestInterleaved(t *testing.T) {
	w := newWorld(t)
	w.pool("p", "10.0.0.0/28", 30, nil)
	for _, handles := range [][2]string{{"ha", "hb"}, {"h", "h"}} {
		for _, first := range operations("a", handles[0]) {
			others := operations("b", handles[1])
			for _, second := range []operation{others[0], others[3], others[4], others[5], operations("a", handles[1])[6]} {
				for at := 1; ; at++ {
					when := fmt.Sprintf("%s (%s), at write %d: %s (%s)", first.name, handles[0], at, second.name, handles[1])
					w.reset()
					first.begin(w)
					second.begin(w)
					h := &hooked{Store: w.store}
					h.hook = func(n int, write func() (api.Resource, error)) (api.Resource, error) {
						if n == at {
							if err := second.run(t.Context(), w.Allocator); err != nil && !errors.Is(err, ErrExhausted) {
								t.Errorf("%s: second: %v", when, err)
							}
						}
						return write()
					}
					if err := first.run(t.Context(), New(h)); err != nil && !errors.Is(err, ErrExhausted) {
						t.Errorf("%s: first: %v", when, err)
					}
					w.consistent(when, false)
					if h.writes < at {
						break
					}
					w.recovered(when)
				}
			}
		}
	}
}
