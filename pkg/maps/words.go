package maps

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
)

// Words is the memory that holds all rulesets, mapped: writing it is no system
// call. What a program may be reading must only be changed word by word.
type Words struct{ h *held }

func newWords(h *held) (*Words, error) {
	h.copy = copyMemory
	return &Words{h}, mapped(h)
}

// mapped maps the table into the process.
func mapped(h *held) error {
	return h.use(func(m *ebpf.Map) error {
		_, err := m.Memory()
		return err
	})
}

// copyMemory copies an array that is mapped.
func copyMemory(to, from *ebpf.Map) error {
	source, err := from.Memory()
	if err != nil {
		return err
	}
	destination, err := to.Memory()
	if err != nil {
		return err
	}
	b := make([]byte, 1<<20)
	for at := 0; at < int(source.Size()); at += len(b) {
		b = b[:min(len(b), int(source.Size())-at)]
		if _, err := source.ReadAt(b, int64(at)); err != nil {
			return err
		}
		if _, err := destination.WriteAt(b, int64(at)); err != nil {
			return err
		}
	}
	return nil
}

// Len is the number of words.
func (w *Words) Len() int { return w.h.capacity() }

// Reserve makes room for n words.
func (w *Words) Reserve(n int) error { return w.h.reserve(n) }

// Read returns n words from index at.
func (w *Words) Read(at, n int) ([]uint64, error) {
	b := make([]byte, 8*n)
	if err := w.h.access(func(mem *ebpf.Memory) error { _, err := mem.ReadAt(b, int64(8*at)); return err }); err != nil {
		return nil, fmt.Errorf("words %d+%d: %w", at, n, err)
	}
	out := make([]uint64, n)
	for i := range out {
		out[i] = binary.NativeEndian.Uint64(b[8*i:])
	}
	return out, nil
}

// Write stores words from index at. What programs remember of rulesets is void then.
func (w *Words) Write(at int, words []uint64) error {
	// In place, for a long ruleset is written for each change of one of its rules.
	b := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), 8*len(words))
	// Before, too: this process may end in between.
	if err := errors.Join(w.renew(), w.h.store(b, 8*at), w.renew()); err != nil {
		return fmt.Errorf("words %d+%d: %w", at, len(words), err)
	}
	return nil
}

// renew says in word 0, which is no ruleset's, that there is a change.
func (w *Words) renew() error {
	return w.h.access(func(mem *ebpf.Memory) error {
		b := make([]byte, 8)
		if _, err := mem.ReadAt(b, 0); err != nil {
			return err
		}
		binary.NativeEndian.PutUint64(b, binary.NativeEndian.Uint64(b)+1)
		_, err := mem.WriteAt(b, 0)
		return err
	})
}

// access calls fn with a table that is mapped.
func (h *held) access(fn func(*ebpf.Memory) error) error {
	return h.use(func(m *ebpf.Map) error {
		mem, err := m.Memory()
		if err != nil {
			return err
		}
		return fn(mem)
	})
}

// store writes to a table that is mapped.
func (h *held) store(b []byte, at int) error {
	return h.change(func(m *ebpf.Map) error {
		mem, err := m.Memory()
		if err != nil {
			return err
		}
		_, err = mem.WriteAt(b, int64(at))
		return err
	})
}

// portProtocols are the protocols with 65,536 port classes each, in the order of
// port_index() in policy.h; all others have one.
var portProtocols = [...]uint8{6, 17, 132, 136, 1, 58}

// PortIndex is the index of a protocol's port, in host order, among the port
// classes: type << 8 | code for ICMP, 0 for protocols without ports.
func PortIndex(protocol uint8, port uint16) int {
	for i, p := range portProtocols {
		if p == protocol {
			return i<<16 | int(port)
		}
	}
	return len(portProtocols)<<16 | int(protocol)
}

// PortClasses is the table of port classes, mapped.
type PortClasses struct{ h *held }

// A PortClass takes 4 bytes of an 8 byte array element.
const portClassStride = 8

func newPortClasses(h *held) (*PortClasses, error) { return &PortClasses{h}, mapped(h) }

// Load reads the whole table, by PortIndex.
func (p *PortClasses) Load() ([]PortClass, error) {
	b := make([]byte, p.h.capacity()*portClassStride)
	if err := p.h.access(func(mem *ebpf.Memory) error { _, err := mem.ReadAt(b, 0); return err }); err != nil {
		return nil, err
	}
	out := make([]PortClass, len(b)/portClassStride)
	for i := range out {
		e := b[i*portClassStride:]
		out[i] = PortClass{Destination: binary.NativeEndian.Uint16(e), Source: binary.NativeEndian.Uint16(e[2:])}
	}
	return out, nil
}

// Put stores one entry, in one piece.
func (p *PortClasses) Put(index int, c PortClass) error {
	var b [4]byte
	binary.NativeEndian.PutUint16(b[:], c.Destination)
	binary.NativeEndian.PutUint16(b[2:], c.Source)
	if err := p.h.store(b[:], index*portClassStride); err != nil {
		return fmt.Errorf("entry %d: %w", index, err)
	}
	return nil
}

// PortIndexes is the number of port classes in the table.
const PortIndexes = len(portProtocols)<<16 + 256
