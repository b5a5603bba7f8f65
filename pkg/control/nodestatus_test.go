package control

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/bgp"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/datastore"
	"calico-xdp/pkg/nodeapi"
	"calico-xdp/tools/testbed"

	"github.com/google/go-cmp/cmp"
	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

// spoken is a speaker that tells always the same.
type spoken struct{}

func (spoken) Status() ([]bgp.PeerStatus, error) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return []bgp.PeerStatus{
		{Address: netip.MustParseAddr("10.0.0.2"), Kind: desired.PeerMesh, State: "up", Since: at, Info: "Established"},
		{Address: netip.MustParseAddr("10.0.0.9"), Kind: desired.PeerGlobal, State: "start", Since: at, Info: "Idle BGP Error: Bad peer AS"},
		{Address: netip.MustParseAddr("10.0.0.10"), Kind: desired.PeerMesh, State: "start", Since: at, Info: "Passive Socket: the peer does not call"},
		{Address: netip.MustParseAddr("fd00::2"), Kind: desired.PeerNode, State: "up", Since: at, Info: "Established"},
	}, nil
}

func (spoken) Routes() (received, advertised []bgp.Route, err error) {
	route := func(prefix, hop string, best bool) bgp.Route {
		a := netip.MustParseAddr(hop)
		return bgp.Route{Prefix: netip.MustParsePrefix(prefix), NextHop: a, Peer: a, Best: best}
	}
	return []bgp.Route{route("10.65.2.0/26", "10.0.0.2", true), route("fd65::/122", "fd00::2", false)}, nil, nil
}

func TestReporter(t *testing.T) {
	etcd := testbed.StartEtcd(t)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	client, err := datastore.Open(t.Context(), datastore.Config{Endpoints: []string{etcd.Endpoint()}}, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	published := newPublished(Options{Logger: log})
	published.last.state = &desired.State{BGP: desired.BGP{Enabled: true, AS: 64512, RouterID: netip.MustParseAddr("10.0.0.1")}}
	r := NewReporter(&Node{
		Published: published, Speaker: spoken{},
		Self: nodeapi.Status{Node: "a", Version: "v1", Started: time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)},
	}, client, log)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { r.Run(ctx); close(ended) }()
	defer func() { stop(); <-ended }()

	period := uint32(3600)
	s := v3.NewCalicoNodeStatus()
	s.Name = "status-a"
	s.Spec = v3.CalicoNodeStatusSpec{
		Node: "a", UpdatePeriodSeconds: &period,
		Classes: []v3.NodeStatusClassType{v3.NodeStatusClassTypeAgent, v3.NodeStatusClassTypeBGP, v3.NodeStatusClassTypeRoutes},
	}
	other := s.DeepCopy()
	other.Name, other.Spec.Node = "status-b", "b"
	for _, x := range []*v3.CalicoNodeStatus{s, other} {
		created, err := client.Create(t.Context(), x)
		if err != nil {
			t.Fatal(err)
		}
		r.Observe([]api.Change{{Key: api.KeyOf(x), Resource: created}})
	}
	var got *v3.CalicoNodeStatus
	written := testbed.Eventually(func() bool {
		stored, err := client.Get(t.Context(), api.KeyOf(s))
		if err != nil {
			t.Fatal(err)
		}
		got = stored.(*v3.CalicoNodeStatus)
		return !got.Status.LastUpdated.IsZero()
	})
	if !written {
		t.Fatal("no status was written")
	}
	daemon := v3.BGPDaemonStatus{State: v3.BGPDaemonStateReady, Version: "v1", RouterID: "10.0.0.1", LastBootTime: "2026-01-02 03:00:00"}
	const since = "2026-01-02 03:04:05"
	want := v3.CalicoNodeStatusStatus{
		LastUpdated: got.Status.LastUpdated,
		Agent:       v3.CalicoNodeAgentStatus{BIRDV4: daemon, BIRDV6: daemon},
		BGP: v3.CalicoNodeBGPStatus{
			NumberEstablishedV4: 1, NumberNotEstablishedV4: 2, NumberEstablishedV6: 1,
			PeersV4: []v3.CalicoNodePeer{
				{PeerIP: "10.0.0.2", Type: v3.BGPPeerTypeNodeMesh, State: v3.BGPSessionStateEstablished, Since: since},
				{PeerIP: "10.0.0.9", Type: v3.BGPPeerTypeGlobalPeer, State: v3.BGPSessionStateIdle, Since: since},
				{PeerIP: "10.0.0.10", Type: v3.BGPPeerTypeNodeMesh, State: v3.BGPSessionStateActive, Since: since},
			},
			PeersV6: []v3.CalicoNodePeer{{PeerIP: "fd00::2", Type: v3.BGPPeerTypeNodePeer, State: v3.BGPSessionStateEstablished, Since: since}},
		},
		Routes: v3.CalicoNodeBGPRouteStatus{
			RoutesV4: []v3.CalicoNodeRoute{{
				Type: v3.RouteTypeFIB, Destination: "10.65.2.0/26", Gateway: "10.0.0.2",
				LearnedFrom: v3.CalicoNodeRouteLearnedFrom{SourceType: v3.RouteSourceTypeNodeMesh, PeerIP: "10.0.0.2"},
			}},
			RoutesV6: []v3.CalicoNodeRoute{{
				Type: v3.RouteTypeRIB, Destination: "fd65::/122", Gateway: "fd00::2",
				LearnedFrom: v3.CalicoNodeRouteLearnedFrom{SourceType: v3.RouteSourceTypeBGPPeer, PeerIP: "fd00::2"},
			}},
		},
	}
	if diff := cmp.Diff(want, got.Status); diff != "" {
		t.Error(diff)
	}
	stored, err := client.Get(t.Context(), api.KeyOf(other))
	if err != nil || !stored.(*v3.CalicoNodeStatus).Status.LastUpdated.IsZero() {
		t.Errorf("another node's status: %v, %v", stored, err)
	}
}
