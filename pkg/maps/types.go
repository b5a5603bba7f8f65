package maps

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
)

// NewAddress returns an address as the kernel's tables hold it.
func NewAddress(a netip.Addr) Address {
	if !a.IsValid() {
		return Address{}
	}
	return Address{Bytes: a.As16()}
}

// Addr is the way back; IPv4 comes out as IPv4.
func (a bpfAddress) Addr() netip.Addr { return netip.AddrFrom16(a.Bytes).Unmap() }

func (a bpfAddress) String() string { return a.Addr().String() }

// NewPrefix returns a prefix as the kernel's tables hold it.
func NewPrefix(p netip.Prefix) Prefix {
	n := p.Bits()
	if p.Addr().Is4() {
		n += 96
	}
	return Prefix{PrefixLength: uint32(n), Bytes: p.Masked().Addr().As16()}
}

// Prefix is the way back.
func (p bpfPrefix) Prefix() netip.Prefix {
	a, n := netip.AddrFrom16(p.Bytes), int(p.PrefixLength)
	if a.Is4In6() && n >= 96 {
		return netip.PrefixFrom(a.Unmap(), n-96)
	}
	return netip.PrefixFrom(a, n)
}

func (p bpfPrefix) String() string { return p.Prefix().String() }

// NewFlowKey returns the key of a flow between two ends; which is which does not
// matter. Ports are in host order.
func NewFlowKey(x, y netip.AddrPort, protocol uint8) FlowKey {
	a, b := NewAddress(x.Addr()), NewAddress(y.Addr())
	ap, bp := swap16(x.Port()), swap16(y.Port())
	// The order of flow_key_set in packet.h.
	half := func(a Address, i int) uint64 { return binary.NativeEndian.Uint64(a.Bytes[8*i:]) }
	swap := ap > bp
	if half(a, 1) != half(b, 1) {
		swap = half(a, 1) > half(b, 1)
	} else if half(a, 0) != half(b, 0) {
		swap = half(a, 0) > half(b, 0)
	}
	if swap {
		a, b, ap, bp = b, a, bp, ap
	}
	return FlowKey{A: a, B: b, A_port: ap, B_port: bp, Protocol: protocol}
}

func (k bpfFlowKey) String() string {
	return fmt.Sprintf("%s:%d <-> %s:%d proto %d", k.A, swap16(k.A_port), k.B, swap16(k.B_port), k.Protocol)
}

// BigEndian16 gives a number the byte order that a __be16 field has in memory.
func BigEndian16(v uint16) uint16 { return swap16(v) }

func swap16(v uint16) uint16 { return bits.ReverseBytes16(v) }
