package dataplane_test

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/dataplane"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/policy"
	"calico-xdp/tools/testbed"
)

// narrow makes tables with hardly more room than a node with two workloads needs.
func narrow() map[string]int {
	return map[string]int{
		"endpoints": 4, "workloads": 4, "routes": 8, "peers": 4, "host_classes": 4, "net_classes": 4,
		"ruleset_words": 256, "host_endpoints": 2, "failsafe": 4, "flows": 64, "nat_nets": 4,
		"rule_counters": 2, "rule_names": 1,
	}
}

// crowded is the node's state with n more of everything, that change nothing for the
// workloads which are there.
func (n *node) crowded(t *testing.T, more int) *desired.State {
	t.Helper()
	d := n.state.Dataplane
	d.Endpoints, d.Routes, d.Peers = maps.Clone(d.Endpoints), maps.Clone(d.Routes), maps.Clone(d.Peers)
	d.HostEndpoints, d.Failsafe = make(map[int]api.Key), make(map[desired.FailsafePort]bool)
	d.NATNets = make(map[netip.Prefix]desired.NATNet)
	tables := *d.Policy
	tables.Peers, tables.Rulesets, tables.Endpoints = maps.Clone(tables.Peers), maps.Clone(tables.Rulesets), maps.Clone(tables.Endpoints)
	tables.HostEndpoints = make(map[api.Key]policy.HostRulesets)
	d.Policy = &tables
	for i := range more {
		name := fmt.Sprint("more", i)
		if _, err := n.Netlink().LinkByName(name); err != nil {
			testbed.Veth(t, n.Namespace, name, n.Namespace, fmt.Sprint("peer", i))
		}
		key := api.Key{Kind: "WorkloadEndpoint", Namespace: "default", Name: name}
		id := policy.RulesetID(100 + i)
		ruleset := *tables.Rulesets[1]
		ruleset.Parts = []policy.Part{{Run: &policy.Run{
			ID: policy.RuleID{Tier: "default", Policy: key, Direction: "ingress"}, Rules: []policy.RunRule{{Action: policy.Allow}},
		}}}
		tables.Rulesets[id] = &ruleset
		ifindex := n.Link(t, name).Attrs().Index
		if i%4 == 0 {
			key = api.Key{Kind: "HostEndpoint", Name: name}
			d.HostEndpoints[ifindex] = key
			tables.HostEndpoints[key] = policy.HostRulesets{Normal: policy.Rulesets{Egress: id, Ingress: id}}
		} else {
			d.Endpoints[key] = desired.Endpoint{
				Key: key, Interface: name, Ifindex: ifindex, Veth: true, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, 3, byte(i)})},
			}
			tables.Endpoints[key] = policy.Rulesets{Egress: id, Ingress: id}
		}
		d.Failsafe[desired.FailsafePort{Protocol: 6, Port: uint16(2000 + i), Net: netip.MustParsePrefix("0.0.0.0/0")}] = true
		for j := range 4 {
			a := netip.AddrFrom4([4]byte{10, 20, byte(j), byte(i)})
			d.Peers[a] = desired.Peer{}
			d.NATNets[netip.PrefixFrom(a, 32)] = desired.NATNet{Inside: true}
			d.Routes[netip.PrefixFrom(a, 32)] = desired.Route{Kind: desired.RoutePeerHost}
			tables.Peers[netip.PrefixFrom(a, 32)] = 1
			tables.Peers[netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 30, byte(j), byte(i)}), 32)] = 1
			tables.Peers[netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(40 + j), byte(i), 0}), 24)] = 1
		}
	}
	return &desired.State{Dataplane: d}
}

func (n *node) ensure(s *desired.State) error {
	return n.Do(func() error {
		if err := n.Ensure(context.Background(), s); err != nil {
			return err
		}
		return n.Prune(context.Background(), s)
	})
}

// traffic are packets between two workloads of a node, and between one of them and
// another node's.
type traffic struct {
	floods  []*testbed.Flood
	streams []*testbed.TCPStream
}

// busy is a node with narrow tables and traffic that goes on.
func busy(t *testing.T, o dataplane.Options) (*node, *traffic) {
	t.Helper()
	lab := testbed.NewHosts(t, 2, 1, 2)
	a, b := newNode(t, lab.Hosts[0], o), newNode(t, lab.Hosts[1], dataplane.Options{})
	from := a.workload(t, "calia", "192.168.1.1")
	local := a.workload(t, "calia2", "192.168.1.2")
	remote := b.workload(t, "calib", "192.168.2.1")
	a.knows(b, desired.EncapIPIP)
	b.knows(a, desired.EncapIPIP)
	a.sync(t)
	b.sync(t)
	var all traffic
	for _, to := range []*testbed.Workload{local, remote} {
		all.floods = append(all.floods, testbed.StartFlood(t, from.Namespace, to.Namespace, to.Addresses[0], testbed.FloodOptions{Protocol: "udp"}))
		all.streams = append(all.streams, testbed.StartTCP(t, from.Namespace, to.Namespace, netip.AddrPortFrom(to.Addresses[0], 9000)))
	}
	return a, &all
}

func (f *traffic) goesOn(t *testing.T, when string) {
	t.Helper()
	for i := range f.floods {
		if !f.floods[i].Progresses(5) || !f.streams[i].Progresses(1e5) {
			t.Fatalf("%s: flood %d: %s; stream: %v", when, i, f.floods[i].Report(), f.streams[i].Err())
		}
	}
}

// stop ends the traffic, of which nothing may be lost.
func (f *traffic) stop(t *testing.T) {
	t.Helper()
	for i := range f.floods {
		if r := f.floods[i].Stop(); r.Lost != 0 || r.Refused != 0 || r.Duplicated != 0 {
			t.Errorf("flood %d: %s", i, r)
		}
		if err := f.streams[i].Err(); err != nil {
			t.Error(err)
		}
		f.streams[i].Stop()
	}
}

// fills are Tables by name.
func (n *node) fills() map[string]dataplane.TableFill {
	out := make(map[string]dataplane.TableFill)
	for _, f := range n.Tables() {
		out[f.Table] = f
	}
	return out
}

// allCounted says that every packet was counted for the rule that allows it, twice if both
// ends are here.
func (n *node) allCounted(t *testing.T) {
	t.Helper()
	var want, got uint64
	counts, err := n.Maps().Counters()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range counts {
		switch c.Hook + " " + c.Reason {
		case "from_workload pass_to_workload":
			want += 2 * c.Packets
		case "from_workload pass_ipip", "from_network pass_to_workload":
			want += c.Packets
		}
	}
	rules, err := n.Rules()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		if r.ID == (policy.RuleID{}) {
			got += r.Packets
		}
	}
	if got != want {
		t.Errorf("%d packets counted for the rule, %d by the hooks", got, want)
	}
}

// Every table grows past the size that it was made with, and no packet is lost.
func TestTablesGrowUnderTraffic(t *testing.T) {
	for name, o := range map[string]dataplane.Options{"tcx and XDP": {XDP: true}, "clsact": {Clsact: true}} {
		t.Run(name, func(t *testing.T) {
			o.TableSizes = narrow()
			n, packets := busy(t, o)
			packets.goesOn(t, "before")
			for _, more := range []int{3, 8, 40} {
				if err := n.ensure(n.crowded(t, more)); err != nil {
					t.Fatal(err)
				}
				packets.goesOn(t, fmt.Sprintf("with %d more", more))
			}
			fills := n.fills()
			for table, declared := range o.TableSizes {
				f := fills[table]
				if table != "flows" && (f.Capacity <= declared || f.Entries <= declared || f.Entries > f.Capacity*9/10) {
					t.Errorf("declared with %d: %+v", declared, f)
				}
			}
			// The next process takes the tables as they are.
			if err := n.Dataplane.Close(); err != nil {
				t.Error(err)
			}
			o.PinDir = n.pins
			n.start(t, o)
			packets.goesOn(t, "with a new process")
			grown := 0
			n.AtGrowth(func(string) { grown++ })
			if err := n.ensure(n.crowded(t, 40)); err != nil {
				t.Fatal(err)
			}
			packets.goesOn(t, "after its first round")
			again := n.fills()
			for table := range narrow() {
				if table != "flows" && (again[table].Capacity != fills[table].Capacity || again[table].Entries != fills[table].Entries) {
					t.Errorf("%+v, in the next process %+v", fills[table], again[table])
				}
			}
			if grown > 0 {
				t.Errorf("%d steps of growth after the restart", grown)
			}
			packets.stop(t)
			n.allCounted(t)
			if t.Failed() {
				t.Log(n.counts(t))
			}
		})
	}
}

// someTables grow first, in between, last and at another time.
var someTables = []string{"endpoints", "peers", "workloads", "ruleset_words"}

// The process ends between any two steps of a growth. Traffic goes on, and the next
// process makes the node what it should be.
func TestGrowthWithoutEnd(t *testing.T) {
	for name, mode := range map[string]struct {
		dataplane.Options
		steps string // what they begin with
	}{
		"tcx and XDP": {dataplane.Options{XDP: true}, ""},
		"clsact":      {dataplane.Options{Clsact: true}, "from_"},
	} {
		t.Run(name, func(t *testing.T) {
			o := mode.Options
			o.TableSizes = narrow()
			n, packets := busy(t, o)
			o.PinDir = n.pins
			want := n.crowded(t, 12)
			ended := make(map[string]bool)
			for last := "before"; last != ""; {
				last = ""
				n.AtGrowth(func(step string) {
					step, _, _ = strings.Cut(step, " on ") // an interface
					table, pinned := strings.CutSuffix(step, " pinned")
					if pinned && !slices.Contains(someTables, table) {
						return // pkg/maps tests them all
					}
					if !ended[step] && strings.HasPrefix(step, mode.steps) {
						ended[step], last = true, step
						runtime.Goexit()
					}
				})
				if err := n.ensure(want); (err == nil) != (last == "") {
					t.Fatal(err) // that the goroutine ended is an error
				}
				packets.goesOn(t, "after "+last)
				if err := n.Dataplane.Close(); err != nil {
					t.Error(err)
				}
				n.start(t, o)
			}
			if err := n.ensure(want); err != nil {
				t.Fatal(err)
			}
			packets.goesOn(t, "in the end")
			for _, f := range n.Tables() {
				if f.Entries <= o.TableSizes[f.Table] && o.TableSizes[f.Table] > 0 && f.Table != "flows" {
					t.Errorf("%+v", f)
				}
			}
			for _, table := range someTables {
				if mode.steps == "" && !ended[table+" pinned"] {
					t.Errorf("not ended after %s was pinned: %v", table, slices.Collect(maps.Keys(ended)))
				}
			}
			packets.stop(t)
		})
	}
}
