package command

import (
	"context"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"calico-xdp/pkg/api"

	"github.com/spf13/cobra"
)

// Build is what this binary was made from.
type Build struct {
	Version string // "v1.2.3"
	Commit  string
}

// BuildInfo returns what the linker was told, or what Go recorded by itself.
func BuildInfo(version, commit string) Build {
	b := Build{version, commit}
	if info, ok := debug.ReadBuildInfo(); ok {
		if b.Version == "" && strings.HasPrefix(info.Main.Version, "v") {
			b.Version = info.Main.Version
		}
		for _, s := range info.Settings {
			if b.Commit == "" && s.Key == "vcs.revision" {
				b.Commit = s.Value[:min(10, len(s.Value))]
			}
		}
	}
	if b.Version == "" {
		b.Version = "v0.0.0-devel"
	}
	if b.Commit == "" {
		b.Commit = "unknown"
	}
	return b
}

func newVersion(a *app) *cobra.Command {
	var clientOnly bool
	var poll time.Duration
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the versions of this command and of the cluster",
		Long:  "Show the version of this command and, from the ClusterInformation in the\ndatastore, the cluster's.",
		Example: `  calicoctl version

  # Without asking the datastore.
  calicoctl version --client`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintf(a.Out, "Client Version:    %s\nGit commit:        %s\n", a.Build.Version, a.Build.Commit)
			if clientOnly {
				return nil
			}
			for {
				err := a.clusterVersion(cmd.Context())
				if poll <= 0 {
					return err
				}
				if err != nil {
					fmt.Fprintln(a.Err, err)
				}
				select {
				case <-cmd.Context().Done():
					return nil
				case <-time.After(poll):
				}
			}
		},
	}
	cmd.Flags().DurationVar(&poll, "poll", 0, "ask again and again, so often")
	cmd.Flags().BoolVar(&clientOnly, "client", false, "only the client's version, without asking the datastore")
	return cmd
}

func (a *app) clusterVersion(ctx context.Context) error {
	s, err := a.open(ctx)
	if err != nil {
		return fmt.Errorf("unable to retrieve Cluster Version or Type: %w", err)
	}
	defer s.Close()
	key := api.Key{Kind: api.KindClusterInformation, Name: "default"}
	r, err := s.Get(ctx, key)
	if err != nil {
		return fmt.Errorf("unable to retrieve Cluster Version or Type: %w", explain(key, err))
	}
	info, ok := r.(*api.ClusterInformation)
	if !ok {
		return fmt.Errorf("unable to retrieve Cluster Version or Type: %s has the type %T", key, r)
	}
	fmt.Fprintf(a.Out, "Cluster Version:   %s\nCluster Type:      %s\n",
		orUnknown(info.Spec.CalicoVersion), orUnknown(info.Spec.ClusterType))
	return nil
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}
