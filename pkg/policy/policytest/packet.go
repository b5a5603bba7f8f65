package policytest

import (
	"math/rand/v2"
	"net/netip"

	"calico-xdp/pkg/policy"
)

// RandomPacket returns a packet that generated rules are likely to care about.
// If local is valid, it is the packet's destination (ingress) or source (egress).
func RandomPacket(rng *rand.Rand, direction string, local netip.Addr) policy.Packet {
	v4, v6 := Addresses()
	family := v4
	if local.Is6() || !local.IsValid() && rng.IntN(2) == 0 {
		family = v6
	}
	p := policy.Packet{Source: pick(rng, family), Destination: pick(rng, family)}
	if local.IsValid() && direction == "ingress" {
		p.Destination = local
	} else if local.IsValid() {
		p.Source = local
	}
	p.Protocol = pick(rng, []uint8{6, 6, 6, 17, 17, 132, 136, 1, 58, 47, 0, 255})
	switch p.Protocol {
	case 6, 17, 132, 136:
		p.SourcePort, p.DestinationPort = randomPort(rng), randomPort(rng)
	case 1, 58:
		p.DestinationPort = pick(rng, []uint16{0, 3, 8, 128, 129, 255})<<8 | uint16(rng.IntN(3))
	}
	return p
}

func randomPort(rng *rand.Rand) uint16 {
	if rng.IntN(8) == 0 {
		return uint16(rng.UintN(65536))
	}
	return pick(rng, portList) + uint16(rng.IntN(3)) - 1
}

// Addresses are the addresses that generated packets have: those that generated
// resources speak of, and some beside them.
func Addresses() (v4, v6 []netip.Addr) {
	for _, s := range append(addresses, "10.0.0.5", "10.0.0.9", "10.9.9.9", "192.0.2.8", "8.8.8.8", "fd00::5", "fd00::9", "fd00:9::9", "2001:db8::8", "2002::1") {
		if a := netip.MustParseAddr(s); a.Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	return v4, v6
}

func pick[T any](rng *rand.Rand, from []T) T { return from[rng.IntN(len(from))] }
