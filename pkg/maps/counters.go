package maps

import "fmt"

// Count is one counter, summed over CPUs. Hook and Reason are the C enums' names
// in lower case: "from_workload", "drop_ingress_policy".
type Count struct {
	Hook, Reason   string
	Packets, Bytes uint64
}

// Dropped says whether the counted packets were dropped.
func (c Count) Dropped() bool { return len(c.Reason) > 5 && c.Reason[:5] == "drop_" }

// Counters reads every counter that has counted.
func (m *Maps) Counters() ([]Count, error) {
	var out []Count
	var perCPU []Counter
	for h, hook := range m.hooks {
		for r, reason := range m.reasons {
			index := uint32(h*int(reasonMax) + r)
			if err := m.all[bpfMapCounters].Lookup(index, &perCPU); err != nil {
				return nil, fmt.Errorf("map %s: %w", bpfMapCounters, err)
			}
			c := Count{Hook: hook, Reason: reason}
			for _, n := range perCPU {
				c.Packets += n.Packets
				c.Bytes += n.Bytes
			}
			if c.Packets > 0 {
				out = append(out, c)
			}
		}
	}
	return out, nil
}
