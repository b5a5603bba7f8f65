package datastore

import (
	"testing"

	"calico-xdp/pkg/api"
)

// Keys as Calico wrote them.
func TestKeys(t *testing.T) {
	c := newCodec()
	for path, want := range map[string]api.Key{
		"/calico/resources/v3/projectcalico.org/bgpconfigurations/default":                  {Kind: "BGPConfiguration", Name: "default"},
		"/calico/resources/v3/projectcalico.org/bgpconfigurations/node.node-a":              {Kind: "BGPConfiguration", Name: "node.node-a"},
		"/calico/resources/v3/projectcalico.org/bgpfilters/filt-1":                          {Kind: "BGPFilter", Name: "filt-1"},
		"/calico/resources/v3/projectcalico.org/bgppeers/peer-global":                       {Kind: "BGPPeer", Name: "peer-global"},
		"/calico/resources/v3/projectcalico.org/caliconodestatuses/st-1":                    {Kind: "CalicoNodeStatus", Name: "st-1"},
		"/calico/resources/v3/projectcalico.org/clusterinformations/default":                {Kind: "ClusterInformation", Name: "default"},
		"/calico/resources/v3/projectcalico.org/felixconfigurations/node.node-a":            {Kind: "FelixConfiguration", Name: "node.node-a"},
		"/calico/resources/v3/projectcalico.org/globalnetworkpolicies/security.gnp-full":    {Kind: "GlobalNetworkPolicy", Name: "security.gnp-full"},
		"/calico/resources/v3/projectcalico.org/globalnetworksets/gns-1":                    {Kind: "GlobalNetworkSet", Name: "gns-1"},
		"/calico/resources/v3/projectcalico.org/hostendpoints/hep-eth0":                     {Kind: "HostEndpoint", Name: "hep-eth0"},
		"/calico/resources/v3/projectcalico.org/ipamconfigurations/default":                 {Kind: "IPAMConfiguration", Name: "default"},
		"/calico/resources/v3/projectcalico.org/ippools/ipip-always":                        {Kind: "IPPool", Name: "ipip-always"},
		"/calico/resources/v3/projectcalico.org/ipreservations/resv-1":                      {Kind: "IPReservation", Name: "resv-1"},
		"/calico/resources/v3/projectcalico.org/kubecontrollersconfigurations/default":      {Kind: "KubeControllersConfiguration", Name: "default"},
		"/calico/resources/v3/projectcalico.org/networkpolicies/default/np-nons":            {Kind: "NetworkPolicy", Namespace: "default", Name: "np-nons"},
		"/calico/resources/v3/projectcalico.org/networkpolicies/prod/np-1":                  {Kind: "NetworkPolicy", Namespace: "prod", Name: "np-1"},
		"/calico/resources/v3/projectcalico.org/networksets/prod/ns-1":                      {Kind: "NetworkSet", Namespace: "prod", Name: "ns-1"},
		"/calico/resources/v3/projectcalico.org/nodes/node-a":                               {Kind: "Node", Name: "node-a"},
		"/calico/resources/v3/projectcalico.org/profiles/prof-web":                          {Kind: "Profile", Name: "prof-web"},
		"/calico/resources/v3/projectcalico.org/stagedglobalnetworkpolicies/sgnp-1":         {Kind: "StagedGlobalNetworkPolicy", Name: "sgnp-1"},
		"/calico/resources/v3/projectcalico.org/stagedkubernetesnetworkpolicies/prod/sknp1": {Kind: "StagedKubernetesNetworkPolicy", Namespace: "prod", Name: "sknp1"},
		"/calico/resources/v3/projectcalico.org/stagednetworkpolicies/prod/snp-1":           {Kind: "StagedNetworkPolicy", Namespace: "prod", Name: "snp-1"},
		"/calico/resources/v3/projectcalico.org/tiers/kube-admin":                           {Kind: "Tier", Name: "kube-admin"},
		"/calico/resources/v3/projectcalico.org/workloadendpoints/default/node--b-libnetwork-libnetwork-abc123": {
			Kind: "WorkloadEndpoint", Namespace: "default", Name: "node--b-libnetwork-libnetwork-abc123"},
		"/calico/resources/v3/projectcalico.org/workloadendpoints/prod/node--a-k8s-web--0-eth0": {
			Kind: "WorkloadEndpoint", Namespace: "prod", Name: "node--a-k8s-web--0-eth0"},
		"/calico/ipam/v2/assignment/ipv4/block/192.168.107.160-28":                {Kind: "IPAMBlock", Name: "192.168.107.160-28"},
		"/calico/ipam/v2/assignment/ipv6/block/fd02::6d15:74ba:80e:4835:8080-122": {Kind: "IPAMBlock", Name: "fd02::6d15:74ba:80e:4835:8080-122"},
		"/calico/ipam/v2/config":                                                   {Kind: "IPAMConfig", Name: "default"},
		"/calico/ipam/v2/handle/ipip-tunnel-addr-node-a":                           {Kind: "IPAMHandle", Name: "ipip-tunnel-addr-node-a"},
		"/calico/ipam/v2/handle/k8s-pod-network.c1":                                {Kind: "IPAMHandle", Name: "k8s-pod-network.c1"},
		"/calico/ipam/v2/handle/50% of \"it\" ümläut":                              {Kind: "IPAMHandle", Name: "50% of \"it\" ümläut"},
		"/calico/ipam/v2/host/node-a/ipv4/block/192.168.107.160-28":                {Kind: "BlockAffinity", Name: "node-a/192.168.107.160-28"},
		"/calico/ipam/v2/host/node-a/ipv6/block/fd02::6d15:74ba:80e:4835:8080-122": {Kind: "BlockAffinity", Name: "node-a/fd02::6d15:74ba:80e:4835:8080-122"},
		"/calico/ipam/v2/host/node-b.example.com/ipv4/block/192.168.5.0-26":        {Kind: "BlockAffinity", Name: "node-b.example.com/192.168.5.0-26"},
		"/calico/operations/v1/trials/3f2a91bc":                                    {Kind: "Trial", Name: "3f2a91bc"},
		"/calico/operations/v1/holds/3f2a91bc":                                     {Kind: "TrialHold", Name: "3f2a91bc"},
		"/calico/operations/v1/queries/3f2a91bc":                                   {Kind: "EnforcementQuery", Name: "3f2a91bc"},
	} {
		got, ok := c.key(path)
		if !ok || got != want {
			t.Errorf("key(%s) = %v, %v; want %v", path, got, ok, want)
		}
		if back, err := c.path(want); err != nil || back != path {
			t.Errorf("path(%v) = %s, %v; want %s", want, back, err, path)
		}
		if path < watchBegin || path >= watchEnd {
			t.Errorf("%s is outside the watched range", path)
		}
	}
}

func TestForeignKeys(t *testing.T) {
	c := newCodec()
	for _, path := range []string{
		"", "/calico", "/calico/ready", "/calico/felix/v2/no-region/host/n/status",
		"/calico/resources/v3/projectcalico.org/", "/calico/resources/v3/projectcalico.org/ippools",
		"/calico/resources/v3/projectcalico.org/ippools/", "/calico/resources/v3/projectcalico.org/ippools/a/b",
		"/calico/resources/v3/projectcalico.org/gadgets/a", "/calico/resources/v3/projectcalico.org/ipamblocks/192.168.5.0-26",
		"/calico/resources/v3/projectcalico.org/networkpolicies/np", "/calico/resources/v3/projectcalico.org/networkpolicies//np",
		"/calico/resources/v3/projectcalico.org/networkpolicies/ns/", "/calico/resources/v3/projectcalico.org/networkpolicies/a/b/c",
		"/calico/ipam/v2/config/x", "/calico/ipam/v2/handle/", "/calico/ipam/v2/handle/a/b",
		"/calico/ipam/v2/assignment/ipv6/block/192.168.5.0-26", "/calico/ipam/v2/assignment/ipv4/block/192.168.5.1-26",
		"/calico/ipam/v2/assignment/ipv4/block/192.168.5.0", "/calico/ipam/v2/assignment/ipv4/192.168.5.0-26",
		"/calico/ipam/v2/assignment/ipv4/block/192.168.5.0-026", "/calico/ipam/v2/assignment/ipv6/block/FD00::-122",
		"/calico/ipam/v2/host/node-a/ipv4/block/x", "/calico/ipam/v2/host//ipv4/block/192.168.5.0-26",
		"/calico/ipam/v2/host/a/b/ipv4/block/192.168.5.0-26",
	} {
		if key, ok := c.key(path); ok {
			t.Errorf("key(%q) = %v, want none", path, key)
		}
	}
	for _, key := range []api.Key{
		{}, {Kind: "Gadget", Name: "a"}, {Kind: "IPPool"}, {Kind: "IPPool", Name: "a/b"}, {Kind: "ippool", Name: "a"},
		{Kind: "NetworkPolicy", Namespace: "a/b", Name: "c"}, {Kind: "IPAMHandle", Name: "a/b"},
		{Kind: "IPAMBlock", Name: "192.168.5.0"}, {Kind: "BlockAffinity", Name: "192.168.5.0-26"},
		{Kind: "IPAMConfig", Name: "other"},
	} {
		if path, err := c.path(key); err == nil {
			t.Errorf("path(%v) = %s, want an error", key, path)
		}
	}
	if path, err := c.path(api.Key{Kind: "NetworkPolicy", Name: "np"}); err != nil || path != resourceRoot+"networkpolicies/default/np" {
		t.Errorf("without namespace: %s, %v", path, err)
	}
}
