package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"

	"calico-xdp/cmd/calicoctl/patch"
	"calico-xdp/pkg/api"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

type patchOptions struct {
	scope
	patch, format string
	dry           bool
}

func newPatch(a *app) *cobra.Command {
	var o patchOptions
	cmd := &cobra.Command{
		Use:   "patch KIND NAME -p PATCH",
		Short: "Change some fields of a resource",
		Long: `Change some fields of a resource. The patch is JSON or YAML:

  strategic, merge   the fields to change, in their places; null removes one, a
                     list replaces the whole list (RFC 7386)
  json               a list of operations (RFC 6902)

With metadata.resourceVersion in the patch, the resource is only changed if that
is its revision.`,
		Example: `  calicoctl patch node node1 -p '{"spec": {"bgp": {"routeReflectorClusterID": "244.0.0.1"}}}'
  calicoctl patch felixconfig default --type merge -p '{"spec": {"logSeverityScreen": null}}'
  calicoctl patch np web -n prod --type json -p '[{"op": "add", "path": "/spec/ingress/-", "value": {"action": "Deny"}}]'`,
		ValidArgsFunction: completeKinds,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageError{errors.New("name a resource type and one resource"), cmd.CommandPath()}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.patch == "" {
				return usageError{errors.New("give a patch with -p"), cmd.CommandPath()}
			}
			return a.patch(cmd, args[0], args[1], o)
		},
	}
	o.scope.flags(cmd, false)
	cmd.Flags().StringVarP(&o.patch, "patch", "p", "", "the patch")
	cmd.Flags().StringVarP(&o.format, "type", "t", "strategic", "its form: strategic, merge or json")
	cmd.Flags().BoolVar(&o.dry, "dry-run", false, "say what would happen, and write nothing")
	return cmd
}

func (a *app) patch(cmd *cobra.Command, kindName, name string, o patchOptions) error {
	kind, err := findKind(kindName)
	if err != nil {
		return err
	}
	namespace, err := o.scope.of(kind)
	if err != nil {
		return err
	}
	change, err := parsePatch(o)
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	s, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	s.dry = o.dry
	key := api.Key{Kind: kind.Name, Namespace: namespace, Name: name}
	_, err = s.change(ctx, key, func(r api.Resource) error {
		next, err := patched(r, change)
		if err != nil {
			return err
		}
		if api.KeyOf(next) != key {
			return fmt.Errorf("a patch cannot make %s of %s", api.KeyOf(next), key)
		}
		if api.Default(next); next.GetResourceVersion() == "" {
			next.SetResourceVersion(r.GetResourceVersion())
		}
		if err := api.Validate(next); err != nil {
			return err
		}
		reflect.ValueOf(r).Elem().Set(reflect.ValueOf(next).Elem())
		return nil
	})
	if err != nil {
		//lint:ignore ST1005 Calico's own words
		return fmt.Errorf("Failed to patch '%s' resource: %w", kind.Name, err)
	}
	if o.dry {
		_, err = fmt.Fprintf(a.Out, "Dry run: 1 '%s' resource would be patched; nothing was written\n", kind.Name)
		return err
	}
	_, err = fmt.Fprintf(a.Out, "Successfully patched 1 '%s' resource\n", kind.Name)
	return err
}

func parsePatch(o patchOptions) (func(any) (any, error), error) {
	text, err := yaml.YAMLToJSON([]byte(o.patch))
	if err != nil {
		return nil, fmt.Errorf("--patch: %w", err)
	}
	switch o.format {
	case "strategic", "merge":
		return patch.Merge(text)
	case "json":
		return patch.Operations(text)
	}
	return nil, fmt.Errorf("--type: %q is none of strategic, merge, json", o.format)
}

// patched returns what a patch makes of r. Fields that the kind does not have are refused.
func patched(r api.Resource, change func(any) (any, error)) (api.Resource, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	var doc any
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	if doc, err = change(doc); err != nil {
		return nil, err
	}
	if data, err = json.Marshal(doc); err != nil {
		return nil, err
	}
	return api.Decode(data)
}
