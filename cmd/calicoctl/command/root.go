// Package command is calicoctl's command line.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"calico-xdp/pkg/datastore"

	"github.com/spf13/cobra"
)

// Surroundings is all that a command knows of the process that runs it.
type Surroundings struct {
	In       io.Reader
	Out, Err io.Writer
	Env      func(string) string
	Build    Build
}

// app is what the commands of one run share.
type app struct {
	Surroundings
	configFile  string
	configSet   bool // --config was given, so the file must exist
	logLevel    string
	anyVersion  bool // --allow-version-mismatch: there is no version that we refuse
	kubeContext string
}

// usageError is a command line that was not understood.
type usageError struct {
	error
	command string
}

// Run runs calicoctl with these arguments and returns its exit code: 0, or
// another, mostly 1, with the reason on s.Err.
func Run(ctx context.Context, args []string, s Surroundings) int {
	root := newRoot(&app{Surroundings: s})
	root.SetArgs(args)
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	ran, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	code := 1
	if exit := (exitError{}); errors.As(err, &exit) {
		if code = exit.code; exit.err == nil {
			return code
		}
		err = exit.err
	}
	fmt.Fprintln(s.Err, strings.TrimRight(err.Error(), "\n"))
	if errors.Is(err, datastore.ErrUnreachable) {
		fmt.Fprintln(s.Err, "Is etcd running there? ETCD_ENDPOINTS or the configuration file says where it is.")
	}
	if wrong := (usageError{}); errors.As(err, &wrong) {
		fmt.Fprintf(s.Err, "Run '%s --help' for usage.\n", wrong.command)
	} else if strings.HasPrefix(err.Error(), "unknown command") {
		fmt.Fprintf(s.Err, "Run '%s --help' for usage.\n", ran.CommandPath())
	}
	return code
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "calicoctl",
		Short: "Read and change a Calico cluster, and see how it is doing",
		Long: `calicoctl reads and changes a Calico cluster, and shows how it is doing.

What there is:
  Resources   say how the cluster should be: pools of addresses, policies and
              tiers, endpoints, BGP peers. They live in etcd and are changed
              with apply, create, replace and delete and read with get.
  calico-node runs on every host and makes its kernel so: eBPF programs for
              policy and forwarding, routes, BGP. 'calicoctl node status' asks
              the one on this host.
  calico-cni  attaches containers; it creates their WorkloadEndpoints and takes
              their addresses from the IP pools ('calicoctl ipam show').

Where etcd is: ETCD_ENDPOINTS, else ETCD_AUTHORITY, else the configuration file,
else http://127.0.0.1:2379.`,
		Example: `  # See the pools, and the workloads of all namespaces with all their columns.
  calicoctl get ippool
  calicoctl get workloadendpoint -A -o wide

  # Change the cluster to what these files say; nothing happens if one is wrong.
  calicoctl apply -f policies/

  # Why does this packet not arrive? What is dropped right now?
  calicoctl why shop/web shop/db --port 5432
  calicoctl observe --drops

  # How this host, and address use, are doing.
  calicoctl node status
  calicoctl ipam show --show-blocks`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			a.configSet = cmd.Flags().Changed("config")
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{err, cmd.CommandPath()}
	})
	flags := root.PersistentFlags()
	flags.StringVarP(&a.configFile, "config", "c", defaultConfigFile, "file that says where the datastore is (CalicoAPIConfig, YAML or JSON); the environment wins over it")
	flags.StringVarP(&a.logLevel, "log-level", "l", "warn", "log to standard error from this level on: debug, info, warn, error, fatal, panic")
	flags.BoolVar(&a.anyVersion, "allow-version-mismatch", false, "accepted for compatibility: any client and cluster version may be mixed")
	flags.StringVar(&a.kubeContext, "context", "", "accepted for compatibility")
	_ = flags.MarkHidden("context")

	root.AddGroup(
		&cobra.Group{ID: "resources", Title: "Resources:"},
		&cobra.Group{ID: "state", Title: "State:"},
		&cobra.Group{ID: "other", Title: "Other:"},
		&cobra.Group{ID: "2015", Title: "As before version 1.0:"},
	)
	root.SetHelpCommandGroupID("other")
	root.SetCompletionCommandGroupID("other")
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("resources", newGet(a), newApply(a), newCreate(a), newReplace(a), newDelete(a), newPatch(a), newLabel(a),
		newEdit(a), newDiff(a), newValidate(a), newConvert(a), newConfirm(a), newWait(a))
	add("state", newWhy(a), newObserve(a), newRules(a), newFlows(a), newNode(a), newIPAM(a), newDatastore(a), newCluster(a))
	add("other", newVersion(a))
	add("2015", legacyCommands(a)...)
	return root
}

// group makes a command that only holds others.
func group(use, short, long, example string, cmds ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Long: long, Example: example,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return usageError{fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath()), cmd.CommandPath()}
		},
	}
	c.AddCommand(cmds...)
	return c
}

// noArgs refuses positional arguments.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unexpected argument %q", args[0]), cmd.CommandPath()}
	}
	return nil
}

// logger writes to standard error what --log-level asks for: by default only
// that something is wrong, since scripts take any output there for a failure.
func (a *app) logger() (*slog.Logger, error) {
	var level slog.Level
	switch strings.ToLower(a.logLevel) {
	case "panic", "fatal":
		return slog.New(slog.DiscardHandler), nil
	case "warning":
		level = slog.LevelWarn
	default:
		if err := level.UnmarshalText([]byte(a.logLevel)); err != nil {
			return nil, fmt.Errorf("--log-level: %q is none of debug, info, warn, error, fatal, panic", a.logLevel)
		}
	}
	return slog.New(slog.NewTextHandler(a.Err, &slog.HandlerOptions{Level: level})), nil
}
