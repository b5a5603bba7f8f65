package bed

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"

	"calico-xdp/pkg/api"
)

// Rule is a rule that everything under comparison can express: TCP from a network to
// a port.
type Rule struct {
	Allow  bool
	Source netip.Prefix
	Port   uint16
}

// Rules returns n rules that have nothing in common: each has a network and a port of
// its own. They deny and allow in turn.
func Rules(n int) []Rule {
	out := make([]Rule, n)
	for i := range out {
		out[i] = Rule{Allow: i%2 == 1, Source: ruleNet(i), Port: rulePort(i)}
	}
	return out
}

// CrossedRules returns n rules out of 100 networks and 100 ports, paired at random, so
// that every address and every port is in many rules.
func CrossedRules(n int) []Rule {
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	out := make([]Rule, n)
	for i := range out {
		out[i] = Rule{Allow: i%2 == 1, Source: ruleNet(rng.IntN(100)), Port: rulePort(rng.IntN(100))}
	}
	return out
}

// ruleNet is a network of 256 addresses from 10.64.0.0 on.
func ruleNet(i int) netip.Prefix {
	return netip.PrefixFrom(addressOf(10<<24|64<<16+uint32(i)<<8), 24)
}

func rulePort(i int) uint16 { return uint16(10000 + i%50000) }

func addressOf(v uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, v)))
}

// Policies spreads rules over three policies of the ingress of what the selector
// selects, in their order.
func Policies(selector string, rules []Rule) []api.Resource {
	const policies = 3
	var out []api.Resource
	tcp := numorstring.ProtocolFromString("TCP")
	for n := range policies {
		p := v3.NewGlobalNetworkPolicy()
		p.Name = fmt.Sprint("part-", n)
		p.Spec.Order = new(float64(n))
		p.Spec.Selector, p.Spec.Types = selector, []v3.PolicyType{v3.PolicyTypeIngress}
		for _, r := range rules[len(rules)*n/policies : len(rules)*(n+1)/policies] {
			rule := v3.Rule{Action: v3.Deny, Protocol: &tcp}
			if r.Allow {
				rule.Action = v3.Allow
			}
			rule.Source.Nets = []string{r.Source.String()}
			rule.Destination.Ports = []numorstring.Port{numorstring.SinglePort(r.Port)}
			p.Spec.Ingress = append(p.Spec.Ingress, rule)
		}
		out = append(out, p)
	}
	return out
}

// Nets returns n networks at random, of 20 to 32 bits, outside of what a bed uses.
func Nets(n int) []netip.Prefix {
	rng := rand.New(rand.NewPCG(2, uint64(n)))
	seen := make(map[netip.Prefix]bool)
	out := make([]netip.Prefix, 0, n)
	for len(out) < n {
		p := netip.PrefixFrom(addressOf(11<<24+rng.Uint32N(150<<24)), 20+rng.IntN(13)).Masked()
		if !seen[p] {
			seen[p] = true
			out = append(out, p)
		}
	}
	return out
}

// Blocklist is a network set and the policy that denies what it holds, and nothing
// else, to what the selector selects.
func Blocklist(selector string, nets []netip.Prefix) []api.Resource {
	set := v3.NewGlobalNetworkSet()
	set.Name, set.Labels = "blocked", map[string]string{"blocked": "yes"}
	for _, p := range nets {
		set.Spec.Nets = append(set.Spec.Nets, p.String())
	}
	p := v3.NewGlobalNetworkPolicy()
	p.Name = "blocklist"
	p.Spec.Selector, p.Spec.Types = selector, []v3.PolicyType{v3.PolicyTypeIngress}
	p.Spec.Ingress = []v3.Rule{
		{Action: v3.Deny, Source: v3.EntityRule{Selector: "blocked == 'yes'"}},
		{Action: v3.Allow},
	}
	return []api.Resource{set, p}
}

// Untracked is a host endpoint on a node's eth0 and the untracked policy that denies
// what networks in a set send to it, and nothing else.
func Untracked(node string, nets []netip.Prefix) []api.Resource {
	h := v3.NewHostEndpoint()
	h.Name, h.Labels = node+"-eth0", map[string]string{"host": node}
	h.Spec.Node, h.Spec.InterfaceName = node, "eth0"
	h.Spec.Profiles = []string{OpenProfile}
	all := Blocklist("host == '"+node+"'", nets)
	for _, r := range all {
		if p, ok := r.(*v3.GlobalNetworkPolicy); ok {
			p.Spec.DoNotTrack, p.Spec.ApplyOnForward = true, true
			p.Spec.Ingress = p.Spec.Ingress[:1]
		}
	}
	return append(all, h)
}

// Member is an address of a network, another one for another n.
func Member(p netip.Prefix, n int) netip.Addr {
	base := binary.BigEndian.Uint32(p.Addr().AsSlice())
	return addressOf(base + uint32(n*7+3)%(1<<(32-p.Bits())))
}

// Outside is the first of n addresses in a row that none of the networks holds, where
// there are networks all around.
func Outside(nets []netip.Prefix, n int) netip.Addr {
	rng := rand.New(rand.NewPCG(5, uint64(len(nets))))
	for {
		first := 11<<24 + rng.Uint32N(150<<24)
		held := false
		for _, p := range nets {
			base := binary.BigEndian.Uint32(p.Addr().AsSlice())
			held = held || base < first+uint32(n) && first < base+1<<(32-p.Bits())
		}
		if !held {
			return addressOf(first)
		}
	}
}
