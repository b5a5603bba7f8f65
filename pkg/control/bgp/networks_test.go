package bgp

import (
	"fmt"
	"net/netip"
	"testing"

	"calico-xdp/pkg/control/desired"
)

// TestHostNetworks: networks of the host itself are told to the peer whose filter accepts
// them, an address in a pool to all, as far as they are there.
func TestHostNetworks(t *testing.T) {
	f := newFabric(t)
	f.add(pools + `---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {nodeToNodeMeshEnabled: false}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: loopbacks}
spec: {cidr: 10.69.0.0/24, disabled: true}
---
apiVersion: projectcalico.org/v3
kind: BGPFilter
metadata: {name: connected}
spec: {exportV4: [{cidr: 10.98.0.0/16, matchOperator: In, interface: "eth*", action: Accept}]}
`)
	f.addNode("node1", 1, "")
	n := f.start("node1", 1)
	link := func(name string, addresses ...string) (l desired.Link) {
		l = desired.Link{Name: name, Up: true}
		for _, a := range addresses {
			l.Addresses = append(l.Addresses, netip.MustParsePrefix(a))
		}
		return l
	}
	lo := link("lo", "127.0.0.1/8", "10.69.0.1/32")
	n.input.Links = []desired.Link{lo, link("eth1", "10.98.1.1/24"), link("docker0", "10.98.2.1/24")}
	hosts := map[int]*host{}
	for i, filters := range map[int]string{2: "[connected]", 3: "[]"} {
		f.add(fmt.Sprintf("apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: host%d}\nspec: {peerIP: %s, asNumber: %d, filters: %s}\n", i, f.address4(i), 65100+i, filters))
		hosts[i] = f.host(i)
		hosts[i].bird(fmt.Sprintf(`
protocol bgp { local %s as %d; neighbor %s as 64512; multihop; connect delay time 1; connect retry time 1; error wait time 1, 2; ipv4 { import all; export none; }; }
`, f.address4(i), 65100+i, f.address4(1)))
	}
	n.round()
	all := []*ours{n}
	block, loopback, connected := block4(1)+" via 10.210.f.1", "10.69.0.1 via 10.210.f.1", "10.98.1.0/24 via 10.210.f.1"
	until(t, "the router with a filter learned", f.lines(block, loopback, connected), all, hosts[2].learned)
	until(t, "the other learned", f.lines(block, loopback), all, hosts[3].learned)
	sessions := fmt.Sprint(established(n.node))

	n.input.Links = []desired.Link{lo}
	n.round()
	until(t, "without the interface the router learned", f.lines(block, loopback), all, hosts[2].learned)
	n.input.Links = []desired.Link{link("eth1", "10.98.1.1/24")}
	n.round()
	until(t, "the router learned", f.lines(block, connected), all, hosts[2].learned)
	until(t, "the other learned", f.lines(block), all, hosts[3].learned)
	if now := fmt.Sprint(established(n.node)); now != sessions {
		t.Errorf("sessions %s\nwere %s", now, sessions)
	}
}
