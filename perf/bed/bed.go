// Package bed is one host whose resources reach the kernel as they do in the daemon:
// compiled, computed, and made so by the sinks. What is measured on it is what runs on
// a node.
package bed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/dataplane"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/control/host"
	kernel "calico-xdp/pkg/maps"
	"calico-xdp/pkg/policy"
	"calico-xdp/tools/testbed"
)

// Bed is a host, its resources, and the sinks that follow them.
type Bed struct {
	*testbed.Host
	Node      string // the host's name in the resources
	Resources *api.Store

	compiler  *policy.Compiler
	config    desired.Config
	network   *host.Network
	dataplane *dataplane.Dataplane
	made      atomic.Int32
}

// Options are what beds differ in.
type Options struct {
	XDP bool // attach the XDP program to the uplink
}

// New turns a host into a node. It has no resources yet.
func New(t testbed.T, h *testbed.Host, node string, o Options) *Bed {
	t.Helper()
	b := &Bed{
		Host: h, Node: node, Resources: api.NewStore(), compiler: policy.NewCompiler(node),
		config: desired.Config{Felix: map[string]string{"defaultendpointtohostaction": "Return"}},
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	pins := filepath.Join("/sys/fs/bpf", "perf-"+h.Name)
	t.Cleanup(func() {
		if err := b.close(pins); err != nil {
			t.Logf("bed %s: %v", node, err)
		}
	})
	err := h.Do(func() (err error) {
		if b.network, err = host.New(host.Options{}, log); err != nil {
			return err
		}
		b.dataplane, err = dataplane.New(dataplane.Options{PinDir: pins, XDP: o.XDP}, log)
		return err
	})
	if err != nil {
		t.Fatalf("bed %s: %v", node, err)
	}
	return b
}

// close takes everything away that there is.
func (b *Bed) close(pins string) error {
	var errs []error
	if b.dataplane != nil {
		errs = append(errs, b.dataplane.Close())
	}
	if b.network != nil {
		errs = append(errs, b.network.Close())
	}
	return errors.Join(append(errs, b.Do(func() error {
		_, err := dataplane.Detach(pins)
		return err
	}))...)
}

// Maps are the dataplane's tables.
func (b *Bed) Maps() *kernel.Maps { return b.dataplane.Maps() }

// Apply puts resources into the store; Sync makes them so.
func (b *Bed) Apply(resources ...api.Resource) {
	for _, r := range resources {
		api.Default(r)
		b.Resources.Apply(api.Change{Key: api.KeyOf(r), Resource: r})
	}
}

// Sync brings the kernel to where the resources are. Anything in them that the
// product would complain about is an error here.
func (b *Bed) Sync() error {
	tables := b.compiler.Compile(b.Resources, nil)
	return b.Do(func() error {
		links, err := b.network.Links()
		if err != nil {
			return err
		}
		want := desired.Compute(desired.Input{
			Node: b.Node, Config: b.config, Resources: b.Resources, Links: links, Policy: tables,
		})
		for _, p := range want.Problems {
			err = errors.Join(err, fmt.Errorf("%v: %w", p.Object, p.Err))
		}
		ctx := context.Background()
		return errors.Join(err, b.dataplane.Ensure(ctx, want), b.network.Ensure(ctx, want),
			b.network.Prune(ctx, want), b.dataplane.Prune(ctx, want))
	})
}

// Workload attaches a workload to the host and writes its endpoint, with these labels
// and the profile that allows everything.
func (b *Bed) Workload(t testbed.T, name string, labels map[string]string, addresses ...netip.Addr) *testbed.Workload {
	t.Helper()
	w := b.AddWorkload(t, fmt.Sprintf("cali%d", b.made.Add(1)), addresses...)
	e := api.NewWorkloadEndpoint()
	e.Namespace, e.Name, e.Labels = "default", name, labels
	e.Spec.Node, e.Spec.InterfaceName, e.Spec.MAC = b.Node, w.Interface, w.MAC.String()
	e.Spec.Profiles = []string{OpenProfile}
	for _, a := range addresses {
		e.Spec.IPNetworks = append(e.Spec.IPNetworks, netip.PrefixFrom(a, a.BitLen()).String())
	}
	b.Apply(e)
	return w
}
