package command

import (
	"fmt"
	"slices"
	"strings"

	"calico-xdp/pkg/api"

	"github.com/spf13/cobra"
)

const defaultNamespace = "default"

// scope is what -n and -A say.
type scope struct {
	namespace string
	all       bool
}

func (s *scope) flags(cmd *cobra.Command, withAll bool) {
	cmd.Flags().StringVarP(&s.namespace, "namespace", "n", "", `namespace of NetworkPolicy, NetworkSet, WorkloadEndpoint and the like (default "default")`)
	if withAll {
		cmd.Flags().BoolVarP(&s.all, "all-namespaces", "A", false, "resources of all namespaces")
	}
}

// of returns the namespace that the resources of a kind are looked for in; ""
// for all, or if the kind has none.
func (s scope) of(k *api.Kind) (string, error) {
	if !k.Namespaced {
		if s.all || s.namespace != "" {
			return "", fmt.Errorf("%s is not namespaced", k.Name)
		}
		return "", nil
	}
	switch {
	case s.all:
		return "", nil
	case s.namespace != "":
		return s.namespace, nil
	}
	return defaultNamespace, nil
}

// selection is some resources of a kind: all in a namespace, or those with
// these names.
type selection struct {
	kind      *api.Kind
	namespace string // "" for all, or for kinds without namespaces
	names     []string
}

// parseSelections reads "KIND[,KIND...]", "KIND NAME[,NAME...] ..." and
// "KIND/NAME ...", "KIND/NAMESPACE/NAME ...", which is what -o name prints.
func parseSelections(args []string, s scope) ([]selection, error) {
	if strings.Contains(args[0], "/") {
		return parseFullNames(args, s)
	}
	kinds := splitList(args[0])
	if len(kinds) == 0 {
		return nil, fmt.Errorf("no resource type given; %s", knownKinds())
	}
	var names []string
	for _, arg := range args[1:] {
		names = append(names, splitList(arg)...)
	}
	if len(kinds) > 1 && len(names) > 0 {
		return nil, fmt.Errorf("several resource types cannot be combined with names; use KIND/NAME")
	}
	var out []selection
	for _, name := range kinds {
		k, err := findKind(name)
		if err != nil {
			return nil, err
		}
		ns, err := s.of(k)
		if err != nil {
			return nil, err
		}
		out = append(out, selection{kind: k, namespace: ns, names: names})
	}
	return out, nil
}

func parseFullNames(args []string, s scope) ([]selection, error) {
	var out []selection
	for _, arg := range args {
		parts := strings.Split(arg, "/")
		if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
			return nil, fmt.Errorf("%q is neither KIND/NAME nor KIND/NAMESPACE/NAME", arg)
		}
		k, err := findKind(parts[0])
		if err != nil {
			return nil, err
		}
		if len(parts) == 3 {
			if !k.Namespaced {
				return nil, fmt.Errorf("%s is not namespaced", k.Name)
			}
			out = append(out, selection{kind: k, namespace: parts[1], names: parts[2:]})
			continue
		}
		ns, err := s.of(k)
		if err != nil {
			return nil, err
		}
		out = append(out, selection{kind: k, namespace: ns, names: parts[1:]})
	}
	return out, nil
}

// splitList splits at commas and drops what is empty.
func splitList(s string) []string {
	return slices.DeleteFunc(strings.Split(s, ","), func(part string) bool { return part == "" })
}

// findKind finds a kind that users may see.
func findKind(name string) (*api.Kind, error) {
	k, ok := api.FindKind(name)
	if ok && k.Internal {
		// Its name in lower case may be short for another kind.
		k, ok = api.FindKind(strings.ToLower(name))
	}
	if !ok || k.Internal {
		return nil, fmt.Errorf("resource type '%s' is not supported; %s", name, knownKinds())
	}
	return k, nil
}

func knownKinds() string {
	return "known are " + strings.Join(kindNames(), ", ")
}

func kindNames() []string {
	var names []string
	for _, k := range api.Kinds() {
		if !k.Internal {
			names = append(names, strings.ToLower(k.Name))
		}
	}
	slices.Sort(names)
	return names
}

// completeKinds offers resource types for the first argument.
func completeKinds(_ *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return slices.DeleteFunc(kindNames(), func(name string) bool {
		return !strings.HasPrefix(name, strings.ToLower(begun))
	}), cobra.ShellCompDirectiveNoFileComp
}
