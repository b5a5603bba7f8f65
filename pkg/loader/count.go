package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// TableUse is how often programs have used tables.
type TableUse struct{ Lookups, Updates, Deletes uint64 }

// Counted is a program with one addition: it counts what it does with tables.
type Counted struct {
	*Programs
	use *ebpf.Map
}

// LoadCounted loads a program on top of the shared maps, to be run by hand.
func LoadCounted(shared map[string]*ebpf.Map, name Program) (*Counted, error) {
	use, err := ebpf.NewMap(&ebpf.MapSpec{Name: "use", Type: ebpf.Array, KeySize: 4, ValueSize: 24, MaxEntries: 1})
	if err != nil {
		return nil, err
	}
	programs, err := loadOne(shared, name, func(p *ebpf.ProgramSpec) (err error) {
		p.Instructions, err = countTableUse(p.Instructions, use)
		return err
	})
	if err != nil {
		use.Close()
		return nil, fmt.Errorf("program %s: %w", name, err)
	}
	return &Counted{programs, use}, nil
}

// Use is how often the program has used tables so far.
func (c *Counted) Use() (u TableUse, err error) {
	err = c.use.Lookup(uint32(0), &u)
	return u, err
}

// Close gives it back.
func (c *Counted) Close() error {
	return errors.Join(c.Programs.Close(), c.use.Close())
}

// tableHelpers are the helpers that count, with where in TableUse. None has more than
// four arguments.
var tableHelpers = map[asm.BuiltinFunc]uint32{asm.FnMapLookupElem: 0, asm.FnMapUpdateElem: 8, asm.FnMapDeleteElem: 16}

// countTableUse has a program add one to a word of the map before every call of such a
// helper. Registers 0 and 5 hold nothing there that is still wanted: a call leaves
// nothing in them.
func countTableUse(code asm.Instructions, use *ebpf.Map) (asm.Instructions, error) {
	code, err := labelJumps(code)
	if err != nil {
		return nil, err
	}
	var out asm.Instructions
	for _, ins := range code {
		at, counts := tableHelpers[asm.BuiltinFunc(ins.Constant)]
		if !ins.IsBuiltinCall() || !counts {
			out = append(out, ins)
			continue
		}
		first := asm.LoadMapValue(asm.R5, use.FD(), at)
		if label := ins.Symbol(); label != "" { // who jumps here has to count, too
			first, ins = first.WithSymbol(label), ins.WithSymbol("")
		}
		out = append(out, first, asm.Mov.Imm(asm.R0, 1), asm.StoreXAdd(asm.R5, asm.R0, asm.DWord), ins)
	}
	return out, nil
}

// labelJumps names the targets of jumps, so that instructions can be put in between.
func labelJumps(code asm.Instructions) (asm.Instructions, error) {
	at := make(map[asm.RawInstructionOffset]int)
	for it := code.Iterate(); it.Next(); {
		at[it.Offset] = it.Index
	}
	out := append(asm.Instructions(nil), code...)
	for it := code.Iterate(); it.Next(); {
		op := it.Ins.OpCode
		if !op.Class().IsJump() || op.JumpOp() == asm.Call || op.JumpOp() == asm.Exit || it.Ins.Reference() != "" {
			continue
		}
		target, ok := at[it.Offset+1+asm.RawInstructionOffset(it.Ins.Offset)]
		if !ok {
			return nil, fmt.Errorf("instruction %d jumps to nowhere", it.Index)
		}
		label := out[target].Symbol()
		if label == "" {
			label = fmt.Sprintf("jump-%d", target)
			out[target] = out[target].WithSymbol(label)
		}
		out[it.Index] = out[it.Index].WithReference(label)
		out[it.Index].Offset = -1 // to be filled in
	}
	return out, nil
}
