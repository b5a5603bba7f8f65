package command_test

import (
	"slices"
	"strings"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/tools/testbed"
)

// cluster is a client of an etcd of its own.
type cluster struct {
	client
	etcd *testbed.Etcd
}

func newCluster(t *testing.T) cluster {
	t.Helper()
	t.Parallel() // beside the test that waits for an etcd that is not there
	etcd := testbed.StartEtcd(t)
	return cluster{client{env: map[string]string{"ETCD_ENDPOINTS": etcd.Endpoint()}}, etcd}
}

// load writes the keys and values of a file in testdata.
func (c cluster) load(t *testing.T, file string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(testdata(t, file)), "\n")
	for i := 0; i < len(lines); i += 2 {
		c.etcd.Put(lines[i], lines[i+1])
	}
}

// kindsThat returns the kinds that users see, with or without namespaces.
func kindsThat(namespaced bool) []string {
	var names []string
	for _, k := range api.Kinds() {
		if !k.Internal && k.Namespaced == namespaced {
			names = append(names, k.Plural)
		}
	}
	slices.Sort(names)
	return names
}

// newCluster2 is two clusters that know nothing of each other.
func newCluster2(t *testing.T) (a, b cluster) {
	t.Helper()
	a = newCluster(t)
	etcd := testbed.StartEtcd(t)
	return a, cluster{client{env: map[string]string{"ETCD_ENDPOINTS": etcd.Endpoint()}}, etcd}
}
