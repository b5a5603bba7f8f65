package bgp

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
)

// routers is a node of ours, host 1, whose peers are two routers of other AS: BIRD,
// host 2, and FRR, host 3, with passwords and TTL security, IPv4 and IPv6.
func routers(t *testing.T) (f *fabric, node *ours, birdHost, frrHost *host) {
	t.Helper()
	f = newFabric(t)
	f.add(pools + `---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec:
  nodeToNodeMeshEnabled: false
  communities: [{name: gold, value: "64512:100"}]
  prefixAdvertisements:
  - {cidr: 10.65.0.0/16, communities: [gold, "64512:1:2"]}
  - {cidr: "fd00:65::/48", communities: ["64512:200"]}
`)
	f.addNode("node1", 1, "")
	for i, router := range []string{"bird", "frr"} {
		for _, address := range []netip.Addr{f.address4(2 + i), f.address6(2 + i)} {
			family := "v4"
			if address.Is6() {
				family = "v6"
			}
			f.add(fmt.Sprintf(`apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: %s-%s}
spec:
  peerIP: "%s"
  asNumber: %d
  ttlSecurity: 1
  password: {secretKeyRef: {name: routers, key: %s}}
  filters: [common, %s]
`, router, family, address, 65102+i, router, router))
		}
		f.add(fmt.Sprintf(`apiVersion: projectcalico.org/v3
kind: BGPFilter
metadata: {name: %s}
spec: {}
`, router))
	}
	f.add(`apiVersion: projectcalico.org/v3
kind: BGPFilter
metadata: {name: common}
spec:
  importV4:
  - {cidr: 192.168.0.0/16, matchOperator: In, prefixLength: {max: 24}, action: Reject}
  importV6:
  - {cidr: "fd00:192::/32", matchOperator: In, action: Reject}
`)
	birdHost, frrHost = f.host(2), f.host(3)
	birdHost.bird(fmt.Sprintf(`
template bgp calico { direct; ttl security on; password "tea"; graceful restart on;
  connect delay time 1; connect retry time 1; error wait time 1, 2; }
protocol static announced { ipv4; route 0.0.0.0/0 blackhole; route 10.98.0.0/16 blackhole; route 10.99.0.0/16 blackhole;
  route 192.168.2.0/24 blackhole; route 192.168.2.128/25 blackhole; }
protocol static announced6 { ipv6; route ::/0 blackhole; route fd00:99::/32 blackhole; route fd00:192:2::/48 blackhole; }
protocol bgp four from calico { local %s as 65102; neighbor %s as 64512; ipv4 { import all; export where source = RTS_STATIC; }; }
protocol bgp six from calico { local %s as 65102; neighbor %s as 64512; ipv6 { import all; export where source = RTS_STATIC; }; }
`, f.address4(2), f.address4(1), f.address6(2), f.address6(1)))
	frr := fmt.Sprintf("hostname frr\nrouter bgp 65103\n bgp router-id %s\n no bgp ebgp-requires-policy\n no bgp network import-check\n no bgp default ipv4-unicast\n bgp graceful-restart\n timers bgp 5 15\n", f.address4(3))
	for _, a := range []netip.Addr{f.address4(1), f.address6(1)} {
		frr += fmt.Sprintf(" neighbor %s remote-as 64512\n neighbor %s timers connect 1\n neighbor %s password coffee\n neighbor %s ttl-security hops 1\n", a, a, a, a)
	}
	frr += fmt.Sprintf(` address-family ipv4 unicast
  neighbor %s activate
  network 10.99.0.0/16
  network 192.168.3.0/24
 exit-address-family
 address-family ipv6 unicast
  neighbor %s activate
  network fd00:99::/32
  network fd00:98::/32
 exit-address-family
`, f.address4(1), f.address6(1))
	frrHost.frr(frr)
	node = f.start("node1", 1)
	node.input.Secrets = map[desired.SecretKey]string{{Secret: "routers", Key: "bird"}: "tea", {Secret: "routers", Key: "frr"}: "coffee"}
	return f, node, birdHost, frrHost
}

func TestRouters(t *testing.T) {
	f, n, birdHost, frrHost := routers(t)
	n.round()
	all := []*ours{n}
	until(t, "we learned", f.lines(
		"0.0.0.0/0 via 10.210.f.2",
		"10.98.0.0/16 via 10.210.f.2",
		"10.99.0.0/16 via 10.210.f.2 10.210.f.3", // as good
		"192.168.2.128/25 via 10.210.f.2",
		"::/0 via fd00:210:f::2",
		"fd00:98::/32 via fd00:210:f::3",
		"fd00:99::/32 via fd00:210:f::2 fd00:210:f::3"), all, n.learned)
	until(t, "BIRD learned", f.routesTo(1), all, birdHost.learned)
	until(t, "FRR learned", f.routesTo(1), all, frrHost.learned)
	// FRR tells us our own blocks too.
	until(t, "our sessions", f.lines(
		"10.210.f.2 global up Established in 5 out 1",
		"10.210.f.3 global up Established in 3 out 1",
		"fd00:210:f::2 global up Established in 3 out 1",
		"fd00:210:f::3 global up Established in 3 out 1"), all, n.status)
	for prefix, want := range map[string]string{block4(1): "(64512,100)", block6(1): "(64512,200)"} {
		if got := birdHost.birdc("show", "route", "all", prefix); !strings.Contains(got, want) {
			t.Errorf("%s without community %s at BIRD:\n%s", prefix, want, got)
		}
	}
	if got := birdHost.birdc("show", "route", "all", block4(1)); !strings.Contains(got, "(64512, 1, 2)") || strings.Contains(got, "4294967295") {
		t.Errorf("large communities at BIRD:\n%s", got)
	}
	sessions := fmt.Sprint(established(n.node))

	// Filters change, one router's at a time: nobody's session does, and the other
	// router's routes neither.
	filter := func(name, spec string) {
		t.Helper()
		f.add("apiVersion: projectcalico.org/v3\nkind: BGPFilter\nmetadata: {name: " + name + "}\nspec: " + spec + "\n")
		n.round()
	}
	steady := never(t, "BIRD's routes while FRR's filters change", f.routesTo(1), birdHost.learned)
	filter("frr", "{exportV4: [{cidr: "+block4(1)+", matchOperator: Equal, action: Reject}]}")
	until(t, "FRR, which is not to hear of the IPv4 block, learned", block6(1)+" via "+f.address6(1).String(), all, frrHost.learned)
	filter("frr", "{exportV4: [{source: RemotePeers, cidr: 10.98.0.0/16, matchOperator: In, action: Accept}, {cidr: 10.65.0.0/16, matchOperator: NotIn, action: Reject}], exportV6: [{action: Reject}]}")
	// What another router has told is passed on where a filter accepts it.
	until(t, "FRR learned", f.lines(block4(1)+" via 10.210.f.1", "10.98.0.0/16 via 10.210.f.1"), all, frrHost.learned)
	filter("frr", "{importV4: [{cidr: 10.99.0.0/16, matchOperator: NotEqual, action: Accept}, {action: Reject}]}")
	until(t, "FRR learned", f.routesTo(1), all, frrHost.learned)
	until(t, "our IPv4 routes", f.lines(
		"0.0.0.0/0 via 10.210.f.2", "10.98.0.0/16 via 10.210.f.2", "10.99.0.0/16 via 10.210.f.2",
		"192.168.2.128/25 via 10.210.f.2"), all, func() string {
		return lines(onlyLines(n.learned(), f.text("10.210.f."))...)
	})
	filter("frr", "{}")
	until(t, "10.99.0.0/16", f.text("10.99.0.0/16 via 10.210.f.2 10.210.f.3"), all, func() string { return lines(onlyLines(n.learned(), "10.99.")...) })
	steady()

	// A pool that is not exported, and is again.
	pool := func(hidden bool) {
		t.Helper()
		f.add(strings.Replace(pools, "cidr: 10.65.0.0/16", fmt.Sprintf("cidr: 10.65.0.0/16, disableBGPExport: %v", hidden), 1))
		n.round()
	}
	pool(true)
	until(t, "BIRD learned of a hidden pool", block6(1)+" via "+f.address6(1).String(), all, birdHost.learned)
	until(t, "FRR learned of a hidden pool", block6(1)+" via "+f.address6(1).String(), all, frrHost.learned)
	pool(false)
	until(t, "BIRD learned", f.routesTo(1), all, birdHost.learned)
	until(t, "FRR learned", f.routesTo(1), all, frrHost.learned)

	// A block is released, an address of somebody else's is taken up.
	f.delete(api.KindIPAMBlock, api.BlockName(netip.MustParsePrefix(block4(1))))
	affinity := "host:other"
	b := &api.IPAMBlock{CIDR: netip.MustParsePrefix(block4(7)), Affinity: &affinity, Allocations: make([]*int, 64)}
	b.Kind, b.Name = api.KindIPAMBlock, api.BlockName(b.CIDR)
	index := 0
	b.Allocations[5], b.Attributes = &index, []api.AllocationAttribute{{Secondary: map[string]string{"node": "node1"}}}
	f.resources.Apply(api.Change{Key: api.KeyOf(b), Resource: b})
	n.round()
	until(t, "BIRD learned", f.lines("10.65.7.5 via 10.210.f.1", block6(1)+" via "+f.address6(1).String()), all, birdHost.learned)

	if now := fmt.Sprint(established(n.node)); now != sessions {
		t.Errorf("sessions %s\nwere %s", now, sessions)
	}

	// Of two next hops one goes.
	birdHost.birdc("disable", "announced")
	until(t, "our IPv4 routes", f.text("10.99.0.0/16 via 10.210.f.3"), all, func() string { return lines(onlyLines(n.learned(), f.text("10.210.f."))...) })
}
