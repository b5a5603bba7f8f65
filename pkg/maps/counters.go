package maps

import "github.com/cilium/ebpf"

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
	var all []Counter
	err := m.all[bpfMapCounters].use(func(em *ebpf.Map) (err error) {
		all, err = sums(em, int(hookMax)*int(reasonMax))
		return err
	})
	if err != nil {
		return nil, err
	}
	var out []Count
	for i, c := range all {
		if c.Packets > 0 {
			hook, reason := m.hooks[i/int(reasonMax)], m.reasons[i%int(reasonMax)]
			out = append(out, Count{Hook: hook, Reason: reason, Packets: c.Packets, Bytes: c.Bytes})
		}
	}
	return out, nil
}
