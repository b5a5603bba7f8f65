// Package output writes resources as calicoctl's users read them: tables, YAML,
// JSON, names, chosen columns, templates.
package output

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"calico-xdp/pkg/api"
)

// Group is what one part of a request found.
type Group struct {
	Kind      *api.Kind
	Resources []api.Resource
	// Listed says that all of a kind were asked for, not some by name: YAML and
	// JSON then have a list even if there is only one.
	Listed bool
	// Version is the datastore's revision as of which they were listed.
	Version string
}

// Table writes one table per group, each followed by an empty line.
func Table(w io.Writer, groups []Group, wideForm, withNamespace bool, c Cluster) error {
	return eachTable(w, groups, c, func(g Group) ([]column, error) {
		var cs []column
		if withNamespace && g.Kind.Namespaced {
			cs = append(cs, namespace)
		}
		for _, col := range columnsOf(g.Kind.Name) {
			if !col.asked && (wideForm || !col.wide) {
				cs = append(cs, col)
			}
		}
		return cs, nil
	})
}

// Columns is Table with chosen columns, separated by commas. Each is a heading
// of the kind's wide table ("CIDR") or HEADING:.path.to.field.
func Columns(w io.Writer, groups []Group, spec string, c Cluster) error {
	return eachTable(w, groups, c, func(g Group) ([]column, error) {
		known := append([]column{name, namespace}, columnsOf(g.Kind.Name)...)
		var cs []column
		for _, want := range strings.Split(spec, ",") {
			heading, path, hasPath := strings.Cut(strings.TrimSpace(want), ":")
			if hasPath {
				cs = append(cs, column{heading: heading, cell: func(r api.Resource, _ Cluster) string { return field(r, path) }})
				continue
			}
			i := slices.IndexFunc(known, func(k column) bool { return strings.EqualFold(k.heading, heading) })
			if i < 0 {
				return nil, fmt.Errorf("%s has no column %q; it has %s, and HEADING:.path.to.field shows any field",
					g.Kind.Name, heading, headings(known))
			}
			cs = append(cs, known[i])
		}
		return cs, nil
	})
}

func headings(cs []column) string {
	var out []string
	for _, c := range cs {
		if !slices.Contains(out, c.heading) {
			out = append(out, c.heading)
		}
	}
	return strings.Join(out, ", ")
}

func eachTable(w io.Writer, groups []Group, c Cluster, columns func(Group) ([]column, error)) error {
	for _, g := range groups {
		cs, err := columns(g)
		if err != nil {
			return err
		}
		if !g.Listed && len(g.Resources) == 0 {
			continue // none of those that were named exists
		}
		var headings []string
		for _, col := range cs {
			headings = append(headings, col.heading)
		}
		var rows [][]string
		for _, r := range sorted(g) {
			var row []string
			for _, col := range cs {
				row = append(row, col.cell(r, c))
			}
			rows = append(rows, row)
		}
		if err := Plain(w, headings, rows); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(w); err != nil {
			return err
		}
	}
	return nil
}

// Plain writes a table without lines, as 'calicoctl get' has it. Every cell ends with a
// tab, so that each line is padded to the full width of the table: Calico's layout,
// which scripts may rely on.
func Plain(w io.Writer, headings []string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 5, 1, 3, ' ', 0)
	for _, row := range append([][]string{headings}, rows...) {
		for _, cell := range row {
			fmt.Fprint(tw, oneLine(cell), "\t")
		}
		fmt.Fprintln(tw)
	}
	return tw.Flush()
}

// oneLine keeps a value from tearing the table apart or reaching the terminal
// as a control sequence.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// sorted returns the resources in the order in which they are shown: tiers as they
// are evaluated, everything else as it came.
func sorted(g Group) []api.Resource {
	if g.Kind.Name != api.KindTier {
		return g.Resources
	}
	rs := slices.Clone(g.Resources)
	slices.SortStableFunc(rs, func(a, b api.Resource) int {
		x, y := a.(*api.Tier).Spec.Order, b.(*api.Tier).Spec.Order
		switch {
		case x == nil && y == nil:
			return cmp.Compare(a.GetName(), b.GetName())
		case x == nil:
			return 1 // no order is the last
		case y == nil:
			return -1
		}
		return cmp.Or(cmp.Compare(*x, *y), cmp.Compare(a.GetName(), b.GetName()))
	})
	return rs
}
