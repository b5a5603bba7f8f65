package command

import (
	"context"
	"errors"
	"fmt"

	"calico-xdp/cmd/calicoctl/manifest"
	"calico-xdp/cmd/calicoctl/output"
	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"

	"github.com/spf13/cobra"
)

type deleteOptions struct {
	scope
	input
	skipNotExists, dry bool
}

func newDelete(a *app) *cobra.Command {
	var o deleteOptions
	cmd := &cobra.Command{
		Use:   "delete (KIND NAME... | KIND/NAME... | -f FILE)",
		Short: "Delete resources by name, or those that a file names",
		Long: `Delete resources by name, or those that a file names: only kind, namespace and
name of what a file holds matter, and metadata.resourceVersion if it is there.

With a Node go its WorkloadEndpoints, their addresses and the node's blocks and
own configuration; with an IPPool the blocks that nodes have of it.`,
		Example: `  calicoctl delete ippool old-pool
  calicoctl delete networkpolicy web db -n prod
  calicoctl delete -f policies/ --skip-not-exists

  # Everything of a kind.
  calicoctl delete $(calicoctl get networkset -A -o name)`,
		ValidArgsFunction: completeKinds,
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 0) == (len(o.files) == 0) {
				return usageError{errors.New("name a resource type and resources, or a file with -f"), cmd.CommandPath()}
			}
			return a.delete(cmd, args, o)
		},
	}
	o.scope.flags(cmd, false)
	o.input.flags(cmd)
	cmd.Flags().BoolVarP(&o.skipNotExists, "skip-not-exists", "s", false, "resources that do not exist are no error")
	cmd.Flags().BoolVar(&o.dry, "dry-run", false, "say what would happen, and delete nothing")
	return cmd
}

// target is one resource to delete.
type target struct {
	key             api.Key
	source          string // of the file that named it, or empty
	resourceVersion string
}

func (a *app) delete(cmd *cobra.Command, args []string, o deleteOptions) error {
	targets, err := o.targets(a, args)
	if err != nil || len(targets) == 0 {
		return err
	}
	ctx := cmd.Context()
	s, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	s.dry = o.dry
	r := report{app: a, dry: o.dry, verb: "delete", participle: "deleted", count: len(targets), kind: targets[0].key.Kind}
	for _, t := range targets {
		if t.key.Kind != r.kind {
			r.kind = ""
		}
	}
	for _, t := range targets {
		done, err := remove(ctx, s, t, o.skipNotExists)
		if err != nil && t.source != "" {
			err = manifest.Prefix(t.source, err)
		}
		if r.add(output.Name(t.key), done, err); r.hopeless {
			break
		}
	}
	return r.end()
}

func (o deleteOptions) targets(a *app, args []string) ([]target, error) {
	var out []target
	if len(args) == 0 {
		objects, err := o.input.read(a)
		if err != nil {
			return nil, err
		}
		var errs []error
		for _, obj := range objects {
			key, err := o.scope.keyOf(obj)
			errs = append(errs, err)
			out = append(out, target{key, obj.Source, obj.ResourceVersion})
		}
		return out, errors.Join(errs...)
	}
	selections, err := parseSelections(args, o.scope)
	if err != nil {
		return nil, err
	}
	for _, sel := range selections {
		if sel.names == nil {
			return nil, fmt.Errorf("name the %s to delete", sel.kind.Plural)
		}
		for _, name := range sel.names {
			out = append(out, target{key: api.Key{Kind: sel.kind.Name, Namespace: sel.namespace, Name: name}})
		}
	}
	return out, nil
}

func remove(ctx context.Context, s store, t target, skipNotExists bool) (string, error) {
	err := s.delete(ctx, t)
	if errors.Is(err, datastore.ErrNotFound) {
		if builtIn(t.key) != nil {
			return "", fmt.Errorf("%s is built in and cannot be deleted", t.key)
		}
		if skipNotExists {
			return "does not exist, skipped", nil
		}
	}
	return "deleted", explain(t.key, err)
}

func (s store) delete(ctx context.Context, t target) error {
	if err := s.checkDelete(ctx, t.key); err != nil {
		return err
	}
	if s.dry {
		now, err := s.Get(ctx, t.key)
		if err == nil && t.resourceVersion != "" && now.GetResourceVersion() != t.resourceVersion {
			err = fmt.Errorf("%s: %w", t.key, datastore.ErrConflict)
		}
		return err
	}
	if t.resourceVersion == "" {
		if err := s.cleanUp(ctx, t.key); err != nil {
			return err
		}
		_, err := s.Delete(ctx, t.key, "")
		return err
	}
	// What goes with a resource must not go if the resource stays.
	now, err := s.Get(ctx, t.key)
	if err != nil {
		return err
	}
	if now.GetResourceVersion() != t.resourceVersion {
		return fmt.Errorf("%s: %w", t.key, datastore.ErrConflict)
	}
	if err := s.cleanUp(ctx, t.key); err != nil {
		return err
	}
	_, err = s.Delete(ctx, t.key, "")
	return err
}
