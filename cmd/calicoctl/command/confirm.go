package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"calico-xdp/cmd/calicoctl/manifest"
	"calico-xdp/cmd/calicoctl/output"
	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"

	"github.com/spf13/cobra"
)

// A trial shorter than this is over before anybody can confirm it.
const shortestTrial = 5 * time.Second

// nodeAnswerTime is how long a node may take to show that it is there.
const nodeAnswerTime = 5 * time.Second

// try is apply, undone after the limit unless somebody confirms it.
func (a *app) try(ctx context.Context, s store, items []item, limit time.Duration) error {
	if limit < shortestTrial {
		return fmt.Errorf("--confirm: %s is too short, at least %s", limit, shortestTrial)
	}
	pending, err := s.trials(ctx)
	if err != nil {
		return err
	}
	if err := refusal(triable(items, pending)); err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		trial, done, err := a.tryOnce(ctx, s, items, limit)
		if errors.Is(err, datastore.ErrConflict) && attempt < attempts {
			continue
		}
		if err != nil {
			return err
		}
		for i, it := range items {
			fmt.Fprintln(a.Out, output.Name(it.key), done[i])
		}
		objects := make([]manifest.Object, len(items))
		for i, it := range items {
			objects[i] = it.Object
		}
		r := report{app: a, participle: "applied", objects: objects}
		if err := r.end(); err != nil || trial == nil {
			return err
		}
		over := trial.Started.Add(time.Duration(trial.Seconds) * time.Second)
		_, err = fmt.Fprintf(a.Out, "It is undone at %s, in %s, unless you say\n  calicoctl confirm %s\n", over.Local().Format(time.TimeOnly), limit, trial.Name)
		return err
	}
}

// triable returns what is against trying these.
func triable(items []item, pending []*api.Trial) (faults []error) {
	busy := make(map[api.Key]string)
	for _, t := range pending {
		for i := range t.Changes {
			busy[t.Changes[i].Key()] = t.Name
		}
	}
	for _, it := range items {
		if !api.Triable(it.key.Kind) {
			faults = append(faults, fmt.Errorf("%s: %s: --confirm is for policy, endpoints of hosts, sets, Felix' and BGP's configuration; not for %s", it.Source, it.key, it.key.Kind))
		}
		if t := busy[it.key]; t != "" {
			faults = append(faults, fmt.Errorf("%s: %s: is being tried already: first 'calicoctl confirm %s', with --revert or without", it.Source, it.key, t))
		}
		if busy[it.key] = "this file"; builtIn(it.key) != nil {
			faults = append(faults, fmt.Errorf("%s: %s is built in and cannot be changed", it.Source, it.key))
		}
	}
	return faults
}

// tryOnce writes what differs, and says for each item what becomes of it.
func (a *app) tryOnce(ctx context.Context, s store, items []item, limit time.Duration) (*api.Trial, []string, error) {
	var (
		changed []api.Resource
		done    = make([]string, len(items))
	)
	for i, it := range items {
		stored, err := s.Get(ctx, it.key)
		switch {
		case errors.Is(err, datastore.ErrNotFound):
			done[i] = "created"
			it.resource.SetResourceVersion("")
			changed = append(changed, it.resource)
			continue
		case err != nil:
			return nil, nil, err
		}
		next, err := it.over(stored)
		if err != nil {
			return nil, nil, manifest.Prefix(it.Source, err)
		}
		same, err := equal(stored, next)
		if err != nil {
			return nil, nil, err
		}
		if same {
			done[i] = "unchanged"
			continue
		}
		done[i] = "configured"
		next = next.DeepCopyObject().(api.Resource)
		next.SetResourceVersion(cmp.Or(it.ResourceVersion, stored.GetResourceVersion()))
		changed = append(changed, next)
	}
	if changed == nil {
		return nil, done, nil
	}
	// Nodes are who undo it: there has to be one.
	if err := s.anyNode(ctx); err != nil {
		return nil, nil, err
	}
	host, _ := os.Hostname() // only for those who wonder whose it is
	trial, err := s.Try(ctx, changed, limit, strings.Trim(a.Env("USER")+"@"+host, "@"))
	if errors.Is(err, datastore.ErrUnreachable) {
		// Policy may be faster than etcd's answer.
		err = fmt.Errorf("%w\nIf it was written nevertheless, and has cut the way to the datastore, it is undone by itself after %s", err, limit)
	}
	return trial, done, err
}

// anyNode makes sure that there is a node that takes part.
func (s store) anyNode(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, nodeAnswerTime)
	defer cancel()
	query, err := s.AskEnforced(limited, 2*nodeAnswerTime)
	if err != nil {
		return err
	}
	defer query.Close(ctx) // its lease takes it away in any case
	for {
		answers, err := query.Answers(limited)
		if err == nil && len(answers) > 0 {
			return nil
		}
		if err != nil && limited.Err() == nil {
			return err
		}
		select {
		case <-limited.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return errors.New("no calico-node answers that could undo this: start one, or apply without --confirm.\nNothing was written")
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (s store) trials(ctx context.Context) ([]*api.Trial, error) {
	rs, err := s.List(ctx, api.KindTrial, "")
	out := make([]*api.Trial, len(rs))
	for i, r := range rs {
		out[i] = r.(*api.Trial)
	}
	return out, err
}

func newConfirm(a *app) *cobra.Command {
	var revert, list bool
	cmd := &cobra.Command{
		Use:   "confirm [ID]",
		Short: "Let what 'apply --confirm' has changed stay",
		Long: `Let what 'apply --confirm' has changed stay. The ID may be left out if only one
change waits.

Until then etcd counts the time, and when it is over any calico-node puts back what
was there before, all at once; what somebody has changed since is left alone. It
needs neither this shell nor this host. A node that has lost the datastore goes
back by itself a few seconds later, until the datastore says otherwise.`,
		Example: `  calicoctl apply -f lockdown.yaml --confirm 60s
  calicoctl confirm

  # Do not wait: undo it now.
  calicoctl confirm 3f2a91bc --revert

  # What waits?
  calicoctl confirm --list`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			s, err := a.open(ctx)
			if err != nil {
				return err
			}
			defer s.Close()
			pending, err := s.trials(ctx)
			if err != nil {
				return err
			}
			if list {
				return a.listTrials(pending)
			}
			id := ""
			switch {
			case len(args) == 1:
				id = args[0]
			case len(pending) == 0:
				return errors.New("nothing waits to be confirmed")
			case len(pending) > 1:
				a.listTrials(pending)
				return errors.New("several changes wait: name one")
			default:
				id = pending[0].Name
			}
			if revert {
				return a.revert(ctx, s, id)
			}
			err = s.ConfirmTrial(ctx, id)
			if errors.Is(err, datastore.ErrNotFound) {
				return fmt.Errorf("%s does not wait to be confirmed: it has been already, or it was too late and what was before is back", id)
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.Out, "%s confirmed: the change stays\n", id)
			return err
		},
	}
	cmd.Flags().BoolVar(&revert, "revert", false, "put back what was before, now")
	cmd.Flags().BoolVar(&list, "list", false, "show what waits")
	cmd.MarkFlagsMutuallyExclusive("revert", "list")
	return cmd
}

func (a *app) revert(ctx context.Context, s store, id string) error {
	restored, kept, err := s.RestoreTrial(ctx, id, true)
	if errors.Is(err, datastore.ErrNotFound) {
		return fmt.Errorf("%s does not wait to be confirmed", id)
	}
	if err != nil {
		return err
	}
	for _, key := range restored {
		fmt.Fprintln(a.Out, output.Name(key), "as before")
	}
	for _, key := range kept {
		fmt.Fprintln(a.Out, output.Name(key), "changed since, left as it is")
	}
	return nil
}

func (a *app) listTrials(pending []*api.Trial) error {
	var rows [][]string
	for _, t := range pending {
		var names []string
		for i := range t.Changes {
			names = append(names, output.Name(t.Changes[i].Key()))
		}
		over := t.Started.Add(time.Duration(t.Seconds) * time.Second)
		rows = append(rows, []string{t.Name, t.By, over.Local().Format(time.TimeOnly), output.Cut(names)})
	}
	return output.Plain(a.Out, []string{"ID", "BY", "UNDONE AT", "RESOURCES"}, rows)
}
