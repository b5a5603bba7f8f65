package control

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/nodeapi"
	"calico-xdp/pkg/policy"
)

// wireRule is a rule as others hear of it, without its text.
func wireRule(id policy.RuleID, action policy.Action) nodeapi.Rule {
	return nodeapi.Rule{
		ID: id.String(), Tier: id.Tier, Kind: id.Policy.Kind, Namespace: id.Policy.Namespace, Name: id.Policy.Name,
		Direction: id.Direction, Index: id.Index, Action: actionName(action), Staged: id.Staged,
	}
}

func actionName(a policy.Action) string {
	switch a {
	case policy.Allow:
		return "Allow"
	case policy.Deny:
		return "Deny"
	case policy.Pass:
		return "Pass"
	case policy.Log:
		return "Log"
	case policy.Continue:
		return "Continue"
	}
	return ""
}

// withText is wireRule with the rule as it is written.
func withText(store *api.Store, id policy.RuleID, action policy.Action) nodeapi.Rule {
	r := wireRule(id, action)
	r.Text = ruleText(store.Get(id.Policy), id)
	return r
}

// ruleText is a rule as its resource has it, as YAML in one line; empty if there is no
// such rule.
func ruleText(r api.Resource, id policy.RuleID) string {
	var rule any
	switch r := r.(type) {
	case nil:
		return ""
	case *api.Profile:
		rule = at(pick(id.Direction, r.Spec.Ingress, r.Spec.Egress), id.Index)
	case *api.StagedKubernetesNetworkPolicy:
		if rule = at(r.Spec.Ingress, id.Index); id.Direction == "egress" {
			rule = at(r.Spec.Egress, id.Index)
		}
	default:
		if p, ok := api.PolicyOf(r); ok {
			rule = at(pick(id.Direction, p.Ingress, p.Egress), id.Index)
		}
	}
	if rule == nil {
		return ""
	}
	data, err := json.Marshal(rule)
	if err != nil {
		return ""
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	text, _ := flowStyle(d)
	return text
}

func at[R any](rules []R, i int) any {
	if i < 0 || i >= len(rules) {
		return nil
	}
	return rules[i]
}

func pick(direction string, ingress, egress []api.Rule) []api.Rule {
	if direction == "egress" {
		return egress
	}
	return ingress
}

// flowStyle reads one JSON value and returns it as YAML in flow style, members in their
// order. Empty ones are left out; then ok is false.
func flowStyle(d *json.Decoder) (text string, ok bool) {
	token, err := d.Token()
	if err != nil {
		return "", false
	}
	switch t := token.(type) {
	case json.Delim:
		var parts []string
		for d.More() {
			if t == '[' {
				if part, ok := flowStyle(d); ok {
					parts = append(parts, part)
				}
				continue
			}
			name, _ := d.Token()
			if part, ok := flowStyle(d); ok && name != "metadata" {
				parts = append(parts, name.(string)+": "+part)
			}
		}
		d.Token() // the end
		open, end := "{", "}"
		if t == '[' {
			open, end = "[", "]"
		}
		return open + strings.Join(parts, ", ") + end, len(parts) > 0
	case string:
		return flowScalar(t), t != ""
	case json.Number:
		return t.String(), true
	case bool:
		return strconv.FormatBool(t), true
	}
	return "", false
}

// flowScalar quotes a text where YAML would take it for something else.
func flowScalar(s string) string {
	_, notNumber := strconv.ParseFloat(s, 64)
	switch {
	case notNumber == nil, slices.Contains([]string{"true", "false", "null", "yes", "no", "on", "off", "~"}, strings.ToLower(s)),
		strings.ContainsAny(s[:min(1, len(s))], "-?:,[]{}#&*!|>'\"%@` "), strings.ContainsAny(s, ",[]{}\n\t\\"),
		strings.Contains(s, ": "), strings.Contains(s, " #"), strings.Trim(s, "0123456789:") == "", // 1:30 can be ninety
		strings.HasSuffix(s, ":"), strings.HasSuffix(s, " "):
		return strconv.Quote(s)
	}
	return s
}
