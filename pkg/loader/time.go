package loader

import (
	"errors"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Timer runs one program on one packet with BPF_PROG_TEST_RUN and says how long it
// took. All that is needed is put together beforehand, so that little happens, and
// little falls out of the caches, between two measurements that alternate.
type Timer struct {
	prog            *ebpf.Program
	packet, context []byte
	flags           uint32 // BPF_F_TEST_*
}

// runAttr is the part of union bpf_attr that BPF_PROG_TEST_RUN takes
// (include/uapi/linux/bpf.h).
type runAttr struct {
	fd, retval, sizeIn, sizeOut   uint32
	dataIn, dataOut               uint64
	repeat, duration              uint32
	contextSizeIn, contextSizeOut uint32
	contextIn, contextOut         uint64
	flags, cpu, batchSize, pad    uint32
}

// Timer prepares to time a program on a packet, as long as it is loaded. The interfaces of c are those of the
// network namespace in which Run is called.
func (p *Programs) Timer(name Program, packet []byte, c Context) (*Timer, error) {
	t := &Timer{packet: packet}
	if err := p.use(name, func(prog *ebpf.Program) error { t.prog = prog; return nil }); err != nil {
		return nil, fmt.Errorf("program %s: %w", name, err)
	}
	if name == XDPNetwork {
		if c.Ifindex != 0 {
			in := xdpMD{DataEnd: uint32(len(packet)), IngressIfindex: c.Ifindex}
			t.context = append(t.context, unsafe.Slice((*byte)(unsafe.Pointer(&in)), unsafe.Sizeof(in))...)
		}
		return t, nil
	}
	t.context = skContext(c)
	return t, nil
}

// skContext is the context of a tc program as the kernel takes it.
func skContext(c Context) []byte {
	in := skBuff{Mark: c.Mark, Ifindex: c.Ifindex, IngressIfindex: c.IngressIfindex}
	return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(&in)), unsafe.Sizeof(in))...)
}

// Run runs the program on one packet buffer, that many times in a row: what one run
// has changed in the packet the next one meets. It returns what the last run did and
// the mean time of a run, cut to whole nanoseconds by the kernel.
func (t *Timer) Run(repeat int) (int32, time.Duration, error) {
	attr := runAttr{
		fd: uint32(t.prog.FD()), repeat: uint32(repeat),
		sizeIn: uint32(len(t.packet)), dataIn: address(t.packet),
		contextSizeIn: uint32(len(t.context)), contextIn: address(t.context), flags: t.flags,
	}
	for {
		_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_TEST_RUN, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
		switch {
		case errno == 0:
			runtime.KeepAlive(t)
			return int32(attr.retval), time.Duration(attr.duration), nil
		case !errors.Is(errno, unix.EINTR): // the runtime's own signals
			return 0, 0, fmt.Errorf("run program: %w", errno)
		}
	}
}

func address(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }
