package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"calico-xdp/pkg/api"

	"github.com/google/go-cmp/cmp"
	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

func (w *world) expect(want string) {
	w.Helper()
	var lines []string
	for line := range strings.Lines(want) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	if diff := cmp.Diff(strings.Join(lines, "\n"), w.text()); diff != "" {
		w.Fatalf("state:\n%s", diff)
	}
}

// TestOneBlock follows a pool of one block from its first address to its end.
func TestOneBlock(t *testing.T) {
	w := newWorld(t)
	w.pool("p", "10.0.0.0/29", 29, nil)
	ctx := t.Context()

	if got := w.assign4("a", "h1", 2); got != "10.0.0.0 10.0.0.1" {
		t.Error(got)
	}
	w.assign4("a", "h2", 1)
	w.expect(`block 10.0.0.0/29 host:a 0=h1 1=h1 2=h2 free [3 4 5 6 7]
		affinity a/10.0.0.0-29 confirmed
		handle h1 10.0.0.0/29:2
		handle h2 10.0.0.0/29:1`)

	// By address: another handle's and an older assignment's are refused.
	second := netip.MustParseAddr("10.0.0.1")
	if err := w.ReleaseAddress(ctx, second, Expect{Handle: "h2"}); !errors.Is(err, ErrNotOwner) {
		t.Error(err)
	}
	as, err := w.Lookup(ctx, second)
	if err != nil || as.Handle != "h1" || as.Attributes["node"] != "a" {
		t.Error(as, err)
	}
	if err := w.ReleaseAddress(ctx, second, Expect{Sequence: as.Sequence - 1}); !errors.Is(err, ErrNotOwner) {
		t.Error(err)
	}
	if err := w.ReleaseAddress(ctx, second, Expect{Handle: "h1", Sequence: as.Sequence}); err != nil {
		t.Error(err)
	}
	if err := w.ReleaseAddress(ctx, second, Expect{}); !errors.Is(err, ErrNotAssigned) {
		t.Error(err)
	}
	w.expect(`block 10.0.0.0/29 host:a 0=h1 2=h2 free [3 4 5 6 7 1]
		affinity a/10.0.0.0-29 confirmed
		handle h1 10.0.0.0/29:1
		handle h2 10.0.0.0/29:1`)

	// Another node borrows, since no block is left to claim.
	if got := w.assign4("b", "h3", 1); got != "10.0.0.3" {
		t.Error(got)
	}
	usage, err := w.Usage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	u := usage[0]
	borrowed := u.Blocks[0].Borrowed()
	if got := fmt.Sprintf("%s %s %s-%d=%s %s %v", u.Pool, u.CIDR, u.Total, u.InUse, u.Free(), u.Blocks[0].Affinity, borrowed); len(borrowed) != 1 ||
		!strings.HasPrefix(got, "p 10.0.0.0/29 8-3=5 host:a [{10.0.0.3 10.0.0.0/29 h3 ") {
		t.Error(got)
	}

	// The node goes: its block stays until the last address is released.
	if err := w.ReleaseNode(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	w.expect(`block 10.0.0.0/29 0=h1 2=h2 3=h3 free [4 5 6 7 1]
		handle h1 10.0.0.0/29:1
		handle h2 10.0.0.0/29:1
		handle h3 10.0.0.0/29:1`)
	for _, h := range []string{"h1", "h2", "h3", "h3"} {
		if _, err := w.ReleaseHandle(ctx, h, nil); err != nil {
			t.Error(err)
		}
	}
	w.expect("")
	w.consistent("end", false)
}

// TestSpansBlocks: a request over several blocks counts exactly in each.
func TestSpansBlocks(t *testing.T) {
	w := newWorld(t)
	w.pool("p", "10.0.0.0/28", 30, nil)
	w.pool("q", "fd00::/48", 122, nil)
	got, err := w.AssignAuto(t.Context(), Request{Node: "a", Handle: "h", IPv4: 10, IPv6: 2})
	if err != nil || len(got.IPv4) != 10 || len(got.IPv6) != 2 {
		t.Fatal(got, err)
	}
	w.consistent("assigned", false)
	if as := must(w.AddressesOf(t.Context(), "h")); len(as) != 12 {
		t.Error(as)
	}
	var counts []int
	h, err := w.handle(t.Context(), "h")
	if err != nil {
		t.Fatal(err)
	}
	sum := 0
	for _, n := range h.Block {
		counts = append(counts, n)
		sum += n
	}
	if len(counts) != 4 || sum != 12 {
		t.Errorf("handle counts %v", h.Block)
	}
	freed, err := w.ReleaseHandle(t.Context(), "h", nil)
	if err != nil || len(freed) != 12 {
		t.Error(freed, err)
	}
	w.consistent("released", false)
	if strings.Contains(w.text(), "handle") {
		t.Error(w.text())
	}

	// All or nothing: 16 addresses are there, 17 are not.
	if _, err := w.AssignAuto(t.Context(), Request{Node: "a", Handle: "h", IPv4: 16, IPv6: 1}); err != nil {
		t.Error(err)
	}
	before := w.text()
	_, err = w.AssignAuto(t.Context(), Request{Node: "b", Handle: "i", IPv6: 3, IPv4: 1})
	if !errors.Is(err, ErrExhausted) {
		t.Error(err)
	}
	w.ReleaseHandle(t.Context(), "h", func(as Assignment) bool { return as.Address == netip.MustParseAddr("10.0.0.7") })
	_, err = w.AssignAuto(t.Context(), Request{Node: "b", Handle: "i", IPv4: 2})
	if !errors.Is(err, ErrExhausted) || strings.Contains(w.text(), "=i") {
		t.Error(err, w.text())
	}
	w.consistent("rolled back", false)
	if before == w.text() {
		t.Error("nothing was released")
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestWhereFrom: which pool and which block a request may use.
func TestWhereFrom(t *testing.T) {
	w := newWorld(t)
	w.node("a", map[string]string{"rack": "1"})
	w.node("b", map[string]string{"rack": "2"})
	w.pool("p1", "10.1.0.0/29", 30, func(s *v3.IPPoolSpec) { s.NodeSelector = "rack == '1'" })
	w.pool("p2", "10.2.0.0/29", 30, func(s *v3.IPPoolSpec) {
		s.NodeSelector = "rack == '2'"
		s.AllowedUses = []v3.IPPoolAllowedUse{v3.IPPoolAllowedUseWorkload}
	})
	w.pool("p3", "10.3.0.0/29", 30, func(s *v3.IPPoolSpec) { s.Disabled = true })
	w.pool("p4", "10.4.0.0/29", 30, func(s *v3.IPPoolSpec) { s.AssignmentMode = new(v3.Manual) })
	w.pool("p5", "10.5.0.0/29", 30, func(s *v3.IPPoolSpec) {
		s.NodeSelector = "rack == '2'"
		s.AllowedUses = []v3.IPPoolAllowedUse{v3.IPPoolAllowedUseTunnel}
	})
	w.pool("p6", "10.6.0.0/29", 30, func(s *v3.IPPoolSpec) {
		s.AllowedUses = []v3.IPPoolAllowedUse{"LoadBalancer"}
	})
	w.pool("p0", "10.0.0.0/29", 30, func(s *v3.IPPoolSpec) {
		s.NamespaceSelector = "team == 'blue'"
		s.AllowedUses = []v3.IPPoolAllowedUse{v3.IPPoolAllowedUseWorkload}
	})
	for _, test := range []struct {
		r    Request
		want string // the /16, or the sentinel
	}{
		{Request{Node: "a", IPv4: 1, Pools4: []string{"p0"}}, "10.0."},
		{Request{Node: "a", IPv4: 1}, "10.1."},
		{Request{Node: "b", IPv4: 1}, "10.2."},
		{Request{Node: "unknown", IPv4: 1}, ErrNoPool.Error()},
		{Request{Node: "a", IPv4: 1, Pools4: []string{"p2"}}, "10.2."},
		{Request{Node: "a", IPv4: 1, Pools4: []string{"10.2.0.0/29"}}, "10.2."},
		{Request{Node: "a", IPv4: 1, Pools4: []string{"10.4.0.0/29"}}, "10.4."},
		{Request{Node: "a", IPv4: 1, Pools4: []string{"10.4.0.0/29", "p1"}}, "10.1."}, // its own block is there
		{Request{Node: "a", IPv4: 1, Pools4: []string{"p3"}}, ErrNoPool.Error()},
		{Request{Node: "a", IPv4: 1, Pools4: []string{"nope"}}, ErrNoPool.Error()},
		{Request{Node: "a", IPv6: 1, Pools6: []string{"p1"}}, ErrNoPool.Error()},
		{Request{Node: "a", IPv6: 1}, ErrNoPool.Error()},
		{Request{Node: "a", IPv4: 1, Use: UseTunnel}, "10.1."},
		{Request{Node: "b", IPv4: 1, Use: UseTunnel}, "10.5."},
		{Request{Node: "b", IPv4: 9}, ErrExhausted.Error()},
		{Request{Node: "b", IPv4: 1, Pools4: []string{"p6"}}, ErrNoPool.Error()},
	} {
		test.r.Handle = "h"
		got, err := w.AssignAuto(t.Context(), test.r)
		text := texts(got.IPv4)
		if err != nil {
			text = err.Error()
		}
		if !strings.HasPrefix(text, test.want) && !(err != nil && strings.Contains(text, test.want)) {
			t.Errorf("%+v: %s", test.r, text)
		}
		if _, err := w.ReleaseHandle(t.Context(), "h", nil); err != nil {
			t.Error(err)
		}
	}
	w.consistent("end", false)
}

func TestReservationsAndLimits(t *testing.T) {
	w := newWorld(t)
	w.pool("p", "10.0.0.0/28", 30, nil)
	w.reserve("10.0.0.0/30", "10.0.0.5", "10.0.0.8/31")
	w.config(func(c *api.IPAMConfig) { c.MaxBlocksPerHost, c.StrictAffinity = 2, true })

	// Of three blocks with free addresses the node may own two.
	got := w.assign4("a", "h", 5)
	for _, no := range []string{"10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.5", "10.0.0.8", "10.0.0.9"} {
		if strings.Contains(" "+got+" ", " "+no+" ") {
			t.Errorf("reserved %s in %s", no, got)
		}
	}
	if n := strings.Count(w.text(), "affinity"); n != 2 {
		t.Errorf("%d affinities", n)
	}
	if _, err := w.AssignAuto(t.Context(), Request{Node: "a", Handle: "h", IPv4: 4}); !errors.Is(err, ErrExhausted) {
		t.Error(err)
	}
	// Strict affinity: what the others left in their blocks is not for b.
	b := w.assign4("b", "hb", 2)
	if _, err := w.AssignAuto(t.Context(), Request{Node: "b", Handle: "hb", IPv4: 3}); !errors.Is(err, ErrExhausted) {
		t.Error(b, err)
	}
	w.consistent("end", false)

	// A node may ask for a reserved address by name, but not for one of
	// another's block.
	reserved := AddressRequest{Address: netip.MustParseAddr("10.0.0.1"), Node: "a", Handle: "g"}
	if err := w.AssignAddress(t.Context(), reserved); err != nil {
		t.Error(err)
	}
	reserved.Node, reserved.Address = "b", netip.MustParseAddr("10.0.0.2")
	if err := w.AssignAddress(t.Context(), reserved); !errors.Is(err, ErrExhausted) {
		t.Error(err)
	}
	w.config(func(c *api.IPAMConfig) { c.StrictAffinity, c.AutoAllocateBlocks = false, false })
	if err := w.AssignAddress(t.Context(), reserved); err != nil {
		t.Error(err)
	}
	w.ReleaseHandle(t.Context(), "h", nil)
	// No new blocks are allowed now; c can only borrow.
	w.assign4("c", "hc", 1)
	if strings.Contains(w.text(), "host:c") {
		t.Error(w.text())
	}
	w.consistent("end", false)
}

func TestGivenAddress(t *testing.T) {
	w := newWorld(t)
	w.pool("p", "10.0.0.0/24", 26, nil)
	w.pool("off", "10.9.0.0/24", 26, func(s *v3.IPPoolSpec) { s.Disabled = true })
	r := AddressRequest{Address: netip.MustParseAddr("10.0.0.70"), Node: "a", Handle: "h", Attributes: map[string]string{"x": "y"}}
	if err := w.AssignAddress(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if err := w.AssignAddress(t.Context(), r); !errors.Is(err, ErrTaken) {
		t.Error(err)
	}
	r.Node, r.Handle = "b", "g"
	if err := w.AssignAddress(t.Context(), r); !errors.Is(err, ErrTaken) {
		t.Error(err)
	}
	r.Address = netip.MustParseAddr("10.0.0.71") // in a's block: borrowed
	if err := w.AssignAddress(t.Context(), r); err != nil {
		t.Error(err)
	}
	for _, a := range []string{"10.9.0.1", "10.8.0.1", "fd00::1"} {
		r.Address = netip.MustParseAddr(a)
		if err := w.AssignAddress(t.Context(), r); !errors.Is(err, ErrNoPool) {
			t.Error(a, err)
		}
	}
	as := must(w.AddressesOf(t.Context(), "h"))
	if len(as) != 1 || as[0].Address.String() != "10.0.0.70" || as[0].Attributes["x"] != "y" {
		t.Error(as)
	}
	w.consistent("end", false)
	if strings.Contains(w.text(), "host:b") {
		t.Error(w.text())
	}
}

// TestLeftClaims: what a dead claim of ours or a lost one leaves is settled.
func TestLeftClaims(t *testing.T) {
	w := newWorld(t)
	w.pool("p", "10.0.0.0/29", 30, nil)
	affinity := func(node, block, state string) {
		a := &api.BlockAffinity{State: state}
		a.Name = node + "/" + block
		w.create(a)
	}
	// Died after the first write; and after the second; and b lost against a.
	affinity("a", "10.0.0.0-30", api.AffinityPending)
	w.create(newBlock(netip.MustParsePrefix("10.0.0.4/30"), "a", w.now()))
	affinity("a", "10.0.0.4-30", api.AffinityPending)
	affinity("b", "10.0.0.4-30", api.AffinityPending)
	w.consistent("left", true)
	w.assign4("a", "h", 5)
	w.assign4("b", "g", 1)
	w.consistent("settled", false)
	w.expect(`block 10.0.0.0/30 host:a 0=h 1=h 2=h 3=h free []
		block 10.0.0.4/30 host:a 0=h 1=g free [2 3]
		affinity a/10.0.0.0-30 confirmed
		affinity a/10.0.0.4-30 confirmed
		handle g 10.0.0.4/30:1
		handle h 10.0.0.0/30:4 10.0.0.4/30:1`)
	if ok, err := w.ReleaseAffinity(t.Context(), "a", netip.MustParsePrefix("10.0.0.4/30"), true); ok || err != nil {
		t.Error(ok, err)
	}
	if err := w.ReleasePool(t.Context(), netip.MustParsePrefix("10.0.0.0/29")); err != nil {
		t.Error(err)
	}
	if strings.Contains(w.text(), "affinity") || strings.Contains(w.text(), "host:") {
		t.Error(w.text())
	}
	w.consistent("end", false)
}

func TestTunnelAddresses(t *testing.T) {
	w := newWorld(t)
	w.pool("p", "10.0.0.0/28", 29, nil)
	w.pool("q", "10.1.0.0/28", 29, nil)
	w.pool("v6", "fd00::/48", 122, nil)
	first := must(w.EnsureTunnelAddress(t.Context(), "a", IPIP, []string{"p"}))
	if again := must(w.EnsureTunnelAddress(t.Context(), "a", IPIP, []string{"p"})); again != first || !netip.MustParsePrefix("10.0.0.0/28").Contains(first) {
		t.Error(first, again)
	}
	vxlan := must(w.EnsureTunnelAddress(t.Context(), "a", VXLAN, nil))
	v6 := must(w.EnsureTunnelAddress(t.Context(), "a", VXLANv6, []string{"v6"}))
	if vxlan == first || !v6.Is6() {
		t.Error(vxlan, v6)
	}
	moved := must(w.EnsureTunnelAddress(t.Context(), "a", IPIP, []string{"q"}))
	if !netip.MustParsePrefix("10.1.0.0/28").Contains(moved) {
		t.Error(moved)
	}
	for handle, kind := range map[string]string{
		"ipip-tunnel-addr-a": "ipipTunnelAddress", "vxlan-tunnel-addr-a": "vxlanTunnelAddress", "vxlan-v6-tunnel-addr-a": "vxlanV6TunnelAddress",
	} {
		as := must(w.AddressesOf(t.Context(), handle))
		if len(as) != 1 || as[0].Attributes["type"] != kind || as[0].Attributes["node"] != "a" {
			t.Error(handle, as)
		}
	}
	w.consistent("assigned", false)
	for _, kind := range []Tunnel{IPIP, VXLAN, VXLANv6} {
		if err := w.ReleaseTunnelAddress(t.Context(), "a", kind); err != nil {
			t.Error(err)
		}
	}
	if strings.Contains(w.text(), "handle") {
		t.Error(w.text())
	}
}

// TestOnCalicosData works on what Calico's tools stored, with the wrong counts
// that they put into a handle that spans blocks.
func TestOnCalicosData(t *testing.T) {
	w := newWorld(t)
	w.pool("ipip-always", "192.168.0.0/18", 26, nil)
	w.pool("ipip-cross", "192.168.64.0/18", 28, nil)
	w.pool("v6-pool", "fd02::/48", 122, nil)
	keys := calicoKeys(t)["2"]
	for key, value := range keys {
		w.etcd.Put(key, value)
	}
	for _, f := range must(w.Check(t.Context())) {
		if !f.Leftover || f.Object.Name != "k8s-pod-network.c3" {
			t.Error(f)
		}
	}
	freed, err := w.ReleaseHandle(t.Context(), "k8s-pod-network.c3", nil)
	if err != nil || len(freed) != 70 {
		t.Errorf("%d addresses, %v", len(freed), err)
	}
	w.consistent("c3 released", false)
	// The node's next address is the one longest free of its first block.
	if got := w.assign4("node-b", "new", 1, "ipip-always"); got != "192.168.39.193" {
		t.Error(got)
	}
	if err := w.ReleaseAddress(t.Context(), netip.MustParseAddr("192.168.39.193"), Expect{Handle: "new"}); err != nil {
		t.Error(err)
	}
	for key, value := range keys {
		switch {
		case strings.Contains(key, "192.168.107.") || strings.Contains(key, "192.168.39.") || strings.HasSuffix(key, ".c3"):
		case w.etcd.Get(key) != value:
			t.Errorf("%s was changed to %s", key, w.etcd.Get(key))
		}
	}
}
