package ipam

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"calico-xdp/pkg/api"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// calicoKeys reads what Calico stored, by section and key.
func calicoKeys(t *testing.T) map[string]map[string]string {
	data, err := os.ReadFile("testdata/calico.txt")
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]map[string]string)
	var section, key string
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "== "):
			section = line[3:]
			out[section] = make(map[string]string)
		case strings.HasPrefix(line, "/"):
			key = line
		case strings.HasPrefix(line, "{"):
			out[section][key] = line
		}
	}
	return out
}

// calicoBlocks reads the blocks that Calico stored, by section and name.
func calicoBlocks(t *testing.T) map[string]map[string]string {
	out := calicoKeys(t)
	for section, keys := range out {
		blocks := make(map[string]string)
		for key, value := range keys {
			if strings.Contains(key, "/assignment/") {
				blocks[key[strings.LastIndexByte(key, '/')+1:]] = value
			}
		}
		out[section] = blocks
	}
	return out
}

func webPod(handle, node string) api.AllocationAttribute {
	return attribute(handle, map[string]string{"namespace": "prod", "node": node, "pod": "web-0"})
}

// TestAsCalico does to blocks what was done with Calico's own tools and expects
// the same bytes.
func TestAsCalico(t *testing.T) {
	want := calicoBlocks(t)
	none := func(netip.Addr) bool { return false }
	block := func(cidr, node string, sequence int64, change ...func(*api.IPAMBlock)) *api.IPAMBlock {
		b := newBlock(netip.MustParsePrefix(cidr), node, time.Unix(0, sequence))
		for _, c := range change {
			c(b)
			b.SequenceNumber++ // each is one write
		}
		return b
	}
	takes := func(n int, who api.AllocationAttribute) func(*api.IPAMBlock) {
		return func(b *api.IPAMBlock) {
			if got := take(b, n, who, none); len(got) != n {
				t.Errorf("%s: took %d of %d", b.CIDR, len(got), n)
			}
		}
	}
	disown := func(b *api.IPAMBlock) { b.Affinity, b.AffinityClaimTime = nil, nil }
	frees := func(ordinal int) func(*api.IPAMBlock) {
		return func(b *api.IPAMBlock) { release(b, func(al allocation) bool { return al.ordinal == ordinal }) }
	}
	tunnel := attribute("ipip-tunnel-addr-node-a", map[string]string{"node": "node-a", "type": "ipipTunnelAddress"})
	c1, c2, c3 := webPod("k8s-pod-network.c1", "node-a"), webPod("k8s-pod-network.c2", "node-b"), webPod("k8s-pod-network.c3", "node-a")

	for section, blocks := range map[string][]*api.IPAMBlock{
		"2": {
			block("192.168.46.128/26", "node-a", 1795249025260211786, takes(3, c1), takes(1, tunnel)),
			block("fd02::6d15:74ba:80e:4835:8080/122", "node-a", 1795249025271182199, takes(2, c1)),
			block("192.168.39.192/26", "node-b", 1795249025322644802, takes(1, c2)),
			block("192.168.5.0/26", "node-b", 1795249025444717036, func(b *api.IPAMBlock) {
				takeAt(b, 5, attribute("manual-h", map[string]string{"type": "manual"}))
			}),
			block("192.168.107.160/28", "node-a", 1795249025507469321, takes(16, c3)),
			block("192.168.107.224/28", "node-a", 1795249025548867157, takes(6, c3)),
		},
		"3": {
			block("192.168.46.128/26", "node-a", 1795249243619736607, takes(3, c1), takes(1, tunnel), frees(1), disown),
			block("192.168.107.176/28", "node-a", 1795249243933414693, takes(4, c3), disown),
			block("192.168.107.160/28", "node-a", 1795249243925281757, takes(16, c3), disown),
		},
	} {
		for _, b := range blocks {
			got, err := api.Encode(b)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want[section][b.Name], string(got)); diff != "" {
				t.Errorf("section %s, %s:\n%s", section, b.CIDR, diff)
			}
		}
	}

	// And what Calico wrote reads back to the same.
	for section, blocks := range want {
		for name, text := range blocks {
			r, err := api.DecodeStored(api.KindIPAMBlock, []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			b := r.(*api.IPAMBlock)
			if faults := blockFaults(b); len(faults) > 0 || b.Name != name {
				t.Errorf("section %s, %s (%s): %v", section, name, b.Name, faults)
			}
			if again, _ := api.Encode(b); string(again) != text {
				t.Errorf("section %s, %s: %s", section, name, cmp.Diff(text, string(again)))
			}
		}
	}
}

// TestBlockAgainstOracle drives a block and the plainest possible model of one.
func TestBlockAgainstOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cidr := netip.MustParsePrefix(rapid.SampledFrom([]string{"10.0.0.0/28", "10.0.0.16/32", "fd00::40/122"}).Draw(t, "cidr"))
		size := 1 << (cidr.Addr().BitLen() - cidr.Bits())
		b := newBlock(cidr, "n", time.Unix(1, 0))
		type owner struct {
			handle, label string
			sequence      uint64
		}
		model := make(map[int]owner)
		var queue []int
		for i := range size {
			queue = append(queue, i)
		}
		handles := rapid.SampledFrom([]string{"", "a", "b", "c"})
		labels := rapid.SampledFrom([]string{"", "x", "y"})
		who := func(handle, label string) api.AllocationAttribute {
			var at api.AllocationAttribute
			if handle != "" {
				at.HandleID = &handle
			}
			if label != "" {
				at.Secondary = map[string]string{"l": label}
			}
			return at
		}
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				n, o := rapid.IntRange(0, 5).Draw(t, "n"), owner{handles.Draw(t, "handle"), labels.Draw(t, "label"), b.SequenceNumber}
				reserved := rapid.IntRange(0, 3).Draw(t, "reserved")
				var want, left []int
				for _, i := range queue {
					if len(want) < n && i%4 >= reserved {
						want = append(want, i)
						model[i] = o
					} else {
						left = append(left, i)
					}
				}
				queue = left
				got := take(b, n, who(o.handle, o.label), func(a netip.Addr) bool { return ordinalOf(cidr, a)%4 < reserved })
				if !slices.Equal(got, want) {
					t.Fatalf("got %v, want %v", got, want)
				}
			},
			"take one": func(t *rapid.T) {
				i, o := rapid.IntRange(0, size-1).Draw(t, "ordinal"), owner{handles.Draw(t, "handle"), labels.Draw(t, "label"), b.SequenceNumber}
				_, used := model[i]
				if got := takeAt(b, i, who(o.handle, o.label)); got == used {
					t.Fatalf("ordinal %d: got %v", i, got)
				}
				if !used {
					model[i] = o
					queue = slices.DeleteFunc(queue, func(j int) bool { return j == i })
				}
			},
			"release": func(t *rapid.T) {
				handle, from := handles.Draw(t, "handle"), rapid.IntRange(0, size-1).Draw(t, "from")
				n := len(release(b, func(al allocation) bool { return handleID(al.attribute) == handle && al.ordinal >= from }))
				for _, i := range slices.Sorted(maps.Keys(model)) {
					if model[i].handle == handle && i >= from {
						delete(model, i)
						queue = append(queue, i)
						n--
					}
				}
				if n != 0 {
					t.Fatalf("released %d too many", n)
				}
			},
			"": func(t *rapid.T) {
				b.SequenceNumber++
				if faults := blockFaults(b); len(faults) > 0 {
					t.Fatal(faults)
				}
				if len(b.Unallocated)+len(queue) > 0 && !slices.Equal(b.Unallocated, queue) {
					t.Fatalf("free %v, want %v", b.Unallocated, queue)
				}
				if len(b.SequenceNumberForAllocation) != len(model) || isEmpty(b) != (len(model) == 0) {
					t.Fatalf("%d sequence numbers for %d", len(b.SequenceNumberForAllocation), len(model))
				}
				counts := map[string]int{}
				kinds := map[owner]bool{}
				for _, al := range allocations(b) {
					o := owner{handleID(al.attribute), al.attribute.Secondary["l"], al.sequence}
					if model[al.ordinal] != o || b.SequenceNumberForAllocation[strconv.Itoa(al.ordinal)] != o.sequence {
						t.Fatalf("ordinal %d: %v, want %v", al.ordinal, o, model[al.ordinal])
					}
					counts[o.handle]++
					o.sequence = 0
					kinds[o] = true
				}
				if len(b.Attributes) != len(kinds) {
					t.Fatalf("%d attributes for %d kinds", len(b.Attributes), len(kinds))
				}
				for _, h := range []string{"a", "b", "c"} {
					if countOf(b, h) != counts[h] {
						t.Fatalf("handle %s counts %d, want %d", h, countOf(b, h), counts[h])
					}
				}
			},
		})
	})
}

func TestFreeBlock(t *testing.T) {
	prefix := netip.MustParsePrefix
	blocks := func(cidrs ...string) (out []*api.IPAMBlock) {
		for _, c := range cidrs {
			out = append(out, &api.IPAMBlock{CIDR: prefix(c)})
		}
		return out
	}
	for _, test := range []struct {
		pool     string
		bits     int
		blocks   []string
		reserved []string
		want     string // "" for none; "*" any in the pool
	}{
		{"10.0.0.0/26", 26, nil, nil, "10.0.0.0/26"},
		{"10.0.0.0/26", 26, []string{"10.0.0.0/26"}, nil, ""},
		{"10.0.0.0/24", 26, []string{"10.0.0.0/26", "10.0.0.64/26", "10.0.0.192/26"}, nil, "10.0.0.128/26"},
		{"10.0.0.0/24", 26, []string{"10.0.0.0/25"}, []string{"10.0.0.192/26"}, "10.0.0.128/26"},
		{"10.0.0.0/24", 26, []string{"10.0.0.0/28", "10.0.0.127/32"}, []string{"10.0.0.128/27", "10.0.0.160/27"}, "10.0.0.192/26"},
		{"10.0.0.0/24", 26, []string{"10.0.0.64/26", "10.0.0.128/26", "10.0.0.192/26"}, []string{"10.0.0.0/27"}, "10.0.0.0/26"},
		{"10.0.0.0/8", 26, nil, []string{"0.0.0.0/0"}, ""},
		{"255.255.255.0/24", 26, []string{"255.255.255.0/26", "255.255.255.64/26", "255.255.255.128/26"}, nil, "255.255.255.192/26"},
		{"fd00::/48", 122, nil, []string{"fd00::/49", "10.0.0.0/8"}, "*"},
		{"fd00::/48", 122, nil, []string{"fd00::/49", "fd00:0:0:8000::/50", "fd00:0:0:c000::/51", "fd00:0:0:e000::/51"}, ""},
		{"ffff:ffff:ffff:ffff::/64", 128, nil, []string{"ffff:ffff:ffff:ffff:8000::/65"}, "*"},
		{"fd00::/48", 122, []string{"10.0.0.0/26"}, nil, "*"},
	} {
		var reserved reservations
		for _, r := range test.reserved {
			reserved = append(reserved, prefix(r))
		}
		for n := range 20 {
			p := pool{cidr: prefix(test.pool), blockBits: test.bits}
			ts := takenBlocks(p, blocks(test.blocks...), reserved)
			got, ok := ts.free(fmt.Sprint("node-", n))
			switch {
			case !ok && test.want != "":
				t.Errorf("%v: none", test)
			case ok && test.want == "*":
				if got.Bits() != test.bits || !p.cidr.Contains(got.Addr()) || got != got.Masked() || reserved.has(got.Addr()) {
					t.Errorf("%v: got %s", test, got)
				}
			case ok && got.String() != test.want:
				t.Errorf("%v: got %s", test, got)
			}
		}
	}
}

// Nodes that start at the same time should want different blocks: of 100 nodes
// in 1024 blocks about 95 distinct first choices are expected by chance.
func TestFirstChoicesSpread(t *testing.T) {
	for _, pool := range []struct {
		cidr string
		bits int
	}{{"192.168.0.0/16", 26}, {"fd00::/48", 122}} {
		cidr := netip.MustParsePrefix(pool.cidr)
		seen := make(map[netip.Prefix]bool)
		for n := range 100 {
			c := firstChoice(cidr, pool.bits, fmt.Sprint("node-", n))
			if !cidr.Contains(c.Addr()) || c != c.Masked() {
				t.Errorf("%s is no block of %s", c, cidr)
			}
			seen[c] = true
		}
		if len(seen) < 88 {
			t.Errorf("%s: 100 nodes choose %d blocks", cidr, len(seen))
		}
	}
}

func TestNumbers(t *testing.T) {
	big := number{lo: math.MaxUint64}
	if got := big.add(number{lo: 1}); got != (number{hi: 1}) {
		t.Error(got)
	}
	for _, a := range []string{"0.0.0.0", "255.255.255.255", "192.168.1.2", "::", "fd00::1:0:0:1"} {
		addr := netip.MustParseAddr(a)
		if got := numberOf(addr).address(addr); got != addr {
			t.Errorf("%s became %s", addr, got)
		}
	}
	if got := addressAt(netip.MustParsePrefix("fd00::ffff:ffff:ffff:ff80/121"), 127); got.String() != "fd00::ffff:ffff:ffff:ffff" {
		t.Error(got)
	}
}
