package api

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/projectcalico/api/pkg/lib/numorstring"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// place is where a value is in an object. It is written out only for faults:
// objects may have a great many fields.
type place struct {
	in    *place
	name  string // of a field
	index int    // of an element, -1 for fields
	key   any    // of a map's value
}

func (p *place) String() string {
	if p == nil {
		return ""
	}
	switch {
	case p.key != nil:
		return fmt.Sprintf("%s[%v]", p.in, p.key)
	case p.index >= 0:
		return fmt.Sprintf("%s[%d]", p.in, p.index)
	case p.in == nil:
		return p.name
	}
	return p.in.String() + "." + p.name
}

// plan is what there is to check in the fields of a struct type.
type plan []planned

type planned struct {
	index    int
	name     string // "" for a struct whose fields count as the outer's
	rules    []string
	skipZero bool // nothing to check if the field is not set
}

// plans are those of the struct types seen so far, by reflect.Type. Types do not change.
var plans sync.Map

// planOf returns the plan of the struct type t.
func planOf(t reflect.Type) plan {
	if p, ok := plans.Load(t); ok {
		return p.(plan)
	}
	p := plan{}
	for i := range t.NumField() {
		sf := t.Field(i)
		name, _, _ := strings.Cut(sf.Tag.Get("json"), ",")
		if !sf.IsExported() || name == "-" {
			continue
		}
		if name == "" && !sf.Anonymous {
			name = sf.Name
		}
		rules := strings.Split(sf.Tag.Get("validate"), ",")
		p = append(p, planned{index: i, name: name, rules: rules, skipZero: rules[0] == "omitempty"})
	}
	plans.Store(t, p)
	return p
}

// walk checks v, which is at p, and all that is in it, one field at a time, by
// the types and by the "validate" tags with which upstream's types and our own
// say what a field may hold. What depends on several fields is checked by kind.
//
// A tag is a list of rules: "omitempty" ends it for a field that is not set,
// "dive" applies the rest to the elements, the others are in [faults.check].
func (f *faults) walk(p *place, v reflect.Value, rules []string) {
	set := false
	for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		if v.IsNil() {
			if slices.Contains(rules, "required") {
				f.add(p.String(), nil, "missing")
			}
			return
		}
		v, set = v.Elem(), true
	}
	for i, rule := range rules {
		switch {
		case rule == "omitempty" && !set && (v.IsZero() || isEmpty(v)):
			return
		case rule == "dive":
			f.elements(p, v, rules[i+1:])
			return
		case rule == "required" && set: // also if it points to zero
		case !f.check(p, v, rule):
			return // one fault per field says enough
		}
	}
	f.inside(p, v)
}

func isEmpty(v reflect.Value) bool {
	return (v.Kind() == reflect.Slice || v.Kind() == reflect.Map) && v.Len() == 0
}

// inside checks values that say by their type what they may be, and the fields
// of structs.
func (f *faults) inside(p *place, v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		f.fields(p, v)
	case reflect.Slice, reflect.Array, reflect.Map:
		if k := v.Type().Elem().Kind(); k != reflect.String && k != reflect.Uint8 {
			f.elements(p, v, nil)
		}
	}
}

func (f *faults) fields(p *place, v reflect.Value) {
	switch v.Type() {
	case reflect.TypeFor[metav1.ObjectMeta](), reflect.TypeFor[metav1.TypeMeta]():
		return // see metadata
	case reflect.TypeFor[numorstring.Protocol]():
		if x := v.Interface().(numorstring.Protocol); !isProtocol(x) {
			f.add(p.String(), x.String(), "expected 1 to 255, TCP, UDP, ICMP, ICMPv6, SCTP or UDPLite")
		}
		return
	case reflect.TypeFor[numorstring.Port]():
		f.port(p, v.Interface().(numorstring.Port))
		return
	case reflect.TypeFor[numorstring.DSCP]():
		x := v.Interface().(numorstring.DSCP)
		if err := x.Validate(); err != nil {
			f.add(p.String(), x.String(), "%v", err)
		}
		return
	}
	if isOpaque(v.Type()) {
		return
	}
	for _, pf := range planOf(v.Type()) {
		fv := v.Field(pf.index)
		if pf.skipZero && fv.IsZero() {
			continue
		}
		at := &place{in: p, name: pf.name, index: -1}
		if pf.name == "" {
			at = p
		}
		if fv.Type() == reflect.TypeFor[*numorstring.ASNumber]() && !fv.IsNil() && fv.Elem().IsZero() {
			f.add(at.String(), 0, "expected an AS number from 1 to 4294967295")
			continue
		}
		f.walk(at, fv, pf.rules)
	}
}

// elements checks the elements of a list, or the values of a map.
func (f *faults) elements(p *place, v reflect.Value, rules []string) {
	switch v.Kind() {
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			f.walk(&place{in: p, index: i}, v.Index(i), rules)
		}
	case reflect.Map:
		for _, k := range sortedKeys(v) {
			f.walk(&place{in: p, key: k}, v.MapIndex(k), rules)
		}
	}
}

func sortedKeys(m reflect.Value) []reflect.Value {
	return slices.SortedFunc(slices.Values(m.MapKeys()), func(a, b reflect.Value) int {
		return strings.Compare(fmt.Sprint(a), fmt.Sprint(b))
	})
}

// isProtocol tells whether p is a number or a name as the API writes it.
func isProtocol(p numorstring.Protocol) bool {
	_, ok := NumberOf(p)
	return ok && (p.Type == numorstring.NumOrStringNum || p == numorstring.ProtocolFromString(p.StrVal))
}

// port checks a port, a range or a named port of a rule.
func (f *faults) port(at *place, p numorstring.Port) {
	path := at.String
	switch {
	case p.PortName != "" && (p.MinPort != 0 || p.MaxPort != 0):
		f.add(path(), p.PortName, "a named port has no number")
	case p.PortName != "":
		if why := textFault("portName", p.PortName); why != "" {
			f.add(path(), p.PortName, "%s", why)
		}
	case p.MinPort == 0:
		f.add(path(), p.String(), "expected ports from 1 to 65535")
	case p.MinPort > p.MaxPort:
		f.add(path(), p.String(), "the range ends before it begins")
	}
}

// check applies one check of a tag and tells whether v passed.
func (f *faults) check(p *place, v reflect.Value, rule string) bool {
	name, arg, _ := strings.Cut(rule, "=")
	var why string
	switch name {
	case "", "omitempty":
	case "required":
		if v.IsZero() || isEmpty(v) {
			why = "missing"
		}
	case "unique":
		why = unique(v)
	case "oneof":
		if options := strings.Fields(arg); !slices.Contains(options, fmt.Sprint(v)) {
			why = "expected " + orList(options)
		}
	case "gt", "gte", "lt", "lte":
		why = compareBound(name, arg, v)
	case "mustBeNil":
		why = "a field of an old version, not to be set"
	case "mustBeFalse":
		if v.Bool() {
			why = "a field of an old version, not to be set"
		}
	case "labels":
		if m, ok := v.Interface().(map[string]string); ok {
			f.labels(p.String(), m)
		}
	default:
		why = f.checkText(p, name, v)
	}
	if why == "" {
		return true
	}
	if why == "missing" {
		f.add(p.String(), nil, "missing")
	} else {
		f.add(p.String(), v.Interface(), "%s", why)
	}
	return false
}

// checkText applies a check of text to v, or to every element of v.
func (f *faults) checkText(p *place, name string, v reflect.Value) string {
	if v.Kind() == reflect.Slice {
		for i := range v.Len() {
			f.walk(&place{in: p, index: i}, v.Index(i), []string{name})
		}
		return ""
	}
	if v.Kind() != reflect.String {
		if name == "ipVersion" && v.CanInt() && v.Int() != 4 && v.Int() != 6 {
			return "expected 4 or 6"
		}
		return ""
	}
	return textFault(name, v.String())
}

func orList(options []string) string {
	if len(options) == 1 {
		return options[0]
	}
	last := len(options) - 1
	return strings.Join(options[:last], ", ") + " or " + options[last]
}

func unique(v reflect.Value) string {
	seen := make(map[any]bool, v.Len())
	for i := range v.Len() {
		x := v.Index(i).Interface()
		if seen[x] {
			return fmt.Sprintf("%v is there twice", x)
		}
		seen[x] = true
	}
	return ""
}

// compareBound checks a number against a tag such as "lte=65535".
func compareBound(op, bound string, v reflect.Value) string {
	limit, err := strconv.ParseFloat(bound, 64)
	var n float64
	switch {
	case err != nil:
		return ""
	case v.CanInt():
		n = float64(v.Int())
	case v.CanUint():
		n = float64(v.Uint())
	case v.CanFloat():
		n = v.Float()
	default:
		return ""
	}
	switch {
	case op == "gt" && n <= limit:
		return "expected more than " + bound
	case op == "gte" && n < limit:
		return "expected " + bound + " or more"
	case op == "lt" && n >= limit:
		return "expected less than " + bound
	case op == "lte" && n > limit:
		return "expected " + bound + " or less"
	}
	return ""
}
