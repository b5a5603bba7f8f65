package command

import (
	"errors"
	"fmt"

	"calico-xdp/cmd/calicoctl/manifest"
	"calico-xdp/pkg/api"

	"github.com/spf13/cobra"
)

// input is what -f and its companions say.
type input struct {
	files     []string
	recursive bool
	skipEmpty bool
}

func (in *input) flags(cmd *cobra.Command) {
	cmd.Flags().StringArrayVarP(&in.files, "filename", "f", nil, "file or directory with resources as YAML or JSON, - for standard input; may be repeated")
	cmd.Flags().BoolVarP(&in.recursive, "recursive", "R", false, "read directories with all that is below them")
	cmd.Flags().BoolVar(&in.skipEmpty, "skip-empty", false, "do not fail if there is no resource in the files")
}

// read returns all objects of the files.
func (in *input) read(a *app) ([]manifest.Object, error) {
	objects, err := manifest.Read(in.files, in.recursive, a.In)
	if err == nil && len(objects) == 0 && !in.skipEmpty {
		err = errors.New("no resources specified in file")
	}
	return objects, err
}

// item is an object that is ready to be written.
type item struct {
	manifest.Object
	resource api.Resource
	key      api.Key
}

// complete returns the object's key, with a namespace if its kind has any.
func (s scope) complete(obj manifest.Object) (api.Key, error) {
	key := obj.Key
	switch {
	case !obj.Kind.Namespaced:
	case key.Namespace == "" && s.namespace == "":
		key.Namespace = defaultNamespace
	case key.Namespace == "":
		key.Namespace = s.namespace
	case s.namespace != "" && s.namespace != key.Namespace:
		return key, fmt.Errorf("%s: %s: metadata.namespace: %q is not the namespace of -n, %q", obj.Source, key, key.Namespace, s.namespace)
	}
	return key, nil
}

// keyOf returns the key of an object of which only the key matters. An endpoint's
// name may be left out: its other fields make it.
func (s scope) keyOf(obj manifest.Object) (api.Key, error) {
	if obj.Key.Name == "" {
		r, err := obj.Decode()
		if err != nil {
			return api.Key{}, err
		}
		api.Default(r)
		obj.Key.Name = r.GetName()
	}
	if obj.Key.Name == "" {
		return api.Key{}, fmt.Errorf("%s: %s: metadata.name is missing", obj.Source, obj.Kind.Name)
	}
	return s.complete(obj)
}

// prepare decodes, completes, defaults and validates all objects, so that
// nothing is written if any of them is wrong. All faults are reported.
func prepare(objects []manifest.Object, s scope) ([]item, error) {
	items, errs := check(objects, s)
	return items, refusal(errs)
}

// check is what prepare does, for those who never meant to write.
func check(objects []manifest.Object, s scope) ([]item, []error) {
	items := make([]item, 0, len(objects))
	var errs []error
	for _, obj := range objects {
		r, err := obj.Decode()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		key, err := s.complete(obj)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if obj.Kind.Namespaced {
			r.SetNamespace(key.Namespace)
		}
		api.Default(r)
		if err := api.Validate(r); err != nil {
			errs = append(errs, manifest.Prefix(obj.Source, err))
			continue
		}
		items = append(items, item{obj, r, api.KeyOf(r)})
	}
	return items, errs
}

// refusal lists all faults for which nothing is written, if there are any.
func refusal(errs []error) error {
	if err := errors.Join(errs...); err != nil {
		//lint:ignore ST1005 a sentence to the user
		return fmt.Errorf("%w\nNothing was written.", err)
	}
	return nil
}
