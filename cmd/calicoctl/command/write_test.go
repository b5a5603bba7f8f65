package command_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const poolYAML = `
apiVersion: projectcalico.org/v3
kind: IPPool
metadata:
  name: pool1
spec:
  cidr: 10.1.0.0/16
  ipipMode: Always
`

const policyYAML = `
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata:
  name: web
spec:
  selector: app == 'web'
  ingress:
  - action: Allow
    protocol: TCP
    destination: {ports: [80]}
`

func TestApply(t *testing.T) {
	c := newCluster(t)
	apply := func(text string) string {
		t.Helper()
		return c.with(text).ok(t, "apply", "-f-")
	}
	if got, want := apply(poolYAML), "ippool/pool1 created\nSuccessfully applied 1 'IPPool' resource(s)\n"; got != want {
		t.Errorf("got %q", got)
	}
	before := c.etcd.Revision()
	// The same in other words: defaults spelled out.
	same := strings.Replace(poolYAML, "  ipipMode: Always\n", "  ipipMode: Always\n  vxlanMode: Never\n  blockSize: 26\n  nodeSelector: all()\n", 1)
	if got, want := apply(same), "ippool/pool1 unchanged\nSuccessfully applied 1 'IPPool' resource(s)\n"; got != want {
		t.Errorf("got %q", got)
	}
	if c.etcd.Revision() != before {
		t.Error("apply of the same has written")
	}
	both := strings.Replace(poolYAML, "Always", "CrossSubnet", 1) + "---" + policyYAML
	if got, want := apply(both), "ippool/pool1 configured\nnetworkpolicy/default/web created\nSuccessfully applied 2 resource(s)\n"; got != want {
		t.Errorf("got %q", got)
	}
	if got := c.ok(t, "get", "ippool", "pool1", "-o", "custom-columns=IPIPMODE"); squeeze(got) != "IPIPMODE\nCrossSubnet\n\n" {
		t.Errorf("got %q", got)
	}
	// Labels count.
	labelled := strings.Replace(policyYAML, "  name: web\n", "  name: web\n  labels: {a: b}\n", 1)
	if got := apply(labelled); !strings.HasPrefix(got, "networkpolicy/default/web configured\n") {
		t.Errorf("got %q", got)
	}
	if got := c.with(policyYAML).ok(t, "apply", "-n", "prod", "-f", "-"); !strings.HasPrefix(got, "networkpolicy/prod/web created\n") {
		t.Errorf("got %q", got)
	}

	// A node's report survives whoever edits its resource.
	node := "apiVersion: projectcalico.org/v3\nkind: Node\nmetadata: {name: node1}\nspec: {bgp: {ipv4Address: 10.0.0.1/24}}\n"
	apply(node + "status: {wireguardPublicKey: jlkVyQYooZYzI2wFfNhSZez5eWh44yfq1wKVjLvSXgY=}\n")
	if got := apply(node); !strings.HasPrefix(got, "node/node1 unchanged\n") {
		t.Errorf("got %q", got)
	}
	apply(strings.Replace(node, "10.0.0.1", "10.0.0.2", 1))
	if got := c.ok(t, "get", "node", "node1", "-o", "yaml"); !strings.Contains(got, "wireguardPublicKey: jlk") || !strings.Contains(got, "10.0.0.2/24") {
		t.Errorf("got %s", got)
	}
}

// Nothing is written if anything is wrong, and everything that is wrong is said.
func TestBadInput(t *testing.T) {
	c := newCluster(t)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"1-good.yaml":  poolYAML,
		"2-bad.yaml":   strings.NewReplacer("pool1", "pool2", "10.1.0.0/16", "10.1.0.0/33", "Always", "Sometimes").Replace(poolYAML),
		"3-field.yaml": policyYAML + "  colour: red\n---" + strings.Replace(policyYAML, "app == 'web'", "app = web", 1),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := c.etcd.Revision()
	got := c.fails(t, "apply", "-f", dir)
	lines := strings.Split(strings.TrimSpace(got), "\n")
	for i, want := range [][]string{
		{"2-bad.yaml: IPPool(pool2): spec.cidr: ", "10.1.0.0/33"},
		{"2-bad.yaml: IPPool(pool2): spec.ipipMode: ", "Sometimes"},
		{"3-field.yaml, document 1: NetworkPolicy(web)", "colour"},
		{"3-field.yaml, document 2: NetworkPolicy(default/web): spec.selector: ", "app = web"},
		{"Nothing was written."},
	} {
		for _, part := range want {
			if i >= len(lines) || !strings.Contains(lines[i], part) {
				t.Errorf("line %d of the error lacks %q:\n%s", i+1, part, got)
			}
		}
	}
	if c.etcd.Revision() != before {
		t.Error("something was written")
	}

	for name, text := range map[string]string{
		"no resources specified in file": "# nothing\n",
		"standard input: yaml":           "a: b: c\n",
		"is not the namespace of -n":     strings.Replace(policyYAML, "  name: web", "  name: web\n  namespace: other", 1),
	} {
		if got := c.with(text).fails(t, "apply", "-n", "prod", "-f", "-"); !strings.Contains(got, name) {
			t.Errorf("expected %q, got %q", name, got)
		}
	}
	if got := c.with("").ok(t, "apply", "-f", "-", "--skip-empty"); got != "" {
		t.Errorf("got %q", got)
	}
}

func TestCreateReplaceDelete(t *testing.T) {
	c := newCluster(t)
	in := c.with(poolYAML)
	if got := in.fails(t, "replace", "-f-"); !strings.Contains(got, "resource does not exist: IPPool(pool1)") {
		t.Errorf("got %q", got)
	}
	if got, want := in.ok(t, "create", "-f-"), "ippool/pool1 created\nSuccessfully created 1 'IPPool' resource(s)\n"; got != want {
		t.Errorf("got %q", got)
	}
	if got, want := in.fails(t, "create", "-f-"), "Failed to create 1 of 1 'IPPool' resource(s):\nstandard input: resource already exists: IPPool(pool1)\n"; got != want {
		t.Errorf("got %q", got)
	}
	if got, want := in.ok(t, "create", "-f-", "--skip-exists"), "ippool/pool1 exists, skipped\nSuccessfully created 1 'IPPool' resource(s)\n"; got != want {
		t.Errorf("got %q", got)
	}
	// One of two: the rest is done and the failure is told.
	r := c.with(poolYAML+"---"+policyYAML).run(t, "create", "-f-")
	want := result{1, "networkpolicy/default/web created\n", "Partial success: created 1 of 2 resource(s):\nstandard input, document 1: resource already exists: IPPool(pool1)\n"}
	if diff := cmp.Diff(want, r, cmp.AllowUnexported(result{})); diff != "" {
		t.Error(diff)
	}

	// Read, edit, replace; the second of two who read the same is refused.
	first := c.ok(t, "get", "ippool", "pool1", "-oyaml")
	edited := strings.Replace(first, "Always", "Never", 1)
	if got, want := c.with(edited).ok(t, "replace", "-f-"), "ippool/pool1 replaced\nSuccessfully replaced 1 'IPPool' resource(s)\n"; got != want {
		t.Errorf("got %q", got)
	}
	if got := c.with(first).fails(t, "replace", "-f-"); !strings.Contains(got, "update conflict: IPPool(pool1)") {
		t.Errorf("got %q", got)
	}
	if got := c.with(first).fails(t, "apply", "-f-"); !strings.Contains(got, "update conflict: IPPool(pool1)") {
		t.Errorf("got %q", got)
	}

	if got, want := c.ok(t, "delete", "ippool", "pool1"), "ippool/pool1 deleted\nSuccessfully deleted 1 'IPPool' resource(s)\n"; got != want {
		t.Errorf("got %q", got)
	}
	if got, want := c.fails(t, "delete", "ippool", "pool1"), "Failed to delete 1 of 1 'IPPool' resource(s):\nresource does not exist: IPPool(pool1)\n"; got != want {
		t.Errorf("got %q", got)
	}
	if got, want := c.with(poolYAML+"---"+policyYAML).ok(t, "delete", "-f-", "--skip-not-exists"),
		"ippool/pool1 does not exist, skipped\nnetworkpolicy/default/web deleted\nSuccessfully deleted 2 resource(s)\n"; got != want {
		t.Errorf("got %q", got)
	}
	if got := c.fails(t, "delete", "profile", "projectcalico-default-allow"); !strings.Contains(got, "Profile(projectcalico-default-allow) is built in and cannot be deleted") {
		t.Errorf("got %q", got)
	}
}

// What cannot change is refused before anything is written.
func TestChangesThatCannotBe(t *testing.T) {
	c := newCluster(t)
	c.with(poolYAML).ok(t, "apply", "-f-")
	before := c.etcd.Revision()
	got := c.with(policyYAML+"---"+strings.Replace(poolYAML, "10.1.0.0", "10.2.0.0", 1)).fails(t, "apply", "-f-")
	if got != "standard input, document 2: IPPool(pool1): spec.cidr: \"10.2.0.0/16\": cannot be changed from 10.1.0.0/16\nNothing was written.\n" {
		t.Errorf("got %q", got)
	}
	if c.etcd.Revision() != before {
		t.Error("something was written")
	}
	// The cluster's own id stays if it is left out.
	c.with("kind: ClusterInformation\napiVersion: projectcalico.org/v3\nmetadata: {name: default}\nspec: {clusterType: x}\n").ok(t, "apply", "-f-")
	if got := c.ok(t, "get", "clusterinfo", "default", "-o", "custom-columns=CLUSTERGUID,CLUSTERTYPE"); len(strings.Fields(got)) != 4 {
		t.Errorf("got %q", got)
	}
}

// With a node go its workloads, blocks and own configuration, as with Calico;
// with a pool the blocks that nodes have of it.
func TestDeleteCleansUp(t *testing.T) {
	c := newCluster(t)
	c.load(t, "resources.txt")
	c.load(t, "ipam.txt")
	c.ok(t, "delete", "node", "node-a")
	for _, args := range []string{"get felixconfig node.node-a", "get bgpconfig node.node-a", "get wep node--a-k8s-web--0-eth0 -n prod",
		"get hostendpoint hep-eth0", "get bgppeer peer-node"} {
		if got := c.fails(t, strings.Fields(args)...); !strings.HasPrefix(got, "resource does not exist: ") {
			t.Errorf("%s: got %q", args, got)
		}
	}
	if got := c.ok(t, "get", "wep,felixconfig,bgpconfig,hep,bgppeer", "-oname"); got != "workloadendpoint/default/node--b-libnetwork-libnetwork-abc123\n"+
		"felixconfiguration/default\nbgpconfiguration/default\nhostendpoint/hep-all\nbgppeer/peer-global\nbgppeer/peer-sel\n" {
		t.Errorf("the others' resources are %q", got)
	}
	if got := c.ok(t, "ipam", "show", "--ip=192.168.46.131"); !strings.Contains(got, "192.168.46.131 is not assigned") {
		t.Errorf("the tunnel's address: %s", got)
	}
	blocks := "/calico/ipam/v2/host/"
	if c.etcd.Get(blocks+"node-a/ipv4/block/192.168.46.128-26") != "" || c.etcd.Get(blocks+"node-b/ipv4/block/192.168.39.192-26") == "" {
		t.Error("blocks: node-a's must be gone, node-b's not")
	}
	if got := c.fails(t, "delete", "node", "none"); !strings.Contains(got, "resource does not exist: Node(none)") {
		t.Errorf("got %q", got)
	}

	// A revision that is not the present one keeps everything.
	stale := "kind: IPPool\napiVersion: projectcalico.org/v3\nmetadata: {name: ipip-always, resourceVersion: \"1\"}\n"
	before := c.etcd.Revision()
	if got := c.with(stale).fails(t, "delete", "-f-"); !strings.Contains(got, "update conflict: IPPool(ipip-always)") || c.etcd.Revision() != before {
		t.Errorf("got %q", got)
	}
	c.ok(t, "delete", "ippool", "ipip-always")
	if c.etcd.Get(blocks+"node-b/ipv4/block/192.168.39.192-26") != "" {
		t.Error("node-b still has a block of the pool")
	}
}

// What Kubespray pipes in, through every step that it takes with a pool.
func TestKubespray(t *testing.T) {
	c := newCluster(t)
	pool := "\n  { kind: IPPool,\n    apiVersion: projectcalico.org/v3,\n    metadata: {\n      name: default-pool,\n    },\n    spec: {\n" +
		"      blockSize: 24,\n      cidr: 10.233.64.0/18,\n      ipipMode: Always,\n      vxlanMode: Never,\n      natOutgoing: True,\n    }}\n"
	if got := c.with(pool).ok(t, "apply", "-f", "-"); got != "ippool/default-pool created\nSuccessfully applied 1 'IPPool' resource(s)\n" {
		t.Errorf("got %q", got)
	}
	if got := c.ok(t, "get", "ippool"); !strings.Contains(got, " 10.233.64.0/18 ") {
		t.Errorf("got %q", got)
	}
	node := `{ "apiVersion": "projectcalico.org/v3", "kind": "Node", "metadata": { "name": "n1" },
	  "spec": { "bgp": { "asNumber": "64513" }, "orchRefs":[{"nodeName":"n1","orchestrator":"k8s"}] } }`
	c.with(node).ok(t, "apply", "-f-")
	read := c.ok(t, "get", "node", "n1", "-ojson")
	c.with(strings.Replace(read, `"asNumber": 64513`, `"asNumber": 64513, "routeReflectorClusterID": "1.0.0.1"`, 1)).ok(t, "replace", "-f-")
	if got := c.ok(t, "get", "node", "n1", "-oyaml"); !strings.Contains(got, "routeReflectorClusterID: 1.0.0.1") {
		t.Errorf("got %s", got)
	}
}
