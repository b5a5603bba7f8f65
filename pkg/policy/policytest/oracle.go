// Package policytest is for tests of whatever enforces policy: an oracle that
// judges packets from the resources themselves, slowly and obviously, and
// generators of resources and packets.
package policytest

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sort"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"

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
	return fmt.Sprintf("%s by %s %s[%d]", action, where, s.Rule.Direction, s.Rule.Index)
}

// Oracle judges packets by the resources of one store.
type Oracle struct {
	store *api.Store
	known []object
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
func NewOracle(store *api.Store) *Oracle {
	o := &Oracle{store: store}
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
		own[k] = v
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

// aPolicy is a policy of either kind.
type aPolicy struct {
	key                                    api.Key
	tier                                   string
	order                                  float64
	selector, nsSelector, accountsSelector string
	ingress, egress                        bool
	stages                                 []string // at which it is asked
	rules                                  map[string][]api.Rule
}

func (o *Oracle) policies() []aPolicy {
	var out []aPolicy
	add := func(key api.Key, tier string, order *float64, selector, ns, accounts string, types []v3.PolicyType, in, eg []api.Rule) {
		p := aPolicy{
			key: key, tier: tier, order: math.Inf(1), selector: selector, nsSelector: ns, accountsSelector: accounts,
			rules: map[string][]api.Rule{"ingress": in, "egress": eg}, stages: []string{"normal"},
		}
		if order != nil {
			p.order = *order
		}
		if tier == "" {
			p.tier = "default"
		}
		switch {
		case len(types) > 0:
			p.ingress, p.egress = slices.Contains(types, "Ingress"), slices.Contains(types, "Egress")
		case len(eg) == 0:
			p.ingress = true
		case len(in) == 0:
			p.egress = true
		default:
			p.ingress, p.egress = true, true
		}
		out = append(out, p)
	}
	for key, p := range api.All[*api.GlobalNetworkPolicy](o.store, "GlobalNetworkPolicy") {
		s := p.Spec
		add(key, s.Tier, s.Order, s.Selector, s.NamespaceSelector, s.ServiceAccountSelector, s.Types, s.Ingress, s.Egress)
		switch last := &out[len(out)-1]; {
		case s.DoNotTrack:
			last.stages = []string{"untracked"}
		case s.PreDNAT:
			last.stages = []string{"preDNAT"}
		case s.ApplyOnForward:
			last.stages = []string{"normal", "forward"}
		}
	}
	for key, p := range api.All[*api.NetworkPolicy](o.store, "NetworkPolicy") {
		s := p.Spec
		add(key, s.Tier, s.Order, s.Selector, "", s.ServiceAccountSelector, s.Types, s.Ingress, s.Egress)
	}
	sort.Slice(out, func(i, j int) bool {
		a, b := out[i], out[j]
		if a.order != b.order {
			return a.order < b.order
		}
		return a.key.Name+"/"+a.key.Namespace+"/"+a.key.Kind < b.key.Name+"/"+b.key.Namespace+"/"+b.key.Kind
	})
	return out
}

func (p *aPolicy) selects(labels map[string]string) bool {
	if p.key.Namespace != "" && labels["projectcalico.org/namespace"] != p.key.Namespace {
		return false
	}
	return matches(p.selector, labels) &&
		matchesScope(p.nsSelector, "pcns.", "projectcalico.org/namespace", labels) &&
		matchesScope(p.accountsSelector, "pcsa.", "projectcalico.org/serviceaccount", labels)
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
	tiers, byTier, _ := o.asked(labels, stage, direction)
	policies = make(map[string][]api.Key)
	for name, list := range byTier {
		for _, p := range list {
			policies[name] = append(policies[name], p.key)
		}
	}
	return tiers, policies
}

func (o *Oracle) asked(labels map[string]string, stage, direction string) (names []string, byTier map[string][]aPolicy, tiers map[api.Key]*api.Tier) {
	tiers = api.All[*api.Tier](o.store, "Tier")
	byTier = make(map[string][]aPolicy)
	for _, pol := range o.policies() {
		applies := direction == "ingress" && pol.ingress || direction == "egress" && pol.egress && stage != "preDNAT"
		if applies && slices.Contains(pol.stages, stage) && pol.selects(labels) {
			byTier[pol.tier] = append(byTier[pol.tier], pol)
		}
	}
	for name := range byTier {
		names = append(names, name)
	}
	orderOf := func(name string) float64 {
		if t := tiers[api.Key{Kind: "Tier", Name: name}]; t != nil && t.Spec.Order != nil {
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

	return names, byTier, tiers
}

func (o *Oracle) judge(labels map[string]string, profileNames []string, stage, direction string, p policy.Packet) []Step {
	var steps []Step
	names, byTier, tiers := o.asked(labels, stage, direction)
	for _, name := range names {
		// A policy in a tier that does not exist could mean anything: closed.
		if tiers[api.Key{Kind: "Tier", Name: name}] == nil && name != "default" {
			return []Step{{policy.Deny, policy.RuleID{Tier: name, Policy: byTier[name][0].key, Direction: direction, Index: -1}}}
		}
	}
	for _, name := range names {
		passed := false
	policies:
		for _, pol := range byTier[name] {
			for i, rule := range pol.rules[direction] {
				action := o.apply(&rule, pol.key.Namespace, p)
				if action == 0 {
					continue
				}
				steps = append(steps, Step{action, policy.RuleID{Tier: name, Policy: pol.key, Direction: direction, Index: i}})
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
		end := Step{policy.Deny, policy.RuleID{Tier: name, Direction: direction, Index: -1}}
		if t := tiers[api.Key{Kind: "Tier", Name: name}]; t != nil && t.Spec.DefaultAction != nil && *t.Spec.DefaultAction == "Pass" {
			end.Action = policy.Pass
		}
		steps = append(steps, end)
		if end.Action == policy.Deny {
			return steps
		}
	}

	end := Step{policy.Deny, policy.RuleID{Direction: direction, Index: -1}}
	switch {
	case stage != "normal" && len(names) == 0:
		return nil
	case stage == "forward":
		end.Action = policy.Allow
		return append(steps, end)
	case stage != "normal":
		end.Action = policy.Continue
		return append(steps, end)
	}

profiles:
	for _, name := range profileNames {
		key := api.Key{Kind: "Profile", Name: name}
		profile, ok := o.store.Get(key).(*api.Profile)
		if !ok && name == "projectcalico-default-allow" {
			return append(steps, Step{policy.Allow, policy.RuleID{Policy: key, Direction: direction, Index: 0}})
		}
		if !ok {
			return append(steps, Step{policy.Deny, policy.RuleID{Policy: key, Direction: direction, Index: -1}})
		}
		rules := profile.Spec.Ingress
		if direction == "egress" {
			rules = profile.Spec.Egress
		}
		for i, rule := range rules {
			action := o.apply(&rule, "", p)
			if action == 0 {
				continue
			}
			steps = append(steps, Step{action, policy.RuleID{Policy: key, Direction: direction, Index: i}})
			if action == policy.Pass {
				continue profiles
			}
			if action != policy.Log {
				return steps
			}
		}
	}
	return append(steps, end)
}
