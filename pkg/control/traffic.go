package control

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/dataplane"
	"calico-xdp/pkg/nodeapi"
	"calico-xdp/pkg/policy"
)

// Rules returns the counters of this node's rules, in the order in which they are asked:
// by tier, policy and index, profiles last; enforced ones before staged ones.
func (a *Answers) Rules(ctx context.Context, f nodeapi.RuleFilter) ([]nodeapi.RuleCount, error) {
	counts, err := a.plane.Rules()
	if err != nil {
		return nil, err
	}
	resources := make(map[api.Key]api.Resource)
	tiers := make(map[string]float64)
	var only map[policy.RuleID]bool
	err = a.ask(ctx, func(v View) error {
		for _, c := range counts {
			resources[c.ID.Policy] = v.Resources.Get(c.ID.Policy)
		}
		for key, t := range api.All[*api.Tier](v.Resources, api.KindTier) {
			if tiers[key.Name] = math.Inf(1); t.Spec.Order != nil {
				tiers[key.Name] = *t.Spec.Order
			}
		}
		if f.Endpoint == "" {
			return nil
		}
		p, err := a.resolve(v, f.Endpoint)
		if err != nil {
			return err
		}
		only, err = rulesOf(v, p)
		return err
	})
	if err != nil {
		return nil, err
	}
	counts = slices.DeleteFunc(counts, func(c dataplane.RuleCount) bool {
		return only != nil && !only[c.ID] || !ofPolicy(f.Policy, wireRule(c.ID, c.Action))
	})
	orders := make(map[api.Key]float64, len(resources))
	for key, r := range resources {
		orders[key] = math.Inf(1)
		if r == nil {
			continue // the end of a tier, or gone by now
		}
		if p, ok := api.PolicyOf(r); ok && p.Order != nil {
			orders[key] = *p.Order
		}
	}
	slices.SortFunc(counts, func(a, b dataplane.RuleCount) int {
		x, y := a.ID, b.ID
		return cmp.Or(
			cmp.Compare(late(x.Staged), late(y.Staged)), strings.Compare(y.Direction, x.Direction),
			cmp.Compare(late(x.Tier == ""), late(y.Tier == "")), cmp.Compare(tierOrder(tiers, x.Tier), tierOrder(tiers, y.Tier)),
			strings.Compare(x.Tier, y.Tier),
			cmp.Compare(late(x.Policy == (api.Key{})), late(y.Policy == (api.Key{}))),
			cmp.Compare(orders[x.Policy], orders[y.Policy]), compareKeys(x.Policy, y.Policy),
			cmp.Compare(x.Index, y.Index), cmp.Compare(a.Action, b.Action),
		)
	})
	out := make([]nodeapi.RuleCount, 0, len(counts))
	for _, c := range counts {
		r := nodeapi.RuleCount{Rule: wireRule(c.ID, c.Action), Packets: c.Packets, Bytes: c.Bytes}
		r.Text = ruleText(resources[c.ID.Policy], c.ID)
		out = append(out, r)
	}
	return out, nil
}

// late sorts what it is true for behind the rest.
func late(is bool) int {
	if is {
		return 1
	}
	return 0
}

func tierOrder(tiers map[string]float64, name string) float64 {
	if order, ok := tiers[name]; ok {
		return order
	}
	return math.Inf(1)
}

// rulesOf are the rules in an endpoint's rulesets: a workload's, a host endpoint's, or
// those of all host endpoints of this node.
func rulesOf(v View, p place) (map[policy.RuleID]bool, error) {
	if !p.Local {
		return nil, questionError("%s is not on this node", p.String())
	}
	out := make(map[policy.RuleID]bool)
	add := func(staged bool, list ...policy.RulesetID) {
		for _, id := range list {
			s := v.Tables.Rulesets[id]
			if s == nil {
				continue
			}
			for _, r := range s.Rules() {
				r.ID.Staged = r.ID.Staged || staged
				out[r.ID] = true
			}
		}
	}
	if p.Kind == nodeapi.EndWorkload {
		r := v.Tables.Endpoints[p.key]
		add(false, r.Egress, r.Ingress)
		add(true, r.StagedEgress, r.StagedIngress)
		return out, nil
	}
	for _, key := range v.State.Dataplane.HostEndpoints {
		if h, one := v.Resources.Get(p.key).(*api.HostEndpoint); one && h.Name != key.Name {
			continue
		}
		h := v.Tables.HostEndpoints[key]
		for _, r := range []policy.Rulesets{h.Untracked, h.Forward, h.Normal} {
			add(false, r.Egress, r.Ingress)
			add(true, r.StagedEgress, r.StagedIngress)
		}
		add(false, h.PreDNAT)
		add(true, h.StagedPreDNAT)
	}
	return out, nil
}

// ofPolicy says whether a rule is one of a policy: name, namespace/name, or
// kind/[namespace/]name. The empty text is for all.
func ofPolicy(text string, r nodeapi.Rule) bool {
	if text == "" {
		return true
	}
	if strings.EqualFold(text, r.Name) || text == r.Policy() {
		return r.Name != ""
	}
	kind, name, found := strings.Cut(text, "/")
	if k, ok := api.FindKind(kind); found && ok {
		return k.Name == r.Kind && (name == r.Policy() || name == r.Name)
	}
	return false
}

// Flows hands out the flows that the kernel's tables hold.
func (a *Answers) Flows(ctx context.Context, f nodeapi.FlowFilter, yield func(nodeapi.Flow) bool) error {
	protocol, ok := uint8(0), true
	if f.Protocol != "" {
		if protocol, ok = api.ProtocolNumber(f.Protocol); !ok {
			return questionError("protocol %q is not known", f.Protocol)
		}
	}
	only, err := a.only(ctx, f.Endpoint)
	if err != nil {
		return err
	}
	a.names.hold()
	defer a.names.letGo()
	if err := a.known(ctx); err != nil {
		return err
	}
	n := 0
	return a.plane.Flows(func(g dataplane.Flow) bool {
		if f.Denied && g.Reason == "" || protocol != 0 && g.Packet.Protocol != protocol ||
			f.Port != 0 && int(g.Packet.DestinationPort) != f.Port {
			return ctx.Err() == nil
		}
		flow := wireFlow(g, a.names.end(g.Packet.Source), a.names.end(g.Packet.Destination))
		if only != nil && !only.is(flow.Source) && !only.is(flow.Destination) ||
			!slices.ContainsFunc(flow.Rules, func(r nodeapi.Rule) bool { return ofPolicy(f.Policy, r) }) && f.Policy != "" {
			return ctx.Err() == nil
		}
		n++
		return yield(flow) && (f.Limit == 0 || n < f.Limit) && ctx.Err() == nil
	})
}

// only is the endpoint that a filter names, nil if it names none.
func (a *Answers) only(ctx context.Context, name string) (*place, error) {
	if name == "" {
		return nil, nil
	}
	p := new(place)
	err := a.ask(ctx, func(v View) (err error) {
		if *p, err = a.resolve(v, name); len(p.addresses) > 0 {
			p.Address = p.addresses[0]
		}
		return err
	})
	return p, err
}

// wireFlow is a flow between these ends.
func wireFlow(f dataplane.Flow, source, destination nodeapi.End) nodeapi.Flow {
	out := nodeapi.Flow{
		Protocol: api.ProtocolName(f.Packet.Protocol), Source: source, Destination: destination,
		State: string(f.State), Verdict: nodeapi.VerdictAllow, Reason: f.Reason, Idle: f.Idle.Seconds(), Outdated: f.Outdated, Path: forwardName(f),
	}
	if f.Reason != "" {
		out.Verdict = nodeapi.VerdictDeny
	}
	out.ICMPType, out.ICMPCode = icmpOf(f.Packet.Protocol, f.Packet.DestinationPort)
	if out.ICMPType == nil {
		out.Source.Port, out.Destination.Port = int(f.Packet.SourcePort), int(f.Packet.DestinationPort)
	}
	for _, r := range f.Rules {
		out.Rules = append(out.Rules, wireRule(r.ID, r.Action))
	}
	return out
}

// forwardName is the way of a flow's packets in a word.
func forwardName(f dataplane.Flow) string {
	if f.Local[0] && f.Local[1] {
		return "local"
	}
	return map[dataplane.Forward]string{
		dataplane.ForwardHost: "host", dataplane.ForwardStack: "stack", dataplane.ForwardNode: "plain",
		dataplane.ForwardIPIP: "ipip", dataplane.ForwardVXLAN: "vxlan",
	}[f.NextHop.Forward]
}

// Tables says how full the kernel's tables are.
func (a *Answers) Tables(context.Context) ([]nodeapi.Table, error) {
	out := []nodeapi.Table{}
	for _, t := range a.plane.Tables() {
		x := nodeapi.Table{Name: t.Table, Entries: t.Entries, Capacity: t.Capacity}
		if t.Limit > t.Capacity {
			x.Largest = t.Limit
		}
		if t.Refused > 0 {
			x.Problem = fmt.Sprintf("there was no room %d times", t.Refused)
		}
		out = append(out, x)
	}
	return out, nil
}
