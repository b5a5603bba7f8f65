package command

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"calico-xdp/cmd/calicoctl/output"
	"calico-xdp/pkg/api"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

func newEdit(a *app) *cobra.Command {
	var sc scope
	cmd := &cobra.Command{
		Use:   "edit (KIND NAME | KIND/NAME)",
		Short: "Change a resource in an editor",
		Long: `Open a resource in $VISUAL or $EDITOR (else vi) and replace it with what was saved.
What is not valid is opened again, with the faults on top. Nothing is written if
nothing was changed, or if somebody else has changed the resource meanwhile.`,
		Example: `  calicoctl edit gnp allow-dns
  EDITOR=nano calicoctl edit networkpolicy web -n prod`,
		ValidArgsFunction: completeKinds,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("name a resource type and one resource"), cmd.CommandPath()}
			}
			selections, err := parseSelections(args, sc)
			if err != nil {
				return err
			}
			if len(selections) != 1 || len(selections[0].names) != 1 {
				return usageError{errors.New("name one resource"), cmd.CommandPath()}
			}
			sel := selections[0]
			return a.edit(cmd.Context(), api.Key{Kind: sel.kind.Name, Namespace: sel.namespace, Name: sel.names[0]})
		},
	}
	sc.flags(cmd, false)
	return cmd
}

func (a *app) edit(ctx context.Context, key api.Key) (err error) {
	s, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	stored, err := s.Get(ctx, key)
	if err != nil {
		return explain(key, err)
	}
	original, err := yaml.Marshal(stored)
	if err != nil {
		return err
	}
	file, err := os.CreateTemp("", "calicoctl-*.yaml")
	if err != nil {
		return err
	}
	file.Close()
	keep := false
	defer func() {
		if !keep {
			os.Remove(file.Name())
		} else if err != nil {
			//lint:ignore ST1005 a sentence to the user
			err = fmt.Errorf("%w\nWhat you wrote is in %s.", err, file.Name())
		}
	}()

	text, shown := original, []byte(nil)
	for {
		if err := os.WriteFile(file.Name(), append(bytes.Clone(shown), text...), 0o600); err != nil {
			return err
		}
		if err := a.editor(ctx, file.Name()); err != nil {
			return err
		}
		saved, err := os.ReadFile(file.Name())
		if err != nil {
			return err
		}
		last := text
		text = bytes.TrimPrefix(saved, shown)
		if len(bytes.TrimSpace(withoutComments(text))) == 0 || bytes.Equal(text, original) {
			_, err := fmt.Fprintln(a.Out, "Edit cancelled, no changes made.")
			return err
		}
		fault := a.writeEdited(ctx, s, stored, text)
		if fault == nil {
			_, err := fmt.Fprintf(a.Out, "%s edited\n", output.Name(key))
			return err
		}
		keep = true
		if invalid := (invalidError{}); !errors.As(fault, &invalid) || shown != nil && bytes.Equal(text, last) {
			return fault // nothing that the editor helps with, or nobody wants to mend it
		}
		shown = []byte("# Not written; mend it, or leave it as it is to give up:\n# " + strings.ReplaceAll(fault.Error(), "\n", "\n# ") + "\n")
	}
}

// invalidError is a fault of what was written in the editor.
type invalidError struct{ error }

func (a *app) writeEdited(ctx context.Context, s store, stored api.Resource, text []byte) error {
	next, err := api.Decode(text)
	if err != nil {
		return invalidError{err}
	}
	key := api.KeyOf(stored)
	api.Default(next)
	if api.KeyOf(next) != key {
		return invalidError{fmt.Errorf("this is %s and not %s: kind, namespace and name stay as they are", api.KeyOf(next), key)}
	}
	before := stored.DeepCopyObject().(api.Resource)
	api.Default(before)
	if err := errors.Join(api.Validate(next), api.ValidateChange(before, next)); err != nil {
		return invalidError{err}
	}
	next.SetResourceVersion(stored.GetResourceVersion())
	_, err = s.Update(ctx, next)
	return explain(key, err)
}

// editor runs the user's editor, whose setting may have arguments.
func (a *app) editor(ctx context.Context, path string) error {
	words := strings.Fields(cmp.Or(a.Env("VISUAL"), a.Env("EDITOR"), "vi"))
	cmd := exec.CommandContext(ctx, words[0], append(words[1:], path)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.In, a.Out, a.Err
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("editor %s: %w", words[0], err)
	}
	return nil
}

func withoutComments(text []byte) []byte {
	var out []byte
	for line := range bytes.Lines(text) {
		if !bytes.HasPrefix(bytes.TrimSpace(line), []byte("#")) {
			out = append(out, line...)
		}
	}
	return out
}
