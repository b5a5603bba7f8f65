package policy

import (
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"calico-xdp/pkg/api"
)

// Whatever field of a rule is set, and whatever field of what that points to, makes
// it another rule; and a copy is the same rule. Fields that the resource gets some
// day are among them.
func TestSameRuleComparesEveryField(t *testing.T) {
	var visit func(at reflect.Value, path string, root *api.Rule)
	differs := func(path string, root *api.Rule) {
		if sameRule(root, new(api.Rule)) {
			t.Errorf("%s makes no difference", path)
		}
		if !sameRule(root, root.DeepCopy()) {
			t.Errorf("%s is different from its copy", path)
		}
	}
	visit = func(at reflect.Value, path string, root *api.Rule) {
		switch at.Kind() {
		case reflect.Struct:
			for i := range at.NumField() {
				visit(at.Field(i), path+"."+at.Type().Field(i).Name, root)
			}
		case reflect.Pointer:
			at.Set(reflect.New(at.Type().Elem()))
			differs(path, root)
			visit(at.Elem(), path, root)
			at.SetZero()
		case reflect.Slice:
			at.Set(reflect.MakeSlice(at.Type(), 1, 1))
			differs(path, root)
			empty := root.DeepCopy()
			visit(at.Index(0), path+"[0]", root)
			if set(at.Index(0)); sameRule(root, empty) {
				t.Errorf("%s[0] makes no difference", path)
			}
			at.SetZero()
		case reflect.Map:
			at.Set(reflect.ValueOf(map[string]string{"a": "b"}))
			differs(path, root)
			at.SetZero()
		default:
			set(at)
			differs(path, root)
			at.SetZero()
		}
	}
	root := new(api.Rule)
	visit(reflect.ValueOf(root).Elem(), "rule", root)
}

// set gives a value other than zero to v or, if it is a structure, to a part of it.
func set(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		set(v.Field(0))
	case reflect.String:
		v.SetString("x")
	case reflect.Uint8, reflect.Uint16:
		v.SetUint(7)
	case reflect.Int, reflect.Int32:
		v.SetInt(7)
	}
}

func TestSameRuleAgreesWithReflection(t *testing.T) {
	few := rapid.Custom(func(t *rapid.T) api.Rule {
		n := rapid.IntRange(0, 1)
		kind, code := n.Draw(t, "type"), n.Draw(t, "code")
		r := api.Rule{Action: "Allow", Source: api.EntityRule{Nets: []string{"10.0.0.0/8", "::/0"}[:1+n.Draw(t, "nets")]}}
		if n.Draw(t, "icmp") == 1 {
			r.ICMP = &api.ICMPFields{Type: &kind, Code: &code}
		}
		return r
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := few.Draw(t, "a"), few.Draw(t, "b")
		if got, want := sameRule(&a, &b), reflect.DeepEqual(a, b); got != want {
			t.Fatalf("%v, want %v", got, want)
		}
	})
}
