package datastore

import (
	"testing"

	"calico-xdp/pkg/api"
)

// FuzzKey: whatever stands in etcd, a key that we call ours is written back as it
// was read, so two etcd keys are never one object.
//
// For long: go test ./pkg/datastore -run - -fuzz FuzzKey -fuzztime 10m
func FuzzKey(f *testing.F) {
	for _, path := range []string{
		resourceRoot + "nodes/a", resourceRoot + "networkpolicies/prod/np-1", resourceRoot + "networkpolicies//x", resourceRoot + "nodes/",
		ipamRoot + "config", ipamRoot + "handle/k8s-pod-network.c1", ipamRoot + "assignment/ipv4/block/192.168.46.128-26",
		ipamRoot + "assignment/ipv6/block/fd02::-122", ipamRoot + "assignment/ipv6/block/FD02::-122", ipamRoot + "assignment/ipv4/block/10.0.0.1-26",
		ipamRoot + "host/node-a/ipv4/block/10.0.0.0-26", ipamRoot + "host/a/ipv6/block/10.0.0.0-26", ipamRoot + "assignment/ipv4/block/::ffff:10.0.0.0-122",
		resourceRoot, ipamRoot, "", "/",
	} {
		f.Add(path)
	}
	c := newCodec()
	f.Fuzz(func(t *testing.T, path string) {
		key, ok := c.key(path)
		if !ok {
			return
		}
		again, err := c.path(key)
		if err != nil || again != path {
			t.Errorf("%q is %s, which is %q, %v", path, key, again, err)
		}
		if c.withNamespace(key) != key {
			t.Errorf("%q is %s without its namespace", path, key)
		}
	})
}

// FuzzKeyOfName: a name has one key, which reads as that name, or none.
//
// For long: go test ./pkg/datastore -run - -fuzz FuzzKeyOfName -fuzztime 10m
func FuzzKeyOfName(f *testing.F) {
	kinds := api.Kinds()
	for _, name := range []string{"a", "prod/np", "10.0.0.0-26", "node-a/10.0.0.0-26", "default", "..", "a b", "ä", "\x00", "node/fd00::-122", "0::-0", "0/0::-0"} {
		for i := range kinds {
			f.Add(uint8(i), "default", name)
			f.Add(uint8(i), "", name)
		}
	}
	c := newCodec()
	f.Fuzz(func(t *testing.T, kind uint8, namespace, name string) {
		key := c.withNamespace(api.Key{Kind: kinds[int(kind)%len(kinds)].Name, Namespace: namespace, Name: name})
		path, err := c.path(key)
		if err != nil {
			return
		}
		if back, ok := c.key(path); !ok || back != key {
			t.Errorf("%s has the key %q, which is %s, %v", key, path, back, ok)
		}
	})
}
