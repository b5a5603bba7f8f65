package dataplane

import (
	"errors"
	"net/netip"

	"calico-xdp/pkg/control/desired"
	kernel "calico-xdp/pkg/maps"
)

// failsafeBits are the bits of a failsafe_key in front of the address.
const failsafeBits = 32

// failsafeOf are the failsafe ports as the kernel's table has them.
func failsafeOf(w *desired.Dataplane) map[kernel.FailsafeKey]uint32 {
	out := make(map[kernel.FailsafeKey]uint32, len(w.Failsafe))
	for p := range w.Failsafe {
		key := kernel.FailsafeKey{
			PrefixLength: failsafeBits, Direction: uint8(kernel.DirectionIngress),
			Protocol: p.Protocol, Port: kernel.BigEndian16(p.Port),
		}
		if p.Egress {
			key.Direction = uint8(kernel.DirectionEgress)
		}
		if !p.Net.IsValid() {
			out[key] = 1
			continue
		}
		for _, net := range withoutMapped(p.Net) {
			prefix := kernel.NewPrefix(net)
			key.PrefixLength, key.Bytes = failsafeBits+prefix.PrefixLength, prefix.Bytes
			out[key] = 1
		}
	}
	return out
}

// failsafePorts are the ports that keys are about, as the kernel's table has them: word by
// word, the bits by direction << 16 | port.
func failsafePorts(keys map[kernel.FailsafeKey]uint32) map[uint32]uint64 {
	out := make(map[uint32]uint64)
	for k := range keys {
		bit := uint32(k.Direction)<<16 | uint32(kernel.BigEndian16(k.Port))
		out[bit/64] |= 1 << (bit % 64)
	}
	return out
}

func (d *Dataplane) pruneFailsafe(w *desired.Dataplane) error {
	keys := failsafeOf(w)
	return errors.Join(d.failsafe.Prune(keys), d.ports.Prune(failsafePorts(keys)))
}

// withoutMapped splits an IPv6 network that contains ::ffff:0:0/96, where IPv4
// addresses are in the table: it does not mean these.
func withoutMapped(net netip.Prefix) []netip.Prefix {
	mapped := netip.PrefixFrom(netip.AddrFrom16([16]byte{10: 0xff, 11: 0xff}), 96)
	if net.Addr().Is4() || net.Bits() >= mapped.Bits() || !net.Contains(mapped.Addr()) {
		return []netip.Prefix{net}
	}
	var out []netip.Prefix
	for bits := net.Bits(); bits < mapped.Bits(); bits++ {
		sibling := mapped.Addr().As16()
		sibling[bits/8] ^= 0x80 >> (bits % 8)
		out = append(out, netip.PrefixFrom(netip.AddrFrom16(sibling), bits+1).Masked())
	}
	return out
}
