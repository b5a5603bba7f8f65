package control

import (
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/control/host"
	"calico-xdp/pkg/datastore"
	"calico-xdp/pkg/ipam"
	"calico-xdp/tools/testbed"
)

// bench is a host with one interface, and an etcd.
type bench struct {
	namespace *testbed.Namespace
	network   *host.Network
	client    *datastore.Client
	log       *slog.Logger
}

func newBench(t *testing.T) *bench {
	b := &bench{log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	etcd, err := datastore.StartEmbedded(datastore.EmbeddedConfig{
		Dir: t.TempDir(), ListenClients: []string{"http://127.0.0.1:0"},
	}, b.log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(etcd.Close)
	if b.client, err = datastore.Open(t.Context(), datastore.Config{Endpoints: etcd.Endpoints()}, b.log); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.client.Close)

	b.namespace = testbed.NewNamespace(t, "startup")
	testbed.Veth(t, b.namespace, "eth0", b.namespace, "far")
	b.namespace.AddAddress(t, "eth0", "10.0.0.1/24")
	b.namespace.SetUp(t, "eth0")
	b.namespace.SetUp(t, "far")
	err = b.namespace.Do(func() (err error) {
		b.network, err = host.New(host.Options{}, b.log)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.network.Close() })
	return b
}

// start starts a node up and returns its resource.
func (b *bench) start(t *testing.T, environ ...string) *api.Node {
	t.Helper()
	s := b.startup(t, environ...)
	if _, err := s.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	tunnels := &Tunnels{Node: s.Environment.Node, Store: b.client, Allocator: ipam.New(b.client)}
	if err := tunnels.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b.node(t, s.Environment.Node)
}

func (b *bench) startup(t *testing.T, environ ...string) *Startup {
	t.Helper()
	e, err := ReadEnvironment(environ, "host-a")
	if err != nil {
		t.Fatal(err)
	}
	return &Startup{Environment: e, Store: b.client, Host: b.network, Logger: b.log}
}

func (b *bench) node(t *testing.T, name string) *api.Node {
	t.Helper()
	return b.get(t, api.KindNode, name).(*api.Node)
}

func (b *bench) get(t *testing.T, kind, name string) api.Resource {
	t.Helper()
	r, err := b.client.Get(t.Context(), api.Key{Kind: kind, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestStartup(t *testing.T) {
	b := newBench(t)
	n := b.start(t)
	if n.Spec.BGP.IPv4Address != "10.0.0.1/24" || n.Spec.BGP.IPv6Address != "" || n.Spec.BGP.ASNumber != nil {
		t.Errorf("node %+v", n.Spec.BGP)
	}
	if len(n.Spec.Addresses) != 1 || n.Spec.Addresses[0] != (api.NodeAddress{Address: "10.0.0.1/24", Type: api.AddressCalicoNodeIP}) {
		t.Errorf("addresses %+v", n.Spec.Addresses)
	}
	v4 := b.get(t, api.KindIPPool, DefaultIPv4Pool).(*api.IPPool).Spec
	if v4.CIDR != "192.168.0.0/16" || v4.IPIPMode != "Always" || v4.BlockSize != 26 || !v4.NATOutgoing || v4.NodeSelector != "all()" {
		t.Errorf("IPv4 pool %+v", v4)
	}
	v6 := b.get(t, api.KindIPPool, DefaultIPv6Pool).(*api.IPPool).Spec
	if p := netip.MustParsePrefix(v6.CIDR); p.Bits() != 48 || p.Addr().As16()[0] != 0xfd || v6.IPIPMode != "Never" || v6.NATOutgoing {
		t.Errorf("IPv6 pool %+v", v6)
	}
	b.get(t, api.KindFelixConfiguration, "default")
	b.get(t, api.KindClusterInformation, "default")
	b.get(t, api.KindTier, "default")

	// IPIP needs an address in the pool, Calico's VXLAN none.
	tunnel := netip.MustParseAddr(n.Spec.BGP.IPv4IPIPTunnelAddr)
	if !netip.MustParsePrefix(v4.CIDR).Contains(tunnel) || n.Spec.IPv4VXLANTunnelAddr != "" || n.Spec.VXLANTunnelMACAddr != "" {
		t.Errorf("tunnel addresses %+v", n.Spec)
	}

	// A restart changes nothing.
	if again := b.start(t); again.ResourceVersion != n.ResourceVersion {
		t.Errorf("restart wrote the node: %+v, was %+v", again.Spec, n.Spec)
	}

	// The pool turns to VXLAN: the one address goes, the other comes.
	pool := b.get(t, api.KindIPPool, DefaultIPv4Pool).(*api.IPPool)
	pool.Spec.IPIPMode, pool.Spec.VXLANMode = "Never", "CrossSubnet"
	if _, err := b.client.Update(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	n = b.start(t)
	if n.Spec.BGP.IPv4IPIPTunnelAddr != "" || n.Spec.IPv4VXLANTunnelAddr == "" ||
		n.Spec.VXLANTunnelMACAddr != desired.VXLANMAC("host-a", false).String() {
		t.Errorf("tunnel addresses %+v", n.Spec)
	}
	got, err := ipam.New(b.client).AddressesOf(t.Context(), ipam.TunnelHandle("host-a", ipam.IPIP))
	if err != nil || len(got) != 0 {
		t.Errorf("still has %v, %v", got, err)
	}

	// The pool is for other nodes, then for this one again.
	pool = b.get(t, api.KindIPPool, DefaultIPv4Pool).(*api.IPPool)
	pool.Spec.NodeSelector = "rack == 'a'"
	if _, err := b.client.Update(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	if n = b.start(t); n.Spec.IPv4VXLANTunnelAddr != "" {
		t.Errorf("tunnel address of a pool that is not for the node: %+v", n.Spec)
	}
	n.Labels = map[string]string{"rack": "a"}
	if _, err := b.client.Update(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	if n = b.start(t); n.Spec.IPv4VXLANTunnelAddr == "" {
		t.Errorf("no tunnel address: %+v", n.Spec)
	}
}

func TestStartupKeepsWhatOthersWrote(t *testing.T) {
	b := newBench(t)
	n := api.NewNode()
	n.Name = "n1"
	n.Labels = map[string]string{"rack": "r1"}
	n.Spec.BGP = &api.NodeBGPSpec{IPv4Address: "10.9.9.9/24", IPv6Address: "fd00::9/64", RouteReflectorClusterID: "244.0.0.1"}
	n.Spec.Addresses = []api.NodeAddress{{Address: "10.1.1.1", Type: api.AddressInternalIP}, {Address: "10.9.9.8/24", Type: api.AddressCalicoNodeIP}}
	n.Spec.OrchRefs = []api.OrchRef{{NodeName: "m1", Orchestrator: "mesos"}}
	if _, err := b.client.Create(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	n = b.start(t, "NODENAME=n1", "AS=65001", "CALICO_K8S_NODE_REF=k1", "NO_DEFAULT_POOLS=true")
	// IP is not set: the address that the node has stays.
	if s := n.Spec.BGP; s.IPv4Address != "10.9.9.9/24" || s.IPv6Address != "fd00::9/64" || s.RouteReflectorClusterID != "244.0.0.1" || *s.ASNumber != 65001 {
		t.Errorf("bgp %+v", s)
	}
	if n.Labels["rack"] != "r1" || len(n.Spec.OrchRefs) != 2 || len(n.Spec.Addresses) != 3 {
		t.Errorf("node %+v", n)
	}
	pools, err := b.client.List(t.Context(), api.KindIPPool, "")
	if err != nil || len(pools) != 0 {
		t.Errorf("pools %v, %v", pools, err)
	}

	// autodetect looks again, none takes away.
	n = b.start(t, "NODENAME=n1", "IP=autodetect", "IP6=none", "NO_DEFAULT_POOLS=true")
	if s := n.Spec.BGP; s.IPv4Address != "10.0.0.1/24" || s.IPv6Address != "" {
		t.Errorf("bgp %+v", s)
	}
}

func TestStartupAddresses(t *testing.T) {
	b := newBench(t)
	b.namespace.AddAddress(t, "eth0", "10.5.0.1/16")
	b.namespace.AddAddress(t, "eth0", "fd05::1/64")
	n := b.start(t, "IP=10.5.0.1", "IP6=autodetect", "NO_DEFAULT_POOLS=true")
	if s := n.Spec.BGP; s.IPv4Address != "10.5.0.1/16" || s.IPv6Address != "fd05::1/64" {
		t.Errorf("bgp %+v", s)
	}

	// With autodetect, a node follows its host.
	s := b.startup(t, "IP=autodetect", "IP_AUTODETECTION_METHOD=cidr=10.6.0.0/16", "NO_DEFAULT_POOLS=true")
	if _, err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "cidr=10.6.0.0/16") {
		t.Errorf("found an address that is not there: %v", err)
	}
	b.namespace.AddAddress(t, "eth0", "10.6.0.1/24")
	addresses, err := s.Refresh(t.Context(), false)
	if err != nil || len(addresses) != 2 || addresses[0].Address != "10.6.0.1/24" || addresses[0].Interface != "eth0" {
		t.Errorf("got %+v, %v", addresses, err)
	}
	if got := b.node(t, "host-a").Spec.BGP.IPv4Address; got != "10.6.0.1/24" {
		t.Errorf("node has %s", got)
	}

	// A node that was deleted comes back only when it is asked for: see Keeper.
	if _, err := b.client.Delete(t.Context(), api.Key{Kind: api.KindNode, Name: "host-a"}, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Refresh(t.Context(), false); err != nil {
		t.Error(err)
	}
	if _, err := b.client.Get(t.Context(), api.Key{Kind: api.KindNode, Name: "host-a"}); !errors.Is(err, datastore.ErrNotFound) {
		t.Errorf("node came back: %v", err)
	}
	keeper := NewKeeper(s, &Tunnels{Node: "host-a", Store: b.client, Allocator: ipam.New(b.client)}, addresses, slog.New(slog.DiscardHandler))
	keeper.Observe([]api.Change{{Key: api.Key{Kind: api.KindNode, Name: "host-b"}}, {Key: api.Key{Kind: api.KindNode, Name: "host-a"}}})
	if err := keeper.keep(t.Context()); err != nil {
		t.Error(err)
	}
	if got := b.node(t, "host-a").Spec.BGP.IPv4Address; got != "10.6.0.1/24" {
		t.Errorf("the node came back with %s", got)
	}
}
