package nodeapi

import (
	"fmt"
	"net/netip"
	"strings"
)

// WhyQuestion asks what would become of the first packet of a flow.
type WhyQuestion struct {
	// Source and Destination are addresses or names: of a workload endpoint, pod,
	// workload, host endpoint or node, with or without namespace ("prod/web") or kind
	// ("node/a"), or "host" for the node that answers.
	Source      string `json:"source"`
	Destination string `json:"destination"`
	Protocol    string `json:"protocol,omitempty"` // name or number; empty: TCP
	Port        int    `json:"port,omitempty"`     // of the destination
	SourcePort  int    `json:"sourcePort,omitempty"`
	ICMPType    *int   `json:"icmpType,omitempty"` // default: an echo request
	ICMPCode    *int   `json:"icmpCode,omitempty"`
}

// Verdict is what becomes of a packet.
type Verdict string

const (
	VerdictAllow   Verdict = "allow"
	VerdictDeny    Verdict = "deny"
	VerdictUnknown Verdict = "unknown" // not for this node to say
)

// Why is the answer: what this node does with the packet, and for what reason.
type Why struct {
	Node        string  `json:"node"` // that answers
	Packet      Packet  `json:"packet"`
	Source      End     `json:"source"`
	Destination End     `json:"destination"`
	Verdict     Verdict `json:"verdict"`
	// Reason is how the packet ends, as in calico_xdp_packets_total, and Explanation
	// the same in words.
	Reason      string `json:"reason,omitempty"`
	Explanation string `json:"explanation"`
	Path        string `json:"path,omitempty"` // the way it takes, if it is allowed
	// Hooks are where the packet was looked at: program and interface.
	Hooks []string `json:"hooks,omitempty"`
	// Stages are the policies that are asked, in the order in which they are.
	Stages []Stage `json:"stages"`
	// Flows are those of the same addresses and ports that the node knows already.
	Flows []Flow   `json:"flows,omitempty"`
	Notes []string `json:"notes,omitempty"`
}

// Packet is a packet's headers as far as policy looks at them.
type Packet struct {
	Protocol        string     `json:"protocol"` // as in rules: "TCP", or a number
	Source          netip.Addr `json:"source"`
	Destination     netip.Addr `json:"destination"`
	SourcePort      int        `json:"sourcePort,omitempty"`
	DestinationPort int        `json:"destinationPort,omitempty"`
	ICMPType        *int       `json:"icmpType,omitempty"`
	ICMPCode        *int       `json:"icmpCode,omitempty"`
	// AnySourcePort says that the source port was not given: any one is as good.
	AnySourcePort bool `json:"anySourcePort,omitempty"`
}

func (p Packet) String() string {
	side := func(a netip.Addr, port int) string {
		if port == 0 {
			return a.String()
		}
		return netip.AddrPortFrom(a, uint16(port)).String()
	}
	text := fmt.Sprintf("%s %s -> %s", p.Protocol, side(p.Source, p.SourcePort), side(p.Destination, p.DestinationPort))
	if p.ICMPType != nil {
		text += fmt.Sprintf(" type %d", *p.ICMPType)
	}
	if p.ICMPCode != nil {
		text += fmt.Sprintf(" code %d", *p.ICMPCode)
	}
	return text
}

// EndKind is what is at an end of a flow.
type EndKind string

const (
	EndWorkload EndKind = "workload"
	EndHost     EndKind = "host"     // the node that answers
	EndNode     EndKind = "node"     // another node
	EndExternal EndKind = "external" // no endpoint or node of the cluster
)

// End is one end of a flow.
type End struct {
	Kind      EndKind    `json:"kind,omitempty"`
	Namespace string     `json:"namespace,omitempty"`
	Name      string     `json:"name,omitempty"` // of the workload endpoint or node
	Address   netip.Addr `json:"address"`
	Port      int        `json:"port,omitempty"`
	Node      string     `json:"node,omitempty"` // where it lives
	Interface string     `json:"interface,omitempty"`
	Local     bool       `json:"local,omitempty"` // on the node that answers
}

// String is the end's name, or its address if it has none.
func (e End) String() string {
	switch {
	case e.Name == "":
		return e.Address.String()
	case e.Namespace != "":
		return e.Namespace + "/" + e.Name
	case e.Kind == EndHost || e.Kind == EndNode:
		return "node " + e.Name
	}
	return e.Name
}

// Stage is one policy that a packet is put to: that of one end, in one direction.
type Stage struct {
	// Endpoint is whose policy it is: "WorkloadEndpoint(default/web)".
	Endpoint  string `json:"endpoint"`
	Stage     string `json:"stage"`     // "normal"; of host endpoints also "untracked", "preDNAT", "forward"
	Direction string `json:"direction"` // "egress", "ingress"
	// Reached is false if the packet has been dropped before: then the rest is what
	// this policy would say.
	Reached bool `json:"reached"`
	// Verdict is empty if the policy leaves it to the next stage.
	Verdict Verdict `json:"verdict,omitempty"`
	// Failsafe says that the policy denies what a failsafe port lets through.
	Failsafe bool `json:"failsafe,omitempty"`
	// Rule decides. That of an implicit drop has no index.
	Rule *Rule `json:"rule,omitempty"`
	// Explanation says the same in words.
	Explanation string `json:"explanation,omitempty"`
	Tiers       []Tier `json:"tiers,omitempty"`
	Logged      []Rule `json:"logged,omitempty"` // the Log rules that match
	// Staged is what staged policies would make of it, where that is something else.
	Staged *StagedVerdict `json:"staged,omitempty"`
	// Nearest is, for a drop, what would have to be otherwise for a rule to allow the
	// packet; the best first.
	Nearest []NearMiss `json:"nearest,omitempty"`
}

// Tier is one tier, or one of the endpoint's profiles, on a packet's way through its
// policy.
type Tier struct {
	Name string `json:"name,omitempty"` // empty for a profile
	// Policies are those that select the endpoint, in the order in which they are asked.
	Policies []string `json:"policies"`
	// Matched says that a rule of theirs has made the outcome. If none has it is the
	// tier's default action, or empty where there is none.
	Matched bool   `json:"matched"`
	Outcome string `json:"outcome,omitempty"` // "Allow", "Deny", "Pass"
	Rule    *Rule  `json:"rule,omitempty"`
}

// StagedVerdict is what would be if the staged policies were enforced.
type StagedVerdict struct {
	Verdict Verdict `json:"verdict"`
	Rule    Rule    `json:"rule"`
}

// NearMiss is a rule that would allow the packet if Missed were otherwise.
type NearMiss struct {
	Rule   Rule   `json:"rule"`
	Missed []Miss `json:"missed"`
}

// Miss is one part of a rule that does not match.
type Miss struct {
	Field string `json:"field"` // "destination.ports"
	Rule  string `json:"rule"`  // what the rule says: "443"
	Have  string `json:"have"`  // what the packet has: "80"
	Text  string `json:"text"`  // "destination.ports (443) contained 80"
}

// Rule is one rule, as verdicts and counters name it.
type Rule struct {
	// ID is tier|kind|[namespace/]name|direction|index: one text for one rule.
	ID        string `json:"id"`
	Tier      string `json:"tier,omitempty"`
	Kind      string `json:"kind,omitempty"` // empty: the end of a tier, or of all policy
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	Direction string `json:"direction"`
	// Index is the rule's number in spec.ingress or spec.egress, from 0; -1 for the end
	// of a tier, or a policy that is closed as a whole.
	Index  int    `json:"index"`
	Action string `json:"action,omitempty"`
	Text   string `json:"text,omitempty"` // as written, in one line
	Staged bool   `json:"staged,omitempty"`
}

// Policy is the policy's or profile's name with its namespace.
func (r Rule) Policy() string {
	if r.Namespace == "" {
		return r.Name
	}
	return r.Namespace + "/" + r.Name
}

// String names the rule for people: "NetworkPolicy prod/web ingress[1]".
func (r Rule) String() string {
	var text string
	switch {
	case r.Kind == "" && r.Tier == "":
		text = "end of all " + r.Direction + " policy"
	case r.Kind == "":
		text = fmt.Sprintf("end of tier %s (%s)", r.Tier, r.Direction)
	case r.Index < 0:
		text = fmt.Sprintf("%s %s (%s, closed as a whole)", r.Kind, r.Policy(), r.Direction)
	default:
		text = fmt.Sprintf("%s %s %s[%d]", r.Kind, r.Policy(), r.Direction, r.Index)
	}
	if r.Staged && !strings.HasPrefix(r.Kind, "Staged") {
		text += " with the staged policies"
	}
	return text
}

// Flow is one flow that the node's tables hold.
type Flow struct {
	Protocol    string  `json:"protocol"`
	Source      End     `json:"source"` // who opened it
	Destination End     `json:"destination"`
	ICMPType    *int    `json:"icmpType,omitempty"` // of the first packet
	ICMPCode    *int    `json:"icmpCode,omitempty"`
	State       string  `json:"state"` // "new", "answered", "established", "closing"
	Verdict     Verdict `json:"verdict"`
	Reason      string  `json:"reason,omitempty"`
	Rules       []Rule  `json:"rules,omitempty"` // that judged it
	Path        string  `json:"path,omitempty"`
	// Outdated says that policy, or something else that it was judged by, has changed
	// since: its next packet has it judged again.
	Outdated bool    `json:"outdated,omitempty"`
	Idle     float64 `json:"idleSeconds"` // since its last packet
}
