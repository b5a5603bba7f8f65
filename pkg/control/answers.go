package control

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/dataplane"
	"calico-xdp/pkg/policy"
)

// Plane is what answers need of the dataplane.
type Plane interface {
	Explain(dataplane.Question) (dataplane.Explanation, error)
	Listen(dataplane.EventKinds) (*dataplane.Listener, error)
	Rules() ([]dataplane.RuleCount, error)
	Flows(func(dataplane.Flow) bool) error
	FlowOf(policy.Packet) (dataplane.Flow, bool, error)
	Tables() []dataplane.TableFill
}

// Answers say what becomes of packets, and why. They implement [nodeapi.Traffic]; their
// methods may be called from any goroutine, but Observe.
type Answers struct {
	node  string
	ask   func(context.Context, func(View) error) error // Controller.Ask
	plane Plane
	log   *slog.Logger
	names *names

	logs logRules

	mu      sync.Mutex
	links   map[int]string // names of interfaces
	linksAt time.Time      // when they were looked up
}

// NewAnswers returns answers about this node. ask is a controller's Ask.
func NewAnswers(node string, ask func(context.Context, func(View) error) error, plane Plane, log *slog.Logger) *Answers {
	return &Answers{node: node, ask: ask, plane: plane, log: log, names: newNames(node), links: make(map[int]string)}
}

// known makes sure that the names of addresses and interfaces are there.
func (a *Answers) known(ctx context.Context) error {
	return a.ask(ctx, func(v View) error {
		a.names.build(v)
		a.mu.Lock()
		defer a.mu.Unlock()
		clear(a.links)
		for i, l := range v.State.Dataplane.Uplinks {
			a.links[i] = l.Name
		}
		for _, e := range v.State.Dataplane.Endpoints {
			a.links[e.Ifindex] = e.Interface
		}
		a.linksAt = time.Now()
		return nil
	})
}

// link is the name of an interface. One that has come since the names were made sure of
// is looked up, if that is not done too often.
func (a *Answers) link(ctx context.Context, index int) string {
	a.mu.Lock()
	name, ok := a.links[index]
	old := time.Since(a.linksAt) > time.Second
	a.mu.Unlock()
	if !ok && old && a.known(ctx) == nil {
		a.mu.Lock()
		name, ok = a.links[index]
		a.mu.Unlock()
	}
	if !ok {
		return strconv.Itoa(index)
	}
	return name
}

// isICMP says whether a protocol has types and codes in place of ports.
func isICMP(protocol uint8) bool {
	n4, _ := api.ProtocolNumber("ICMP")
	n6, _ := api.ProtocolNumber("ICMPv6")
	return protocol == n4 || protocol == n6
}

// icmpOf takes type and code out of what stands for a destination port.
func icmpOf(protocol uint8, port uint16) (kind, code *int) {
	if !isICMP(protocol) {
		return nil, nil
	}
	t, c := int(port>>8), int(port&255)
	return &t, &c
}
