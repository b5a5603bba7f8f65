package command

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func newValidate(a *app) *cobra.Command {
	var o writeOptions
	cmd := &cobra.Command{
		Use:   "validate -f FILE",
		Short: "Check resources in files, without a datastore",
		Long: `Check resources in files: syntax, fields, values, and how they go together. Every
fault is listed. No datastore is asked; 'apply --dry-run' also checks the
resources against those of the cluster.`,
		Example: `  calicoctl validate -f policy.yaml
  calicoctl validate -f cluster/ -R

  generate | calicoctl validate -f -`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(o.files) == 0 {
				return usageError{errors.New("name a file, a directory or - with -f"), cmd.CommandPath()}
			}
			objects, err := o.input.read(a)
			if err != nil || len(objects) == 0 {
				return err
			}
			items, errs := check(objects, o.scope)
			if err := errors.Join(errs...); err != nil {
				what := "resource(s)"
				if kind := singleKind(objects); kind != "" {
					what = fmt.Sprintf("'%s' resource(s)", kind)
				}
				//lint:ignore ST1005 a sentence to the user
				return fmt.Errorf("Failed to validate %d of %d %s:\n%w", len(objects)-len(items), len(objects), what, err)
			}
			r := report{app: a, participle: "validated", objects: objects, done: len(items)}
			return r.end()
		},
	}
	o.scope.flags(cmd, false)
	o.input.flags(cmd)
	return cmd
}
