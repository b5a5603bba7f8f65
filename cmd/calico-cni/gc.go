package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/ipam"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// collect removes what belongs to attachments that the runtime no longer knows:
// interfaces, endpoints and addresses of this network on this node.
func collect(cmd *skel.CmdArgs) error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	conf, err := loadConf(cmd.StdinData)
	if err != nil {
		return err
	}
	s, err := open(ctx, conf)
	if err != nil {
		return err
	}
	defer s.close()
	stale := staleIn(conf)
	err = removeMarked(func(network, containerID, ifname string) bool {
		return network == conf.Name && stale(containerID, ifname)
	})
	if err != nil {
		return err // addresses must not be given back while they are in use
	}
	err = s.collectEndpoints(ctx, stale)
	if conf.delegated() {
		return errors.Join(err, invoke.DelegateGC(ctx, conf.IPAM.Type, cmd.StdinData, nil))
	}
	return errors.Join(err, s.collectAddresses(ctx, stale))
}

// staleIn returns whether the runtime no longer knows an attachment.
func staleIn(conf *netConf) func(containerID, ifname string) bool {
	return func(containerID, ifname string) bool {
		return !slices.Contains(conf.ValidAttachments, types.GCAttachment{ContainerID: containerID, IfName: ifname})
	}
}

func (s *session) collectEndpoints(ctx context.Context, stale func(containerID, ifname string) bool) error {
	all, err := s.store.List(ctx, api.KindWorkloadEndpoint, "")
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range all {
		w, ok := r.(*api.WorkloadEndpoint)
		if !ok || w.Spec.Node != s.conf.Nodename || w.Spec.ContainerID == "" || !slices.Contains(w.Spec.Profiles, s.conf.Name) {
			continue
		}
		if w.Spec.Orchestrator != "cni" && w.Spec.Orchestrator != "k8s" || !stale(w.Spec.ContainerID, w.Spec.Endpoint) {
			continue
		}
		a := &attachment{conf: s.conf, containerID: w.Spec.ContainerID, ifname: w.Spec.Endpoint, endpoint: api.KeyOf(w)}
		if err := s.removeEndpoint(ctx, a); err != nil {
			errs = append(errs, fmt.Errorf("remove endpoint: %w", err))
		}
	}
	return errors.Join(errs...)
}

func (s *session) collectAddresses(ctx context.Context, stale func(containerID, ifname string) bool) error {
	prefix := handleOf(s.conf.Name, "")
	handles, err := s.ipam.Handles(ctx, prefix)
	if err != nil {
		return err
	}
	var errs []error
	for _, handle := range handles {
		containerID := strings.TrimPrefix(handle, prefix)
		_, err := s.ipam.ReleaseHandle(ctx, handle, func(as ipam.Assignment) bool {
			// Addresses that do not say their interface are Calico's plugin's,
			// which has one interface a container.
			ifname, ok := as.Attributes[ipam.AttributeInterface]
			if !ok {
				ifname = "eth0"
			}
			return as.Attributes[ipam.AttributeNode] == s.conf.Nodename && stale(containerID, ifname)
		})
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
