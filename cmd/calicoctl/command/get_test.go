package command_test

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestTables compares every table with the one that Calico's calicoctl prints
// for the same keys in etcd: output, messages, exit codes.
func TestTables(t *testing.T) {
	c := newCluster(t)
	c.load(t, "resources.txt")
	count := 0
	for _, block := range strings.Split(testdata(t, "tables.txt"), "\n\n") {
		block = strings.TrimLeft(block, "\n")
		commandLine, want, _ := strings.Cut(strings.TrimSuffix(block, "\n"), "\n")
		args, ok := strings.CutPrefix(commandLine, "$ calicoctl ")
		if !ok {
			continue
		}
		count++
		r := c.run(t, strings.Fields(args)...)
		var got strings.Builder
		for line := range strings.Lines(r.stdout) {
			got.WriteString("  " + line)
		}
		for line := range strings.Lines(r.stderr) {
			got.WriteString("  [stderr] " + line)
		}
		fmt.Fprintf(&got, "  [exit=%d]", r.code)
		if diff := cmp.Diff(want, got.String()); diff != "" {
			t.Errorf("%s:\n%s", commandLine, diff)
		}
	}
	if count < 50 {
		t.Errorf("only %d tables were compared", count)
	}
}

// Calico's calicoctl panics at these; ours must not.
func TestTablesOfOurOwn(t *testing.T) {
	c := newCluster(t)
	c.load(t, "resources.txt")
	for args, want := range map[string]string{
		"get workloadendpoint -o wide -n prod": "NAMESPACE   NAME                       WORKLOAD   NODE     NETWORKS                       INTERFACE     PROFILES   NATS                      \n" +
			"prod        node--a-k8s-web--0-eth0    web-0      node-a   192.168.0.10/32,fd02::10/128   cali0ef24ba   prof-web   10.77.0.1->192.168.0.10   \n\n",
		"get caliconodestatus -o wide": "NAME   NODE     CLASSES            INTERVAL   LASTUPDATED   \n" +
			"st-1   node-a   Agent,BGP,Routes   10                       \n\n",
		"get stagedkubernetesnetworkpolicy -A -o wide": "NAMESPACE   NAME     PODSELECTOR   \n" +
			"prod        sknp-1   a=b        \n\n",
		"get bgpfilter": "NAME     NUMEXPORTV4   NUMIMPORTV4   NUMEXPORTV6   NUMIMPORTV6   \n" +
			"filt-1   2             1             1             1             \n\n",
		"get bgpfilter -o wide": "NAME     NUMEXPORTV4   NUMIMPORTV4   NUMEXPORTV6   NUMIMPORTV6   EXPORTV4   IMPORTV4   EXPORTV6   IMPORTV6 \n" +
			"filt-1   2   1   1   1   Accept(In 77.0.0.0/16 24-28),Reject(from RemotePeers)   Reject(NotIn 44.0.0.0/16 on eth0)   Accept(Equal 5000::/64)   Reject(NotEqual 6000::/64) \n\n",
		"get wep -n prod -o custom-columns=WORKLOAD,ORCHESTRATOR": "WORKLOAD   ORCHESTRATOR   \nweb-0   k8s   \n\n",
	} {
		got := c.ok(t, strings.Fields(args)...)
		if squeeze(got) != squeeze(want) {
			t.Errorf("%s: got\n%s", args, got)
		}
	}
}

// squeeze makes runs of spaces one.
func squeeze(s string) string {
	var lines []string
	for _, line := range strings.Split(s, "\n") {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(lines, "\n")
}

func TestGetByName(t *testing.T) {
	c := newCluster(t)
	c.load(t, "resources.txt")

	// Any spelling of the kind, several names, one table.
	want := "NAME          CIDR               SELECTOR   \nv6-pool       fd02::/48          all()      \nipip-always   192.168.0.0/18     all()      \n\n"
	for _, args := range []string{
		"get ippool v6-pool ipip-always", "get IPPools v6-pool,ipip-always", "get pool/v6-pool ippool/ipip-always",
	} {
		if got := c.ok(t, strings.Fields(args)...); squeeze(got) != squeeze(want) {
			t.Errorf("%s: got\n%s", args, got)
		}
	}
	// A whole word, as scripts look for it.
	if got := c.ok(t, "get", "ippool"); !strings.Contains(got, " 192.168.64.0/18 ") {
		t.Errorf("got\n%s", got)
	}

	// What exists is shown, what does not is an error.
	r := c.run(t, "get", "ippool", "none", "v6-pool", "other", "-o", "name")
	if r.code != 1 || r.stdout != "ippool/v6-pool\n" || r.stderr != "resource does not exist: IPPool(none)\nresource does not exist: IPPool(other)\n" {
		t.Errorf("got %+v", r)
	}
	if got := c.fails(t, "get", "networkset", "ns-1"); got != "resource does not exist: NetworkSet(default/ns-1)\n" {
		t.Errorf("got %s", got)
	}
	for _, args := range []string{"get networkset ns-1 -A -o name", "get networkset ns-1 -n prod -oname", "get networkset/prod/ns-1 -o name"} {
		if got := c.ok(t, strings.Fields(args)...); got != "networkset/prod/ns-1\n" {
			t.Errorf("%s: got %q", args, got)
		}
	}
	// The profile that exists without being stored.
	if got := c.ok(t, "get", "profile", "projectcalico-default-allow", "-o", "name"); got != "profile/projectcalico-default-allow\n" {
		t.Errorf("got %q", got)
	}
	// By file: only the names in it matter.
	file := "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: v6-pool}\n---\napiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: security}\n"
	if got := c.with(file).ok(t, "get", "-f-", "-oname"); got != "ippool/v6-pool\ntier/security\n" {
		t.Errorf("got %q", got)
	}
}

func TestGetDocuments(t *testing.T) {
	c := newCluster(t)
	c.load(t, "resources.txt")

	var pool struct {
		Kind     string
		Metadata map[string]any
		Spec     struct{ CIDR string }
	}
	decode := func(text string, into any) {
		t.Helper()
		if err := json.Unmarshal([]byte(text), into); err != nil {
			t.Fatalf("%v in %s", err, text)
		}
	}
	decode(c.ok(t, "get", "ippool", "v6-pool", "-ojson"), &pool)
	if pool.Kind != "IPPool" || pool.Spec.CIDR != "fd02::/48" || pool.Metadata["resourceVersion"] == nil || pool.Metadata["uid"] != "c658c225-822b-4c14-bb5f-ffc26476a0b2" {
		t.Errorf("got %+v", pool)
	}
	pool.Metadata = nil
	decode(c.ok(t, "get", "ippool", "v6-pool", "-ojson", "--export"), &pool)
	if diff := cmp.Diff(map[string]any{"name": "v6-pool"}, pool.Metadata); diff != "" {
		t.Error(diff)
	}

	var list struct {
		Kind, APIVersion string
		Metadata         struct{ ResourceVersion string }
		Items            []struct{ Metadata struct{ Name string } }
	}
	decode(c.ok(t, "get", "node", "-o", "json"), &list)
	if want := strconv.FormatInt(c.etcd.Revision(), 10); list.Metadata.ResourceVersion != want {
		t.Errorf("the list is as of %q, not %s", list.Metadata.ResourceVersion, want)
	}
	if got := c.ok(t, "get", "node", "-o", "yaml", "--export"); !strings.HasSuffix(got, "kind: NodeList\nmetadata: {}\n") {
		t.Errorf("got %s", got)
	}
	if list.Kind != "NodeList" || list.APIVersion != "projectcalico.org/v3" || len(list.Items) != 2 || list.Items[0].Metadata.Name != "node-a" {
		t.Errorf("got %+v", list)
	}
	decode(c.ok(t, "get", "tiers", "-o", "json"), &list)
	if len(list.Items) != 5 || list.Items[0].Metadata.Name != "security" || list.Items[4].Metadata.Name != "kube-baseline" {
		t.Errorf("tiers are not in their order: %+v", list.Items)
	}
	var array []struct{ Kind string }
	decode(c.ok(t, "get", "node,tiers", "-o", "json"), &array)
	if len(array) != 2 || array[0].Kind != "NodeList" || array[1].Kind != "TierList" {
		t.Errorf("got %+v", array)
	}
	if r := c.run(t, "get", "ippool", "none", "-o", "yaml"); r.stdout != "" || r.code != 1 {
		t.Errorf("got %+v", r)
	}
	yaml := c.ok(t, "get", "gnp", "security.gnp-full", "-o", "yaml", "--export")
	if !strings.Contains(yaml, "  selector: app in {'a', 'b'} && has(tier) || !(env == 'dev')\n") {
		t.Errorf("got %s", yaml)
	}
	got := c.ok(t, "get", "node", "-o", "custom-columns=NAME,ASN,TUNNEL:.spec.bgp.ipv4IPIPTunnelAddr")
	if want := "NAME ASN TUNNEL\nnode-a 64513 192.168.0.1\nnode-b (64512) <none>\n\n"; squeeze(got) != want {
		t.Errorf("got %s", got)
	}
	got = c.ok(t, "get", "node", "-o", "go-template={{range .}}{{range .Items}}{{.ObjectMeta.Name}}:{{.Spec.BGP.IPv4Address}} {{end}}{{end}}")
	if got != "node-a:10.10.0.1/24 node-b:10.10.0.2/24 " {
		t.Errorf("got %s", got)
	}
}

// Everything that get prints can be applied again, and is what is there.
func TestRoundTrip(t *testing.T) {
	c := newCluster(t)
	c.load(t, "resources.txt")
	all := strings.Fields(c.ok(t, "get", "-A", "-o", "name", strings.Join(kindsThat(true), ",")) +
		c.ok(t, "get", "-o", "name", strings.Join(kindsThat(false), ",")))
	if len(all) < 40 {
		t.Errorf("only %d objects", len(all))
	}
	for _, format := range []string{"yaml", "json"} {
		for _, export := range []string{"--export=false", "--export"} {
			text := c.ok(t, append([]string{"get", "-o", format, export}, all...)...)
			before := c.etcd.Revision()
			out := c.with(text).ok(t, "apply", "-f", "-")
			if got := strings.Count(out, " unchanged\n"); got != len(all) {
				t.Errorf("%d of %d unchanged:\n%s", got, len(all), out)
			}
			if c.etcd.Revision() != before {
				t.Errorf("apply of what is there has written")
			}
		}
	}
}
