package control

import (
	"fmt"
	"slices"
	"strings"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/dataplane"
	"calico-xdp/pkg/nodeapi"
	"calico-xdp/pkg/policy"
)

// The stages of an endpoint's policy. Workloads have the normal one only.
const (
	stageNormal    = "normal"
	stageForward   = "forward"
	stagePreDNAT   = "preDNAT"
	stageUntracked = "untracked"
)

// spec is a ruleset that a packet is put to.
type spec struct {
	key              api.Key
	stage, direction string
	id, staged       policy.RulesetID
}

// hostSpecs are the stages of a host endpoint, in order: for what the host forwards, or
// for its own. There is no untracked policy in tunnels.
func hostSpecs(key api.Key, h policy.HostRulesets, direction string, forwarded, tunnel bool) (out []spec) {
	add := func(stage string, id, staged policy.RulesetID) {
		if id != 0 || staged != 0 || stage == stageNormal {
			out = append(out, spec{key, stage, direction, id, staged})
		}
	}
	of := func(r policy.Rulesets) (id, staged policy.RulesetID) {
		if direction == "egress" {
			return r.Egress, r.StagedEgress
		}
		return r.Ingress, r.StagedIngress
	}
	if id, staged := of(h.Untracked); !tunnel {
		add(stageUntracked, id, staged)
	}
	if direction == "ingress" {
		add(stagePreDNAT, h.PreDNAT, h.StagedPreDNAT)
	}
	stage, rules := stageNormal, h.Normal
	if forwarded {
		stage, rules = stageForward, h.Forward
	}
	id, staged := of(rules)
	add(stage, id, staged)
	return out
}

// conclude asks the programs, and says what they do and for what reason.
func (w *asking) conclude(q dataplane.Question, link string, specs []spec) error {
	q.Packet = w.packet
	x, err := w.plane.Explain(q)
	if err != nil {
		return err
	}
	hook := map[dataplane.Hook]string{
		dataplane.HookFromWorkload: "from_workload", dataplane.HookToWorkload: "to_workload",
		dataplane.HookFromNetwork: "from_network", dataplane.HookToNetwork: "to_network",
	}[q.Hook]
	if q.Tunnel {
		link += " (tunnel)"
	}
	w.Hooks = append(w.Hooks, hook+" "+link)
	w.Verdict, w.Reason = nodeapi.VerdictAllow, x.Reason
	if x.Dropped {
		w.Verdict = nodeapi.VerdictDeny
	}
	w.addStages(specs, x)
	w.checkRules(x)
	if x.Dropped {
		w.Explanation = w.explainDrop(x)
	} else {
		w.Reason, w.Path = w.path(q, x)
		w.Explanation = w.explainPass()
	}
	w.remote()
	w.addProblems()
	return nil
}

// policyDrops are the reasons that policy has.
func isPolicyDrop(reason string) bool {
	return slices.Contains([]string{"drop_egress_policy", "drop_ingress_policy", "drop_host_policy", "drop_untracked"}, reason)
}

// addStages goes through the rulesets as the programs do.
func (w *asking) addStages(specs []spec, x dataplane.Explanation) {
	reached := isPolicyDrop(x.Reason) || !x.Dropped || len(x.Rules) > 0
	spared := make(map[string]bool) // host endpoints whose later stages are not asked
	for _, s := range specs {
		whose := s.key.String() + s.direction
		if spared[whose] {
			continue
		}
		st := w.stage(s)
		if s.id == 0 && s.stage != stageNormal && st.Staged == nil {
			continue // nothing is asked there, and nothing would be otherwise
		}
		st.Reached = reached
		isHost := s.key.Kind == api.KindHostEndpoint
		hostDrop := x.Reason == "drop_host_policy" || x.Reason == "drop_untracked"
		switch {
		case st.Verdict == nodeapi.VerdictDeny && isHost && s.stage != stageForward && reached && !hostDrop:
			st.Failsafe = true
			spared[whose] = s.stage == stageUntracked
		case st.Verdict == nodeapi.VerdictDeny:
			reached = false
		case st.Verdict == nodeapi.VerdictAllow && (s.stage == stageUntracked || s.stage == stagePreDNAT):
			spared[whose] = true
		}
		w.Stages = append(w.Stages, st)
	}
}

// stage is what one ruleset says.
func (w *asking) stage(s spec) nodeapi.Stage {
	out := nodeapi.Stage{Endpoint: s.key.String(), Stage: s.stage, Direction: s.direction}
	store := w.v.Resources
	if s.id != 0 {
		e := w.v.Tables.Explain(s.id, w.packet)
		out.Verdict = verdictOf(e.Action)
		if e.Rule != (policy.RuleID{}) {
			rule := withText(store, e.Rule, e.Action)
			out.Rule = &rule
		}
		for _, p := range e.Path {
			t := nodeapi.Tier{Name: p.Tier, Policies: []string{}, Matched: p.Matched, Outcome: actionName(p.Action)}
			for _, key := range p.Policies {
				t.Policies = append(t.Policies, objectName(key))
			}
			if p.Rule != (policy.RuleID{}) {
				rule := withText(store, p.Rule, p.Action)
				t.Rule = &rule
			}
			out.Tiers = append(out.Tiers, t)
		}
		for _, r := range e.Met {
			if r.Action == policy.Log {
				out.Logged = append(out.Logged, withText(store, r.ID, r.Action))
			}
		}
		for _, n := range e.Nearest {
			near := nodeapi.NearMiss{Rule: withText(store, n.Rule, policy.Allow)}
			for _, f := range n.Fields {
				near.Missed = append(near.Missed, nodeapi.Miss{Field: f.Field, Rule: f.Want, Have: f.Got, Text: missText(f)})
			}
			out.Nearest = append(out.Nearest, near)
		}
		out.Explanation = w.explainStage(s, e)
		w.noteLogOnly(s, e)
	} else if s.stage == stageNormal {
		out.Verdict = nodeapi.VerdictDeny
		out.Explanation = fmt.Sprintf("%s has no policy in place", s.key)
	}
	if s.staged != 0 {
		action, id := w.v.Tables.Verdict(s.staged, w.packet)
		if v := verdictOf(action); v != out.Verdict {
			id.Staged = true
			out.Staged = &nodeapi.StagedVerdict{Verdict: v, Rule: withText(store, id, action)}
		}
	}
	return out
}

func verdictOf(a policy.Action) nodeapi.Verdict {
	switch a {
	case policy.Allow:
		return nodeapi.VerdictAllow
	case policy.Deny:
		return nodeapi.VerdictDeny
	}
	return ""
}

// objectName names a policy or profile: "NetworkPolicy prod/web".
func objectName(key api.Key) string {
	if key.Namespace == "" {
		return key.Kind + " " + key.Name
	}
	return key.Kind + " " + key.Namespace + "/" + key.Name
}

// missText ends a sentence that begins "it would be allowed if".
func missText(f policy.FieldMiss) string {
	_, last, _ := strings.Cut(f.Field, ".")
	if want, not := strings.CutPrefix(f.Want, "not "); not {
		return fmt.Sprintf("%s (%s) did not match %s", f.Field, want, f.Got)
	}
	switch last {
	case "ports", "nets":
		return fmt.Sprintf("%s (%s) contained %s", f.Field, f.Want, f.Got)
	case "selector", "namespaceSelector", "serviceAccounts", "notNets":
		return fmt.Sprintf("%s (%s) matched %s", f.Field, f.Want, f.Got)
	}
	return fmt.Sprintf("%s (%s) were %s", f.Field, f.Want, f.Got)
}

// explainStage says in words why a ruleset decides as it does.
func (w *asking) explainStage(s spec, e policy.Explanation) string {
	whose := w.whose(s)
	id := e.Rule
	did := map[policy.Action]string{policy.Allow: "allowed", policy.Deny: "denied", policy.Continue: "left to the next stage"}[e.Action]
	switch {
	case id.Policy != (api.Key{}) && id.Index >= 0:
		text := fmt.Sprintf("%s by %s", did, wireRule(id, e.Action))
		if e.Action == policy.Deny && len(e.Faults) > 0 {
			text += ", which cannot be read and so denies all that it may mean: " + joinErrors(e.Faults)
		}
		return text
	case id.Policy.Kind == api.KindProfile && len(e.Faults) > 0:
		return fmt.Sprintf("denied: %s is closed: %s", objectName(id.Policy), joinErrors(e.Faults))
	case id.Policy != (api.Key{}):
		return fmt.Sprintf("denied: %s is closed as a whole: %s", objectName(id.Policy), joinErrors(e.Faults))
	case len(e.Faults) > 0:
		return "denied: " + joinErrors(e.Faults)
	case id.Tier != "":
		for _, p := range e.Path {
			if p.Tier == id.Tier {
				return fmt.Sprintf("%s at the end of tier %s: %s", did, id.Tier, selecting(p, whose, s.direction))
			}
		}
	}
	switch {
	case e.Action == policy.Continue:
		return "left to the next stage: no policy matched"
	case e.Action == policy.Allow && s.stage == stageForward:
		return "allowed: what no policy for forwarded traffic denies goes on"
	}
	tiers, profiles := 0, 0
	for _, p := range e.Path {
		if p.Tier == "" {
			profiles++
		} else {
			tiers++
		}
	}
	var before string
	switch {
	case tiers == 0:
		before = fmt.Sprintf("no policy selects %s for %s", whose, s.direction)
	default:
		before = fmt.Sprintf("all tiers passed on what they have for %s", whose)
	}
	switch profiles {
	case 0:
		return fmt.Sprintf("%s: %s, and it has no profile", did, before)
	case 1:
		return fmt.Sprintf("%s: %s, and no rule of its profile matched", did, before)
	}
	return fmt.Sprintf("%s: %s, and no rule of its %d profiles matched", did, before, profiles)
}

// selecting says that policies select somebody and have nothing for the packet.
func selecting(p policy.Passage, whose, direction string) string {
	var names []string
	for _, key := range p.Policies {
		names = append(names, objectName(key))
	}
	if len(names) == 1 {
		return fmt.Sprintf("%s selects %s for %s, and no rule of it matches", names[0], whose, direction)
	}
	list := ""
	if len(names) <= 3 {
		list = " (" + strings.Join(names, ", ") + ")"
	}
	return fmt.Sprintf("%d policies%s select %s for %s, and no rule of theirs matches", len(names), list, whose, direction)
}

func (w *asking) whose(s spec) string {
	if s.key.Namespace != "" {
		return s.key.Namespace + "/" + s.key.Name
	}
	return s.key.Name
}

func joinErrors(errs []error) string {
	var texts []string
	for _, err := range errs {
		texts = append(texts, err.Error())
	}
	return strings.Join(texts, "; ")
}

// noteLogOnly tells of the trap that a policy is which only logs: it isolates.
func (w *asking) noteLogOnly(s spec, e policy.Explanation) {
	if e.Action != policy.Deny || e.Rule.Tier == "" || e.Rule.Policy != (api.Key{}) {
		return
	}
	for _, p := range e.Path {
		if p.Tier != e.Rule.Tier {
			continue
		}
		for _, key := range p.Policies {
			object := w.v.Resources.Get(key)
			if object == nil {
				continue
			}
			r, ok := api.PolicyOf(object)
			if !ok {
				continue
			}
			rules := pick(s.direction, r.Ingress, r.Egress)
			if len(rules) > 0 && !slices.ContainsFunc(rules, func(r api.Rule) bool { return r.Action != "Log" }) {
				w.note("%s has only Log rules for %s: it selects %s and allows nothing, so the end of the tier denies what it logs.",
					objectName(key), s.direction, w.whose(s))
			}
		}
	}
}

// checkRules compares the rules that the programs met with those of the tables. They are
// the same unless the kernel is about to get other ones.
func (w *asking) checkRules(x dataplane.Explanation) {
	var want []string
	for _, s := range w.Stages {
		if s.Reached && s.Verdict != "" && !s.Failsafe && s.Rule != nil {
			want = append(want, s.Rule.ID)
		}
	}
	var have []string
	for _, r := range x.Rules {
		have = append(have, r.ID.String())
	}
	denied := slices.ContainsFunc(w.Stages, func(s nodeapi.Stage) bool {
		return s.Reached && s.Verdict == nodeapi.VerdictDeny && !s.Failsafe
	})
	switch {
	case x.Dropped && !isPolicyDrop(x.Reason) && len(x.Rules) == 0:
	case denied != isPolicyDrop(x.Reason) && !(x.Dropped && !isPolicyDrop(x.Reason)):
		w.note("The kernel does not have this policy as it is now: it says %s. A change may be on its way; see calicoctl node status.", x.Reason)
	case len(have) == len(want) && !slices.Equal(have, want):
		w.note("The kernel names other rules: %s.", strings.Join(have, ", "))
	}
}

// addProblems tells what is wrong with the objects that have a say.
func (w *asking) addProblems() {
	about := make(map[string]bool)
	for _, s := range w.Stages {
		about[s.Endpoint] = true
		if s.Rule != nil {
			about[api.Key{Kind: s.Rule.Kind, Namespace: s.Rule.Namespace, Name: s.Rule.Name}.String()] = true
		}
	}
	for _, p := range w.v.State.Problems {
		if about[p.Object.String()] {
			w.note("%s: %v", p.Object, p.Err)
		}
	}
	for key, err := range w.v.Failing {
		if about[key.String()] {
			w.note("%s is not in the kernel whole: %v", key, err)
		}
	}
}
