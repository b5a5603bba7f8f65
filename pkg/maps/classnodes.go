package maps

import (
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf"
)

// ClassNode is a node of ClassNodes: what the four bits that it stands for lead to, each
// ClassKnown plus a class, ClassChild plus the index of another node, or 0. The first
// ClassRoots nodes stand for bits 12 to 15 of an address, by the 12 in front of them.
type ClassNode = bpfClassNode

// The enums' values.
const (
	ClassKnown = uint32(bpfClassEntryCLASS_KNOWN)
	ClassChild = uint32(bpfClassEntryCLASS_CHILD)
	ClassWays  = int(bpfClassShapeCLASS_WAYS)
	ClassRoots = int(bpfClassShapeCLASS_ROOTS)
)

// ClassNodes is the trie of the classes of IPv4 addresses, mapped: writing it is no
// system call.
type ClassNodes struct{ h *held }

const classNodeBytes = 4 * ClassWays

func newClassNodes(h *held) (*ClassNodes, error) {
	h.copy = copyMemory
	return &ClassNodes{h}, mapped(h)
}

// Len is the number of nodes.
func (c *ClassNodes) Len() int { return c.h.capacity() }

// Reserve makes room for n nodes.
func (c *ClassNodes) Reserve(n int) error { return c.h.reserve(n) }

// Read returns n nodes from index at.
func (c *ClassNodes) Read(at, n int) ([]ClassNode, error) {
	b := make([]byte, classNodeBytes*n)
	if err := c.h.access(func(mem *ebpf.Memory) error { _, err := mem.ReadAt(b, int64(classNodeBytes*at)); return err }); err != nil {
		return nil, fmt.Errorf("nodes %d+%d: %w", at, n, err)
	}
	out := make([]ClassNode, n)
	for i := range out {
		for j := range out[i].Entry {
			out[i].Entry[j] = binary.NativeEndian.Uint32(b[classNodeBytes*i+4*j:])
		}
	}
	return out, nil
}

// Write stores a node that no program can be reading.
func (c *ClassNodes) Write(at int, node ClassNode) error {
	b := make([]byte, classNodeBytes)
	for j, v := range node.Entry {
		binary.NativeEndian.PutUint32(b[4*j:], v)
	}
	if err := c.h.access(func(mem *ebpf.Memory) error { _, err := mem.WriteAt(b, int64(classNodeBytes*at)); return err }); err != nil {
		return fmt.Errorf("node %d: %w", at, err)
	}
	return nil
}

// Put stores one entry of a node, in one piece.
func (c *ClassNodes) Put(at, entry int, v uint32) error {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], v)
	if err := c.h.access(func(mem *ebpf.Memory) error {
		_, err := mem.WriteAt(b[:], int64(classNodeBytes*at+4*entry))
		return err
	}); err != nil {
		return fmt.Errorf("node %d: %w", at, err)
	}
	return nil
}
