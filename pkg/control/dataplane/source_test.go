package dataplane

import (
	"net/netip"
	"slices"
	"testing"

	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/loader"
	"calico-xdp/tools/testbed"
)

// Sources that no network has.
func TestMartians(t *testing.T) {
	b := newBed(t)
	b.state.Dataplane.RPF = desired.RPFLoose
	b.sync(t)
	hook, martian, ignored := loader.FromNetwork, "shot drop_martian", "next pass_not_ours"
	table := []trial{
		{name: "who asks for an address", hook: hook, packet: uplink().IPv4("0.0.0.0", "255.255.255.255").UDP(68, 67), want: ignored},
		{name: "who joins a group", hook: hook, packet: uplink().IPv4("0.0.0.0", "224.0.0.22").Protocol(2).Payload(16), want: ignored},
		{name: "who has no address yet", hook: hook, packet: uplink().IPv6("::", "ff02::16").ICMP(143, 0, 0), want: ignored},
		{name: "multicast", hook: hook, packet: uplink().IPv4("10.10.1.1", "224.0.0.5").Protocol(89).Payload(44), want: ignored},
		{name: "link-local", hook: hook, packet: uplink().IPv6("fe80::1", node6).UDP(1, 2), want: ignored},
		{name: "multicast from nowhere", hook: hook, packet: uplink().IPv4("127.0.0.1", "224.0.0.5").Protocol(89).Payload(44), want: martian},
		{name: "a later fragment of a workload's", hook: hook, packet: uplink().IPv4(outside4, node4).Protocol(17).Fragment(5, 1480, false).Payload(40), want: ignored},
	}
	for _, src := range []string{"127.0.0.1", "127.1.2.3", "0.0.0.0", "0.1.2.3", "224.0.0.5", "239.1.1.1", "255.255.255.255", node4} {
		table = append(table,
			trial{name: src + " to the host", hook: hook, packet: uplink().IPv4(src, node4).TCP(1, 2, "A"), want: martian},
			trial{name: src + " to a workload", hook: hook, packet: uplink().IPv4(src, w1).UDP(1, 2), want: martian},
			trial{name: src + " to others", hook: hook, packet: uplink().IPv4(src, outside4).UDP(1, 2), want: martian},
			trial{name: src + " in a tunnel", hook: hook, packet: ipip(uplink(), ipip4, node4).IPv4(src, node4).UDP(1, 2), want: martian},
			trial{name: src + " in an ICMP error", hook: hook, want: martian,
				packet: uplink().IPv4(src, node4).ICMPError(3, 3, 0, testbed.IPv4(node4, outside4).UDP(1, 2).Payload(8))},
		)
	}
	for _, src := range []string{"::1", "::", "ff02::1", "ff0e::5", node6} {
		table = append(table,
			trial{name: src + " to the host", hook: hook, packet: uplink().IPv6(src, node6).TCP(1, 2, "A"), want: martian},
			trial{name: src + " to a workload", hook: hook, packet: uplink().IPv6(src, x1).UDP(1, 2), want: martian},
		)
	}
	// A workload's address: of what goes to the host, and where nothing is established.
	table = append(table,
		trial{name: "a workload's address to the host", hook: hook, packet: uplink().IPv4(w2, node4).UDP(1, 2), want: martian},
		trial{name: "a workload's address to the host 6", hook: hook, packet: uplink().IPv6(x2, node6).TCP(1, 2, "S"), want: martian},
	)
	// IPv4 in the clothes of IPv6.
	mapped := put(22, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 168, 1, 1)
	table = append(table,
		trial{name: "mapped source", hook: loader.FromWorkload, on: "cali1", packet: frame(x1, x2).UDP(1, 2), edit: mapped, want: "shot drop_malformed"},
		trial{name: "mapped destination", hook: loader.FromWorkload, on: "cali1", packet: frame(x1, x2).UDP(1, 2),
			edit: put(38, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 168, 1, 2), want: "shot drop_malformed"},
		trial{name: "quoted", hook: loader.FromWorkload, on: "cali1", packet: frame(x1, x2).ICMPError(1, 4, 0, testbed.IPv6(x2, x1).UDP(1, 2).Payload(8)),
			edit: func(p []byte) { mapped(p[48:]) }, want: "shot drop_malformed"},
	)
	b.fire(t, table)
}

// The way back: where there is none, and where it is another interface.
func TestReversePath(t *testing.T) {
	b := newBed(t)
	b.host.MustRun(t, "ip", "route", "add", "198.51.100.0/24", "dev", "cali6")
	b.host.MustRun(t, "ip", "-6", "route", "add", "2001:db8:51::/48", "dev", "cali6")
	b.host.MustRun(t, "ip", "-6", "route", "add", "unreachable", "2001:db8:99::/48")
	hook, drop, ignored, passes := loader.FromNetwork, "shot drop_rpf", "next pass_not_ours", "redirect pass_to_workload"
	unchecked := func(*testing.T, []byte, []byte) {}
	for _, mode := range []desired.RPF{desired.RPFDisabled, desired.RPFLoose, desired.RPFStrict} {
		b.state.Dataplane.RPF = mode
		b.sync(t)
		nowhere, elsewhere, toWorkload, lost := ignored, ignored, passes, "shot drop_no_next_hop"
		if mode != desired.RPFDisabled {
			nowhere, toWorkload, lost = drop, drop, drop
		}
		toWorkloadElsewhere := passes
		if mode == desired.RPFStrict {
			elsewhere, toWorkloadElsewhere = drop, drop
		}
		mode := []string{"disabled", "loose", "strict"}[mode] + ", "
		b.fire(t, []trial{
			{name: mode + "the world", hook: hook, packet: uplink().IPv4(outside4, node4).UDP(1, 2), want: ignored},
			{name: mode + "the world 6", hook: hook, packet: uplink().IPv6(outside6, node6).UDP(1, 2), want: ignored},
			{name: mode + "the world to a workload", hook: hook, packet: frame(outside4, w1).UDP(1, 2), want: passes, check: unchecked},
			{name: mode + "nowhere", hook: hook, packet: uplink().IPv4("10.99.0.9", node4).UDP(1, 2), want: nowhere},
			{name: mode + "nowhere 6", hook: hook, packet: uplink().IPv6("2001:db8:99::1", node6).UDP(1, 2), want: nowhere},
			{name: mode + "nowhere, TCP that opens", hook: hook, packet: uplink().IPv4("10.99.0.9", node4).TCP(1, 2, "S"), want: nowhere},
			{name: mode + "nowhere, TCP that goes on", hook: hook, packet: uplink().IPv4("10.99.0.9", node4).TCP(1, 2, "A"), want: ignored},
			{name: mode + "nowhere to others", hook: hook, packet: uplink().IPv4("10.99.0.9", outside4).UDP(1, 2), want: nowhere},
			{name: mode + "nowhere to a workload", hook: hook, packet: frame("10.99.0.9", w1).TCP(1, 2, "A"), want: toWorkload, check: unchecked},
			{name: mode + "nowhere to a workload 6", hook: hook, packet: frame("2001:db8:99::1", x1).UDP(1, 2), want: toWorkload, check: unchecked},
			{name: mode + "nowhere, an ICMP error", hook: hook, want: nowhere,
				packet: uplink().IPv4("10.99.0.9", node4).ICMPError(3, 3, 0, testbed.IPv4(node4, outside4).TCP(1, 2, "A").Payload(8))},
			{name: mode + "another interface", hook: hook, packet: uplink().IPv4("198.51.100.9", node4).UDP(1, 2), want: elsewhere},
			{name: mode + "another interface 6", hook: hook, packet: uplink().IPv6("2001:db8:51::9", node6).UDP(1, 2), want: elsewhere},
			{name: mode + "another interface to a workload", hook: hook, packet: frame("198.51.100.9", w1).UDP(1, 2), want: toWorkloadElsewhere, check: unchecked},
			{name: mode + "a tunnel", hook: hook, packet: ipip(uplink(), ipip4, node4).IPv4(remoteIPIP4, w1).UDP(1, 2), want: passes, check: unchecked},
			{name: mode + "a tunnel from nowhere", hook: hook, want: lost,
				packet: ipip(uplink(), lost4, node4).IPv4("192.168.6.1", w1).UDP(1, 2)},
			// Judged when it was new.
			{name: mode + "an answer", hook: hook, packet: frame("198.51.100.9", w1).UDP(2, 1), want: passes, check: unchecked,
				after: []trial{{hook: loader.FromWorkload, packet: frame(w1, "198.51.100.9").UDP(1, 2), want: "next pass_to_stack"}}},
		})
	}
}

// What workloads encapsulate themselves: natOutgoing would make it their node's.
func TestTunnelsOfWorkloads(t *testing.T) {
	b := newBed(t)
	hook, drop := loader.FromWorkload, "shot drop_tunnel"
	unchecked := func(*testing.T, []byte, []byte) {}
	for _, c := range []struct{ ipip, vxlan bool }{{false, false}, {true, false}, {false, true}, {true, true}} {
		b.state.Dataplane.WorkloadIPIP, b.state.Dataplane.WorkloadVXLAN = c.ipip, c.vxlan
		b.sync(t)
		want := func(allowed bool, pass string) string {
			if allowed {
				return pass
			}
			return drop
		}
		const out, in = "next pass_to_stack", "redirect pass_to_workload"
		b.fire(t, []trial{
			{name: "IPIP to a node", hook: hook, on: "cali1", packet: ipip(frame(w1, ipip4), w1, ipip4).IPv4(remoteIPIP4, w2).UDP(1, 2), want: want(c.ipip, out), check: unchecked},
			{name: "IPIP to a workload", hook: hook, on: "cali1", packet: frame(w1, w2).Protocol(4).Payload(20), want: want(c.ipip, in), check: unchecked},
			{name: "IPIP over IPv6", hook: hook, on: "cali1", packet: frame(x1, outside6).Protocol(4).Payload(20), want: want(c.ipip, out), check: unchecked},
			{name: "VXLAN to a node", hook: hook, on: "cali1", packet: frame(w1, vxlan4).UDP(1, 4789).Payload(50), want: want(c.vxlan, out), check: unchecked},
			{name: "VXLAN to a workload", hook: hook, on: "cali1", packet: frame(x1, x2).UDP(1, 4789), want: want(c.vxlan, in), check: unchecked},
			{name: "another port", hook: hook, on: "cali1", packet: frame(w1, vxlan4).UDP(4789, 4790), want: out, check: unchecked},
			{name: "TCP", hook: hook, on: "cali1", packet: frame(w1, w2).TCP(1, 4789, "S"), want: in, check: unchecked},
			{name: "an answer to that port", hook: hook, on: "cali2", packet: frame(w2, w1).UDP(2, 4789), want: in, check: unchecked,
				after: []trial{{hook: hook, on: "cali1", packet: frame(w1, w2).UDP(4789, 2), want: in, check: unchecked}}},
		})
	}
}

// What comes out of a tunnel for the host itself has to be of that node, too.
func TestTunnelsToTheHost(t *testing.T) {
	b := newBed(t)
	hook, wrong, ignored := loader.FromNetwork, "shot drop_wrong_node", "next pass_not_ours"
	in := func(node, from string) testbed.Packet { return ipip(uplink(), node, node4).IPv4(from, node4) }
	unchecked := func(*testing.T, []byte, []byte) {}
	second := "10.20.2.4" // another address of that node
	b.fire(t, []trial{
		{name: "its workload", hook: hook, packet: in(ipip4, remoteIPIP4).UDP(1, 2), want: ignored, check: unchecked},
		{name: "itself", hook: hook, packet: in(ipip4, ipip4).UDP(1, 2), want: ignored, check: unchecked},
		{name: "another node's workload", hook: hook, packet: in(ipip4, remoteVXLAN4).UDP(1, 2), want: wrong},
		{name: "another node's workload opens TCP", hook: hook, packet: in(ipip4, remoteVXLAN4).TCP(1, 2, "S"), want: wrong},
		{name: "the world", hook: hook, packet: in(ipip4, outside4).UDP(1, 2), want: wrong},
		{name: "another node", hook: hook, packet: in(ipip4, plain4).UDP(1, 2), want: wrong},
		{name: "a workload of ours", hook: hook, packet: in(ipip4, w1).UDP(1, 2), want: wrong},
		// A node may answer from another of its addresses, not open a flow.
		{name: "another address of the node", hook: hook, packet: ipip(uplink(), ipip4, node4).IPv4(second, w1).UDP(2, 1), want: wrong},
		{name: "an answer from it", hook: hook, packet: ipip(uplink(), ipip4, node4).IPv4(second, w1).UDP(2, 1),
			want: "redirect pass_to_workload", check: unchecked,
			after: []trial{{hook: loader.FromWorkload, packet: frame(w1, second).UDP(1, 2), want: "next pass_to_stack"}}},
	})
}

// Congestion marks of the outer header, with all that the inner one may say (RFC 6040, 4.2).
func TestCongestionMarks(t *testing.T) {
	b := newBed(t)
	// The mark that leaves, by outer and inner one; 9 is a drop.
	for outer, row := range [4][4]int{
		0: {0, 1, 2, 3},
		1: {0, 1, 1, 3},
		2: {0, 1, 2, 3},
		3: {9, 3, 3, 3},
	} {
		for inner, left := range row {
			const dscp = 0xb8
			in, out := uint8(dscp|inner), uint8(dscp|left)
			want := "redirect pass_to_workload"
			if left == 9 {
				want = "shot drop_ecn"
			}
			marked := func(p testbed.Packet) testbed.Packet { return p.TOS(uint8(outer)) }
			check := func(t *testing.T, _, got []byte) {
				tos := got[15]
				if got[12] == 0x86 {
					tos = got[14]<<4 | got[15]>>4
				}
				if tos != out {
					t.Errorf("outer mark %d, inner %#x: left with %#x, want %#x", outer, in, tos, out)
				}
				if bad := testbed.BadChecksums(got); len(bad) > 0 {
					t.Errorf("outer mark %d, inner %#x: %s", outer, in, bad)
				}
			}
			b.fire(t, []trial{
				{name: "IPIP", hook: loader.FromNetwork, packet: marked(ipip(uplink(), ipip4, node4)).IPv4(remoteIPIP4, w1).TOS(in).UDP(1, 2), want: want, check: check},
				{name: "IPIP, options", hook: loader.FromNetwork, packet: marked(ipip(uplink(), ipip4, node4)).IPv4(remoteIPIP4, w1).TOS(in).IPv4Options(2).UDP(1, 2), want: want, check: check},
				{name: "VXLAN", hook: loader.FromNetwork, want: want, check: check,
					packet: marked(uplink().IPv4(vxlan4, node4)).UDP(50000, 4789).VXLAN(4096).Ethernet(peerVXLANMAC, vxlanMAC).IPv4(remoteVXLAN4, w1).TOS(in).UDP(1, 2)},
				{name: "VXLAN 6", hook: loader.FromNetwork, want: want, check: check,
					packet: marked(uplink().IPv6(vxlan6, node6)).UDP(50000, 4789).VXLAN(4096).Ethernet(peerVXLANMAC, vxlanMAC).IPv6(remoteVXLAN6, x1).TOS(in).UDP(1, 2)},
			})
		}
	}
}

// A workload that may send from more than its own addresses.
func TestAllowedSources(t *testing.T) {
	b := newBed(t)
	allowed := func(n int, prefixes ...string) {
		e := b.state.Dataplane.Endpoints[key(n)]
		e.Sources = nil
		for _, p := range prefixes {
			e.Sources = append(e.Sources, netip.MustParsePrefix(p))
		}
		b.state.Dataplane.Endpoints[e.Key] = e
		b.sync(t)
	}
	hook, spoofed := loader.FromWorkload, "shot drop_spoofed"
	unchecked := func(*testing.T, []byte, []byte) {}
	from := func(n int, src, dst string) testbed.Packet {
		return testbed.Ethernet(macOf(n), hostMAC).IP(netip.MustParseAddr(src), netip.MustParseAddr(dst))
	}
	const other4, other6 = "198.51.100.7", "2001:db8:51::7"
	none := []trial{
		{name: "not allowed", hook: hook, on: "cali1", packet: from(first, other4, outside4).UDP(1, 2), want: spoofed},
		{name: "not allowed 6", hook: hook, on: "cali1", packet: from(first, other6, outside6).UDP(1, 2), want: spoofed},
	}
	b.fire(t, none)
	allowed(first, "198.51.100.0/24", "2001:db8:51::/64")
	allowed(shut, "::/0", "203.0.113.128/25")
	b.fire(t, []trial{
		{name: "allowed", hook: hook, on: "cali1", packet: from(first, other4, outside4).UDP(1, 2), want: "next pass_to_stack"},
		{name: "allowed 6", hook: hook, on: "cali1", packet: from(first, other6, outside6).TCP(1, 2, "S"), want: "next pass_to_stack"},
		{name: "to another workload", hook: hook, on: "cali1", packet: from(first, other4, w2).UDP(1, 2), want: "redirect pass_to_workload", check: unchecked},
		{name: "to a workload that hears nothing", hook: hook, on: "cali1", packet: from(first, other4, w5).UDP(1, 2), want: "shot drop_ingress_policy"},
		{name: "to the host", hook: hook, on: "cali1", packet: from(first, other4, node4).UDP(1, 2), want: "next pass_to_host"},
		{name: "through a tunnel", hook: hook, on: "cali1", packet: from(first, other4, remoteIPIP4).UDP(1, 2), want: "redirect pass_ipip", check: unchecked},
		{name: "from another MAC", hook: hook, on: "cali1", packet: from(second, other4, outside4).UDP(1, 2), want: spoofed},
		{name: "out of the prefix", hook: hook, on: "cali1", packet: from(first, "198.51.101.7", outside4).UDP(1, 2), want: spoofed},
		{name: "another workload's address", hook: hook, on: "cali1", packet: from(first, w2, outside4).UDP(1, 2), want: spoofed},
		{name: "another workload's prefix", hook: hook, on: "cali2", packet: from(second, other4, outside4).UDP(1, 2), want: spoofed},
		{name: "ARP", hook: hook, on: "cali1", want: "next pass_neighbor",
			packet: testbed.Ethernet(macOf(first), hostMAC).ARP(macOf(first), other4, hostMAC, node4)},
		{name: "its policy", hook: hook, on: "cali4", packet: from(shut, other6, outside6).UDP(1, 2), want: "shot drop_egress_policy"},
		{name: "all of IPv6 is not IPv4", hook: hook, on: "cali4", packet: from(shut, other4, outside4).UDP(1, 2), want: spoofed},
		{name: "an answer", hook: hook, packet: frame(w2, other4).UDP(2, 1), want: "redirect pass_to_workload", check: unchecked,
			after: []trial{{hook: hook, on: "cali1", packet: from(first, other4, w2).UDP(1, 2), want: "redirect pass_to_workload", check: unchecked}}},
		// The first answer takes the host's routes, which the host's operator has made.
		{name: "an answer from the network", hook: loader.FromNetwork, packet: uplink().IPv4(outside4, other4).UDP(2, 1), want: "redirect pass_to_workload", check: unchecked,
			after: []trial{
				{hook: hook, on: "cali1", packet: from(first, other4, outside4).UDP(1, 2), want: "next pass_to_stack"},
				{hook: loader.FromNetwork, packet: uplink().IPv4(outside4, other4).UDP(2, 1), want: "next pass_not_ours"},
				{hook: loader.ToWorkload, on: "cali1", from: "eth0", packet: uplink().IPv4(outside4, other4).UDP(2, 1), want: "next pass_to_workload"},
			}},
		{name: "to its prefix", hook: loader.ToWorkload, on: "cali1", from: "eth0", packet: uplink().IPv4(outside4, other4).UDP(2, 1), want: "shot drop_no_endpoint"},
	})
	// A live flow goes on when it is judged again, in either direction, and ends with
	// the permission.
	b.forget(t)
	live := []trial{
		{hook: hook, on: "cali1", packet: from(first, other4, w2).UDP(1, 2), want: "redirect pass_to_workload", check: unchecked},
		{hook: hook, packet: frame(w2, other4).UDP(2, 1), want: "redirect pass_to_workload", check: unchecked},
		{hook: hook, on: "cali1", packet: from(first, other4, w2).UDP(1, 2), want: "redirect pass_to_workload", check: unchecked},
	}
	for range 2 {
		for _, s := range live {
			b.expect(t, s)
		}
		slices.Reverse(live)
		if err := b.endpoints.bump(b.endpoints.slots[key(second)]); err != nil {
			t.Fatal(err)
		}
	}
	allowed(first)
	live[0].want = spoofed
	b.expect(t, trial{hook: hook, on: "cali1", packet: from(first, other4, w2).UDP(1, 2), want: spoofed})
	b.fire(t, none)
}

// What XDP drops by itself, without any policy.
func TestMartiansInXDP(t *testing.T) {
	b := newBed(t)
	drops := func(name string, p testbed.Packet, want bool) {
		t.Helper()
		before := b.counters(t)
		var r loader.Result
		err := b.host.Do(func() (err error) {
			r, err = b.programs.Run(loader.XDPNetwork, p.Bytes(), loader.Context{})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		counted := ""
		for c, n := range b.counters(t) {
			if n != before[c] {
				counted += c.Hook + " " + c.Reason
			}
		}
		said := map[bool]string{true: "xdp_network drop_martian", false: "xdp_network pass_not_ours"}[want]
		if (r.Return == xdpDrop) != want || counted != said {
			t.Errorf("%s: returns %d, counts %q", name, r.Return, counted)
		}
	}
	for src, want := range map[string]bool{
		"127.0.0.1": true, "0.1.2.3": true, "224.0.0.1": true, "255.255.255.255": true, node4: true, outside4: false, w1: false, "240.0.0.1": false,
	} {
		drops(src, uplink().IPv4(src, node4).UDP(1, 2), want)
		drops(src+" to a group", uplink().IPv4(src, "224.0.0.5").UDP(1, 2), want)
		drops(src+", later fragment", uplink().IPv4(src, node4).Protocol(17).Fragment(5, 1480, false).Payload(40), want)
	}
	drops("who asks for an address", uplink().IPv4("0.0.0.0", "255.255.255.255").UDP(68, 67), false)
	drops("nobody to the host", uplink().IPv4("0.0.0.0", node4).UDP(68, 67), true)
	for src, want := range map[string]bool{"::1": true, "ff02::1": true, node6: true, outside6: false, "fe80::1": false} {
		drops(src, uplink().IPv6(src, node6).UDP(1, 2), want)
	}
	drops("who has no address yet", uplink().IPv6("::", "ff02::1:ff00:1").TTL(255).ICMP(135, 0, 0).Payload(24), false)
	drops("nobody to the host 6", uplink().IPv6("::", node6).UDP(1, 2), true)
	drops("ARP", testbed.Ethernet(neighborMAC, "ff:ff:ff:ff:ff:ff").ARP(neighborMAC, "10.10.1.1", "", node4), false)
}
