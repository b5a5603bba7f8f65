package loader

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Result is what a program did with a packet.
type Result struct {
	Return int32 // TC_ACT_* or XDP_*
	Packet []byte
	Mark   uint32
}

// Context is what a packet carries besides its bytes.
type Context struct {
	Mark           uint32
	Ifindex        uint32 // of the interface it is seen on; 0: loopback. XDP: one with an XDP program
	IngressIfindex uint32 // of the interface it was received on
}

// skBuff has the layout of struct __sk_buff (include/uapi/linux/bpf.h).
type skBuff struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTCI, VlanProto uint32
	Priority, IngressIfindex, Ifindex, TCIndex                                  uint32
	CB                                                                          [5]uint32
	Hash, TCClassid, Data, DataEnd, NAPIID                                      uint32
	Family, RemoteIP4, LocalIP4                                                 uint32
	RemoteIP6, LocalIP6                                                         [4]uint32
	RemotePort, LocalPort, DataMeta                                             uint32
	FlowKeys, Tstamp                                                            uint64
	WireLen, GSOSegs                                                            uint32
	SK                                                                          uint64
	GSOSize                                                                     uint32
	TstampType                                                                  uint8
	Pad                                                                         [3]uint8
	HWTstamp                                                                    uint64
}

// xdpMD has the layout of struct xdp_md.
type xdpMD struct {
	Data, DataEnd, DataMeta, IngressIfindex, RXQueueIndex, EgressIfindex uint32
}

// Run runs a program once on a packet with BPF_PROG_TEST_RUN: nothing is sent, but
// maps change. The interfaces of c are those of the caller's network namespace.
func (p *Programs) Run(name Program, packet []byte, c Context) (Result, error) {
	opts := &ebpf.RunOptions{Data: packet, DataOut: make([]byte, len(packet)+256)}
	var out skBuff
	if name == XDPNetwork && c.Ifindex != 0 {
		opts.Context = xdpMD{DataEnd: uint32(len(packet)), IngressIfindex: c.Ifindex}
	}
	if name != XDPNetwork {
		opts.Context = skBuff{Mark: c.Mark, Ifindex: c.Ifindex, IngressIfindex: c.IngressIfindex}
		opts.ContextOut = &out
	}
	var ret uint32
	err := p.use(name, func(prog *ebpf.Program) (err error) {
		ret, err = prog.Run(opts)
		return err
	})
	if err != nil {
		return Result{}, fmt.Errorf("program %s: %w", name, err)
	}
	return Result{Return: int32(ret), Packet: opts.DataOut, Mark: out.Mark}, nil
}

// Empty is a program that does nothing: what measurements are compared with.
type Empty struct{ prog *ebpf.Program }

// NewEmpty loads one of the same type as the program of that name.
func NewEmpty(like Program) (*Empty, error) {
	spec := &ebpf.ProgramSpec{Name: "empty", Type: ebpf.SchedCLS, License: "GPL"}
	onward := int32(-1) // TC_ACT_UNSPEC
	if like == XDPNetwork {
		spec.Type, onward = ebpf.XDP, 2 // XDP_PASS
	}
	spec.Instructions = asm.Instructions{asm.Mov.Imm(asm.R0, onward), asm.Return()}
	prog, err := ebpf.NewProgram(spec)
	if err != nil {
		return nil, fmt.Errorf("program empty: %w", err)
	}
	return &Empty{prog}, nil
}

// Timer prepares to time the program on a packet.
func (e *Empty) Timer(packet []byte) *Timer { return &Timer{prog: e.prog, packet: packet} }

// Close gives the program back.
func (e *Empty) Close() error { return e.prog.Close() }
