package loader

// throughTunnel is the bit of the mark that says that the packet is out of a tunnel, or
// goes into one. The hook that it is seen at is in the low byte.
const throughTunnel = 1 << 8

// Explain asks what would become of a packet that is the first of its flow, at a hook
// by the C enum's number. Nothing is sent, and no table but that of explanations, where
// the answer is, changes. The interfaces of c are those of the caller's network namespace; its mark is
// not used.
func (p *Programs) Explain(packet []byte, hook uint8, tunnel bool, c Context) error {
	if c.Mark = uint32(hook); tunnel {
		c.Mark |= throughTunnel
	}
	_, err := p.Run(Explain, packet, c)
	return err
}
