package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/ipam"
	"calico-xdp/tools/testbed"

	types020 "github.com/containernetworking/cni/pkg/types/020"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
)

// Where the node does not say it, its file does.
func TestWrittenMTU(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]int{"1430": 1430, "8950\n": 8950, "": fallbackMTU, "-1": fallbackMTU, "99999": fallbackMTU, "x": fallbackMTU} {
		if err := os.WriteFile(filepath.Join(dir, "mtu"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := writtenMTU(filepath.Join(dir, "nodename")); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
	if got := writtenMTU(filepath.Join(dir, "none", "nodename")); got != fallbackMTU {
		t.Errorf("no file: %d", got)
	}
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

// TestCheckOfAnotherPluginsAdd: Calico's plugin calls the host's side after the container
// and marks nothing, and has handed that name to the runtime.
func TestCheckOfAnotherPluginsAdd(t *testing.T) {
	w := newWorld(t)
	c := testbed.NewNamespace(t, "c")
	out := w.must(call{command: "ADD", id: "c", netns: c.Path()})
	was := decode[types100.Result](t, out).Interfaces[0].Name
	w.host.MustRun(t, "ip", "link", "set", was, "down")
	w.host.MustRun(t, "ip", "link", "set", was, "name", "calic", "alias", "")
	w.host.MustRun(t, "ip", "link", "set", "calic", "up")
	key := api.Key{Kind: api.KindWorkloadEndpoint, Namespace: "default", Name: "node--1-cni-c-eth0"}
	r, err := w.store.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	r.(*api.WorkloadEndpoint).Spec.InterfaceName = "calic"
	if _, err := w.store.Update(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	prev := *decode[map[string]any](t, []byte(strings.ReplaceAll(string(out), was, "calic")))
	check := call{command: "CHECK", id: "c", netns: c.Path(), conf: w.conf(map[string]any{"prevResult": prev})}
	w.must(check)
	w.host.SetDown(t, "calic")
	w.refused(check, 100, "calic is down")
	w.must(call{command: "DEL", id: "c", netns: c.Path()})
	w.leaves()
}

// TestOldVersions: Calico's manuals have networks of version 0.1.0, and one without a
// version is of that, too.
func TestOldVersions(t *testing.T) {
	w := newWorld(t)
	for _, version := range []string{"", "0.1.0", "0.2.0"} {
		c := testbed.NewNamespace(t, "c")
		conf := w.conf(map[string]any{"cniVersion": version})
		out := w.must(call{command: "ADD", id: "c", netns: c.Path(), conf: conf})
		r := decode[types020.Result](t, out)
		if r.IP4 == nil || r.IP6 == nil || len(r.IP4.Routes) == 0 {
			t.Errorf("%q: %s", version, out)
		}
		w.must(call{command: "DEL", id: "c", netns: c.Path(), conf: conf})
		w.leaves()
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
	if diff := cmp.Diff([]string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}, out.Supported); diff != "" {
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
	for plugin, endpoint := range map[string]string{"calico": silent.Addr().String(), "calico-ipam": "127.0.0.1:9"} {
		begin := time.Now()
		w.refused(call{plugin: plugin, command: "STATUS", conf: w.conf(map[string]any{"etcd_endpoints": "http://" + endpoint})}, 50)
		// It gives up after 2 s; more than 10 means that it hung.
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("%s took %s", plugin, took)
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

// While somebody has locked the datastore nothing in it is changed.
func TestLockedDatastore(t *testing.T) {
	w := newWorld(t)
	c := testbed.NewNamespace(t, "c")
	w.must(call{command: "ADD", id: "c", netns: c.Path()})
	key := api.Key{Kind: api.KindClusterInformation, Name: "default"}
	lock := func(ready bool) {
		t.Helper()
		r, err := w.store.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		r.(*api.ClusterInformation).Spec.DatastoreReady = &ready
		if _, err := w.store.Update(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	lock(false)
	w.refused(call{command: "ADD", id: "c2", netns: testbed.NewNamespace(t, "c2").Path()}, 11, "locked")
	w.refused(call{command: "DEL", id: "c", netns: c.Path()}, 11, "locked")
	w.leaves("endpoint default/node--1-cni-c-eth0", "handle net1.c 2")
	lock(true)
	w.must(call{command: "DEL", id: "c", netns: c.Path()})
	w.leaves()
}
