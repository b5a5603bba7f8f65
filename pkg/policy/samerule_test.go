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
	root := new(api.Rule)
	try := func(path string, before *api.Rule) {
		if sameRule(root, before) {
			t.Errorf("%s makes no difference", path)
		}
		if !sameRule(root, root.DeepCopy()) {
			t.Errorf("%s is different from its copy", path)
		}
	}
	var visit func(at reflect.Value, path string)
	visit = func(at reflect.Value, path string) {
		before := root.DeepCopy()
		switch at.Kind() {
		case reflect.Struct:
			for i := range at.NumField() {
				visit(at.Field(i), path+"."+at.Type().Field(i).Name)
			}
			return
		case reflect.Pointer:
			at.Set(reflect.New(at.Type().Elem()))
			try(path, before)
			visit(at.Elem(), path)
		case reflect.Slice:
			at.Set(reflect.MakeSlice(at.Type(), 1, 1))
			try(path, before)
			visit(at.Index(0), path+"[0]")
		case reflect.Map:
			at.Set(reflect.ValueOf(map[string]string{"a": "b"}))
			try(path, before)
		case reflect.String:
			at.SetString("x")
			try(path, before)
		case reflect.Uint8, reflect.Uint16:
			at.SetUint(7)
			try(path, before)
		case reflect.Int, reflect.Int32:
			at.SetInt(7)
			try(path, before)
		default:
			t.Fatalf("%s is a %s", path, at.Kind())
		}
		at.SetZero()
	}
	visit(reflect.ValueOf(root).Elem(), "rule")
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
