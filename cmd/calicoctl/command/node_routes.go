package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"

	"calico-xdp/cmd/calicoctl/output"
	"calico-xdp/pkg/nodeapi"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

func newNodeRoutes(a *app) *cobra.Command {
	var o routesOptions
	cmd := &cobra.Command{
		Use:   "routes [PREFIX]",
		Short: "Show the BGP routes that this host's calico-node receives and announces",
		Long: `Show the BGP routes that this host's calico-node receives from its peers and those
that it announces to each. With a prefix or an address, only the routes that are
inside it or contain it. Of what is received, filters have taken out what they
reject; USED are those that packets follow, several if they are as good.`,
		Example: `  calicoctl node routes

  # What the router in the rack has been told.
  calicoctl node routes --advertised --peer 10.0.0.254

  # Who announces this address, and by what way it is reached.
  calicoctl node routes 10.65.3.7`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return errors.New("one prefix or address at most")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.runDir = cmp.Or(o.runDir, a.Env("CALICO_RUN_DIR"), nodeapi.DefaultRunDir)
			if len(args) == 1 {
				o.about = args[0]
			}
			return a.nodeRoutes(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.runDir, "run-dir", "", "run directory of calico-node (default $CALICO_RUN_DIR, or "+nodeapi.DefaultRunDir+")")
	f.StringVarP(&o.format, "output", "o", "", "output: table, json, yaml")
	f.StringVar(&o.peer, "peer", "", "only the routes from or to this peer's `address`")
	f.BoolVar(&o.received, "received", false, "only what is received")
	f.BoolVar(&o.advertised, "advertised", false, "only what is announced")
	return cmd
}

type routesOptions struct {
	runDir, format, peer, about string
	received, advertised        bool
}

func (a *app) nodeRoutes(ctx context.Context, o routesOptions) error {
	switch o.format {
	case "", "table", "ps", "json", "yaml":
	default:
		return fmt.Errorf("--output: %q is none of table, json, yaml", o.format)
	}
	keep, err := o.filter()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	routes, err := nodeapi.NewClient(o.runDir).BGPRoutes(ctx)
	if errors.Is(err, nodeapi.ErrNotRunning) {
		//lint:ignore ST1005 Calico's own words, which scripts look for
		return errors.New("Calico process is not running.")
	}
	if err != nil {
		return err
	}
	both := o.received == o.advertised
	only := func(list []nodeapi.BGPRoute, wanted bool) []nodeapi.BGPRoute {
		if !wanted {
			return nil
		}
		return slices.DeleteFunc(list, func(r nodeapi.BGPRoute) bool { return !keep(r) })
	}
	routes.Received = only(routes.Received, both || o.received)
	routes.Advertised = only(routes.Advertised, both || o.advertised)
	switch o.format {
	case "json":
		return output.WriteJSON(a.Out, routes)
	case "yaml":
		data, err := yaml.Marshal(routes)
		if err != nil {
			return err
		}
		_, err = a.Out.Write(data)
		return err
	}
	if both || o.received {
		if err := writeReceived(a.Out, routes.Received); err != nil {
			return err
		}
	}
	if both || o.advertised {
		return writeAdvertised(a.Out, routes.Advertised)
	}
	return nil
}

// filter tells of each route whether it is asked for.
func (o routesOptions) filter() (func(nodeapi.BGPRoute) bool, error) {
	var peer netip.Addr
	if o.peer != "" {
		var err error
		if peer, err = netip.ParseAddr(o.peer); err != nil {
			return nil, fmt.Errorf("--peer: %w", err)
		}
	}
	var about netip.Prefix
	if o.about != "" {
		address, err := netip.ParseAddr(o.about)
		if err == nil {
			about = netip.PrefixFrom(address, address.BitLen())
		} else if about, err = netip.ParsePrefix(o.about); err != nil {
			return nil, fmt.Errorf("%q is neither a prefix nor an address", o.about)
		}
	}
	return func(r nodeapi.BGPRoute) bool {
		if a, err := netip.ParseAddr(r.Peer); peer.IsValid() && (err != nil || a != peer) {
			return false
		}
		p, err := netip.ParsePrefix(r.Prefix)
		return !about.IsValid() || err == nil && p.Overlaps(about)
	}, nil
}

func writeReceived(w io.Writer, routes []nodeapi.BGPRoute) error {
	fmt.Fprintln(w, "\nRoutes received")
	var rows [][]string
	for _, r := range routes {
		used := ""
		switch {
		case r.Best && r.Stale:
			used = "yes, stale"
		case r.Best:
			used = "yes"
		}
		rows = append(rows, []string{r.Prefix, r.NextHop, r.Peer, r.ASPath, used})
	}
	if rows == nil {
		_, err := fmt.Fprintln(w, "No routes.")
		return err
	}
	return output.Bordered(w, []output.Column{
		{Heading: "PREFIX"}, {Heading: "NEXT HOP"}, {Heading: "FROM"}, {Heading: "AS PATH"}, {Heading: "USED"},
	}, rows)
}

func writeAdvertised(w io.Writer, routes []nodeapi.BGPRoute) error {
	fmt.Fprintln(w, "\nRoutes announced")
	var rows [][]string
	for _, r := range routes {
		rows = append(rows, []string{r.Prefix, r.NextHop, r.Peer, r.ASPath})
	}
	if rows == nil {
		_, err := fmt.Fprintln(w, "No routes.")
		return err
	}
	return output.Bordered(w, []output.Column{
		{Heading: "PREFIX"}, {Heading: "NEXT HOP"}, {Heading: "TO"}, {Heading: "AS PATH"},
	}, rows)
}
