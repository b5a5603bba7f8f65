package control

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/dataplane"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/nodeapi"
	"calico-xdp/pkg/policy"
)

const (
	// anySourcePort stands for a port that was not asked about: one that clients have
	// and rules do not name.
	anySourcePort = 49152
	defaultPort   = 80
	mostFlows     = 5 // of those that are there already
)

// Why says what would become of a packet.
func (a *Answers) Why(ctx context.Context, q nodeapi.WhyQuestion) (nodeapi.Why, error) {
	var answer nodeapi.Why
	var packet policy.Packet
	err := a.ask(ctx, func(v View) error {
		w, err := a.why(v, q)
		if err == nil {
			answer, packet = w.Why, w.packet
		}
		return err
	})
	if err != nil || answer.Verdict == nodeapi.VerdictUnknown {
		return answer, err
	}
	return answer, a.addFlows(ctx, &answer, packet)
}

// addFlows adds the flows that are there already. A packet that answers to one is part
// of it.
func (a *Answers) addFlows(ctx context.Context, w *nodeapi.Why, p policy.Packet) error {
	if !w.Packet.AnySourcePort && !isICMP(p.Protocol) {
		f, known, err := a.plane.FlowOf(p)
		switch {
		case !known || err != nil:
		case f.Packet.Source == p.Source:
			w.Flows = append(w.Flows, wireFlow(f, w.Source, w.Destination))
		default:
			w.Flows = append(w.Flows, wireFlow(f, w.Destination, w.Source))
		}
		return err
	}
	return a.plane.Flows(func(f dataplane.Flow) bool {
		g := f.Packet
		if g.Protocol == p.Protocol && g.Source == p.Source && g.Destination == p.Destination && g.DestinationPort == p.DestinationPort {
			w.Flows = append(w.Flows, wireFlow(f, w.Source, w.Destination))
		}
		return len(w.Flows) < mostFlows && ctx.Err() == nil
	})
}

// asking is an answer that is being put together.
type asking struct {
	nodeapi.Why
	v           View
	plane       Plane
	packet      policy.Packet
	source      place
	destination place
}

func (a *Answers) why(v View, q nodeapi.WhyQuestion) (*asking, error) {
	w := &asking{v: v, plane: a.plane}
	w.Node = v.Node
	family, err := w.readQuestion(q)
	if err != nil {
		return nil, err
	}
	if w.source, err = a.resolve(v, q.Source); err != nil {
		return nil, err
	}
	if w.destination, err = a.resolve(v, q.Destination); err != nil {
		return nil, err
	}
	if err := pair(&w.source, &w.destination, family); err != nil {
		return nil, err
	}
	if w.source.Address == w.destination.Address {
		return nil, questionError("%s and %s are the same: what it sends to itself is nobody else's", q.Source, q.Destination)
	}
	w.toFamily(q)
	w.packet.Source, w.packet.Destination = w.source.Address, w.destination.Address
	w.Packet = wirePacket(w.packet)
	w.Packet.AnySourcePort = q.SourcePort == 0 && w.Packet.SourcePort != 0
	w.Source, w.Destination = w.source.End, w.destination.End
	return w, w.answer()
}

// readQuestion takes the headers of the packet from the question, and the IP version
// that they ask for, or 0.
func (w *asking) readQuestion(q nodeapi.WhyQuestion) (family int, err error) {
	name := q.Protocol
	if name == "" {
		name = "TCP"
	}
	n, ok := api.ProtocolNumber(name)
	if !ok {
		return 0, questionError("protocol %q is none of TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite, and no number from 1 to 255", name)
	}
	p := &w.packet
	p.Protocol = n
	for what, port := range map[string]int{"port": q.Port, "source port": q.SourcePort} {
		switch {
		case port < 0 || port > 65535:
			return 0, questionError("%s %d is not a number from 1 to 65535", what, port)
		case port != 0 && !api.ProtocolHasPorts(n):
			return 0, questionError("%s has no ports", api.ProtocolName(n))
		}
	}
	for what, value := range map[string]*int{"type": q.ICMPType, "code": q.ICMPCode} {
		switch {
		case value == nil:
		case !isICMP(n):
			return 0, questionError("%s has no ICMP %s", api.ProtocolName(n), what)
		case *value < 0 || *value > 255:
			return 0, questionError("ICMP %s %d is not a number from 0 to 255", what, *value)
		}
	}
	if api.ProtocolHasPorts(n) {
		p.SourcePort, p.DestinationPort = anySourcePort, defaultPort
		if q.SourcePort != 0 {
			p.SourcePort = uint16(q.SourcePort)
		}
		if q.Port != 0 {
			p.DestinationPort = uint16(q.Port)
		}
	}
	if api.ProtocolName(n) == "ICMPv6" {
		return 6, nil
	}
	return 0, nil
}

// toFamily makes ICMP what it is called for these addresses, by default a ping.
func (w *asking) toFamily(q nodeapi.WhyQuestion) {
	p := &w.packet
	if !isICMP(p.Protocol) {
		return
	}
	kind, code := 8, 0
	if w.source.Address.Is6() {
		p.Protocol, _ = api.ProtocolNumber("ICMPv6")
		kind = 128
	}
	if q.ICMPType != nil {
		kind = *q.ICMPType
	}
	if q.ICMPCode != nil {
		code = *q.ICMPCode
	}
	p.DestinationPort = uint16(kind<<8 | code)
}

func wirePacket(p policy.Packet) nodeapi.Packet {
	out := nodeapi.Packet{Protocol: api.ProtocolName(p.Protocol), Source: p.Source, Destination: p.Destination}
	if out.ICMPType, out.ICMPCode = icmpOf(p.Protocol, p.DestinationPort); out.ICMPType == nil {
		out.SourcePort, out.DestinationPort = int(p.SourcePort), int(p.DestinationPort)
	}
	return out
}

// isError says whether an ICMP message is about another packet.
func isError(p policy.Packet) bool {
	kind := p.DestinationPort >> 8
	if p.Source.Is6() {
		return kind < 128
	}
	return kind == 3 || kind == 11 || kind == 12
}

// answer asks the programs at the place where the packet would come by.
func (w *asking) answer() error {
	if isICMP(w.packet.Protocol) && isError(w.packet) {
		return questionError("this ICMP message is an error: it passes with the flow that it quotes; ask about that flow")
	}
	w.Stages = []nodeapi.Stage{}
	d := &w.v.State.Dataplane
	fromWorkload := w.source.Local && w.source.Kind == nodeapi.EndWorkload
	toWorkload := w.destination.Local && w.destination.Kind == nodeapi.EndWorkload
	for _, end := range []*place{&w.source, &w.destination} {
		if end.Local && end.Kind == nodeapi.EndWorkload && !w.attached(end) {
			return nil
		}
	}
	switch {
	case fromWorkload:
		return w.fromWorkload(d.Endpoints[w.source.key])
	case toWorkload && w.source.Local:
		e := d.Endpoints[w.destination.key]
		w.note("What a node itself sends to its own workloads is subject to no policy.")
		return w.conclude(dataplane.Question{Hook: dataplane.HookToWorkload, Ifindex: e.Ifindex}, e.Interface, nil)
	case w.destination.Local:
		return w.fromNetwork()
	case w.source.Local:
		return w.fromHost()
	}
	w.Verdict = nodeapi.VerdictUnknown
	w.Explanation = "neither end is on this node, which has no say about the packet"
	w.remote()
	return nil
}

// attached says whether a local workload takes part at all; if not it answers.
func (w *asking) attached(end *place) bool {
	e, there := w.v.State.Dataplane.Endpoints[end.key]
	if there && len(e.Addresses) > 0 {
		return true
	}
	local := w.v.State.Local[end.key]
	w.Verdict = nodeapi.VerdictDeny
	switch {
	case local.Problem != "":
		w.Explanation = fmt.Sprintf("%s is left out: %s", end, local.Problem)
	case local.Missing:
		w.Explanation = fmt.Sprintf("the interface %s of %s does not exist (yet)", local.Interface, end)
	case !there:
		w.Explanation = fmt.Sprintf("%s is not attached to this node", end)
	default:
		w.Explanation = fmt.Sprintf("%s has no usable address: all that it sends or receives is dropped", end)
	}
	return false
}

func (w *asking) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(w.Notes, text) {
		w.Notes = append(w.Notes, text)
	}
}

// fromWorkload is for what a workload of this node sends.
func (w *asking) fromWorkload(e desired.Endpoint) error {
	rules := w.v.Tables.Endpoints[e.Key]
	egress := spec{key: e.Key, stage: stageNormal, direction: "egress", id: rules.Egress, staged: rules.StagedEgress}
	specs := append(w.everywhere("ingress"), egress)
	q := dataplane.Question{Hook: dataplane.HookFromWorkload, Ifindex: e.Ifindex, MAC: e.MAC}
	if w.destination.Local && w.destination.Kind == nodeapi.EndWorkload {
		return w.conclude(q, e.Interface, append(specs, w.arriving()...))
	}
	q.Packet = w.packet
	x, err := w.plane.Explain(q)
	if err != nil {
		return err
	}
	switch forward := x.NextHop.Forward; {
	case forward == dataplane.ForwardHost:
		// What is forwarded is not asked about then.
		specs = slices.DeleteFunc(specs, func(s spec) bool { return s.stage == stageForward })
		return w.conclude(q, e.Interface, specs)
	case forward == dataplane.ForwardStack && !x.Dropped:
		// The host's stack forwards it: whoever has the uplink has a say there.
		out, index := w.uplink(w.destination.Address)
		if key, guarded := w.v.State.Dataplane.HostEndpoints[index]; guarded {
			w.Hooks = append(w.Hooks, "from_workload "+e.Interface)
			h := w.v.Tables.HostEndpoints[key]
			specs = append(specs, hostSpecs(key, h, "egress", true, false)...)
			return w.conclude(dataplane.Question{Hook: dataplane.HookToNetwork, Ifindex: index, From: e.Ifindex}, out, specs)
		}
	case forward != dataplane.ForwardStack:
		via := x.NextHop.Ifindex
		if forward != dataplane.ForwardNode {
			via = desired.TunnelIndex
		}
		if key, guarded := w.v.State.Dataplane.HostEndpoints[via]; guarded {
			// to_network lets be what has been forwarded already: no untracked policy sees it.
			specs = append(specs, hostSpecs(key, w.v.Tables.HostEndpoints[key], "egress", true, true)...)
		}
	}
	return w.conclude(q, e.Interface, specs)
}

// fromNetwork is for what comes to this node, or to a workload on it, from elsewhere.
func (w *asking) fromNetwork() error {
	name, index := w.uplink(w.source.Address)
	if index == 0 {
		return questionError("this node has no interface to other hosts where %s could come from", w.source.String())
	}
	q := dataplane.Question{Hook: dataplane.HookFromNetwork, Ifindex: index}
	toWorkload := w.destination.Kind == nodeapi.EndWorkload
	via := index
	if toWorkload && w.source.Kind != nodeapi.EndExternal && w.encapsulated(w.source) {
		q.Tunnel, via = true, desired.TunnelIndex
	}
	var specs []spec
	if key, guarded := w.v.State.Dataplane.HostEndpoints[via]; guarded {
		specs = hostSpecs(key, w.v.Tables.HostEndpoints[key], "ingress", toWorkload, q.Tunnel)
	}
	if toWorkload {
		specs = append(specs, w.arriving()...)
	}
	return w.conclude(q, name, specs)
}

// arriving are the stages where a packet gets to a workload of this node.
func (w *asking) arriving() []spec {
	rules := w.v.Tables.Endpoints[w.destination.key]
	ingress := spec{key: w.destination.key, stage: stageNormal, direction: "ingress", id: rules.Ingress, staged: rules.StagedIngress}
	return append([]spec{ingress}, w.everywhere("egress")...)
}

// everywhere are the stages of the host endpoint on all interfaces, those of workloads
// among them, for what is forwarded.
func (w *asking) everywhere(direction string) []spec {
	key, guarded := w.v.State.Dataplane.HostEndpoints[desired.TunnelIndex]
	if !guarded {
		return nil
	}
	return hostSpecs(key, w.v.Tables.HostEndpoints[key], direction, true, true)
}

// fromHost is for what this node itself sends to elsewhere.
func (w *asking) fromHost() error {
	name, index := w.uplink(w.destination.Address)
	if index == 0 {
		return questionError("this node has no interface to other hosts that leads to %s", w.destination.String())
	}
	q := dataplane.Question{Hook: dataplane.HookToNetwork, Ifindex: index}
	via := index
	if w.destination.Kind == nodeapi.EndWorkload && w.encapsulated(w.destination) {
		q.Tunnel, via = true, desired.TunnelIndex
	}
	var specs []spec
	if key, guarded := w.v.State.Dataplane.HostEndpoints[via]; guarded {
		specs = hostSpecs(key, w.v.Tables.HostEndpoints[key], "egress", false, q.Tunnel)
	}
	return w.conclude(q, name, specs)
}

// route is where packets to an address go.
func (w *asking) route(a netip.Addr) (desired.Route, bool) {
	for bits := a.BitLen(); bits >= 0; bits-- {
		p, err := a.Prefix(bits)
		if err != nil {
			break
		}
		if r, ok := w.v.State.Dataplane.Routes[p]; ok {
			return r, true
		}
	}
	return desired.Route{}, false
}

// encapsulated says whether packets between this node and an end elsewhere are.
func (w *asking) encapsulated(end place) bool {
	if r, ok := w.route(end.Address); ok && r.Kind == desired.RouteWorkload {
		return r.Encap != desired.EncapNone
	}
	for _, r := range w.v.State.Dataplane.Routes {
		if r.Kind == desired.RouteWorkload && slices.Contains(end.addresses, r.Via) {
			return r.Encap != desired.EncapNone
		}
	}
	return false
}

// uplink is the interface to other hosts that an address is behind: the one that is in
// its subnet, or its node's, else the one with this node's address.
func (w *asking) uplink(a netip.Addr) (name string, index int) {
	if r, ok := w.route(a); ok && r.Kind == desired.RouteWorkload {
		a = r.Via
	}
	d := &w.v.State.Dataplane
	best := -1
	for _, i := range slices.Sorted(maps.Keys(d.Uplinks)) {
		l, score := d.Uplinks[i], 0
		for _, p := range l.Addresses {
			switch {
			case p.Contains(a):
				score = max(score, 2)
			case p.Addr() == d.Node.IPv4 || p.Addr() == d.Node.IPv6:
				score = max(score, 1)
			}
		}
		if score > best {
			best, name, index = score, l.Name, i
		}
	}
	return name, index
}

// remote says what is left to the nodes at the other ends.
func (w *asking) remote() {
	s, d := w.source, w.destination
	there := "Ask there: calicoctl why " + w.command()
	egress := !s.Local && s.Kind == nodeapi.EndWorkload
	ingress := !d.Local && d.Kind == nodeapi.EndWorkload && w.Verdict != nodeapi.VerdictDeny
	switch {
	case egress && ingress && s.Node == d.Node:
		w.note("The egress policy of %s and the ingress policy of %s are asked on their node %s. %s", s, d, s.Node, there)
	default:
		if egress {
			w.note("The egress policy of %s is asked on its node %s, before the packet gets here. %s", s, s.Node, there)
		}
		if ingress {
			w.note("The ingress policy of %s is asked on its node %s, when the packet gets there. %s", d, d.Node, there)
		}
	}
	for _, end := range []place{s, d} {
		if !end.Local && end.Kind == nodeapi.EndNode && w.Verdict != nodeapi.VerdictDeny {
			w.note("Node %s asks its own host endpoints, if it has any. %s", end.Name, there)
		}
	}
}

// command is the question once more, with addresses, which mean the same on each node.
func (w *asking) command() string {
	p := w.Packet
	text := fmt.Sprintf("%s %s --protocol %s", p.Source, p.Destination, p.Protocol)
	if p.DestinationPort != 0 {
		text += fmt.Sprintf(" --port %d", p.DestinationPort)
	}
	if p.SourcePort != 0 && !p.AnySourcePort {
		text += fmt.Sprintf(" --source-port %d", p.SourcePort)
	}
	if p.ICMPType != nil {
		text += fmt.Sprintf(" --icmp-type %d --icmp-code %d", *p.ICMPType, *p.ICMPCode)
	}
	return text
}
