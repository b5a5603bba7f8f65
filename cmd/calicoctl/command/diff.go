package command

import (
	"errors"
	"fmt"

	"calico-xdp/cmd/calicoctl/manifest"
	"calico-xdp/cmd/calicoctl/output"
	"calico-xdp/cmd/calicoctl/textdiff"
	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// exitError ends the program with a code of its own.
type exitError struct {
	err  error // nil: everything has been said
	code int
}

func (e exitError) Error() string { return fmt.Sprintf("exit code %d: %v", e.code, e.err) }
func (e exitError) Unwrap() error { return e.err }

func newDiff(a *app) *cobra.Command {
	var o writeOptions
	cmd := &cobra.Command{
		Use:   "diff -f FILE",
		Short: "Show what apply would change",
		Long: `Show how the resources in files differ from those of the cluster, after both have
been completed with defaults: what apply would change, and no more. Order of
fields, comments and what the cluster adds by itself make no difference.

Exit code 0: no difference. 1: there are differences. 2: it failed.`,
		Example: `  calicoctl diff -f policy.yaml
  calicoctl diff -f cluster/ -R || calicoctl apply -f cluster/ -R`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			differs, err := a.diff(cmd, o)
			switch {
			case err != nil:
				return exitError{err, 2}
			case differs:
				return exitError{nil, 1}
			}
			return nil
		},
	}
	o.scope.flags(cmd, false)
	o.input.flags(cmd)
	return cmd
}

func (a *app) diff(cmd *cobra.Command, o writeOptions) (differs bool, err error) {
	if len(o.files) == 0 {
		return false, usageError{errors.New("name a file, a directory or - with -f"), cmd.CommandPath()}
	}
	objects, err := o.input.read(a)
	if err != nil {
		return false, err
	}
	items, errs := check(objects, o.scope)
	if err := errors.Join(errs...); err != nil {
		return false, err
	}
	ctx := cmd.Context()
	s, err := a.open(ctx)
	if err != nil {
		return false, err
	}
	defer s.Close()
	for _, it := range items {
		stored, err := s.Get(ctx, it.key)
		if b := builtIn(it.key); b != nil && errors.Is(err, datastore.ErrNotFound) {
			stored, err = b, nil
		}
		var before string
		next := it.resource
		switch {
		case errors.Is(err, datastore.ErrUnreachable):
			return differs, err
		case errors.Is(err, datastore.ErrNotFound):
		case err != nil:
			errs = append(errs, err)
			continue
		default:
			if next, err = it.over(stored); err != nil {
				errs = append(errs, manifest.Prefix(it.Source, err))
				continue
			}
			if before, err = comparable(stored); err != nil {
				return differs, err
			}
		}
		after, err := comparable(next)
		if err != nil {
			return differs, err
		}
		if before == after {
			continue
		}
		differs = true
		name := output.Name(it.key)
		old := name
		if before == "" {
			old = "/dev/null"
		}
		fmt.Fprintf(a.Out, "--- %s\n+++ %s\n%s", old, name, textdiff.Unified(before, after))
	}
	return differs, errors.Join(errs...)
}

// comparable writes a resource as YAML, with defaults and without what the cluster adds
// by itself.
func comparable(r api.Resource) (string, error) {
	r = r.DeepCopyObject().(api.Resource)
	api.Default(r)
	bare(r)
	data, err := api.Encode(r) // as it is stored: nothing that only our types say
	if err != nil {
		return "", err
	}
	text, err := yaml.JSONToYAML(data)
	return string(text), err
}

// bare takes away what only has a meaning in one cluster.
func bare(r api.Resource) {
	r.SetUID("")
	r.SetResourceVersion("")
	r.SetGeneration(0)
	r.SetCreationTimestamp(zeroTime)
	r.SetManagedFields(nil)
}
