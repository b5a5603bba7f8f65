package maps

import (
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf"
)

// TrieNode is a node of TrieNodes: what the four bits that it stands for lead to, each
// TrieKnown plus the number, TrieChild plus the index of another node, or 0. The first
// TrieRoots nodes stand for bits 12 to 15 of an address, by the 12 in front of them.
type TrieNode = bpfTrieNode

// The enums' values.
const (
	TrieKnown = uint32(bpfTrieEntryTRIE_KNOWN)
	TrieChild = uint32(bpfTrieEntryTRIE_CHILD)
	TrieWays  = int(bpfTrieShapeTRIE_WAYS)
	TrieRoots = int(bpfTrieShapeTRIE_ROOTS)
)

// TrieNodes is a trie of IPv4 addresses, mapped: writing it is no
// system call.
type TrieNodes struct{ h *held }

const trieNodeBytes = 4 * TrieWays

func newTrieNodes(h *held) (*TrieNodes, error) {
	h.copy = copyMemory
	return &TrieNodes{h}, mapped(h)
}

// Len is the number of nodes.
func (c *TrieNodes) Len() int { return c.h.capacity() }

// Reserve makes room for n nodes.
func (c *TrieNodes) Reserve(n int) error { return c.h.reserve(n) }

// Read returns n nodes from index at.
func (c *TrieNodes) Read(at, n int) ([]TrieNode, error) {
	b := make([]byte, trieNodeBytes*n)
	if err := c.h.access(func(mem *ebpf.Memory) error { _, err := mem.ReadAt(b, int64(trieNodeBytes*at)); return err }); err != nil {
		return nil, fmt.Errorf("nodes %d+%d: %w", at, n, err)
	}
	out := make([]TrieNode, n)
	for i := range out {
		for j := range out[i].Entry {
			out[i].Entry[j] = binary.NativeEndian.Uint32(b[trieNodeBytes*i+4*j:])
		}
	}
	return out, nil
}

// Write stores a node that no program can be reading.
func (c *TrieNodes) Write(at int, node TrieNode) error {
	b := make([]byte, trieNodeBytes)
	for j, v := range node.Entry {
		binary.NativeEndian.PutUint32(b[4*j:], v)
	}
	if err := c.h.store(b, trieNodeBytes*at); err != nil {
		return fmt.Errorf("node %d: %w", at, err)
	}
	return nil
}

// Put stores one entry of a node, in one piece.
func (c *TrieNodes) Put(at, entry int, v uint32) error {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], v)
	if err := c.h.store(b[:], trieNodeBytes*at+4*entry); err != nil {
		return fmt.Errorf("node %d: %w", at, err)
	}
	return nil
}
