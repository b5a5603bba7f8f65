package control

import (
	"fmt"

	"calico-xdp/pkg/control/dataplane"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/nodeapi"
)

// explainDrop says in words why the packet is dropped.
func (w *asking) explainDrop(x dataplane.Explanation) string {
	if isPolicyDrop(x.Reason) {
		for _, s := range w.Stages {
			if s.Reached && s.Verdict == nodeapi.VerdictDeny && !s.Failsafe {
				return s.Explanation
			}
		}
	}
	source, destination := w.source.String(), w.destination.String()
	switch x.Reason {
	case "drop_egress_policy":
		return fmt.Sprintf("the egress policy of %s denies it", source)
	case "drop_ingress_policy":
		return fmt.Sprintf("the ingress policy of %s denies it", destination)
	case "drop_host_policy":
		return "the policy of a host endpoint denies it"
	case "drop_untracked":
		return "an untracked policy of a host endpoint denies it"
	case "drop_to_host":
		return "what workloads send to their own host is dropped: defaultEndpointToHostAction of FelixConfiguration is Drop"
	case "drop_no_endpoint":
		return fmt.Sprintf("%s is in a block of this node, and no workload endpoint has it", w.packet.Destination)
	case "drop_spoofed":
		return fmt.Sprintf("%s is not an address that %s may send from", w.packet.Source, source)
	case "drop_martian":
		return fmt.Sprintf("%s lives on this node: it cannot come from the network", w.packet.Source)
	case "drop_wrong_node":
		return fmt.Sprintf("only the node of %s may send its packets encapsulated", w.packet.Source)
	case "drop_no_next_hop":
		r, _ := w.route(w.packet.Destination)
		if !w.destination.Local && r.Via.IsValid() {
			return fmt.Sprintf("the host has no route to %s, the node of %s", r.Via, destination)
		}
		if r, _ := w.route(w.packet.Source); r.Via.IsValid() {
			return fmt.Sprintf("the host has no route to %s, the node of %s", r.Via, source)
		}
		return "the host has no route to the other node"
	case "drop_multicast":
		return "multicast and broadcast do not leave a workload"
	case "drop_unsupported":
		return "IPv6 extension headers hide what policy is about"
	}
	return "it ends as " + x.Reason
}

// explainPass says in words that the packet is allowed, and by what.
func (w *asking) explainPass() string {
	var last *nodeapi.Stage
	for i := range w.Stages {
		s := &w.Stages[i]
		switch {
		case s.Failsafe:
			return fmt.Sprintf("allowed: it is for a failsafe port, which the policy of %s does not close", s.Endpoint)
		case s.Reached && s.Verdict == nodeapi.VerdictAllow:
			last = s
		}
	}
	if last == nil {
		return "allowed: no policy of this node is about it"
	}
	return last.Explanation
}

// path says how the packet ends, and which way it takes.
func (w *asking) path(q dataplane.Question, x dataplane.Explanation) (reason, text string) {
	if x.Reason == "pass_untracked" || x.Reason == "pass_neighbor" {
		return x.Reason, "to the host's stack, without a flow"
	}
	to := w.destination.String()
	node := func() string {
		name := x.NextHop.Node.String()
		if p, ok := w.v.State.Dataplane.Peers[x.NextHop.Node]; ok {
			name = fmt.Sprintf("node %s (%s)", p.Name, x.NextHop.Node)
		}
		if l, ok := w.v.State.Dataplane.Uplinks[x.NextHop.Ifindex]; ok {
			name += " through " + l.Name
		}
		return name
	}
	switch {
	case x.Local[1] && x.Local[0]:
		return "pass_to_workload", fmt.Sprintf("local, straight into interface %s of %s", w.destination.Interface, to)
	case x.Local[1] && q.Hook == dataplane.HookToWorkload:
		return "pass_to_workload", fmt.Sprintf("local, through the host's stack into interface %s of %s", w.destination.Interface, to)
	case x.Local[1]:
		how := ""
		if q.Tunnel {
			how = "out of the tunnel "
		}
		return "pass_to_workload", fmt.Sprintf("%sinto interface %s of %s", how, w.destination.Interface, to)
	case q.Hook == dataplane.HookFromNetwork:
		return "pass_to_host", "to the host itself"
	case q.Hook == dataplane.HookToNetwork && q.From == 0 && q.Tunnel:
		return w.encapsulation()
	case q.Hook == dataplane.HookToNetwork:
		return "pass_to_stack", "through the host's stack, out of " + w.linkName(q.Ifindex)
	}
	switch x.NextHop.Forward {
	case dataplane.ForwardHost:
		return "pass_to_host", "to the host itself"
	case dataplane.ForwardNode:
		return "pass_to_node", "plain to " + node()
	case dataplane.ForwardIPIP:
		return "pass_ipip", "in IPIP to " + node()
	case dataplane.ForwardVXLAN:
		return "pass_vxlan", "in VXLAN to " + node()
	}
	if x.Unjudged {
		return "pass_to_stack", "forwarded by the host's stack as the service's rules have it; egress policy denies the service's address, and is asked where they lead"
	}
	if x.Masqueraded {
		return "pass_to_stack", "forwarded by the host's stack, with an address of the host as source (natOutgoing)"
	}
	return "pass_to_stack", "forwarded by the host's stack"
}

// encapsulation is the way of what the host itself sends to another node's workloads.
func (w *asking) encapsulation() (reason, text string) {
	r, _ := w.route(w.packet.Destination)
	name := r.Via.String()
	if p, ok := w.v.State.Dataplane.Peers[r.Via]; ok {
		name = fmt.Sprintf("node %s (%s)", p.Name, r.Via)
	}
	if r.Encap == desired.EncapVXLAN {
		return "pass_vxlan", "in VXLAN to " + name
	}
	return "pass_ipip", "in IPIP to " + name
}

func (w *asking) linkName(index int) string {
	if l, ok := w.v.State.Dataplane.Uplinks[index]; ok {
		return l.Name
	}
	return fmt.Sprint("interface ", index)
}
