package command

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"calico-xdp/cmd/calicoctl/output"
	"calico-xdp/cmd/calicoctl/v1"
	"calico-xdp/pkg/api"

	"github.com/projectcalico/api/pkg/lib/numorstring"
	"github.com/spf13/cobra"
)

func newLegacyBGP(a *app) *cobra.Command {
	return group("bgp", "BGP, in the grammar of 2015", "BGP, in the grammar of 2015. See also 'calicoctl get bgppeer' and 'bgpconfig'.",
		"  calicoctl bgp peer add 10.0.0.1 as 64512\n  calicoctl bgp node-mesh off",
		newLegacyPeers(a, "peer", false), newMesh(a, "node-mesh"), newDefaultAS(a, "default-node-as"))
}

// newLegacyPeers makes the command for peers of all nodes, or of this one.
func newLegacyPeers(a *app, name string, own bool) *cobra.Command {
	var v4, v6 bool
	cmd := &cobra.Command{
		Use:   name + " (add IP as N | remove IP | show)",
		Short: "BGP peers, in the grammar of 2015",
		Long: `BGP peers, in the grammar of 2015: of all nodes, or with 'calicoctl node' in front of
this one alone. 'rr add IP' adds a peer in the cluster's own AS; the mesh between
nodes stays on until it is turned off. See also 'calicoctl get bgppeer'.`,
		Example: "  calicoctl " + name + " add 10.0.0.1 as 64512\n  calicoctl " + name + " show --ipv4\n  calicoctl " + name + " remove 10.0.0.1",
		RunE: func(cmd *cobra.Command, args []string) error {
			node := ""
			if own {
				node = a.nodeName()
			}
			show := func(ctx context.Context, s store, _ []string) error { return a.showPeers(ctx, s, node, v4, v6) }
			add := func(ctx context.Context, s store, args []string) error {
				return a.addPeer(ctx, s, node, args[0], args[1])
			}
			rr := func(ctx context.Context, s store, args []string) error {
				as, err := s.defaultAS(ctx)
				if err != nil {
					return err
				}
				return a.addPeer(ctx, s, node, args[0], as.String())
			}
			remove := func(ctx context.Context, s store, args []string) error { return a.removePeer(ctx, s, node, args[0]) }
			return a.dispatch(cmd, args, words{"show", show}, words{"rr show", show}, words{"add IP as N", add}, words{"rr add IP", rr},
				words{"remove IP", remove}, words{"rr remove IP", remove})
		},
	}
	cmd.Flags().BoolVar(&v4, "ipv4", false, "only IPv4")
	cmd.Flags().BoolVar(&v6, "ipv6", false, "only IPv6")
	cmd.MarkFlagsMutuallyExclusive("ipv4", "ipv6")
	return cmd
}

// nodeName is this host's, as calico-node finds it.
func (a *app) nodeName() string {
	for _, name := range []string{"NODENAME", "HOSTNAME"} {
		if v := a.Env(name); v != "" {
			return strings.ToLower(v)
		}
	}
	host, _ := os.Hostname()
	return strings.ToLower(host)
}

func (a *app) showPeers(ctx context.Context, s store, node string, v4, v6 bool) error {
	peers, err := s.List(ctx, api.KindBGPPeer, "")
	if err != nil {
		return err
	}
	kind := "Global"
	if node != "" {
		kind = "Node specific"
	}
	for _, family := range []struct {
		name string
		is6  bool
		not  bool
	}{{"IPv4", false, v6}, {"IPv6", true, v4}} {
		if family.not {
			continue
		}
		var rows [][]string
		for _, r := range peers {
			spec := r.(*api.BGPPeer).Spec
			address, err := api.ParsePeerIP(spec.PeerIP)
			if err != nil || spec.Node != node || spec.NodeSelector != "" || address.Addr().Is6() != family.is6 {
				continue
			}
			rows = append(rows, []string{spec.PeerIP, spec.ASNumber.String()})
		}
		if rows == nil {
			if err := a.say("No %s %s BGP Peers defined.\n", kind, family.name); err != nil {
				return err
			}
			continue
		}
		if err := output.Bordered(a.Out, []output.Column{{Heading: kind + " " + family.name + " BGP Peer"}, {Heading: "AS Num"}}, rows); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) addPeer(ctx context.Context, s store, node, ip, as string) error {
	address, err := netip.ParseAddr(ip)
	if err != nil {
		return fmt.Errorf("%q is not an address", ip)
	}
	number, err := numorstring.ASNumberFromString(as)
	if err != nil {
		return fmt.Errorf("%q is not an AS number", as)
	}
	p := &api.BGPPeer{}
	p.Name = v1.PeerName(node, address)
	p.Spec.Node, p.Spec.PeerIP, p.Spec.ASNumber = node, address.String(), number
	_, _, err = s.Apply(ctx, p)
	return err
}

func (a *app) removePeer(ctx context.Context, s store, node, ip string) error {
	address, err := netip.ParseAddr(ip)
	if err != nil {
		return fmt.Errorf("%q is not an address", ip)
	}
	peers, err := s.List(ctx, api.KindBGPPeer, "")
	if err != nil {
		return err
	}
	for _, r := range peers {
		spec := r.(*api.BGPPeer).Spec
		if at, err := api.ParsePeerIP(spec.PeerIP); err == nil && at.Addr() == address && spec.Node == node && spec.NodeSelector == "" {
			if _, err := s.Delete(ctx, api.KeyOf(r), ""); err != nil {
				return err
			}
			return a.say("BGP peer removed from %s configuration", map[bool]string{true: "node", false: "global"}[node != ""])
		}
	}
	return fmt.Errorf("no such BGP peer: %s", ip)
}

// bgpConfig changes the cluster's BGP configuration, or makes it.
func (s store) bgpConfig(ctx context.Context, edit func(*api.BGPConfiguration)) error {
	key := api.Key{Kind: api.KindBGPConfiguration, Name: "default"}
	if _, err := s.Get(ctx, key); notFound(err) {
		c := &api.BGPConfiguration{}
		c.Name = key.Name
		edit(c)
		_, err := s.Create(ctx, c)
		return err
	}
	_, err := s.change(ctx, key, func(r api.Resource) error {
		edit(r.(*api.BGPConfiguration))
		return nil
	})
	return err
}

func (s store) readBGPConfig(ctx context.Context) (*api.BGPConfiguration, error) {
	r, err := s.Get(ctx, api.Key{Kind: api.KindBGPConfiguration, Name: "default"})
	if notFound(err) {
		return &api.BGPConfiguration{}, nil
	}
	if err != nil {
		return nil, err
	}
	return r.(*api.BGPConfiguration), nil
}

func (s store) defaultAS(ctx context.Context) (numorstring.ASNumber, error) {
	c, err := s.readBGPConfig(ctx)
	if err != nil || c.Spec.ASNumber == nil {
		return defaultASNumber, err
	}
	return *c.Spec.ASNumber, nil
}

func newMesh(a *app, name string) *cobra.Command {
	return &cobra.Command{
		Use:     name + " [on | off]",
		Short:   "The BGP mesh of all nodes, in the grammar of 2015",
		Long:    "Show whether all nodes peer with each other, or turn that on or off.",
		Example: "  calicoctl " + name + "\n  calicoctl " + name + " off",
		RunE: func(cmd *cobra.Command, args []string) error {
			set := func(on bool) func(context.Context, store, []string) error {
				return func(ctx context.Context, s store, _ []string) error {
					return s.bgpConfig(ctx, func(c *api.BGPConfiguration) { c.Spec.NodeToNodeMeshEnabled = &on })
				}
			}
			return a.dispatch(cmd, args, words{"", func(ctx context.Context, s store, _ []string) error {
				c, err := s.readBGPConfig(ctx)
				if err != nil {
					return err
				}
				if on := c.Spec.NodeToNodeMeshEnabled; on != nil && !*on {
					return a.say("off")
				}
				return a.say("on")
			}}, words{"on", set(true)}, words{"off", set(false)})
		},
	}
}

func newDefaultAS(a *app, name string) *cobra.Command {
	return &cobra.Command{
		Use:     name + " [N]",
		Short:   "The AS number of nodes without one of their own, in the grammar of 2015",
		Long:    "Show or set the AS number of all nodes that have none of their own.",
		Example: "  calicoctl " + name + "\n  calicoctl " + name + " 64512",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.dispatch(cmd, args, words{"", func(ctx context.Context, s store, _ []string) error {
				as, err := s.defaultAS(ctx)
				if err != nil {
					return err
				}
				return a.say("%s", as)
			}}, words{"N", func(ctx context.Context, s store, args []string) error {
				n, err := strconv.ParseUint(args[0], 10, 32)
				if err != nil || n == 0 {
					return fmt.Errorf("%q is not an AS number", args[0])
				}
				as := numorstring.ASNumber(n)
				return s.bgpConfig(ctx, func(c *api.BGPConfiguration) { c.Spec.ASNumber = &as })
			}})
		},
	}
}

type endpointFilter struct {
	detailed                           bool
	host, orchestrator, workload, name string
}

func newLegacyEndpoint(a *app) *cobra.Command {
	var f endpointFilter
	cmd := &cobra.Command{
		Use:   "endpoint (show | ENDPOINT profile (show | append … | set … | remove …))",
		Short: "Workloads' endpoints, in the grammar of 2015",
		Long: `Workloads' endpoints and their profiles, in the grammar of 2015. An ENDPOINT is the
name of a WorkloadEndpoint, or of the endpoint or container in it. See also
'calicoctl get workloadendpoint -A -o wide'.`,
		Example: `  calicoctl endpoint show --detailed
  calicoctl endpoint show --host=node1
  calicoctl endpoint node1-k8s-web-eth0 profile append dev`,
		RunE: func(cmd *cobra.Command, args []string) error {
			profiles := func(edit func(old, named []string) ([]string, string)) func(context.Context, store, []string) error {
				return func(ctx context.Context, s store, args []string) error {
					return a.changeProfiles(ctx, s, f, args[0], args[1:], edit)
				}
			}
			return a.dispatch(cmd, args,
				words{"show", func(ctx context.Context, s store, _ []string) error { return a.showEndpoints(ctx, s, f) }},
				words{"ENDPOINT profile show", func(ctx context.Context, s store, args []string) error {
					w, err := s.endpoint(ctx, f, args[0])
					if err != nil {
						return err
					}
					if len(w.Spec.Profiles) == 0 {
						return a.say("Endpoint has no profiles associated with it.")
					}
					var rows [][]string
					for _, p := range w.Spec.Profiles {
						rows = append(rows, []string{p})
					}
					return a.centred([]string{"Name"}, rows)
				}},
				words{"ENDPOINT profile append ...", profiles(appendProfiles)}, words{"ENDPOINT profile remove ...", profiles(removeProfiles)},
				words{"ENDPOINT profile set", profiles(setProfiles)}, words{"ENDPOINT profile set ...", profiles(setProfiles)})
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.detailed, "detailed", false, "each endpoint")
	flags.BoolVar(&f.detailed, "detail", false, "as --detailed")
	flags.StringVar(&f.host, "host", "", "only of this host")
	flags.StringVar(&f.orchestrator, "orchestrator", "", "only of this orchestrator")
	flags.StringVar(&f.workload, "workload", "", "only of this workload")
	flags.StringVar(&f.name, "endpoint", "", "only this endpoint")
	return cmd
}

func (f endpointFilter) matches(w *api.WorkloadEndpoint) bool {
	return (f.host == "" || f.host == w.Spec.Node) && (f.orchestrator == "" || f.orchestrator == w.Spec.Orchestrator) &&
		(f.workload == "" || f.workload == workloadOf(w)) && (f.name == "" || isCalled(w, f.name))
}

func isCalled(w *api.WorkloadEndpoint, name string) bool {
	return w.Name == name || w.Spec.Endpoint == name || w.Spec.ContainerID == name
}

func (a *app) showEndpoints(ctx context.Context, s store, f endpointFilter) error {
	all, err := s.workloads(ctx)
	if err != nil {
		return err
	}
	var rows [][]string
	if f.detailed {
		for _, w := range all {
			if f.matches(w) {
				rows = append(rows, []string{w.Spec.Node, w.Spec.Orchestrator, workloadOf(w), w.Name, strings.Join(w.Spec.IPNetworks, " "), w.Spec.MAC, strings.Join(w.Spec.Profiles, ","), "active"})
			}
		}
		return a.centred([]string{"Hostname", "Orchestrator ID", "Workload ID", "Endpoint ID", "Addresses", "MAC", "Profiles", "State"}, rows)
	}
	type place struct{ host, orchestrator string }
	workloads, endpoints := make(map[place]map[string]bool), make(map[place]int)
	for _, w := range all {
		if !f.matches(w) {
			continue
		}
		at := place{w.Spec.Node, w.Spec.Orchestrator}
		if workloads[at] == nil {
			workloads[at] = make(map[string]bool)
		}
		workloads[at][w.Namespace+"/"+workloadOf(w)] = true
		endpoints[at]++
	}
	for at, n := range endpoints {
		rows = append(rows, []string{at.host, at.orchestrator, strconv.Itoa(len(workloads[at])), strconv.Itoa(n)})
	}
	return a.centred([]string{"Hostname", "Orchestrator ID", "Number of Workloads", "Number of Endpoints"}, rows)
}

// endpoint finds the one that is called so.
func (s store) endpoint(ctx context.Context, f endpointFilter, name string) (*api.WorkloadEndpoint, error) {
	all, err := s.workloads(ctx)
	if err != nil {
		return nil, err
	}
	var found []*api.WorkloadEndpoint
	for _, w := range all {
		if f.matches(w) && isCalled(w, name) {
			found = append(found, w)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("no endpoint is called %s", name)
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("%d endpoints are called %s: use --host, --workload, or the name that 'calicoctl get wep -A -o wide' shows", len(found), name)
}

func (a *app) changeProfiles(ctx context.Context, s store, f endpointFilter, name string, named []string, edit func(old, named []string) ([]string, string)) error {
	w, err := s.endpoint(ctx, f, name)
	if err != nil {
		return err
	}
	for i, p := range named {
		if _, err := s.profile(ctx, p); err != nil {
			return err
		}
		named[i] = v1.Name(p)
	}
	notice := ""
	_, err = s.change(ctx, api.KeyOf(w), func(r api.Resource) error {
		e, ok := r.(*api.WorkloadEndpoint)
		if !ok {
			return errors.New("no endpoint")
		}
		next, why := edit(e.Spec.Profiles, named)
		if notice = why; why == "" {
			e.Spec.Profiles = next
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case notice != "":
		return a.say("%s", notice)
	}
	return a.say("Profiles of endpoint %s are changed.", w.Name)
}
