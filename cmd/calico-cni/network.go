package main

import (
	"cmp"
	"context"
	"errors"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"
	"calico-xdp/pkg/nodeapi"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

const (
	// commandTime bounds the datastore's part of a command.
	commandTime = 30 * time.Second
	// statusTime bounds STATUS, which a runtime calls often.
	statusTime = 2 * time.Second
	// nodeRetry is the pause before a node that did not answer is asked again.
	nodeRetry = 200 * time.Millisecond
	// fallbackMTU fits into every encapsulation on an Ethernet.
	fallbackMTU = 1450
)

func networkFuncs() skel.CNIFuncs {
	return skel.CNIFuncs{
		Add:    func(c *skel.CmdArgs) error { return asCNI(add(c)) },
		Del:    func(c *skel.CmdArgs) error { return asCNI(del(c)) },
		Check:  func(c *skel.CmdArgs) error { return asCNI(check(c)) },
		GC:     func(c *skel.CmdArgs) error { return asCNI(collect(c)) },
		Status: func(c *skel.CmdArgs) error { return asCNI(status(c)) },
	}
}

// begin reads the configuration and opens what a command works with.
func begin(ctx context.Context, cmd *skel.CmdArgs) (*session, *attachment, error) {
	conf, err := loadConf(cmd.StdinData)
	if err != nil {
		return nil, nil, err
	}
	a, err := newAttachment(cmd, conf)
	if err != nil {
		return nil, nil, err
	}
	s, err := open(ctx, conf)
	return s, a, err
}

// add attaches the container. It returns when the node enforces the endpoint's
// policy, so that the container never runs without; if that does not come
// about, everything is undone.
func add(cmd *skel.CmdArgs) error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	s, a, err := begin(ctx, cmd)
	if err != nil {
		return err
	}
	defer s.close()
	mac, err := s.conf.requestedMAC(a.args)
	if err != nil {
		return err
	}
	if err := s.ready(ctx); err != nil {
		return err
	}
	if err := a.vacant(); err != nil {
		return err // nothing of what is there is ours to undo
	}
	result, err := s.attach(ctx, a, mac, cmd.StdinData)
	if err != nil {
		if undone := s.detach(a, cmd.StdinData); undone != nil {
			s.log.Warn("could not undo all of a failed ADD; DEL will", "container", a.containerID, "error", undone)
		}
		return err
	}
	return types.PrintResult(result, s.conf.CNIVersion)
}

func (s *session) attach(ctx context.Context, a *attachment, mac net.HardwareAddr, stdin []byte) (*types100.Result, error) {
	mtu := s.mtu(ctx)
	if err := s.ensureProfile(ctx); err != nil {
		return nil, err
	}
	addrs, err := s.assign(ctx, a, stdin)
	if err != nil {
		return nil, err
	}
	mac, err = a.plug(mac, mtu, addrs)
	if err != nil {
		return nil, err
	}
	_, revision, err := s.writeEndpoint(ctx, a, mac, addrs)
	if err != nil {
		return nil, err
	}
	if err := s.waitEnforced(a, revision); err != nil {
		return nil, err
	}
	return result(a, mac, mtu, addrs), nil
}

// waitEnforced returns when the node enforces the endpoint's policy. A node that
// is just being restarted is waited for.
func (s *session) waitEnforced(a *attachment, revision int64) error {
	ctx, cancel := context.WithTimeout(context.Background(), s.conf.policyTimeout())
	defer cancel()
	for {
		err := s.node.WaitEnforced(ctx, a.endpoint, revision)
		if refused := (*nodeapi.NotEnforcedError)(nil); err == nil || errors.As(err, &refused) {
			return err
		}
		if !sleep(ctx, nodeRetry) {
			return err
		}
	}
}

// detach removes all that ADD makes, whatever of it is there. The interface goes
// first: once an address is given back someone else may have it.
func (s *session) detach(a *attachment, stdin []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	if err := a.unplug(); err != nil {
		return err
	}
	if err := s.removeEndpoint(ctx, a); err != nil {
		return err
	}
	return s.release(ctx, a, stdin)
}

// mtu returns the MTU of a new interface: the configured one, else what the
// node says. A node that has just started knows it a moment later.
func (s *session) mtu(ctx context.Context) int {
	if s.conf.MTU > 0 {
		return s.conf.MTU
	}
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	for {
		state, err := s.node.Status(ctx)
		if err == nil && state.WorkloadMTU > 0 {
			return state.WorkloadMTU
		}
		if err == nil && sleep(ctx, nodeRetry) {
			continue
		}
		mtu := writtenMTU(s.conf.NodenameFile)
		s.log.Info("the node does not say which MTU to use", "error", err, "mtu", mtu)
		return mtu
	}
}

// writtenMTU is what calico-node, ours or Calico's, has last written down beside the
// node's name.
func writtenMTU(nodenameFile string) int {
	b, err := os.ReadFile(filepath.Join(filepath.Dir(cmp.Or(nodenameFile, defaultNodenameFile)), "mtu"))
	if mtu, bad := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && bad == nil && mtu > 0 && mtu <= math.MaxUint16 {
		return mtu
	}
	return fallbackMTU
}

// sleep returns false if ctx ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// result describes the attachment for the runtime and for the plugins after
// ours.
func result(a *attachment, mac net.HardwareAddr, mtu int, addrs []netip.Addr) *types100.Result {
	r := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{
			{Name: a.hostName, Mac: hostMAC.String(), Mtu: mtu},
			{Name: a.ifname, Mac: mac.String(), Mtu: mtu, Sandbox: a.netns},
		},
	}
	for _, addr := range addrs {
		hop, _ := gateway(addr)
		r.IPs = append(r.IPs, &types100.IPConfig{Interface: new(1), Address: *single(addr), Gateway: hop.AsSlice()})
	}
	for _, addr := range families(addrs) {
		hop, network := gateway(addr)
		r.Routes = append(r.Routes, &types.Route{Dst: *ipNet(network), GW: hop.AsSlice()})
	}
	return r
}

// del removes the attachment. Nothing of it has to be there.
func del(cmd *skel.CmdArgs) error {
	s, a, err := begin(context.Background(), cmd)
	if err != nil {
		return err
	}
	defer s.close()
	// The interface goes in any case: the container does.
	if err := a.unplug(); err != nil {
		return err
	}
	if err := s.readyWithin(commandTime); err != nil {
		return err
	}
	return s.detach(a, cmd.StdinData)
}

// status tells whether an ADD could succeed now.
func status(cmd *skel.CmdArgs) error {
	ctx, cancel := context.WithTimeout(context.Background(), statusTime)
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
	state, err := s.node.Status(ctx)
	if err != nil {
		return fail(codeNotAvailable, "%v", err)
	}
	if !state.InSync {
		return fail(codeNotAvailable, "%s", strings.TrimSuffix("calico-node has not seen the whole datastore yet: "+state.Error, ": "))
	}
	return s.reachable(ctx)
}

// reachable tells whether the datastore answers and may be changed.
func (s *session) reachable(ctx context.Context) error {
	if err := s.ready(ctx); err != nil {
		return fail(codeNotAvailable, "%v", err)
	}
	return nil
}

func (s *session) readyWithin(limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return s.ready(ctx)
}

// ready returns an error while the datastore is locked.
func (s *session) ready(ctx context.Context) error {
	r, err := s.store.Get(ctx, api.Key{Kind: api.KindClusterInformation, Name: "default"})
	if errors.Is(err, datastore.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if api.Locked(r) {
		return types.NewError(types.ErrTryAgainLater, "the datastore is locked (ClusterInformation, datastoreReady: false)", "")
	}
	return nil
}
