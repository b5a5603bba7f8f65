package dataplane

import (
	"errors"

	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"
)

// records are the endpoints' and host endpoints' in the kernel, which say by its first word
// which ruleset is whose.
type records struct {
	endpoints *endpoints
	hosts     kernel.Table[uint32, kernel.HostEndpoint]
	early     kernel.Table[uint32, kernel.XDPRuleset] // some of hosts once more
}

// rulesets are those that records refer to.
func (r records) rulesets() ([]uint32, error) {
	ofHosts, err := hostRulesets(r.hosts)
	early, err2 := r.early.Load()
	for _, record := range early {
		if record.Base != 0 && record.Base != denyAll {
			ofHosts = append(ofHosts, record.Base)
		}
	}
	return append(r.endpoints.used(), ofHosts...), errors.Join(err, err2)
}

// move has them refer to other rulesets: those that say the same at another place, or 0
// where there is none, which closes.
func (r records) move(to map[uint32]uint32) error {
	if len(to) == 0 {
		return nil
	}
	errs := []error{r.endpoints.move(to)}
	led := func(base uint32) uint32 {
		next, ok := to[base]
		switch {
		case !ok || base == 0:
			return base
		case next == 0:
			return denyAll
		}
		return next
	}
	all, err := r.hosts.Load()
	for ifindex, record := range all {
		was := record
		for field := range stages(policy.HostRulesets{}, &record) {
			*field = led(*field)
		}
		if record != was {
			errs = append(errs, r.hosts.Put(ifindex, record))
		}
	}
	early, err2 := r.early.Load()
	for place, record := range early {
		was := record
		if record.Base = led(record.Base); record != was {
			errs = append(errs, r.early.Put(place, record))
		}
	}
	return errors.Join(append(errs, err, err2)...)
}

// move is that of records. An endpoint that is closed has its flows judged again.
func (e *endpoints) move(to map[uint32]uint32) error {
	var errs []error
	for s, record := range e.records {
		was, closed := record, false
		for _, field := range []*uint32{&record.Egress, &record.Ingress, &record.StagedEgress, &record.StagedIngress} {
			if base, ok := to[*field]; ok && *field != 0 {
				*field, closed = base, closed || base == 0
			}
		}
		if closed {
			record.Generation++
		}
		if record != was {
			errs = append(errs, e.put(s, record))
		}
	}
	return errors.Join(errs...)
}

// judgeAgain raises the generation of the endpoints that have one of these rulesets.
func (e *endpoints) judgeAgain(touched map[policy.RulesetID]bool) error {
	var errs []error
	for s, r := range e.rules {
		if touched[r.Egress] || touched[r.Ingress] || touched[r.StagedEgress] || touched[r.StagedIngress] {
			errs = append(errs, e.bump(s))
		}
	}
	return errors.Join(errs...)
}
