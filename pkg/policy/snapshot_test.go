package policy_test

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"pgregory.net/rapid"

	"calico-xdp/pkg/policy"
)

// snapshot copies what the next Compile would change.
func snapshot(t *policy.Tables) *policy.Tables {
	out := *t
	out.Peers, out.Endpoints, out.HostEndpoints = maps.Clone(t.Peers), maps.Clone(t.Endpoints), maps.Clone(t.HostEndpoints)
	out.SourcePorts, out.DestinationPorts = clonePorts(t.SourcePorts), clonePorts(t.DestinationPorts)
	out.Rulesets = make(map[policy.RulesetID]*policy.Ruleset)
	for id, r := range t.Rulesets {
		c := *r
		for _, d := range []**policy.Dimension{&c.Sources, &c.Destinations, &c.SourcePorts, &c.DestinationPorts} {
			*d = &policy.Dimension{Row: slices.Clone((*d).Row), Blocks: slices.Clone((*d).Blocks), Width: (*d).Width, Words: slices.Clone((*d).Words)}
		}
		out.Rulesets[id] = &c
	}
	return &out
}

func clonePorts(t policy.PortTable) policy.PortTable {
	out := make(policy.PortTable)
	for protocol, classes := range t {
		if slices.ContainsFunc(classes, func(c policy.PortClass) bool { return c != 0 }) {
			out[protocol] = slices.Clone(classes)
		}
	}
	return out
}

// tellsWhatChanged checks that the changes that tables come with are those from
// the ones before.
func tellsWhatChanged(t *rapid.T, old, fresh *policy.Tables) {
	t.Helper()
	changes := fresh.Changes
	if fresh.Result != old.Result+1 {
		t.Fatalf("result %d after %d", fresh.Result, old.Result)
	}
	sameKeys(t, "prefixes", differing(old.Peers, fresh.Peers), changes.Peers)
	sameKeys(t, "endpoints", append(differing(old.Endpoints, fresh.Endpoints), differing(old.HostEndpoints, fresh.HostEndpoints)...), changes.Endpoints)
	var rulesets []policy.RulesetID
	for id := range old.Rulesets {
		if fresh.Rulesets[id] == nil {
			rulesets = append(rulesets, id)
		}
	}
	for id := range fresh.Rulesets {
		if old.Rulesets[id] == nil {
			rulesets = append(rulesets, id)
		}
	}
	sameKeys(t, "rulesets", rulesets, changes.Rulesets)

	moves := make(map[[2]policy.PeerClass]bool)
	for _, m := range changes.Moves {
		if moves[m] = true; m[0] == m[1] {
			t.Fatalf("a move from %d to itself", m[0])
		}
	}
	for _, prefix := range slices.Concat(slices.Collect(maps.Keys(old.Peers)), slices.Collect(maps.Keys(fresh.Peers))) {
		for _, a := range []netip.Addr{prefix.Addr(), lastOf(prefix)} {
			if m := [2]policy.PeerClass{old.PeerClass(a), fresh.PeerClass(a)}; m[0] != m[1] && !moves[m] {
				t.Fatalf("%s goes from %d to %d, and that is not among %v", a, m[0], m[1], changes.Moves)
			}
		}
	}
	for _, ports := range []struct {
		old, fresh policy.PortTable
		changes    []policy.PortRange
	}{{old.SourcePorts, fresh.SourcePorts, changes.SourcePorts}, {old.DestinationPorts, fresh.DestinationPorts, changes.DestinationPorts}} {
		now := clonePorts(ports.old)
		for _, r := range ports.changes {
			if now[r.Protocol] == nil {
				now[r.Protocol] = make([]policy.PortClass, len(ports.fresh[r.Protocol]))
				if len(now[r.Protocol]) == 0 {
					now[r.Protocol] = make([]policy.PortClass, 65536)
				}
			}
			for port := int(r.From); port <= int(r.To); port++ {
				if now[r.Protocol][port] == r.Class {
					t.Fatalf("port %d of %d had class %d before", port, r.Protocol, r.Class)
				}
				now[r.Protocol][port] = r.Class
			}
		}
		if now = clonePorts(now); !reflect.DeepEqual(now, ports.fresh) {
			t.Fatal("the ports are not what they were with the changes")
		}
	}
	// Rows change for classes that are new only.
	born := make(map[uint32]bool)
	for _, c := range changes.PeerClasses {
		born[uint32(c)] = true
	}
	for id, was := range old.Rulesets {
		is := fresh.Rulesets[id]
		if is == nil {
			continue
		}
		for _, class := range fresh.Peers {
			if !born[uint32(class)] && (!sameVector(was.Sources, is.Sources, uint32(class)) || !sameVector(was.Destinations, is.Destinations, uint32(class))) {
				t.Fatalf("ruleset %d has another row for class %d", id, class)
			}
		}
		for _, both := range [][2]*policy.Dimension{{was.Sources, is.Sources}, {was.Destinations, is.Destinations}, {was.SourcePorts, is.SourcePorts}, {was.DestinationPorts, is.DestinationPorts}} {
			if w, i := both[0], both[1]; !slices.Equal(w.Blocks, i.Blocks[:len(w.Blocks)]) || !slices.Equal(w.Words, i.Words[:len(w.Words)]) {
				t.Fatalf("ruleset %d has not just grown", id)
			}
		}
	}
}

func differing[K, V comparable](a, b map[K]V) (keys []K) {
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			keys = append(keys, k)
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			keys = append(keys, k)
		}
	}
	return keys
}

func sameKeys[K comparable](t *rapid.T, what string, want, got []K) {
	t.Helper()
	a, b := make(map[K]bool), make(map[K]bool)
	for _, k := range want {
		a[k] = true
	}
	for _, k := range got {
		b[k] = true
	}
	if !maps.Equal(a, b) || len(got) != len(b) {
		t.Fatalf("changed %s: %v, want %v", what, got, want)
	}
}

// lastOf is a prefix's last address.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
