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
