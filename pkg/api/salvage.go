package api

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/projectcalico/api/pkg/lib/numorstring"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

// Salvage reads what it can of a policy or profile that [DecodeStored] refuses, for
// those who have to know what it is about to keep just that closed. What cannot be
// read is there, in a form that is not valid: a port or range that there cannot be has
// its text for a name, a protocol too, and a rule of which more is wrong has what is
// wrong for an action. nil: nothing can be told.
func Salvage(kind string, data []byte) Resource {
	k := kindNamed(kind)
	t, err := parseTree(data)
	if err != nil || k == nil || t.kind != '{' {
		return nil
	}
	s := &salvager{fieldTypes: fieldTypes{}, mark: "unreadable-"}
	for bytes.Contains(data, []byte(s.mark)) {
		s.mark += "-"
	}
	root := reflect.TypeOf(k.New())
	s.repair(t, root)
	s.quoteStrings(t, root)
	if spec := t.get("spec"); spec != nil && spec.kind == '{' {
		for _, name := range []string{"ingress", "egress"} {
			if rules := spec.get(name); rules != nil {
				s.replaceRules(rules)
			}
		}
	}
	r, err := DecodeStored(kind, t.append(nil))
	if err != nil {
		return nil
	}
	switch r := r.(type) {
	case *Profile:
		s.restore(r.Spec.Ingress, r.Spec.Egress)
	default:
		p, ok := PolicyOf(r)
		if !ok {
			return nil
		}
		s.restore(p.Ingress, p.Egress)
	}
	return r
}

// salvager repairs a tree. Names of ports that begin with the mark stand for texts.
type salvager struct {
	fieldTypes
	mark  string
	texts []string
}

// repair replaces ports and protocols that cannot be read.
func (s *salvager) repair(t *tree, gt reflect.Type) {
	switch gt = elem(gt); gt {
	case reflect.TypeFor[numorstring.Port]():
		if json.Unmarshal(t.append(nil), new(numorstring.Port)) != nil {
			s.texts = append(s.texts, t.text())
			*t = *newString(s.mark + strconv.Itoa(len(s.texts)-1))
		}
		return
	case reflect.TypeFor[numorstring.Protocol]():
		if json.Unmarshal(t.append(nil), new(numorstring.Protocol)) != nil {
			*t = *newString(t.text())
		}
		return
	}
	switch {
	case isOpaque(gt):
	case gt.Kind() == reflect.Struct:
		types := s.of(gt)
		for _, f := range t.fields {
			if ft, ok := types[f.name]; ok {
				s.repair(f.value, ft)
			}
		}
	case gt.Kind() == reflect.Slice:
		for _, e := range t.members {
			s.repair(e, gt.Elem())
		}
	}
}

// replaceRules replaces the rules that cannot be read.
func (s *salvager) replaceRules(rules *tree) {
	for _, rule := range rules.members {
		err := json.Unmarshal(rule.append(nil), new(v3.Rule))
		if err == nil {
			continue
		}
		action := field{"action", newString("unreadable: " + err.Error())}
		*rule = tree{kind: '{', fields: []field{action}}
	}
}

// restore gives ports the texts that they have.
func (s *salvager) restore(lists ...[]Rule) {
	for _, rule := range slices.Concat(lists...) {
		for _, ports := range [][]numorstring.Port{rule.Source.Ports, rule.Source.NotPorts, rule.Destination.Ports, rule.Destination.NotPorts} {
			for i := range ports {
				if number, ok := strings.CutPrefix(ports[i].PortName, s.mark); ok {
					n, _ := strconv.Atoi(number)
					ports[i].PortName = s.texts[n]
				}
			}
		}
	}
}

// text is what a string says, or else the value as it is written.
func (t *tree) text() string {
	if t.isString() {
		return unquoted(t.scalar)
	}
	return string(t.append(nil))
}

func newString(s string) *tree {
	text, _ := json.Marshal(s) // a string always marshals
	return &tree{scalar: text}
}
