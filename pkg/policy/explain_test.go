package policy_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/policy"
	"calico-xdp/pkg/policy/policytest"
)

// others generates the packets that differ from one in some fields of a rule only.
func others(p policy.Packet, fields []policy.FieldMiss, yield func(policy.Packet) bool) {
	named := func(names ...string) bool {
		return slices.ContainsFunc(fields, func(f policy.FieldMiss) bool { return slices.Contains(names, f.Field) })
	}
	ofAddress := func(side string) bool {
		return slices.ContainsFunc(fields, func(f policy.FieldMiss) bool {
			// The name of a port asks for an endpoint as well.
			part, rest, _ := strings.Cut(f.Field, ".")
			return part == side && (rest != "ports" && rest != "notPorts" || strings.ContainsAny(f.Want, "dh"))
		})
	}
	v4, v6 := policytest.Addresses()
	v4, v6 = v4[:9], v6[:8] // among them one of each sort
	sources, destinations := []netip.Addr{p.Source}, []netip.Addr{p.Destination}
	anySource, anyDestination := ofAddress("source") || named("ipVersion"), ofAddress("destination") || named("ipVersion")
	if anySource || anyDestination {
		// The family is that of both addresses.
		all := slices.Clip(slices.Concat(v4, v6))
		sources, destinations = append(all, p.Source), append(all, p.Destination)
	}
	protocols := []uint8{p.Protocol}
	if named("protocol", "notProtocol") {
		protocols = []uint8{1, 6, 17, 47, 58, 132, 136}
	}
	ports := []uint16{1, 53, 79, 80, 81, 8080, 65535}
	for _, number := range protocols {
		kind, sameKind := kindOfPorts(number), kindOfPorts(number) == kindOfPorts(p.Protocol)
		sourcePorts, destinationPorts := []uint16{p.SourcePort}, []uint16{p.DestinationPort}
		switch {
		case kind == "none":
			sourcePorts, destinationPorts = []uint16{0}, []uint16{0}
		case kind == "ICMP":
			sourcePorts = []uint16{0}
			if !sameKind || named("icmp.type", "icmp.code", "notICMP.type", "notICMP.code") {
				destinationPorts = nil
				for _, t := range []uint16{0, 3, 5, 8, 128} {
					destinationPorts = append(destinationPorts, t<<8, t<<8|1, t<<8|2)
				}
			}
		default:
			if !sameKind || named("source.ports", "source.notPorts") {
				sourcePorts = ports
			}
			if !sameKind || named("destination.ports", "destination.notPorts") {
				destinationPorts = ports
			}
		}
		for _, source := range sources {
			for _, destination := range destinations {
				sameFamily := source.Is4() == p.Source.Is4()
				if source.Is4() != destination.Is4() || sameFamily && (!anySource && source != p.Source || !anyDestination && destination != p.Destination) {
					continue
				}
				for _, from := range sourcePorts {
					for _, to := range destinationPorts {
						if !yield(policy.Packet{Source: source, Destination: destination, Protocol: number, SourcePort: from, DestinationPort: to}) {
							return
						}
					}
				}
			}
		}
	}
}

func kindOfPorts(protocol uint8) string {
	switch protocol {
	case 6, 17, 132, 136:
		return "ports"
	case 1, 58:
		return "ICMP"
	}
	return "none"
}

// fits says whether one of the packets that differ in some fields only fits a rule.
func fits(oracle *policytest.Oracle, rule policy.RuleID, p policy.Packet, fields []policy.FieldMiss) (fits bool) {
	others(p, fields, func(other policy.Packet) bool {
		fits = oracle.RuleMatches(rule, other)
		return !fits
	})
	return fits
}

// everyField are all that a rule can miss.
func everyField() (fields []policy.FieldMiss) {
	for _, name := range []string{"ipVersion", "protocol", "icmp.type", "source.nets", "destination.nets", "source.ports", "destination.ports"} {
		fields = append(fields, policy.FieldMiss{Field: name})
	}
	return fields
}

func TestExplanations(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := policytest.Stores().Draw(t, "store")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		tables := policy.NewCompiler(policytest.Node).Compile(store, nil)
		oracle, staged := policytest.NewOracle(store), policytest.NewStagedOracle(store)
		checked := make(map[policy.RulesetID]bool)
		for _, ids := range inUse(tables) {
			for _, id := range ids {
				if checked[id] || len(checked) == 8 {
					continue
				}
				checked[id] = true
				rule := tables.Rulesets[id].Rule(0).ID
				p := policytest.RandomPacket(rng, rule.Direction, netip.Addr{})
				e := tables.Explain(id, p)
				explains(t, tables, id, p, e)
				for n, near := range e.Nearest {
					who := oracle
					if strings.HasPrefix(near.Rule.Policy.Kind, "Staged") {
						who = staged
					}
					nearlyAllows(t, store, who, p, near)
					if n == 0 && rng.IntN(20) == 0 {
						nothingElse(t, store, who, p, near)
					}
				}
			}
		}
	})
}

// explains checks an explanation against the rules that the packet meets.
func explains(t *rapid.T, tables *policy.Tables, id policy.RulesetID, p policy.Packet, e policy.Explanation) {
	t.Helper()
	action, rule := tables.Verdict(id, p)
	met := slices.Collect(tables.Matches(id, p))
	if e.Action != action || e.Rule != rule || !slices.Equal(e.Met, met[:len(met)-1]) {
		t.Fatalf("%+v of %+v: got %+v, want %v by %v after %v", id, p, e, action, rule, met)
	}
	last := policy.RuleID{}
	for _, x := range e.Path {
		if x.Matched != (x.Rule.Policy != api.Key{}) || (x.Rule == policy.RuleID{}) != (x.Action == 0) {
			t.Fatalf("%+v of %+v: path %+v", id, p, e.Path)
		}
		if x.Rule != (policy.RuleID{}) {
			last = x.Rule
		}
	}
	if rule.Tier+rule.Policy.Name != "" && last != rule {
		t.Fatalf("%+v of %+v: path %+v does not end with %+v", id, p, e.Path, rule)
	}
	if action != policy.Deny && len(e.Nearest)+len(e.Faults) > 0 {
		t.Fatalf("%+v of %+v: got %+v", id, p, e)
	}
}

// nearlyAllows checks that a packet does not fit a rule, and would if it was another
// one in the fields that are said.
func nearlyAllows(t *rapid.T, store *api.Store, oracle *policytest.Oracle, p policy.Packet, near policy.NearMiss) {
	t.Helper()
	if oracle.RuleMatches(near.Rule, p) {
		t.Fatalf("%+v fits %s\n%s", p, near.Rule, dump(store))
	}
	for _, f := range near.Fields {
		if f.Want == "" || f.Got == "" {
			t.Fatalf("%s: %+v", near.Rule, f)
		}
		if f.Got == "what is not looked at" {
			return
		}
	}
	if near.Rule.Policy.Kind == api.KindStagedKubernetesNetworkPolicy {
		return // one rule there is many alternatives, of which the fields are one's
	}
	if !fits(oracle, near.Rule, p, near.Fields) && fits(oracle, near.Rule, p, everyField()) && !conflicts(oracle, near, p) {
		t.Fatalf("%+v does not fit %s whatever its %v\n%s", p, near.Rule, near.Fields, dump(store))
	}
}

// nothingElse checks that every field that is said has to change: the packet does not
// fit whatever the rest of it is.
func nothingElse(t *rapid.T, store *api.Store, oracle *policytest.Oracle, p policy.Packet, near policy.NearMiss) {
	t.Helper()
	if near.Rule.Policy.Kind == api.KindStagedKubernetesNetworkPolicy {
		return
	}
	all := everyField()
	for _, f := range near.Fields {
		part, rest, _ := strings.Cut(f.Field, ".")
		kept := func(x policy.FieldMiss) bool { return x.Field == "protocol" }
		switch {
		case f.Field == "ipVersion": // is that of both addresses
			kept = func(x policy.FieldMiss) bool { return x.Field == f.Field || strings.HasSuffix(x.Field, ".nets") }
		case rest == "ports" || rest == "notPorts":
			kept = func(x policy.FieldMiss) bool { return x.Field == part+".ports" || x.Field == "protocol" }
		case part == "icmp" || part == "notICMP":
			kept = func(x policy.FieldMiss) bool { return x.Field == "icmp.type" || x.Field == "protocol" }
		case part == "source" || part == "destination":
			kept = func(x policy.FieldMiss) bool { return x.Field == part+".nets" || x.Field == "ipVersion" }
		}
		others(p, slices.DeleteFunc(slices.Clone(all), kept), func(other policy.Packet) bool {
			if (part == "source" && other.Source != p.Source || part == "destination" && other.Destination != p.Destination) && rest != "ports" && rest != "notPorts" {
				return true // of the other family
			}
			if oracle.RuleMatches(near.Rule, other) {
				t.Fatalf("%+v does not fit %s because of %s, but %+v does\n%s", p, near.Rule, f, other, dump(store))
			}
			return true
		})
	}
}

// conflicts says that a field can only fit if the packet is of the other family.
func conflicts(oracle *policytest.Oracle, near policy.NearMiss, p policy.Packet) bool {
	all := slices.DeleteFunc(everyField(), func(f policy.FieldMiss) bool { return f.Field == "ipVersion" })
	fit := false
	others(p, all, func(other policy.Packet) bool {
		fit = other.Source.Is4() == p.Source.Is4() && oracle.RuleMatches(near.Rule, other)
		return !fit
	})
	return !fit
}

func TestExplainedInWords(t *testing.T) {
	store := state{resources: web + db + open + `kind: Tier
metadata: {name: first}
spec: {order: 1, defaultAction: Pass}
---
kind: GlobalNetworkPolicy
metadata: {name: first.a}
spec: {tier: first, selector: all(), ingress: [{action: Log, protocol: TCP}, {action: Allow, protocol: TCP, source: {nets: [192.0.2.0/24], notNets: [192.0.2.7/32]}, destination: {ports: [443, "8080:8090"]}}]}
---
kind: GlobalNetworkPolicy
metadata: {name: first.b}
spec: {tier: first, selector: app == 'db'}
---
kind: NetworkPolicy
metadata: {name: b, namespace: default}
spec:
  selector: app == 'db'
  ingress:
  - {action: Deny, protocol: SCTP}
  - {action: Allow, protocol: TCP, source: {selector: app == 'web', notSelector: role == 'none'}, destination: {ports: [sql, 22]}}
  - {action: Allow, ipVersion: 6, notProtocol: UDP, source: {selector: app == 'proxy'}}
  - {action: Allow, protocol: ICMP, icmp: {type: 8, code: 0}, notICMP: {type: 3, code: 1}, source: {namespaceSelector: env == 'live'}}
  - {action: Allow, protocol: UDP, source: {nets: [10.9.9.9/33]}}
`}.store(t)
	tables := policy.NewCompiler(policytest.Node).Compile(store, nil)
	id := tables.Endpoints[api.Key{Kind: "WorkloadEndpoint", Namespace: "default", Name: "db"}].Ingress
	explain := func(question string) []string {
		f := strings.Fields(question)
		e := tables.Explain(id, parsePacket(t, f[0], f[1], f[2]))
		out := []string{stepText(policytest.Step{Action: e.Action, Rule: e.Rule})}
		for _, x := range e.Path {
			var policies []string
			for _, key := range x.Policies {
				policies = append(policies, key.Name)
			}
			text := fmt.Sprintf("in %s asked %s", x.Tier, strings.Join(policies, ","))
			if x.Matched {
				text += ", met " + stepText(policytest.Step{Action: x.Action, Rule: x.Rule})
			}
			out = append(out, text)
		}
		for _, rule := range e.Met {
			out = append(out, "after "+stepText(policytest.Step{Action: rule.Action, Rule: rule.ID}))
		}
		for _, fault := range e.Faults {
			out = append(out, "as "+fault.Error())
		}
		for _, near := range e.Nearest {
			var fields []string
			for _, f := range near.Fields {
				fields = append(fields, f.String())
			}
			out = append(out, "nearly "+stepText(policytest.Step{Action: policy.Allow, Rule: near.Rule})+": "+strings.Join(fields, "; "))
		}
		return out
	}
	through := []string{"in first asked first.a,first.b", "in default asked b"}
	for question, want := range map[string][]string{
		"tcp [10.0.0.1]:9 [10.0.0.2]:80": append([]string{"Deny default/end"}, append(through,
			"after Log first/first.a[0]", "after Pass first/end",
			"nearly Allow default/default/b[1]: destination.ports: want sql,22 (sql is 5432), got 80")...),
		"tcp [192.0.2.7]:9 [10.0.0.2]:8080": append([]string{"Deny default/end"}, append(through,
			"after Log first/first.a[0]", "after Pass first/end",
			"nearly Allow first/first.a[1]: source.notNets: want not 192.0.2.7/32, got 192.0.2.7")...),
		"sctp [10.0.0.3]:9 [10.0.0.2]:443": {
			"Deny default/default/b[0]", "in first asked first.a,first.b", "in default asked b, met Deny default/default/b[0]",
			"after Pass first/end",
			"nearly Allow first/first.a[1]: protocol: want TCP, got SCTP; source.nets: want 192.0.2.0/24, got 10.0.0.3"},
		"udp [10.0.0.1]:9 [10.0.0.2]:80": {
			"Deny default/default/b[4]", "in first asked first.a,first.b", "in default asked b, met Deny default/default/b[4]",
			"after Pass first/end",
			`as spec.ingress[4].source.nets: "10.9.9.9/33" is no address or network`,
			"nearly Allow default/default/b[1]: protocol: want TCP, got UDP; destination.ports: want sql,22 (sql is 5432), got 80"},
		"icmp 10.0.0.1 [10.0.0.2]:3.1": append([]string{"Deny default/end"}, append(through,
			"after Pass first/end",
			"nearly Allow default/default/b[1]: protocol: want TCP, got ICMP; destination.ports: want sql,22 (sql is 5432), got none")...),
		"icmp 10.0.0.2 [10.0.0.2]:3.1": append([]string{"Deny default/end"}, append(through,
			"after Pass first/end",
			"nearly Allow default/default/b[2]: ipVersion: want 6, got 4; source.selector: want app == 'proxy' in namespace default, got WorkloadEndpoint(default/db) with app='db'")...),
	} {
		if got := explain(question); !slices.Equal(got, want) {
			t.Errorf("%s:\n  %s\nwant\n  %s", question, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
		}
	}
	if e := tables.Explain(0, policy.Packet{}); e.Action != policy.Deny || e.Rule != (policy.RuleID{}) || len(e.Nearest) != 0 {
		t.Errorf("no ruleset: %+v", e)
	}
}
