package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"calico-xdp/cmd/calicoctl/output"
	"calico-xdp/cmd/calicoctl/v1"
	"calico-xdp/pkg/api"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/spf13/cobra"
)

type profileOptions struct {
	detailed, noCheck bool
	at                int
}

func newLegacyProfile(a *app) *cobra.Command {
	var o profileOptions
	cmd := &cobra.Command{
		Use:   "profile (show | add NAME | remove NAME | NAME tag … | NAME rule …)",
		Short: "Profiles, their tags and rules, in the grammar of 2015",
		Long: `Profiles, in the grammar of 2015. A tag is a label without value that the profile
gives its endpoints. A name that v3 does not allow, such as WEB, is converted as
calico-upgrade does: web-f1e29c6d. See also 'calicoctl get profile'.

  profile show [--detailed]          NAME tag show
  profile (add | remove) NAME        NAME tag (add | remove) TAG
  NAME rule show | json              NAME rule update < file.json
  NAME rule add (inbound | outbound) [--at=N] RULE
  NAME rule remove (inbound | outbound) (--at=N | RULE)

A RULE is (allow | deny) [tcp | udp | icmp [type N [code N]]]
[from [ports LIST] [tag TAG] [cidr CIDR]] [to …].`,
		Example: `  calicoctl profile add dev
  calicoctl profile dev rule add inbound allow tcp from tag web to ports 80,443
  calicoctl profile dev rule json > dev.json
  calicoctl profile dev rule update < dev.json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.dispatch(cmd, args,
				words{"show", func(ctx context.Context, s store, _ []string) error { return a.showProfiles(ctx, s, o.detailed) }},
				words{"add NAME", a.addProfile},
				words{"remove NAME", func(ctx context.Context, s store, args []string) error {
					return a.removeProfile(ctx, s, args[0], o.noCheck)
				}},
				words{"NAME tag show", a.showTags},
				words{"NAME tag add TAG", a.addTag},
				words{"NAME tag remove TAG", a.removeTag},
				words{"NAME rule show", a.showRules},
				words{"NAME rule json", a.rulesJSON},
				words{"NAME rule update", a.updateRules},
				words{"NAME rule add ...", func(ctx context.Context, s store, args []string) error { return a.addRule(ctx, s, args, o.at) }},
				words{"NAME rule remove ...", func(ctx context.Context, s store, args []string) error { return a.removeRule(ctx, s, args, o.at) }},
				words{"NAME member add CONTAINER", func(context.Context, store, []string) error {
					return errors.New("calicoctl profile NAME member add: name the endpoint: 'calicoctl endpoint ENDPOINT profile append NAME'")
				}})
		},
	}
	cmd.Flags().BoolVar(&o.detailed, "detailed", false, "with the endpoints that have them")
	cmd.Flags().BoolVar(&o.noCheck, "no-check", false, "remove a profile that endpoints have")
	cmd.Flags().IntVar(&o.at, "at", 0, "the rule's place, from 1")
	return cmd
}

func profileKey(name string) api.Key { return api.Key{Kind: api.KindProfile, Name: v1.Name(name)} }

// profile reads a profile, as users name it.
func (s store) profile(ctx context.Context, name string) (*api.Profile, error) {
	r, err := s.Get(ctx, profileKey(name))
	if notFound(err) && builtIn(profileKey(name)) != nil {
		return builtIn(profileKey(name)).(*api.Profile), nil
	}
	if notFound(err) {
		//lint:ignore ST1005 as it was said then
		return nil, fmt.Errorf("Profile %s not found.", name)
	}
	if err != nil {
		return nil, err
	}
	return r.(*api.Profile), nil
}

func (a *app) showProfiles(ctx context.Context, s store, detailed bool) error {
	rs, err := s.List(ctx, api.KindProfile, "")
	if err != nil {
		return err
	}
	var rows [][]string
	if !detailed {
		for _, r := range rs {
			rows = append(rows, []string{r.GetName()})
		}
		return a.centred([]string{"Name"}, rows)
	}
	endpoints, err := s.workloads(ctx)
	if err != nil {
		return err
	}
	for _, r := range rs {
		n := len(rows)
		for _, w := range endpoints {
			if slices.Contains(w.Spec.Profiles, r.GetName()) {
				rows = append(rows, []string{r.GetName(), w.Spec.Node, w.Spec.Orchestrator, workloadOf(w), w.Spec.Endpoint, "active"})
			}
		}
		if len(rows) == n {
			rows = append(rows, []string{r.GetName(), "None", "None", "None", "None", "None"})
		}
	}
	return a.centred([]string{"Name", "Host", "Orchestrator ID", "Workload ID", "Endpoint ID", "State"}, rows)
}

// addProfile adds one whose endpoints may reach each other, and everything else.
func (a *app) addProfile(ctx context.Context, s store, args []string) error {
	name := args[0]
	p := v3.NewProfile()
	p.Name = v1.Name(name)
	p.Spec.LabelsToApply = map[string]string{name: ""}
	p.Spec.Ingress = []api.Rule{{Action: v3.Allow, Source: v3.EntityRule{Selector: name + " == ''"}}}
	p.Spec.Egress = []api.Rule{{Action: v3.Allow}}
	if _, err := s.profile(ctx, name); err == nil {
		return a.say("Profile %s already exists.", name)
	}
	if _, err := s.Create(ctx, p); err != nil {
		return err
	}
	return a.say("Created profile %s", name)
}

func (a *app) removeProfile(ctx context.Context, s store, name string, noCheck bool) error {
	key := profileKey(name)
	if !noCheck {
		endpoints, err := s.workloads(ctx)
		if err != nil {
			return err
		}
		for _, w := range endpoints {
			if slices.Contains(w.Spec.Profiles, key.Name) {
				return a.say("Profile %s is in use, by %s for one. Take it away from its endpoints, or use --no-check.", name, w.Name)
			}
		}
	}
	_, err := s.Delete(ctx, key, "")
	switch {
	case notFound(err):
		return a.say("Couldn't find profile with name %s", name)
	case err != nil:
		return err
	}
	return a.say("Deleted profile %s", name)
}

func (a *app) showTags(ctx context.Context, s store, args []string) error {
	p, err := s.profile(ctx, args[0])
	if err != nil {
		return err
	}
	for _, label := range slices.Sorted(maps.Keys(p.Spec.LabelsToApply)) {
		if p.Spec.LabelsToApply[label] == "" {
			fmt.Fprintln(a.Out, label)
		}
	}
	return nil
}

// changeProfile changes one that must exist.
func (s store) changeProfile(ctx context.Context, name string, edit func(*api.Profile) error) error {
	if _, err := s.profile(ctx, name); err != nil {
		return err
	}
	_, err := s.change(ctx, profileKey(name), func(r api.Resource) error { return edit(r.(*api.Profile)) })
	return err
}

func (a *app) addTag(ctx context.Context, s store, args []string) error {
	err := s.changeProfile(ctx, args[0], func(p *api.Profile) error {
		if p.Spec.LabelsToApply[args[1]] != "" {
			return fmt.Errorf("profile %s gives its endpoints a label %s with a value", args[0], args[1])
		}
		if p.Spec.LabelsToApply == nil {
			p.Spec.LabelsToApply = make(map[string]string)
		}
		p.Spec.LabelsToApply[args[1]] = ""
		return nil
	})
	if err != nil {
		return err
	}
	return a.say("Tag %s added to profile %s", args[1], args[0])
}

func (a *app) removeTag(ctx context.Context, s store, args []string) error {
	err := s.changeProfile(ctx, args[0], func(p *api.Profile) error {
		if v, ok := p.Spec.LabelsToApply[args[1]]; !ok || v != "" {
			//lint:ignore ST1005 as it was said then
			return fmt.Errorf("Tag %s is not on profile %s.", args[1], args[0])
		}
		delete(p.Spec.LabelsToApply, args[1])
		return nil
	})
	if err != nil {
		return err
	}
	return a.say("Tag %s removed from profile %s", args[1], args[0])
}

// rulesOf returns a profile's rules in the words of v1.
func rulesOf(p *api.Profile, id string) (out v1.Rules, err error) {
	out.ID = id
	var errIn, errOut error
	out.Inbound, errIn = v1.FromV3(p.Spec.Ingress)
	out.Outbound, errOut = v1.FromV3(p.Spec.Egress)
	return out, errors.Join(errIn, errOut)
}

func (a *app) showRules(ctx context.Context, s store, args []string) error {
	p, err := s.profile(ctx, args[0])
	if err != nil {
		return err
	}
	rules, err := rulesOf(p, args[0])
	if err != nil {
		return err
	}
	for _, side := range []struct {
		heading string
		rules   []v1.Rule
	}{{"Inbound rules:", rules.Inbound}, {"Outbound rules:", rules.Outbound}} {
		fmt.Fprintln(a.Out, side.heading)
		for i := range side.rules {
			fmt.Fprintf(a.Out, " %3d %s\n", i+1, &side.rules[i])
		}
	}
	return nil
}

func (a *app) rulesJSON(ctx context.Context, s store, args []string) error {
	p, err := s.profile(ctx, args[0])
	if err != nil {
		return err
	}
	rules, err := rulesOf(p, args[0])
	if err != nil {
		return err
	}
	return output.WriteJSON(a.Out, rules)
}

func (a *app) updateRules(ctx context.Context, s store, args []string) error {
	if _, err := s.profile(ctx, args[0]); err != nil {
		return err
	}
	data, err := io.ReadAll(a.In)
	if err != nil {
		return err
	}
	rules, err := v1.ParseRules(data)
	if err != nil {
		return fmt.Errorf("standard input: %w", err)
	}
	if rules.ID != args[0] {
		return fmt.Errorf("the rules' id is %q, not %q", rules.ID, args[0])
	}
	in, errIn := v1.ToV3(rules.Inbound)
	out, errOut := v1.ToV3(rules.Outbound)
	if err := errors.Join(errIn, errOut); err != nil {
		return err
	}
	err = s.changeProfile(ctx, args[0], func(p *api.Profile) error {
		p.Spec.Ingress, p.Spec.Egress = in, out
		return nil
	})
	if err != nil {
		return err
	}
	return a.say("Successfully updated rules on profile %s", args[0])
}

// side returns the rules of a direction.
func side(p *api.Profile, direction string) (*[]api.Rule, error) {
	switch direction {
	case "inbound":
		return &p.Spec.Ingress, nil
	case "outbound":
		return &p.Spec.Egress, nil
	}
	return nil, fmt.Errorf("%q is neither inbound nor outbound", direction)
}

// addRule gets the profile's name, the direction and the rule's words.
func (a *app) addRule(ctx context.Context, s store, args []string, at int) error {
	rule, err := v1.ParseRule(args[2:])
	if err != nil {
		return err
	}
	added, err := v1.ToV3([]v1.Rule{rule})
	if err != nil {
		return err
	}
	there := false
	err = s.changeProfile(ctx, args[0], func(p *api.Profile) error {
		rules, err := side(p, args[1])
		if err != nil {
			return err
		}
		have, err := v1.FromV3(*rules)
		if err != nil {
			return err
		}
		if there = slices.ContainsFunc(have, func(r v1.Rule) bool { return r.String() == rule.String() }); there {
			return nil
		}
		place := len(*rules)
		if at > 0 {
			place = min(place, at-1)
		}
		*rules = slices.Insert(*rules, place, added...)
		return nil
	})
	if err == nil && there {
		return a.say("Rule already present, skipping.")
	}
	return err
}

func (a *app) removeRule(ctx context.Context, s store, args []string, at int) error {
	var rule v1.Rule
	if at == 0 {
		var err error
		if rule, err = v1.ParseRule(args[2:]); err != nil {
			return err
		}
	}
	outside := false
	err := s.changeProfile(ctx, args[0], func(p *api.Profile) error {
		rules, err := side(p, args[1])
		if err != nil {
			return err
		}
		place := at - 1
		if at == 0 {
			have, err := v1.FromV3(*rules)
			if err != nil {
				return err
			}
			if place = slices.IndexFunc(have, func(r v1.Rule) bool { return r.String() == rule.String() }); place < 0 {
				//lint:ignore ST1005 as it was said then
				return errors.New("Rule not found.")
			}
		}
		if outside = place < 0 || place >= len(*rules); !outside {
			*rules = slices.Delete(slices.Clone(*rules), place, place+1)
		}
		return nil
	})
	if err == nil && outside {
		return a.say("There is no rule %s at %d.", strings.Join(args[1:2], ""), at)
	}
	return err
}

func setProfiles(_, named []string) ([]string, string) { return named, "" }

func appendProfiles(old, named []string) ([]string, string) {
	for _, p := range named {
		if slices.Contains(old, p) {
			return nil, fmt.Sprintf("Profile %s is already bound to this endpoint.", p)
		}
	}
	return slices.Concat(old, named), ""
}

func removeProfiles(old, named []string) ([]string, string) {
	for _, p := range named {
		if !slices.Contains(old, p) {
			return nil, fmt.Sprintf("Profile %s is not bound to this endpoint.", p)
		}
	}
	return slices.DeleteFunc(slices.Clone(old), func(p string) bool { return slices.Contains(named, p) }), ""
}
