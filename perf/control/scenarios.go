package control

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/nodeapi"
	"calico-xdp/tools/testbed"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

// pair is two workloads of the node and packets from one to the other.
type pair struct {
	client, server *workload
	probe          *probe
}

// addPair adds the probed workloads. Their policy is the caller's.
func (n *node) addPair() *pair {
	n.Helper()
	p := &pair{
		client: n.addWorkload("client", after(localAddresses, 1), map[string]string{"role": "client"}),
		server: n.addWorkload("server", after(localAddresses, 2), map[string]string{"role": "server"}),
	}
	n.settle()
	p.probe = startProbe(n.T, p.client.Namespace, p.server.Namespace, p.server.Addresses[0])
	return p
}

// flips has a change and its opposite made in turns; puts has what to write so
// that packets pass, and so that they do not. Packets pass at first.
func (n *node) flips(p *pair, count int, put func(passes bool)) (whole, after samples) {
	n.Helper()
	passes := true
	for range count {
		passes = !passes
		w, a := p.probe.flip(passes, func() { put(passes) })
		whole, after = append(whole, w), append(after, a)
		// Not in step with anything that has a period.
		time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
	}
	return whole, after
}

// putter has both states encoded beforehand: what is measured begins with the
// write.
func (n *node) putter(passes, cut api.Resource) func(bool) {
	n.Helper()
	key, yes := n.encode(passes)
	_, no := n.encode(cut)
	return func(pass bool) {
		if pass {
			n.etcd.Put(key, yes)
		} else {
			n.etcd.Put(key, no)
		}
	}
}

// PolicyFlip measures how long a policy that turns from allow to deny, and back,
// takes until a live flow obeys, where the endpoint has that many rules.
func PolicyFlip(t testbed.T, o Options, rules, count int) []Figure {
	t.Helper()
	n := newNode(t, o)
	n.putBasics()
	for _, f := range fillers(rules - 1) {
		n.put(f)
	}
	put := n.putter(probePolicy(probeRule(v3.Allow)), probePolicy(probeRule(v3.Deny)))
	put(true)
	n.start()
	p := n.addPair()
	scenario := fmt.Sprintf("policy flip, %d rules", rules)
	var whole, after samples
	n.profiled(fmt.Sprintf("flip-%d", rules), 10*time.Second, func() { whole, after = n.flips(p, count, put) })
	return append(after.figures(scenario, "write returned to enforced", 3, 10), whole.figures(scenario, "before the write to enforced", 0, 0)...)
}

// RuleEdit measures an edit of one rule of a policy that has that many.
func RuleEdit(t testbed.T, o Options, rules, count int) []Figure {
	t.Helper()
	n := newNode(t, o)
	n.putBasics()
	policy := func(action v3.Action) *v3.GlobalNetworkPolicy {
		p := probePolicy()
		for i := range rules {
			if i == rules/2 {
				p.Spec.Ingress = append(p.Spec.Ingress, probeRule(action))
			} else {
				p.Spec.Ingress = append(p.Spec.Ingress, fillerRule(i))
			}
		}
		return p
	}
	put := n.putter(policy(v3.Allow), policy(v3.Deny))
	put(true)
	n.start()
	p := n.addPair()
	scenario := fmt.Sprintf("edit of one rule of %d in a policy", rules)
	var whole, after samples
	n.profiled(fmt.Sprintf("edit-%d", rules), 10*time.Second, func() { whole, after = n.flips(p, count, put) })
	return append(after.figures(scenario, "write returned to enforced", 30, 0), whole.figures(scenario, "before the write to enforced", 0, 0)...)
}

// LargeCluster measures what changes cost with that many nodes, endpoints of
// each, policies and local endpoints in the store; a start; and memory.
func LargeCluster(t testbed.T, o Options, nodes, endpoints, policies, local, count int) []Figure {
	t.Helper()
	n := newNode(t, o)
	n.putBasics()
	n.fill(population{nodes, endpoints, policies})
	pods := testbed.NewNamespace(t, "pods")
	for i := range local {
		name := fmt.Sprintf("local%d", i)
		testbed.Veth(t, n.Namespace, "cali"+name, pods, name)
		n.put(endpoint(nodeName, name, after(localAddresses, 256+i), labels(4*i)))
	}
	// Its blocks; that of the probed workloads too.
	for i := range 1 + (256+local)/64 {
		n.put(block(nodeName, after(localAddresses, 64*i), 50))
	}
	put := n.putter(probePolicy(probeRule(v3.Allow)), probePolicy(probeRule(v3.Deny)))
	put(true)

	scenario := fmt.Sprintf("%d endpoints, %d policies", nodes*endpoints+local+2, policies+1)
	var out []Figure
	note := func(name string, value float64, unit string, target float64) {
		out = append(out, Figure{scenario, name, value, unit, target})
	}
	note("start to in sync, fresh host", n.start().Seconds(), "s", 10)
	p := n.addPair()
	n.stop()
	note("start to in sync, restart", n.start().Seconds(), "s", 10)
	n.settle()
	_, most := n.memory()
	note("memory, most at the start", most, "MB", 0)

	relabel := func(e *api.WorkloadEndpoint, role string) api.Resource {
		r := e.DeepCopyObject().(*api.WorkloadEndpoint)
		r.Labels["role"] = role
		return r
	}
	measure := func(name string, put func(bool)) {
		var whole, after samples
		n.profiled(name, 10*time.Second, func() { whole, after = n.flips(p, count, put) })
		out = append(out, after.figures(scenario, name+": write returned to enforced", 3, 10)...)
		out = append(out, whole.figures(scenario, name+": before the write to enforced", 0, 0)...)
	}
	measure("label change", n.putter(relabel(p.client.endpoint, "client"), relabel(p.client.endpoint, "other")))
	measure("policy flip", put)
	remote := remoteEndpoint(0, 0)
	out = append(out, n.remoteChanges(scenario, "label change of a remote endpoint", count,
		n.putter(relabel(remote, "role-1"), relabel(remote, "role-2")))...)
	key, value := n.encode(remote)
	out = append(out, n.remoteChanges(scenario, "remote endpoint comes or goes", count, func(there bool) {
		if there {
			n.etcd.Put(key, value)
		} else {
			n.etcd.Delete(key)
		}
	})...)
	now, _ := n.memory()
	note("memory, after all that", now, "MB", 0)
	n.heap("large")
	before, began := n.processorTime(), time.Now()
	time.Sleep(2 * time.Second)
	note("idle, of one processor", 100*float64(n.processorTime()-before)/float64(time.Since(began)), "%", 0)
	return out
}

// remoteChanges measures changes about which no local packet can tell: by the
// daemon's word.
func (n *node) remoteChanges(scenario, name string, count int, put func(bool)) []Figure {
	n.Helper()
	client := n.api()
	var took samples
	n.profiled(name, 10*time.Second, func() {
		for i := range count {
			put(i%2 == 1)
			begin := time.Now()
			n.wait(client)
			took = append(took, time.Since(begin))
			time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
		}
	})
	return took.figures(scenario, name+": write returned to reported", 0, 0)
}

func (n *node) wait(client *nodeapi.Client) {
	n.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := client.WaitEnforced(ctx, api.Key{}, n.etcd.Revision()); err != nil {
		n.Fatalf("%v", err)
	}
}
