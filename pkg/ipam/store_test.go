package ipam

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"
	"calico-xdp/tools/testbed"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

// world is a datastore and an allocator over it.
type world struct {
	*testing.T
	etcd  *testbed.Etcd
	store *datastore.Client
	*Allocator
}

func newWorld(t *testing.T) *world {
	t.Helper()
	e := testbed.StartEtcd(t)
	w := &world{T: t, etcd: e}
	w.store = w.connect()
	w.Allocator = New(w.store)
	return w
}

func (w *world) connect() *datastore.Client {
	w.Helper()
	c, err := datastore.Open(context.Background(), datastore.Config{Endpoints: []string{w.etcd.Endpoint()}}, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(c.Close)
	return c
}

func (w *world) create(rs ...api.Resource) {
	w.Helper()
	for _, r := range rs {
		if _, err := w.store.Create(w.Context(), r); err != nil {
			w.Fatal(err)
		}
	}
}

// pool makes an IP pool; change may be nil.
func (w *world) pool(name, cidr string, blockSize int, change func(*v3.IPPoolSpec)) {
	w.Helper()
	p := v3.NewIPPool()
	p.Name, p.Spec.CIDR, p.Spec.BlockSize = name, cidr, blockSize
	if change != nil {
		change(&p.Spec)
	}
	w.create(p)
}

func (w *world) node(name string, labels map[string]string) {
	w.Helper()
	n := api.NewNode()
	n.Name, n.Labels = name, labels
	w.create(n)
}

func (w *world) reserve(cidrs ...string) {
	w.Helper()
	r := v3.NewIPReservation()
	r.Name, r.Spec.ReservedCIDRs = "r", cidrs
	w.create(r)
}

func (w *world) config(change func(*api.IPAMConfig)) {
	w.Helper()
	c, err := w.Config(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	change(c)
	if err := w.SetConfig(w.Context(), c); err != nil {
		w.Fatal(err)
	}
}

// assign4 assigns n IPv4 addresses and returns them as text.
func (w *world) assign4(node, handle string, n int, pools ...string) string {
	w.Helper()
	got, err := w.AssignAuto(w.Context(), Request{Node: node, Handle: handle, IPv4: n, Pools4: pools, Attributes: map[string]string{AttributeNode: node}})
	if err != nil {
		w.Fatal(err)
	}
	return texts(got.IPv4)
}

func texts(addrs []netip.Addr) string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return strings.Join(out, " ")
}

// text is all of IPAM's objects, a line each: a block with its owner, who has
// which ordinals, and the free ones in their order.
func (w *world) text() string {
	w.Helper()
	var out []string
	for _, kind := range []string{api.KindIPAMBlock, api.KindBlockAffinity, api.KindIPAMHandle} {
		rs, err := w.store.List(w.Context(), kind, "")
		if err != nil {
			w.Fatal(err)
		}
		for _, r := range rs {
			switch r := r.(type) {
			case *api.IPAMBlock:
				line := "block " + r.CIDR.String()
				if r.Affinity != nil {
					line += " " + *r.Affinity
				}
				for _, al := range allocations(r) {
					line += fmt.Sprintf(" %d=%s", al.ordinal, handleID(al.attribute))
				}
				out = append(out, fmt.Sprintf("%s free %v", line, r.Unallocated))
			case *api.BlockAffinity:
				out = append(out, fmt.Sprintf("affinity %s %s", r.Name, r.State))
			case *api.IPAMHandle:
				var counts []string
				for _, cidr := range slices.Sorted(maps.Keys(r.Block)) {
					counts = append(counts, fmt.Sprintf("%s:%d", cidr, r.Block[cidr]))
				}
				out = append(out, "handle "+r.Name+" "+strings.Join(counts, " "))
			}
		}
	}
	return strings.Join(out, "\n")
}

// consistent fails if anything contradicts itself; leftovers tells whether what
// a dead writer leaves is accepted.
func (w *world) consistent(when string, leftovers bool) {
	w.Helper()
	faults, err := w.Check(context.Background())
	if err != nil {
		w.Fatal(err)
	}
	for _, f := range faults {
		if !f.Leftover || !leftovers {
			w.Errorf("%s: %s", when, f)
		}
	}
	if w.Failed() {
		w.Fatalf("state:\n%s", w.text())
	}
}

// reset removes all of IPAM's objects.
func (w *world) reset() {
	w.Helper()
	for _, kind := range []string{api.KindIPAMBlock, api.KindBlockAffinity, api.KindIPAMHandle} {
		rs, err := w.store.List(w.Context(), kind, "")
		if err != nil {
			w.Fatal(err)
		}
		for _, r := range rs {
			if _, err := w.store.Delete(w.Context(), api.KeyOf(r), ""); err != nil {
				w.Fatal(err)
			}
		}
	}
}

// hooked lets a test do something at every write.
type hooked struct {
	Store
	mu     sync.Mutex
	writes int
	// hook does the write with this number (from 1), or not.
	hook func(n int, write func() (api.Resource, error)) (api.Resource, error)
}

func (h *hooked) write(write func() (api.Resource, error)) (api.Resource, error) {
	h.mu.Lock()
	h.writes++
	n := h.writes
	h.mu.Unlock()
	return h.hook(n, write)
}

func (h *hooked) Create(ctx context.Context, r api.Resource) (api.Resource, error) {
	return h.write(func() (api.Resource, error) { return h.Store.Create(ctx, r) })
}

func (h *hooked) Update(ctx context.Context, r api.Resource) (api.Resource, error) {
	return h.write(func() (api.Resource, error) { return h.Store.Update(ctx, r) })
}

func (h *hooked) UpdateIf(ctx context.Context, r api.Resource, guards ...datastore.Guard) (api.Resource, error) {
	return h.write(func() (api.Resource, error) { return h.Store.UpdateIf(ctx, r, guards...) })
}

func (h *hooked) DeleteIf(ctx context.Context, key api.Key, v string, guards ...datastore.Guard) (api.Resource, error) {
	return h.write(func() (api.Resource, error) { return h.Store.DeleteIf(ctx, key, v, guards...) })
}

func (h *hooked) Delete(ctx context.Context, key api.Key, v string) (api.Resource, error) {
	return h.write(func() (api.Resource, error) { return h.Store.Delete(ctx, key, v) })
}

var errCrash = errors.New("crashed")
