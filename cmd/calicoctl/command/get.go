package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"calico-xdp/cmd/calicoctl/output"
	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"

	"github.com/projectcalico/api/pkg/lib/numorstring"
	"github.com/spf13/cobra"
)

// defaultASNumber is what Calico uses where nothing is configured.
const defaultASNumber = 64512

type getOptions struct {
	scope
	input
	format string
	export bool
}

func newGet(a *app) *cobra.Command {
	var o getOptions
	cmd := &cobra.Command{
		Use:   "get (KIND [NAME...] | KIND/NAME... | -f FILE)",
		Short: "Show resources: all of a kind, some by name, or those that a file names",
		Long: `Show resources: all of a kind, some by name, or those that a file names.

KIND is a resource type in any case, singular, plural or short: ippool, pools,
gnp, wep. Several may be joined by commas. Resource types:
` + wrapped(kindNames()),
		Example: `  # All pools, and one of them with everything that is stored.
  calicoctl get ippool
  calicoctl get ippool default-pool -o yaml

  # Policies of a namespace; workloads of all namespaces with all columns.
  calicoctl get networkpolicy -n prod
  calicoctl get wep -A -o wide

  # A copy that can be applied to another cluster.
  calicoctl get ippool,gnp,tier -o yaml --export

  # Chosen columns; any field by its path.
  calicoctl get node -o custom-columns=NAME,IPV4,TUNNEL:.spec.bgp.ipv4IPIPTunnelAddr`,
		ValidArgsFunction: completeKinds,
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 0) == (len(o.files) == 0) {
				return usageError{errors.New("name a resource type, or a file with -f"), cmd.CommandPath()}
			}
			return a.get(cmd.Context(), args, o)
		},
	}
	o.scope.flags(cmd, true)
	o.input.flags(cmd)
	cmd.Flags().StringVarP(&o.format, "output", "o", "ps", "output: ps or table, wide, yaml, json, name, custom-columns=..., go-template=..., go-template-file=...")
	cmd.Flags().BoolVar(&o.export, "export", false, "leave out what belongs to this cluster: uid, resourceVersion, creationTimestamp")
	return cmd
}

func (a *app) get(ctx context.Context, args []string, o getOptions) error {
	write, err := a.writer(o)
	if err != nil {
		return err
	}
	selections, err := o.selections(a, args)
	if err != nil || len(selections) == 0 {
		return err
	}
	s, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer s.Close()

	var (
		groups []output.Group
		errs   []error
	)
	for _, sel := range selections {
		found, version, err := s.find(ctx, sel)
		if errors.Is(err, datastore.ErrUnreachable) {
			return err // once; the rest would only say the same
		}
		errs = append(errs, err)
		groups = appendGroup(groups, output.Group{Kind: sel.kind, Resources: found, Listed: sel.names == nil, Version: version})
	}
	if o.export {
		groups = exported(groups)
	}
	cluster, err := s.cluster(ctx, groups)
	if err != nil {
		return err
	}
	if err := write(a.Out, groups, cluster); err != nil {
		return err
	}
	return errors.Join(errs...)
}

// appendGroup adds a group, to the last one if both are named resources of the
// same kind, so that they share a table.
func appendGroup(groups []output.Group, g output.Group) []output.Group {
	if n := len(groups); n > 0 && !g.Listed && !groups[n-1].Listed && groups[n-1].Kind == g.Kind {
		groups[n-1].Resources = append(groups[n-1].Resources, g.Resources...)
		return groups
	}
	return append(groups, g)
}

// selections is what the arguments or the files ask for.
func (o getOptions) selections(a *app, args []string) ([]selection, error) {
	if len(args) > 0 {
		return parseSelections(args, o.scope)
	}
	objects, err := o.input.read(a)
	if err != nil {
		return nil, err
	}
	var out []selection
	for _, obj := range objects {
		key, err := o.scope.keyOf(obj)
		if err != nil {
			return nil, err
		}
		out = append(out, selection{kind: obj.Kind, namespace: key.Namespace, names: []string{key.Name}})
	}
	return out, nil
}

// writer returns how the output is to be written.
func (a *app) writer(o getOptions) (func(io.Writer, []output.Group, output.Cluster) error, error) {
	plain := func(write func(io.Writer, []output.Group) error) func(io.Writer, []output.Group, output.Cluster) error {
		return func(w io.Writer, gs []output.Group, _ output.Cluster) error { return write(w, gs) }
	}
	withNamespace := o.all || o.namespace != ""
	format, arg, hasArg := strings.Cut(o.format, "=")
	switch {
	case !hasArg && (format == "ps" || format == "table" || format == "wide"):
		return func(w io.Writer, gs []output.Group, c output.Cluster) error {
			return output.Table(w, gs, format == "wide", withNamespace, c)
		}, nil
	case !hasArg && format == "yaml":
		return plain(output.YAML), nil
	case !hasArg && format == "json":
		return plain(output.JSON), nil
	case !hasArg && format == "name":
		return plain(output.Names), nil
	case arg != "" && format == "custom-columns":
		return func(w io.Writer, gs []output.Group, c output.Cluster) error { return output.Columns(w, gs, arg, c) }, nil
	case arg != "" && format == "go-template-file":
		data, err := os.ReadFile(arg)
		if err != nil {
			return nil, fmt.Errorf("--output: %w", err)
		}
		arg = string(data)
		fallthrough
	case arg != "" && format == "go-template":
		return plain(func(w io.Writer, gs []output.Group) error { return output.Template(w, gs, arg) }), nil
	}
	//lint:ignore ST1005 a sentence to the user
	return nil, fmt.Errorf("unrecognized output format '%s': expected ps, table, wide, yaml, json, name, custom-columns=..., go-template=... or go-template-file=...", o.format)
}

// find reads what is selected, and what is listed as of a revision. Names that do not
// exist make errors beside the resources that do.
func (s store) find(ctx context.Context, sel selection) (found []api.Resource, version string, err error) {
	if sel.names == nil || (sel.kind.Namespaced && sel.namespace == "") {
		return s.list(ctx, sel)
	}
	var (
		out  []api.Resource
		errs []error
	)
	for _, name := range sel.names {
		key := api.Key{Kind: sel.kind.Name, Namespace: sel.namespace, Name: name}
		r, err := s.Get(ctx, key)
		if b := builtIn(key); b != nil && errors.Is(err, datastore.ErrNotFound) {
			r, err = b, nil
		}
		if errors.Is(err, datastore.ErrUnreachable) {
			return nil, "", err
		}
		if err != nil {
			errs = append(errs, explain(key, err))
			continue
		}
		out = append(out, r)
	}
	return out, "", errors.Join(errs...)
}

// list reads a kind; names, if any, are looked for in all namespaces.
func (s store) list(ctx context.Context, sel selection) (found []api.Resource, version string, err error) {
	all, version, err := s.ListAsOf(ctx, sel.kind.Name, sel.namespace)
	if err != nil {
		return nil, "", err
	}
	all = withBuiltIn(sel.kind, all)
	if sel.names == nil {
		return all, version, nil
	}
	var (
		out  []api.Resource
		errs []error
	)
	for _, name := range sel.names {
		n := len(out)
		for _, r := range all {
			if r.GetName() == name {
				out = append(out, r)
			}
		}
		if len(out) == n {
			errs = append(errs, fmt.Errorf("resource does not exist: %s", api.Key{Kind: sel.kind.Name, Name: name}))
		}
	}
	return out, "", errors.Join(errs...)
}

// cluster reads what the tables need beyond the resources: nodes show the
// default AS number.
func (s store) cluster(ctx context.Context, groups []output.Group) (output.Cluster, error) {
	c := output.Cluster{ASNumber: defaultASNumber}
	if !slices.ContainsFunc(groups, func(g output.Group) bool { return g.Kind.Name == api.KindNode }) {
		return c, nil
	}
	r, err := s.Get(ctx, api.Key{Kind: api.KindBGPConfiguration, Name: "default"})
	if errors.Is(err, datastore.ErrNotFound) {
		return c, nil
	}
	if err != nil {
		return c, err
	}
	if config, ok := r.(*api.BGPConfiguration); ok && config.Spec.ASNumber != nil {
		c.ASNumber = numorstring.ASNumber(*config.Spec.ASNumber)
	}
	return c, nil
}

// exported returns copies without what only has a meaning in this cluster.
func exported(groups []output.Group) []output.Group {
	out := slices.Clone(groups)
	for i := range out {
		out[i].Version = ""
		rs := make([]api.Resource, len(out[i].Resources))
		for j, r := range out[i].Resources {
			r := r.DeepCopyObject().(api.Resource)
			bare(r)
			rs[j] = r
		}
		out[i].Resources = rs
	}
	return out
}

// wrapped sets words in lines for help texts.
func wrapped(words []string) string {
	var b strings.Builder
	width := 0
	for i, w := range words {
		if i < len(words)-1 {
			w += ","
		}
		if width+1+len(w) > 78 {
			b.WriteString("\n")
			width = 0
		}
		if width == 0 {
			b.WriteString(" ")
			width = 1
		}
		b.WriteString(" " + w)
		width += 1 + len(w)
	}
	return b.String()
}
