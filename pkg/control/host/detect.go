package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"calico-xdp/pkg/control/desired"

	"github.com/vishvananda/netlink"
)

// skipped are the interfaces that never carry the node's own address: those of
// container engines, hypervisors, and Calico itself.
const skipped = `^(docker.*|cbr.*|dummy.*|virbr.*|lxcbr.*|veth.*|lo|cali.*|tunl.*|flannel.*|kube-ipvs.*|cni.*|br-.*|vxlan.*)$`

// Detected is an address that was chosen for the node.
type Detected struct {
	Prefix    netip.Prefix // the address with its subnet's length
	Interface string
	Reason    string // in words, for the log
}

// Detect chooses the node's address of one family by a method of Calico's
// IP_AUTODETECTION_METHOD: first-found, can-reach=ADDRESS, interface=REGEXES,
// skip-interface=REGEXES, cidr=PREFIXES; lists are separated by commas.
func (n *Network) Detect(ctx context.Context, method string, ipv6 bool) (Detected, error) {
	links, err := n.Links()
	if err != nil {
		return Detected{}, err
	}
	return n.detect(ctx, links, method, ipv6)
}

// Complete finds the subnet and the interface of an address of this host; it
// returns the address alone, without an interface, if none has it.
func (n *Network) Complete(a netip.Addr) (Detected, error) {
	links, err := n.Links()
	if err != nil {
		return Detected{}, err
	}
	for _, l := range links {
		for _, p := range l.Addresses {
			if p.Addr() == a {
				return Detected{p, l.Name, "address of " + l.Name}, nil
			}
		}
	}
	return Detected{Prefix: netip.PrefixFrom(a, a.BitLen()), Reason: "no interface has it"}, nil
}

func (n *Network) detect(ctx context.Context, links []desired.Link, method string, ipv6 bool) (Detected, error) {
	name, argument, has := strings.Cut(method, "=")
	takes := map[string]bool{
		"": false, "first-found": false, "kubernetes-internal-ip": false,
		"can-reach": true, "interface": true, "skip-interface": true, "cidr": true,
	}
	needs, known := takes[name]
	switch {
	case !known:
		return Detected{}, errors.New("no such method: want first-found, can-reach=, interface=, skip-interface= or cidr=")
	case needs && argument == "":
		return Detected{}, errors.New("the method needs a value after =")
	case !needs && has:
		return Detected{}, errors.New("the method takes no value")
	}
	switch name {
	case "kubernetes-internal-ip":
		return Detected{}, errors.New("this node does not talk to the Kubernetes API; choose another method, or set the address itself")
	case "can-reach":
		return n.canReach(ctx, links, argument, ipv6)
	case "cidr":
		return byCIDR(links, argument, ipv6)
	case "interface":
		return byInterface(links, argument, ipv6)
	case "skip-interface":
		more, err := expressions(argument)
		if err != nil {
			return Detected{}, err
		}
		return firstFound(links, ipv6, more)
	}
	return firstFound(links, ipv6, nil)
}

// addressesOf returns the addresses of a link that other hosts could send to.
func addressesOf(l desired.Link, ipv6 bool) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(l.Addresses), func(p netip.Prefix) bool {
		return p.Addr().Is6() != ipv6 || !p.Addr().IsGlobalUnicast()
	})
}

func firstFound(links []desired.Link, ipv6 bool, skip []*regexp.Regexp) (Detected, error) {
	always := regexp.MustCompile(skipped)
	var passed []string
	for _, l := range links {
		unwanted := always.MatchString(l.Name) ||
			slices.ContainsFunc(skip, func(re *regexp.Regexp) bool { return re.MatchString(l.Name) })
		addresses := addressesOf(l, ipv6)
		switch {
		case unwanted:
			passed = append(passed, l.Name+" (by name)")
			continue
		case !l.Up:
			passed = append(passed, l.Name+" (down)")
			continue
		}
		for _, p := range addresses {
			// An address without a subnet is a service's or a tunnel's.
			if !p.IsSingleIP() {
				return Detected{p, l.Name, reason(fmt.Sprintf("first address of %s", l.Name), passed)}, nil
			}
		}
		passed = append(passed, l.Name+" (no address with a subnet)")
	}
	return Detected{}, errors.New(reason("no interface has a usable address", passed))
}

func reason(text string, passed []string) string {
	if len(passed) == 0 {
		return text
	}
	return text + "; passed over " + strings.Join(passed, ", ")
}

func byInterface(links []desired.Link, argument string, ipv6 bool) (Detected, error) {
	wanted, err := expressions(argument)
	if err != nil {
		return Detected{}, err
	}
	for _, re := range wanted {
		for _, l := range links {
			if !l.Up || !re.MatchString(l.Name) {
				continue
			}
			for _, p := range addressesOf(l, ipv6) {
				return Detected{p, l.Name, fmt.Sprintf("first address of %s, which matches %s", l.Name, re)}, nil
			}
		}
	}
	return Detected{}, errors.New("no interface that is up and matches has a usable address")
}

func byCIDR(links []desired.Link, argument string, ipv6 bool) (Detected, error) {
	var within []netip.Prefix
	for text := range strings.SplitSeq(argument, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return Detected{}, err
		}
		within = append(within, p.Masked())
	}
	for _, l := range links {
		for _, p := range addressesOf(l, ipv6) {
			for _, w := range within {
				if l.Up && w.Contains(p.Addr()) {
					return Detected{p, l.Name, fmt.Sprintf("address of %s in %s", l.Name, w)}, nil
				}
			}
		}
	}
	return Detected{}, errors.New("no interface that is up has an address in these networks")
}

// canReach takes the address that the kernel would send from.
func (n *Network) canReach(ctx context.Context, links []desired.Link, target string, ipv6 bool) (Detected, error) {
	to, err := netip.ParseAddr(target)
	if err != nil {
		if to, err = lookup(ctx, target, ipv6); err != nil {
			return Detected{}, err
		}
	}
	if to.Is6() != ipv6 {
		return Detected{}, fmt.Errorf("%s is of the other address family", to)
	}
	routes, err := n.kernel.RouteGetWithOptions(to.AsSlice(), &netlink.RouteGetOptions{})
	if err != nil || len(routes) == 0 {
		return Detected{}, errors.Join(fmt.Errorf("no route to %s", to), err)
	}
	from := address(routes[0].Src)
	for _, l := range links {
		for _, p := range l.Addresses {
			if p.Addr() == from {
				return Detected{p, l.Name, fmt.Sprintf("address of %s that packets to %s are sent from", l.Name, to)}, nil
			}
		}
	}
	return Detected{}, fmt.Errorf("packets to %s are sent from %s, which no interface has", to, from)
}

func lookup(ctx context.Context, name string, ipv6 bool) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	network := "ip4"
	if ipv6 {
		network = "ip6"
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, network, name)
	if err != nil {
		return netip.Addr{}, err
	}
	return found[0].Unmap(), nil
}

// expressions are matched anywhere in a name, as Calico does.
func expressions(list string) ([]*regexp.Regexp, error) {
	var out []*regexp.Regexp
	for text := range strings.SplitSeq(list, ",") {
		re, err := regexp.Compile(strings.TrimSpace(text))
		if err != nil {
			return nil, err
		}
		out = append(out, re)
	}
	return out, nil
}
