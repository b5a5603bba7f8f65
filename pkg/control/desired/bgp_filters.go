package desired

import (
	"fmt"
	"net/netip"
	"path"
	"slices"

	"calico-xdp/pkg/api"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

// addFilters reads the filters that peers name.
func (r *bgpReader) addFilters() {
	b := &r.State.BGP
	for _, p := range b.Peers {
		for _, name := range p.Filters {
			if _, done := b.Filters[name]; done {
				continue
			}
			key := api.Key{Kind: api.KindBGPFilter, Name: name}
			f, ok := r.in.Resources.Get(key).(*api.BGPFilter)
			if !ok {
				continue
			}
			if b.Filters == nil {
				b.Filters = make(map[string]BGPFilter)
			}
			b.Filters[name] = BGPFilter{
				Import4: r.rules(key, "importV4", rulesV4(f.Spec.ImportV4)),
				Export4: r.rules(key, "exportV4", rulesV4(f.Spec.ExportV4)),
				Import6: r.rules(key, "importV6", rulesV6(f.Spec.ImportV6)),
				Export6: r.rules(key, "exportV6", rulesV6(f.Spec.ExportV6)),
			}
		}
	}
}

// filterRule is a rule of either family.
type filterRule struct {
	cidr     string
	is6      bool
	length   bool // a prefix length is given
	min, max *int32
	source   v3.BGPFilterMatchSource
	link     string
	operator v3.BGPFilterMatchOperator
	action   v3.BGPFilterAction
}

func rulesV4(rules []v3.BGPFilterRuleV4) []filterRule {
	out := make([]filterRule, len(rules))
	for i, f := range rules {
		out[i] = filterRule{cidr: f.CIDR, source: f.Source, link: f.Interface, operator: f.MatchOperator, action: f.Action}
		if f.PrefixLength != nil {
			out[i].length, out[i].min, out[i].max = true, f.PrefixLength.Min, f.PrefixLength.Max
		}
	}
	return out
}

func rulesV6(rules []v3.BGPFilterRuleV6) []filterRule {
	out := make([]filterRule, len(rules))
	for i, f := range rules {
		out[i] = filterRule{cidr: f.CIDR, is6: true, source: f.Source, link: f.Interface, operator: f.MatchOperator, action: f.Action}
		if f.PrefixLength != nil {
			out[i].length, out[i].min, out[i].max = true, f.PrefixLength.Min, f.PrefixLength.Max
		}
	}
	return out
}

// rules reads one list of a filter. One that cannot be read matches nothing if it
// accepts, and everything if it rejects.
func (r *bgpReader) rules(key api.Key, list string, rules []filterRule) []BGPRule {
	var out []BGPRule
	for i, f := range rules {
		rule, err := r.rule(f)
		if err != nil {
			r.problem(key, fmt.Errorf("%s[%d]: %w", list, i, err))
			if f.action == v3.Accept {
				continue
			}
			rule = BGPRule{}
		}
		out = append(out, rule)
	}
	return out
}

func (r *bgpReader) rule(f filterRule) (BGPRule, error) {
	out := BGPRule{Learned: f.source == v3.BGPFilterSourceRemotePeers}
	switch f.action {
	case v3.Accept:
		out.Accept = true
	case v3.Reject:
	default:
		return out, fmt.Errorf("action %q: want Accept or Reject", f.action)
	}
	if f.source != "" && !out.Learned {
		return out, fmt.Errorf("source %q: want RemotePeers", f.source)
	}
	if f.cidr != "" {
		p, err := netip.ParsePrefix(f.cidr)
		if err != nil {
			return out, fmt.Errorf("cidr: %w", err)
		}
		if p.Addr().Is6() != f.is6 {
			return out, fmt.Errorf("cidr %s: wrong address family", p)
		}
		out.Prefix = p.Masked()
		out.Min, out.Max = p.Bits(), p.Addr().BitLen()
		switch f.operator {
		case v3.Equal, v3.NotEqual:
			if !f.length { // with a length, it is the set of those lengths that is meant
				out.Max = out.Min
			}
		case v3.In, v3.NotIn:
		default:
			return out, fmt.Errorf("matchOperator %q: want Equal, NotEqual, In or NotIn", f.operator)
		}
		out.Outside = f.operator == v3.NotEqual || f.operator == v3.NotIn
		if f.min != nil {
			out.Min = max(out.Min, int(*f.min))
		}
		if f.max != nil {
			out.Max = min(out.Max, int(*f.max))
		}
	}
	if f.link != "" {
		via, err := r.leadingTo(f.link, f.is6)
		if err != nil {
			return out, fmt.Errorf("interface %q: %w", f.link, err)
		}
		out.Interface = via
	}
	return out, nil
}

// leadingTo finds what leads to the interfaces of a pattern, which may have * and ?.
func (r *bgpReader) leadingTo(pattern string, is6 bool) (*BGPInterface, error) {
	out := &BGPInterface{}
	for _, l := range r.in.Links {
		ok, err := path.Match(pattern, l.Name)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		for _, p := range l.Addresses {
			if p.Addr().Is6() == is6 {
				out.Nets = append(out.Nets, p.Masked())
			}
		}
	}
	for _, n := range r.networks {
		if ok, _ := path.Match(pattern, n.link); ok && n.prefix.Addr().Is6() == is6 {
			out.Own = append(out.Own, n.prefix)
		}
	}
	for _, e := range r.Dataplane.Endpoints {
		if ok, _ := path.Match(pattern, e.Interface); !ok {
			continue
		}
		for _, a := range e.Addresses {
			if a.Is6() == is6 {
				out.Own = append(out.Own, single(a))
			}
		}
	}
	slices.SortFunc(out.Nets, netip.Prefix.Compare)
	slices.SortFunc(out.Own, netip.Prefix.Compare)
	return out, nil
}
