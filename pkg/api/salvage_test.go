package api

import (
	"strings"
	"testing"
)

func TestSalvage(t *testing.T) {
	policy := func(spec string) string { return `{"metadata":{"name":"p"},"spec":` + spec + `}` }
	for _, c := range []struct{ name, kind, data, want string }{
		{"what can be read is as it is", "GlobalNetworkPolicy",
			policy(`{"order":1.5,"ingress":[{"action":"Allow","protocol":"TCP","destination":{"ports":[80,"90:80",70000,"a b"]}}],"selector":"all()"}`),
			`"order":1.5,"ingress":[{"action":"Allow","protocol":"TCP","destination":{"ports":[80,"90:80","70000","a b"]}}],"selector":"all()"`},
		{"protocols", "NetworkPolicy", policy(`{"egress":[{"action":"Deny","protocol":300,"notProtocol":["TCP"]}]}`),
			`"egress":[{"action":"Deny","protocol":"300","notProtocol":"[\"TCP\"]"}]`},
		{"texts that are none", "Profile", policy(`{"ingress":[{"action":"Allow","source":{"nets":[10]},"destination":{"selector":true}}]}`),
			`"ingress":[{"action":"Allow","source":{"nets":["10"]},"destination":{"selector":"true"}}]`},
		{"a rule that is not one", "StagedGlobalNetworkPolicy", policy(`{"ingress":[{"action":"Allow"},{"action":"Allow","ipVersion":"six"},7]}`),
			`"ingress":[{"action":"Allow"},{"action":"unreadable: json: cannot unmarshal string into Go struct field Rule.ipVersion of type int"`},
		{"a name that looks like a mark", "GlobalNetworkPolicy", policy(`{"ingress":[{"action":"Allow","source":{"ports":["unreadable-0","2:1"]}}]}`), `"ports":["unreadable-0","2:1"]`},
		{"types", "GlobalNetworkPolicy", policy(`{"types":["Ingress",5]}`), `"types":["Ingress","5"]`},
		{"no object", "GlobalNetworkPolicy", `[]`, ""},
		{"no JSON", "GlobalNetworkPolicy", `{"metadata":`, ""},
		{"where it would be is not known", "GlobalNetworkPolicy", policy(`{"order":"first"}`), ""},
		{"rules that are no list", "GlobalNetworkPolicy", policy(`{"ingress":{"action":"Allow"}}`), ""},
		{"another kind", "GlobalNetworkSet", policy(`{"nets":[1]}`), ""},
		{"no kind", "Bogus", `{}`, ""},
	} {
		r := Salvage(c.kind, []byte(c.data))
		if r == nil {
			if c.want != "" {
				t.Errorf("%s: nothing", c.name)
			}
			continue
		}
		got, err := Encode(r)
		if err != nil || c.want == "" || !strings.Contains(string(got), c.want) || r.GetName() != "p" {
			t.Errorf("%s: %s, %v\nwant %s", c.name, got, err, c.want)
		}
	}
}
