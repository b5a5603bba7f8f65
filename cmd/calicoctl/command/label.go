package command

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"

	"github.com/spf13/cobra"
)

type labelOptions struct {
	scope
	overwrite, remove bool
}

func newLabel(a *app) *cobra.Command {
	var o labelOptions
	cmd := &cobra.Command{
		Use:   "label KIND NAME (KEY=VALUE | KEY --remove)",
		Short: "Set, change or remove a label of a resource",
		Long: `Set a label of a resource. One that is there with another value is only changed
with --overwrite; with --remove the label is taken away.`,
		Example: `  calicoctl label node node1 rack=r1
  calicoctl label node node1 rack=r2 --overwrite
  calicoctl label hostendpoint node1-eth0 role --remove
  calicoctl label workloadendpoint node1-k8s-web-eth0 -n prod app=web`,
		ValidArgsFunction: completeKinds,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 3 {
				return usageError{errors.New("name a resource type, a resource and one label"), cmd.CommandPath()}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.label(cmd, args[0], args[1], args[2], o)
		},
	}
	o.scope.flags(cmd, false)
	cmd.Flags().BoolVar(&o.overwrite, "overwrite", false, "change the label if it is there")
	cmd.Flags().BoolVar(&o.remove, "remove", false, "remove the label")
	cmd.MarkFlagsMutuallyExclusive("overwrite", "remove")
	return cmd
}

func (a *app) label(cmd *cobra.Command, kindName, name, label string, o labelOptions) error {
	key, value, hasValue := strings.Cut(label, "=")
	if hasValue == o.remove || key == "" || strings.Contains(value, "=") {
		return usageError{fmt.Errorf("invalid label %s", label), cmd.CommandPath()}
	}
	kind, err := findKind(kindName)
	if err != nil {
		return err
	}
	namespace, err := o.scope.of(kind)
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	s, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	done := "set"
	_, err = s.change(ctx, api.Key{Kind: kind.Name, Namespace: namespace, Name: name}, func(r api.Resource) error {
		labels := maps.Clone(r.GetLabels())
		old, there := labels[key]
		switch {
		case o.remove && !there:
			return fmt.Errorf("cannot remove label of %s %s, key %s does not exist", kindName, name, key)
		case o.remove:
			delete(labels, key)
			done = "removed"
		case there && old != value && !o.overwrite:
			return fmt.Errorf("failed to update label of %s %s, key %s is already present. please use '--overwrite' to set a new value", kindName, name, key)
		case there:
			done = "updated"
			fallthrough
		default:
			if labels == nil {
				labels = make(map[string]string)
			}
			labels[key] = value
		}
		r.SetLabels(labels)
		return nil
	})
	if err != nil {
		return err
	}
	preposition := map[string]string{"removed": "from"}[done]
	if preposition == "" {
		preposition = "on"
	}
	_, err = fmt.Fprintf(a.Out, "Successfully %s label %s %s %s %s\n", done, key, preposition, kindName, name)
	return err
}

// change reads a resource, lets edit work on a copy, and writes that if it differs;
// again if somebody else was faster. It returns what is there then.
func (s store) change(ctx context.Context, key api.Key, edit func(api.Resource) error) (api.Resource, error) {
	for attempt := 1; ; attempt++ {
		stored, err := s.Get(ctx, key)
		if errors.Is(err, datastore.ErrNotFound) && builtIn(key) != nil {
			return nil, fmt.Errorf("%s is built in and cannot be changed", key)
		}
		if err != nil {
			return nil, explain(key, err)
		}
		next := stored.DeepCopyObject().(api.Resource)
		if err := edit(next); err != nil {
			return nil, err
		}
		if next.GetResourceVersion() != stored.GetResourceVersion() {
			return nil, explain(key, datastore.ErrConflict)
		}
		if same, err := equal(stored, next); err != nil || same {
			return stored, err
		}
		before := stored.DeepCopyObject().(api.Resource)
		api.Default(before)
		api.Default(next)
		if err := api.ValidateChange(before, next); err != nil {
			return nil, err
		}
		written, err := s.Update(ctx, next)
		if !errors.Is(err, datastore.ErrConflict) || attempt == attempts {
			return written, explain(key, err)
		}
	}
}
