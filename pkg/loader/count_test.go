package loader

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// A program that looks up in a loop and deletes where it is told to jump to.
func TestCountTableUse(t *testing.T) {
	table, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 8})
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	use, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 24, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer use.Close()
	arguments := asm.Instructions{
		asm.LoadMapPtr(asm.R1, table.FD()), asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, -4),
	}
	jump := func(op asm.JumpOp, r asm.Register, imm int32, to int16) asm.Instruction {
		ins := op.Imm(r, imm, "")
		ins.Offset = to
		return ins
	}
	code := asm.Instructions{asm.StoreImm(asm.R10, -4, 7, asm.Word), asm.Mov.Imm(asm.R6, 3)}
	code = append(code, arguments...) // 4 slots
	code = append(code, asm.FnMapLookupElem.Call(), asm.Add.Imm(asm.R6, -1), jump(asm.JNE, asm.R6, 0, -7))
	code = append(code, arguments...)
	code = append(code, jump(asm.JEq, asm.R6, 0, 1), asm.Mov.Imm(asm.R6, 1), asm.FnMapDeleteElem.Call(), asm.Mov.Imm(asm.R0, 0), asm.Return())
	if code, err = countTableUse(code, use); err != nil {
		t.Fatal(err)
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: code})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer prog.Close()
	if _, _, err := prog.Test(make([]byte, 64)); err != nil {
		t.Fatal(err)
	}
	c := Counted{use: use}
	if got, err := c.Use(); err != nil || got != (TableUse{Lookups: 3, Deletes: 1}) {
		t.Errorf("%+v, %v", got, err)
	}
}

// A program counts and does what it does without.
func TestLoadCounted(t *testing.T) {
	shared := tables(t, func(n uint32) uint32 { return min(n, 1024) })
	c, err := LoadCounted(shared, FromWorkload)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Run(FromWorkload, make([]byte, 64), Context{}); err != nil {
		t.Fatal(err)
	}
	if use, err := c.Use(); err != nil || use.Lookups == 0 || use.Updates != 0 {
		t.Errorf("%+v, %v", use, err)
	}
}
