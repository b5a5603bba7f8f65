package command_test

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestLegacyPools(t *testing.T) {
	c := newCluster(t)
	for _, args := range []string{
		"pool add 192.168.0.0/16 --ipip --nat-outgoing", "pool add fd80:24e2:f998:72d6::/64", "pool range add 10.1.0.0 10.1.2.255", "pool add 10.9.0.0/30",
	} {
		if got := c.ok(t, strings.Fields(args)...); got != "" {
			t.Errorf("%s: got %q", args, got)
		}
	}
	const want = `+----------------+-------------------+
|   IPv4 CIDR    |      Options      |
+----------------+-------------------+
|  10.1.0.0/23   |                   |
|  10.1.2.0/24   |                   |
|  10.9.0.0/30   |                   |
| 192.168.0.0/16 | ipip,nat-outgoing |
+----------------+-------------------+
`
	if got := c.ok(t, "pool", "show", "--ipv4"); got != want {
		t.Errorf("got\n%s", got)
	}
	if got := c.ok(t, "pool", "show"); strings.Count(got, "Options") != 2 || !strings.Contains(got, "fd80:24e2:f998:72d6::/64") {
		t.Errorf("got\n%s", got)
	}
	if got := c.ok(t, "get", "ippool", "192-168-0-0-16", "-o", "custom-columns=IPIPMODE,NAT"); squeeze(got) != "IPIPMODE NAT\nAlways true\n\n" {
		t.Errorf("got %q", got)
	}
	c.ok(t, "pool", "add", "192.168.0.0/16")
	if got := c.ok(t, "pool", "show", "--ipv4"); strings.Contains(got, "ipip") {
		t.Errorf("options stay:\n%s", got)
	}
	for args, want := range map[string]string{
		"pool add fd01::/64 --ipip":        "IP in IP carries IPv4 only",
		"pool add 192.168.1.0/24":          "overlaps IPPool(192-168-0-0-16)",
		"pool add nonsense":                `"nonsense" is not a network`,
		"pool range add 10.2.0.9 10.2.0.1": "does not come before",
		"pool":                             "this is not understood\nRun 'calicoctl pool --help' for usage.",
	} {
		if got := c.fails(t, strings.Fields(args)...); !strings.Contains(got, want) {
			t.Errorf("%s: got %q", args, got)
		}
	}
	c.ok(t, "pool", "remove", "192.168.0.0/16")
	if got := c.ok(t, "pool", "remove", "192.168.0.0/16"); got != "192.168.0.0/16 is not a configured pool.\n" {
		t.Errorf("got %q", got)
	}
}

func TestLegacyProfiles(t *testing.T) {
	c := newCluster(t)
	for _, step := range []struct{ args, want string }{
		{"profile add dev", "Created profile dev\n"},
		{"profile add dev", "Profile dev already exists.\n"},
		{"profile add WEB", "Created profile WEB\n"},
		{"profile show", "+--------------+\n|     Name     |\n+--------------+\n|     dev      |\n| web-f1e29c6d |\n+--------------+\n"},
		{"profile dev tag add blue", "Tag blue added to profile dev\n"},
		{"profile dev tag show", "blue\ndev\n"},
		{"profile dev tag remove blue", "Tag blue removed from profile dev\n"},
		{"profile dev rule show", "Inbound rules:\n   1 allow from tag dev\nOutbound rules:\n   1 allow\n"},
		{"profile dev rule add inbound --at=1 deny tcp from tag WEB cidr 10.0.0.0/8 to ports 1,80-90", ""},
		{"profile dev rule add inbound deny tcp from tag WEB 10.0.0.0/8 to ports 1,80:90", "Rule already present, skipping.\n"},
		{"profile dev rule add outbound deny icmp type 8", ""},
		{"profile dev rule show", "Inbound rules:\n   1 deny tcp from tag WEB cidr 10.0.0.0/8 to ports 1,80:90\n   2 allow from tag dev\nOutbound rules:\n   1 allow\n   2 deny icmp type 8\n"},
		{"profile dev rule remove outbound allow", ""},
		{"profile dev rule remove inbound --at=2", ""},
		{"profile dev rule show", "Inbound rules:\n   1 deny tcp from tag WEB cidr 10.0.0.0/8 to ports 1,80:90\nOutbound rules:\n   1 deny icmp type 8\n"},
		{"profile WEB rule show", "Inbound rules:\n   1 allow from tag WEB\nOutbound rules:\n   1 allow\n"},
		{"profile remove none", "Couldn't find profile with name none\n"},
	} {
		if got := c.ok(t, strings.Fields(step.args)...); got != step.want {
			t.Errorf("%s: got %q", step.args, got)
		}
	}
	// The round trip that was documented.
	text := c.ok(t, "profile", "dev", "rule", "json")
	before := c.etcd.Revision()
	if got := c.with(text).ok(t, "profile", "dev", "rule", "update"); got != "Successfully updated rules on profile dev\n" {
		t.Errorf("got %q", got)
	}
	if c.etcd.Revision() != before {
		t.Error("the same rules were written anew")
	}
	c.with(strings.Replace(text, "icmp_type\": 8", "icmp_type\": 0", 1)).ok(t, "profile", "dev", "rule", "update")
	if got := c.ok(t, "profile", "dev", "rule", "show"); !strings.Contains(got, "deny icmp type 0") {
		t.Errorf("got %q", got)
	}
	for args, want := range map[string]string{
		"profile none rule show":                "Profile none not found.\n",
		"profile dev rule remove inbound allow": "Rule not found.\n",
		"profile dev tag remove red":            "Tag red is not on profile dev.\n",
		"profile dev rule add sideways allow":   `"sideways" is neither inbound nor outbound`,
		"profile dev rule add inbound allow 80": `"80" is not understood`,
		"profile dev member add x":              "calicoctl endpoint ENDPOINT profile append NAME",
		"profile":                               "this is not understood",
	} {
		if got := c.fails(t, strings.Fields(args)...); !strings.Contains(got, want) {
			t.Errorf("%s: got %q", args, got)
		}
	}
	if got := c.with(`{"id":"x","inbound_rules":[],"outbound_rules":[]}`).fails(t, "profile", "dev", "rule", "update"); !strings.Contains(got, `the rules' id is "x", not "dev"`) {
		t.Errorf("got %q", got)
	}
}

func TestLegacyBGPAndEndpoints(t *testing.T) {
	c := newCluster(t)
	c.load(t, "resources.txt")
	c.env["NODENAME"] = "node-a"
	for _, step := range []struct{ args, want string }{
		{"bgp peer add 10.0.0.9 as 64599", ""},
		{"bgppeer add fd00::9 as 64599", ""},
		{"node bgp peer add 10.0.0.8 as 64500", ""},
		{"node bgppeer show --ipv6", "No Node specific IPv6 BGP Peers defined.\n\n"},
		{"bgp peer show --ipv6", "+----------------------+--------+\n| Global IPv6 BGP Peer | AS Num |\n+----------------------+--------+\n| fd00::9              | 64599  |\n+----------------------+--------+\n"},
		{"bgp peer remove fd00::9", "BGP peer removed from global configuration\n"},
		{"bgppeer rr add 10.0.0.7", ""},
		{"bgp-node-mesh", "off\n"},
		{"bgp node-mesh on", ""},
		{"bgp node-mesh", "on\n"},
		{"default-node-as 64999", ""},
		{"bgp default-node-as", "64999\n"},
		{"container web-0 endpoint-id show", "node--a-k8s-web--0-eth0\n"},
		{"endpoint show", "+----------+-----------------+---------------------+---------------------+\n| Hostname | Orchestrator ID | Number of Workloads | Number of Endpoints |\n+----------+-----------------+---------------------+---------------------+\n|  node-a  |       k8s       |          1          |          1          |\n|  node-b  |    libnetwork   |          1          |          1          |\n+----------+-----------------+---------------------+---------------------+\n"},
		{"endpoint node--a-k8s-web--0-eth0 profile set", "Profiles of endpoint node--a-k8s-web--0-eth0 are changed.\n"},
		{"endpoint node--a-k8s-web--0-eth0 profile show", "Endpoint has no profiles associated with it.\n"},
		{"endpoint node--a-k8s-web--0-eth0 profile append prof-web", "Profiles of endpoint node--a-k8s-web--0-eth0 are changed.\n"},
		{"endpoint node--a-k8s-web--0-eth0 profile append prof-web", "Profile prof-web is already bound to this endpoint.\n"},
		{"restart-docker-with-alternative-unix-socket", "calicoctl restart-docker-with-alternative-unix-socket: nothing stands between Docker and its clients any more; there is nothing to do.\n"},
	} {
		if got := c.ok(t, strings.Fields(step.args)...); got != step.want {
			t.Errorf("%s: got\n%s", step.args, got)
		}
	}
	if got := c.ok(t, "profile", "show", "--detailed"); !strings.Contains(got, "prof-web") || !strings.Contains(got, "web-0") {
		t.Errorf("got\n%s", got)
	}
	if got := c.ok(t, "endpoint", "show", "--detail"); !strings.Contains(got, "node--a-k8s-web--0-eth0") || !strings.Contains(got, "prof-web") {
		t.Errorf("got\n%s", got)
	}
	if got := c.ok(t, "shownodes"); !strings.Contains(got, "|  node-a  |") && !strings.Contains(got, "node-a") {
		t.Errorf("got\n%s", got)
	}
	if got := c.ok(t, "get", "bgppeer", "node-a.10-0-0-8", "10-0-0-9", "10-0-0-7", "-oname"); strings.Count(got, "\n") != 3 {
		t.Errorf("got %s", got)
	}
	for args, want := range map[string]string{
		"bgp peer remove 10.9.9.9":     "no such BGP peer: 10.9.9.9\n",
		"bgp peer add 10.0.0.9 as 0x1": "is not an AS number",
		"endpoint none profile show":   "no endpoint is called none\n",
		"container add web 10.0.0.1":   "attached by their runtime",
		"reset":                        "It is not done any more",
		"master --ip=10.0.0.1":         "there is no master any more",
		"addgroup x":                   "groups became profiles",
	} {
		if got := c.fails(t, strings.Fields(args)...); !strings.Contains(got, want) {
			t.Errorf("%s: got %q", args, got)
		}
	}
	if got := (client{}).run(t, "status", "--run-dir", t.TempDir()); got.code != 1 || got.stderr != "Calico process is not running.\n" {
		t.Errorf("got %v", got)
	}
}

func TestCheckSystem(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	write("proc/sys/kernel/osrelease", "6.1.0-18-amd64\n")
	write("sys/kernel/btf/vmlinux", "")
	write("sys/fs/bpf/x", "")
	write("proc/sys/net/ipv4/ip_forward", "0\n")
	write("boot/config-6.1.0-18-amd64", "CONFIG_BPF_SYSCALL=y\nCONFIG_BPF_JIT=y\nCONFIG_DEBUG_INFO_BTF=y\nCONFIG_NET_CLS_ACT=y\nCONFIG_NET_SCH_INGRESS=m\nCONFIG_NET_CLS_BPF=m\nCONFIG_VETH=m\n")
	c := client{}
	if got := c.ok(t, "node", "checksystem", "--root", root); !strings.HasSuffix(got, "System meets minimum system requirements to run Calico!\n") || strings.Contains(got, "FAIL") {
		t.Errorf("got\n%s", got)
	}
	c.ok(t, "checksystem", "--fix", "--root", root)
	if on, _ := os.ReadFile(filepath.Join(root, "proc/sys/net/ipv4/ip_forward")); string(on) != "1" {
		t.Errorf("forwarding is %q", on)
	}
	write("proc/sys/kernel/osrelease", "5.15.0\n")
	write("boot/config-5.15.0", "CONFIG_VETH=y\n")
	if got := c.fails(t, "node", "checksystem", "--root", root); !strings.Contains(got, "WARNING: 5.15.0: at least 6.1 is needed\n") ||
		!strings.Contains(got, "WARNING: CONFIG_BPF_JIT: ") || !strings.HasSuffix(got, "System doesn't meet one or more minimum systems requirements to run Calico\n") {
		t.Errorf("got\n%s", got)
	}
}

func TestDiags(t *testing.T) {
	c := newCluster(t)
	c.load(t, "resources.txt")
	names := func(path string) (out []string) {
		t.Helper()
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		z, err := gzip.NewReader(file)
		if err != nil {
			t.Fatal(err)
		}
		for r := tar.NewReader(z); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				return out
			}
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, h.Name)
		}
	}
	dir := t.TempDir()
	logs := filepath.Join(dir, "log")
	if err := errors.Join(os.Mkdir(logs, 0o755), os.WriteFile(filepath.Join(logs, "current"), []byte("x"), 0o644)); err != nil {
		t.Fatal(err)
	}
	out := c.ok(t, "node", "diags", "--output-dir", dir, "--log-dir", logs, "--run-dir", dir)
	path := strings.TrimSpace(out[strings.LastIndex(out, " ")+1:])
	got := names(path)
	for _, want := range []string{"diagnostics/calico/status.json", "diagnostics/logs/current", "diagnostics/ipv4_route", "diagnostics/date"} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is missing in %v", want, got)
		}
	}
	out = c.ok(t, "cluster", "diags", "--output-dir", dir)
	got = names(strings.TrimSpace(out[strings.LastIndex(out, " ")+1:]))
	for _, want := range []string{"diagnostics/resources/ippools.json", "diagnostics/internal/ipamblocks.json", "diagnostics/enforced.json"} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is missing in %v", want, got)
		}
	}
	// calico-node need not be installed where this runs.
	if r := c.run(t, "node", "--dryrun", "--ip=10.0.0.1", "--run-dir", dir); !strings.Contains(r.stdout, "IP=10.0.0.1") && !strings.Contains(r.stderr, "neither beside calicoctl nor in PATH") {
		t.Errorf("got %v", r)
	}
}
