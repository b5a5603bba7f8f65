package nodeapi

import (
	"context"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Traffic is what the daemon knows of packets and of what becomes of them.
type Traffic interface {
	// Why says what would become of a packet. Nothing is sent, remembered or counted.
	// The error is a *QuestionError where nobody can answer.
	Why(ctx context.Context, q WhyQuestion) (Why, error)
	Rules(ctx context.Context, f RuleFilter) ([]RuleCount, error)
	// Flows hands out the flows in no particular order until yield returns false.
	Flows(ctx context.Context, f FlowFilter, yield func(Flow) bool) error
	// Events hands out what happens from now on, until yield returns false or ctx
	// ends.
	Events(ctx context.Context, f EventFilter, yield func(Event) bool) error
	Tables(ctx context.Context) ([]Table, error)
}

// QuestionError says that a question cannot be answered as it was asked.
type QuestionError struct{ Reason string }

func (e *QuestionError) Error() string { return e.Reason }

// RuleFilter says which rules are wanted; the zero value all.
type RuleFilter struct {
	Endpoint string // as in WhyQuestion
	Policy   string // name, namespace/name, or kind/[namespace/]name
}

// RuleCount is how many packets a rule of this node has decided about.
type RuleCount struct {
	Rule
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// FlowFilter says which flows are wanted; the zero value all.
type FlowFilter struct {
	Endpoint string // as in WhyQuestion
	Policy   string
	Denied   bool // only flows that were cut
	Protocol string
	Port     int // of the destination
	Limit    int // 0: none
}

// EventKind is a kind of event.
type EventKind string

const (
	EventDrop   EventKind = "drop"
	EventFlow   EventKind = "flow"   // a flow was judged, for the first time or again
	EventLog    EventKind = "log"    // a Log rule matched
	EventStaged EventKind = "staged" // staged policies would have judged otherwise
	EventLost   EventKind = "lost"   // events that came too fast

	// EventListening is the first one of each stream: from here on nothing is missed
	// that is not counted as lost.
	EventListening EventKind = "listening"
)

// EventFilter says which events are wanted.
type EventFilter struct {
	Kinds    []EventKind // none: all
	Endpoint string      // as in WhyQuestion: only events with it at one end
	Policy   string      // only events that name it
}

// Event is something that has happened to a packet.
type Event struct {
	Kind    EventKind `json:"kind"`
	Time    time.Time `json:"time"`
	Verdict Verdict   `json:"verdict,omitempty"` // as far as it was known then
	Reason  string    `json:"reason,omitempty"`  // of a drop, as in calico_xdp_packets_total
	// Rule is what the kind speaks of; absent for a drop that no rule has decided.
	Rule        *Rule  `json:"rule,omitempty"`
	Rules       []Rule `json:"rules,omitempty"` // that judged the flow
	Protocol    string `json:"protocol,omitempty"`
	Source      *End   `json:"source,omitempty"`
	Destination *End   `json:"destination,omitempty"`
	ICMPType    *int   `json:"icmpType,omitempty"`
	ICMPCode    *int   `json:"icmpCode,omitempty"`
	Length      int    `json:"length,omitempty"` // bytes, with the Ethernet header
	Hook        string `json:"hook,omitempty"`
	Interface   string `json:"interface,omitempty"`
	Lost        uint64 `json:"lost,omitempty"` // how many, since the last one of this kind
}

// Table is how full one of the kernel's tables is.
type Table struct {
	Name     string `json:"name"`
	Entries  int    `json:"entries"`
	Capacity int    `json:"capacity"`
	// Largest is what it can grow to; 0 if it does not.
	Largest int    `json:"largest,omitempty"`
	Problem string `json:"problem,omitempty"`
}

// Why asks what would become of a packet.
func (c *Client) Why(ctx context.Context, q WhyQuestion) (Why, error) {
	var w Why
	return w, c.call(ctx, http.MethodPost, "/v1/why", q, &w)
}

// Rules returns the counters of this node's rules, in the order in which they are
// asked.
func (c *Client) Rules(ctx context.Context, f RuleFilter) ([]RuleCount, error) {
	var r []RuleCount
	return r, c.call(ctx, http.MethodGet, "/v1/rules?"+f.values().Encode(), nil, &r)
}

// Tables returns how full the kernel's tables are.
func (c *Client) Tables(ctx context.Context) ([]Table, error) {
	var t []Table
	return t, c.call(ctx, http.MethodGet, "/v1/tables", nil, &t)
}

// Flows returns the node's flows.
func (c *Client) Flows(ctx context.Context, f FlowFilter) iter.Seq2[Flow, error] {
	return stream[Flow](ctx, c, "/v1/flows?"+f.values().Encode())
}

// Events returns what happens on the node until ctx ends. It goes on for as long as
// someone takes the events; the daemon counts those that come faster.
func (c *Client) Events(ctx context.Context, f EventFilter) iter.Seq2[Event, error] {
	return stream[Event](ctx, c, "/v1/events?"+f.values().Encode())
}

func (f RuleFilter) values() url.Values {
	return url.Values{"endpoint": {f.Endpoint}, "policy": {f.Policy}}
}

func ruleFilter(v url.Values) RuleFilter {
	return RuleFilter{Endpoint: v.Get("endpoint"), Policy: v.Get("policy")}
}

func (f FlowFilter) values() url.Values {
	return url.Values{
		"endpoint": {f.Endpoint}, "policy": {f.Policy}, "denied": {strconv.FormatBool(f.Denied)},
		"protocol": {f.Protocol}, "port": {strconv.Itoa(f.Port)}, "limit": {strconv.Itoa(f.Limit)},
	}
}

func flowFilter(v url.Values) (f FlowFilter, err error) {
	f = FlowFilter{Endpoint: v.Get("endpoint"), Policy: v.Get("policy"), Denied: v.Get("denied") == "true", Protocol: v.Get("protocol")}
	for name, to := range map[string]*int{"port": &f.Port, "limit": &f.Limit} {
		if text := v.Get(name); text != "" {
			if *to, err = strconv.Atoi(text); err != nil || *to < 0 {
				return f, &QuestionError{fmt.Sprintf("%s: %q is not a number from 0", name, text)}
			}
		}
	}
	return f, nil
}

func (f EventFilter) values() url.Values {
	v := url.Values{"endpoint": {f.Endpoint}, "policy": {f.Policy}}
	for _, k := range f.Kinds {
		v.Add("kind", string(k))
	}
	return v
}

func eventFilter(v url.Values) EventFilter {
	f := EventFilter{Endpoint: v.Get("endpoint"), Policy: v.Get("policy")}
	for _, k := range v["kind"] {
		f.Kinds = append(f.Kinds, EventKind(k))
	}
	return f
}
