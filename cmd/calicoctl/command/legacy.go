package command

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"calico-xdp/cmd/calicoctl/output"
	"calico-xdp/cmd/calicoctl/v1"
	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"

	"github.com/spf13/cobra"
)

// The commands of calicoctl before 1.0, on the resources of v3. What they print is what
// scripts of the time look for; what they were for and is no more, they say.

func legacyCommands(a *app) []*cobra.Command {
	return []*cobra.Command{
		newLegacyStatus(a), newLegacyPool(a), newLegacyProfile(a), newLegacyEndpoint(a), newLegacyBGP(a), newLegacyPeers(a, "bgppeer", false),
		newMesh(a, "bgp-node-mesh"), newDefaultAS(a, "default-node-as"), newShowNodes(a), newLegacyContainer(a),
		alias("diags", "As 'node diags'", newNodeDiags(a)), alias("checksystem", "As 'node checksystem'", newNodeCheckSystem(a)),
		gone("reset", "", "would delete all of Calico's data at once, for every host, without asking. It is not done any more: delete what you mean with 'calicoctl delete'", true),
		gone("master", "", "there is no master any more: every host runs calico-node, and they agree through etcd", true),
		gone("restart-docker-with-alternative-unix-socket", "", "nothing stands between Docker and its clients any more; there is nothing to do", false),
		gone("restart-docker-without-alternative-unix-socket", "", "nothing stands between Docker and its clients any more; there is nothing to do", false),
		gone("group", "addgroup addtogroup showgroups removegroup", "groups became profiles: 'calicoctl profile add NAME', and policies with selectors", true),
	}
}

// alias is another command under a name of 2015.
func alias(name, short string, cmd *cobra.Command) *cobra.Command {
	cmd.Use, cmd.Short = name, short
	cmd.Example = strings.ReplaceAll(cmd.Example, "calicoctl node ", "calicoctl ")
	return cmd
}

// gone is a command that has no meaning any more, and says so.
func gone(name, aliases, why string, fails bool) *cobra.Command {
	return &cobra.Command{
		Use: name, Aliases: strings.Fields(aliases), Short: "Of the past", Long: "calicoctl " + name + ": " + why + ".", Hidden: true,
		Example: "  calicoctl " + name, DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if fails {
				return fmt.Errorf("calicoctl %s: %s", name, why)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "calicoctl %s: %s.\n", name, why)
			return err
		},
	}
}

// words runs a command of 2015, whose arguments are words of which some are names.
// A shape is matched word by word: capitals stand for any word, "..." for the rest.
type words struct {
	shape string
	run   func(ctx context.Context, s store, args []string) error // those of the capitals
}

func (a *app) dispatch(cmd *cobra.Command, args []string, shapes ...words) error {
	for _, w := range shapes {
		values, ok := match(strings.Fields(w.shape), args)
		if !ok {
			continue
		}
		s, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		defer s.Close()
		return w.run(cmd.Context(), s, values)
	}
	return usageError{errors.New("this is not understood"), cmd.CommandPath()}
}

func match(shape, args []string) (values []string, ok bool) {
	for i, want := range shape {
		switch {
		case want == "...":
			return append(values, args[i:]...), i < len(args)
		case i >= len(args):
			return nil, false
		case want == strings.ToUpper(want):
			values = append(values, args[i])
		case want != args[i]:
			return nil, false
		}
	}
	return values, len(args) == len(shape)
}

// say prints one line.
func (a *app) say(format string, args ...any) error {
	_, err := fmt.Fprintf(a.Out, format+"\n", args...)
	return err
}

// centred writes a table as those of 2015.
func (a *app) centred(headings []string, rows [][]string) error {
	columns := make([]output.Column, len(headings))
	for i, h := range headings {
		columns[i] = output.Column{Heading: h, Centre: true}
	}
	slices.SortStableFunc(rows, func(x, y []string) int { return strings.Compare(x[0], y[0]) })
	return output.Bordered(a.Out, columns, rows)
}

func newLegacyStatus(a *app) *cobra.Command {
	cmd := newNodeStatus(a)
	return alias("status", "As 'node status'", cmd)
}

type poolOptions struct{ ipip, nat, v4, v6 bool }

func newLegacyPool(a *app) *cobra.Command {
	var o poolOptions
	cmd := &cobra.Command{
		Use:   "pool (add | remove) CIDR... | pool range add FIRST LAST | pool show",
		Short: "IP pools, in the grammar of 2015",
		Long: `IP pools, in the grammar of 2015. Adding a pool again gives it just the options of
this time. See also 'calicoctl get ippool'.`,
		Example: `  calicoctl pool add 192.168.0.0/16 --ipip --nat-outgoing
  calicoctl pool range add 10.1.0.0 10.1.3.255
  calicoctl pool remove 192.168.0.0/16
  calicoctl pool show --ipv4`,
		RunE: func(cmd *cobra.Command, args []string) error {
			each := func(do func(context.Context, store, string) error) func(context.Context, store, []string) error {
				return func(ctx context.Context, s store, args []string) error {
					for _, arg := range args {
						if err := do(ctx, s, arg); err != nil {
							return err
						}
					}
					return nil
				}
			}
			return a.dispatch(cmd, args,
				words{"show", func(ctx context.Context, s store, _ []string) error { return a.showPools(ctx, s, o) }},
				words{"range add FIRST LAST", func(ctx context.Context, s store, args []string) error {
					return a.addRange(ctx, s, args[0], args[1], o)
				}},
				words{"add ...", each(func(ctx context.Context, s store, cidr string) error { return a.addPool(ctx, s, cidr, o) })},
				words{"remove ...", each(a.removePool)})
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&o.ipip, "ipip", false, "IP in IP between hosts")
	flags.BoolVar(&o.nat, "nat-outgoing", false, "hide workloads behind their host where they leave the pools")
	flags.BoolVar(&o.v4, "ipv4", false, "only IPv4")
	flags.BoolVar(&o.v6, "ipv6", false, "only IPv6")
	cmd.MarkFlagsMutuallyExclusive("ipv4", "ipv6")
	return cmd
}

func (a *app) showPools(ctx context.Context, s store, o poolOptions) error {
	pools, err := s.List(ctx, api.KindIPPool, "")
	if err != nil {
		return err
	}
	for _, family := range []struct {
		name string
		is6  bool
		not  bool
	}{{"IPv4", false, o.v6}, {"IPv6", true, o.v4}} {
		if family.not {
			continue
		}
		rows := [][]string{}
		for _, r := range pools {
			spec := r.(*api.IPPool).Spec
			cidr, err := netip.ParsePrefix(spec.CIDR)
			if err != nil || cidr.Addr().Is6() != family.is6 {
				continue
			}
			var options []string
			if spec.IPIPMode != "" && spec.IPIPMode != "Never" {
				options = append(options, "ipip")
			}
			if spec.VXLANMode != "" && spec.VXLANMode != "Never" {
				options = append(options, "vxlan")
			}
			if spec.NATOutgoing {
				options = append(options, "nat-outgoing")
			}
			if spec.Disabled {
				options = append(options, "disabled")
			}
			rows = append(rows, []string{spec.CIDR, strings.Join(options, ",")})
		}
		if err := a.centred([]string{family.name + " CIDR", "Options"}, rows); err != nil {
			return err
		}
	}
	return nil
}

func parseCIDR(text string) (netip.Prefix, error) {
	cidr, err := netip.ParsePrefix(text)
	if err != nil {
		return cidr, fmt.Errorf("%q is not a network", text)
	}
	return cidr.Masked(), nil
}

// poolOf finds the pool of a CIDR, nil if there is none.
func (s store) poolOf(ctx context.Context, cidr netip.Prefix) (*api.IPPool, error) {
	pools, err := s.List(ctx, api.KindIPPool, "")
	for _, r := range pools {
		if p, err := netip.ParsePrefix(r.(*api.IPPool).Spec.CIDR); err == nil && p == cidr {
			return r.(*api.IPPool), nil
		}
	}
	return nil, err
}

func (a *app) addPool(ctx context.Context, s store, text string, o poolOptions) error {
	cidr, err := parseCIDR(text)
	if err != nil {
		return err
	}
	if o.ipip && cidr.Addr().Is6() {
		return errors.New("IP in IP carries IPv4 only")
	}
	pool, err := s.poolOf(ctx, cidr)
	if err != nil {
		return err
	}
	exists := pool != nil
	if !exists {
		pool = &api.IPPool{}
		pool.Name, pool.Spec.CIDR = v1.PoolName(cidr), cidr.String()
		if usual := map[bool]int{false: 26, true: 122}[cidr.Addr().Is6()]; cidr.Bits() > usual {
			pool.Spec.BlockSize = cidr.Bits()
		}
	}
	pool.Spec.IPIPMode = "Never"
	if o.ipip {
		pool.Spec.IPIPMode, pool.Spec.VXLANMode = "Always", "Never"
	}
	pool.Spec.NATOutgoing = o.nat
	if exists {
		_, err = s.Update(ctx, pool)
		return err
	}
	api.Default(pool)
	it := item{resource: pool, key: api.KeyOf(pool)}
	it.Source = "pool"
	if err := checkCluster(ctx, s, []item{it}, false); err != nil {
		return err
	}
	_, err = s.Create(ctx, pool)
	return err
}

func (a *app) removePool(ctx context.Context, s store, text string) error {
	cidr, err := parseCIDR(text)
	if err != nil {
		return err
	}
	pool, err := s.poolOf(ctx, cidr)
	if err != nil {
		return err
	}
	if pool == nil {
		return a.say("%s is not a configured pool.", cidr)
	}
	return explain(api.KeyOf(pool), s.delete(ctx, target{key: api.KeyOf(pool)}))
}

// addRange adds the fewest pools that make up a range of addresses.
func (a *app) addRange(ctx context.Context, s store, from, to string, o poolOptions) error {
	first, err := netip.ParseAddr(from)
	last, err2 := netip.ParseAddr(to)
	switch {
	case err != nil || err2 != nil || first.BitLen() != last.BitLen():
		return errors.New("two addresses of one family are expected")
	case !first.Less(last):
		return fmt.Errorf("%s does not come before %s", first, last)
	}
	for first.IsValid() && !last.Less(first) {
		// The largest block that begins here and does not reach beyond the last.
		bits := first.BitLen()
		for bits > 0 {
			wider := netip.PrefixFrom(first, bits-1)
			if wider.Masked().Addr() != first || last.Less(lastOf(wider)) {
				break
			}
			bits--
		}
		block := netip.PrefixFrom(first, bits)
		if err := a.addPool(ctx, s, block.String(), o); err != nil {
			return err
		}
		first = lastOf(block).Next()
	}
	return nil
}

// lastOf returns the last address of a network.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func newShowNodes(a *app) *cobra.Command {
	var detailed bool
	cmd := &cobra.Command{
		Use:     "shownodes",
		Short:   "Hosts and their workloads, in the grammar of 2015",
		Long:    "Hosts and their workloads, in the grammar of 2015. See also 'calicoctl get node'\nand 'calicoctl get workloadendpoint -A'.",
		Example: "  calicoctl shownodes\n  calicoctl shownodes --detailed",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.dispatch(cmd, nil, words{"", func(ctx context.Context, s store, _ []string) error { return a.showNodes(ctx, s, detailed) }})
		},
	}
	cmd.Flags().BoolVar(&detailed, "detailed", false, "each workload")
	return cmd
}

func (a *app) showNodes(ctx context.Context, s store, detailed bool) error {
	nodes, err := s.List(ctx, api.KindNode, "")
	if err != nil {
		return err
	}
	endpoints, err := s.workloads(ctx)
	if err != nil {
		return err
	}
	var rows [][]string
	for _, n := range nodes {
		count := make(map[string]int)
		found := false
		for _, w := range endpoints {
			if w.Spec.Node != n.GetName() {
				continue
			}
			found = true
			if detailed {
				rows = append(rows, []string{w.Spec.Node, w.Spec.Orchestrator, short(workloadOf(w)), w.Spec.Endpoint, strings.Join(w.Spec.IPNetworks, " "), w.Spec.MAC, "active"})
			}
			count[w.Spec.Orchestrator]++
		}
		switch {
		case detailed && !found:
			rows = append(rows, []string{n.GetName(), "None", "None", "None", "None", "None", "None"})
		case !detailed && !found:
			rows = append(rows, []string{n.GetName(), "N/A", "0"})
		case !detailed:
			for kind, number := range count {
				rows = append(rows, []string{n.GetName(), kind, fmt.Sprint(number)})
			}
		}
	}
	if detailed {
		return a.centred([]string{"Host", "Workload Type", "Workload ID", "Endpoint ID", "Addresses", "MAC", "State"}, rows)
	}
	return a.centred([]string{"Host", "Workload Type", "Number of workloads"}, rows)
}

func (s store) workloads(ctx context.Context) ([]*api.WorkloadEndpoint, error) {
	rs, err := s.List(ctx, api.KindWorkloadEndpoint, "")
	out := make([]*api.WorkloadEndpoint, len(rs))
	for i, r := range rs {
		out[i] = r.(*api.WorkloadEndpoint)
	}
	return out, err
}

// workloadOf is what v1 called an endpoint's workload.
func workloadOf(w *api.WorkloadEndpoint) string {
	for _, id := range []string{w.Spec.Workload, w.Spec.Pod, w.Spec.ContainerID} {
		if id != "" {
			return id
		}
	}
	return w.Name
}

func short(id string) string { return id[:min(12, len(id))] }

func newLegacyContainer(a *app) *cobra.Command {
	var force bool
	var iface string
	cmd := &cobra.Command{
		Use:   "container CONTAINER endpoint-id show",
		Short: "Containers, in the grammar of 2015",
		Long: `Containers, in the grammar of 2015. Of a container that is attached, its endpoint's
name can be shown. Containers are attached by their runtime through CNI
(calico-cni) and no more by this command.`,
		Example: "  calicoctl container 7a4c1f3b endpoint-id show",
		RunE: func(cmd *cobra.Command, args []string) error {
			not := func(context.Context, store, []string) error {
				return errors.New("calicoctl container: containers are attached by their runtime, through the CNI plugin calico-cni, and get their addresses from it; this command does so no more")
			}
			return a.dispatch(cmd, args, words{"CONTAINER endpoint-id show", func(ctx context.Context, s store, args []string) error {
				endpoints, err := s.workloads(ctx)
				if err != nil {
					return err
				}
				for _, w := range endpoints {
					if strings.HasPrefix(w.Spec.ContainerID, args[0]) || w.Spec.Pod == args[0] || w.Spec.Workload == args[0] {
						return a.say("%s", w.Name)
					}
				}
				return a.say("Container %s has no endpoint.", args[0])
			}}, words{"add CONTAINER IP", not}, words{"remove CONTAINER", not}, words{"CONTAINER ip add IP", not}, words{"CONTAINER ip remove IP", not})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "accepted")
	cmd.Flags().StringVar(&iface, "interface", "", "accepted")
	return cmd
}

// notFound tells whether a resource is not there.
func notFound(err error) bool { return errors.Is(err, datastore.ErrNotFound) }
