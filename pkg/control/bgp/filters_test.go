package bgp

import (
	"fmt"
	"math/rand"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
)

// filterCases is how many configurations TestFiltersAsBIRDs goes through.
const filterCases = 15

// TestFiltersAsBIRDs has a node of ours beside a BIRD that is configured as Calico's node
// would be: same blocks, pools, communities and filters, all by chance, changed while
// the sessions are up. A router that both announce to hears the same from both, and of what
// another tells both take the same.
func TestFiltersAsBIRDs(t *testing.T) {
	f := newFabric(t)
	f.addNode("node1", 1, "")
	me, other, index := "host:node1", "host:other", 0
	own, borrowed := []string{block4(1), "10.65.1.64/26", "10.66.1.0/26", "10.70.1.0/26"}, []string{"10.65.7.5/32", "10.66.7.5/32"}
	block := func(cidr string, affinity *string) *api.IPAMBlock {
		b := &api.IPAMBlock{CIDR: netip.MustParsePrefix(cidr), Affinity: affinity, Allocations: make([]*int, 64)}
		b.Kind, b.Name = api.KindIPAMBlock, api.BlockName(b.CIDR)
		f.resources.Apply(api.Change{Key: api.KeyOf(b), Resource: b})
		return b
	}
	for _, cidr := range own {
		block(cidr, &me)
	}
	for _, address := range borrowed {
		b := block(strings.Replace(address, ".5/32", ".0/26", 1), &other)
		b.Allocations[5], b.Attributes = &index, []api.AllocationAttribute{{Secondary: map[string]string{"node": "node1"}}}
	}

	// 2 listens, 4 tells; 1 is ours and 3 is BIRD.
	const timers = "multihop; connect delay time 1; connect retry time 1; error wait time 1, 2;"
	both := func(h int, channel string) string {
		text := ""
		for _, n := range []int{1, 3} {
			text += fmt.Sprintf("protocol bgp with%d { local %s as %d; neighbor %s as 64512; %s ipv4 { %s }; }\n", n, f.address4(h), 65100+h, f.address4(n), timers, channel)
		}
		return text
	}
	listener, bird, teller := f.host(2), f.host(3), f.host(4)
	listener.bird(both(2, "import all; export none;"))
	told := ""
	for _, p := range []string{"0.0.0.0/0", "10.0.0.0/8", "10.65.0.0/16", "10.65.2.3/32", "10.65.9.0/24", "10.66.9.0/24", "10.80.0.0/16", "10.80.1.0/24"} {
		told += "route " + p + " blackhole; "
	}
	teller.bird("protocol static { ipv4; " + told + "}\n" + both(4, "import none; export where source = RTS_STATIC;"))

	n := f.start("node1", 1)
	n.input.Links = []desired.Link{{Name: "eth0", Up: true, Addresses: []netip.Prefix{netip.PrefixFrom(f.address4(1), 24)}}}
	all, sessions, g := []*ours{n}, "", rand.New(rand.NewSource(7))
	for i := range filterCases {
		resources, text := filterCase(g, f, own, borrowed)
		f.add(resources)
		n.round()
		if i == 0 {
			bird.bird(text)
			until(t, "sessions", "4", all, func() string {
				return fmt.Sprint(strings.Count(n.status()+bird.birdc("show", "protocols"), "Established"))
			})
			sessions = fmt.Sprint(established(n.node))
		} else {
			bird.write("bird.conf", bird.preamble()+text)
			bird.birdc("configure")
		}
		difference := func() string {
			a, b := birdRoutes(listener, "with1"), birdRoutes(listener, "with3")
			taken, birds := []string{}, birdRoutes(bird, "host4")
			received, _, _ := n.Routes()
			for _, r := range received {
				taken = append(taken, r.Prefix.String())
			}
			for i := range birds {
				birds[i], _, _ = strings.Cut(birds[i], " ")
			}
			slices.Sort(taken)
			slices.Sort(birds)
			if slices.Equal(a, b) && slices.Equal(taken, birds) {
				return ""
			}
			return fmt.Sprintf("we tell\n%s\nBIRD tells\n%s\nwe take %v\nBIRD takes %v\n%s", lines(a...), lines(b...), taken, birds, resources)
		}
		until(t, fmt.Sprintf("case %d", i), "", all, difference)
	}
	if now := fmt.Sprint(established(n.node)); now != sessions {
		t.Errorf("sessions %s\nwere %s", now, sessions)
	}
}

// birdRoutes are the routes of a protocol with their communities.
func birdRoutes(h *host, protocol string) []string {
	var found []string
	for line := range strings.Lines(h.birdc("show", "route", "all", "protocol", protocol)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch {
		case strings.HasSuffix(name, "community"):
			found[len(found)-1] += " " + value
		case line[0] >= '0' && line[0] <= '9' && strings.Contains(line, "/"):
			found = append(found, strings.Fields(line)[0])
		}
	}
	slices.Sort(found)
	return found
}

// filterCase is one configuration, as resources and for BIRD.
func filterCase(g *rand.Rand, f *fabric, own, borrowed []string) (resources, bird string) {
	hidden, communities := g.Intn(2) == 0, g.Intn(2) == 0
	resources = "apiVersion: projectcalico.org/v3\nkind: BGPConfiguration\nmetadata: {name: default}\nspec:\n  nodeToNodeMeshEnabled: false\n"
	bird = "protocol static { ipv4; route " + strings.Join(slices.Concat(own, borrowed), " blackhole; route ") + " blackhole; }\nfunction calico_export() {\n"
	pools := map[string]bool{"10.65.0.0/16": false, "10.66.0.0/16": hidden}
	if hidden {
		bird += "  if ( net ~ 10.66.0.0/16 ) then { reject; }\n"
	}
	if communities {
		resources += "  prefixAdvertisements: [{cidr: 10.65.0.0/16, communities: [\"65001:7\", \"65001:7:8\"]}, {cidr: 10.65.1.0/26, communities: [\"65001:9\"]}]\n"
		bird += "  if ( net ~ 10.65.0.0/16 ) then { bgp_community.add((65001,7)); bgp_large_community.add((65001,7,8)); }\n  if ( net ~ 10.65.1.0/26 ) then bgp_community.add((65001,9));\n"
	}
	for _, cidr := range own {
		bird += "  if ( net = " + cidr + " ) then { accept; }\n"
	}
	for cidr, hidden := range pools {
		resources += fmt.Sprintf("---\napiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: pool-%s}\nspec: {cidr: %s, disableBGPExport: %v}\n", strings.Split(cidr, ".")[1], cidr, hidden)
		if !hidden {
			bird += "  if ( net ~ " + cidr + " ) then { accept; }\n"
		}
	}
	bird += "}\n"
	var names []string
	imports, exports := "", ""
	for i := range g.Intn(3) {
		name := fmt.Sprintf("f%d", i)
		names = append(names, name)
		in, inBird := filterRulesByChance(g)
		out, outBird := filterRulesByChance(g)
		resources += "---\napiVersion: projectcalico.org/v3\nkind: BGPFilter\nmetadata: {name: " + name + "}\nspec: {importV4: [" + in + "], exportV4: [" + out + "]}\n"
		imports, exports = imports+inBird, exports+outBird
	}
	for _, h := range []int{2, 4} {
		resources += fmt.Sprintf("---\napiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: host%d}\nspec: {peerIP: %s, asNumber: %d, filters: [%s]}\n", h, f.address4(h), 65100+h, strings.Join(names, ", "))
		bird += fmt.Sprintf("protocol bgp host%d { local %s as 64512; neighbor %s as %d; multihop; graceful restart; connect delay time 1; connect retry time 1; error wait time 1, 2;\n  ipv4 { import filter { %s accept; }; export filter { %s calico_export(); reject; }; }; }\n",
			h, f.address4(3), f.address4(h), 65100+h, imports, exports)
	}
	return resources, bird
}

// filterRulesByChance are rules of a filter in both languages.
func filterRulesByChance(g *rand.Rand) (resource, bird string) {
	operators := map[string]string{"Equal": "=", "NotEqual": "!=", "In": "~", "NotIn": "!~"}
	pick := func(s ...string) string { return s[g.Intn(len(s))] }
	var rules []string
	for range g.Intn(4) {
		action := pick("Accept", "Reject")
		rule, conditions := "{action: "+action, []string{"true"}
		if g.Intn(8) > 0 {
			cidr, operator := pick("10.65.0.0/16", "10.65.1.0/26", "10.66.0.0/16", "10.0.0.0/8", "10.80.0.0/16", "0.0.0.0/0", "10.65.7.5/32"), pick("Equal", "NotEqual", "In", "NotIn")
			set := cidr
			rule += ", cidr: " + cidr + ", matchOperator: " + operator
			if len(operator) < 6 && operator != "Equal" && g.Intn(3) == 0 {
				least := max(netip.MustParsePrefix(cidr).Bits(), 24)
				rule += fmt.Sprintf(", prefixLength: {min: %d}", least)
				set = fmt.Sprintf("[ %s{%d,32} ]", cidr, least)
			}
			conditions = append(conditions, "net "+operators[operator]+" "+set)
		}
		if g.Intn(5) == 0 {
			rule += ", source: RemotePeers"
			conditions = append(conditions, "defined(source) && source ~ [ RTS_BGP ]")
		}
		rules = append(rules, rule+"}")
		bird += "if ( " + strings.Join(conditions, " && ") + " ) then { " + strings.ToLower(action) + "; }\n    "
	}
	return strings.Join(rules, ", "), bird
}
