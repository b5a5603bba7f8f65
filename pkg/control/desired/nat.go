package desired

import (
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// NAT is what the host's stack does to packets that workloads send out of the pools
// with natOutgoing. Which packets these are the dataplane decides, and marks them.
type NAT struct {
	Mark       uint32 // one bit: on packets to translate
	IPv4, IPv6 bool   // for families of which a pool has natOutgoing
	// UnjudgedMark is one bit: on packets to services that no policy has judged yet, since that
	// depends on where the host's rules lead them; 0: Felix's mask has no bit for it.
	UnjudgedMark         uint32
	Services4, Services6 bool // there are nets of services of these families
	// Exits are the names of the interfaces where such packets are judged; one that ends in +
	// stands for all that begin so. In order.
	Exits []string
	// Inside are the prefixes, none within another, that nothing is translated on the
	// way to, in order. The dataplane knows them, too; but the host's own rules
	// may have sent a packet to another destination since it was marked.
	Inside []netip.Prefix
	// Address is what the source becomes, of IPv4; invalid: an address of the interface
	// that the packet leaves through.
	Address netip.Addr
	// FirstPort and LastPort bound what the source port of TCP and UDP becomes; 0: it is
	// the kernel's choice.
	FirstPort, LastPort uint16
	// Interface is the name of the interfaces that packets are translated on; one that
	// ends in + stands for all that begin so. Empty: on all.
	Interface string
}

// Equal says whether both are the same.
func (n NAT) Equal(o NAT) bool {
	return slices.Equal(n.Inside, o.Inside) && n.Mark == o.Mark && n.IPv4 == o.IPv4 && n.IPv6 == o.IPv6 &&
		n.UnjudgedMark == o.UnjudgedMark && n.Services4 == o.Services4 && n.Services6 == o.Services6 && slices.Equal(n.Exits, o.Exits) &&
		n.Address == o.Address && n.FirstPort == o.FirstPort && n.LastPort == o.LastPort && n.Interface == o.Interface
}

// NATNet is what natOutgoing has to say about a prefix, and whether services are there.
type NATNet struct {
	Source  bool // what comes from there and goes outside is translated
	Inside  bool // nothing that goes there is
	Service bool // the host's own rules lead what goes there elsewhere
}

// natSettings are FelixConfiguration's parameters for natOutgoing.
type natSettings struct {
	excludeHosts          bool
	address               netip.Addr
	firstPort, lastPort   uint16
	netInterface          string
	iptablesMask, nftMask uint32
}

// defaultMarkMask is what Felix picks its bits of a packet's mark from.
const defaultMarkMask = 0xffff0000

// forwardedMark is the bit that the programs keep for themselves (MARK_FORWARDED).
const forwardedMark = 0x01000000

func (s *natSettings) parameters() []parameter {
	return []parameter{
		{"natOutgoingExclusions", func(v string) error {
			switch strings.ToLower(v) {
			case "ippoolsonly":
				s.excludeHosts = false
			case "ippoolsandhostips":
				s.excludeHosts = true
			default:
				return errors.New("want IPPoolsOnly or IPPoolsAndHostIPs")
			}
			return nil
		}},
		{"natOutgoingAddress", address(&s.address, "IPv4", netip.Addr.Is4)},
		{"natPortRange", func(v string) error {
			first, last, err := parsePortRange(v)
			if err == nil {
				s.firstPort, s.lastPort = first, last
			}
			return err
		}},
		{"iptablesNATOutgoingInterfaceFilter", func(v string) error {
			if strings.EqualFold(v, none) {
				v = ""
			}
			if len(v) > 15 || strings.ContainsAny(v, " /") || strings.Contains(strings.TrimSuffix(v, "+"), "+") {
				return errors.New("want the name of an interface, or how it begins and +")
			}
			s.netInterface = v
			return nil
		}},
		{"iptablesMarkMask", markMask(&s.iptablesMask)},
		{"nftablesMarkMask", markMask(&s.nftMask)},
	}
}

func markMask(dst *uint32) func(string) error {
	return func(v string) error {
		n, err := strconv.ParseUint(v, 0, 32)
		if err != nil || bits.OnesCount64(n) < 2 {
			return errors.New("want a number of 32 bits, at least two of them set")
		}
		*dst = uint32(n)
		return nil
	}
}

// parsePortRange takes "5000" or "5000:6000". "0" and "none" are no range.
func parsePortRange(s string) (first, last uint16, err error) {
	if strings.EqualFold(s, none) {
		return 0, 0, nil
	}
	low, high, ranged := strings.Cut(s, ":")
	if !ranged {
		high = low
	}
	a, errA := strconv.ParseUint(low, 10, 16)
	b, errB := strconv.ParseUint(high, 10, 16)
	if errA != nil || errB != nil || a > b || a == 0 && b != 0 {
		return 0, 0, errors.New("want a port, or the first and the last one with a colon")
	}
	return uint16(a), uint16(b), nil
}

// marks are the bits for packets to translate and for those that are not judged yet: the
// lowest that Felix may use, whichever of its two ways to filter it goes by, but for that of
// the programs. The second is 0 if there is only one.
func (s *natSettings) marks() (translate, unjudged uint32) {
	mask := s.iptablesMask & s.nftMask &^ forwardedMark
	if mask == 0 {
		mask = s.nftMask &^ forwardedMark
	}
	translate = mask & -mask
	mask &^= translate
	return translate, mask & -mask
}

// computeNAT computes what natOutgoing asks for, and where services are.
func (c *Computer) computeNAT(in Input) {
	set := &c.settings.nat
	services := c.stale.bgp || !sameServices(in.Services, c.in.Services)
	if !c.stale.settings && !c.stale.pools && !(c.stale.nodes && set.excludeHosts) && !services && !c.out.Changes.Local {
		return
	}
	now := NAT{Address: set.address, FirstPort: set.firstPort, LastPort: set.lastPort, Interface: set.netInterface}
	now.Mark, now.UnjudgedMark = set.marks()
	nets := make(map[netip.Prefix]NATNet)
	for _, p := range c.cluster.pools {
		n := nets[p.prefix]
		n.Source, n.Inside = n.Source || p.natOutgoing, true
		// What lies within another pool is of both.
		for _, around := range c.cluster.pools {
			if around.natOutgoing && around.prefix.Bits() < p.prefix.Bits() && around.prefix.Contains(p.prefix.Addr()) {
				n.Source = true
			}
		}
		nets[p.prefix] = n
		now.IPv4 = now.IPv4 || p.natOutgoing && p.prefix.Addr().Is4()
		now.IPv6 = now.IPv6 || p.natOutgoing && p.prefix.Addr().Is6()
	}
	if !now.IPv4 && !now.IPv6 {
		clear(nets)
	} else if set.excludeHosts {
		for a := range nodeAddresses(&c.cluster) {
			if n, ok := nets[single(a)]; !ok {
				n.Inside = true
				if p, ok := c.cluster.poolOf(a); ok {
					n.Source = p.natOutgoing
				}
				nets[single(a)] = n
			}
		}
	}
	now.Inside = outermost(slices.Collect(maps.Keys(nets)))
	if now.UnjudgedMark != 0 {
		now.addServices(nets, serviceAddresses(in))
	}
	if now.Services4 || now.Services6 {
		for _, l := range c.out.Dataplane.Uplinks {
			now.Exits = append(now.Exits, l.Name)
		}
		for _, p := range c.settings.interfacePrefixes {
			now.Exits = append(now.Exits, p+"+")
		}
		slices.Sort(now.Exits)
	}
	if !now.Equal(c.out.NAT) || !maps.Equal(nets, c.out.Dataplane.NATNets) {
		c.out.NAT, c.out.Dataplane.NATNets, c.out.Dataplane.NATMark, c.out.Dataplane.UnjudgedMark = now, nets, now.Mark, 0
		if now.Services4 || now.Services6 {
			c.out.Dataplane.UnjudgedMark = now.UnjudgedMark
		}
		c.out.Changes.Local = true
	}
}

// serviceAddresses are the nets of services, and the single addresses of those that are known.
func serviceAddresses(in Input) []netip.Prefix {
	all, _ := in.Config.serviceCIDRs() // Compute says what is wrong with them
	all = append(all, new(State).learnedElsewhere(in)...)
	for _, s := range in.Services {
		for _, a := range slices.Concat(s.ClusterIPs, s.ExternalIPs, s.BalancerIPs) {
			all = append(all, single(a))
		}
	}
	return outermost(all)
}

// serviceCIDRs are the nets of ServiceCIDRs that are any.
func (c Config) serviceCIDRs() (nets []netip.Prefix, err error) {
	for cidr := range strings.FieldsFuncSeq(c.ServiceCIDRs, func(r rune) bool { return r == ',' || r == ' ' }) {
		p, bad := netip.ParsePrefix(cidr)
		if bad != nil {
			err = errors.Join(err, fmt.Errorf("CALICO_SERVICE_CIDRS: %w", bad))
			continue
		}
		nets = append(nets, p.Masked())
	}
	return nets, err
}

// addServices notes that services are in these prefixes, none of which lies within another. For
// natOutgoing they are what is around them.
func (n *NAT) addServices(nets map[netip.Prefix]NATNet, services []netip.Prefix) {
	for _, p := range services {
		n.Services4, n.Services6 = n.Services4 || p.Addr().Is4(), n.Services6 || p.Addr().Is6()
		net, ok := nets[p]
		for bits := p.Bits() - 1; !ok && bits >= 0; bits-- {
			around, _ := p.Addr().Prefix(bits)
			net, ok = nets[around]
		}
		net.Service = true
		nets[p] = net
	}
}

// outermost returns the prefixes that lie within no other one, in order.
func outermost(prefixes []netip.Prefix) []netip.Prefix {
	slices.SortFunc(prefixes, netip.Prefix.Compare) // the shorter of two that begin alike first
	var out []netip.Prefix
	for _, p := range prefixes {
		if n := len(out); n == 0 || !out[n-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}

func (n NAT) String() string {
	text := fmt.Sprintf("mark %#x IPv4 %v IPv6 %v inside %v address %v ports %d-%d interface %q",
		n.Mark, n.IPv4, n.IPv6, n.Inside, n.Address, n.FirstPort, n.LastPort, n.Interface)
	if n.Services4 || n.Services6 {
		text += fmt.Sprintf(" services IPv4 %v IPv6 %v unjudged %#x exits %v", n.Services4, n.Services6, n.UnjudgedMark, n.Exits)
	}
	return text
}
