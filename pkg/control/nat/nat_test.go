package nat

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"calico-xdp/pkg/control/desired"
	"calico-xdp/tools/testbed"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// open returns a sink for a namespace.
func open(t *testing.T, ns *testbed.Namespace) *NAT {
	t.Helper()
	n, err := newIn(int(ns.Handle()), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// settle does what the control loop does.
func settle(t *testing.T, n *NAT, want desired.NAT) {
	t.Helper()
	state := &desired.State{NAT: want}
	if err := errors.Join(n.Ensure(context.Background(), state), n.Prune(context.Background(), state)); err != nil {
		t.Fatal(err)
	}
}

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, p := range list {
		out[i] = netip.MustParsePrefix(p)
	}
	return out
}

// masquerade is what a cluster with pools of both families wants.
func masquerade() desired.NAT {
	return desired.NAT{
		Mark: 0x10000, IPv4: true, IPv6: true,
		Inside: prefixes("10.65.0.0/16", "10.66.0.0/16", "10.99.0.7/32", "fd66::/48"),
	}
}

// ours is what nft, which is not ours, says of our tables.
func ours(t *testing.T, ns *testbed.Namespace) string {
	t.Helper()
	text := ""
	for _, family := range []string{"ip", "ip6"} {
		if strings.Contains(ns.MustRun(t, "nft", "list", "tables"), "table "+family+" calico-xdp\n") {
			text += ns.MustRun(t, "nft", "list", "table", family, "calico-xdp")
		}
	}
	return text
}

const (
	table4 = `table ip calico-xdp {
	set inside {
		type ipv4_addr
		flags interval
		elements = { 10.65.0.0/16, 10.66.0.0/16,
			     10.99.0.7 }
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00010000 == 0x00000000 return
		ct status dnat ip daddr @inside return
		masquerade
	}
}
`
	table6 = `table ip6 calico-xdp {
	set inside {
		type ipv6_addr
		flags interval
		elements = { fd66::/48 }
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00010000 == 0x00000000 return
		ct status dnat ip6 daddr @inside return
		masquerade
	}
}
`
)

func TestTables(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*desired.NAT)
		want string
	}{
		"both families": {func(*desired.NAT) {}, table4 + table6},
		"none":          {func(n *desired.NAT) { n.IPv4, n.IPv6 = false, false }, ""},
		"one family": {func(n *desired.NAT) { n.IPv6, n.Inside = false, nil }, `table ip calico-xdp {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00010000 == 0x00000000 return
		masquerade
	}
}
`},
		"ports and interfaces": {func(n *desired.NAT) {
			*n = desired.NAT{Mark: 0x40000000, IPv4: true, FirstPort: 32768, LastPort: 60000, Interface: "eth+"}
		}, `table ip calico-xdp {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x40000000 == 0x00000000 return
		oifname != "eth*" return
		meta l4proto tcp masquerade to :32768-60000
		meta l4proto udp masquerade to :32768-60000
		masquerade
	}
}
`},
		"services": {func(n *desired.NAT) {
			*n = desired.NAT{Mark: 0x10000, UnjudgedMark: 0x20000, Services4: true, Exits: []string{"cali+", "eth0"}, IPv6: true}
		}, `table ip calico-xdp {
	chain forward {
		type filter hook forward priority raw; policy accept;
		meta mark & 0x00020000 == 0x00000000 return
		oifname "cali*" return
		oifname "eth0" return
		drop
	}

	chain input {
		type filter hook input priority raw; policy accept;
		meta mark & 0x00020000 != 0x00000000 drop
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
	}
}
table ip6 calico-xdp {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00010000 == 0x00000000 return
		masquerade
	}
}
`},
		"an address and ports": {func(n *desired.NAT) {
			*n = desired.NAT{
				Mark: 0x20000, IPv4: true, FirstPort: 5000, LastPort: 6000, Interface: "eth0", Address: netip.MustParseAddr("10.0.0.9"),
				Inside: prefixes("0.0.0.0/0"),
			}
		}, `table ip calico-xdp {
	set inside {
		type ipv4_addr
		flags interval
		elements = { 0.0.0.0/0 }
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00020000 == 0x00000000 return
		oifname != "eth0" return
		ct status dnat ip daddr @inside return
		meta l4proto tcp snat to 10.0.0.9:5000-6000
		meta l4proto udp snat to 10.0.0.9:5000-6000
		snat to 10.0.0.9
	}
}
`},
	} {
		t.Run(name, func(t *testing.T) {
			ns := testbed.NewNamespace(t, "nat")
			n := open(t, ns)
			want := masquerade()
			c.edit(&want)
			settle(t, n, want)
			got := ours(t, ns)
			if got != c.want {
				t.Errorf("nft says\n%s, want\n%s", got, c.want)
			}
			// It is recognised, by this process and by the next one.
			handles := ns.MustRun(t, "nft", "-a", "list", "ruleset")
			n.Resync()
			settle(t, n, want)
			settle(t, open(t, ns), want)
			if now := ns.MustRun(t, "nft", "-a", "list", "ruleset"); now != handles {
				t.Errorf("what was right has been written again:\n%s, before\n%s", now, handles)
			}
			if d := n.tracked.Drift(); d.Added+d.Removed+d.Changed != 0 {
				t.Errorf("drift %+v", d)
			}
		})
	}
}

// Whatever others do to our tables is mended; what they do elsewhere stays.
func TestDrift(t *testing.T) {
	ns := testbed.NewNamespace(t, "nat")
	n := open(t, ns)
	want := masquerade()
	settle(t, n, want)
	const foreign = `table ip calico-xdp-not {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 10.1.0.0/16 masquerade
	}
}
`
	ns.MustRun(t, "nft", foreign)
	ns.MustRun(t, "nft", "add", "table", "inet", "calico-xdp")
	others := foreign + "table inet calico-xdp {\n}\n"
	for i, change := range []string{
		"add rule ip calico-xdp postrouting counter",
		"insert rule ip6 calico-xdp postrouting return",
		"add chain ip calico-xdp other",
		"add set ip calico-xdp other { type ipv4_addr; }",
		"add element ip calico-xdp inside { 10.70.0.0/16 }",
		"delete element ip calico-xdp inside { 10.65.0.0/16 }",
		"flush chain ip calico-xdp postrouting",
		"flush set ip6 calico-xdp inside",
		"delete table ip calico-xdp",
		"add table ip calico-xdp { flags dormant; }",
		"delete table ip6 calico-xdp; add table ip6 calico-xdp { chain postrouting { type nat hook postrouting priority 50; meta mark & 0x10000 == 0 return; masquerade; }; }",
		"replace rule ip calico-xdp postrouting handle HANDLE meta mark & 0x20000 == 0 return",
	} {
		if strings.Contains(change, "HANDLE") {
			list := ns.MustRun(t, "nft", "-a", "list", "chain", "ip", "calico-xdp", "postrouting")
			_, rest, _ := strings.Cut(list, "return # handle ")
			handle, _, _ := strings.Cut(rest, "\n")
			change = strings.Replace(change, "HANDLE", handle, 1)
		}
		ns.MustRun(t, "nft", change)
		if ours(t, ns) == table4+table6 {
			t.Errorf("%s: changes nothing", change)
		}
		settle(t, n, want)
		n.Resync()
		settle(t, n, want)
		if got := ours(t, ns); got != table4+table6 {
			t.Errorf("after %s:\n%s", change, got)
		}
		for list, text := range map[string]string{"ip calico-xdp-not": foreign, "inet calico-xdp": "table inet calico-xdp {\n}\n"} {
			if got := ns.MustRun(t, "nft", "list table "+list); got != text {
				t.Errorf("after %s: a table of others is\n%s", change, got)
			}
		}
		d := n.tracked.Drift()
		if int(d.Added+d.Removed+d.Changed) != i+1 {
			t.Errorf("after %s: drift %+v, want %d", change, d, i+1)
		}
	}
	metrics := strings.NewReader("# HELP calico_xdp_nat_tables Tables of ours in nftables.\n# TYPE calico_xdp_nat_tables gauge\ncalico_xdp_nat_tables 2\n")
	if err := testutil.CollectAndCompare(n.Collector(), metrics, "calico_xdp_nat_tables"); err != nil {
		t.Error(err)
	}

	// Without pools the chains stay, for connections that are translated already.
	settle(t, n, desired.NAT{Mark: want.Mark})
	for _, family := range []string{"ip", "ip6"} {
		got := ns.MustRun(t, "nft", "list", "table", family, "calico-xdp")
		if strings.Contains(got, "masquerade") || !strings.Contains(got, "chain postrouting {") {
			t.Errorf("without pools:\n%s", got)
		}
	}
	settle(t, open(t, ns), want)
	if got := ns.MustRun(t, "nft", "list", "table", "ip", "calico-xdp"); got != table4 {
		t.Errorf("with pools again:\n%s", got)
	}

	removed, err := detach(int(ns.Handle()))
	if err != nil || len(removed) != 2 {
		t.Errorf("detach: %v %v", removed, err)
	}
	if removed, err := detach(int(ns.Handle())); err != nil || len(removed) != 0 {
		t.Errorf("second detach: %v %v", removed, err)
	}
	if got := ns.MustRun(t, "nft", "list", "ruleset"); got != others {
		t.Errorf("detached, but there is\n%s", got)
	}
}

// A cluster of many nodes, all of which are excluded.
func TestManyPrefixes(t *testing.T) {
	ns := testbed.NewNamespace(t, "nat")
	n := open(t, ns)
	want := desired.NAT{Mark: 0x10000, IPv4: true}
	for i := range 20000 {
		want.Inside = append(want.Inside, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 14), byte(i >> 6), byte(i << 2)}), 32))
	}
	settle(t, n, want)
	if out := ns.MustRun(t, "nft", "get", "element", "ip", "calico-xdp", "inside", "{ 10.1.56.124 }"); !strings.Contains(out, "10.1.56.124") {
		t.Error(out)
	}
	n.Resync()
	settle(t, n, want)
	if d := n.tracked.Drift(); d.Changed != 0 {
		t.Errorf("drift %+v", d)
	}
}

func ExampleNAT_names() {
	fmt.Println(family(2), family(10))
	// Output: ip calico-xdp ip6 calico-xdp
}
