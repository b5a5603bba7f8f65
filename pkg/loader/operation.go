package loader

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Operation is something that programs do with a table, to be timed by itself.
type Operation struct {
	Name    string
	typ     ebpf.MapType
	key     uint32 // bytes
	value   uint32
	entries int
	insert  bool // instead of looking up
}

// Operations are those that the product's programs are made of, with keys, values and
// numbers of entries like those of its tables: by the kind of table, with the bytes of
// the key, and the number of entries where that matters.
func Operations() []Operation {
	return []Operation{
		{Name: "array/lookup", typ: ebpf.Array, key: 4, value: 8, entries: 1 << 20},
		{Name: "array-of-maps/lookup", typ: ebpf.ArrayOfMaps, key: 4, value: 4, entries: 4},
		{Name: "hash16/lookup", typ: ebpf.Hash, key: 16, value: 4, entries: 1000},
		{Name: "hash40/lookup", typ: ebpf.Hash, key: 40, value: 96, entries: 1000},
		{Name: "lru-hash40/lookup", typ: ebpf.LRUHash, key: 40, value: 96, entries: 1000},
		{Name: "prefix/lookup/10", typ: ebpf.LPMTrie, key: 20, value: 4, entries: 10},
		{Name: "prefix/lookup/10000", typ: ebpf.LPMTrie, key: 20, value: 4, entries: 10_000},
		{Name: "prefix/lookup/100000", typ: ebpf.LPMTrie, key: 20, value: 4, entries: 100_000},
		{Name: "lru-hash40/insert", typ: ebpf.LRUHash, key: 40, value: 96, entries: 65536, insert: true},
	}
}

// OperationTimes is how often one run of the program does it.
const OperationTimes = 8

// mapped is the start of a v4-mapped address's trie key: 96 bits.
var mapped = []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}

// NewOperation is a tc program that does the operation OperationTimes times, on
// different entries.
func NewOperation(o Operation) (*Bare, error) {
	m, keys, err := o.table()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}
	defer m.Close() // the program keeps it
	state, err := newState()
	if err != nil {
		return nil, err
	}
	room := int16(o.key+7) &^ 7
	code := asm.Instructions{asm.Mov.Imm(asm.R1, 0)}
	for at := int16(8); at <= 128; at += 8 { // the value, and what is left of keys
		code = append(code, asm.StoreMem(asm.R10, -room-at, asm.R1, asm.DWord))
	}
	for n := range OperationTimes {
		key := keys[n%len(keys)]
		for at := 0; at+4 <= len(key); at += 4 {
			code = append(code, asm.StoreImm(asm.R10, -room+int16(at), int64(int32(binary.NativeEndian.Uint32(key[at:]))), asm.Word))
		}
		if o.insert { // another key each time
			code = append(code, countUp(state)...)
			code = append(code, asm.StoreMem(asm.R10, -room, asm.R8, asm.DWord))
		}
		code = append(code, asm.LoadMapPtr(asm.R1, m.FD()), asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, -int32(room)))
		if o.insert {
			code = append(code, asm.Mov.Reg(asm.R3, asm.R10), asm.Add.Imm(asm.R3, -int32(room)-128),
				asm.Mov.Imm(asm.R4, 0), asm.FnMapUpdateElem.Call())
		} else {
			code = append(code, asm.FnMapLookupElem.Call())
		}
	}
	code = append(code, asm.Mov.Imm(asm.R0, tcUnspec), asm.Return())
	return load1(&ebpf.ProgramSpec{Name: "operation", Type: ebpf.SchedCLS, License: "GPL", Instructions: code}, state)
}

// table makes the table, full but for inserts, and some of its keys.
func (o Operation) table() (*ebpf.Map, [][]byte, error) {
	spec := &ebpf.MapSpec{Name: "operation", Type: o.typ, KeySize: o.key, ValueSize: o.value, MaxEntries: uint32(o.entries)}
	switch o.typ {
	case ebpf.LPMTrie:
		spec.Flags = 1 // BPF_F_NO_PREALLOC
	case ebpf.ArrayOfMaps:
		spec.InnerMap = &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}
	}
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, nil, err
	}
	rng := rand.New(rand.NewPCG(1, 1))
	var keys [][]byte
	for n := range o.entries {
		key := make([]byte, o.key)
		for i := range key {
			key[i] = byte(rng.Uint32())
		}
		switch o.typ {
		case ebpf.Array, ebpf.ArrayOfMaps:
			binary.NativeEndian.PutUint32(key, rng.Uint32N(uint32(o.entries)))
		case ebpf.LPMTrie:
			binary.NativeEndian.PutUint32(key, 96+24)
			copy(key[4:], mapped)
			key[19] = 0
		}
		if o.typ != ebpf.Array && o.typ != ebpf.ArrayOfMaps && !o.insert {
			if err := m.Put(key, make([]byte, o.value)); err != nil {
				m.Close()
				return nil, nil, err
			}
		}
		if n < OperationTimes {
			asked := append([]byte(nil), key...)
			if o.typ == ebpf.LPMTrie {
				binary.NativeEndian.PutUint32(asked, 128)
				asked[19] = 7
			}
			keys = append(keys, asked)
		}
	}
	return m, keys, nil
}
