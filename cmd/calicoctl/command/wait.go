package command

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"

	"github.com/spf13/cobra"
)

func newWait(a *app) *cobra.Command {
	var (
		condition string
		timeout   time.Duration
	)
	cmd := &cobra.Command{
		Use:   "wait --for enforced [NODE...]",
		Short: "Wait until every node enforces what has been written",
		Long: `Wait until every node, or those named, enforces all that was written before:
policies, endpoints, configuration. If the time is over first, it says which
nodes do not and why, and fails.

Each node is asked once and answers once; nobody writes anything otherwise. Nodes
that run another dataplane do not answer: name those that do.`,
		Example: `  calicoctl apply -f policy.yaml && calicoctl wait --for enforced
  calicoctl wait --for enforced --timeout 5s node1 node2`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if condition != "enforced" {
				return usageError{fmt.Errorf("--for: %q: there is only \"enforced\"", condition), cmd.CommandPath()}
			}
			return a.waitEnforced(cmd.Context(), args, timeout)
		},
	}
	cmd.Flags().StringVar(&condition, "for", "enforced", "what to wait for")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long")
	return cmd
}

func (a *app) waitEnforced(ctx context.Context, nodes []string, timeout time.Duration) error {
	s, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	known, err := s.List(ctx, api.KindNode, "")
	if err != nil {
		return err
	}
	for _, name := range nodes {
		if !slices.ContainsFunc(known, func(r api.Resource) bool { return r.GetName() == name }) {
			return explain(api.Key{Kind: api.KindNode, Name: name}, datastore.ErrNotFound)
		}
	}
	if len(nodes) == 0 {
		for _, r := range known {
			nodes = append(nodes, r.GetName())
		}
	}
	if len(nodes) == 0 {
		return errors.New("the cluster has no nodes")
	}
	query, err := s.AskEnforced(ctx, timeout+10*time.Second)
	if err != nil {
		return err
	}
	defer query.Close(ctx) // its lease takes it away in any case
	start := time.Now()
	var answers map[string]datastore.Answer
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		if answers, err = query.Answers(ctx); err != nil {
			return err
		}
		late := slices.DeleteFunc(slices.Clone(nodes), func(n string) bool { return answers[n].Enforced })
		left := timeout - time.Since(start)
		switch {
		case len(late) == 0:
			_, err := fmt.Fprintf(a.Out, "Enforced by %d node(s)\n", len(nodes))
			return err
		case left <= 0:
			return notEnforced(late, len(nodes), answers, timeout)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(pause, left)):
		}
	}
}

func notEnforced(late []string, all int, answers map[string]datastore.Answer, timeout time.Duration) error {
	var b strings.Builder
	fmt.Fprintf(&b, "not enforced within %s by %d of %d node(s):", timeout, len(late), all)
	for _, n := range late {
		reason := "no answer: calico-node does not run there, has lost the datastore, or is another one"
		if answer, ok := answers[n]; ok {
			reason = answer.Reason
		}
		fmt.Fprintf(&b, "\n  %s: %s", n, strings.ReplaceAll(reason, "\n", "; "))
	}
	return errors.New(b.String())
}
