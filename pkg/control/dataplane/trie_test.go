package dataplane

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/gaissmai/bart"

	kernel "calico-xdp/pkg/maps"
)

// trieNumbers is what the kernel's trie says, whatever nodes it says it with: for each
// address at which another number begins that number and TrieKnown, or 0.
func trieNumbers(t testing.TB, k *kernel.TrieNodes) map[string]uint32 {
	t.Helper()
	nodes, err := k.Read(0, k.Len())
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]uint32)
	last := ^uint32(0)
	var walk func(node, addr uint32, depth int)
	walk = func(node, addr uint32, depth int) {
		for i, v := range nodes[node].Entry {
			at := addr | uint32(i)<<(32-depth)
			if v&kernel.TrieChild != 0 && depth < 32 {
				walk(v&^kernel.TrieChild, at, depth+levelBits)
				continue
			}
			if v != last {
				last = v
				out[netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, at))).String()] = v
			}
		}
	}
	for root := range kernel.TrieRoots {
		walk(uint32(root), uint32(root)<<20, rootBits)
	}
	return out
}

// trieNumber is what a program finds of an address in the kernel's trie.
func trieNumber(nodes []kernel.TrieNode, a netip.Addr) uint32 {
	four := a.As4()
	addr := binary.BigEndian.Uint32(four[:])
	node := addr >> 20
	for depth := rootBits; ; depth += levelBits {
		v := nodes[node].Entry[addr>>(32-depth)&15]
		if v&kernel.TrieChild == 0 {
			return v
		}
		node = v &^ kernel.TrieChild
	}
}

// openTrie is a trie on tables of its own, which has room for that many nodes and grows no
// more.
func openTrie(t *testing.T, nodes int) *addressTrie {
	t.Helper()
	k, err := kernel.OpenWith("", kernel.Options{Sizes: map[string]int{"class_nodes": nodes}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return newAddressTrie(k.ClassNodes)
}

// Whatever prefixes come and go, an address has the class of the longest one that it is
// part of; where there is no room it has none.
func TestAddressTrie(t *testing.T) {
	for _, test := range []struct {
		name  string
		nodes int
		whole bool
	}{{"with room", 1 << 16, true}, {"nearly without", kernel.TrieRoots + 20, false}} {
		t.Run(test.name, func(t *testing.T) {
			trie := openTrie(t, test.nodes)
			rng := rand.New(rand.NewPCG(5, 5))
			c := &classifier{trie: trie, addresses: make(map[netip.Prefix]uint32)}
			var table bart.Table[uint32]
			random := func() netip.Prefix {
				a := netip.AddrFrom4([4]byte{10, byte(rng.IntN(2)), byte(rng.IntN(4)), byte(rng.IntN(256))})
				return netip.PrefixFrom(a, []int{0, 4, 8, 12, 15, 16, 17, 20, 23, 24, 25, 27, 28, 29, 30, 31, 32}[rng.IntN(17)]).Masked()
			}
			for round := range 60 {
				for range rng.IntN(20) {
					p := random()
					if _, there := c.addresses[p]; there && rng.IntN(2) == 0 {
						delete(c.addresses, p)
						table.Delete(p)
						class, bits := c.shorter(p)
						trie.remove(p, class, bits)
						continue
					}
					class := rng.Uint32N(5)
					c.addresses[p] = class
					table.Insert(p, class)
					trie.put(p, class)
				}
				for i := range trie.left { // as if it had been long ago
					trie.left[i].at = time.Time{}
				}
				if round%20 == 19 {
					if err := trie.build(c.addresses); err != nil {
						t.Fatal(err)
					}
				}
				if err := trie.flush(); err != nil {
					t.Fatal(err)
				}
				nodes, err := trie.kernel.Read(0, trie.kernel.Len())
				if err != nil {
					t.Fatal(err)
				}
				unknown := 0
				for range 400 {
					a := netip.AddrFrom4([4]byte{10, byte(rng.IntN(3)), byte(rng.IntN(5)), byte(rng.IntN(256))})
					class, ok := table.Lookup(a)
					want := uint32(0)
					if ok {
						want = class + kernel.TrieKnown
					}
					got := trieNumber(nodes, a)
					if got == 0 && want != 0 {
						unknown++
					} else if got != want {
						t.Fatalf("round %d: %s has class %d - 1, want %d - 1", round, a, got, want)
					}
				}
				if test.whole && unknown > 0 {
					t.Fatalf("round %d: %d addresses have no class", round, unknown)
				}
			}
			// With all gone, all nodes are free again.
			for _, p := range slices.SortedFunc(maps.Keys(c.addresses), func(a, b netip.Prefix) int { return a.Bits() - b.Bits() }) {
				delete(c.addresses, p)
				class, bits := c.shorter(p)
				trie.remove(p, class, bits)
			}
			if err := trie.flush(); err != nil {
				t.Fatal(err)
			}
			if classes := trieNumbers(t, trie.kernel); fmt.Sprint(classes) != "map[0.0.0.0:0]" {
				t.Errorf("classes of no prefix: %v", classes)
			}
		})
	}
}
