package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// Bare is a program of a few instructions that has nothing to do with the product:
// what measurements send packets with, receive them with, and compare with. What it
// is attached to it leaves when it is closed.
type Bare struct {
	prog  *ebpf.Program
	state *ebpf.Map // one __u64: how many packets the program has seen
	links []link.Link
}

// Returns of tc and XDP programs (linux/pkt_cls.h, linux/bpf.h).
const (
	tcUnspec = -1
	tcShot   = 2
	xdpDrop  = 1
	xdpPass  = 2
)

// NewCounter is a tc program that counts packets, then drops them or lets them go on.
func NewCounter(drop bool) (*Bare, error) {
	verdict := int32(tcUnspec)
	if drop {
		verdict = tcShot
	}
	return newBare("count", ebpf.SchedCLS, verdict, true)
}

// NewXDPCounter is the same in XDP.
func NewXDPCounter(drop bool) (*Bare, error) {
	verdict := int32(xdpPass)
	if drop {
		verdict = xdpDrop
	}
	return newBare("count", ebpf.XDP, verdict, true)
}

// NewRedirectPeer is a tc program that hands every packet to the peer of a veth.
func NewRedirectPeer(ifindex int) (*Bare, error) {
	return load1(&ebpf.ProgramSpec{Name: "redirect_peer", Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R1, int32(ifindex)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirectPeer.Call(), asm.Return(),
	}}, nil)
}

// NewXDPRedirect is an XDP program that sends every packet out of an interface.
func NewXDPRedirect(ifindex int) (*Bare, error) {
	return load1(&ebpf.ProgramSpec{Name: "redirect", Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R1, int32(ifindex)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call(), asm.Return(),
	}}, nil)
}

// countUp adds one to the state and leaves the former value in R8.
func countUp(state *ebpf.Map) asm.Instructions {
	return asm.Instructions{
		asm.LoadMapValue(asm.R7, state.FD(), 0),
		asm.LoadMem(asm.R8, asm.R7, 0, asm.DWord),
		asm.Mov.Reg(asm.R1, asm.R8), asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R7, 0, asm.R1, asm.DWord),
	}
}

func newState() (*ebpf.Map, error) {
	return ebpf.NewMap(&ebpf.MapSpec{Name: "state", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
}

func newBare(name string, typ ebpf.ProgramType, verdict int32, counts bool) (*Bare, error) {
	spec := &ebpf.ProgramSpec{Name: name, Type: typ, License: "GPL"}
	var state *ebpf.Map
	if counts {
		var err error
		if state, err = newState(); err != nil {
			return nil, fmt.Errorf("program %s: %w", name, err)
		}
		spec.Instructions = countUp(state)
	}
	spec.Instructions = append(spec.Instructions, asm.Mov.Imm(asm.R0, verdict), asm.Return())
	return load1(spec, state)
}

func load1(spec *ebpf.ProgramSpec, state *ebpf.Map) (*Bare, error) {
	if spec.Type == ebpf.XDP {
		spec.Flags = 1 << 5 // BPF_F_XDP_HAS_FRAGS: any MTU will do
	}
	prog, err := ebpf.NewProgram(spec)
	if err != nil {
		if state != nil {
			state.Close()
		}
		return nil, fmt.Errorf("program %s: %w", spec.Name, err)
	}
	return &Bare{prog: prog, state: state}, nil
}

// AttachIngress puts a tc program on an interface's ingress.
func (b *Bare) AttachIngress(ifindex int) error {
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: b.prog, Attach: ebpf.AttachTCXIngress})
	return b.keep(l, err)
}

// AttachXDP puts an XDP program into an interface's driver.
func (b *Bare) AttachXDP(ifindex int) error {
	l, err := link.AttachXDP(link.XDPOptions{Interface: ifindex, Program: b.prog, Flags: link.XDPDriverMode})
	return b.keep(l, err)
}

func (b *Bare) keep(l link.Link, err error) error {
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	b.links = append(b.links, l)
	return nil
}

// Count is how many packets the program has seen.
func (b *Bare) Count() (n uint64, err error) {
	err = b.state.Lookup(uint32(0), &n)
	return n, err
}

// Timer prepares to time the program on a packet.
func (b *Bare) Timer(packet []byte) *Timer { return &Timer{prog: b.prog, packet: packet} }

// Close takes the program off its hooks and gives it back.
func (b *Bare) Close() error {
	var errs []error
	for _, l := range b.links {
		errs = append(errs, l.Close())
	}
	if b.state != nil {
		errs = append(errs, b.state.Close())
	}
	return errors.Join(append(errs, b.prog.Close())...)
}

// Generator sends copies of one packet out of an interface as fast as it goes, with
// XDP frames that the kernel makes (BPF_F_TEST_XDP_LIVE_FRAMES).
type Generator struct {
	*Bare
	packet []byte
}

// Variety is how a Generator's packets differ from each other: by turns, Sources source
// addresses from that of the packet on, and for all of them Ports source ports from that
// of the packet on. 1 for always the same.
type Variety struct{ Ports, Sources int }

const (
	sourceAt     = 14 + 12 // in an IPv4 packet
	checksumAt   = 14 + 10
	sourcePortAt = 14 + 20
)

// NewGenerator makes one for an Ethernet frame with IPv4, without options, and TCP or
// UDP. Checksums of the latter are those of the packet, whatever port is put in.
//
// Frames are used again and again, whatever their receivers have written into them, so
// each is written anew.
func NewGenerator(ifindex int, packet []byte, v Variety) (*Generator, error) {
	if len(packet) < sourcePortAt+8 || len(packet)%4 != 0 {
		return nil, fmt.Errorf("generator: a packet of %d bytes", len(packet))
	}
	state, err := newState()
	if err != nil {
		return nil, fmt.Errorf("generator: %w", err)
	}
	code := asm.Instructions{
		asm.LoadMem(asm.R6, asm.R1, 0, asm.Word),
		asm.LoadMem(asm.R3, asm.R1, 4, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R6), asm.Add.Imm(asm.R4, int32(len(packet))),
		asm.JGT.Reg(asm.R4, asm.R3, "short"),
	}
	for at := 0; at < len(packet); at += 4 {
		code = append(code, asm.StoreImm(asm.R6, int16(at), int64(int32(binary.NativeEndian.Uint32(packet[at:]))), asm.Word))
	}
	code = append(code, countUp(state)...)
	if v.Ports > 1 {
		code = append(code,
			asm.Mov.Reg(asm.R1, asm.R8), asm.Div.Imm(asm.R1, int32(max(v.Sources, 1))), asm.Mod.Imm(asm.R1, int32(v.Ports)),
			asm.Add.Imm(asm.R1, int32(binary.BigEndian.Uint16(packet[sourcePortAt:]))),
			asm.HostTo(asm.BE, asm.R1, asm.Half), asm.StoreMem(asm.R6, sourcePortAt, asm.R1, asm.Half),
		)
	}
	if v.Sources > 1 {
		code = append(code, otherSource(packet, v)...)
	}
	code = append(code,
		asm.Mov.Imm(asm.R1, int32(ifindex)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call(), asm.Return(),
		asm.Mov.Imm(asm.R0, xdpDrop).WithSymbol("short"), asm.Return(),
	)
	b, err := load1(&ebpf.ProgramSpec{Name: "generate", Type: ebpf.XDP, License: "GPL", Instructions: code}, state)
	if err != nil {
		return nil, err
	}
	return &Generator{b, packet}, nil
}

// otherSource puts a source address in, and the header's checksum.
func otherSource(packet []byte, v Variety) asm.Instructions {
	rest := uint32(0) // of the checksum: the header without source
	for at := 14; at < 34; at += 2 {
		if at != checksumAt && at != sourceAt && at != sourceAt+2 {
			rest += uint32(binary.BigEndian.Uint16(packet[at:]))
		}
	}
	fold := asm.Instructions{
		asm.Mov.Reg(asm.R3, asm.R2), asm.RSh.Imm(asm.R3, 16), asm.And.Imm(asm.R2, 0xffff), asm.Add.Reg(asm.R2, asm.R3),
	}
	code := asm.Instructions{
		asm.Mov.Reg(asm.R1, asm.R8), asm.Mod.Imm(asm.R1, int32(v.Sources)),
		asm.LoadImm(asm.R2, int64(binary.BigEndian.Uint32(packet[sourceAt:])), asm.DWord), asm.Add.Reg(asm.R1, asm.R2),
		asm.Mov.Reg(asm.R2, asm.R1), asm.RSh.Imm(asm.R2, 16),
		asm.Mov.Reg(asm.R3, asm.R1), asm.And.Imm(asm.R3, 0xffff), asm.Add.Reg(asm.R2, asm.R3),
		asm.Add.Imm(asm.R2, int32(rest)),
	}
	code = append(append(code, fold...), fold...)
	return append(code,
		asm.Xor.Imm(asm.R2, 0xffff),
		asm.HostTo(asm.BE, asm.R2, asm.Half), asm.StoreMem(asm.R6, checksumAt, asm.R2, asm.Half),
		asm.HostTo(asm.BE, asm.R1, asm.Word), asm.StoreMem(asm.R6, sourceAt, asm.R1, asm.Word),
	)
}

// Send sends n packets from the network namespace of the caller and returns how long
// the kernel was at it, without what it needs to begin and to end.
func (g *Generator) Send(n int) (time.Duration, error) {
	const liveFrames = 1 << 1 // BPF_F_TEST_XDP_LIVE_FRAMES
	t := &Timer{prog: g.prog, packet: g.packet, flags: liveFrames}
	_, each, err := t.Run(n)
	return time.Duration(n) * each, err
}
