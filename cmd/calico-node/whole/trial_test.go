package whole

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"calico-xdp/tools/testbed"
)

// TestTrial: an operator on one host tries a policy that cuts both hosts off, from each
// other, from the operator and, the host without it, from etcd. Nobody can confirm it.
// It is undone: in etcd by the host that still has it, on the other by that host alone.
func TestTrial(t *testing.T) {
	c := newCluster(t, options{subnets: []int{1, 1}, embedded: true})
	a, b, router := c.nodes[0], c.nodes[1], c.lab.Router
	c.serve(a.Namespace, 8080)
	c.serve(b.Namespace, 8080)
	operator := func(manifests string, args ...string) (string, bool) {
		t.Helper()
		if manifests != "" {
			file := filepath.Join(b.dir, "trial.yaml")
			if err := os.WriteFile(file, []byte(manifests), 0o600); err != nil {
				t.Fatal(err)
			}
			args = append(args, "-f", file)
		}
		return b.calicoctl(args...)
	}
	works := func(manifests string, args ...string) string {
		t.Helper()
		out, ok := operator(manifests, args...)
		if !ok {
			t.Fatalf("calicoctl %v: %s", args, out)
		}
		return out
	}
	works(hostEndpoint("one", a.name, "eth0", open)+hostEndpoint("two", b.name, "eth0", open), "apply")
	if out := works("", "wait", "--for", "enforced"); out != "Enforced by 2 node(s)\n" {
		t.Errorf("got %q", out)
	}
	reach := func(want bool) (tries []try) {
		for _, n := range []*node{a, b} {
			tries = append(tries, on(router, n.IPv4.Addr(), n.IPv6.Addr(), 8080, false, want)...)
		}
		return append(tries, try{from: b.Namespace, to: a.IPv4.Addr(), port: 2379, want: want}, try{from: router, to: a.IPv4.Addr(), port: 2379, want: want})
	}
	c.tryAll("before", reach(true)...)

	// The answer may be cut off too.
	out, ok := operator(`{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: default}, spec: {failsafeInboundHostPorts: [], failsafeOutboundHostPorts: []}}`+
		hostPolicy("deny", "selector: has(host), ingress: [{action: Deny}], egress: [{action: Deny}]"), "apply", "--confirm", "12s")
	if ok && !strings.Contains(out, "globalnetworkpolicy/deny created\nSuccessfully applied 2 resource(s)\n") ||
		!ok && !strings.Contains(out, "it is undone by itself after 12s") {
		t.Errorf("got %q", out)
	}
	// are says whether all of that works, or nothing of it. At once: a trial is short.
	are := func(open bool) bool {
		var wrong atomic.Int32
		var tries sync.WaitGroup
		for _, t := range reach(open) {
			tries.Go(func() {
				if ok, reached := t.exchange(); ok != open || !open && reached {
					wrong.Add(1)
				}
			})
		}
		tries.Wait()
		return wrong.Load() == 0
	}
	closed := func() bool { return are(false) }
	if !testbed.Eventually(closed) {
		t.Error("the policy does not cut anybody off")
	}
	opened := func() bool { return are(true) }
	if !c.eventually(opened) {
		t.Fatal("it does not heal")
	}
	var left string
	if !testbed.Eventually(func() bool {
		var ok bool
		left, ok = operator("", "get", "gnp", "-o", "name")
		return ok && left == ""
	}) {
		t.Errorf("the policy is still there: %q", left)
	}
	if out := works("", "get", "felixconfig", "default", "-o", "yaml"); strings.Contains(out, "failsafe") {
		t.Errorf("got %s", out)
	}
	if out := works("", "confirm", "--list"); strings.Count(out, "\n") != 1 {
		t.Errorf("still waiting: %s", out)
	}
	works("", "wait", "--for=enforced")
	c.tryAll("healed", reach(true)...)

	// What is confirmed stays.
	out = works(hostPolicy("narrow", "selector: has(host), ingress: [{action: Deny, protocol: TCP, destination: {ports: [8080]}}, {action: Allow}], types: [Ingress]"),
		"apply", "--confirm=5s")
	id := out[strings.LastIndex(out, " ")+1:]
	if out := works("", "confirm"); out != strings.TrimSpace(id)+" confirmed: the change stays\n" {
		t.Errorf("got %q", out)
	}
	works("", "wait")
	c.tryAll("confirmed", try{from: router, to: a.IPv4.Addr(), port: 8080}, try{from: router, to: a.IPv4.Addr(), port: 2379, want: true})

	// Who does not enforce is named.
	b.daemon.Kill()
	out, ok = operator("", "wait", "--for=enforced", "--timeout=2s")
	if ok || !strings.HasPrefix(out, "not enforced within 2s by 1 of 2 node(s):\n  host2: no answer: ") {
		t.Errorf("%v: %s", ok, out)
	}
	if out := works("", "get", "clusterinfo"); !strings.Contains(out, "calico-xdp") {
		t.Errorf("got %s", out)
	}
	if out := works("", "get", "gnp", "-o", "name"); out != "globalnetworkpolicy/narrow\n" {
		t.Errorf("got %s", out)
	}
}
