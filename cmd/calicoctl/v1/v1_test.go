package v1_test

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"calico-xdp/cmd/calicoctl/v1"
	"calico-xdp/pkg/api"

	"github.com/google/go-cmp/cmp"
)

func TestNames(t *testing.T) {
	for old, want := range map[string]string{
		"dev": "dev", "WEB": "web-f1e29c6d", "PROF_A_C_E": "prof-a-c-e-4a09d575", "APP_7890": "app-7890-6290a283",
	} {
		if got := v1.Name(old); got != want {
			t.Errorf("%s: %s, expected %s", old, got, want)
		}
	}
	if got := v1.PoolName(netip.MustParsePrefix("192.168.0.0/16")); got != "192-168-0-0-16" {
		t.Error(got)
	}
	if got := v1.PeerName("", netip.MustParseAddr("1.2.3.4")) + " " + v1.PeerName("Host_1", netip.MustParseAddr("fd00::1")); got != "1-2-3-4 host-1.fd00-0000-0000-0000-0000-0000-0000-0001" {
		t.Error(got)
	}
}

// Words, JSON and v3 say the same.
func TestRules(t *testing.T) {
	for _, words := range []string{
		"allow", "deny tcp", "allow from tag web", "deny udp from ports 1,2:3 tag a cidr 10.0.0.0/8 to ports 80",
		"allow icmp type 8 code 0 to cidr 10.0.0.0/8", "allow icmpv6 type 128 from tag x", "deny tcp to ports 80,443",
	} {
		r, err := v1.ParseRule(strings.Fields(words))
		if err != nil {
			t.Errorf("%s: %v", words, err)
			continue
		}
		if r.String() != words {
			t.Errorf("%s: got %s", words, &r)
		}
		rules, err := v1.ToV3([]v1.Rule{r})
		if err != nil {
			t.Errorf("%s: %v", words, err)
			continue
		}
		back, err := v1.FromV3(rules)
		if diff := cmp.Diff([]v1.Rule{r}, back); err != nil || diff != "" {
			t.Errorf("%s: %v %s", words, err, diff)
		}
		text, err := json.Marshal(v1.Rules{ID: "p", Inbound: back, Outbound: []v1.Rule{}})
		if err != nil {
			t.Fatal(err)
		}
		again, err := v1.ParseRules(text)
		if diff := cmp.Diff(back, again.Inbound); err != nil || diff != "" {
			t.Errorf("%s: %v %s", text, err, diff)
		}
	}
	for _, words := range []string{"", "permit", "allow tcp 80", "allow from ports 80", "allow tcp from ports 70000", "allow icmp type 255", "allow to x", "allow tcp to ports 9:8"} {
		if r, err := v1.ParseRule(strings.Fields(words)); err == nil {
			t.Errorf("%q: got %s", words, &r)
		}
	}
	for _, text := range []string{
		`{"id":"p","inbound_rules":[]}`, `{"id":"p","inbound_rules":[{"action":"allow","colour":1}],"outbound_rules":[]}`, `[]`,
	} {
		if _, err := v1.ParseRules([]byte(text)); err == nil {
			t.Errorf("%s was taken", text)
		}
	}
}

// TestConvertedPolicies: a policy is for the directions that it has rules for, ingress if
// it has none. Anything else would close what was open.
func TestConvertedPolicies(t *testing.T) {
	for spec, want := range map[string]string{
		`{"ingress":[{"action":"allow"}]}`:                               `["Ingress"]`,
		`{"egress":[{"action":"allow"}]}`:                                `["Egress"]`,
		`{"ingress":[{"action":"allow"}],"egress":[{"action":"allow"}]}`: `["Ingress","Egress"]`,
		`{"doNotTrack":true}`:                                            `["Ingress"]`,
		`{"types":["ingress","egress"]}`:                                 `["Ingress","Egress"]`,
	} {
		r, err := v1.Convert([]byte(`{"apiVersion":"v1","kind":"policy","metadata":{"name":"p"},"spec":` + spec + `}`))
		if err != nil {
			t.Fatal(err)
		}
		p := r.(*api.GlobalNetworkPolicy)
		if got, _ := json.Marshal(p.Spec.Types); string(got) != want {
			t.Errorf("%s: types %s, expected %s", spec, got, want)
		}
		if p.Annotations != nil {
			t.Errorf("%s: annotations %v", spec, p.Annotations)
		}
	}
	r, err := v1.Convert([]byte(`{"apiVersion":"v1","kind":"workloadEndpoint","metadata":{"name":"eth0","workload":"prod.web-0","orchestrator":"k8s","node":"n","labels":{"a":"b","calico/k8s_ns":"prod"}},"spec":{"interfaceName":"cali1","ipNetworks":["10.0.0.1/32"]}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"a": "b", "projectcalico.org/namespace": "prod", "projectcalico.org/orchestrator": "k8s"}
	if diff := cmp.Diff(want, r.GetLabels()); diff != "" {
		t.Error(diff)
	}
}
