package policy

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"

	"calico-xdp/pkg/api"
)

// match says which endpoints and network sets one side of a rule means, or which
// endpoints a policy selects. All its parts have to hold for the same identity.
type match struct {
	namespace    string        // only in this one; empty: anywhere
	selector     *api.Selector // nil here and below: not asked for
	notSelector  *api.Selector
	namespaces   *api.Selector // of the namespace's labels
	accounts     *api.Selector // of the service account's labels
	accountNames []string
	// portNames asks for a port with one of these names, this protocol and number.
	portNames    []string
	portProtocol uint8
	portNumber   uint16
}

// key is the same for matches that mean the same by construction.
func (m *match) key() string {
	var b []byte
	b = appendText(b, m.namespace)
	for _, s := range []*api.Selector{m.selector, m.notSelector, m.namespaces, m.accounts} {
		text := ""
		if s != nil {
			text = s.String()
		}
		b = appendText(b, text)
	}
	for _, names := range [][]string{m.accountNames, m.portNames} {
		b = binary.AppendUvarint(b, uint64(len(names)))
		for _, name := range names {
			b = appendText(b, name)
		}
	}
	b = append(b, m.portProtocol, byte(m.portNumber>>8), byte(m.portNumber))
	return string(b)
}

// selects says whether the match means this identity.
func (m *match) selects(i *identity) bool {
	if m.namespace != "" {
		if namespace, _ := i.label(v3.LabelNamespace); namespace != m.namespace {
			return false
		}
	}
	if m.selector != nil && !m.selector.MatchesFunc(i.label) {
		return false
	}
	if m.notSelector != nil && m.notSelector.MatchesFunc(i.label) {
		return false
	}
	if m.namespaces != nil && !m.namespaces.MatchesFunc(i.scope(namespaceLabels, v3.LabelNamespace)) {
		return false
	}
	if m.accounts != nil && !m.accounts.MatchesFunc(i.scope(serviceAccountLabels, v3.LabelServiceAccount)) {
		return false
	}
	if len(m.accountNames) > 0 {
		name, ok := i.label(v3.LabelServiceAccount)
		if !ok || !slices.Contains(m.accountNames, name) {
			return false
		}
	}
	if len(m.portNames) == 0 {
		return true
	}
	return slices.ContainsFunc(i.ports, func(p namedPort) bool {
		return p.protocol == m.portProtocol && p.number == m.portNumber && slices.Contains(m.portNames, p.name)
	})
}

// needs returns lists of an identity's traits: one at least of each list is among
// those of every identity that the match selects.
func (m *match) needs() [][]api.Label {
	lists := [][]api.Label{{{Key: anybody}}}
	if m.namespace != "" {
		lists = append(lists, []api.Label{{Key: v3.LabelNamespace, Value: m.namespace}})
	}
	if m.selector != nil {
		lists = append(lists, m.selector.Needs()...)
	}
	for _, scope := range []struct {
		selector       *api.Selector
		prefix, member string
	}{{m.namespaces, namespaceLabels, v3.LabelNamespace}, {m.accounts, serviceAccountLabels, v3.LabelServiceAccount}} {
		if scope.selector == nil {
			continue
		}
		for _, list := range scope.selector.Needs() {
			for i := range list {
				if list[i].Key == inScope {
					list[i].Key = scope.member
				} else {
					list[i].Key = scope.prefix + list[i].Key
				}
			}
			lists = append(lists, list)
		}
	}
	if len(m.accountNames) > 0 {
		var list []api.Label
		for _, name := range m.accountNames {
			list = append(list, api.Label{Key: v3.LabelServiceAccount, Value: name})
		}
		lists = append(lists, list)
	}
	if len(m.portNames) > 0 {
		var list []api.Label
		for _, name := range m.portNames {
			t := namedPort{name, m.portProtocol, m.portNumber}.trait()
			list = append(list, api.Label{Key: t.name, Value: t.value})
		}
		lists = append(lists, list)
	}
	return lists
}

// policyMatch is the match of a policy's own selectors. Those that cannot be read are
// left out of it: it means whatever the policy might.
//
// Calico reads all() of a global policy as one for all its selectors: with a
// namespaceSelector it is what is in any namespace, in the selector too, and with a
// serviceAccountSelector alone what has a service account. So "all()" beside
// "env != 'test'" of namespaces means no host endpoint. In a namespace all() is all.
func policyMatch(namespace, selector, namespaceSelector, serviceAccountSelector string) (m *match, faults []error) {
	m = &match{namespace: namespace}
	parseOwn, parseAccounts := parseSelector, parseScope
	switch {
	case namespace != "":
		parseAccounts = parseSelector
	case namespaceSelector != "":
		parseOwn = parseMembers(v3.LabelNamespace)
	case serviceAccountSelector != "":
		parseOwn = parseMembers(v3.LabelServiceAccount)
	}
	for _, s := range []struct {
		to          **api.Selector
		field, text string
		parse       func(string) (*api.Selector, error)
	}{
		{&m.selector, "spec.selector", selector, parseOwn},
		{&m.namespaces, "spec.namespaceSelector", namespaceSelector, parseScope},
		{&m.accounts, "spec.serviceAccountSelector", serviceAccountSelector, parseAccounts},
	} {
		parsed, err := s.parse(s.text)
		if *s.to = parsed; err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", s.field, err))
		}
	}
	return m, faults
}

// readEntity returns the match of one side of a rule in a policy of the given
// namespace. Selector and notSelector are one match; a notSelector that nothing
// limits is the second match, which must not hold: it lets addresses through that
// belong to nobody. nil: nothing asked for, or nothing that can be read.
func (p *parser) readEntity(side string, e *api.EntityRule, namespace string) (m, not *match) {
	m = new(match)
	before := len(p.faults)
	read := func(to **api.Selector, field, text string, parse func(string) (*api.Selector, error)) {
		parsed, err := parse(text)
		if *to = parsed; err != nil {
			p.fault(side+field, "%w", err)
		}
	}
	read(&m.selector, ".selector", e.Selector, parseSelector)
	read(&m.notSelector, ".notSelector", e.NotSelector, parseSelector)
	read(&m.namespaces, ".namespaceSelector", e.NamespaceSelector, parseScope)
	if a := e.ServiceAccounts; a != nil {
		read(&m.accounts, ".serviceAccounts.selector", a.Selector, parseSelector)
		m.accountNames = slices.Compact(slices.Sorted(slices.Values(a.Names)))
	}
	positive := m.selector != nil || m.namespaces != nil || m.accounts != nil || len(m.accountNames) > 0
	if !positive && (m.notSelector == nil || len(p.faults) > before) {
		return nil, nil
	}
	// A policy in a namespace means peers of its own one, unless it says which.
	if e.NamespaceSelector == "" {
		m.namespace = namespace
	}
	if !positive && namespace == "" {
		return nil, &match{selector: m.notSelector}
	}
	return m, nil
}

// parseSelector reads a selector; nil if there is none.
func parseSelector(text string) (*api.Selector, error) {
	if text == "" {
		return nil, nil
	}
	return api.ParseSelector(text)
}

// parseMembers returns what reads a selector in which all() means all that have a label.
func parseMembers(label string) func(text string) (*api.Selector, error) {
	return func(text string) (*api.Selector, error) {
		s, err := parseSelector(text)
		if s == nil {
			return nil, err
		}
		return parseSelector(replaceCalls(s.String(), "all()", "has("+label+")"))
	}
}

// parseScope reads a selector of namespaces or service accounts. In it, all()
// means what is in any namespace at all, and global() what is in none.
func parseScope(text string) (*api.Selector, error) {
	s, err := parseSelector(text)
	if s == nil {
		return nil, err
	}
	rewritten := replaceCalls(s.String(), "all()", "has("+inScope+")")
	return parseSelector(replaceCalls(rewritten, "global()", "!has("+inScope+")"))
}

// replaceCalls replaces a call wherever it stands outside of quotes.
func replaceCalls(text, call, by string) string {
	var b strings.Builder
	for text != "" {
		if quote := text[0]; quote == '"' || quote == '\'' {
			end := strings.IndexByte(text[1:], quote) + 2
			b.WriteString(text[:end])
			text = text[end:]
		} else if rest, ok := strings.CutPrefix(text, call); ok {
			b.WriteString(by)
			text = rest
		} else {
			b.WriteByte(text[0])
			text = text[1:]
		}
	}
	return b.String()
}
