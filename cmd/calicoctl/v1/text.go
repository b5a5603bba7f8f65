package v1

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// String is the rule in the words of `profile rule show`.
func (r *Rule) String() string {
	words := []string{r.Action}
	add := func(name, value string) {
		if value != "" {
			words = append(words, name, value)
		}
	}
	for _, p := range []struct {
		not string
		t   *Text
	}{{"", r.Protocol}, {"!", r.NotProtocol}} {
		if p.t != nil {
			words = append(words, p.not+string(*p.t))
		}
	}
	number := func(n *int) string {
		if n == nil {
			return ""
		}
		return strconv.Itoa(*n)
	}
	add("type", number(r.ICMPType))
	add("code", number(r.ICMPCode))
	add("!type", number(r.NotICMPType))
	add("!code", number(r.NotICMPCode))
	side := func(name string, pairs ...string) {
		n := len(words)
		for i := 0; i < len(pairs); i += 2 {
			add(pairs[i], pairs[i+1])
		}
		if len(words) > n {
			words = append(words[:n], append([]string{name}, words[n:]...)...)
		}
	}
	side("from", "ports", list(r.SrcPorts), "tag", r.SrcTag, "cidr", nets(r.SrcNet, r.SrcNets), "selector", quoted(r.SrcSelector),
		"!ports", list(r.NotSrcPorts), "!tag", r.NotSrcTag, "!cidr", nets(r.NotSrcNet, r.NotSrcNets), "!selector", quoted(r.NotSrcSelector))
	side("to", "ports", list(r.DstPorts), "tag", r.DstTag, "cidr", nets(r.DstNet, r.DstNets), "selector", quoted(r.DstSelector),
		"!ports", list(r.NotDstPorts), "!tag", r.NotDstTag, "!cidr", nets(r.NotDstNet, r.NotDstNets), "!selector", quoted(r.NotDstSelector))
	return strings.Join(words, " ")
}

func list(ports []Text) string {
	out := make([]string, len(ports))
	for i, p := range ports {
		out[i] = string(p)
	}
	return strings.Join(out, ",")
}

func nets(one string, many []string) string {
	if one != "" {
		many = append(many[:len(many):len(many)], one)
	}
	return strings.Join(many, ",")
}

func quoted(selector string) string {
	if selector == "" {
		return ""
	}
	return strconv.Quote(selector)
}

// ParseRule reads a rule in the words of `profile rule add`:
//
//	(allow|deny) [tcp|udp|icmp [type N [code M]]|icmpv6 …] [from [ports LIST] [tag T] [[cidr] CIDR]] [to …]
func ParseRule(words []string) (Rule, error) {
	var r Rule
	next := func() string {
		if len(words) == 0 {
			return ""
		}
		return words[0]
	}
	take := func() string {
		w := next()
		words = words[min(1, len(words)):]
		return w
	}
	if r.Action = take(); r.Action != "allow" && r.Action != "deny" {
		return r, errors.New("a rule begins with allow or deny")
	}
	ports := false
	switch p := next(); p {
	case "tcp", "udp":
		r.Protocol, ports = new(Text(take())), true
	case "icmp", "icmpv6":
		r.Protocol = new(Text(take()))
		for _, field := range []struct {
			name string
			to   **int
		}{{"type", &r.ICMPType}, {"code", &r.ICMPCode}} {
			if next() != field.name {
				break
			}
			take()
			n, err := strconv.Atoi(take())
			if err != nil || n < 0 || n > 254 {
				return r, fmt.Errorf("%s of ICMP: a number from 0 to 254 is expected", field.name)
			}
			*field.to = &n
		}
	}
	for _, side := range []struct {
		name     string
		ports    *[]Text
		tag, net *string
	}{{"from", &r.SrcPorts, &r.SrcTag, &r.SrcNet}, {"to", &r.DstPorts, &r.DstTag, &r.DstNet}} {
		if next() != side.name {
			continue
		}
		take()
		if next() == "ports" {
			if take(); !ports {
				return r, errors.New("only tcp and udp have ports")
			}
			for _, p := range strings.Split(take(), ",") {
				if p = strings.ReplaceAll(p, "-", ":"); !portRange(p) {
					return r, fmt.Errorf("port %q: N or N:M of 0 to 65535 is expected", p)
				}
				*side.ports = append(*side.ports, Text(p))
			}
		}
		if next() == "tag" {
			take()
			if *side.tag = take(); *side.tag == "" {
				return r, errors.New("tag: a name is missing")
			}
		}
		if next() == "cidr" {
			take()
		}
		if p, err := netip.ParsePrefix(next()); err == nil {
			*side.net = p.Masked().String()
			take()
		}
	}
	if len(words) > 0 {
		return r, fmt.Errorf("%q is not understood", strings.Join(words, " "))
	}
	return r, nil
}

func portRange(s string) bool {
	first, last, two := strings.Cut(s, ":")
	lo, err := strconv.ParseUint(first, 10, 16)
	if err != nil || !two {
		return err == nil
	}
	hi, err := strconv.ParseUint(last, 10, 16)
	return err == nil && lo <= hi
}
