package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/ipam"
	"calico-xdp/tools/testbed"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

func decode[T any](t *testing.T, data []byte) *T {
	t.Helper()
	v := new(T)
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatalf("%v: %s", err, data)
	}
	return v
}

// address returns the address of a family that a result has.
func address(r *types100.Result, is4 bool) netip.Addr {
	for _, ip := range r.IPs {
		if a, _ := netip.AddrFromSlice(ip.Address.IP); a.Unmap().Is4() == is4 {
			return a.Unmap()
		}
	}
	return netip.Addr{}
}

func TestAdd(t *testing.T) {
	w := newWorld(t)
	c1 := testbed.NewNamespace(t, "c1")
	conf := w.conf(map[string]any{"labels": map[string]string{"app": "web"}, "args": map[string]any{
		"labels": map[string]string{"tier": "front"},
		"cni":    map[string]any{"labels": []pair{{"zone", "z1"}}},
	}})
	out := w.must(call{command: "ADD", id: "c1", netns: c1.Path(), conf: conf})
	r := decode[types100.Result](t, out)
	v4, v6 := address(r, true), address(r, false)
	if len(r.Interfaces) != 2 || len(r.IPs) != 2 || r.CNIVersion != "1.1.0" || *r.IPs[0].Interface != 1 {
		t.Fatalf("result: %s", out)
	}
	host, mac := r.Interfaces[0], r.Interfaces[1].Mac
	if host.Name != "cali2f22765d049" || host.Mac != "ee:ee:ee:ee:ee:ee" || r.Interfaces[1].Sandbox != c1.Path() {
		t.Errorf("interfaces: %s", out)
	}

	want := fmt.Sprintf(`eth0 inet %[1]s/32 scope global eth0\ valid_lft forever preferred_lft forever
eth0 inet6 %[2]s/128 scope global nodad \ valid_lft forever preferred_lft forever
neigh 169.254.1.1 dev eth0 lladdr ee:ee:ee:ee:ee:ee PERMANENT
neigh fe80::ecee:eeff:feee:eeee dev eth0 lladdr ee:ee:ee:ee:ee:ee PERMANENT
route %[2]s dev eth0 proto kernel metric 256 pref medium
route 169.254.1.1 dev eth0 scope link
route default via 169.254.1.1 dev eth0
route default via fe80::ecee:eeff:feee:eeee dev eth0 metric 1024 pref medium`, v4, v6)
	if diff := cmp.Diff(sortedLines(want), w.inside(c1, "eth0")); diff != "" {
		t.Error(diff)
	}
	link, hostLink := c1.Link(t, "eth0"), w.host.Link(t, host.Name)
	if link.Attrs().MTU != 1480 || hostLink.Attrs().MTU != 1480 || hostLink.Attrs().HardwareAddr.String() != host.Mac {
		t.Errorf("MTU %d and %d, host MAC %s", link.Attrs().MTU, hostLink.Attrs().MTU, hostLink.Attrs().HardwareAddr)
	}

	stored, err := w.store.Get(t.Context(), api.Key{Kind: api.KindWorkloadEndpoint, Namespace: "default", Name: "node--1-cni-c1-eth0"})
	if err != nil {
		t.Fatal(err)
	}
	wep := stored.(*api.WorkloadEndpoint)
	if diff := cmp.Diff(api.WorkloadEndpointSpec{
		Orchestrator: "cni", Workload: "c1", Node: "node-1", ContainerID: "c1", Endpoint: "eth0",
		IPNetworks: []string{v4.String() + "/32", v6.String() + "/128"}, Profiles: []string{"net1"},
		InterfaceName: host.Name, MAC: mac,
	}, wep.Spec); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{
		"app": "web", "tier": "front", "zone": "z1",
		"projectcalico.org/namespace": "default", "projectcalico.org/orchestrator": "cni",
	}, wep.Labels); diff != "" {
		t.Error(diff)
	}
	profile := w.etcd.Get("/calico/resources/v3/projectcalico.org/profiles/net1")
	if !strings.HasSuffix(profile, `"spec":{"ingress":[{"action":"Allow","source":{"selector":"has(net1)"}}],"egress":[{"action":"Allow"}],"labelsToApply":{"net1":""}}}`) {
		t.Error(profile)
	}

	// The host reaches the container over the pair, once it has routes.
	for _, a := range []netip.Addr{v4, v6} {
		w.host.MustRun(t, "ip", "route", "replace", a.String(), "dev", host.Name)
		w.host.MustRun(t, "ip", "addr", "replace", map[bool]string{true: "10.9.9.9/32", false: "fd99::9/128"}[a.Is4()], "dev", "lo")
		if received, _ := testbed.Ping(w.host, a, 1); received != 1 {
			t.Errorf("%s does not answer", a)
		}
	}

	// A second container has other addresses and another interface.
	c2 := testbed.NewNamespace(t, "c2")
	r2 := decode[types100.Result](t, w.must(call{command: "ADD", id: "c2", netns: c2.Path()}))
	if address(r2, true) == v4 || address(r2, false) == v6 || r2.Interfaces[0].Name == host.Name {
		t.Errorf("%+v", r2)
	}
	w.leaves("link net1/c1/eth0", "link net1/c2/eth0", "endpoint default/node--1-cni-c1-eth0", "endpoint default/node--1-cni-c2-eth0",
		"handle net1.c1 2", "handle net1.c2 2")

	// DEL, twice, and once more without the namespace.
	w.must(call{command: "DEL", id: "c1", netns: c1.Path()})
	w.leaves("link net1/c2/eth0", "endpoint default/node--1-cni-c2-eth0", "handle net1.c2 2")
	w.must(call{command: "DEL", id: "c1", netns: c1.Path()})
	w.must(call{command: "DEL", id: "c2"})
	w.must(call{command: "DEL", id: "c2", netns: "/run/netns/gone"})
	w.leaves()
	if _, err := c2.Netlink().LinkByName("eth0"); err == nil {
		t.Error("c2's interface is still there")
	}
}

// TestInterfaces: a container with two interfaces on one network; each is
// deleted alone.
func TestInterfaces(t *testing.T) {
	w := newWorld(t)
	c := testbed.NewNamespace(t, "c")
	w.must(call{command: "ADD", id: "c", netns: c.Path()})
	second := decode[types100.Result](t, w.must(call{command: "ADD", id: "c", ifname: "eth1", netns: c.Path()}))
	w.leaves("link net1/c/eth0", "link net1/c/eth1", "endpoint default/node--1-cni-c-eth0", "endpoint default/node--1-cni-c-eth1", "handle net1.c 4")
	w.must(call{command: "DEL", id: "c", netns: c.Path()})
	w.leaves("link net1/c/eth1", "endpoint default/node--1-cni-c-eth1", "handle net1.c 2")
	if as, err := w.ipam.Lookup(t.Context(), address(second, true)); err != nil || as.Attributes["interface"] != "eth1" {
		t.Error(as, err)
	}
}

// TestRequests: what runtimes and users may ask for.
func TestRequests(t *testing.T) {
	w := newWorld(t)
	c := testbed.NewNamespace(t, "c")
	add := func(change map[string]any, args string) *types100.Result {
		t.Helper()
		conf := w.conf(change)
		return decode[types100.Result](t, w.must(call{command: "ADD", id: "c", netns: c.Path(), args: args, conf: conf}))
	}
	del := func() {
		t.Helper()
		w.must(call{command: "DEL", id: "c", netns: c.Path()})
		w.leaves()
	}

	r := add(nil, "IP=10.65.0.77;MAC=02:00:00:00:00:07;IgnoreUnknown=1")
	if len(r.IPs) != 1 || address(r, true).String() != "10.65.0.77" || r.Interfaces[1].Mac != "02:00:00:00:00:07" {
		t.Errorf("%+v", r.IPs)
	}
	d := testbed.NewNamespace(t, "d")
	w.refused(call{command: "ADD", id: "d", netns: d.Path(), args: "IP=10.65.0.77"}, 102, "in use")
	w.refused(call{command: "ADD", id: "d", netns: d.Path(), args: "IP=10.66.0.77"}, 102, "no enabled pool")
	w.refused(call{command: "ADD", id: "d", netns: d.Path(), args: "IP=x"}, 4, `"x"`)
	del()

	r = add(map[string]any{"runtimeConfig": map[string]any{"ips": []string{"10.65.0.78/32", "fd65::78/128"}, "mac": "02:00:00:00:00:08"}}, "")
	if address(r, true).String() != "10.65.0.78" || address(r, false).String() != "fd65::78" || r.Interfaces[1].Mac != "02:00:00:00:00:08" {
		t.Errorf("%+v", r.IPs)
	}
	del()

	r = add(map[string]any{"mtu": 1400, "ipam": map[string]any{"type": "calico-ipam", "assign_ipv4": false, "assign_ipv6": true, "ipv6_pools": []string{"v6"}}}, "")
	if address(r, true).IsValid() || !address(r, false).IsValid() || c.Link(t, "eth0").Attrs().MTU != 1400 {
		t.Errorf("%+v", r.IPs)
	}
	del()
	w.refused(call{command: "ADD", id: "c", netns: c.Path(), conf: w.conf(map[string]any{"ipam": map[string]any{"assign_ipv4": "false"}})}, 7, "assign_ipv4")
	w.refused(call{command: "ADD", id: "c", netns: c.Path(), conf: w.conf(map[string]any{"ipam": map[string]any{"ipv4_pools": []string{"10.1.0.0/16"}}})}, 102, "10.1.0.0/16")
	w.leaves()

	// A pod, named as Kubernetes does. A new container of the same pod takes its
	// place; the old one's DEL then leaves it alone.
	const pod = "IgnoreUnknown=1;K8S_POD_NAMESPACE=prod;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c"
	first := add(map[string]any{"cniVersion": "0.3.1", "ipam": map[string]any{"type": "calico-ipam"}}, pod)
	if first.CNIVersion != "0.3.1" || first.Interfaces[0].Name != "caliaa960f0d82e" {
		t.Errorf("%+v", first)
	}
	w.leaves("link net1/c/eth0", "endpoint prod/node--1-k8s-web--0-eth0", "handle net1.c 1")
	again := decode[types100.Result](t, w.must(call{command: "ADD", id: "d", netns: d.Path(), args: pod}))
	if again.Interfaces[0].Name != first.Interfaces[0].Name {
		t.Errorf("%s is not %s", again.Interfaces[0].Name, first.Interfaces[0].Name)
	}
	w.must(call{command: "DEL", id: "c", netns: c.Path(), args: pod})
	w.leaves("link net1/d/eth0", "endpoint prod/node--1-k8s-web--0-eth0", "handle net1.d 2")
	as, err := w.ipam.AddressesOf(t.Context(), "net1.d")
	if err != nil || len(as) != 2 {
		t.Fatal(as, err)
	}
	if diff := cmp.Diff(map[string]string{"node": "node-1", "namespace": "prod", "pod": "web-0", "interface": "eth0"}, as[0].Attributes); diff != "" {
		t.Error(diff)
	}
}

// TestRollback: an ADD that does not come to its end leaves nothing.
func TestRollback(t *testing.T) {
	w := newWorld(t)
	c := testbed.NewNamespace(t, "c")
	add := call{command: "ADD", id: "c", netns: c.Path(), conf: w.conf(map[string]any{"policy_setup_timeout_seconds": 1})}
	nothing := func() {
		t.Helper()
		w.leaves()
		if _, err := c.Netlink().LinkByName("eth0"); err == nil {
			t.Error("the container's interface is still there")
		}
	}
	w.node.set(func() { w.node.refuse = "interface belongs to another endpoint" })
	w.refused(add, 101, "another endpoint")
	nothing()
	w.node.set(func() { w.node.refuse, w.node.hang = "", make(chan struct{}) })
	w.refused(add, 101, "the kernel is busy")
	nothing()
	w.node.set(func() { w.node.hang = nil })

	conf := w.conf(map[string]any{"policy_setup_timeout_seconds": 1, "run_dir": t.TempDir()})
	w.refused(call{command: "ADD", id: "c", netns: c.Path(), conf: conf}, 11, "not running")
	nothing()
	w.refused(call{command: "ADD", id: "c", netns: "/run/netns/none"}, 8, "/run/netns/none")
	nothing()
	w.refused(call{command: "ADD", id: "c", netns: c.Path(), conf: w.conf(map[string]any{"datastore_type": "kubernetes"})}, 2)
	w.refused(call{command: "ADD", id: "c", netns: c.Path(), conf: w.conf(map[string]any{"etcd_endpoints": "nonsense"})}, 7, "nonsense")
	w.refused(call{command: "ADD", id: "c", netns: c.Path(), conf: w.conf(map[string]any{"cniVersion": "9.9.9"})}, 1)

	// An interface of someone else in the container is not touched.
	testbed.Veth(t, c, "eth0", w.host, "other")
	w.refused(add, 4, "already has an interface eth0")
	c.Link(t, "eth0")
	w.leaves()
}

// TestHalfFinished: an ADD was killed midway. The next one, or DEL, clears what
// it left.
func TestHalfFinished(t *testing.T) {
	w := newWorld(t)
	c := testbed.NewNamespace(t, "c")
	leave := func(link bool) {
		t.Helper()
		_, err := w.ipam.AssignAuto(t.Context(), ipam.Request{Node: "node-1", Handle: "net1.c", IPv4: 1, Attributes: map[string]string{"node": "node-1", "interface": "eth0"}})
		if err != nil {
			t.Fatal(err)
		}
		if link {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "cali0123456789a"
			pair := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(c.Handle())}
			if err := errors.Join(w.host.Netlink().LinkAdd(pair), w.host.Netlink().LinkSetAlias(pair, "net1/c/eth0")); err != nil {
				t.Fatal(err)
			}
		}
	}
	leave(false)
	w.must(call{command: "DEL", id: "c", netns: c.Path()})
	w.leaves()
	leave(true)
	w.must(call{command: "DEL", id: "c"}) // the namespace is not even named
	w.leaves()
	leave(true)
	w.must(call{command: "ADD", id: "c", netns: c.Path()})
	w.leaves("link net1/c/eth0", "endpoint default/node--1-cni-c-eth0", "handle net1.c 2")
	// The record is gone, the rest is there.
	if _, err := w.store.Delete(t.Context(), api.Key{Kind: api.KindWorkloadEndpoint, Namespace: "default", Name: "node--1-cni-c-eth0"}, ""); err != nil {
		t.Fatal(err)
	}
	w.must(call{command: "DEL", id: "c", netns: c.Path()})
	w.leaves()

	// The plugin is killed while it waits for the node.
	for _, next := range []string{"DEL", "ADD"} {
		waits := make(chan struct{})
		w.node.set(func() { w.node.hang = waits })
		if _, err := w.do(call{command: "ADD", id: "c", netns: c.Path(), kill: waits}); err != errKilled {
			t.Fatal(err)
		}
		w.leaves("link net1/c/eth0", "endpoint default/node--1-cni-c-eth0", "handle net1.c 2")
		w.node.set(func() { w.node.hang = nil })
		w.must(call{command: next, id: "c", netns: c.Path()})
	}
	w.leaves("link net1/c/eth0", "endpoint default/node--1-cni-c-eth0", "handle net1.c 2")

	// Without datastore DEL removes the interface and wants to be called again.
	w.etcd.Stop()
	w.refused(call{command: "DEL", id: "c", netns: c.Path()}, 11, "not reachable")
	if _, err := c.Netlink().LinkByName("eth0"); err == nil {
		t.Error("the interface is still there")
	}
	w.etcd.Start()
	w.must(call{command: "DEL", id: "c", netns: c.Path()})
	w.leaves()
}

// TestDelegation: another IPAM plugin hands out the addresses.
func TestDelegation(t *testing.T) {
	w := newWorld(t)
	c := testbed.NewNamespace(t, "c")
	log := filepath.Join(t.TempDir(), "log")
	script := fmt.Sprintf(`#!/bin/sh
echo $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME >> %s
[ $CNI_COMMAND != ADD ] || echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.77.0.5/24", "gateway": "10.77.0.1"}]}'
`, log)
	if err := os.WriteFile(filepath.Join(plugins, "fixed"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	conf := w.conf(map[string]any{"ipam": map[string]any{"type": "fixed"}})
	out := w.must(call{command: "ADD", id: "c", netns: c.Path(), conf: conf})
	if r := decode[types100.Result](t, out); len(r.IPs) != 1 || r.IPs[0].Address.String() != "10.77.0.5/32" {
		t.Errorf("%s", out)
	}
	w.leaves("link net1/c/eth0", "endpoint default/node--1-cni-c-eth0")
	conf["prevResult"] = *decode[map[string]any](t, out)
	w.must(call{command: "CHECK", id: "c", netns: c.Path(), conf: conf})
	w.must(call{command: "DEL", id: "c", netns: c.Path(), conf: conf})
	conf["cni.dev/valid-attachments"] = []any{}
	w.must(call{command: "GC", conf: conf})
	w.leaves()
	if got, err := os.ReadFile(log); string(got) != "ADD c eth0\nCHECK c eth0\nDEL c eth0\nGC eth0\n" {
		t.Errorf("%v: %s", err, got)
	}
}
