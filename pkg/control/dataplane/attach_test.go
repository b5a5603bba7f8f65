package dataplane_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"calico-xdp/pkg/control/dataplane"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/loader"
	"calico-xdp/tools/testbed"
)

// Traffic goes on, without the loss of a packet, while the process is away and while
// another one takes over its tables and its hooks.
func TestTrafficOutlivesTheProcess(t *testing.T) {
	for name, o := range map[string]dataplane.Options{"tcx and XDP": {XDP: true}, "clsact": {Clsact: true}} {
		t.Run(name, func(t *testing.T) {
			lab := testbed.NewHosts(t, 2, 1, 2)
			a, b := newNode(t, lab.Hosts[0], o), newNode(t, lab.Hosts[1], o)
			from := a.workload(t, "calia", "192.168.1.1")
			local := a.workload(t, "calia2", "192.168.1.2")
			remote := b.workload(t, "calib", "192.168.2.1")
			a.knows(b, desired.EncapIPIP)
			b.knows(a, desired.EncapIPIP)
			a.sync(t)
			b.sync(t)
			var floods []*testbed.Flood
			var streams []*testbed.TCPStream
			for _, to := range []*testbed.Workload{local, remote} {
				floods = append(floods, testbed.StartFlood(t, from.Namespace, to.Namespace, to.Addresses[0], testbed.FloodOptions{}))
				streams = append(streams, testbed.StartTCP(t, from.Namespace, to.Namespace, netip.AddrPortFrom(to.Addresses[0], 9000)))
			}
			goesOn := func(when string) {
				t.Helper()
				for i := range floods {
					if !floods[i].Progresses(5) || !streams[i].Progresses(1e5) {
						t.Fatalf("%s: flood %d: %s; stream: %v", when, i, floods[i].Report(), streams[i].Err())
					}
				}
			}
			goesOn("before")
			for range 5 {
				if err := a.Dataplane.Close(); err != nil {
					t.Error(err)
				}
				goesOn("without a process")
				again := o
				again.PinDir = a.pins
				a.start(t, again)
				goesOn("with a new process")
				a.sync(t)
				goesOn("after its first round")
			}
			for i := range floods {
				if r := floods[i].Stop(); r.Lost != 0 || r.Refused != 0 || r.Duplicated != 0 {
					t.Errorf("flood %d: %s", i, r)
				}
				if err := streams[i].Err(); err != nil {
					t.Error(err)
				}
				streams[i].Stop()
			}
			if t.Failed() {
				t.Logf("a:\n%s\nb:\n%s", a.counts(t), b.counts(t))
			}
		})
	}
}

// What is detached leaves nothing, on the interfaces and in the directory.
func TestDetachLeavesNothing(t *testing.T) {
	for name, o := range map[string]dataplane.Options{"tcx and XDP": {XDP: true}, "clsact": {Clsact: true}} {
		t.Run(name, func(t *testing.T) {
			lab := testbed.NewHosts(t, 1)
			n := newNode(t, lab.Hosts[0], o)
			n.workload(t, "calia", "192.168.1.1")
			n.workload(t, "calib", "192.168.1.2")
			n.sync(t)
			hooks := func() string {
				return n.MustRun(t, "tc", "qdisc", "show") + n.MustRun(t, "ip", "-details", "link")
			}
			if with := hooks(); o.XDP && !strings.Contains(with, "xdp") || o.Clsact && !strings.Contains(with, "clsact") {
				t.Errorf("nothing is attached:\n%s", with)
			}
			if err := n.Dataplane.Close(); err != nil {
				t.Error(err)
			}
			var removed []string
			err := n.Do(func() (err error) {
				removed, err = dataplane.Detach(n.pins)
				return err
			})
			want := 2*3 + 1 // programs on three interfaces, and the tables
			if o.XDP {
				want++
			}
			if err != nil || len(removed) != want {
				t.Errorf("removed %q %v, want %d things", removed, err, want)
			}
			if left := hooks(); strings.Contains(left, "xdp") || strings.Contains(left, "clsact") {
				t.Errorf("left:\n%s", left)
			}
			if _, err := os.Stat(n.pins); !os.IsNotExist(err) {
				t.Errorf("%s is left: %v", n.pins, err)
			}
			// A later process begins from nothing.
			again := o
			again.PinDir = n.pins
			n.start(t, again)
			n.sync(t)
			if flows, err := n.Maps().Flows.Load(); err != nil || len(flows) > 0 {
				t.Errorf("%d flows, %v", len(flows), err)
			}
		})
	}
}

// A program of an endpoint that is gone goes with it; those of the others stay.
func TestPruneDetaches(t *testing.T) {
	for name, o := range map[string]dataplane.Options{"tcx": {}, "clsact": {Clsact: true}} {
		t.Run(name, func(t *testing.T) {
			lab := testbed.NewHosts(t, 1)
			n := newNode(t, lab.Hosts[0], o)
			stays := n.workload(t, "calia", "192.168.1.1")
			leaves := n.workload(t, "calib", "192.168.1.2")
			n.sync(t)
			if got, sent := testbed.Ping(stays.Namespace, leaves.Addresses[0], 2); got != sent {
				t.Fatalf("%d of %d", got, sent)
			}
			hasOurs := func(iface string) bool {
				t.Helper()
				if o.Clsact {
					return strings.Contains(n.MustRun(t, "tc", "filter", "show", "dev", iface, "ingress"), "from_workload")
				}
				list, err := loader.Links{Dir: filepath.Join(n.pins, "v1", "links")}.List()
				if err != nil {
					t.Fatal(err)
				}
				return list[loader.Attachment{Program: loader.FromWorkload, Ifindex: n.Link(t, iface).Attrs().Index}]
			}
			if !hasOurs("calia") || !hasOurs("calib") {
				t.Error("not attached")
			}
			for k, e := range n.state.Dataplane.Endpoints {
				if e.Interface == "calib" {
					delete(n.state.Dataplane.Endpoints, k)
					delete(n.state.Dataplane.Policy.Endpoints, k)
				}
			}
			n.sync(t)
			if !hasOurs("calia") || hasOurs("calib") {
				t.Errorf("calia has ours: %v, calib: %v", hasOurs("calia"), hasOurs("calib"))
			}
			if (testbed.Probe{Wait: 1}).Reaches(stays.Namespace, leaves.Addresses[0]) {
				t.Error("the endpoint that is gone answers")
			}
		})
	}
}
