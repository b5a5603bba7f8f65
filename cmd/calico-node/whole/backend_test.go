package whole

import (
	"strings"
	"testing"

	"calico-xdp/tools/testbed"
)

// TestBackends: the routed cluster without BGP, and a node that makes no routes at all.
func TestBackends(t *testing.T) {
	silent := func(c *cluster, backend string) {
		c.Helper()
		for _, n := range c.nodes {
			if conn, err := n.Dial("tcp", "127.0.0.1:179"); err == nil {
				conn.Close()
				c.Errorf("%s: something listens on BGP's port", n.name)
			}
			if s, err := n.api().BGP(c.Context()); err != nil || s.Enabled || len(s.Peers) != 0 {
				c.Errorf("%s: BGP %+v %v", n.name, s, err)
			}
		}
		if got := c.ctl("", "node", "status", "--run-dir", c.nodes[0].dir+"/run"); !strings.Contains(got, `BGP is not in use (backend "`+backend+`")`) {
			c.Errorf("status: %s", got)
		}
	}
	t.Run("vxlan", func(t *testing.T) {
		c := newCluster(t, options{subnets: []int{1, 2}, environ: []string{"CALICO_NETWORKING_BACKEND=vxlan"}})
		a, b := c.nodes[0], c.nodes[1]
		client, db := c.attach(a, "vxlan", "client"), c.attach(b, "vxlan", "db")
		c.settle()
		silent(c, "vxlan")
		c.tryAll("vxlan",
			try{from: client.Namespace, to: db.v4, port: 80, want: true}, try{from: client.Namespace, to: db.v6, port: 80, want: true},
			try{from: db.Namespace, to: client.v4, port: 80, udp: true, want: true}, try{from: db.Namespace, to: client.v6, want: true})
	})
	t.Run("none", func(t *testing.T) {
		c := newCluster(t, options{subnets: []int{1, 1}, environ: []string{"CALICO_NETWORKING_BACKEND=none"}})
		a, b := c.nodes[0], c.nodes[1]
		client, db := c.attach(a, "plain", "client"), c.attach(b, "plain", "db")
		c.settle()
		silent(c, "none")
		if got := a.MustRun(t, "ip", "route", "show", "proto", "88"); strings.Count(got, "\n") != 1 || !strings.HasPrefix(got, client.v4.String()+" dev cali") {
			t.Errorf("routes:\n%s", got)
		}
		// Somebody else knows where the workloads are.
		for _, way := range []struct{ at, to *node }{{a, b}, {b, a}} {
			for _, p := range c.blocks(way.to.name, pool4["plain"]) {
				way.at.MustRun(t, "ip", "route", "add", p.String(), "via", way.to.IPv4.Addr().String())
			}
		}
		c.tryAll("somebody's routes", try{from: client.Namespace, to: db.v4, port: 5432, want: true}, try{from: db.Namespace, to: client.v4, want: true})
		c.apply(policyFor(80))
		c.tryAll("policy", try{from: client.Namespace, to: db.v4, port: 5432}, try{from: client.Namespace, to: db.v4, port: 80, want: true})
		if received, sent := testbed.Ping(db.Namespace, client.v4, 5); received != sent {
			t.Errorf("%d of %d", received, sent)
		}
	})
}
