package maps

import (
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf"
)

// Words is the memory that holds all rulesets, mapped: writing it is no system
// call. What a program may be reading must only be changed word by word.
type Words struct {
	mem *ebpf.Memory
	n   int
}

func newWords(m *ebpf.Map) (*Words, error) {
	mem, err := m.Memory()
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", bpfMapRulesetWords, err)
	}
	return &Words{mem: mem, n: int(m.MaxEntries())}, nil
}

// Len is the number of words.
func (w *Words) Len() int { return w.n }

// Read returns n words from index at.
func (w *Words) Read(at, n int) ([]uint64, error) {
	b := make([]byte, 8*n)
	if _, err := w.mem.ReadAt(b, int64(8*at)); err != nil {
		return nil, fmt.Errorf("map %s: words %d+%d: %w", bpfMapRulesetWords, at, n, err)
	}
	out := make([]uint64, n)
	for i := range out {
		out[i] = binary.NativeEndian.Uint64(b[8*i:])
	}
	return out, nil
}

// Write stores words from index at.
func (w *Words) Write(at int, words []uint64) error {
	b := make([]byte, 8*len(words))
	for i, v := range words {
		binary.NativeEndian.PutUint64(b[8*i:], v)
	}
	if _, err := w.mem.WriteAt(b, int64(8*at)); err != nil {
		return fmt.Errorf("map %s: words %d+%d: %w", bpfMapRulesetWords, at, len(words), err)
	}
	return nil
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
type PortClasses struct {
	mem *ebpf.Memory
	n   int
}

// A PortClass takes 4 bytes of an 8 byte array element.
const portClassStride = 8

func newPortClasses(m *ebpf.Map) (*PortClasses, error) {
	mem, err := m.Memory()
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", bpfMapPortClasses, err)
	}
	return &PortClasses{mem: mem, n: int(m.MaxEntries())}, nil
}

// Load reads the whole table, by PortIndex.
func (p *PortClasses) Load() ([]PortClass, error) {
	b := make([]byte, p.n*portClassStride)
	if _, err := p.mem.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("map %s: %w", bpfMapPortClasses, err)
	}
	out := make([]PortClass, p.n)
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
	if _, err := p.mem.WriteAt(b[:], int64(index*portClassStride)); err != nil {
		return fmt.Errorf("map %s: entry %d: %w", bpfMapPortClasses, index, err)
	}
	return nil
}

// PortIndexes is the number of port classes in the table.
const PortIndexes = len(portProtocols)<<16 + 256
