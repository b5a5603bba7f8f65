package testbed_test

import (
	"net"
	"testing"

	"calico-xdp/tools/testbed"
)

func TestEtcdKeepsItsDataAndPort(t *testing.T) {
	e := testbed.StartEtcd(t)
	address := e.Address()
	e.Put("/a", "1")
	e.Stop()
	if conn, err := net.Dial("tcp", address); err == nil {
		conn.Close()
		t.Fatal("stopped etcd takes connections")
	}
	e.Start()
	if got := e.Get("/a"); got != "1" || e.Address() != address {
		t.Fatalf("after a restart: /a is %q, address %s, was %s", got, e.Address(), address)
	}
	restore := e.Save()
	before := e.Revision()
	e.Put("/a", "2")
	e.Delete("/a")
	e.Compact()
	restore()
	if got := e.Get("/a"); got != "1" || e.Revision() != before {
		t.Fatalf("restored: /a is %q at revision %d, want 1 at %d", got, e.Revision(), before)
	}
}

func TestEtcdsDoNotClash(t *testing.T) {
	a, b := testbed.StartEtcd(t), testbed.StartEtcd(t)
	a.Put("/a", "1")
	if got := b.Get("/a"); got != "" {
		t.Fatalf("the other etcd has it too: %q", got)
	}
}
