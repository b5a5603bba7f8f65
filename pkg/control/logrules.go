package control

import (
	"context"
	"slices"
	"sync"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/dataplane"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/policy"
)

// Lines of the log for packets that meet Log rules: so many at once, and then so many in
// a second. More would cost the lines that an operator needs.
const (
	logBurst = 200
	logRate  = 20
)

// logRules writes a line for each packet that meets a rule with the action Log, as long
// as there are such rules. Observe alone uses it.
type logRules struct {
	compiler *policy.Compiler
	result   uint64
	having   map[policy.RulesetID]bool // rulesets with such a rule
	listener *dataplane.Listener       // nil: there are none
	stop     context.CancelFunc
	done     sync.WaitGroup
}

// Observe takes up what a round of the loop has brought, before the kernel gets it.
func (a *Answers) Observe(changes []api.Change, want *desired.State) {
	a.names.apply(changes)
	l := &a.logs
	if want.Dataplane.Policy != nil {
		l.follow(want.Dataplane.Policy)
	}
	switch some := l.some(want.Dataplane.Policy); {
	case some && l.listener == nil:
		listener, err := a.plane.Listen(dataplane.EventLog)
		if err != nil {
			a.log.Error("packets that meet Log rules will not be logged; will try again", "error", err)
			return
		}
		ctx, stop := context.WithCancel(context.Background())
		l.listener, l.stop = listener, stop
		l.done.Go(func() { a.logPackets(ctx, listener) })
	case !some:
		a.stopLogging()
	}
}

// Close ends what Observe has begun.
func (a *Answers) Close() { a.stopLogging() }

func (a *Answers) stopLogging() {
	l := &a.logs
	if l.listener == nil {
		return
	}
	if err := l.listener.Close(); err != nil {
		a.log.Error("events stay on", "error", err)
	}
	l.stop()
	l.done.Wait()
	l.listener = nil
}

// follow notes which rulesets have Log rules.
func (l *logRules) follow(t *policy.Tables) {
	look := func(id policy.RulesetID) {
		delete(l.having, id)
		if s := t.Rulesets[id]; s != nil {
			for _, p := range s.Parts {
				if slices.ContainsFunc(p.Rules, func(x policy.RunRule) bool { return x.Action == policy.Log }) {
					l.having[id] = true
					return
				}
			}
		}
	}
	switch {
	case t.Compiler != nil && t.Compiler == l.compiler && t.Result == l.result:
		return
	case t.Compiler != nil && t.Compiler == l.compiler && t.Result == l.result+1:
		for _, id := range t.Changes.Rulesets {
			look(id)
		}
	default:
		l.having = make(map[policy.RulesetID]bool)
		for id := range t.Rulesets {
			look(id)
		}
	}
	l.compiler, l.result = t.Compiler, t.Result
}

// some says whether an endpoint has such a ruleset: the tables go on having those for a
// while that none has any more.
func (l *logRules) some(t *policy.Tables) bool {
	if len(l.having) == 0 {
		return false
	}
	for _, r := range t.Endpoints {
		if l.having[r.Egress] || l.having[r.Ingress] {
			return true
		}
	}
	for _, h := range t.HostEndpoints {
		for _, r := range []policy.Rulesets{h.Untracked, h.Forward, h.Normal, {Ingress: h.PreDNAT}} {
			if l.having[r.Egress] || l.having[r.Ingress] {
				return true
			}
		}
	}
	return false
}

// logPackets writes a line for each event.
func (a *Answers) logPackets(ctx context.Context, l *dataplane.Listener) {
	a.names.hold()
	defer a.names.letGo()
	if err := a.known(ctx); err != nil {
		a.log.Warn("packets that meet Log rules are logged without names", "error", err)
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	left, withheld, lost := logBurst, uint64(0), uint64(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			left = min(left+logRate, logBurst)
			if now := l.Lost(); now > lost {
				withheld, lost = withheld+now-lost, now
			}
			if withheld > 0 {
				a.log.Warn("more packets have met Log rules than are logged", "packets", withheld)
				withheld = 0
			}
		case raw := <-l.Events:
			if left == 0 {
				withheld++
				continue
			}
			left--
			e := a.wireEvent(ctx, raw)
			rule := "unknown"
			if e.Rule != nil {
				rule = e.Rule.String()
			}
			fields := []any{
				"rule", rule, "verdict", string(e.Verdict), "protocol", e.Protocol,
				"source", endText(e.Source), "destination", endText(e.Destination),
			}
			if e.ICMPType != nil {
				fields = append(fields, "type", *e.ICMPType, "code", *e.ICMPCode)
			}
			if e.Reason != "" {
				fields = append(fields, "reason", e.Reason)
			}
			if n := len(e.Rules); n > 0 {
				fields = append(fields, "by", e.Rules[n-1].String())
			}
			a.log.Info("packet met a Log rule", append(fields, "interface", e.Interface)...)
		}
	}
}
