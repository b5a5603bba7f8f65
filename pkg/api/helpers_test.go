package api

import (
	"net/netip"
	"strings"
	"testing"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"
)

func TestKinds(t *testing.T) {
	seen := map[string]string{}
	for _, k := range Kinds() {
		r := k.New()
		if got := kindOf(r); got != k.Name {
			t.Errorf("%s makes a %q", k.Name, got)
		}
		if gvk := r.GetObjectKind().GroupVersionKind(); gvk.Kind != k.Name || gvk.GroupVersion().String() != GroupVersion {
			t.Errorf("%s says it is %s", k.Name, gvk)
		}
		for _, n := range append([]string{k.Name, strings.ToUpper(k.Plural)}, k.Aliases...) {
			if n == "IPAMCONFIG" {
				continue // the internal kind has no plural for users
			}
			if got, ok := FindKind(n); !ok || got != k {
				t.Errorf("FindKind(%q) = %v", n, got)
			}
			if other, ok := seen[n]; ok {
				t.Errorf("%q names %s and %s", n, other, k.Name)
			}
			seen[n] = k.Name
		}
	}
	for name, want := range map[string]string{
		"ippool": KindIPPool, "GNP": KindGlobalNetworkPolicy, "wep": KindWorkloadEndpoint, "heps": KindHostEndpoint, "policy": KindNetworkPolicy,
		"ipamconfig": KindIPAMConfiguration, "IPAMConfig": KindIPAMConfig, "felixconfig": KindFelixConfiguration, "BGPConfig": KindBGPConfiguration,
		"clusterInfo": KindClusterInformation, "nodes": KindNode, "bgpp": KindBGPPeer,
	} {
		if k, ok := FindKind(name); !ok || k.Name != want {
			t.Errorf("FindKind(%q) = %v, want %s", name, k, want)
		}
	}
	if k, ok := FindKind("pod"); ok {
		t.Errorf("FindKind(pod) = %v", k)
	}
}

func TestKeyOfGoesByType(t *testing.T) {
	p := &NetworkPolicy{}
	p.Name, p.Namespace = "n", "s"
	if got, want := KeyOf(p), (Key{KindNetworkPolicy, "s", "n"}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestWorkloadEndpointName(t *testing.T) {
	for _, c := range [][5]string{
		{"node-a", "k8s", "web-0", "eth0", "node--a-k8s-web--0-eth0"},
		{"node-b", "libnetwork", "libnetwork", "abc123", "node--b-libnetwork-libnetwork-abc123"},
		{"a", "cni", "b--c", "-", "a-cni-b----c---"},
	} {
		if got := WorkloadEndpointName(c[0], c[1], c[2], c[3]); got != c[4] {
			t.Errorf("%v: got %q", c, got)
		}
	}
}

func TestAddresses(t *testing.T) {
	n := NewNode()
	if n.IPv4().IsValid() || n.IPv6().IsValid() {
		t.Error("a node without BGP has addresses")
	}
	n.Spec.BGP = &NodeBGPSpec{IPv4Address: "10.10.0.1/24", IPv6Address: "fd00::1"}
	if got := n.IPv4(); got != netip.MustParsePrefix("10.10.0.1/24") {
		t.Error(got)
	}
	if got := n.IPv6(); got != netip.MustParsePrefix("fd00::1/128") {
		t.Error(got)
	}
	for _, bad := range []string{"", "x", "10.0.0.1/33", "fe80::1%eth0"} {
		if p, err := ParseNodeAddress(bad); err == nil {
			t.Errorf("%q is %v", bad, p)
		}
	}
	w := NewWorkloadEndpoint()
	w.Spec.IPNetworks = []string{"10.0.0.1/32", "x", "10.0.0.0/24", "fd00::1"}
	if got := w.Addresses(); len(got) != 2 || got[0] != netip.MustParseAddr("10.0.0.1") || got[1] != netip.MustParseAddr("fd00::1") {
		t.Error(got)
	}
	for in, want := range map[string]string{"10.0.0.1": "10.0.0.1:0", "10.0.0.1:179": "10.0.0.1:179", "fd00::1": "[fd00::1]:0", "[fd00::1]:179": "[fd00::1]:179"} {
		if got, err := ParsePeerIP(in); err != nil || got.String() != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
}

func TestBlockNames(t *testing.T) {
	for cidr, name := range map[string]string{"192.168.46.128/26": "192.168.46.128-26", "fd02::6d15:74ba:80e:4835:8080/122": "fd02::6d15:74ba:80e:4835:8080-122"} {
		p := netip.MustParsePrefix(cidr)
		if got := BlockName(p); got != name {
			t.Errorf("%s: %q", cidr, got)
		}
		if got, err := ParseBlockName(name); err != nil || got != p {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		if node, got, err := ParseAffinityName(AffinityName("node-a", p)); err != nil || got != p || node != "node-a" {
			t.Errorf("%s: %v, %v, %v", name, node, got, err)
		}
	}
	for _, bad := range []string{"", "10.0.0.0", "10.0.0.1-26", "10.0.0.0-40", "x-1", "0::-0", "FD02::-122", "fd02:0::-122"} {
		if p, err := ParseBlockName(bad); err == nil {
			t.Errorf("%q is %v", bad, p)
		}
		if _, p, err := ParseAffinityName("n/" + bad); err == nil {
			t.Errorf("%q is %v", bad, p)
		}
	}
}

func TestBlockFaults(t *testing.T) {
	handle := "h"
	good := func() *IPAMBlock {
		b := &IPAMBlock{CIDR: netip.MustParsePrefix("10.0.0.0/30"), Allocations: make([]*int, 4), Unallocated: []int{1, 2, 3},
			Attributes: []AllocationAttribute{{HandleID: &handle}}}
		b.Name = "10.0.0.0-30"
		b.Allocations[0] = new(0)
		return b
	}
	if err := Validate(good()); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*IPAMBlock){
		"the cidr makes it":      func(b *IPAMBlock) { b.Name = "x" },
		"expected a network":     func(b *IPAMBlock) { b.CIDR = netip.MustParsePrefix("10.0.0.1/30") },
		"not one for each":       func(b *IPAMBlock) { b.Allocations = b.Allocations[1:] },
		"there are 1 attributes": func(b *IPAMBlock) { b.Allocations[0] = new(1) },
		"not a free address":     func(b *IPAMBlock) { b.Unallocated = []int{0} },
		"or there twice":         func(b *IPAMBlock) { b.Unallocated = []int{1, 1} },
	} {
		b := good()
		change(b)
		if err := Validate(b); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestProtocols(t *testing.T) {
	for name, want := range map[string]uint8{"TCP": 6, "udp": 17, "Icmp": 1, "ICMPv6": 58, "sctp": 132, "udplite": 136, "41": 41, "255": 255} {
		if got, ok := ProtocolNumber(name); !ok || got != want {
			t.Errorf("%s: %d, %v", name, got, ok)
		}
	}
	for _, bad := range []string{"", "0", "256", "foo"} {
		if n, ok := ProtocolNumber(bad); ok {
			t.Errorf("%q is %d", bad, n)
		}
	}
	if got := ProtocolName(6) + ProtocolName(41); got != "TCP41" {
		t.Error(got)
	}
	if !ProtocolHasPorts(136) || ProtocolHasPorts(1) {
		t.Error("wrong protocols have ports")
	}
	if n, ok := NumberOf(numorstring.ProtocolFromInt(0)); ok {
		t.Error(n)
	}
}

func TestPolicyOf(t *testing.T) {
	for _, kind := range []string{KindNetworkPolicy, KindGlobalNetworkPolicy, KindStagedNetworkPolicy, KindStagedGlobalNetworkPolicy} {
		r := read(t, kind, "p", "{tier: t, order: 5, selector: 'has(a)', egress: [{action: Allow}]}")
		p, ok := PolicyOf(r)
		if !ok || p.Key != KeyOf(r) || p.Tier != "t" || *p.Order != 5 || p.Selector != "has(a)" || len(p.Egress) != 1 || len(p.Types) != 1 || p.Types[0] != v3.PolicyTypeEgress {
			t.Errorf("%s: %+v", kind, p)
		}
		if staged := strings.HasPrefix(kind, "Staged"); staged != (p.StagedAction == v3.StagedActionSet) {
			t.Errorf("%s: staged action %q", kind, p.StagedAction)
		}
	}
	if _, ok := PolicyOf(&Profile{}); ok {
		t.Error("a profile is a policy")
	}
}

func TestValidateChange(t *testing.T) {
	old := read(t, KindIPPool, "p", "{cidr: 10.0.0.0/16}")
	if err := ValidateChange(old, read(t, KindIPPool, "p", "{cidr: 10.0.0.0/16, natOutgoing: true}")); err != nil {
		t.Error(err)
	}
	err := ValidateChange(old, read(t, KindIPPool, "p", "{cidr: 10.1.0.0/16, blockSize: 28}"))
	if err == nil || len(strings.Split(err.Error(), "\n")) != 2 {
		t.Error(err)
	}
}
