package desired

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"calico-xdp/pkg/api"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

// FailsafePort is a port that no host endpoint's policy closes.
type FailsafePort struct {
	Egress   bool  // what the host sends to others' port; else what it receives on its own
	Protocol uint8 // IANA number: TCP, UDP or SCTP
	Port     uint16
	Net      netip.Prefix // of the other host; invalid: any
}

const (
	protocolTCP = 6
	protocolUDP = 17
)

// defaultFailsafe is what is open where nothing is configured; Calico's list.
func defaultFailsafe(egress bool) []FailsafePort {
	ports := []FailsafePort{{Protocol: protocolTCP, Port: 22}, {Protocol: protocolUDP, Port: 68}} // ssh, DHCP's answers
	if egress {
		ports = []FailsafePort{{Protocol: protocolUDP, Port: 53}, {Protocol: protocolUDP, Port: 67}} // names, DHCP
	}
	// BGP, etcd, Typha, the Kubernetes API, etcd of older clusters.
	for _, port := range []uint16{179, 2379, 2380, 5473, 6443, 6666, 6667} {
		ports = append(ports, FailsafePort{Protocol: protocolTCP, Port: port})
	}
	return ports
}

// failsafePorts is what no policy may close. It follows from the arguments
// alone. A direction whose list is configured has that list, an empty one too;
// the others have Calico's and what this node cannot do without: its datastore,
// and BGP where it uses other ports than that of the list.
func failsafePorts(set settings, c Config, bgp BGP) map[FailsafePort]bool {
	out := make(map[FailsafePort]bool)
	for _, egress := range []bool{false, true} {
		list := set.failsafeIn
		if egress {
			list = set.failsafeOut
		}
		if list == nil {
			list = slices.Concat(defaultFailsafe(egress), datastorePorts(c, egress), bgpPorts(bgp, egress))
		}
		for _, p := range list {
			p.Egress = egress
			out[p] = true
		}
	}
	return out
}

// datastorePorts are those of etcd: of the servers that the daemon uses, or,
// for what comes in, of the one that runs inside it.
func datastorePorts(c Config, egress bool) []FailsafePort {
	urls := c.DatastoreListen
	if egress {
		urls = c.Datastore
	}
	var out []FailsafePort
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil {
			continue
		}
		port, err := strconv.ParseUint(u.Port(), 10, 16)
		if err != nil {
			continue // a unix socket
		}
		p := FailsafePort{Protocol: protocolTCP, Port: uint16(port)}
		a, err := netip.ParseAddr(u.Hostname())
		switch {
		case err != nil: // a name, that may mean another address at any time
			if u.Hostname() == "localhost" {
				continue
			}
		case a.IsLoopback():
			continue
		case egress:
			p.Net = single(a.Unmap().WithZone(""))
		}
		out = append(out, p)
	}
	return out
}

// bgpPorts are those of the sessions of this node that are not the usual one.
func bgpPorts(b BGP, egress bool) []FailsafePort {
	var out []FailsafePort
	if !egress && b.Enabled && b.ListenPort != defaultBGPPort {
		out = append(out, FailsafePort{Protocol: protocolTCP, Port: uint16(b.ListenPort)})
	}
	for _, p := range b.Peers {
		if egress && p.Port != defaultBGPPort && p.Port != 0 {
			out = append(out, FailsafePort{Protocol: protocolTCP, Port: uint16(p.Port), Net: single(p.Address)})
		}
	}
	return out
}

// parseFailsafe takes what FelixConfiguration has, JSON, or what Felix's
// variables have: "tcp:22,udp:68", "tcp:10.0.0.0/8:22", "tcp:[fd00::/8]:22", and
// "none". A port alone is TCP.
func parseFailsafe(text string) ([]FailsafePort, error) {
	ports := []FailsafePort{} // not nil: an empty list is a list
	if strings.EqualFold(text, "none") {
		return ports, nil
	}
	if strings.HasPrefix(text, "[{") || text == "[]" {
		var list []v3.ProtoPort
		if err := json.Unmarshal([]byte(text), &list); err != nil {
			return nil, err
		}
		for _, p := range list {
			port, err := failsafePort(p.Protocol, p.Net, strconv.Itoa(int(p.Port)))
			if err != nil {
				return nil, err
			}
			ports = append(ports, port)
		}
		return ports, nil
	}
	for item := range strings.SplitSeq(text, ",") {
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		var protocol, network string
		port := item
		if i := strings.LastIndexByte(item, ':'); i >= 0 {
			protocol, port = item[:i], item[i+1:]
			protocol, network, _ = strings.Cut(protocol, ":")
		}
		if bare, ok := strings.CutPrefix(network, "["); ok {
			if network, ok = strings.CutSuffix(bare, "]"); !ok {
				return nil, fmt.Errorf("%q: want protocol:[network]:port", item)
			}
		}
		p, err := failsafePort(protocol, network, port)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", item, err)
		}
		ports = append(ports, p)
	}
	return ports, nil
}

func failsafePort(protocol, network, port string) (FailsafePort, error) {
	p := FailsafePort{Protocol: protocolTCP}
	if protocol != "" {
		n, ok := api.ProtocolNumber(protocol)
		if !ok || !api.ProtocolHasPorts(n) {
			return p, fmt.Errorf("protocol %q: want tcp, udp or sctp", protocol)
		}
		p.Protocol = n
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return p, fmt.Errorf("port %q: want a number up to 65535", port)
	}
	p.Port = uint16(number)
	if network == "" {
		return p, nil
	}
	if a, err := netip.ParseAddr(network); err == nil {
		p.Net = single(a)
	} else if p.Net, err = netip.ParsePrefix(network); err != nil {
		return p, errors.New("want a network in CIDR notation, not " + strconv.Quote(network))
	}
	if p.Net.Addr().Is4In6() {
		return p, fmt.Errorf("network %s: want IPv4 as such", p.Net)
	}
	p.Net = p.Net.Masked()
	return p, nil
}

// String is the port as FELIX_FAILSAFE… has it.
func (p FailsafePort) String() string {
	name := strings.ToLower(api.ProtocolName(p.Protocol))
	switch {
	case !p.Net.IsValid():
		return fmt.Sprintf("%s:%d", name, p.Port)
	case p.Net.Addr().Is6():
		return fmt.Sprintf("%s:[%s]:%d", name, p.Net, p.Port)
	}
	return fmt.Sprintf("%s:%s:%d", name, p.Net, p.Port)
}
