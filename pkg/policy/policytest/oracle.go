// Package policytest is for tests of whatever enforces policy: an oracle that
// judges packets from the resources themselves, slowly and obviously, and
// generators of resources and packets.
package policytest

import (
	"fmt"
	"net/netip"
	"sort"
	"strings"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/policy"
)

// Step is one rule that a packet meets.
type Step struct {
	Action policy.Action
	Rule   policy.RuleID
}

func (s Step) String() string {
	action := [...]string{"?", "Deny", "Allow", "Pass", "Log", "Continue"}[s.Action]
	where := s.Rule.Tier + "/" + s.Rule.Policy.String()
	if s.Rule.Policy == (api.Key{}) {
		where = s.Rule.Tier + "/default"
	}
	if s.Rule.Staged {
		where = "staged " + where
	}
	return fmt.Sprintf("%s by %s %s[%d]", action, where, s.Rule.Direction, s.Rule.Index)
}

// Oracle judges packets by the resources of one store.
type Oracle struct {
	store    *api.Store
	staged   bool
	known    []object
	policies []aPolicy // in the order in which those of one tier are asked
}

// object is whatever a selector can select.
type object struct {
	labels map[string]string
	nets   []netip.Prefix
	ports  []port
}

type port struct {
	name     string
	protocol int
	number   uint16
}

// NewOracle returns an oracle for the store as it is now.
func NewOracle(store *api.Store) *Oracle { return newOracle(store, false) }

// NewStagedOracle returns an oracle for the store as it would be with all staged
// policies enforced.
func NewStagedOracle(store *api.Store) *Oracle { return newOracle(store, true) }

func newOracle(store *api.Store, staged bool) *Oracle {
	o := &Oracle{store: store, staged: staged}
	o.policies = o.findPolicies()
	for _, w := range api.All[*api.WorkloadEndpoint](store, "WorkloadEndpoint") {
		x := object{labels: o.labelsOf(w), nets: prefixes(w.Spec.IPNetworks)}
		for _, p := range w.Spec.Ports {
			x.ports = append(x.ports, port{p.Name, protocol(p.Protocol), p.Port})
		}
		o.known = append(o.known, x)
	}
	for _, h := range api.All[*api.HostEndpoint](store, "HostEndpoint") {
		x := object{labels: o.inherit(h.Labels, h.Spec.Profiles), nets: prefixes(h.Spec.ExpectedIPs)}
		for _, p := range h.Spec.Ports {
			x.ports = append(x.ports, port{p.Name, protocol(p.Protocol), p.Port})
		}
		o.known = append(o.known, x)
	}
	for _, s := range api.All[*api.GlobalNetworkSet](store, "GlobalNetworkSet") {
		o.known = append(o.known, object{labels: s.Labels, nets: prefixes(s.Spec.Nets)})
	}
	for _, s := range api.All[*api.NetworkSet](store, "NetworkSet") {
		own := map[string]string{"projectcalico.org/namespace": s.Namespace}
		for k, v := range s.Labels {
			if k != "projectcalico.org/namespace" {
				own[k] = v
			}
		}
		o.known = append(o.known, object{labels: o.inherit(own, []string{"kns." + s.Namespace}), nets: prefixes(s.Spec.Nets)})
	}
	return o
}

func (o *Oracle) labelsOf(w *api.WorkloadEndpoint) map[string]string {
	own := make(map[string]string)
	for k, v := range w.Labels {
		if !strings.HasPrefix(k, "pcns.") && !strings.HasPrefix(k, "pcsa.") {
			own[k] = v
		}
	}
	own["projectcalico.org/namespace"] = w.Namespace
	own["projectcalico.org/orchestrator"] = w.Spec.Orchestrator
	if w.Spec.ServiceAccountName != "" {
		own["projectcalico.org/serviceaccount"] = w.Spec.ServiceAccountName
	}
	return o.inherit(own, w.Spec.Profiles)
}

func (o *Oracle) inherit(own map[string]string, profiles []string) map[string]string {
	out := make(map[string]string)
	for i := len(profiles) - 1; i >= 0; i-- {
		if p, ok := o.store.Get(api.Key{Kind: "Profile", Name: profiles[i]}).(*api.Profile); ok {
			for k, v := range p.Spec.LabelsToApply {
				out[k] = v
			}
		}
	}
	for k, v := range own {
		out[k] = v
	}
	return out
}

// Judge returns the rules that a packet to (ingress) or from (egress) a workload
// endpoint meets: any number of Log and Pass, then the Allow or Deny that decides.
func (o *Oracle) Judge(endpoint api.Key, direction string, p policy.Packet) []Step {
	w := o.store.Get(endpoint).(*api.WorkloadEndpoint)
	return o.judge(o.labelsOf(w), w.Spec.Profiles, "normal", direction, p)
}

// JudgeHost is Judge for one of the stages of a host endpoint: untracked, preDNAT,
// forward, normal. It returns nothing if no policy is asked at that stage. The last
// step is Continue if those that are asked leave it to the next stage.
func (o *Oracle) JudgeHost(endpoint api.Key, stage, direction string, p policy.Packet) []Step {
	h := o.store.Get(endpoint).(*api.HostEndpoint)
	return o.judge(o.inherit(h.Labels, h.Spec.Profiles), h.Spec.Profiles, stage, direction, p)
}

// Asked returns the tiers that have policies for an endpoint at a stage (normal for a
// workload), in order, and these policies, in order.
func (o *Oracle) Asked(endpoint api.Key, stage, direction string) (tiers []string, policies map[string][]api.Key) {
	var labels map[string]string
	switch r := o.store.Get(endpoint).(type) {
	case *api.WorkloadEndpoint:
		labels = o.labelsOf(r)
	case *api.HostEndpoint:
		labels = o.inherit(r.Labels, r.Spec.Profiles)
	}
	tiers, byTier := o.asked(labels, stage, direction)
	policies = make(map[string][]api.Key)
	for name, list := range byTier {
		for _, p := range list {
			policies[name] = append(policies[name], p.key)
		}
	}
	return tiers, policies
}

// RuleMatches says whether a packet fits one rule of a policy or profile.
func (o *Oracle) RuleMatches(id policy.RuleID, p policy.Packet) bool {
	if profile, ok := o.store.Get(id.Policy).(*api.Profile); ok {
		rules := profile.Spec.Ingress
		if id.Direction == "egress" {
			rules = profile.Spec.Egress
		}
		return o.apply(rules[id.Index], "", p) != 0
	}
	for _, x := range o.policies {
		for _, rule := range x.rules[id.Direction] {
			if x.key == id.Policy && rule.index == id.Index {
				return rule.apply(o, p) != 0
			}
		}
	}
	return false
}

func (o *Oracle) tier(name string) *api.Tier {
	t, _ := o.store.Get(api.Key{Kind: "Tier", Name: name}).(*api.Tier)
	return t
}

// exists says whether there is a tier; the default one always is.
func (o *Oracle) exists(tier string) bool { return tier == "default" || o.tier(tier) != nil }

func (o *Oracle) asked(labels map[string]string, stage, direction string) (names []string, byTier map[string][]aPolicy) {
	byTier = make(map[string][]aPolicy)
	for _, p := range o.policies {
		if p.applies(stage, direction) && p.selects(labels) {
			byTier[p.tier] = append(byTier[p.tier], p)
		}
	}
	for name := range byTier {
		names = append(names, name)
	}
	orderOf := func(name string) float64 {
		if t := o.tier(name); t != nil && t.Spec.Order != nil {
			return *t.Spec.Order
		}
		return 1_000_000
	}
	sort.Slice(names, func(i, j int) bool {
		if a, b := orderOf(names[i]), orderOf(names[j]); a != b {
			return a < b
		}
		return names[i] < names[j]
	})
	return names, byTier
}

func (o *Oracle) judge(labels map[string]string, profiles []string, stage, direction string, p policy.Packet) []Step {
	var steps []Step
	tiers, byTier := o.asked(labels, stage, direction)
	if len(tiers) == 0 && stage != "normal" && !o.staged {
		return nil
	}
	for _, name := range tiers {
		// A policy in a tier that does not exist could mean anything: closed.
		if !o.exists(name) {
			first := byTier[name][0]
			return []Step{{policy.Deny, policy.RuleID{Tier: name, Policy: first.key, Direction: direction, Index: -1, Staged: first.staged}}}
		}
	}
	for _, name := range tiers {
		passed := false
	policies:
		for _, pol := range byTier[name] {
			for _, rule := range pol.rules[direction] {
				action := rule.apply(o, p)
				if action == 0 {
					continue
				}
				steps = append(steps, Step{action, policy.RuleID{Tier: name, Policy: pol.key, Direction: direction, Index: rule.index, Staged: pol.staged}})
				if action == policy.Pass {
					passed = true
					break policies
				}
				if action != policy.Log {
					return steps
				}
			}
		}
		if passed || stage == "untracked" || stage == "preDNAT" {
			continue
		}
		end := Step{policy.Deny, policy.RuleID{Tier: name, Direction: direction, Index: -1, Staged: o.staged}}
		if t := o.tier(name); t != nil && t.Spec.DefaultAction != nil && *t.Spec.DefaultAction == "Pass" {
			end.Action = policy.Pass
		}
		steps = append(steps, end)
		if end.Action == policy.Deny {
			return steps
		}
	}
	end := policy.RuleID{Direction: direction, Index: -1, Staged: o.staged}
	switch stage {
	case "forward":
		return append(steps, Step{policy.Allow, end})
	case "untracked", "preDNAT":
		return append(steps, Step{policy.Continue, end})
	}
	for _, name := range profiles {
		met, decided := o.profile(name, direction, p)
		if steps = append(steps, met...); decided {
			return steps
		}
	}
	return append(steps, Step{policy.Deny, end})
}

// profile returns the rules of a profile that a packet meets, and whether one of them
// decides.
func (o *Oracle) profile(name, direction string, p policy.Packet) (steps []Step, decided bool) {
	id := policy.RuleID{Policy: api.Key{Kind: "Profile", Name: name}, Direction: direction}
	profile, ok := o.store.Get(id.Policy).(*api.Profile)
	if !ok && name == "projectcalico-default-allow" {
		return []Step{{policy.Allow, id}}, true
	}
	if !ok {
		id.Index = -1
		return []Step{{policy.Deny, id}}, true
	}
	rules := profile.Spec.Ingress
	if direction == "egress" {
		rules = profile.Spec.Egress
	}
	for i, rule := range rules {
		id.Index = i
		switch action := o.apply(rule, "", p); action {
		case 0:
		case policy.Log:
			steps = append(steps, Step{action, id})
		default:
			return append(steps, Step{action, id}), action != policy.Pass
		}
	}
	return steps, false
}
