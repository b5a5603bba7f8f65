package command_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// report is what `ipam check -o` writes, as far as it is looked at here.
type report struct {
	ClusterGUID     string
	DatastoreLocked bool
	Problems        int
	Allocations     map[string][]struct {
		IP, Handle, Pod, Node, Type string
		SequenceNumber              uint64
		InUse, Borrowed             bool
		Owners                      []string
	}
	LeakedHandles []struct{ ID, Revision string }
}

func lockKey() string {
	return "/calico/resources/v3/projectcalico.org/clusterinformations/default"
}

func TestIPAMCheckOnCalicosData(t *testing.T) {
	c := newCluster(t)
	c.load(t, "resources.txt")
	c.load(t, "ipam.txt")
	r := c.run(t, "ipam", "check")
	if r.code != 1 || !strings.Contains(r.stderr, "problems") {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
	for _, want := range []string{
		"192.168.46.128  handle k8s-pod-network.c1 namespace=prod node=node-a pod=web-0",
		"192.168.46.131  handle ipip-tunnel-addr-node-a node=node-a type=ipipTunnelAddress",
		"192.168.0.10  used by Workload(prod/node--a-k8s-web--0-eth0)",
		"192.168.5.5  handle manual-h type=manual",
		"… and ", "(--show-problem-ips)",
	} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("%q is missing in\n%s", want, r.stdout)
		}
	}

	file := filepath.Join(t.TempDir(), "report.json")
	if r := c.run(t, "ipam", "check", "-o", file); r.code != 1 {
		t.Errorf("exit %d", r.code)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var rep report
	if err := json.Unmarshal(text, &rep); err != nil {
		t.Fatal(err)
	}
	leak := rep.Allocations["192.168.46.129"]
	if len(leak) != 1 || leak[0].InUse || leak[0].Handle != "k8s-pod-network.c1" || leak[0].SequenceNumber == 0 || leak[0].Node != "node-a" {
		t.Errorf("got %+v", leak)
	}
	if manual := rep.Allocations["192.168.5.5"]; len(manual) != 1 || !manual[0].InUse {
		t.Errorf("an address assigned by hand: %+v", manual)
	}
	var again report
	if r := c.run(t, "ipam", "check", "-ojson"); json.Unmarshal([]byte(r.stdout), &again) != nil || again.Problems != rep.Problems {
		t.Errorf("-o json: %s", r.stdout)
	}

	// What a report says is released only with the datastore locked, and only while
	// it is still so.
	if got := c.fails(t, "ipam", "release", "--from-report", file); !strings.Contains(got, "not locked") {
		t.Errorf("got %q", got)
	}
	info := c.etcd.Get(lockKey())
	c.etcd.Put(lockKey(), strings.Replace(info, `"datastoreReady":true`, `"datastoreReady":false`, 1))
	if got := c.fails(t, "ipam", "release", "--from-report", file); !strings.Contains(got, "older than the last lock") {
		t.Errorf("got %q", got)
	}
	before := file + ".before"
	if err := os.WriteFile(before, text, 0o600); err != nil {
		t.Fatal(err)
	}
	c.ok(t, "ipam", "release", "--ip=192.168.46.130")
	c.run(t, "ipam", "check", "-o", file)
	got := c.ok(t, "ipam", "release", "--from-report", file, "--from-report", before)
	if !strings.Contains(got, "Released ") || !strings.Contains(got, "unlock") {
		t.Errorf("got %q", got)
	}
	if got := c.ok(t, "ipam", "show", "--ip=192.168.46.129"); !strings.Contains(got, "is not assigned") {
		t.Errorf("got %q", got)
	}
	if got := c.ok(t, "ipam", "show", "--ip=192.168.5.5"); !strings.Contains(got, "in use") {
		t.Errorf("got %q", got)
	}
	foreign := strings.Replace(string(text), rep.ClusterGUID, "another", 1)
	if err := os.WriteFile(file, []byte(foreign), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := c.fails(t, "ipam", "release", "--force", "--from-report", file); !strings.Contains(got, "another cluster") {
		t.Errorf("got %q", got)
	}
}

func TestIPAMCheckRepairs(t *testing.T) {
	c := newCluster(t)
	c.load(t, "resources.txt")
	c.load(t, "ipam.txt")
	got := c.ok(t, "ipam", "check", "--fix", "--grace=0s")
	for _, want := range []string{
		"Released 192.168.46.128 (handle k8s-pod-network.c1)", "Assigned 192.168.0.10 to Workload(prod/node--a-k8s-web--0-eth0)", "Check complete; found 0 problems.",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	if got := c.ok(t, "ipam", "show", "--ip=192.168.100.1"); !strings.Contains(got, "-tunnel-addr-node-a") {
		t.Errorf("the address of a tunnel was adopted as %s", got)
	}
	c.ok(t, "ipam", "check")
	c.ok(t, "ipam", "gc", "--grace=0s")
}

func TestIPAMConfigure(t *testing.T) {
	c := newCluster(t)
	if got := c.ok(t, "ipam", "configure", "--strictaffinity=true", "--max-blocks-per-host=4"); got !=
		"Successfully set StrictAffinity to: true\nSuccessfully set MaxBlocksPerHost to: 4\n" {
		t.Errorf("got %q", got)
	}
	if got := c.etcd.Get("/calico/ipam/v2/config"); got != `{"strict_affinity":true,"auto_allocate_blocks":true,"maxBlocksPerHost":4,"kubeVirtVMAddressPersistence":"Enabled"}` {
		t.Errorf("stored %s", got)
	}
	c.ok(t, "ipam", "configure", "--strictaffinity=false")
	if got := c.etcd.Get("/calico/ipam/v2/config"); !strings.Contains(got, `"maxBlocksPerHost":4`) {
		t.Errorf("stored %s", got)
	}
	c.fails(t, "ipam", "configure")
	c.fails(t, "ipam", "configure", "--strictaffinity=perhaps")
	c.fails(t, "ipam", "configure", "--max-blocks-per-host=-1")
}

func TestIPAMSplit(t *testing.T) {
	c := newCluster(t)
	c.load(t, "resources.txt")
	if got := c.fails(t, "ipam", "split", "4", "--cidr=192.168.0.0/18"); !strings.Contains(got, "not locked") {
		t.Errorf("got %q", got)
	}
	info := c.etcd.Get(lockKey())
	c.etcd.Put(lockKey(), strings.Replace(info, `"datastoreReady":true`, `"datastoreReady":false`, 1))
	for _, args := range [][]string{
		{"3", "--cidr=192.168.0.0/18"}, {"1", "--cidr=192.168.0.0/18"}, {"4", "--cidr=192.168.0.0/19"}, {"4", "--name=none"}, {"4"},
		{"512", "--cidr=192.168.0.0/18"}, {"--name=ipip-always"},
	} {
		c.fails(t, append([]string{"ipam", "split"}, args...)...)
	}
	c.ok(t, "ipam", "split", "4", "--cidr=192.168.0.0/18")
	got := strings.Fields(c.ok(t, "get", "ippool", "-o", "wide"))
	text := strings.Join(got, " ")
	for _, want := range []string{
		"split-ipip-always-0 192.168.0.0/20 true Always", "split-ipip-always-1 192.168.16.0/20", "split-ipip-always-2 192.168.32.0/20", "split-ipip-always-3 192.168.48.0/20",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in %s", want, text)
		}
	}
	if strings.Contains(text, " ipip-always ") {
		t.Errorf("the old pool is left: %s", text)
	}
	c.ok(t, "ipam", "split", "2", "--name=v6-pool")
	if text := c.ok(t, "get", "ippool", "split-v6-pool-1"); !strings.Contains(text, "fd02:0:0:8000::/49") {
		t.Errorf("got %s", text)
	}
}

func TestDatastoreBackup(t *testing.T) {
	c := newCluster(t)
	c.load(t, "resources.txt")
	file := filepath.Join(t.TempDir(), "calico.db")
	c.ok(t, "datastore", "backup", file)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 || info.Size() == 0 {
		t.Errorf("%v, %v", info, err)
	}
	c.fails(t, "datastore", "backup")
}
