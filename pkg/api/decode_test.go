package api

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// stored returns how the input of a user is stored.
func stored(t *testing.T, input string) string {
	t.Helper()
	r, err := Decode([]byte(input))
	if err != nil {
		t.Fatal(err)
	}
	Default(r)
	if err := Validate(r); err != nil {
		t.Fatal(err)
	}
	data, err := Encode(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestUserInputIsStoredAsCalicoStoresIt(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"flow mapping without quotes, with True and a trailing comma": {
			`{ kind: IPPool, apiVersion: projectcalico.org/v3, metadata: { name: default-pool, },
			spec: {blockSize: 24, cidr: 10.233.64.0/18,
			  ipipMode: Always, vxlanMode: Never, natOutgoing: True, }, }`,
			`{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"default-pool"},"spec":{"cidr":"10.233.64.0/18","vxlanMode":"Never","ipipMode":"Always","natOutgoing":true,"blockSize":24,"nodeSelector":"all()","allowedUses":["Workload","Tunnel"],"assignmentMode":"Automatic"}}`,
		},
		"JSON with a trailing comma": {
			`{"kind": "BGPConfiguration", "apiVersion": "projectcalico.org/v3", "metadata": { "name": "default", },
			  "spec": { "logSeverityScreen": "Info", "nodeToNodeMeshEnabled": true, "asNumber": "64512" }}`,
			`{"kind":"BGPConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"logSeverityScreen":"Info","nodeToNodeMeshEnabled":true,"asNumber":64512,"serviceLoadBalancerAggregation":"Enabled"}}`,
		},
		"JSON with tabs": {
			"{\n\t\"kind\": \"IPReservation\",\n\t\"apiVersion\": \"projectcalico.org/v3\",\n\t\"metadata\": {\"name\": \"r\"},\n\t\"spec\": {\"reservedCIDRs\": [\"10.0.0.1\"]}\n}\n",
			`{"kind":"IPReservation","apiVersion":"projectcalico.org/v3","metadata":{"name":"r"},"spec":{"reservedCIDRs":["10.0.0.1"]}}`,
		},
		"dotted AS number": {
			"apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: p}\nspec: {peerIP: 10.0.0.1, asNumber: '10.100'}\n",
			`{"kind":"BGPPeer","apiVersion":"projectcalico.org/v3","metadata":{"name":"p"},"spec":{"peerIP":"10.0.0.1","asNumber":655460}}`,
		},
		"the greatest AS number": {
			"apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: p}\nspec: {peerIP: '[fd00::1]:1790', asNumber: 4294967295}\n",
			`{"kind":"BGPPeer","apiVersion":"projectcalico.org/v3","metadata":{"name":"p"},"spec":{"peerIP":"[fd00::1]:1790","asNumber":4294967295}}`,
		},
		"label values that YAML takes for no strings": {
			"apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata: {name: s, labels: {host: true, count: 1}}\nspec: {nets: [10.0.0.0/8]}\n",
			`{"kind":"GlobalNetworkSet","apiVersion":"projectcalico.org/v3","metadata":{"name":"s","labels":{"count":"1","host":"true"}},"spec":{"nets":["10.0.0.0/8"]}}`,
		},
		"an IPv6 pool written otherwise": {
			"apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: p}\nspec: {cidr: 'FD02:0::/48'}\n",
			`{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"p"},"spec":{"cidr":"fd02::/48","vxlanMode":"Never","ipipMode":"Never","blockSize":122,"nodeSelector":"all()","allowedUses":["Workload","Tunnel"],"assignmentMode":"Automatic"}}`,
		},
		"a policy with egress rules only and a protocol in lower case": {
			"apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: np, namespace: prod}\nspec: {egress: [{action: Allow, protocol: tcp, destination: {ports: [80, '100:200', web]}}]}\n",
			`{"kind":"NetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"np","namespace":"prod","labels":{"projectcalico.org/tier":"default"},"annotations":{"projectcalico.org/metadata":"{\"name\":\"np\"}"}},"spec":{"tier":"default","egress":[{"action":"Allow","protocol":"TCP","destination":{"ports":[80,"100:200","web"]}}],"types":["Egress"]}}`,
		},
		"a policy with rules of both kinds, no namespace, two sides given and empty": {
			"apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: np}\nspec: {tier: t, ingress: [{action: Deny, source: {}}], egress: [{action: Pass, destination: {}}]}\n",
			`{"kind":"NetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"np","namespace":"default","labels":{"projectcalico.org/tier":"t"},"annotations":{"projectcalico.org/metadata":"{\"name\":\"np\"}"}},"spec":{"tier":"t","ingress":[{"action":"Deny"}],"egress":[{"action":"Pass"}],"types":["Ingress","Egress"]}}`,
		},
		"controllers' configuration": {
			"apiVersion: projectcalico.org/v3\nkind: KubeControllersConfiguration\nmetadata: {name: default}\nspec: {controllers: {node: {}, loadBalancer: {}}}\n",
			`{"kind":"KubeControllersConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"prometheusMetricsPort":9094,"controllers":{"node":{"leakGracePeriod":"15m0s"},"loadBalancer":{"assignIPs":"AllServices"}}},"status":{}}`,
		},
		"a tier": {
			"apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: noorder}\n",
			`{"kind":"Tier","apiVersion":"projectcalico.org/v3","metadata":{"name":"noorder"},"spec":{"order":1000000,"defaultAction":"Deny"},"status":{}}`,
		},
		"a node": {
			"apiVersion: projectcalico.org/v3\nkind: Node\nmetadata: {name: node-b}\nspec: {bgp: {ipv4Address: 10.10.0.2/24}}\n",
			`{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"node-b"},"spec":{"bgp":{"ipv4Address":"10.10.0.2/24"}},"status":{}}`,
		},
		"a workload endpoint without name": {
			"apiVersion: projectcalico.org/v3\nkind: WorkloadEndpoint\nmetadata: {namespace: prod, labels: {app: web}}\nspec: {node: node-a, orchestrator: k8s, pod: web-0, endpoint: eth0, interfaceName: cali0, ipNetworks: [10.0.0.1]}\n",
			`{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"node--a-k8s-web--0-eth0","namespace":"prod","labels":{"app":"web","projectcalico.org/namespace":"prod","projectcalico.org/orchestrator":"k8s"}},"spec":{"orchestrator":"k8s","node":"node-a","pod":"web-0","endpoint":"eth0","ipNetworks":["10.0.0.1"],"interfaceName":"cali0"}}`,
		},
		"Felix's configuration of a node": {
			"apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {name: node.node-a}\nspec: {logSeverityScreen: Debug}\n",
			`{"kind":"FelixConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"node.node-a"},"spec":{"logSeverityScreen":"Debug","nftablesMode":"Auto","nftablesFlowTableOffload":"Disabled","bpfLogLevel":"","bpfConnectTimeLoadBalancing":"TCP","bpfHostNetworkedNATWithoutCTLB":"Enabled","floatingIPs":"Disabled"}}`,
		},
		"IPAM's configuration that turns automatic blocks off": {
			"apiVersion: projectcalico.org/v3\nkind: IPAMConfiguration\nmetadata: {name: default}\nspec: {autoAllocateBlocks: false}\n",
			`{"kind":"IPAMConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"strictAffinity":false,"autoAllocateBlocks":false}}`,
		},
		"a revision, which is not stored": {
			"apiVersion: projectcalico.org/v3\nkind: IPReservation\nmetadata: {name: r, resourceVersion: '12'}\n",
			`{"kind":"IPReservation","apiVersion":"projectcalico.org/v3","metadata":{"name":"r"},"spec":{}}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(c.want, stored(t, c.in)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	const head = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: p}\n"
	for name, c := range map[string]struct{ in, want string }{
		"unknown field":          {head + "spec: {cidr: 10.0.0.0/16, blokSize: 26}", `IPPool(p): unknown field "spec.blokSize"`},
		"a field in wrong case":  {head + "spec: {CIDR: 10.0.0.0/16}", `IPPool(p): unknown field "spec.CIDR"`},
		"a field twice":          {head + "spec: {cidr: 10.0.0.0/16, cidr: 10.1.0.0/16}", `key "cidr" already set`},
		"a field twice in JSON":  {`{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"p","name":"q"}}`, `duplicate field "metadata.name"`},
		"wrong type":             {head + "spec: {cidr: 10.0.0.0/16, blockSize: big}", "IPPool(p): json: cannot unmarshal string"},
		"no kind":                {"apiVersion: projectcalico.org/v3\nmetadata: {name: p}", "resource without kind"},
		"unknown kind":           {"apiVersion: projectcalico.org/v3\nkind: Pool\nmetadata: {name: p}", `unknown kind "Pool"`},
		"internal kind":          {"apiVersion: projectcalico.org/v3\nkind: IPAMBlock\n", `unknown kind "IPAMBlock"`},
		"other version":          {"apiVersion: v1\nkind: IPPool\nmetadata: {name: p}", `apiVersion "v1": expected projectcalico.org/v3`},
		"two resources":          {head + "---\n" + head, "expected one resource, found 2"},
		"nothing":                {"# a comment\n", "expected one resource, found 0"},
		"no resource":            {"42", "not a resource"},
		"AS number too great":    {"apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: p}\nspec: {peerIP: 10.0.0.1, asNumber: 4294967296}", "BGPPeer(p): "},
		"dotted AS out of range": {"apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: p}\nspec: {peerIP: 10.0.0.1, asNumber: '65536.1'}", "invalid AS Number format (65536.1)"},
		"port range reversed":    {"apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {ingress: [{action: Allow, protocol: TCP, destination: {ports: ['20:10']}}]}", "minimum port number (20) is greater"},
		"list with a bad item":   {"apiVersion: v1\nkind: List\nitems: [{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: a}, spec: {x: 1}}]", `item 0: IPPool(a): unknown field "spec.x"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Decode([]byte(c.in))
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %q, want %q in it", err, c.want)
			}
		})
	}
}

func TestDecodeAllReadsStreamsAndLists(t *testing.T) {
	const pool = "{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: %}, spec: {cidr: 10.0.0.0/16}}"
	named := func(n string) string { return strings.ReplaceAll(pool, "%", n) }
	for name, in := range map[string]string{
		"documents":        "---\n" + named("a") + "\n--- # more\n" + named("b") + "\n---\n# nothing\n---\n" + named("c") + "\n",
		"on the same line": "--- " + named("a") + "\n--- " + named("b") + "\n--- " + named("c"),
		"list":             "apiVersion: projectcalico.org/v3\nkind: IPPoolList\nmetadata: {resourceVersion: '7'}\nitems: [" + named("a") + ", " + named("b") + ", " + named("c") + "]",
		"array":            "- " + named("a") + "\n- " + named("b") + "\n- " + named("c") + "\n",
		"mixed":            "[" + named("a") + "]\n---\nkind: List\nitems:\n- " + named("b") + "\n- [" + named("c") + "]\n",
	} {
		rs, err := DecodeAll([]byte(in))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got string
		for _, r := range rs {
			got += r.GetName()
		}
		if got != "abc" {
			t.Errorf("%s: got %q", name, got)
		}
	}
}

func TestMergeUnknownCarriesFieldsOver(t *testing.T) {
	const p = `{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"p"},"spec":`
	for name, c := range map[string]struct{ stored, encoded, want string }{
		"beside known fields, at their place": {
			p + `{"tier":"a","future":{"x":[1,2.50]},"order":1},"status":{"new":true}}`,
			p + `{"tier":"b","order":2}}`,
			p + `{"tier":"b","future":{"x":[1,2.50]},"order":2},"status":{"new":true}}`,
		},
		"a known field that was removed stays removed": {
			p + `{"tier":"a","order":1,"selector":"x"}}`,
			p + `{"tier":"a"}}`,
			p + `{"tier":"a"}}`,
		},
		"a label is not an unknown field": {
			`{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"p","labels":{"a":"b"},"newMeta":1},"spec":{"cidr":"x"}}`,
			`{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"p","labels":{"c":"d"}},"spec":{"cidr":"x"}}`,
			`{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"p","labels":{"c":"d"},"newMeta":1},"spec":{"cidr":"x"}}`,
		},
		"rules that moved keep theirs": {
			p + `{"ingress":[{"action":"Allow","m":1},{"action":"Deny","m":2,"source":{}},{"action":"Log","m":3}]}}`,
			p + `{"ingress":[{"action":"Deny"},{"action":"Allow"}]}}`,
			p + `{"ingress":[{"action":"Deny","m":2},{"action":"Allow","m":1}]}}`,
		},
		"a rule that changed keeps its own, by its place": {
			p + `{"ingress":[{"action":"Allow","m":1},{"action":"Deny","source":{"n":2,"selector":"a"}}]}}`,
			p + `{"ingress":[{"action":"Allow"},{"action":"Deny","source":{"selector":"b"}}]}}`,
			p + `{"ingress":[{"action":"Allow","m":1},{"action":"Deny","source":{"n":2,"selector":"b"}}]}}`,
		},
		"equal rules are told apart": {
			p + `{"egress":[{"action":"Allow","m":1},{"action":"Allow","m":2}]}}`,
			p + `{"egress":[{"action":"Allow"},{"action":"Allow"},{"action":"Allow"}]}}`,
			p + `{"egress":[{"action":"Allow","m":1},{"action":"Allow","m":2},{"action":"Allow"}]}}`,
		},
		"a block": {
			`{"cidr":"10.0.0.0/26","affinity":null,"strictAffinity":true,"attributes":[{"handle_id":"a","alt":1},{"handle_id":"b","alt":2}],"deleted":false}`,
			`{"cidr":"10.0.0.0/26","affinity":"host:a","allocations":[],"attributes":[{"handle_id":"b"}],"deleted":false}`,
			`{"cidr":"10.0.0.0/26","affinity":"host:a","strictAffinity":true,"allocations":[],"attributes":[{"handle_id":"b","alt":2}],"deleted":false}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := MergeUnknown([]byte(c.stored), []byte(c.encoded))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, string(got)); d != "" {
				t.Error(d)
			}
		})
	}
	for _, bad := range [][2]string{{"{", "{}"}, {"{}", "{"}, {"{}", "{}"}, {"{}", `{"kind":"Pod"}`}} {
		if _, err := MergeUnknown([]byte(bad[0]), []byte(bad[1])); err == nil {
			t.Errorf("merged %q", bad)
		}
	}
}
