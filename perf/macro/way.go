package macro

import (
	"net/netip"
	"strings"

	"calico-xdp/perf/bed"
	"calico-xdp/pkg/api"
	"calico-xdp/tools/testbed"
)

// way is somebody who carries packets to workload b, and enforces what it may receive.
type way struct {
	name string
	make func(t testbed.T) *site
}

// ours is the product with these resources.
func ours(resources []api.Resource) way {
	return way{"calico-xdp", func(t testbed.T) *site { return newOurs(t, resources) }}
}

// kernel is the host's stack without a rule.
func kernel() way {
	return way{"kernel", func(t testbed.T) *site { return newKernel(t, "kernel") }}
}

// underRules are the product and all others with the same rules, and the kernel with
// none. Filters are stateful where they have to know a connection's answers.
func (r *Run) underRules(rules []bed.Rule, stateful bool) []way {
	return r.under(bed.Policies("name == 'b'", rules), func(f filter) []script {
		if f.rules == nil {
			return nil
		}
		return f.rules(rules, stateful)
	})
}

// underBlocklist are the same with a set of networks.
func (r *Run) underBlocklist(nets []netip.Prefix, stateful bool) []way {
	return r.under(bed.Blocklist("name == 'b'", nets), func(f filter) []script {
		if f.networks == nil {
			return nil
		}
		return f.networks(nets, stateful)
	})
}

func (r *Run) under(resources []api.Resource, scripts func(filter) []script) []way {
	ways := []way{ours(resources), kernel()}
	for _, f := range filters() {
		all := scripts(f)
		if all == nil {
			continue
		}
		if m := missing(f.needs); len(m) > 0 {
			r.miss("%s: no %s; `make setup-perf` installs it", f.name, strings.Join(m, ", "))
			continue
		}
		ways = append(ways, way{f.name, func(t testbed.T) *site {
			s := newKernel(t, f.name)
			s.load(t, all)
			return s
		}})
	}
	return ways
}

// lanes makes the site of every way and says how it is measured.
func lanes(t testbed.T, ways []way, measure func(*site) sampler) []lane {
	var out []lane
	for _, w := range ways {
		out = append(out, lane{w.name, measure(w.make(t))})
	}
	return out
}
