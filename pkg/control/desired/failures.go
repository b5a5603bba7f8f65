package desired

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"calico-xdp/pkg/api"
)

// EndpointErrors is what a sink returns when single endpoints are all that it could
// not do: they are closed, the rest of the state is in place.
type EndpointErrors map[api.Key]error

func (e EndpointErrors) Error() string {
	keys := slices.SortedFunc(maps.Keys(e), func(a, b api.Key) int { return cmp.Compare(a.String(), b.String()) })
	lines := make([]string, len(keys))
	for i, k := range keys {
		lines[i] = fmt.Sprintf("%s: %v", k, e[k])
	}
	return strings.Join(lines, "\n")
}
