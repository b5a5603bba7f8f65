package command

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"calico-xdp/cmd/calicoctl/manifest"
	"calico-xdp/cmd/calicoctl/output"
	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"

	"github.com/spf13/cobra"
)

const filesHelp = `

All files are read, completed with defaults and checked before the first write:
if anything is wrong in any of them, every fault is listed and nothing changes.`

// writeOptions are those of the commands that write what files say.
type writeOptions struct {
	scope
	input
	skipExists bool
	dry        bool
	confirm    time.Duration // only apply: 0 is for good
}

func (o *writeOptions) flags(cmd *cobra.Command) {
	o.scope.flags(cmd, false)
	o.input.flags(cmd)
	cmd.Flags().BoolVar(&o.dry, "dry-run", false, "say what would happen, and write nothing")
}

// deed is what apply, create or replace does with one object: it returns the
// word for what has happened.
type deed func(ctx context.Context, s store, it item) (done string, err error)

func newApply(a *app) *cobra.Command {
	var o writeOptions
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Make resources be as files say: create or change them",
		Long:  "Make resources be as files say: create those that do not exist and replace those\nthat differ. What is already so is not written." + filesHelp,
		Example: `  # A file, everything in a directory, standard input.
  calicoctl apply -f policy.yaml
  calicoctl apply -f cluster/
  generate | calicoctl apply -f -

  # Into a namespace, where the file does not name one.
  calicoctl apply -f web.yaml -n prod

  # What would happen?
  calicoctl apply -f cluster/ --dry-run

  # Policy that may lock you out: what was there before comes back by itself
  # after a minute, unless you can still say 'calicoctl confirm'.
  calicoctl apply -f lockdown.yaml --confirm 60s`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.write(cmd, o, "apply", "applied", apply)
		},
	}
	o.flags(cmd)
	cmd.Flags().DurationVar(&o.confirm, "confirm", 0, "undo it after this time, if 'calicoctl confirm' does not come; only for policy")
	return cmd
}

func newCreate(a *app) *cobra.Command {
	var o writeOptions
	cmd := &cobra.Command{
		Use:   "create -f FILE",
		Short: "Create resources that do not exist yet",
		Long:  "Create resources. One that exists already is an error and is left as it is." + filesHelp,
		Example: `  # Create what a file holds.
  calicoctl create -f pools.yaml

  # Create what is missing, leave what is there.
  calicoctl create -f pools.yaml --skip-exists`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.write(cmd, o, "create", "created", func(ctx context.Context, s store, it item) (string, error) {
				return create(ctx, s, it, o.skipExists)
			})
		},
	}
	o.flags(cmd)
	cmd.Flags().BoolVar(&o.skipExists, "skip-exists", false, "leave resources that exist as they are, without an error")
	return cmd
}

func newReplace(a *app) *cobra.Command {
	var o writeOptions
	cmd := &cobra.Command{
		Use:   "replace -f FILE",
		Short: "Replace resources that exist",
		Long: `Replace resources. One that does not exist is an error.

With metadata.resourceVersion, as get -o yaml prints it, a resource is only
replaced if nobody has changed it since.` + filesHelp,
		Example: `  # Replace what a file holds.
  calicoctl replace -f policy.yaml

  # Change one field of a node; fails if someone else was faster.
  calicoctl get node node1 -o yaml | sed 's/asNumber: .*/asNumber: 64513/' | calicoctl replace -f -`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.write(cmd, o, "replace", "replaced", replace)
		},
	}
	o.flags(cmd)
	return cmd
}

// write prepares all objects and then does the deed with each.
func (a *app) write(cmd *cobra.Command, o writeOptions, verb, participle string, do deed) error {
	if len(o.files) == 0 {
		return usageError{errors.New("name a file, a directory or - with -f"), cmd.CommandPath()}
	}
	objects, err := o.input.read(a)
	if err != nil {
		return err
	}
	items, err := prepare(objects, o.scope)
	if err != nil || len(items) == 0 {
		return err
	}
	ctx := cmd.Context()
	s, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	s.dry = o.dry
	if err := checkCluster(ctx, s, items, verb == "create"); err != nil {
		return err
	}
	if o.confirm > 0 && !o.dry {
		return a.try(ctx, s, items, o.confirm)
	}
	// Who the cluster is comes first: any other write would make that up.
	slices.SortStableFunc(items, func(x, y item) int {
		rank := func(it item) int {
			if it.key.Kind == api.KindClusterInformation {
				return 0
			}
			return 1
		}
		return rank(x) - rank(y)
	})
	r := report{app: a, verb: verb, participle: participle, objects: objects, dry: o.dry}
	for _, it := range items {
		done, err := do(ctx, s, it)
		if err != nil {
			err = manifest.Prefix(it.Source, explain(it.key, err))
		}
		if r.add(output.Name(it.key), done, err); r.hopeless {
			break
		}
	}
	return r.end()
}

// report tells what happens to each object and sums up.
type report struct {
	*app
	verb, participle string // "apply", "applied"
	objects          []manifest.Object
	kind             string // used when there are no objects from files
	count            int    // how many were asked for, likewise
	done             int
	errs             []error
	hopeless         bool // going on is of no use
	dry              bool // nothing is written
}

func (r *report) add(name, done string, err error) {
	if err != nil {
		r.hopeless = errors.Is(err, datastore.ErrUnreachable) || errors.Is(err, context.Canceled)
		r.errs = append(r.errs, err)
		return
	}
	r.done++
	if r.dry {
		done += " (dry run)"
	}
	fmt.Fprintln(r.Out, name, done)
}

// end prints Calico's closing sentence, which other tools look for.
func (r *report) end() error {
	kind, count := r.kind, r.count
	if r.objects != nil {
		kind, count = singleKind(r.objects), len(r.objects)
	}
	what := "resource(s)"
	if kind != "" {
		what = fmt.Sprintf("'%s' resource(s)", kind)
	}
	if len(r.errs) == 0 && r.dry {
		_, err := fmt.Fprintf(r.Out, "Dry run: %d %s would be %s; nothing was written\n", count, what, r.participle)
		return err
	}
	if len(r.errs) == 0 {
		_, err := fmt.Fprintf(r.Out, "Successfully %s %d %s\n", r.participle, count, what)
		return err
	}
	head := fmt.Sprintf("Failed to %s %d of %d %s", r.verb, count-r.done, count, what)
	if r.done > 0 {
		head = fmt.Sprintf("Partial success: %s %d of %d %s", r.participle, r.done, count, what)
	}
	return fmt.Errorf("%s:\n%w", head, errors.Join(r.errs...))
}

// singleKind returns the kind that all objects have, or "".
func singleKind(objects []manifest.Object) string {
	kind := objects[0].Kind.Name
	for _, o := range objects {
		if o.Kind.Name != kind {
			return ""
		}
	}
	return kind
}

func create(ctx context.Context, s store, it item, skipExists bool) (string, error) {
	if b := builtIn(it.key); b != nil {
		if skipExists {
			return "exists, skipped", nil
		}
		return "", datastore.ErrExists
	}
	it.resource.SetResourceVersion("")
	_, err := s.Create(ctx, it.resource)
	if skipExists && errors.Is(err, datastore.ErrExists) {
		return "exists, skipped", nil
	}
	return "created", err
}
