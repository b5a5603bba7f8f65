package output

import (
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"text/template"

	"calico-xdp/pkg/api"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// list is all resources of a kind, as "kind: IPPoolList" in YAML and JSON.
type list struct {
	Kind       string          `json:"kind"`
	APIVersion string          `json:"apiVersion"`
	Metadata   metav1.ListMeta `json:"metadata"`
	Items      []api.Resource  `json:"items"`
}

// documents returns the values to write: one per list and one per resource that
// was asked for by name.
func documents(groups []Group) []any {
	var out []any
	for _, g := range groups {
		if g.Listed {
			items := sorted(g)
			if items == nil {
				items = []api.Resource{}
			}
			out = append(out, list{
				Kind: g.Kind.Name + "List", APIVersion: api.GroupVersion,
				Metadata: metav1.ListMeta{ResourceVersion: g.Version}, Items: items,
			})
			continue
		}
		for _, r := range g.Resources {
			out = append(out, r)
		}
	}
	return out
}

// value returns the one document there is, or an array of them.
func value(groups []Group) any {
	docs := documents(groups)
	if len(docs) == 1 {
		return docs[0]
	}
	return docs
}

// YAML writes one document.
func YAML(w io.Writer, groups []Group) error {
	if len(documents(groups)) == 0 {
		return nil
	}
	data, err := yaml.Marshal(value(groups))
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

// JSON writes one value.
func JSON(w io.Writer, groups []Group) error {
	if len(documents(groups)) == 0 {
		return nil
	}
	return WriteJSON(w, value(groups))
}

// WriteJSON writes any value as calicoctl indents JSON.
func WriteJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false) // selectors are full of &&
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// Names writes one KIND/NAME or KIND/NAMESPACE/NAME per line, which get and
// delete take as arguments.
func Names(w io.Writer, groups []Group) error {
	for _, g := range groups {
		for _, r := range sorted(g) {
			if _, err := fmt.Fprintln(w, Name(api.KeyOf(r))); err != nil {
				return err
			}
		}
	}
	return nil
}

// Name returns a key as "ippool/default-pool" or "networkpolicy/prod/web".
func Name(k api.Key) string {
	kind := strings.ToLower(k.Kind)
	if k.Namespace == "" {
		return kind + "/" + k.Name
	}
	return kind + "/" + k.Namespace + "/" + k.Name
}

// Template runs a Go template over the documents: lists with .Items, or single
// resources; both with the fields of Calico's Go types.
func Template(w io.Writer, groups []Group, text string) error {
	t, err := template.New("output").Funcs(template.FuncMap{
		"join": func(list any, sep string) (string, error) {
			v := reflect.ValueOf(list)
			if v.Kind() != reflect.Slice && v.Kind() != reflect.Array {
				return "", fmt.Errorf("join: %T is not a list", list)
			}
			members := make([]string, v.Len())
			for i := range members {
				members[i] = fmt.Sprint(v.Index(i).Interface())
			}
			return strings.Join(members, sep), nil
		},
	}).Parse(text)
	if err != nil {
		return fmt.Errorf("template: %w", err)
	}
	if err := t.Execute(w, documents(groups)); err != nil {
		return fmt.Errorf("template: %w", err)
	}
	return nil
}

// field returns the JSON field at a path such as .spec.bgp.ipv4Address or
// .spec.nets[0]; lists and objects as JSON, "<none>" for what is not there.
func field(r api.Resource, path string) string {
	data, err := json.Marshal(r)
	if err != nil {
		return err.Error()
	}
	var v any
	dec := json.NewDecoder(strings.NewReader(string(data)))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		return err.Error()
	}
	path = strings.Trim(strings.TrimSpace(path), "{}")
	path = strings.NewReplacer("[", ".", "]", "").Replace(path)
	for _, step := range strings.Split(strings.Trim(path, "."), ".") {
		switch at := v.(type) {
		case map[string]any:
			v = at[step]
		case []any:
			i, err := strconv.Atoi(step)
			if err != nil || i < 0 || i >= len(at) {
				return "<none>"
			}
			v = at[i]
		default:
			return "<none>"
		}
	}
	switch v := v.(type) {
	case nil:
		return "<none>"
	case string:
		return v
	}
	out, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(out)
}
