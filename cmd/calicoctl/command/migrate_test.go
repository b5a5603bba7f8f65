package command_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMigrate(t *testing.T) {
	old, fresh := newCluster2(t)
	old.load(t, "resources.txt")
	old.load(t, "ipam.txt")
	if got := old.fails(t, "datastore", "migrate", "export"); got != "datastore is not locked. Run the `calicoctl datastore migrate lock` command in order to begin migration\n" {
		t.Errorf("got %q", got)
	}
	if got := old.ok(t, "datastore", "migrate", "lock"); got != "Datastore locked.\n" {
		t.Errorf("got %q", got)
	}
	if got := old.ok(t, "get", "clusterinfo", "-o", "custom-columns=DATASTOREREADY"); squeeze(got) != "DATASTOREREADY\nfalse\n\n" {
		t.Errorf("got %q", got)
	}
	export := old.ok(t, "datastore", "migrate", "export")
	if strings.Count(export, "\n===\n") != 2 {
		t.Errorf("got\n%s", export)
	}
	broken := strings.Replace(export, "ipipMode: Always", "ipipMode: Sometimes", 1)
	before := fresh.etcd.Revision()
	if got := fresh.with(broken).fails(t, "datastore", "migrate", "import", "-f-"); !strings.Contains(got, `"Sometimes"`) || fresh.etcd.Revision() != before {
		t.Errorf("got %q", got)
	}
	if got := fresh.with(export).ok(t, "datastore", "migrate", "import", "-f", "-"); !strings.Contains(got, "\nDatastore information successfully imported. ") {
		t.Errorf("got %q", got)
	}
	for _, args := range []string{
		"get ippool,gnp,tier,node,bgpconfig,felixconfig,hep -o yaml --export", "get np,networkset -A -o yaml --export", "ipam show --show-blocks",
		"get clusterinfo -o custom-columns=CLUSTERGUID,DATASTOREREADY",
	} {
		want, got := old.ok(t, strings.Fields(args)...), fresh.ok(t, strings.Fields(args)...)
		// Nodes have Kubernetes' names on the other side.
		if diff := cmp.Diff(strings.ReplaceAll(want, "node-a-k8s", "node-a"), strings.ReplaceAll(got, "node-a-k8s", "node-a")); diff != "" {
			t.Errorf("%s: %s", args, diff)
		}
	}
	if got := fresh.with(export).fails(t, "datastore", "migrate", "import", "-f-"); !strings.Contains(got, "the datastore is not empty") {
		t.Errorf("got %q", got)
	}
	if got := fresh.ok(t, "datastore", "migrate", "unlock"); got != "Datastore unlocked.\n" {
		t.Errorf("got %q", got)
	}
}

func TestConvert(t *testing.T) {
	c := client{}
	in := `
- apiVersion: v1
  kind: ipPool
  metadata: {cidr: 192.168.0.0/16}
  spec: {ipip: {enabled: true, mode: cross-subnet}, nat-outgoing: true}
- apiVersion: v1
  kind: profile
  metadata: {name: APP_7890, tags: [web], labels: {role: a}}
  spec:
    ingress: [{action: allow, protocol: tcp, source: {tag: web, net: 10.0.0.1/8}, destination: {ports: [80, "90:99"]}}]
- apiVersion: v1
  kind: policy
  metadata: {name: a.b}
  spec: {order: 7, selector: calico/k8s_ns == 'x', egress: [{action: pass, notProtocol: icmp}]}
- apiVersion: v1
  kind: bgpPeer
  metadata: {scope: node, node: Host1, peerIP: 10.0.0.9}
  spec: {asNumber: 64512}
- apiVersion: v1
  kind: hostEndpoint
  metadata: {name: eth0, node: host1, labels: {x: z}}
  spec: {interfaceName: eth0, profiles: [APP_7890]}
- apiVersion: v1
  kind: node
  metadata: {name: host1}
  spec: {bgp: {asNumber: 64513, ipv4Address: 10.0.0.1}}
- apiVersion: v1
  kind: workloadEndpoint
  metadata: {name: eth1, workload: web, orchestrator: docker, node: host1}
  spec: {ipNetworks: [10.0.0.2/32], interfaceName: cali1, mac: "ee:ee:ee:ee:ee:ee", profiles: [dev]}
`
	got := c.with(in).ok(t, "convert", "-f-")
	for _, want := range []string{
		"name: 192-168-0-0-16", "ipipMode: CrossSubnet", "natOutgoing: true", "name: app-7890-6290a283", `web: ""`, "selector: web == ''", "- 10.0.0.0/8", "- 90:99",
		"name: a-b-", "selector: projectcalico.org/namespace == 'x'", "action: Pass", "notProtocol: ICMP", "name: host1.10-0-0-9", "name: host1.eth0",
		"name: host1-docker-web-eth1",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	if got := c.with(got).ok(t, "validate", "-f-"); got != "Successfully validated 7 resource(s)\n" {
		t.Errorf("got %q", got)
	}
	for in, want := range map[string]string{
		"{apiVersion: v1, kind: policy, metadata: {name: p}, spec: {colour: red}}": "colour",
		"{apiVersion: v1, kind: pod}":                      "is none of bgpPeer",
		"{apiVersion: projectcalico.org/v3, kind: IPPool}": "is not v1",
		"{apiVersion: v1, kind: policy, metadata: {name: p}, spec: {ingress: [{action: allow, destination: {ports: [1]}}]}}": "needs protocol",
	} {
		if got := c.with(in).fails(t, "convert", "-f-"); !strings.Contains(got, want) {
			t.Errorf("%s: got %q", in, got)
		}
	}
}
