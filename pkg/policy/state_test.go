package policy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/policy"
	"calico-xdp/pkg/policy/policytest"
)

// state is everything that a datastore holds, and what has to follow from it
// whatever it held before.
type state struct {
	name      string
	resources string // YAML documents
	// verdicts are lines "endpoint direction protocol source destination =>
	// rules", with [address]:port or address; ICMP has type.code for the
	// destination's port. A host endpoint has stage.direction for the direction.
	// A direction after "would." is that of the staged ruleset.
	verdicts string
	problems string // one a line
	staged   string // same
}

// store returns the state's resources, defaulted.
func (s state) store(t *testing.T) *api.Store {
	t.Helper()
	store := api.NewStore()
	for _, document := range strings.Split(s.resources, "---\n") {
		if strings.TrimSpace(document) == "" {
			continue
		}
		r, err := api.Decode([]byte("apiVersion: projectcalico.org/v3\n" + document))
		if err != nil {
			t.Fatalf("%s: %v\n%s", s.name, err, document)
		}
		store.Apply(api.Change{Key: api.KeyOf(r), Resource: r})
	}
	return store
}

// check compares tables made for the state with what the state says and with
// the oracle.
func (s state) check(t *testing.T, how string, store *api.Store, tables *policy.Tables) {
	t.Helper()
	oracle := policytest.NewOracle(store)
	var got []string
	for _, line := range lines(s.verdicts) {
		question, _, _ := strings.Cut(line, " => ")
		f := strings.Fields(question)
		key := api.Key{Kind: api.KindWorkloadEndpoint, Namespace: "default", Name: f[0]}
		if namespace, name, ok := strings.Cut(f[0], "/"); ok {
			key.Namespace, key.Name = namespace, name
		}
		p := parsePacket(t, f[2], f[3], f[4])
		var met, judged []policytest.Step
		oracle, endpoint, host := oracle, tables.Endpoints[key], tables.HostEndpoints[hostKey(f[0])]
		where, would := strings.CutPrefix(f[1], "would.")
		if would {
			oracle, endpoint, host = policytest.NewStagedOracle(store), wouldBe(endpoint), wouldBeHost(host)
		}
		var id policy.RulesetID
		if stage, direction, ok := strings.Cut(where, "."); ok {
			id, judged = hostStage(host, stage, direction), oracle.JudgeHost(hostKey(f[0]), stage, direction, p)
		} else {
			id, judged = rulesetIn(endpoint, where), oracle.Judge(key, where, p)
		}
		if met = steps(tables, id, p); would && id == 0 {
			judged = nil
		}
		if !slices.Equal(met, judged) {
			t.Errorf("%s, %s: %s: the tables say %v, the oracle %v", s.name, how, question, met, judged)
		}
		var texts []string
		for _, step := range met {
			texts = append(texts, stepText(step))
		}
		if met == nil {
			texts = []string{"no policy"}
		}
		got = append(got, strings.Join(f, " ")+" => "+strings.Join(texts, ", "))
	}
	compareLines(t, s.name+", "+how, got, lines(s.verdicts))
	var problems []string
	for _, p := range tables.Problems {
		problems = append(problems, p.Object.String()+": "+p.Err.Error())
	}
	compareLines(t, s.name+", "+how+", problems", problems, lines(s.problems))
	var staged []string
	for _, key := range tables.Staged {
		staged = append(staged, key.String())
	}
	compareLines(t, s.name+", "+how+", staged", staged, lines(s.staged))
}

func hostKey(name string) api.Key { return api.Key{Kind: api.KindHostEndpoint, Name: name} }

func compareLines(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\ngot\n  %s\nwant\n  %s", what, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func lines(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if line = strings.Join(strings.Fields(line), " "); line != "" {
			out = append(out, line)
		}
	}
	return out
}

func stepText(s policytest.Step) string {
	action := [...]string{"?", "Deny", "Allow", "Pass", "Log", "Continue"}[s.Action]
	var where []string
	if s.Rule.Tier != "" {
		where = append(where, s.Rule.Tier)
	}
	if p := s.Rule.Policy; p.Namespace != "" {
		where = append(where, p.Namespace)
	}
	if p := s.Rule.Policy; p.Name != "" {
		where = append(where, p.Name)
	}
	staged := ""
	if s.Rule.Staged {
		staged = " staged"
	}
	if s.Rule.Index < 0 {
		return action + " " + strings.Join(append(where, "end"), "/") + staged
	}
	return fmt.Sprintf("%s %s[%d]%s", action, strings.Join(where, "/"), s.Rule.Index, staged)
}

func parsePacket(t *testing.T, protocol, source, destination string) policy.Packet {
	t.Helper()
	p := policy.Packet{}
	number, ok := map[string]uint8{"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1, "icmp6": 58, "gre": 47, "udplite": 136}[protocol]
	if !ok {
		t.Fatalf("no protocol %q", protocol)
	}
	p.Protocol = number
	parse := func(text string) (netip.Addr, uint16) {
		if a, err := netip.ParseAddr(text); err == nil {
			return a, 0
		}
		host, port, _ := strings.Cut(text, "]:")
		a, err := netip.ParseAddr(strings.TrimPrefix(host, "["))
		if err != nil {
			t.Fatal(err)
		}
		if kind, code, ok := strings.Cut(port, "."); ok {
			return a, portNumber(t, kind)<<8 | portNumber(t, code)
		}
		return a, portNumber(t, port)
	}
	p.Source, p.SourcePort = parse(source)
	p.Destination, p.DestinationPort = parse(destination)
	return p
}

func portNumber(t *testing.T, text string) uint16 {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	return uint16(n)
}

// runStates brings one compiler through the states in many orders. What comes
// out must not depend on the way.
func runStates(t *testing.T, states []state) {
	t.Helper()
	empty := state{name: "empty"}
	reversed := slices.Clone(states)
	slices.Reverse(reversed)
	var withEmpties, repeated []state
	for _, s := range states {
		withEmpties = append(withEmpties, s, empty)
		repeated = append(repeated, s, s, s, s)
	}
	type order struct {
		how    string
		states []state
	}
	orders := []order{
		{"in order", states}, {"reversed", reversed}, {"with empties", withEmpties}, {"repeated", repeated},
		{"there and back", append(slices.Clone(states), reversed...)},
	}
	for _, s := range states {
		orders = append(orders, order{"alone", []state{s}})
	}
	for _, o := range orders {
		compiler := policy.NewCompiler(policytest.Node)
		var last state
		var store *api.Store
		for _, last = range o.states {
			store = last.store(t)
			last.check(t, o.how, store, compiler.Compile(store, nil))
		}
		last.check(t, o.how+", settled", store, settles(t, compiler, store))
	}
	// Squashed: one store takes all the changes, and only the end is compiled.
	all, last := api.NewStore(), states[len(states)-1]
	for _, s := range states {
		replace(all, s.store(t))
	}
	last.check(t, "squashed", all, policy.NewCompiler(policytest.Node).Compile(all, nil))
}

// replace makes one store hold what the other does.
func replace(store, by *api.Store) {
	for _, kind := range api.Kinds() {
		for key := range api.All[api.Resource](store, kind.Name) {
			store.Apply(api.Change{Key: key})
		}
		for key, r := range api.All[api.Resource](by, kind.Name) {
			store.Apply(api.Change{Key: key, Resource: r})
		}
	}
}
