package dataplane

import (
	"cmp"
	"errors"
	"maps"
	"math"
	"slices"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"
)

// denyAll stands in for a ruleset that is not in the kernel: what is out of bounds
// denies (policy.h). For some stages 0 would mean that nothing is asked.
const denyAll = math.MaxUint32

var errNotPlaced = errors.New("ruleset is not in the kernel")

// stages are a host endpoint's rulesets with where each belongs in its record.
func stages(h policy.HostRulesets, r *kernel.HostEndpoint) map[*uint32]policy.RulesetID {
	return map[*uint32]policy.RulesetID{
		&r.UntrackedEgress: h.Untracked.Egress, &r.UntrackedIngress: h.Untracked.Ingress,
		&r.PreDnat:       h.PreDNAT,
		&r.ForwardEgress: h.Forward.Egress, &r.ForwardIngress: h.Forward.Ingress,
		&r.Egress: h.Normal.Egress, &r.Ingress: h.Normal.Ingress,
	}
}

// hostEndpointsOf are the wanted records by interface. failing gets the host endpoints
// that are not there whole: what they lack denies.
func hostEndpointsOf(w *desired.Dataplane, in placed, failing desired.EndpointErrors) map[uint32]kernel.HostEndpoint {
	records := make(map[api.Key]kernel.HostEndpoint)
	out := make(map[uint32]kernel.HostEndpoint, len(w.HostEndpoints))
	for ifindex, key := range w.HostEndpoints {
		record, known := records[key]
		if !known {
			var errs []error
			for field, id := range stages(w.Policy.HostEndpoints[key], &record) {
				base, there := in.bases[id]
				switch {
				case id == 0:
				case there:
					*field = base
				default:
					*field = denyAll
					errs = append(errs, cmp.Or(in.failed[id], errNotPlaced))
				}
			}
			if err := errors.Join(errs...); err != nil {
				failing[key] = err
			}
			records[key] = record
		}
		out[uint32(ifindex)] = record
	}
	return out
}

// hostTouched says whether a ruleset of a host endpoint judges some address otherwise
// than before although it is the same.
func hostTouched(w *desired.Dataplane, in placed) bool {
	if len(in.touched) == 0 {
		return false
	}
	seen := make(map[api.Key]bool)
	for _, key := range w.HostEndpoints {
		if seen[key] {
			continue
		}
		seen[key] = true
		for _, id := range stages(w.Policy.HostEndpoints[key], new(kernel.HostEndpoint)) {
			if in.touched[id] {
				return true
			}
		}
	}
	return false
}

// hostPolicy says which of the tables that host endpoints need are not empty.
func hostPolicy(w *desired.Dataplane) (set uint8) {
	for _, key := range w.HostEndpoints {
		set |= uint8(kernel.HostPolicyTracked)
		if h := w.Policy.HostEndpoints[key]; h.Untracked.Ingress != 0 || h.Untracked.Egress != 0 {
			set |= uint8(kernel.HostPolicyUntracked)
		}
	}
	return set
}

// hostRulesets are the rulesets that records in the kernel refer to, those of a former
// process.
func hostRulesets(t kernel.Table[uint32, kernel.HostEndpoint]) (used []uint32, err error) {
	records, err := t.Load()
	for _, r := range records {
		for field := range stages(policy.HostRulesets{}, &r) {
			if *field != 0 && *field != denyAll {
				used = append(used, *field)
			}
		}
	}
	return used, err
}

// addHostHints says who of the host endpoints has and wants which ruleset.
func addHostHints(hints map[hint]int, w *desired.Dataplane, t kernel.Table[uint32, kernel.HostEndpoint]) error {
	records, err := t.Load()
	for ifindex, key := range w.HostEndpoints {
		if record, ok := records[uint32(ifindex)]; ok {
			for field, id := range stages(w.Policy.HostEndpoints[key], &record) {
				hints[hint{*field, id}]++
			}
		}
	}
	return err
}

// pruneHostEndpoints removes the records of interfaces that have no host endpoint.
func (d *Dataplane) pruneHostEndpoints(w *desired.Dataplane) error {
	stay := make(map[uint32]kernel.HostEndpoint, len(w.HostEndpoints))
	for ifindex := range w.HostEndpoints {
		stay[uint32(ifindex)] = kernel.HostEndpoint{} // only keys matter
	}
	return errors.Join(d.early.Prune(d.earlyOf(stay)), d.hosts.Prune(stay))
}

// earlyOf are the wanted places of xdp_rulesets. Of two interfaces that share one the first
// has it; the other's ruleset is found in its host endpoint.
func (d *Dataplane) earlyOf(hosts map[uint32]kernel.HostEndpoint) map[uint32]kernel.XDPRuleset {
	out := make(map[uint32]kernel.XDPRuleset, len(hosts))
	places := uint32(d.kernel.XDPRulesets.Capacity())
	for _, ifindex := range slices.Sorted(maps.Keys(hosts)) {
		if _, taken := out[ifindex%places]; !taken && int(ifindex) != desired.TunnelIndex {
			out[ifindex%places] = kernel.XDPRuleset{Ifindex: ifindex, Base: hosts[ifindex].UntrackedIngress}
		}
	}
	return out
}

// earlyTable is xdp_rulesets. No program meets one interface with the ruleset of another.
type earlyTable struct {
	kernel.Table[uint32, kernel.XDPRuleset]
}

func (t earlyTable) Put(place uint32, r kernel.XDPRuleset) error {
	was, _, err := t.Get(place)
	if err == nil && was.Ifindex != r.Ifindex {
		err = t.Delete(place)
	}
	if err != nil {
		return err
	}
	return t.Table.Put(place, r)
}
