package policy_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/policy"
	"calico-xdp/pkg/policy/policytest"
)

func problemsOf(t *policy.Tables) (out []string) {
	for _, p := range t.Problems {
		out = append(out, p.Object.String()+": "+p.Err.Error())
	}
	return out
}

func decoded(t *testing.T, document string) api.Resource {
	t.Helper()
	r, err := api.Decode([]byte("apiVersion: projectcalico.org/v3\n" + document))
	if err != nil {
		t.Fatalf("%v\n%s", err, document)
	}
	return r
}

// A problem is there as long as its cause is, once, whatever else changes.
func TestProblemsComeAndGoWithTheirCause(t *testing.T) {
	store, compiler := api.NewStore(), policy.NewCompiler(policytest.Node)
	step := func(what string, change api.Change, want ...string) {
		t.Helper()
		store.Apply(change)
		got := problemsOf(compiler.Compile(store, []api.Change{change}))
		if !slices.Equal(got, want) {
			t.Errorf("%s:\n  %s\nwant\n  %s", what, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
		}
		if fresh := problemsOf(policy.NewCompiler(policytest.Node).Compile(store, nil)); !slices.Equal(fresh, want) {
			t.Errorf("%s, afresh: %s", what, strings.Join(fresh, "\n  "))
		}
	}
	put := func(what, document string, want ...string) {
		t.Helper()
		r := decoded(t, document)
		step(what, api.Change{Key: api.KeyOf(r), Resource: r}, want...)
	}
	remove := func(what string, key api.Key, want ...string) {
		t.Helper()
		step(what, api.Change{Key: key}, want...)
	}
	endpoint := func(name, labels, profiles string) string {
		return fmt.Sprintf("kind: WorkloadEndpoint\nmetadata: {name: %s, namespace: default, labels: {%s}}\nspec: {node: node-1, orchestrator: cni, ipNetworks: [10.0.0.1], profiles: [%s]}\n", name, labels, profiles)
	}
	p := func(spec string) string {
		return "kind: GlobalNetworkPolicy\nmetadata: {name: p}\nspec: " + spec + "\n"
	}
	key := func(kind, name string) api.Key { return api.Key{Kind: kind, Name: name} }
	web := api.Key{Kind: "WorkloadEndpoint", Namespace: "default", Name: "web"}

	missing := "Profile(gone): does not exist"
	put("a missing profile", endpoint("web", "app: web", "gone"), missing)
	put("another endpoint names it too", endpoint("db", "app: db", "gone"), missing)
	put("it is there", "kind: Profile\nmetadata: {name: gone}\nspec: {egress: [{action: Allow}]}\n")
	put("with a fault", "kind: Profile\nmetadata: {name: gone}\nspec: {egress: [{action: Allows}]}\n",
		`Profile(gone): spec.egress[0].action: "Allows" is none of Allow, Deny, Log, Pass`)
	remove("it is gone", key("Profile", "gone"), missing)
	put("one endpoint less", endpoint("db", "app: db", ""), missing)
	put("nobody names it", endpoint("web", "app: web", ""))

	fault := func(i int, text string) string {
		return fmt.Sprintf("GlobalNetworkPolicy(p): spec.ingress[%d].%s", i, text)
	}
	put("a rule with a fault", p(`{selector: app == 'web', ingress: [{action: Allow, source: {nets: [x]}}]}`), fault(0, `source.nets: "x" is no address or network`))
	put("another fault", p(`{selector: app == 'web', ingress: [{action: Allow, source: {nets: [ten]}}]}`), fault(0, `source.nets: "ten" is no address or network`))
	put("the same fault in another rule", p(`{selector: app == 'web', ingress: [{action: Log}, {action: Allow, source: {nets: [ten]}}]}`), fault(1, `source.nets: "ten" is no address or network`))
	put("it selects two endpoints", p(`{selector: has(app), ingress: [{action: Log}, {action: Allow, source: {nets: [ten]}}]}`), fault(1, `source.nets: "ten" is no address or network`))
	put("one of them has other labels", endpoint("db", "", ""), fault(1, `source.nets: "ten" is no address or network`))
	put("and the other one", endpoint("web", "", ""))
	put("there is one again", endpoint("web", "app: web", ""), fault(1, `source.nets: "ten" is no address or network`))
	put("two faults in one rule, one in another", p(`{selector: has(app), ingress: [{action: Allow, ipVersion: 7, source: {nets: [ten]}}, {action: Go}]}`),
		fault(0, `ipVersion: 7 is neither 4 nor 6`), fault(0, `source.nets: "ten" is no address or network`), fault(1, `action: "Go" is none of Allow, Deny, Log, Pass`))
	put("the endpoint is elsewhere", strings.Replace(endpoint("web", "app: web", ""), "node-1", "node-2", 1))
	put("and back", endpoint("web", "app: web", ""),
		fault(0, `ipVersion: 7 is neither 4 nor 6`), fault(0, `source.nets: "ten" is no address or network`), fault(1, `action: "Go" is none of Allow, Deny, Log, Pass`))
	put("the selector", p(`{selector: "has(", ingress: [{action: Go}]}`), `GlobalNetworkPolicy(p): spec.selector: selector "has(": expected a label name at the end`)
	put("the tier", p(`{tier: t, selector: has(app), ingress: [{action: Allow}]}`), `GlobalNetworkPolicy(p): spec.tier: "t" does not exist`)
	put("it exists", "kind: Tier\nmetadata: {name: t}\nspec: {}\n")
	remove("no more", key("Tier", "t"), `GlobalNetworkPolicy(p): spec.tier: "t" does not exist`)
	remove("the policy is gone", key("GlobalNetworkPolicy", "p"))

	set := func(nets string) string {
		return "kind: GlobalNetworkSet\nmetadata: {name: s}\nspec: {nets: [" + nets + "]}\n"
	}
	put("a net", set("10.0.0.0/8, 10/8"), `GlobalNetworkSet(s): spec.nets: "10/8" is no address or network`)
	put("more", set("10.0.0.0/8, 10/8, 11/8, 12/8"), `GlobalNetworkSet(s): spec.nets: "10/8" is no address or network; and 2 more like that`)
	put("others", set("10.0.0.0/8, 12/8"), `GlobalNetworkSet(s): spec.nets: "12/8" is no address or network`)
	put("none", set("10.0.0.0/8"))
	put("an endpoint's address", strings.Replace(endpoint("web", "app: web", ""), "10.0.0.1", "10.0.0.256", 1), `WorkloadEndpoint(default/web): spec.ipNetworks: "10.0.0.256" is no address or network`)
	remove("the endpoint is gone", web)

	staged := "kind: StagedGlobalNetworkPolicy\nmetadata: {name: p}\nspec: {selector: has(app), stagedAction: %s, ingress: [{action: Go}]}\n"
	put("web again", endpoint("web", "app: web", ""))
	put("a staged policy", fmt.Sprintf(staged, "Set"), `StagedGlobalNetworkPolicy(p): spec.ingress[0].action: "Go" is none of Allow, Deny, Log, Pass`)
	put("ignored", fmt.Sprintf(staged, "Ignore"))
}

// What cannot even be decoded is judged rule by rule as well.
func TestSalvagedPolicies(t *testing.T) {
	store := state{resources: web + db + open}.store(t)
	r := api.Salvage("GlobalNetworkPolicy", []byte(`{"metadata":{"name":"p"},"spec":{"selector":"app == 'web'","types":["Ingress",1],"ingress":[
		{"action":"Allow","protocol":"TCP","destination":{"ports":[80,"90:80"]}},
		{"action":"Allow","protocol":"UDP","source":{"notPorts":[70000, "a b"]},"destination":{"ports":[53]}},
		{"action":"Deny","protocol":300,"source":{"nets":["10.0.0.2/32"]}},
		{"action":"Allow","protocol":"SCTP"},
		{"action":"Allow","ipVersion":"4"}]}}`))
	api.Default(r)
	store.Apply(api.Change{Key: api.KeyOf(r), Resource: r})
	s := state{
		name: "salvaged",
		verdicts: `
			web ingress tcp [10.0.0.3]:9 [10.0.0.1]:81 => Deny default/p[0]
			web ingress udp [10.0.0.3]:9 [10.0.0.1]:53 => Deny default/p[1]
			web ingress udp [10.0.0.3]:9 [10.0.0.1]:54 => Deny default/p[4]
			web ingress sctp [10.0.0.2]:9 [10.0.0.1]:54 => Deny default/p[2]
			web ingress sctp [10.0.0.3]:9 [10.0.0.1]:54 => Allow default/p[3]
			web egress sctp [10.0.0.1]:9 [10.0.0.3]:54 => Deny default/p/end
			db egress sctp [10.0.0.2]:9 [10.0.0.3]:54 => Deny end`,
		problems: `
			GlobalNetworkPolicy(p): spec.ingress[0].destination.ports: "90:80" is no port, range of ports or name of one
			GlobalNetworkPolicy(p): spec.ingress[1].source.notPorts: "70000" is no port, range of ports or name of one
			GlobalNetworkPolicy(p): spec.ingress[1].source.notPorts: "a b" is no port, range of ports or name of one
			GlobalNetworkPolicy(p): spec.ingress[2].protocol: "300" is not known
			GlobalNetworkPolicy(p): spec.ingress[4].action: "unreadable: json: cannot unmarshal string into Go struct field Rule.ipVersion of type int" is none of Allow, Deny, Log, Pass
			GlobalNetworkPolicy(p): spec.types: "1" is neither Ingress nor Egress`,
	}
	s.check(t, "salvaged", store, policy.NewCompiler(policytest.Node).Compile(store, nil))
}
