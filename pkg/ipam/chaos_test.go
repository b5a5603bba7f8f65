package ipam

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"
)

// By hand: go test ./pkg/ipam -run TestChaos -chaos 100000 -timeout 1h
var (
	chaosOperations = flag.Int("chaos", 300, "how many operations TestChaos does")
	chaosSeed       = flag.Uint64("chaos.seed", 0, "TestChaos's seed; 0: a new one")
)

// TestChaos lets eight nodes attach and detach pods, drain, collect and repair at
// random, while processes die between any two of their writes to etcd. That is
// injected where the datastore's client is called; etcd is a real one.
//
// What pods saw is recorded and judged afterwards: no address may have been one
// pod's before it had stopped to be another's. And once what died is cleaned up,
// what is assigned is exactly what pods have, and nothing contradicts itself.
func TestChaos(t *testing.T) {
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	c := &chaos{world: newWorld(t), seed: seed}
	c.pool("p", "10.0.0.0/24", 29, nil)
	for n := range chaosNodes {
		c.node(nodeName(n), nil)
	}
	var left atomic.Int64
	left.Store(int64(*chaosOperations))
	var wg sync.WaitGroup
	for n := range chaosNodes {
		wg.Go(func() {
			node := &chaosNode{chaos: c, name: nodeName(n), random: rand.New(rand.NewPCG(seed, uint64(n))), store: c.connect()}
			for left.Add(-1) >= 0 && !t.Failed() {
				node.step(t.Context())
			}
		})
	}
	wg.Wait()
	t.Logf("%d operations, %d crashes, %d addresses held in turn", *chaosOperations, c.crashes.Load(), len(c.history))
	c.judge()
	c.reconcile()
}

const (
	chaosNodes = 8
	podsANode  = 30 // together nearly as many as there are addresses
)

func nodeName(n int) string { return fmt.Sprint("node-", n) }

type chaos struct {
	*world
	seed    uint64
	clock   atomic.Int64 // orders what pods saw
	crashes atomic.Int64

	mu      sync.Mutex
	history []*hold
}

// hold is a pod's having an address: from when it was told so to when it began to
// give it back, 0 if it has not.
type hold struct {
	address    netip.Addr
	pod        string
	from, till int64
}

type chaosNode struct {
	*chaos
	name   string
	random *rand.Rand
	store  *datastore.Client
	serial int
	pods   []*chaosPod // that run, or whose ADD or DEL died and will be undone
}

type chaosPod struct {
	name, handle string
	holds        []*hold
}

// mortal is a process's way to the datastore: it dies before or after one of its
// writes, and then does nothing any more.
func (n *chaosNode) mortal() *hooked {
	h := &hooked{Store: n.store}
	at, done := 0, n.random.IntN(2) == 0
	if n.random.IntN(6) == 0 {
		at = 1 + n.random.IntN(8)
	}
	h.hook = func(number int, write func() (api.Resource, error)) (api.Resource, error) {
		switch {
		case at == 0 || number < at:
			return write()
		case number == at:
			n.crashes.Add(1)
			if done {
				_, _ = write() // lost or not, nobody hears of it
			}
		}
		return nil, errCrash
	}
	return h
}

func (n *chaosNode) step(ctx context.Context) {
	store := n.mortal()
	a := New(store)
	var err error
	switch dice := n.random.IntN(100); {
	case dice < 2:
		err = a.ReleaseNode(ctx, n.name)
	case dice < 4:
		err = collectNow(ctx, a)
	case dice < 5:
		err = repairNow(ctx, a)
	case len(n.pods) == 0 || dice < 55 && len(n.pods) < podsANode:
		err = n.add(ctx, store, a, dice < 8)
	default:
		i := n.random.IntN(len(n.pods))
		pod := n.pods[i]
		if err = n.del(ctx, store, a, pod); err == nil || n.random.IntN(2) == 0 {
			n.pods = slices.Delete(n.pods, i, i+1) // or nobody ever tries again
		}
	}
	switch {
	case err == nil, errors.Is(err, errCrash), errors.Is(err, ErrExhausted), errors.Is(err, ErrTaken):
	case errors.Is(err, ErrNotAssigned), errors.Is(err, ErrNotOwner): // collected before the endpoint was there
	default:
		n.Errorf("%s: %v", n.name, err)
	}
}

// add does what the CNI plugin does.
func (n *chaosNode) add(ctx context.Context, store Store, a *Allocator, given bool) error {
	n.serial++
	pod := &chaosPod{name: fmt.Sprintf("%s-%d", n.name, n.serial)}
	pod.handle = "net.c-" + pod.name
	n.pods = append(n.pods, pod)
	addrs := []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(n.random.IntN(256))})}
	attributes := podAttributes(n.name, pod.name)
	if given {
		err := a.AssignAddress(ctx, AddressRequest{Address: addrs[0], Node: n.name, Handle: pod.handle, Attributes: attributes})
		if err != nil {
			return err
		}
	} else {
		got, err := a.AssignAuto(ctx, Request{Node: n.name, Handle: pod.handle, IPv4: 1 + n.random.IntN(2), Attributes: attributes})
		if err != nil {
			return err
		}
		addrs = got.IPv4
	}
	for {
		guards, err := a.AssignedTo(ctx, pod.handle, addrs)
		if err != nil {
			return err
		}
		w := endpoint(n.name, pod.name, split(addrs)...)
		_, err = n.guarded(store, func() (api.Resource, error) { return n.store.CreateIf(ctx, w, guards...) })
		if errors.Is(err, datastore.ErrOvertaken) {
			continue
		}
		if err != nil {
			return err
		}
		break
	}
	now := n.clock.Add(1)
	for _, addr := range addrs {
		pod.holds = append(pod.holds, &hold{address: addr, pod: pod.name, from: now})
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.history = append(n.history, pod.holds...)
	return nil
}

// guarded does a write of the endpoint as one of the process's writes.
func (n *chaosNode) guarded(store Store, write func() (api.Resource, error)) (api.Resource, error) {
	return store.(*hooked).write(write)
}

func (n *chaosNode) del(ctx context.Context, store Store, a *Allocator, pod *chaosPod) error {
	now := n.clock.Add(1)
	for _, h := range pod.holds {
		if h.till == 0 {
			h.till = now
		}
	}
	_, err := store.Delete(ctx, api.KeyOf(endpoint(n.name, pod.name)), "")
	if err != nil && !errors.Is(err, datastore.ErrNotFound) {
		return err
	}
	_, err = a.ReleaseHandle(ctx, pod.handle, nil)
	return err
}

func split(addrs []netip.Addr) []string { return strings.Fields(texts(addrs)) }

// collectNow releases whatever has no endpoint at this moment, those included
// whose pods are on their way: their ADD fails then.
func collectNow(ctx context.Context, a *Allocator) error {
	r, err := a.Audit(ctx)
	if err != nil {
		return err
	}
	var wanted []Assignment
	for _, al := range r.Of(Leaked) {
		wanted = append(wanted, al.Assignment)
	}
	_, err = a.Reclaim(ctx, wanted)
	return err
}

func repairNow(ctx context.Context, a *Allocator) error {
	r, err := a.Audit(ctx)
	if err != nil {
		return err
	}
	_, err = a.Repair(ctx, r.Faults)
	return err
}

// judge looks for an address that was two pods' at once.
func (c *chaos) judge() {
	c.Helper()
	byAddress := make(map[netip.Addr][]*hold)
	for _, h := range c.history {
		byAddress[h.address] = append(byAddress[h.address], h)
	}
	for addr, holds := range byAddress {
		slices.SortFunc(holds, func(a, b *hold) int { return int(a.from - b.from) })
		for i, next := range holds[1:] {
			if before := holds[i]; before.till == 0 || before.till > next.from {
				c.Errorf("%s was %s's from %d to %d, and %s's from %d on", addr, before.pod, before.from, before.till, next.pod, next.from)
			}
		}
	}
}

// reconcile cleans up as an operator or the nodes do, and compares what is assigned
// with what pods have.
func (c *chaos) reconcile() {
	c.Helper()
	ctx := context.Background()
	held := make(map[netip.Addr]string)
	for _, r := range must(c.store.List(ctx, api.KindWorkloadEndpoint, "")) {
		w := r.(*api.WorkloadEndpoint)
		for _, addr := range w.Addresses() {
			if other, ok := held[addr]; ok {
				c.Errorf("%s is in the endpoints of %s and %s", addr, other, w.Spec.Pod)
			}
			held[addr] = w.Spec.Pod
		}
	}
	for _, h := range c.history {
		if h.till == 0 && held[h.address] != h.pod {
			c.Errorf("%s of the running pod %s is in the endpoint of %q", h.address, h.pod, held[h.address])
		}
	}
	before := must(c.Audit(ctx))
	c.Logf("left by those that died: %d addresses, %d faults, %d handles", len(before.Of(Leaked)), len(before.Faults), len(before.LostHandles))
	if len(before.Unassigned)+len(before.Conflicts) > 0 {
		c.Errorf("in use and free at once: %v; conflicts: %v", before.Unassigned, before.Conflicts)
	}
	if err := collectNow(ctx, c.Allocator); err != nil {
		c.Error(err)
	}
	if err := repairNow(ctx, c.Allocator); err != nil {
		c.Error(err)
	}
	after := must(c.Audit(ctx))
	if text := findings(after); text != "" {
		c.Errorf("left after the repair:\n%s", text)
	}
	if len(after.Allocations) != len(held) {
		c.Errorf("%d addresses are assigned, pods have %d", len(after.Allocations), len(held))
	}
	for _, al := range after.Allocations {
		if pod := held[al.Address]; al.Attributes[AttributePod] != pod {
			c.Errorf("%s is assigned to %s, and %q has it", al.Address, al.Handle, pod)
		}
	}
}
