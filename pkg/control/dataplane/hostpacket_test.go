package dataplane

import (
	"net/netip"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/loader"
	"calico-xdp/pkg/policy"
	"calico-xdp/tools/testbed"
)

const (
	near4, near6     = "10.10.1.9", "fd10:10:1::9" // neighbours of the uplink
	beyond4, beyond6 = "8.8.8.8", "2001:db8::8"    // somewhere else
	toHostMAC        = "02:00:00:00:aa:aa"
)

// guard puts a host endpoint with these rulesets on the uplink.
func (b *bed) guard(t *testing.T, h policy.HostRulesets, failsafe ...desired.FailsafePort) {
	t.Helper()
	w := &b.state.Dataplane
	w.HostEndpoints = map[int]api.Key{b.index["eth0"]: hostKey("uplink")}
	w.Policy.HostEndpoints = map[api.Key]policy.HostRulesets{hostKey("uplink"): h}
	w.Failsafe = make(map[desired.FailsafePort]bool)
	for _, p := range failsafe {
		w.Failsafe[p] = true
	}
	b.sync(t)
}

// ip is a frame between two others than workloads.
func ip(src, dst string) testbed.Packet {
	return testbed.Ethernet("02:00:00:00:99:99", toHostMAC).IP(netip.MustParseAddr(src), netip.MustParseAddr(dst))
}

var shutHost = policy.HostRulesets{Normal: policy.Rulesets{Egress: deny, Ingress: deny}}

// What is the host's own is judged as that, however the kernel comes to take it.
func TestWhatIsTheHostsOwn(t *testing.T) {
	b := newBed(t)
	// Unknown to the routes: a prefix of local addresses, an address that is new.
	b.host.MustRun(t, "ip", "route", "add", "local", "203.0.113.0/24", "dev", "lo")
	b.host.MustRun(t, "ip", "-6", "route", "add", "local", "2001:db8:77::/64", "dev", "lo")
	b.host.AddAddress(t, "eth0", "10.10.1.77/24")
	b.guard(t, shutHost)
	in := func(name, src, dst string, own bool) trial {
		want := "next pass_to_stack"
		if own {
			want = "shot drop_host_policy"
		}
		return trial{name: name, hook: loader.FromNetwork, packet: ip(src, dst).UDP(4000, 8080), want: want}
	}
	b.fire(t, []trial{
		in("its address", near4, node4, true),
		in("its IPv6 address", near6, node6, true),
		in("its link-local address", "fe80::9", "fe80::1", true),
		in("another one, that is new", near4, "10.10.1.77", true),
		in("of a local prefix", near4, "203.0.113.5", true),
		in("of a local IPv6 prefix", near6, "2001:db8:77::5", true),
		in("its subnet's broadcast address", near4, "10.10.1.255", true),
		in("everybody's", near4, "255.255.255.255", true),
		in("its subnet's routers'", near6, "fd10:10:1::", true),
		in("multicast", near4, "224.0.0.251", true),
		in("IPv6 multicast", "fe80::9", "ff02::fb", true),
		in("a neighbour", beyond4, near4, false),
		in("somewhere else", near4, beyond4, false),
		in("somewhere else, IPv6", near6, beyond6, false),
	})
}

// Failsafe ports are open whatever the stages of the host's own say; the stage of what is
// forwarded stands.
func TestFailsafePackets(t *testing.T) {
	b := newBed(t)
	ports := []desired.FailsafePort{
		{Protocol: 6, Port: 22}, {Protocol: 17, Port: 68}, {Protocol: 6, Port: 80, Net: netip.MustParsePrefix("10.10.1.0/24")},
		{Egress: true, Protocol: 6, Port: 2379}, {Egress: true, Protocol: 17, Port: 53},
	}
	untracked := shutHost
	untracked.Untracked = policy.Rulesets{Egress: deny, Ingress: deny}
	preDNAT := shutHost
	preDNAT.PreDNAT = deny
	in := func(p testbed.Packet, want string) trial {
		return trial{hook: loader.FromNetwork, packet: p, want: want}
	}
	out := func(p testbed.Packet, want string) trial {
		return trial{hook: loader.ToNetwork, packet: p, want: want}
	}
	named := func(name string, s trial, after ...trial) trial {
		s.name, s.after = name, after
		return s
	}
	const passes, leaves = "next pass_to_host", "next pass_not_ours"
	for name, h := range map[string]policy.HostRulesets{"normal": shutHost, "preDNAT": preDNAT, "untracked": untracked} {
		denied, deniedOut := "shot drop_host_policy", "shot drop_host_policy"
		if h.Untracked != (policy.Rulesets{}) {
			denied, deniedOut = "shot drop_untracked", "shot drop_untracked"
		}
		b.guard(t, h, ports...)
		t.Run(name, func(t *testing.T) {
			ssh := in(ip(near4, node4).TCP(4000, 22, "S"), passes)
			b.fire(t, []trial{
				named("ssh", ssh),
				named("its answer", out(ip(node4, near4).TCP(22, 4000, "SA"), leaves), ssh),
				named("in the middle of a connection", out(ip(node4, near4).TCP(22, 4000, "A"), leaves)),
				named("of IPv6", in(ip(near6, node6).TCP(4000, 22, "S"), passes)),
				named("another port", in(ip(near4, node4).TCP(4000, 23, "S"), denied)),
				named("another protocol", in(ip(near4, node4).UDP(4000, 22), denied)),
				named("from port 22", in(ip(near4, node4).TCP(22, 4000, "S"), denied)),
				named("UDP", in(ip(near4, node4).UDP(67, 68), passes)),
				named("of a network", in(ip(near4, node4).TCP(4000, 80, "S"), passes)),
				named("not of that network", in(ip(beyond4, node4).TCP(4000, 80, "S"), denied)),
				named("nor of its family", in(ip(near6, node6).TCP(4000, 80, "S"), denied)),
				named("ping", in(ip(near4, node4).Echo(1, 1), denied)),
				named("etcd", out(ip(node4, beyond4).TCP(4000, 2379, "S"), leaves)),
				named("etcd answers", in(ip(beyond4, node4).TCP(2379, 4000, "SA"), passes), out(ip(node4, beyond4).TCP(4000, 2379, "S"), leaves)),
				named("DNS", out(ip(node6, beyond6).UDP(4000, 53), leaves)),
				named("DNS answers", in(ip(beyond6, node6).UDP(53, 4000), passes), out(ip(node6, beyond6).UDP(4000, 53), leaves)),
				named("outward, to an inward port", out(ip(node4, beyond4).TCP(4000, 22, "S"), deniedOut)),
				named("neighbours", trial{hook: loader.FromNetwork, packet: testbed.Ethernet("02:00:00:00:99:99", "ff:ff:ff:ff:ff:ff").ARP("02:00:00:00:99:99", near4, "00:00:00:00:00:00", node4), want: leaves}),
			})
		})
	}
	forwarded := preDNAT
	forwarded.Untracked.Ingress, forwarded.Forward.Ingress = deny, allow
	b.guard(t, forwarded, ports...)
	b.fire(t, []trial{
		named("forwarded, to a port like it", in(ip(near4, beyond4).TCP(4000, 22, "S"), "next pass_to_stack")),
		named("forwarded, to another one", in(ip(near4, beyond4).TCP(4000, 23, "S"), "shot drop_untracked")),
	})
	forwarded.Forward.Ingress = deny
	b.guard(t, forwarded, ports...)
	b.fire(t, []trial{named("forwarded, and the stage denies", in(ip(near4, beyond4).TCP(4000, 22, "S"), "shot drop_host_policy"))})
}
