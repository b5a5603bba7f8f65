package control

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"
	"calico-xdp/pkg/nodeapi"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Reporter fills the status of this node's CalicoNodeStatus resources, each as often
// as it asks for.
type Reporter struct {
	node   *Node
	store  Store
	logger *slog.Logger
	due    chan struct{}

	mu       sync.Mutex
	asked    map[api.Key]*v3.CalicoNodeStatus // as last seen
	reported map[api.Key]time.Time
}

// NewReporter returns a reporter that does nothing until it runs.
func NewReporter(n *Node, store Store, logger *slog.Logger) *Reporter {
	return &Reporter{
		node: n, store: store, logger: logger, due: make(chan struct{}, 1),
		asked: make(map[api.Key]*v3.CalicoNodeStatus), reported: make(map[api.Key]time.Time),
	}
}

// Observe is told of the resources that changed.
func (r *Reporter) Observe(changes []api.Change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range changes {
		if c.Key.Kind != api.KindCalicoNodeStatus {
			continue
		}
		s, ok := c.Resource.(*v3.CalicoNodeStatus)
		if !ok || s.Spec.Node != r.node.Self.Node {
			delete(r.asked, c.Key)
			delete(r.reported, c.Key)
			continue
		}
		if old := r.asked[c.Key]; old == nil || !sameRequest(old, s) {
			delete(r.reported, c.Key) // at once
			select {
			case r.due <- struct{}{}:
			default:
			}
		}
		r.asked[c.Key] = s
	}
}

func sameRequest(a, b *v3.CalicoNodeStatus) bool {
	return slices.Equal(a.Spec.Classes, b.Spec.Classes) && period(a) == period(b)
}

// period returns how often a status is wanted; 0: not at all.
func period(s *v3.CalicoNodeStatus) time.Duration {
	if s.Spec.UpdatePeriodSeconds == nil {
		return 0
	}
	return time.Duration(*s.Spec.UpdatePeriodSeconds) * time.Second
}

// Run reports until ctx ends.
func (r *Reporter) Run(ctx context.Context) {
	said := make(map[api.Key]string)
	for {
		next := time.Minute
		now := time.Now()
		for key, every := range r.wanted() {
			r.mu.Lock()
			last, done := r.reported[key]
			r.mu.Unlock()
			if wait := every - now.Sub(last); done && wait > 0 {
				next = min(next, wait)
				continue
			}
			err := r.report(ctx, key)
			if ctx.Err() != nil {
				return
			}
			if err != nil && err.Error() != said[key] {
				r.logger.Warn("status cannot be written; will try again", "object", key, "error", err)
			}
			if said[key] = ""; err != nil {
				said[key] = err.Error()
			}
			r.mu.Lock()
			r.reported[key] = now
			r.mu.Unlock()
			next = min(next, every)
		}
		select {
		case <-ctx.Done():
			return
		case <-r.due:
		case <-time.After(next):
		}
	}
}

// wanted returns the resources to fill and how often.
func (r *Reporter) wanted() map[api.Key]time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[api.Key]time.Duration)
	for key, s := range r.asked {
		if p := period(s); p > 0 {
			out[key] = p
		}
	}
	return out
}

// report writes one status.
func (r *Reporter) report(ctx context.Context, key api.Key) error {
	stored, err := r.store.Get(ctx, key)
	if errors.Is(err, datastore.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	s, ok := stored.DeepCopyObject().(*v3.CalicoNodeStatus)
	if !ok || s.Spec.Node != r.node.Self.Node {
		return nil
	}
	if s.Status, err = r.status(ctx, s.Spec.Classes); err != nil {
		return err
	}
	_, err = r.store.Update(ctx, s)
	if errors.Is(err, datastore.ErrConflict) || errors.Is(err, datastore.ErrNotFound) {
		return nil // somebody has changed it: the next round is due soon
	}
	return err
}

func (r *Reporter) status(ctx context.Context, classes []v3.NodeStatusClassType) (v3.CalicoNodeStatusStatus, error) {
	out := v3.CalicoNodeStatusStatus{LastUpdated: metav1.NewTime(time.Now().UTC().Truncate(time.Second))}
	bgp, err := r.node.BGP(ctx)
	if err != nil {
		return out, err
	}
	for _, class := range classes {
		switch class {
		case v3.NodeStatusClassTypeAgent:
			daemon := v3.BGPDaemonStatus{State: v3.BGPDaemonStateNotReady}
			if bgp.Enabled {
				daemon = v3.BGPDaemonStatus{
					State: v3.BGPDaemonStateReady, Version: r.node.Self.Version, RouterID: bgp.RouterID,
					LastBootTime: r.node.Self.Started.UTC().Format(time.DateTime),
				}
			}
			out.Agent.BIRDV4, out.Agent.BIRDV6 = daemon, daemon
		case v3.NodeStatusClassTypeBGP:
			out.BGP = bgpStatus(bgp)
		case v3.NodeStatusClassTypeRoutes:
			routes, err := r.node.BGPRoutes(ctx)
			if err != nil {
				return out, err
			}
			out.Routes = routeStatus(bgp, routes)
		}
	}
	return out, nil
}

var peerTypes = map[string]v3.BGPPeerType{
	"node-to-node mesh": v3.BGPPeerTypeNodeMesh, "node specific": v3.BGPPeerTypeNodePeer, "global": v3.BGPPeerTypeGlobalPeer,
}

func bgpStatus(b nodeapi.BGPStatus) (out v3.CalicoNodeBGPStatus) {
	for _, p := range b.Peers {
		state, _, _ := strings.Cut(p.Info, " ")
		if state == "Passive" { // BIRD's word, which the resource does not have
			state = string(v3.BGPSessionStateActive)
		}
		peer := v3.CalicoNodePeer{
			PeerIP: p.Address, Type: peerTypes[p.Type], State: v3.BGPSessionState(state), Since: p.Since.UTC().Format(time.DateTime),
		}
		up, down, list := &out.NumberEstablishedV4, &out.NumberNotEstablishedV4, &out.PeersV4
		if p.Family == "v6" {
			up, down, list = &out.NumberEstablishedV6, &out.NumberNotEstablishedV6, &out.PeersV6
		}
		*list = append(*list, peer)
		if p.State == "up" {
			*up++
		} else {
			*down++
		}
	}
	return out
}

// routeStatus lists the routes of peers. FIB are those in use.
func routeStatus(b nodeapi.BGPStatus, routes nodeapi.BGPRoutes) (out v3.CalicoNodeBGPRouteStatus) {
	mesh := make(map[string]bool)
	for _, p := range b.Peers {
		mesh[p.Address] = peerTypes[p.Type] == v3.BGPPeerTypeNodeMesh
	}
	for _, r := range routes.Received {
		route := v3.CalicoNodeRoute{
			Type: v3.RouteTypeRIB, Destination: r.Prefix, Gateway: r.NextHop,
			LearnedFrom: v3.CalicoNodeRouteLearnedFrom{SourceType: v3.RouteSourceTypeBGPPeer, PeerIP: r.Peer},
		}
		if r.Best {
			route.Type = v3.RouteTypeFIB
		}
		if mesh[r.Peer] {
			route.LearnedFrom.SourceType = v3.RouteSourceTypeNodeMesh
		}
		if strings.Contains(r.Prefix, ":") {
			out.RoutesV6 = append(out.RoutesV6, route)
		} else {
			out.RoutesV4 = append(out.RoutesV4, route)
		}
	}
	return out
}
