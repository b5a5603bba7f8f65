package bgp

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	api "github.com/osrg/gobgp/v3/api"

	"calico-xdp/pkg/control/desired"
)

// rules are what becomes of routes at their way in and out, as statements of
// GoBGP's policies, of which the first that decides counts.
type rules struct {
	sets            []*api.DefinedSet
	imports         []*api.Statement // a route that none decides is taken
	exports         []*api.Statement // a route that none decides is not announced
	importOf        map[netip.Addr]string
	exportOf        map[netip.Addr]string // what holds for a peer, as text to compare
	tag             string
	sameSet         map[string]string
	statementNumber int
}

// newRules reads them from the wanted state. The tag keeps the names of two sets of
// rules apart while both are in place.
func newRules(tag string, b *desired.BGP) *rules {
	r := &rules{tag: tag, importOf: map[netip.Addr]string{}, exportOf: map[netip.Addr]string{}, sameSet: map[string]string{}}
	type group struct {
		hop     desired.BGPNextHop
		filters string
		is6     bool
	}
	groups := map[group][]netip.Addr{}
	members := map[group]desired.BGPPeer{}
	common := fmt.Sprint(b.Hidden, b.Passed, b.Communities, b.Offered)
	for _, name := range slices.Sorted(maps.Keys(b.Peers)) {
		p := b.Peers[name]
		a := p.Address.Unmap()
		if _, done := r.exportOf[a]; done {
			continue
		}
		g := group{p.NextHop, fmt.Sprintf("%q", p.Filters), a.Is6()}
		groups[g], members[g] = append(groups[g], a), p
		in, out := filterRules(b, p)
		r.importOf[a], r.exportOf[a] = ruleText(in), fmt.Sprint(common, p.NextHop, ruleText(out))
	}
	byMember := slices.SortedFunc(maps.Keys(groups), func(a, b group) int { return groups[a][0].Compare(groups[b][0]) })
	for _, g := range byMember {
		peers := r.neighbours(groups[g])
		switch g.hop {
		case desired.NextHopSelf:
			r.export(&api.Conditions{NeighborSet: peers}, &api.Actions{Nexthop: &api.NexthopAction{Self: true}})
		case desired.NextHopKeep:
			r.export(&api.Conditions{NeighborSet: peers}, &api.Actions{Nexthop: &api.NexthopAction{Unchanged: true}})
		}
	}
	for _, g := range byMember {
		in, out := filterRules(b, members[g])
		peers := r.neighbours(groups[g])
		for _, f := range in {
			for _, c := range r.conditions(f, peers, true) {
				r.imports = append(r.imports, r.statement(c, &api.Actions{RouteAction: action(f.Accept)}))
			}
		}
		for _, f := range out {
			for _, c := range r.conditions(f, peers, false) {
				r.export(c, &api.Actions{RouteAction: action(f.Accept)})
			}
		}
	}
	for _, is6 := range []bool{false, true} {
		if s := r.inside(b.Hidden, is6); s != nil {
			r.export(&api.Conditions{PrefixSet: s}, &api.Actions{RouteAction: api.RouteAction_REJECT})
		}
	}
	for _, c := range b.Communities {
		a := &api.Actions{}
		if len(c.Standard) > 0 {
			a.Community = &api.CommunityAction{Type: api.CommunityAction_ADD, Communities: c.Standard}
		}
		if len(c.Large) > 0 {
			a.LargeCommunity = &api.CommunityAction{Type: api.CommunityAction_ADD, Communities: c.Large}
		}
		r.export(&api.Conditions{PrefixSet: r.inside([]netip.Prefix{c.Prefix}, c.Prefix.Addr().Is6())}, a)
	}
	for _, is6 := range []bool{false, true} {
		if s := r.exactly(b.Offered, is6); s != nil {
			r.export(&api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL, PrefixSet: s}, &api.Actions{RouteAction: api.RouteAction_REJECT})
		}
	}
	r.export(&api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL}, &api.Actions{RouteAction: api.RouteAction_ACCEPT})
	for _, is6 := range []bool{false, true} {
		if s := r.inside(b.Passed, is6); s != nil {
			r.export(&api.Conditions{PrefixSet: s}, &api.Actions{RouteAction: api.RouteAction_ACCEPT})
		}
	}
	return r
}

// filterRules are the rules of all filters of a peer, one after the other.
func filterRules(b *desired.BGP, p desired.BGPPeer) (in, out []desired.BGPRule) {
	for _, name := range p.Filters {
		f := b.Filters[name]
		if p.Address.Unmap().Is4() {
			in, out = append(in, f.Import4...), append(out, f.Export4...)
		} else {
			in, out = append(in, f.Import6...), append(out, f.Export6...)
		}
	}
	return in, out
}

func ruleText(rules []desired.BGPRule) string {
	text := ""
	for _, r := range rules {
		via := r.Interface
		r.Interface = nil
		text += fmt.Sprint(r, via != nil)
		if via != nil {
			text += fmt.Sprint(*via)
		}
	}
	return text
}

func action(accept bool) api.RouteAction {
	if accept {
		return api.RouteAction_ACCEPT
	}
	return api.RouteAction_REJECT
}

// conditions are those of a filter's rule. Either of them is enough; there may be
// none that can be met.
func (r *rules) conditions(f desired.BGPRule, peers *api.MatchSet, importing bool) []*api.Conditions {
	base := api.Conditions{NeighborSet: peers}
	empty := f.Prefix.IsValid() && f.Min > f.Max
	switch {
	case empty && !f.Outside:
		return nil
	case f.Prefix.IsValid() && !empty:
		base.PrefixSet = r.prefixes([]*api.Prefix{apiPrefix(f.Prefix, f.Min, f.Max)})
		if f.Outside {
			base.PrefixSet = &api.MatchSet{Type: api.MatchSet_INVERT, Name: base.PrefixSet.Name}
		}
	}
	with := func(change func(*api.Conditions)) *api.Conditions {
		c := &api.Conditions{NeighborSet: base.NeighborSet, PrefixSet: base.PrefixSet}
		change(c)
		return c
	}
	// GoBGP has no word for a route from any peer.
	learned := func(change func(*api.Conditions)) []*api.Conditions {
		if importing {
			return []*api.Conditions{with(change)}
		}
		var out []*api.Conditions
		for _, t := range []api.Conditions_RouteType{api.Conditions_ROUTE_TYPE_INTERNAL, api.Conditions_ROUTE_TYPE_EXTERNAL} {
			out = append(out, with(func(c *api.Conditions) { c.RouteType = t; change(c) }))
		}
		return out
	}
	same := func(*api.Conditions) {}
	if f.Interface == nil {
		if f.Learned {
			return learned(same)
		}
		return []*api.Conditions{with(same)}
	}
	var out []*api.Conditions
	if len(f.Interface.Nets) > 0 {
		var nets []string
		for _, n := range f.Interface.Nets {
			nets = append(nets, n.String())
		}
		out = learned(func(c *api.Conditions) { c.NextHopInList = nets })
	}
	var own []*api.Prefix
	for _, p := range f.Interface.Own {
		if f.Covers(p) {
			own = append(own, apiPrefix(p, p.Bits(), p.Bits()))
		}
	}
	if len(own) > 0 && !importing && !f.Learned {
		c := with(func(c *api.Conditions) { c.RouteType = api.Conditions_ROUTE_TYPE_LOCAL })
		c.PrefixSet = r.prefixes(own)
		out = append(out, c)
	}
	return out
}

func (r *rules) export(c *api.Conditions, a *api.Actions) {
	r.exports = append(r.exports, r.statement(c, a))
}

func (r *rules) statement(c *api.Conditions, a *api.Actions) *api.Statement {
	r.statementNumber++
	return &api.Statement{Name: fmt.Sprintf("%s-%d", r.tag, r.statementNumber), Conditions: c, Actions: a}
}

// inside is the set of all prefixes of one family inside nets, nil if it is empty.
func (r *rules) inside(nets []netip.Prefix, is6 bool) *api.MatchSet {
	return r.ofFamily(nets, is6, func(p netip.Prefix) int { return p.Addr().BitLen() })
}

// exactly is the set of the prefixes of one family, nil if there are none.
func (r *rules) exactly(prefixes []netip.Prefix, is6 bool) *api.MatchSet {
	return r.ofFamily(prefixes, is6, netip.Prefix.Bits)
}

// ofFamily is the set of all prefixes inside those of one family that are of at most so
// many bits, nil if it is empty.
func (r *rules) ofFamily(nets []netip.Prefix, is6 bool, most func(netip.Prefix) int) *api.MatchSet {
	var list []*api.Prefix
	for _, p := range nets {
		if p.Addr().Is6() == is6 {
			list = append(list, apiPrefix(p, p.Bits(), most(p)))
		}
	}
	if list == nil {
		return nil
	}
	return r.prefixes(list)
}

func apiPrefix(p netip.Prefix, least, most int) *api.Prefix {
	return &api.Prefix{IpPrefix: p.String(), MaskLengthMin: uint32(least), MaskLengthMax: uint32(most)}
}

func (r *rules) prefixes(list []*api.Prefix) *api.MatchSet {
	return r.set(&api.DefinedSet{DefinedType: api.DefinedType_PREFIX, Prefixes: list}, fmt.Sprint(list))
}

func (r *rules) neighbours(peers []netip.Addr) *api.MatchSet {
	s := &api.DefinedSet{DefinedType: api.DefinedType_NEIGHBOR}
	for _, a := range peers {
		s.List = append(s.List, netip.PrefixFrom(a, a.BitLen()).String())
	}
	return r.set(s, fmt.Sprint("peers", s.List))
}

// set defines a set, once for all uses.
func (r *rules) set(s *api.DefinedSet, content string) *api.MatchSet {
	name, there := r.sameSet[content]
	if !there {
		name = fmt.Sprintf("%s-set-%d", r.tag, len(r.sets)+1)
		s.Name = name
		r.sets, r.sameSet[content] = append(r.sets, s), name
	}
	return &api.MatchSet{Type: api.MatchSet_ANY, Name: name}
}
