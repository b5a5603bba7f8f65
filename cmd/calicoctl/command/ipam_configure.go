package command

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"
	"calico-xdp/pkg/ipam"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func newIPAMConfigure(a *app) *cobra.Command {
	var strict, blocks, persistence string
	cmd := &cobra.Command{
		Use:   "configure",
		Short: "Change how addresses are handed out",
		Long: `Change how addresses are handed out in the whole cluster.

With strict affinity a node uses no addresses but those of its own blocks.`,
		Example: "  calicoctl ipam configure --strictaffinity=true\n  calicoctl ipam configure --max-blocks-per-host=4",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var changes []func(*api.IPAMConfig)
			var said []string
			set := func(what string, value any, change func(*api.IPAMConfig)) {
				changes, said = append(changes, change), append(said, fmt.Sprintf("Successfully set %s to: %v", what, value))
			}
			if strict != "" {
				on, err := strconv.ParseBool(strict)
				if err != nil {
					return fmt.Errorf("--strictaffinity: %q is none of true, false", strict)
				}
				set("StrictAffinity", on, func(c *api.IPAMConfig) { c.StrictAffinity = on })
			}
			if blocks != "" {
				n, err := strconv.ParseInt(blocks, 10, 32)
				if err != nil || n < 0 {
					return fmt.Errorf("--max-blocks-per-host: %q is not a number of blocks", blocks)
				}
				set("MaxBlocksPerHost", n, func(c *api.IPAMConfig) { c.MaxBlocksPerHost = int(n) })
			}
			if persistence != "" {
				if persistence != "Enabled" && persistence != "Disabled" {
					return fmt.Errorf("--kubevirt-ip-persistence: %q is none of Enabled, Disabled", persistence)
				}
				set("KubeVirtVMAddressPersistence", persistence, func(c *api.IPAMConfig) { c.KubeVirtVMAddressPersistence = persistence })
			}
			if len(changes) == 0 {
				return usageError{errors.New("nothing to change: give at least one option"), cmd.CommandPath()}
			}
			if err := a.configureIPAM(cmd.Context(), changes); err != nil {
				return err
			}
			for _, line := range said {
				fmt.Fprintln(a.Out, line)
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&strict, "strictaffinity", "", "true: no addresses from other nodes' blocks; false: they may be borrowed")
	flags.StringVar(&blocks, "max-blocks-per-host", "", "how many blocks a node may own in each family; 0: the built-in limit, 20")
	flags.StringVar(&persistence, "kubevirt-ip-persistence", "", "Enabled or Disabled: whether KubeVirt's machines keep their addresses")
	return cmd
}

func (a *app) configureIPAM(ctx context.Context, changes []func(*api.IPAMConfig)) error {
	s, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	allocator := ipam.New(s.Client)
	for {
		c, err := allocator.Config(ctx)
		if err != nil {
			return err
		}
		for _, change := range changes {
			change(c)
		}
		err = allocator.SetConfig(ctx, c)
		if !errors.Is(err, datastore.ErrConflict) && !errors.Is(err, datastore.ErrExists) {
			return err
		}
	}
}

func newIPAMSplit(a *app) *cobra.Command {
	var cidr, name string
	cmd := &cobra.Command{
		Use:   "split NUMBER (--cidr=CIDR | --name=NAME)",
		Short: "Replace a pool by several smaller ones",
		Long: `Replace a pool by NUMBER pools of equal size that together are the same addresses;
NUMBER is a power of two. Blocks and addresses stay whose they are. The datastore
has to be locked (calicoctl datastore migrate lock), lest a node claims a block
meanwhile.`,
		Example: "  calicoctl ipam split 2 --cidr=172.16.0.0/12\n  calicoctl ipam split 4 --name=pool-1",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("into how many pools?"), cmd.CommandPath()}
			}
			if cidr == "" && name == "" {
				return usageError{errors.New("name the pool with --cidr or --name"), cmd.CommandPath()}
			}
			n, err := strconv.Atoi(args[0])
			if err != nil || n < 2 || n&(n-1) != 0 {
				return fmt.Errorf("%q is not a power of two, from 2 on", args[0])
			}
			return a.splitPool(cmd.Context(), cidr, name, n)
		},
	}
	cmd.Flags().StringVar(&cidr, "cidr", "", "the pool with this CIDR")
	cmd.Flags().StringVar(&name, "name", "", "the pool of this name")
	return cmd
}

func (a *app) splitPool(ctx context.Context, cidr, name string, n int) error {
	s, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	cluster, err := s.Get(ctx, clusterInfoKey())
	if err != nil && !errors.Is(err, datastore.ErrNotFound) {
		return err
	}
	if !api.Locked(cluster) {
		return errors.New("the datastore is not locked: run 'calicoctl datastore migrate lock' first")
	}
	pool, err := s.findPool(ctx, cidr, name)
	if err != nil {
		return err
	}
	parts, err := splitPrefix(pool, n)
	if err != nil {
		return err
	}
	pool.Spec.Disabled = true
	if r, err := s.Update(ctx, pool); err != nil {
		return explain(api.KeyOf(pool), err)
	} else if pool, _ = r.(*api.IPPool); pool == nil {
		return errors.New("the pool is not one any more")
	}
	// One that died half-way left some of the pools: it goes on with the rest.
	var made []*api.IPPool
	for i, part := range parts {
		p := pool.DeepCopy()
		p.UID, p.ResourceVersion, p.CreationTimestamp = "", "", metav1.Time{}
		p.Name = partName(pool.Name, i)
		p.Spec.CIDR, p.Spec.Disabled = part.String(), false
		if _, err := s.Create(ctx, p); err != nil && !errors.Is(err, datastore.ErrExists) {
			return explain(api.KeyOf(p), err)
		}
		made = append(made, p)
	}
	if _, err := s.Delete(ctx, api.KeyOf(pool), ""); err != nil {
		return explain(api.KeyOf(pool), err)
	}
	fmt.Fprintf(a.Out, "IP pool %s is now %d pools:\n", pool.Name, len(made))
	for _, p := range made {
		fmt.Fprintf(a.Out, "  %s with CIDR %s\n", p.Name, p.Spec.CIDR)
	}
	fmt.Fprintln(a.Out, "Unlock the datastore with 'calicoctl datastore migrate unlock'.")
	return nil
}

// partName returns the name of the i-th part of a pool, as Calico names it.
func partName(pool string, i int) string {
	const longest = 253
	suffix := "-" + strconv.Itoa(i)
	if room := longest - len("split-") - len(suffix); len(pool) > room {
		pool = pool[:room]
	}
	return "split-" + pool + suffix
}

func (s store) findPool(ctx context.Context, cidr, name string) (*api.IPPool, error) {
	if name != "" {
		key := api.Key{Kind: api.KindIPPool, Name: name}
		r, err := s.Get(ctx, key)
		if err != nil {
			return nil, explain(key, err)
		}
		if p, ok := r.(*api.IPPool); ok && (cidr == "" || p.Spec.CIDR == cidr) {
			return p, nil
		}
		return nil, fmt.Errorf("%s has another CIDR than %s", key, cidr)
	}
	all, err := s.List(ctx, api.KindIPPool, "")
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		if p, ok := r.(*api.IPPool); ok && p.Spec.CIDR == cidr {
			return p, nil
		}
	}
	return nil, fmt.Errorf("no IP pool has the CIDR %s", cidr)
}

// splitPrefix cuts a pool into n networks, none of them smaller than a block.
func splitPrefix(p *api.IPPool, n int) ([]netip.Prefix, error) {
	whole, err := netip.ParsePrefix(p.Spec.CIDR)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", api.KeyOf(p), err)
	}
	whole = whole.Masked()
	bits := whole.Bits()
	for size := n; size > 1; size /= 2 {
		bits++
	}
	if bits > p.Spec.BlockSize {
		return nil, fmt.Errorf("%s: %s has not enough blocks of /%d for %d pools", api.KeyOf(p), p.Spec.CIDR, p.Spec.BlockSize, n)
	}
	out := []netip.Prefix{netip.PrefixFrom(whole.Addr(), bits)}
	for len(out) < n {
		out = append(out, netip.PrefixFrom(lastOf(out[len(out)-1]).Next(), bits))
	}
	return out, nil
}
