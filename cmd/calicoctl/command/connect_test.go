package command_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// refused returns the URL of a port where nobody listens.
func refused(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return "http://" + l.Addr().String()
}

func TestConfiguration(t *testing.T) {
	c := newCluster(t)
	c.load(t, "resources.txt")
	endpoint := c.env["ETCD_ENDPOINTS"]
	file := func(text string) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), "calicoctl.cfg")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	config := func(endpoints string) string {
		return file("apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata:\nspec:\n  datastoreType: etcdv3\n  etcdEndpoints: " + endpoints + "\n")
	}
	good, bad := config(endpoint), config(refused(t))

	for name, test := range map[string]struct {
		env  map[string]string
		args []string
	}{
		"environment":                {map[string]string{"ETCD_ENDPOINTS": endpoint}, nil},
		"authority":                  {map[string]string{"ETCD_AUTHORITY": strings.TrimPrefix(endpoint, "http://")}, nil},
		"Calico's prefix":            {map[string]string{"CALICO_ETCD_ENDPOINTS": endpoint}, nil},
		"file":                       {nil, []string{"--config", good}},
		"file, short":                {nil, []string{"-c" + good}},
		"environment wins over file": {map[string]string{"ETCD_ENDPOINTS": endpoint}, []string{"-c", bad}},
		"authority wins over file":   {map[string]string{"ETCD_AUTHORITY": strings.TrimPrefix(endpoint, "http://")}, []string{"-c", bad}},
		"mismatch and context":       {map[string]string{"ETCD_ENDPOINTS": endpoint}, []string{"--allow-version-mismatch", "--context=x", "-linfo"}},
		"flags before the command":   {map[string]string{"ETCD_ENDPOINTS": endpoint, "DATASTORE_TYPE": "etcdv3"}, []string{"--log-level=panic"}},
	} {
		t.Run(name, func(t *testing.T) {
			args := append(test.args, "get", "tier", "security", "-oname")
			if got := (client{env: test.env}).ok(t, args...); got != "tier/security\n" {
				t.Errorf("got %q", got)
			}
		})
	}

	none := filepath.Join(t.TempDir(), "none")
	for want, args := range map[string][]string{
		"configuration: open " + none + ": no such file": {"-c", none},
		"kind: \"IPPool\" is not CalicoAPIConfig":        {"-c", file("kind: IPPool\n")},
		"unknown field \"etcdEndpoint\"":                 {"-c", file("kind: CalicoAPIConfig\nspec: {etcdEndpoint: x}\n")},
		"datastore type \"kubernetes\" is not supported": {"-c", file("kind: CalicoAPIConfig\nspec: {datastoreType: kubernetes}\n")},
		"http:// or https:// expected":                   {"-c", file("kind: CalicoAPIConfig\nspec: {etcdEndpoints: \"ftp://x:1\"}\n")},
	} {
		if got := (client{}).fails(t, append(args, "get", "node")...); !strings.Contains(got, want) {
			t.Errorf("expected %q, got %q", want, got)
		}
	}
}

// Without etcd every command fails with one clear message, not one per object.
func TestDatastoreIsDown(t *testing.T) {
	t.Parallel()
	endpoint := refused(t)
	c := client{env: map[string]string{"ETCD_ENDPOINTS": endpoint}}
	commands := []string{"get node,ippool", "get ippool a b c", "apply -f-", "delete ippool a b", "ipam show", "version"}
	results := make([]result, len(commands))
	var all sync.WaitGroup // each waits some seconds for an etcd that may be starting
	for i, args := range commands {
		all.Go(func() { results[i] = c.with(poolYAML+"---"+policyYAML).run(t, strings.Fields(args)...) })
	}
	all.Wait()
	for i, got := range results {
		if got.code != 1 || strings.Count(got.stderr, endpoint) != 1 || !strings.Contains(got.stderr, "Is etcd running there?") {
			t.Errorf("%s: got %+v", commands[i], got)
		}
	}
}

func TestClusterVersion(t *testing.T) {
	c := newCluster(t)
	if got := c.fails(t, "version"); got != "unable to retrieve Cluster Version or Type: resource does not exist: ClusterInformation(default)\n" {
		t.Errorf("got %q", got)
	}
	c.with("kind: ClusterInformation\napiVersion: projectcalico.org/v3\nmetadata: {name: default}\nspec: {calicoVersion: v3.15.1, clusterType: \"kubespray,bgp\"}\n").
		ok(t, "apply", "-f-")
	want := "Client Version:    v1.2.3\nGit commit:        0123456789\nCluster Version:   v3.15.1\nCluster Type:      kubespray,bgp\n"
	got := c.ok(t, "version")
	if got != want {
		t.Errorf("got %q", got)
	}
	// As Kubespray reads it.
	for line := range strings.Lines(got) {
		if strings.HasPrefix(line, "Cluster Version:") && strings.Fields(line)[2] != "v3.15.1" {
			t.Errorf("third field of %q", line)
		}
	}
}
