package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

// ensureProfile makes the network's profile unless there is one: workloads of
// the same network may reach each other, and everything may go out. Users may
// change it; it is never overwritten.
func (s *session) ensureProfile(ctx context.Context) error {
	name := s.conf.Name
	_, err := s.store.Get(ctx, api.Key{Kind: api.KindProfile, Name: name})
	if !errors.Is(err, datastore.ErrNotFound) {
		return err
	}
	p := v3.NewProfile()
	p.Name = name
	p.Spec = v3.ProfileSpec{
		Ingress:       []v3.Rule{{Action: v3.Allow, Source: v3.EntityRule{Selector: fmt.Sprintf("has(%s)", name)}}},
		Egress:        []v3.Rule{{Action: v3.Allow}},
		LabelsToApply: map[string]string{name: ""},
	}
	if _, err := s.store.Create(ctx, p); err != nil && !errors.Is(err, datastore.ErrExists) {
		return fmt.Errorf("make the network's profile: %w", err)
	}
	return nil
}

// writeEndpoint writes the attachment's WorkloadEndpoint and returns the
// datastore's revision of it.
func (s *session) writeEndpoint(ctx context.Context, a *attachment, mac net.HardwareAddr, addrs []netip.Addr) (*api.WorkloadEndpoint, int64, error) {
	w := api.NewWorkloadEndpoint()
	w.Name, w.Namespace = a.endpoint.Name, a.endpoint.Namespace
	w.Labels = s.conf.labels()
	w.Spec = api.WorkloadEndpointSpec{
		Orchestrator: a.orchestrator, Node: s.conf.Nodename,
		ContainerID: a.containerID, Pod: a.pod, Endpoint: a.ifname,
		Profiles: []string{s.conf.Name}, InterfaceName: a.hostName, MAC: mac.String(),
	}
	if a.pod == "" {
		w.Spec.Workload = a.containerID
	}
	for _, addr := range addrs {
		w.Spec.IPNetworks = append(w.Spec.IPNetworks, single(addr).String())
	}
	// A record that is there already is of the same workload's former container,
	// or of an ADD that did not come to its end.
	stored, err := s.applyEndpoint(ctx, a, w, addrs)
	if err != nil {
		return nil, 0, fmt.Errorf("write endpoint: %w", err)
	}
	revision, err := strconv.ParseInt(stored.GetResourceVersion(), 10, 64)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: revision: %w", a.endpoint, err)
	}
	return stored.(*api.WorkloadEndpoint), revision, nil
}

// applyEndpoint writes the endpoint under the condition that its addresses are
// still assigned to it: whoever collects leaked addresses could have taken one for
// such as long as it had no endpoint.
func (s *session) applyEndpoint(ctx context.Context, a *attachment, w *api.WorkloadEndpoint, addrs []netip.Addr) (api.Resource, error) {
	for {
		var guards []datastore.Guard
		if !s.conf.delegated() {
			var err error
			if guards, err = s.ipam.AssignedTo(ctx, a.handle, addrs); err != nil {
				return nil, err
			}
		}
		stored, _, err := s.store.ApplyIf(ctx, w, guards...)
		if !errors.Is(err, datastore.ErrOvertaken) {
			return stored, err
		}
		// Another address of the block was assigned or released.
	}
}

// readEndpoint returns the attachment's WorkloadEndpoint; nil if there is none,
// or if it has become another container's.
func (s *session) readEndpoint(ctx context.Context, a *attachment) (*api.WorkloadEndpoint, error) {
	r, err := s.store.Get(ctx, a.endpoint)
	if errors.Is(err, datastore.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	w, ok := r.(*api.WorkloadEndpoint)
	if !ok || w.Spec.ContainerID != a.containerID {
		return nil, nil
	}
	return w, nil
}

// removeEndpoint deletes the attachment's WorkloadEndpoint. That of a newer
// container of the same workload stays, even one that comes at this moment.
func (s *session) removeEndpoint(ctx context.Context, a *attachment) error {
	for {
		w, err := s.readEndpoint(ctx, a)
		if w == nil || err != nil {
			return err
		}
		_, err = s.store.Delete(ctx, a.endpoint, w.ResourceVersion)
		if errors.Is(err, datastore.ErrNotFound) {
			return nil
		}
		if !errors.Is(err, datastore.ErrConflict) {
			return err
		}
	}
}
