package whole

import (
	"fmt"
	"strings"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/tools/testbed"
)

// policyFor is a policy that lets only that port of the role db be reached.
func policyFor(port int) string {
	return fmt.Sprintf(`
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: db}, spec: {selector: role == 'db', types: [Ingress],
 ingress: [{action: Allow, protocol: TCP, destination: {ports: [%d, "7000:7099"]}}, {action: Allow, protocol: ICMP}]}}`, port)
}

// TestEtcdAway: with etcd away nothing changes; what was changed meanwhile
// arrives when it is back, deletions included.
func TestEtcdAway(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 1}})
	a, b := c.nodes[0], c.nodes[1]
	client, beside, far := c.attach(a, "ipip", "client"), c.attach(a, "ipip", "db-beside"), c.attach(b, "ipip", "db-far")
	gone := c.attach(b, "ipip", "db-gone")
	c.apply(policyFor(80))
	c.apply(`
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: doomed}, spec: {order: 1, selector: role == 'db', types: [Ingress],
 ingress: [{action: Deny, protocol: UDP}]}}`)
	traffic := &runs{c: c}
	traffic.run("local", client, beside, false)
	traffic.run("ipip", client, far, false)
	before := func(when string) {
		t.Helper()
		traffic.goOn(when)
		var tries []try
		for _, to := range []*workload{beside, far, gone} {
			tries = append(tries,
				try{from: client.Namespace, to: to.v4, port: 80, want: true},
				try{from: client.Namespace, to: to.v4, port: 5432},
				try{from: client.Namespace, to: to.v4, want: true})
		}
		c.tryAll(when, tries...)
	}
	before("before")

	key := "/calico/resources/v3/projectcalico.org/"
	goneKey := key + "workloadendpoints/default/" + endpointName(c, gone)
	policy := key + "globalnetworkpolicies/default.db"
	if c.etcd.Get(policy) == "" {
		policy = key + "globalnetworkpolicies/db"
	}
	doomed := strings.Replace(policy, "db", "doomed", 1)
	for _, k := range []string{goneKey, policy, doomed} {
		if c.etcd.Get(k) == "" {
			t.Fatalf("no %s", k)
		}
	}
	c.etcd.Stop()
	before("etcd stopped")
	c.etcd.WhileAway(func() {
		c.etcd.Put(policy, strings.Replace(c.etcd.Get(policy), "[80,", "[5432,", 1))
		c.etcd.Delete(doomed)
		c.etcd.Delete(goneKey)
		c.etcd.Compact()
	})
	before("etcd changed, unseen")
	if code, body := a.get(liveness); code != 200 {
		t.Errorf("liveness without etcd: %d %s", code, body)
	}
	// Nor does one that starts without etcd touch anything.
	b.daemon.Kill()
	b.start()
	if !testbed.Eventually(func() bool { code, _ := b.get(readiness); return code == 503 }) {
		t.Error("ready, and has not seen etcd")
	}
	before("started without etcd")
	c.etcd.Start()
	b.waitReady()
	c.settle()
	after := func(when string) {
		t.Helper()
		traffic.goOn(when)
		tries := []try{{from: client.Namespace, to: gone.v4, port: 5432}, {from: client.Namespace, to: gone.v4}}
		for _, to := range []*workload{beside, far} {
			tries = append(tries,
				try{from: client.Namespace, to: to.v4, port: 80},
				try{from: client.Namespace, to: to.v4, port: 5432, want: true},
				try{from: client.Namespace, to: to.v4, port: 80, udp: true})
		}
		c.tryAll(when, tries...)
	}
	after("etcd is back")

	// One node alone cannot see it, and history goes meanwhile.
	b.gate.cut()
	c.apply(policyFor(80))
	for i := range 20 { // more than one change of what b has missed
		c.etcd.Put(key+"globalnetworksets/noise", fmt.Sprintf(`{"kind":"GlobalNetworkSet","apiVersion":"projectcalico.org/v3",
"metadata":{"name":"noise"},"spec":{"nets":["10.%d.0.0/16"]}}`, i))
	}
	c.etcd.Delete(key + "globalnetworksets/noise")
	c.etcd.Delete(key + "workloadendpoints/default/" + endpointName(c, beside))
	c.etcd.Compact()
	c.settle(a)
	c.tryAll("a sees it",
		try{from: far.Namespace, to: beside.v4, port: 80}, try{from: client.Namespace, to: far.v4, port: 5432, want: true},
		try{from: client.Namespace, to: far.v4, port: 80})
	b.gate.mend()
	c.settle(b)
	c.tryAll("b sees it too",
		try{from: client.Namespace, to: far.v4, port: 80, want: true}, try{from: client.Namespace, to: far.v4, port: 5432})

	// Its stream's endpoint is gone; the other one is as it was.
	if err := traffic.streams[1].Err(); err != nil || !traffic.streams[1].Progresses(1<<18) {
		t.Errorf("stream: %v", err)
	}
	if r := traffic.floods[1].Stop(); r.Lost != 0 {
		t.Errorf("ping: %s", r)
	}
}

// endpointName is the name of the workload's endpoint.
func endpointName(c *cluster, w *workload) string {
	c.Helper()
	for _, e := range w.node.status().Endpoints {
		for _, a := range e.Addresses {
			if a == w.v4.String() || a == w.v6.String() {
				return e.Name
			}
		}
	}
	c.Fatalf("%s has no endpoint", w.name)
	return ""
}

// TestEmbeddedEtcdDies: the first daemon takes etcd with it when it is killed.
// Nobody loses a packet, and all is well when it is back.
func TestEmbeddedEtcdDies(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 1}, embedded: true})
	a, b := c.nodes[0], c.nodes[1]
	client, far := c.attach(a, "ipip", "client"), c.attach(b, "ipip", "db-far")
	traffic := &runs{c: c}
	traffic.run("ipip", client, far, false)
	traffic.goOn("before")
	for round := range 2 {
		a.daemon.Kill()
		traffic.goOn("etcd is dead")
		a.restart()
		port := []int{80, 5432}[round]
		c.apply(policyFor(port))
		enforced := testbed.Eventually(func() bool {
			ok, _ := try{from: client.Namespace, to: far.v4, port: 80}.exchange()
			return ok == (port == 80)
		})
		if !enforced {
			t.Errorf("round %d: host2 does not enforce what was written since", round)
		}
		traffic.goOn("etcd is back")
	}
	traffic.end()
}

// TestRemoteThingsGo: what other nodes had is forgotten with them, also when it
// goes while nobody looks.
func TestRemoteThingsGo(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 2}})
	a, b := c.nodes[0], c.nodes[1]
	client, far := c.attach(a, "vxlan", "client"), c.attach(b, "vxlan", "db-far")
	c.settle()
	c.tryAll("before", try{from: client.Namespace, to: far.v4, port: 80, want: true}, try{from: client.Namespace, to: far.v6, port: 80, want: true})
	route := func() string { return a.MustRun(t, "ip", "route", "show", "proto", "88", "via", a.Gateway4.String()) }
	if !testbed.Eventually(func() bool { return strings.Contains(route(), "10.66.") }) {
		t.Errorf("routes to host2: %q", route())
	}

	// A node's resource goes while its daemon is away, and comes back with that.
	b.daemon.Kill()
	node, err := c.store.Get(t.Context(), api.Key{Kind: api.KindNode, Name: b.name})
	if err != nil {
		t.Fatal(err)
	}
	a.gate.cut()
	if _, err := c.store.Delete(t.Context(), api.KeyOf(node), ""); err != nil {
		t.Fatal(err)
	}
	c.tryAll("unseen", try{from: client.Namespace, to: far.v4, want: true})
	a.gate.mend()
	if !testbed.Eventually(func() bool { return route() == "" }) {
		t.Errorf("routes to host2 stay: %s", route())
	}
	c.tryAll("node deleted", try{from: client.Namespace, to: far.v4}, try{from: client.Namespace, to: far.v6})
	b.restart()
	c.settle()
	c.tryAll("node is back", try{from: client.Namespace, to: far.v4, want: true}, try{from: far.Namespace, to: client.v6, want: true})
	if !testbed.Eventually(func() bool { return route() != "" }) {
		t.Error("no route to host2")
	}

	// Its own resource goes while it runs, as after an operator's slip: it is written anew.
	mine := api.Key{Kind: api.KindNode, Name: a.name}
	beside := c.attach(a, "vxlan", "db-beside")
	if _, err := c.store.Delete(t.Context(), mine, ""); err != nil {
		t.Fatal(err)
	}
	if !testbed.Eventually(func() bool { _, err := c.store.Get(t.Context(), mine); return err == nil }) {
		t.Fatal("the node is not written anew")
	}
	c.settle()
	c.tryAll("own node is back",
		try{from: client.Namespace, to: far.v4, want: true}, try{from: far.Namespace, to: client.v6, want: true},
		try{from: beside.Namespace, to: far.v4, port: 5432, want: true})
}
