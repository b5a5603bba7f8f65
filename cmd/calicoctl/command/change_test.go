package command_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPatch(t *testing.T) {
	c := newCluster(t)
	c.load(t, "resources.txt")
	const done = "Successfully patched 1 'Node' resource\n"
	if got := c.ok(t, "patch", "node", "node-a", "-p", `{"spec":{"bgp":{"routeReflectorClusterID":"244.0.0.1"}}}`); got != done {
		t.Errorf("got %q", got)
	}
	if got := c.ok(t, "patch", "nodes", "node-a", "--type=merge", "--patch", "metadata: {labels: {rack: r9}}"); got != done {
		t.Errorf("got %q", got)
	}
	if got := c.ok(t, "patch", "node", "node-a", "-t", "json", "-p", `[{"op":"remove","path":"/metadata/labels/route-reflector"}]`); got != done {
		t.Errorf("got %q", got)
	}
	got := c.ok(t, "get", "node", "node-a", "-o", "yaml")
	for _, want := range []string{"routeReflectorClusterID: 244.0.0.1", "rack: r9", "asNumber: 64513", "ipv4Address: 10.10.0.1/24"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	if strings.Contains(got, "route-reflector:") {
		t.Errorf("the label is still there:\n%s", got)
	}
	before := c.etcd.Revision()
	for _, test := range []struct{ args, want string }{
		{`patch node none -p {"spec":{}}`, "Failed to patch 'Node' resource: resource does not exist: Node(none)\n"},
		{`patch node node-a -p {"spec":{"bgp":{"ipv4Address":"10.0.0.300"}}}`, "Node(node-a): spec.bgp.ipv4Address: "},
		{`patch node node-a -p {"spec":{"colour":"red"}}`, "colour"},
		{`patch node node-a -p {"metadata":{"name":"x"}}`, "a patch cannot make Node(x) of Node(node-a)"},
		{`patch ippool ipip-always -p {"spec":{"cidr":"10.0.0.0/8"}}`, "cannot be changed from 192.168.0.0/18"},
		{`patch node node-a -p {"metadata":{"resourceVersion":"1"}}`, "update conflict"},
		{`patch node node-a -p {} -t xml`, "none of strategic, merge, json"},
		{`patch profile projectcalico-default-allow -p {"spec":{}}`, "is built in and cannot be changed"},
	} {
		if got := c.fails(t, strings.Fields(test.args)...); !strings.Contains(got, test.want) {
			t.Errorf("%s: got %q", test.args, got)
		}
	}
	c.ok(t, "patch", "node", "node-a", "--dry-run", "-p", `{"spec":{"bgp":{"asNumber":1}}}`)
	if c.etcd.Revision() != before {
		t.Error("something was written")
	}
}

func TestLabel(t *testing.T) {
	c := newCluster(t)
	c.load(t, "resources.txt")
	for _, test := range []struct {
		args, want string
		fails      bool
	}{
		{"label node node-b rack=r2", "Successfully set label rack on node node-b\n", false},
		{"label nodes node-b rack=r2", "Successfully updated label rack on nodes node-b\n", false},
		{"label node node-b rack=r3", "failed to update label of node node-b, key rack is already present. please use '--overwrite' to set a new value\n", true},
		{"label node node-b rack=r3 --overwrite", "Successfully updated label rack on node node-b\n", false},
		{"label node node-b rack --remove", "Successfully removed label rack from node node-b\n", false},
		{"label node node-b rack --remove", "cannot remove label of node node-b, key rack does not exist\n", true},
		{"label np np-1 -n prod a=b", "Successfully set label a on np np-1\n", false},
		{"label node none a=b", "resource does not exist: Node(none)\n", true},
		{"label node node-b a=b=c", "invalid label a=b=c\nRun 'calicoctl label --help' for usage.\n", true},
		{"label node node-b a", "invalid label a\nRun 'calicoctl label --help' for usage.\n", true},
		{"label node node-b a=-", "Node(node-b): metadata.labels[a]: \"-\": ", true},
	} {
		run := c.ok
		if test.fails {
			run = c.fails
		}
		if got := run(t, strings.Fields(test.args)...); !strings.HasPrefix(got, test.want) {
			t.Errorf("%s: got %q", test.args, got)
		}
	}
}

func TestDiffAndDryRun(t *testing.T) {
	c := newCluster(t)
	c.with(poolYAML).ok(t, "apply", "-f-")
	before := c.etcd.Revision()
	same := strings.Replace(poolYAML, "  ipipMode: Always\n", "  blockSize: 26\n  ipipMode: Always\n", 1)
	if got := c.with(same).ok(t, "diff", "-f-"); got != "" {
		t.Errorf("got %q", got)
	}
	both := strings.Replace(poolYAML, "Always", "Never", 1) + "---" + policyYAML
	r := c.with(both).run(t, "diff", "-f-")
	if r.code != 1 || r.stderr != "" || !strings.HasPrefix(r.stdout, "--- ippool/pool1\n+++ ippool/pool1\n@@ ") ||
		!strings.Contains(r.stdout, "\n-  ipipMode: Always\n+  ipipMode: Never\n") ||
		!strings.Contains(r.stdout, "--- /dev/null\n+++ networkpolicy/default/web\n@@ -0,0 +1,") {
		t.Errorf("exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	if r := c.with("kind: X\n").run(t, "diff", "-f-"); r.code != 2 {
		t.Errorf("exit %d", r.code)
	}
	if r := (client{env: map[string]string{"ETCD_ENDPOINTS": refused(t)}}).with(poolYAML).run(t, "diff", "-f-"); r.code != 2 {
		t.Errorf("exit %d", r.code)
	}
	for args, want := range map[string]string{
		"apply":                "ippool/pool1 configured (dry run)\nnetworkpolicy/default/web created (dry run)\nDry run: 2 resource(s) would be applied; nothing was written\n",
		"create --skip-exists": "ippool/pool1 exists, skipped (dry run)\nnetworkpolicy/default/web created (dry run)\nDry run: 2 resource(s) would be created; nothing was written\n",
		"delete -s":            "ippool/pool1 deleted (dry run)\nnetworkpolicy/default/web does not exist, skipped (dry run)\nDry run: 2 resource(s) would be deleted; nothing was written\n",
	} {
		if got := c.with(both).ok(t, append(strings.Fields(args), "--dry-run", "-f-")...); got != want {
			t.Errorf("%s: got %q", args, got)
		}
	}
	if got := c.with(both).run(t, "replace", "--dry-run", "-f-"); got.code != 1 || !strings.Contains(got.stderr, "resource does not exist: NetworkPolicy(default/web)") {
		t.Errorf("got %v", got)
	}
	if c.etcd.Revision() != before {
		t.Error("something was written")
	}
}

func TestValidate(t *testing.T) {
	c := client{} // without a datastore
	if got := c.with(poolYAML).ok(t, "validate", "-f-"); got != "Successfully validated 1 'IPPool' resource(s)\n" {
		t.Errorf("got %q", got)
	}
	bad := strings.Replace(poolYAML, "10.1.0.0/16", "10.1.0.1/16", 1) + "---" + policyYAML
	got := c.with(bad).fails(t, "validate", "-f-")
	if !strings.HasPrefix(got, "Failed to validate 1 of 2 resource(s):\nstandard input, document 1: IPPool(pool1): spec.cidr: \"10.1.0.1/16\": ") {
		t.Errorf("got %q", got)
	}
}

// What fits alone and not into the cluster is refused before anything is written.
func TestCluster(t *testing.T) {
	c := newCluster(t)
	c.load(t, "resources.txt")
	before := c.etcd.Revision()
	gnp := "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: new.p}\nspec: {tier: new}\n"
	filtered := "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: new}\nspec: {peerIP: 10.9.9.9, asNumber: 65000, filters: [new]}\n"
	for in, want := range map[string]string{
		filtered: `BGPPeer(new): spec.filters[0]: "new": resource does not exist: BGPFilter(new)`,
		strings.Replace(poolYAML, "10.1.0.0/16", "192.168.1.0/24", 1):                              `IPPool(pool1): spec.cidr: "192.168.1.0/24": overlaps IPPool(ipip-always), 192.168.0.0/18`,
		poolYAML + "---" + strings.NewReplacer("pool1", "pool2", "0/16", "0/24").Replace(poolYAML): `IPPool(pool2): spec.cidr: "10.1.0.0/24": overlaps IPPool(pool1), 10.1.0.0/16`,
		gnp: `GlobalNetworkPolicy(new.p): spec.tier: "new": resource does not exist: Tier(new)`,
	} {
		if got := c.with(in).fails(t, "apply", "-f-"); !strings.Contains(got, want) || !strings.HasSuffix(got, "\nNothing was written.\n") {
			t.Errorf("expected %q, got %q", want, got)
		}
	}
	other := strings.NewReplacer("pool1", "ipip-always", "10.1.0.0/16", "10.2.0.0/16").Replace(poolYAML)
	if got := c.with(other).fails(t, "create", "-f-"); !strings.Contains(got, "resource already exists: IPPool(ipip-always)") {
		t.Errorf("got %q", got)
	}
	if got := c.with(other).ok(t, "create", "--skip-exists", "-f-"); !strings.HasPrefix(got, "ippool/ipip-always exists, skipped\n") {
		t.Errorf("got %q", got)
	}
	for args, want := range map[string]string{
		"delete tier default":        "cannot delete default tier",
		"delete clusterinfo default": "operation delete is not supported on ClusterInformation(default)",
		"delete tier security":       "cannot delete a non-empty tier: GlobalNetworkPolicy(security.gnp-full) is in it",
	} {
		if got := c.fails(t, strings.Fields(args)...); !strings.Contains(got, want) {
			t.Errorf("%s: got %q", args, got)
		}
	}
	if c.etcd.Revision() != before {
		t.Error("something was written")
	}
	tier := "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: new}\nspec: {order: 7}\n"
	c.with(tier+"---\n"+gnp).ok(t, "apply", "-f-")
	c.ok(t, "delete", "gnp", "new.p")
	c.ok(t, "delete", "tier", "new")
	filter := "apiVersion: projectcalico.org/v3\nkind: BGPFilter\nmetadata: {name: new}\nspec: {importV4: [{action: Accept}]}\n"
	c.with(filtered+"---\n"+filter).ok(t, "apply", "-f-")
	c.with(filtered).ok(t, "replace", "-f-")
}

func TestEdit(t *testing.T) {
	c := newCluster(t)
	c.with(poolYAML).ok(t, "apply", "-f-")
	// An editor that does what a line of sed says, a different one each time.
	editor := func(lines ...string) string {
		t.Helper()
		dir := t.TempDir()
		script := "#!/bin/sh\nn=$(cat " + dir + "/n 2>/dev/null || echo 1)\necho $((n+1)) >" + dir + "/n\ncp $1 " + dir + "/seen$n\ncase $n in\n"
		for i, line := range lines {
			script += string(rune('1'+i)) + ") sed -i '" + line + "' $1;;\n"
		}
		path := filepath.Join(dir, "editor")
		if err := os.WriteFile(path, []byte(script+"esac\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		c.env["EDITOR"] = path
		return dir
	}
	editor("s/ipipMode: Always/ipipMode: CrossSubnet/")
	if got := c.ok(t, "edit", "ippool", "pool1"); got != "ippool/pool1 edited\n" {
		t.Errorf("got %q", got)
	}
	editor("")
	if got := c.ok(t, "edit", "ippool/pool1"); got != "Edit cancelled, no changes made.\n" {
		t.Errorf("got %q", got)
	}
	dir := editor("s/CrossSubnet/Sometimes/", "s/ipipMode: Sometimes/ipipMode: Never/")
	if got := c.ok(t, "edit", "ippool/pool1"); got != "ippool/pool1 edited\n" {
		t.Errorf("got %q", got)
	}
	seen, err := os.ReadFile(filepath.Join(dir, "seen2"))
	if err != nil || !strings.HasPrefix(string(seen), "# Not written; mend it, or leave it as it is to give up:\n# IPPool(pool1): spec.ipipMode: \"Sometimes\": ") {
		t.Errorf("%v: the editor was shown\n%s", err, seen)
	}
	if got := c.ok(t, "get", "ippool", "pool1", "-o", "custom-columns=IPIPMODE"); squeeze(got) != "IPIPMODE\nNever\n\n" {
		t.Errorf("got %q", got)
	}
	editor("s/ipipMode: Never/ipipMode: X/", "")
	got := c.fails(t, "edit", "ippool/pool1")
	if !strings.Contains(got, "\nWhat you wrote is in ") {
		t.Fatalf("got %q", got)
	}
	kept := strings.TrimSuffix(strings.TrimSpace(got[strings.LastIndex(got, " ")+1:]), ".")
	if err := os.Remove(kept); err != nil {
		t.Error(err)
	}
	if got := c.fails(t, "edit", "ippool/none"); got != "resource does not exist: IPPool(none)\n" {
		t.Errorf("got %q", got)
	}
}

// Without a node there is nobody to undo a trial; what could not come back is not tried.
func TestConfirmNeedsNode(t *testing.T) {
	c := newCluster(t)
	before := c.etcd.Revision()
	if got := c.with(poolYAML).fails(t, "apply", "-f-", "--confirm", "60s"); !strings.Contains(got, "IPPool(pool1): --confirm is for policy") {
		t.Errorf("got %q", got)
	}
	if got := c.with(policyYAML).fails(t, "apply", "-f-", "--confirm", "1s"); !strings.Contains(got, "too short") {
		t.Errorf("got %q", got)
	}
	if c.etcd.Revision() != before {
		t.Error("something was written")
	}
	if got := c.with(policyYAML).fails(t, "apply", "-f-", "--confirm", "60s"); !strings.HasPrefix(got, "no calico-node answers that could undo this") {
		t.Errorf("got %q", got)
	}
	if got := c.ok(t, "get", "np", "-A", "-oname"); got != "" {
		t.Errorf("got %q", got)
	}
	for args, want := range map[string]string{
		"confirm":              "nothing waits to be confirmed\n",
		"confirm abc":          "abc does not wait to be confirmed: ",
		"confirm abc --revert": "abc does not wait to be confirmed\n",
		"wait --for enforced":  "the cluster has no nodes\n",
		"wait --for delete":    "--for: \"delete\": there is only \"enforced\"\n",
		"wait none":            "resource does not exist: Node(none)\n",
	} {
		if got := c.fails(t, strings.Fields(args)...); !strings.HasPrefix(got, want) {
			t.Errorf("%s: got %q", args, got)
		}
	}
}
