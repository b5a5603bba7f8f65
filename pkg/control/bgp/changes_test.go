package bgp

import (
	"net/netip"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

// TestUnchangedStateIsLeftAlone: what GoBGP has whole is not gone through again
// until it changes, or is to be read back.
func TestUnchangedStateIsLeftAlone(t *testing.T) {
	alone(t, &loopback)
	n := newNode(t, 1, 64512)
	store, computer := api.NewStore(), new(desired.Computer)
	round := func(r api.Resource, unchanged bool) {
		t.Helper()
		changes := []api.Change{}
		if r != nil {
			changes = append(changes, api.Change{Key: api.KeyOf(r), Resource: r})
			store.Apply(changes[0])
		}
		n.want = *computer.Compute(desired.Input{Node: "a", Resources: store}, changes)
		n.apply()
		if n.unchanged != unchanged {
			t.Errorf("taken as unchanged: %v", n.unchanged)
		}
	}
	port := func(p uint16) *v3.BGPConfiguration {
		conf := v3.NewBGPConfiguration()
		conf.Name, conf.Spec.ListenPort = "default", p
		return conf
	}
	self := api.NewNode()
	self.Name, self.Spec.BGP = "a", &api.NodeBGPSpec{IPv4Address: "127.0.0.1/8"}
	pool := v3.NewIPPool()
	pool.Name, pool.Spec.CIDR = "pool", "10.65.0.0/16"

	round(port(10179), false) // no other test's
	round(self, false)
	round(pool, false) // routes inside it are passed on
	block := &api.IPAMBlock{CIDR: netip.MustParsePrefix("10.65.0.0/26"), Affinity: new("host:a")}
	block.Name = api.BlockName(block.CIDR)
	round(block, false)
	if paths, err := (pathTable{n.library}).Load(); err != nil || len(paths) != 1 {
		t.Errorf("paths %v, %v", paths, err)
	}
	round(nil, true)
	n.Resync()
	round(nil, false)
	round(nil, true)
	other := api.NewNode() // only a network of the policy's
	other.Name = "b"
	round(other, true)
}
