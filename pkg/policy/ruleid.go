package policy

import (
	"fmt"
	"strconv"
	"strings"

	"calico-xdp/pkg/api"
)

// RuleID names the rule a verdict comes from.
type RuleID struct {
	Tier      string  // empty for profiles
	Policy    api.Key // of the policy or profile; zero for a tier's default action or the final drop
	Direction string  // "ingress" or "egress"
	Index     int     // in the policy's list; -1 for a default action, or for an object that is closed as a whole
	// Staged says that the rule is not enforced: it is one of a staged policy, or the
	// default action or final drop of a staged ruleset. What a staged ruleset takes
	// over from enforced policies and profiles is not staged.
	Staged bool
}

// stagedDefault stands in the place of the kind where a staged ruleset ends.
const stagedDefault = "Staged"

// String returns tier|kind|[namespace/]name|direction|index: one text for one rule,
// in the same words from one version to the next. A profile's rules have no tier, a
// tier's default action neither kind nor name and the index -1, and the final drop
// has nothing but the direction. In a staged ruleset these two have "Staged" for the
// kind.
//
// The bytes |, / and %, which no valid name has, are written as in a URL. A text is
// shorter than 256 bytes unless names are very long; at most it has 425.
func (r RuleID) String() string {
	kind, name, index := r.Policy.Kind, escapeName(r.Policy.Name), strconv.Itoa(r.Index)
	if r.Policy.Namespace != "" {
		name = escapeName(r.Policy.Namespace) + "/" + name
	}
	if r.Policy == (api.Key{}) {
		if r.Staged {
			kind = stagedDefault
		}
		if r.Tier == "" {
			index = ""
		}
	}
	return strings.Join([]string{escapeName(r.Tier), kind, name, r.Direction, index}, "|")
}

// ParseRuleID reads what [RuleID.String] has written.
func ParseRuleID(text string) (RuleID, error) {
	fail := func(what string) (RuleID, error) { return RuleID{}, fmt.Errorf("rule %q: %s", text, what) }
	parts := strings.Split(text, "|")
	if len(parts) != 5 {
		return fail("not of the form tier|kind|name|direction|index")
	}
	r := RuleID{Direction: parts[3], Index: -1}
	if r.Direction != directions[ingress] && r.Direction != directions[egress] {
		return fail("the direction is neither ingress nor egress")
	}
	if parts[4] != "" {
		index, err := strconv.Atoi(parts[4])
		if err != nil || index < -1 {
			return fail("the index is no number from -1")
		}
		r.Index = index
	}
	namespace, name, namespaced := strings.Cut(parts[2], "/")
	if !namespaced {
		namespace, name = "", namespace
	}
	for _, field := range []struct {
		to   *string
		text string
	}{{&r.Tier, parts[0]}, {&r.Policy.Namespace, namespace}, {&r.Policy.Name, name}} {
		plain, err := unescapeName(field.text)
		if err != nil {
			return fail(err.Error())
		}
		*field.to = plain
	}
	if r.Policy.Kind = parts[1]; r.Policy.Kind == stagedDefault {
		r.Policy.Kind, r.Staged = "", true
	}
	r.Staged = r.Staged || stagedKind(r.Policy.Kind)
	if r.String() != text {
		return fail("not as it is written")
	}
	return r, nil
}

// stagedKind says whether policies of a kind are staged.
func stagedKind(kind string) bool {
	switch kind {
	case api.KindStagedGlobalNetworkPolicy, api.KindStagedNetworkPolicy, api.KindStagedKubernetesNetworkPolicy:
		return true
	}
	return false
}

func escapeName(name string) string {
	if !strings.ContainsAny(name, "%|/") {
		return name
	}
	return strings.NewReplacer("%", "%25", "|", "%7C", "/", "%2F").Replace(name)
}

func unescapeName(text string) (string, error) {
	if !strings.Contains(text, "%") {
		return text, nil
	}
	var b strings.Builder
	for text != "" {
		before, rest, found := strings.Cut(text, "%")
		b.WriteString(before)
		if !found {
			break
		}
		if len(rest) < 2 {
			return "", fmt.Errorf("%q is cut short", "%"+rest)
		}
		n, err := strconv.ParseUint(rest[:2], 16, 8)
		if err != nil {
			return "", fmt.Errorf("%q is no byte", "%"+rest[:2])
		}
		b.WriteByte(byte(n))
		text = rest[2:]
	}
	return b.String(), nil
}
