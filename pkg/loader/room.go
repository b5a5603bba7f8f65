package loader

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Room is a program that makes room in front of a packet and then becomes another one. A
// packet of BPF_PROG_TEST_RUN has 64 bytes of it, one that a local stack sends some hundred:
// who pushes more than 64 has the kernel make a larger buffer, which it otherwise need not.
type Room struct {
	prog *ebpf.Program
	next *ebpf.Map // a program array of one
}

// roomBytes are made out of as many that are put behind the Ethernet header for that.
const roomBytes = 64

// NewRoom makes room for a program.
func (p *Programs) NewRoom(name Program) (*Room, error) {
	r := &Room{}
	var err error
	if r.next, err = ebpf.NewMap(&ebpf.MapSpec{Name: "next", Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1}); err != nil {
		return nil, fmt.Errorf("room for %s: %w", name, err)
	}
	if name == XDPNetwork {
		return r, nil // has room
	}
	const adjustMAC = 1 // BPF_ADJ_ROOM_MAC
	r.prog, err = ebpf.NewProgram(&ebpf.ProgramSpec{Name: "room", Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.Mov.Imm(asm.R2, -roomBytes), asm.Mov.Imm(asm.R3, adjustMAC), asm.Mov.Imm(asm.R4, 0), asm.FnSkbAdjustRoom.Call(),
		asm.Mov.Reg(asm.R1, asm.R6), asm.LoadMapPtr(asm.R2, r.next.FD()), asm.Mov.Imm(asm.R3, 0), asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, tcUnspec), asm.Return(), // not reached
	}})
	if err == nil {
		err = p.use(name, func(prog *ebpf.Program) error { return r.next.Put(uint32(0), prog) })
	}
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("room for %s: %w", name, err)
	}
	return r, nil
}

// Timer prepares to time the two programs together on a packet.
func (r *Room) Timer(packet []byte, c Context) *Timer {
	with := append([]byte(nil), packet[:ethernetBytes]...)
	with = append(append(with, make([]byte, roomBytes)...), packet[ethernetBytes:]...)
	return &Timer{prog: r.prog, packet: with, context: skContext(c)}
}

// Close gives both back.
func (r *Room) Close() error {
	if r.prog != nil {
		r.prog.Close()
	}
	return r.next.Close()
}

const ethernetBytes = 14
