package control

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/dataplane"
	"calico-xdp/pkg/nodeapi"
)

// tellLost is how often a listener is told of events that were lost.
const tellLost = time.Second

// eventKinds are the kinds as others know them.
var eventKinds = map[nodeapi.EventKind]dataplane.EventKinds{
	nodeapi.EventDrop: dataplane.EventDrop, nodeapi.EventFlow: dataplane.EventFlow,
	nodeapi.EventLog: dataplane.EventLog, nodeapi.EventStaged: dataplane.EventStaged,
}

// Events hands out what happens from now on.
func (a *Answers) Events(ctx context.Context, f nodeapi.EventFilter, yield func(nodeapi.Event) bool) error {
	var kinds dataplane.EventKinds
	if len(f.Kinds) == 0 {
		f.Kinds = slices.Collect(maps.Keys(eventKinds))
	}
	for _, k := range f.Kinds {
		kind, ok := eventKinds[k]
		if !ok {
			return questionError("events are of the kinds drop, flow, log and staged, not %q", k)
		}
		kinds |= kind
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
	l, err := a.plane.Listen(kinds)
	if err != nil {
		return err
	}
	defer l.Close()
	if !yield(nodeapi.Event{Kind: nodeapi.EventListening, Time: time.Now()}) {
		return nil
	}
	tick := time.NewTicker(tellLost)
	defer tick.Stop()
	told := uint64(0)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if lost := l.Lost(); lost > told {
				if !yield(nodeapi.Event{Kind: nodeapi.EventLost, Time: time.Now(), Lost: lost - told}) {
					return nil
				}
				told = lost
			}
		case raw := <-l.Events:
			e := a.wireEvent(ctx, raw)
			if only != nil && !only.is(*e.Source) && !only.is(*e.Destination) || f.Policy != "" && !concerns(f.Policy, e) {
				continue
			}
			if !yield(e) {
				return nil
			}
		}
	}
}

// concerns says whether an event names a policy.
func concerns(policy string, e nodeapi.Event) bool {
	return e.Rule != nil && ofPolicy(policy, *e.Rule) ||
		slices.ContainsFunc(e.Rules, func(r nodeapi.Rule) bool { return ofPolicy(policy, r) })
}

// wireEvent is an event as others hear of it.
func (a *Answers) wireEvent(ctx context.Context, e dataplane.Event) nodeapi.Event {
	source, destination := a.names.end(e.Source), a.names.end(e.Destination)
	out := nodeapi.Event{
		Kind: nodeapi.EventKind(e.Kind.String()), Time: e.Time, Verdict: nodeapi.VerdictAllow, Reason: e.Reason,
		Protocol: api.ProtocolName(e.Protocol), Source: &source, Destination: &destination,
		Length: e.Length, Hook: e.Hook, Interface: a.link(ctx, e.Ifindex),
	}
	if e.Reason != "" {
		out.Verdict = nodeapi.VerdictDeny
	}
	out.ICMPType, out.ICMPCode = icmpOf(e.Protocol, e.DestinationPort)
	if out.ICMPType == nil {
		source.Port, destination.Port = int(e.SourcePort), int(e.DestinationPort)
	}
	if e.Rule != nil {
		rule := wireRule(e.Rule.ID, e.Rule.Action)
		out.Rule = &rule
	}
	for _, r := range e.Rules {
		out.Rules = append(out.Rules, wireRule(r.ID, r.Action))
	}
	return out
}

// endText names an end with its address: "prod/web (10.65.0.2:80)".
func endText(e *nodeapi.End) string {
	address := e.Address.String()
	if e.Port != 0 {
		if address = fmt.Sprintf("%s:%d", e.Address, e.Port); e.Address.Is6() {
			address = fmt.Sprintf("[%s]:%d", e.Address, e.Port)
		}
	}
	if e.Name == "" {
		return address
	}
	return fmt.Sprintf("%s (%s)", e, address)
}
