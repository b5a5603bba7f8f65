package dataplane

import (
	"encoding/binary"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	kernel "calico-xdp/pkg/maps"
)

// addressTrie keeps a trie of the kernel's: the numbers of IPv4 addresses, their classes for
// instance, where a program finds them in a few steps. Other tables say them too, and are
// changed first; an address has its new number when the trie has it, in one write.
//
// The numbers of short prefixes are pushed down: an entry says that of the longest prefix
// that covers it, and how long that is. Only the latter is not in the kernel.
type addressTrie struct {
	kernel *kernel.TrieNodes

	nodes   []trieNode        // what the kernel should have
	free    []uint32          // nodes that nobody can be reading
	left    []leftNodes       // nodes that somebody may still be reading
	fresh   map[uint32]bool   // nodes made since the last flush: nothing leads there yet
	dirty   map[uint32]uint16 // of the others, the entries changed since, by bit
	dropped []uint32          // nodes that nothing leads to after the next flush
	hanging map[uint32]uint16 // entries whose child the kernel has no room for
}

type trieNode struct {
	kernel.TrieNode
	bits [kernel.TrieWays]int8 // length of the prefix whose number it is; -1: of none
}

type leftNodes struct {
	nodes []uint32
	at    time.Time
}

// The bits of an address in front of and in a root's entry, and those that a level adds.
const (
	rootBits  = 16
	levelBits = 4
)

func newAddressTrie(k *kernel.TrieNodes) *addressTrie {
	t := &addressTrie{kernel: k}
	t.clear()
	return t
}

func (t *addressTrie) clear() {
	t.nodes, t.free, t.left, t.dropped = make([]trieNode, kernel.TrieRoots), nil, nil, nil
	t.fresh, t.dirty, t.hanging = make(map[uint32]bool), make(map[uint32]uint16), make(map[uint32]uint16)
	for i := range t.nodes {
		for j := range t.nodes[i].bits {
			t.nodes[i].bits[j] = -1
		}
	}
}

// entryAt is an entry of a node.
type entryAt struct {
	node  uint32
	entry int
}

func ipv4Of(p netip.Prefix) uint32 {
	a := p.Masked().Addr().As4()
	return binary.BigEndian.Uint32(a[:])
}

// put gives the addresses of an IPv4 prefix a number, but for those of longer prefixes.
func (t *addressTrie) put(p netip.Prefix, number uint32) {
	value := number + kernel.TrieKnown
	if value >= kernel.TrieChild {
		value = 0
	}
	bits := int8(p.Bits())
	path, n := t.path(p, true)
	t.cover(path[len(path)-1], n, func(have int8) bool { return have <= bits }, value, bits)
}

// remove takes the number of a prefix back: its addresses get that of the next shorter
// one, which has so many bits, -1 if there is none.
func (t *addressTrie) remove(p netip.Prefix, number uint32, shorter int) {
	value := number + kernel.TrieKnown
	if shorter < 0 || value >= kernel.TrieChild {
		value = 0
	}
	path, n := t.path(p, false)
	if n == 0 {
		return // nothing is known of it
	}
	t.cover(path[len(path)-1], n, func(have int8) bool { return int(have) == p.Bits() }, value, int8(shorter))
	for i := len(path) - 2; i >= 0; i-- {
		if !t.collapse(path[i], rootBits+levelBits*i) {
			break
		}
	}
}

// path is the entries from the root down to the first one of a prefix, and how many the
// prefix has there: 0 if they are not there, which with split does not happen.
func (t *addressTrie) path(p netip.Prefix, split bool) ([]entryAt, int) {
	addr := ipv4Of(p)
	at := entryAt{addr >> (32 - rootBits + levelBits), int(addr >> (32 - rootBits) & 15)}
	path := []entryAt{at}
	depth := rootBits
	for ; depth < p.Bits(); depth += levelBits {
		value := t.nodes[at.node].Entry[at.entry]
		if value&kernel.TrieChild == 0 {
			if !split {
				return path, 0
			}
			value = kernel.TrieChild | t.split(at)
		}
		at = entryAt{value &^ kernel.TrieChild, int(addr >> (32 - depth - levelBits) & 15)}
		path = append(path, at)
	}
	return path, 1 << (depth - p.Bits())
}

// cover sets the entries whose prefix is one that match says, of n in a row and of all
// that is below them.
func (t *addressTrie) cover(at entryAt, n int, match func(bits int8) bool, value uint32, bits int8) {
	for i := range n {
		e := entryAt{at.node + uint32((at.entry+i)/kernel.TrieWays), (at.entry + i) % kernel.TrieWays}
		have := t.nodes[e.node].Entry[e.entry]
		if have&kernel.TrieChild != 0 {
			t.cover(entryAt{have &^ kernel.TrieChild, 0}, kernel.TrieWays, match, value, bits)
		} else if match(t.nodes[e.node].bits[e.entry]) {
			t.set(e, value, bits)
		}
	}
}

func (t *addressTrie) set(e entryAt, value uint32, bits int8) {
	n := &t.nodes[e.node]
	n.bits[e.entry] = bits
	if n.Entry[e.entry] == value {
		return
	}
	n.Entry[e.entry] = value
	if !t.fresh[e.node] {
		t.dirty[e.node] |= 1 << e.entry
	}
}

// split puts a node in the place of an entry, with 16 of the same.
func (t *addressTrie) split(e entryAt) uint32 {
	var child uint32
	if n := len(t.free); n > 0 {
		child, t.free = t.free[n-1], t.free[:n-1]
	} else {
		child, t.nodes = uint32(len(t.nodes)), append(t.nodes, trieNode{})
	}
	was := &t.nodes[e.node]
	for i := range kernel.TrieWays {
		t.nodes[child].Entry[i], t.nodes[child].bits[i] = was.Entry[e.entry], was.bits[e.entry]
	}
	t.fresh[child] = true
	t.set(e, kernel.TrieChild|child, 0)
	return child
}

// collapse makes an entry of depth bits out of its child, if that says nothing else.
func (t *addressTrie) collapse(e entryAt, depth int) bool {
	child := t.nodes[e.node].Entry[e.entry] &^ kernel.TrieChild
	n := t.nodes[child]
	for i := range kernel.TrieWays {
		if n.Entry[i] != n.Entry[0] || n.bits[i] != n.bits[0] {
			return false
		}
	}
	if n.Entry[0]&kernel.TrieChild != 0 || int(n.bits[0]) > depth {
		return false
	}
	t.set(e, n.Entry[0], n.bits[0])
	delete(t.dirty, child)
	delete(t.hanging, child)
	if t.fresh[child] {
		delete(t.fresh, child)
		t.free = append(t.free, child)
	} else {
		t.dropped = append(t.dropped, child)
	}
	return true
}

// flush brings what has changed into the kernel. What there is no room for is looked up
// elsewhere, more slowly.
func (t *addressTrie) flush() error {
	now := time.Now()
	t.left = slices.DeleteFunc(t.left, func(l leftNodes) bool {
		if now.Sub(l.at) < grace {
			return false
		}
		t.free = append(t.free, l.nodes...)
		return true
	})
	if len(t.fresh) == 0 && len(t.dirty) == 0 && len(t.hanging) == 0 {
		return nil
	}
	if len(t.nodes) > t.kernel.Len() {
		_ = t.kernel.Reserve(len(t.nodes)) // logged where it is tried
	}
	for node, entries := range t.hanging {
		t.dirty[node] |= entries
	}
	clear(t.hanging)
	var errs []error
	for node := range t.fresh {
		if int(node) < t.kernel.Len() {
			errs = append(errs, t.kernel.Write(int(node), t.image(node)))
		}
	}
	for node, entries := range t.dirty {
		if int(node) >= t.kernel.Len() {
			continue
		}
		image := t.image(node)
		for i := range kernel.TrieWays {
			if entries&(1<<i) != 0 {
				errs = append(errs, t.kernel.Put(int(node), i, image.Entry[i]))
			}
		}
	}
	if len(t.dropped) > 0 {
		t.left = append(t.left, leftNodes{t.dropped, now})
	}
	clear(t.fresh)
	clear(t.dirty)
	t.dropped = nil
	return errors.Join(errs...)
}

// image is what a node is in the kernel, and notes what hangs.
func (t *addressTrie) image(node uint32) kernel.TrieNode {
	image := t.nodes[node].TrieNode
	for i, v := range image.Entry {
		if v&kernel.TrieChild != 0 && int(v&^kernel.TrieChild) >= t.kernel.Len() {
			image.Entry[i] = 0
			t.hanging[node] |= 1 << i
		}
	}
	return image
}

// build makes the trie anew out of all prefixes, whatever the kernel's is: that of a
// former process mostly says the same with other nodes.
func (t *addressTrie) build(numbers map[netip.Prefix]uint32) error {
	t.clear()
	for _, p := range slices.SortedFunc(maps.Keys(numbers), func(a, b netip.Prefix) int { return a.Bits() - b.Bits() }) {
		if p.Addr().Is4() {
			t.put(p, numbers[p])
		}
	}
	clear(t.dirty)
	clear(t.fresh)
	if len(t.nodes) > t.kernel.Len() {
		_ = t.kernel.Reserve(len(t.nodes))
	}
	n := min(len(t.nodes), t.kernel.Len())
	have, err := t.kernel.Read(0, n)
	if err != nil {
		return err
	}
	if len(t.differing(have)) == 0 {
		return nil
	}
	// Nothing leads to a node that is written.
	var errs []error
	waiting := false
	for i, node := range have[:kernel.TrieRoots] {
		if node != (kernel.TrieNode{}) {
			errs, waiting = append(errs, t.kernel.Write(i, kernel.TrieNode{})), true
		}
	}
	if waiting {
		time.Sleep(settle)
	}
	for i := kernel.TrieRoots; i < n; i++ {
		errs = append(errs, t.kernel.Write(i, t.image(uint32(i))))
	}
	for i := range kernel.TrieRoots {
		for j, v := range t.image(uint32(i)).Entry {
			if v != 0 {
				errs = append(errs, t.kernel.Put(i, j, v))
			}
		}
	}
	return errors.Join(errs...)
}

// differing are the nodes, of the first ones, that are not what they should be.
func (t *addressTrie) differing(have []kernel.TrieNode) (nodes []uint32) {
	unused := make(map[uint32]bool, len(t.free))
	for _, n := range t.free {
		unused[n] = true
	}
	for _, l := range t.left {
		for _, n := range l.nodes {
			unused[n] = true
		}
	}
	for i := range have {
		if !unused[uint32(i)] && have[i] != t.image(uint32(i)) {
			nodes = append(nodes, uint32(i))
		}
	}
	return nodes
}

// repair writes the nodes again that someone else has changed, and says how many.
func (t *addressTrie) repair() (int, error) {
	have, err := t.kernel.Read(0, min(len(t.nodes), t.kernel.Len()))
	if err != nil {
		return 0, err
	}
	nodes := t.differing(have)
	for _, n := range nodes {
		if t.fresh[n] {
			continue
		}
		t.dirty[n] = 1<<kernel.TrieWays - 1
	}
	return len(nodes), t.flush()
}
