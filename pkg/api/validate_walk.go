package api

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/projectcalico/api/pkg/lib/numorstring"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// walk checks v, which lies at path, and all that is in it, one field at a
// time, by the types and by the "validate" tags with which upstream's types and
// our own say what a field may hold. What depends on several fields is checked
// by kind.
//
// A tag is a list of checks: "omitempty" ends it for a field that is not set,
// "dive" applies the rest to the elements, the others are in [faults.check].
func (f *faults) walk(path string, v reflect.Value, tag string) {
	set := false
	for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		if v.IsNil() {
			if hasRule(tag, "required") {
				f.add(path, nil, "missing")
			}
			return
		}
		v, set = v.Elem(), true
	}
	rules := strings.Split(tag, ",")
	for i, rule := range rules {
		if rule == "omitempty" && !set && (v.IsZero() || isEmpty(v)) {
			return
		}
		if rule == "dive" {
			f.elements(path, v, strings.Join(rules[i+1:], ","))
			return
		}
		if rule == "required" && set {
			continue // also if it points to zero
		}
		if !f.check(path, v, rule) {
			return // one fault per field says enough
		}
	}
	f.inside(path, v)
}

func hasRule(tag, rule string) bool { return slices.Contains(strings.Split(tag, ","), rule) }

func isEmpty(v reflect.Value) bool {
	return (v.Kind() == reflect.Slice || v.Kind() == reflect.Map) && v.Len() == 0
}

// inside checks values that say by their type what they may be, and the fields
// of structs.
func (f *faults) inside(path string, v reflect.Value) {
	switch x := v.Interface().(type) {
	case metav1.ObjectMeta, metav1.TypeMeta:
		return // see metadata
	case numorstring.Protocol:
		if _, ok := NumberOf(x); !ok || x.Type == numorstring.NumOrStringString && x != numorstring.ProtocolFromString(x.StrVal) {
			f.add(path, x.String(), "expected 1 to 255, TCP, UDP, ICMP, ICMPv6, SCTP or UDPLite")
		}
		return
	case numorstring.Port:
		f.port(path, x)
		return
	case numorstring.ASNumber:
		// Zero is a field that is not set, unless a pointer leads here: there is no AS 0.
		return
	case numorstring.DSCP:
		if err := x.Validate(); err != nil {
			f.add(path, x.String(), "%v", err)
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		if isOpaque(v.Type()) {
			return
		}
		for sf, fv := range v.Fields() {
			f.field(path, sf, fv)
		}
	case reflect.Slice, reflect.Array, reflect.Map:
		f.elements(path, v, "")
	}
}

// field checks one field of a struct at path.
func (f *faults) field(path string, sf reflect.StructField, v reflect.Value) {
	if !sf.IsExported() {
		return
	}
	name, _, _ := strings.Cut(sf.Tag.Get("json"), ",")
	switch {
	case name == "-":
		return
	case name == "" && sf.Anonymous:
		f.walk(path, v, "")
		return
	}
	at := join(path, orElse(name, sf.Name))
	if as, ok := v.Interface().(*numorstring.ASNumber); ok && as != nil && *as == 0 {
		f.add(at, uint32(*as), "expected an AS number from 1 to 4294967295")
		return
	}
	f.walk(at, v, sf.Tag.Get("validate"))
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// elements checks the elements of a list, or the values of a map.
func (f *faults) elements(path string, v reflect.Value, tag string) {
	switch v.Kind() {
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			f.walk(path+"["+strconv.Itoa(i)+"]", v.Index(i), tag)
		}
	case reflect.Map:
		for _, k := range sortedKeys(v) {
			f.walk(path+"["+fmt.Sprint(k)+"]", v.MapIndex(k), tag)
		}
	}
}

func sortedKeys(m reflect.Value) []reflect.Value {
	return slices.SortedFunc(slices.Values(m.MapKeys()), func(a, b reflect.Value) int {
		return strings.Compare(fmt.Sprint(a), fmt.Sprint(b))
	})
}

// port checks a port, a range or a named port of a rule.
func (f *faults) port(path string, p numorstring.Port) {
	switch {
	case p.PortName != "" && (p.MinPort != 0 || p.MaxPort != 0):
		f.add(path, p.PortName, "a named port has no number")
	case p.PortName != "":
	case p.MinPort == 0:
		f.add(path, p.String(), "expected ports from 1 to 65535")
	case p.MinPort > p.MaxPort:
		f.add(path, p.String(), "the range ends before it begins")
	}
}

// check applies one check of a tag and tells whether v passed.
func (f *faults) check(path string, v reflect.Value, rule string) bool {
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
			f.labels(path, m)
		}
	default:
		why = f.checkText(path, name, v)
	}
	if why == "" {
		return true
	}
	if why == "missing" {
		f.add(path, nil, "missing")
	} else {
		f.add(path, v.Interface(), "%s", why)
	}
	return false
}

// checkText applies a check of text to v, or to every element of v.
func (f *faults) checkText(path, name string, v reflect.Value) string {
	if v.Kind() == reflect.Slice {
		for i := range v.Len() {
			f.walk(path+"["+strconv.Itoa(i)+"]", v.Index(i), name)
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
