package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

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
	w.node.set(func() { w.node.refuse, w.node.hang = "", true })
	w.refused(add, 101, "the kernel is busy")
	nothing()
	w.node.set(func() { w.node.hang = false })

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
	// The record is gone, someone else's is in its place, the rest is there.
	if _, err := w.store.Delete(t.Context(), api.Key{Kind: api.KindWorkloadEndpoint, Namespace: "default", Name: "node--1-cni-c-eth0"}, ""); err != nil {
		t.Fatal(err)
	}
	w.must(call{command: "DEL", id: "c", netns: c.Path()})
	w.leaves()
}

func TestCheck(t *testing.T) {
	w := newWorld(t)
	c := testbed.NewNamespace(t, "c")
	var prev map[string]any
	add := func() *types100.Result {
		t.Helper()
		out := w.must(call{command: "ADD", id: "c", netns: c.Path()})
		prev = *decode[map[string]any](t, out)
		return decode[types100.Result](t, out)
	}
	check := func() call {
		return call{command: "CHECK", id: "c", netns: c.Path(), conf: w.conf(map[string]any{"prevResult": prev})}
	}
	r := add()
	w.must(check())
	w.refused(call{command: "CHECK", id: "c", netns: c.Path()}, 7, "prevResult")
	v4, hostName := address(r, true).String(), r.Interfaces[0].Name
	wep := api.Key{Kind: api.KindWorkloadEndpoint, Namespace: "default", Name: "node--1-cni-c-eth0"}
	for _, test := range []struct {
		name  string
		drift func()
		words []string
	}{
		{"address removed", func() { c.MustRun(t, "ip", "addr", "del", v4+"/32", "dev", "eth0") }, []string{v4 + "/32 is gone"}},
		{"default route gone", func() { c.MustRun(t, "ip", "route", "del", "default") }, []string{"default route via 169.254.1.1"}},
		{"default route changed", func() {
			c.MustRun(t, "ip", "-6", "route", "del", "default")
			c.MustRun(t, "ip", "-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0")
		}, []string{"default route via fe80::ecee"}},
		{"gateway route gone", func() {
			c.MustRun(t, "ip", "route", "del", "default")
			c.MustRun(t, "ip", "route", "del", "169.254.1.1")
		}, []string{"route to 169.254.1.1 is gone"}},
		{"interface down", func() { c.SetDown(t, "eth0") }, []string{"eth0 is down"}},
		{"host side down", func() { w.host.SetDown(t, hostName) }, []string{hostName + " is down"}},
		{"MAC changed", func() { c.MustRun(t, "ip", "link", "set", "eth0", "address", "02:00:00:00:00:99") }, []string{"had", "has MAC"}},
		{"interface gone", func() { w.host.MustRun(t, "ip", "link", "del", hostName) }, []string{"host interface", "interface eth0"}},
		{"endpoint gone", func() { w.store.Delete(t.Context(), wep, "") }, []string{"is gone"}},
		{"endpoint changed", func() {
			r, err := w.store.Get(t.Context(), wep)
			if err != nil {
				t.Fatal(err)
			}
			r.(*api.WorkloadEndpoint).Spec.IPNetworks = []string{"10.65.0.200/32"}
			if _, err := w.store.Update(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}, []string{"10.65.0.200"}},
		{"address released", func() { w.ipam.ReleaseHandle(t.Context(), "net1.c", nil) }, []string{"not assigned to handle net1.c"}},
	} {
		test.drift()
		_, err := w.do(check())
		if err == nil {
			t.Errorf("%s: not noticed", test.name)
			continue
		}
		for _, word := range append(test.words, "100: ") {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %q does not say %q", test.name, err, word)
			}
		}
		w.must(call{command: "DEL", id: "c", netns: c.Path()})
		r = add()
		v4, hostName = address(r, true).String(), r.Interfaces[0].Name
		w.must(check())
	}
}

func TestGC(t *testing.T) {
	w := newWorld(t)
	var kept []string
	for _, id := range []string{"c1", "c2", "c3"} {
		w.must(call{command: "ADD", id: id, netns: testbed.NewNamespace(t, id).Path()})
		kept = append(kept, "link net1/"+id+"/eth0", "endpoint default/node--1-cni-"+id+"-eth0", "handle net1."+id+" 2")
	}
	// Other networks' and other nodes' attachments are not this GC's.
	other := w.conf(map[string]any{"name": "net2"})
	w.must(call{command: "ADD", id: "c4", netns: testbed.NewNamespace(t, "c4").Path(), conf: other})
	elsewhere := w.conf(map[string]any{"nodename": "node-2"})
	_, err := w.ipam.AssignAuto(t.Context(), ipam.Request{Node: "node-2", Handle: "net1.c5", IPv4: 1, Attributes: map[string]string{"node": "node-2", "interface": "eth0"}})
	if err != nil {
		t.Fatal(err)
	}
	kept = append(kept, "link net2/c4/eth0", "endpoint default/node--1-cni-c4-eth0", "handle net2.c4 2", "handle net1.c5 1")
	valid := func(ids ...string) map[string]any {
		var out []map[string]string
		for _, id := range ids {
			out = append(out, map[string]string{"containerID": id, "ifname": "eth0"})
		}
		return w.conf(map[string]any{"cni.dev/valid-attachments": out})
	}
	w.must(call{command: "GC", conf: valid("c1", "c2", "c3")})
	w.leaves(kept...)
	w.must(call{command: "GC", conf: valid("c1", "c3")})
	w.leaves(append(append([]string{}, kept[:3]...), kept[6:]...)...)
	w.must(call{command: "GC", conf: valid()})
	w.leaves(kept[9:]...)
	elsewhere["cni.dev/valid-attachments"] = []any{}
	w.must(call{command: "GC", conf: elsewhere})
	w.leaves(kept[9:12]...)
}

func TestStatusAndVersion(t *testing.T) {
	w := newWorld(t)
	out := decode[struct {
		Supported []string `json:"supportedVersions"`
	}](t, w.must(call{command: "VERSION"}))
	if diff := cmp.Diff([]string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}, out.Supported); diff != "" {
		t.Error(diff)
	}
	w.must(call{command: "STATUS"})
	w.must(call{plugin: "calico-ipam", command: "STATUS"})
	w.node.set(func() { w.node.unsync = true })
	w.refused(call{command: "STATUS"}, 50, "not seen the whole datastore")
	w.node.set(func() { w.node.unsync = false })
	w.refused(call{command: "STATUS", conf: w.conf(map[string]any{"run_dir": t.TempDir()})}, 50, "not running")

	// Nothing answers, and nothing listens.
	silent, err := w.host.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, plugin := range []string{"calico", "calico-ipam"} {
		for _, endpoint := range []string{"http://" + silent.Addr().String(), "http://127.0.0.1:9"} {
			begin := time.Now()
			w.refused(call{plugin: plugin, command: "STATUS", conf: w.conf(map[string]any{"etcd_endpoints": endpoint})}, 50)
			// A hung plugin is what this is about; the limit of a test is 10 s.
			if took := time.Since(begin); took > 10*time.Second {
				t.Errorf("%s took %s", plugin, took)
			}
		}
	}
}

// TestIPAM is the IPAM plugin for another plugin's network.
func TestIPAM(t *testing.T) {
	w := newWorld(t)
	c := call{plugin: "calico-ipam", command: "ADD", id: "c", netns: "/run/netns/unused", conf: w.conf(map[string]any{"type": "ptp"})}
	out := w.must(c)
	r := decode[types100.Result](t, out)
	if len(r.IPs) != 2 || r.IPs[0].Interface != nil || r.IPs[0].Address.Mask.String() != net.CIDRMask(32, 32).String() {
		t.Errorf("%s", out)
	}
	w.leaves("handle net1.c 2")
	c.command, c.conf["prevResult"] = "CHECK", *decode[map[string]any](t, out)
	w.must(c)
	w.ipam.ReleaseAddress(t.Context(), address(r, true), ipam.Expect{})
	w.refused(c, 100, address(r, true).String())
	delete(c.conf, "prevResult")
	c.command = "DEL"
	w.must(c)
	w.must(c)
	w.leaves()
	c.command = "ADD"
	w.must(c)
	c.command, c.conf["cni.dev/valid-attachments"] = "GC", []any{}
	w.must(c)
	w.leaves()
}
