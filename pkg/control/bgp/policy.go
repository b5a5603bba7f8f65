package bgp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/server"

	"calico-xdp/pkg/control/desired"
)

// policy keeps GoBGP's policies as the rules are.
//
// GoBGP applies a changed policy to what it announces from then on: what was
// announced before and no longer may be would stay with the peers. So each route
// carries the mark of the rules that it came in under, and a change of rules is a
// change of all routes. They come in once more, with a new mark; meanwhile the old
// rules are in place beside the new ones, for routes with the old mark. To GoBGP a
// route that the new rules keep from a peer is then one that has changed into one
// that is not for this peer, and it withdraws it. The marks stay inside.
type policy struct {
	library *server.BgpServer
	now     *rules
	marked  int  // index of the mark that routes come in with; -1: none yet
	odd     bool // alternates, so that two sets of rules share no names
}

// marks are large communities of an AS that does not exist.
var marks = [2]string{"4294967295:88:1", "4294967295:88:2"}

const (
	importPolicy, exportPolicy = "import", "export"
	markSet                    = "mark-"
)

func newPolicy(library *server.BgpServer) *policy { return &policy{library: library, marked: -1} }

// set puts the rules of b in place.
func (p *policy) set(ctx context.Context, b *desired.BGP) error {
	before := p.now
	next := newRules(map[bool]string{false: "even", true: "odd"}[!p.odd], b)
	if before != nil {
		if next.differ(before) {
			return p.change(ctx, next)
		}
		if next.same(before) {
			return nil
		}
		if err := p.install(ctx, next, nil); err != nil {
			return err
		}
		for a, text := range next.importOf {
			if old, had := before.importOf[a]; had && old != text {
				if err := p.comeInAgain(ctx, a.String()); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := p.install(ctx, next, nil); err != nil {
		return err
	}
	for _, a := range []*api.PolicyAssignment{
		{Direction: api.PolicyDirection_IMPORT, Policies: []*api.Policy{{Name: importPolicy}}, DefaultAction: api.RouteAction_ACCEPT},
		{Direction: api.PolicyDirection_EXPORT, Policies: []*api.Policy{{Name: exportPolicy}}, DefaultAction: api.RouteAction_REJECT},
	} {
		a.Name = "global"
		if err := p.library.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: a}); err != nil {
			p.now = nil
			return fmt.Errorf("bgp policy: %w", err)
		}
	}
	return nil
}

// change goes over to rules that announce other things.
func (p *policy) change(ctx context.Context, next *rules) error {
	p.marked = (p.marked + 1) % 2
	if err := p.install(ctx, next, p.now); err != nil {
		return err
	}
	if err := p.comeInAgain(ctx, ""); err != nil {
		return err
	}
	own := pathTable{p.library}
	paths, err := own.Load()
	for prefix, hop := range paths {
		err = errors.Join(err, own.Put(prefix, hop))
	}
	return errors.Join(err, p.install(ctx, next, nil))
}

// comeInAgain passes the routes of a peer, or of all, through the rules once more.
func (p *policy) comeInAgain(ctx context.Context, peer string) error {
	r := &api.ResetPeerRequest{Address: peer, Soft: true, Direction: api.ResetPeerRequest_IN}
	if err := p.library.ResetPeer(ctx, r); err != nil {
		return fmt.Errorf("bgp policy: peer %s: %w", peer, err)
	}
	return nil
}

// install makes GoBGP's policies the rules; old ones, if given, go on for routes that
// have not come in under the new ones.
func (p *policy) install(ctx context.Context, next, old *rules) error {
	imports, exports := slices.Clone(next.imports), []*api.Statement{}
	sets := slices.Clone(next.sets)
	// Accepting ends an import policy, so routes are marked before it is asked.
	if p.marked >= 0 {
		unmark := &api.Statement{Name: "unmark", Conditions: &api.Conditions{}, Actions: &api.Actions{LargeCommunity: removeMarks()}}
		mark := &api.Statement{Name: "mark", Conditions: &api.Conditions{}, Actions: &api.Actions{
			LargeCommunity: &api.CommunityAction{Type: api.CommunityAction_ADD, Communities: []string{marks[p.marked]}},
		}}
		imports = slices.Insert(imports, 0, unmark, mark)
	}
	if old == nil {
		exports = withoutMarks(next.exports)
	} else {
		name := markSet + fmt.Sprint(p.marked)
		sets = append(sets, &api.DefinedSet{DefinedType: api.DefinedType_LARGE_COMMUNITY, Name: name, List: []string{"^" + marks[p.marked] + "$"}})
		is := func() *api.MatchSet { return &api.MatchSet{Type: api.MatchSet_ANY, Name: name} }
		for _, s := range withoutMarks(next.exports) {
			s.Conditions.LargeCommunitySet = is()
			exports = append(exports, s)
		}
		exports = append(exports, &api.Statement{
			Name: "new-and-not-for-the-peer", Conditions: &api.Conditions{LargeCommunitySet: is()},
			Actions: &api.Actions{RouteAction: api.RouteAction_REJECT},
		})
		exports = append(exports, withoutMarks(old.exports)...)
		sets = append(sets, old.sets...)
	}
	err := p.library.SetPolicies(ctx, &api.SetPoliciesRequest{DefinedSets: sets, Policies: []*api.Policy{
		{Name: importPolicy, Statements: imports}, {Name: exportPolicy, Statements: exports},
	}})
	if err != nil {
		return fmt.Errorf("bgp policy: %w", err)
	}
	if p.now != next {
		p.now, p.odd = next, !p.odd
	}
	return nil
}

func removeMarks() *api.CommunityAction {
	return &api.CommunityAction{Type: api.CommunityAction_REMOVE, Communities: marks[:]}
}

// withoutMarks are copies of the statements that take the marks off what they accept.
func withoutMarks(statements []*api.Statement) []*api.Statement {
	out := make([]*api.Statement, len(statements))
	for i, s := range statements {
		c, a := s.Conditions, s.Actions
		out[i] = &api.Statement{
			Name:       s.Name,
			Conditions: &api.Conditions{NeighborSet: c.NeighborSet, PrefixSet: c.PrefixSet, RouteType: c.RouteType, NextHopInList: c.NextHopInList},
			Actions:    &api.Actions{RouteAction: a.RouteAction, Community: a.Community, LargeCommunity: a.LargeCommunity, Nexthop: a.Nexthop},
		}
		if a.RouteAction == api.RouteAction_ACCEPT {
			out[i].Actions.LargeCommunity = removeMarks()
		}
	}
	return out
}

// differ tells whether anything else is announced to a peer that was there before.
func (r *rules) differ(before *rules) bool {
	for a, text := range r.exportOf {
		if old, had := before.exportOf[a]; had && old != text {
			return true
		}
	}
	return false
}

// same compares the rules for all peers.
func (r *rules) same(o *rules) bool {
	return maps.Equal(r.importOf, o.importOf) && maps.Equal(r.exportOf, o.exportOf)
}
