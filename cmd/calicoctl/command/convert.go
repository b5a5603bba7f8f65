package command

import (
	"errors"
	"fmt"

	"calico-xdp/cmd/calicoctl/manifest"
	"calico-xdp/cmd/calicoctl/output"
	"calico-xdp/cmd/calicoctl/v1"
	"calico-xdp/pkg/api"

	"github.com/spf13/cobra"
)

func newConvert(a *app) *cobra.Command {
	var in input
	var format string
	var unchecked bool
	cmd := &cobra.Command{
		Use:   "convert -f FILE",
		Short: "Write v1 manifests as v3 has them",
		Long: `Read manifests of the v1 API (Calico 1 and 2) and write what they are in v3. Names
that v3 does not allow are converted, tags become labels without value. No
datastore is asked.`,
		Example: `  calicoctl convert -f policy-v1.yaml
  calicoctl convert -f cluster-v1/ -o json | calicoctl apply -f -`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(in.files) == 0 {
				return usageError{errors.New("name a file, a directory or - with -f"), cmd.CommandPath()}
			}
			values, err := manifest.ReadValues(in.files, in.recursive, a.In)
			if err != nil {
				return err
			}
			var groups []output.Group
			var errs []error
			for _, v := range values {
				r, err := v1.Convert(v.JSON)
				if err == nil && !unchecked {
					err = api.Validate(r)
				}
				if err != nil {
					errs = append(errs, manifest.Prefix(v.Source, err))
					continue
				}
				kind, _ := api.FindKind(api.KeyOf(r).Kind)
				groups = append(groups, output.Group{Kind: kind, Resources: []api.Resource{r}})
			}
			if err := errors.Join(errs...); err != nil {
				return err
			}
			switch format {
			case "yaml":
				return output.YAML(a.Out, groups)
			case "json":
				return output.JSON(a.Out, groups)
			}
			return fmt.Errorf("--output: %q is neither yaml nor json", format)
		},
	}
	in.flags(cmd)
	cmd.Flags().StringVarP(&format, "output", "o", "yaml", "yaml or json")
	cmd.Flags().BoolVar(&unchecked, "ignore-validation", false, "also what v3 would not take")
	return cmd
}
