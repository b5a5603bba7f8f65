package desired

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"calico-xdp/pkg/api"
)

// EndpointErrors is what a sink returns when single endpoints are all that it could
// not do: they are closed, the rest of the state is in place.
type EndpointErrors map[api.Key]error

// TableErrors is the same of entries that full tables have no room for, by table.
type TableErrors map[string]error

// Partial says whether an error of a sink is one of these: the rest of the state is in
// place.
func Partial(err error) bool {
	return errors.As(err, new(EndpointErrors)) || errors.As(err, new(TableErrors))
}

func (e TableErrors) Error() string {
	var lines []string
	for _, table := range slices.Sorted(maps.Keys(e)) {
		lines = append(lines, fmt.Sprintf("%s: %v", table, e[table]))
	}
	return strings.Join(lines, "\n")
}

func (e EndpointErrors) Error() string {
	keys := slices.SortedFunc(maps.Keys(e), func(a, b api.Key) int { return cmp.Compare(a.String(), b.String()) })
	lines := make([]string, len(keys))
	for i, k := range keys {
		lines[i] = fmt.Sprintf("%s: %v", k, e[k])
	}
	return strings.Join(lines, "\n")
}
