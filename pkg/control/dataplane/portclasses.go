package dataplane

import (
	"errors"
	"math"

	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"
)

// followPorts gives the ports that have changed their classes.
func (c *classifier) followPorts(t *policy.Tables) error {
	put := func(ranges []policy.PortRange, set func(*kernel.PortClass, policy.PortClass)) error {
		for _, r := range ranges {
			for port := int(r.From); port <= int(r.To); port++ {
				i := kernel.PortIndex(r.Protocol, uint16(port))
				want := c.ports[i]
				if set(&want, r.Class); want == c.ports[i] {
					continue
				}
				if err := c.putPort(i, want); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return errors.Join(
		put(t.Changes.SourcePorts, func(p *kernel.PortClass, class policy.PortClass) {
			p.Source = uint16(c.sources.kernel[uint32(class)])
		}),
		put(t.Changes.DestinationPorts, func(p *kernel.PortClass, class policy.PortClass) {
			p.Destination = uint16(c.destinations.kernel[uint32(class)])
		}))
}

// portTable lays the port ranges out by index, in the compiler's numbers.
func portTable(t *policy.Tables) []kernel.PortClass {
	ports := make([]kernel.PortClass, kernel.PortIndexes)
	for r := range t.DestinationPorts.Ranges() {
		for port := int(r.From); port <= int(r.To); port++ {
			ports[kernel.PortIndex(r.Protocol, uint16(port))].Destination = uint16(r.Class)
		}
	}
	for r := range t.SourcePorts.Ranges() {
		for port := int(r.From); port <= int(r.To); port++ {
			ports[kernel.PortIndex(r.Protocol, uint16(port))].Source = uint16(r.Class)
		}
	}
	return ports
}

// writePorts gives every port its classes.
func (c *classifier) writePorts(ports []kernel.PortClass) error {
	want := make(map[int]kernel.PortClass)
	sources, destinations := make(map[step]bool), make(map[step]bool)
	for i, p := range ports {
		have := c.ports[i]
		class := kernel.PortClass{
			Source:      uint16(c.sources.kernel[uint32(p.Source)]),
			Destination: uint16(c.destinations.kernel[uint32(p.Destination)]),
		}
		if class != have {
			want[i] = class
			sources[step{uint32(have.Source), uint32(class.Source)}] = true
			destinations[step{uint32(have.Destination), uint32(class.Destination)}] = true
		}
	}
	ofSources := c.standIn(c.sources, sources, math.MaxUint16, 2)
	ofDestinations := c.standIn(c.destinations, destinations, math.MaxUint16, 3)
	c.between.ports = make(map[int]kernel.PortClass)
	for i, class := range want {
		have, now := c.ports[i], class
		if k, ok := ofSources[step{uint32(have.Source), uint32(class.Source)}]; ok {
			now.Source = uint16(k)
		}
		if k, ok := ofDestinations[step{uint32(have.Destination), uint32(class.Destination)}]; ok {
			now.Destination = uint16(k)
		}
		if now != class {
			c.between.ports[i] = class
		}
		if err := c.putPort(i, now); err != nil {
			return err
		}
	}
	return nil
}

func (c *classifier) putPort(i int, class kernel.PortClass) error {
	err := c.kernel.Ports.Put(i, class)
	if err == nil {
		c.ports[i] = class
	}
	return err
}
