package macro

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"

	"calico-xdp/perf/bed"
	"calico-xdp/tools/testbed"
)

// filter is a way to have the kernel enforce what workload b may receive: the same
// rules in the same order, and what none allows is dropped.
type filter struct {
	name  string
	needs []string // commands
	// rules and networks write what bed.Policies and bed.Blocklist mean; nil where the
	// way is none for that. stateful lets pass before what belongs to a known connection.
	rules    func(rules []bed.Rule, stateful bool) []script
	networks func(nets []netip.Prefix, stateful bool) []script
}

// script is a command and what it reads from its standard input.
type script struct {
	command []string
	input   string
}

// filters are the kernel's own ways, as others use them.
func filters() []filter {
	return []filter{
		{name: "iptables-nft", needs: []string{"iptables-nft-restore"}, rules: iptables("iptables-nft-restore")},
		{name: "iptables-legacy", needs: []string{"iptables-legacy-restore"}, rules: iptables("iptables-legacy-restore")},
		{name: "nft", needs: []string{"nft"}, rules: nftLinear},
		{name: "nft-map", needs: []string{"nft"}, rules: nftMap},
		{name: "ipset", needs: []string{"ipset", "iptables-legacy-restore"}, networks: ipset},
		{name: "nft-set", needs: []string{"nft"}, networks: nftSet},
	}
}

// missing are the commands that the machine does not have.
func missing(commands []string) []string {
	var out []string
	for _, c := range commands {
		if _, err := exec.LookPath(c); err != nil {
			out = append(out, c)
		}
	}
	return out
}

// load runs scripts on the host.
func (s *site) load(t testbed.T, scripts []script) {
	t.Helper()
	// What is over makes room for what comes.
	s.host.Sysctl(t, "net.netfilter.nf_conntrack_tcp_timeout_close", "1")
	for _, sc := range scripts {
		cmd := exec.Command(sc.command[0], sc.command[1:]...)
		cmd.Stdin = strings.NewReader(sc.input)
		p := s.host.StartCmd(t, cmd)
		<-p.Exited()
		if !cmd.ProcessState.Success() {
			t.Fatalf("%s: %s", strings.Join(sc.command, " "), p.Output())
		}
	}
}

const known = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"

func iptables(restore string) func([]bed.Rule, bool) []script {
	return func(rules []bed.Rule, stateful bool) []script {
		var b strings.Builder
		b.WriteString("*filter\n:to-b - [0:0]\n")
		if stateful {
			b.WriteString(known)
		}
		b.WriteString("-A FORWARD -o calib -j to-b\n")
		for _, r := range rules {
			fmt.Fprintf(&b, "-A to-b -s %s -p tcp --dport %d -j %s\n", r.Source, r.Port, map[bool]string{true: "ACCEPT", false: "DROP"}[r.Allow])
		}
		b.WriteString("-A to-b -j DROP\nCOMMIT\n")
		return []script{{[]string{restore}, b.String()}}
	}
}

func ipset(nets []netip.Prefix, stateful bool) []script {
	var b strings.Builder
	fmt.Fprintf(&b, "create blocked hash:net maxelem %d hashsize %d\n", max(65536, 2*len(nets)), max(1024, len(nets)))
	for _, p := range nets {
		fmt.Fprintf(&b, "add blocked %s\n", p)
	}
	rules := "*filter\n"
	if stateful {
		rules += known
	}
	rules += "-A FORWARD -o calib -m set --match-set blocked src -j DROP\nCOMMIT\n"
	return []script{{[]string{"ipset", "restore"}, b.String()}, {[]string{"iptables-legacy-restore"}, rules}}
}

// nftTable is a table whose chain first does what is common to all.
func nftTable(sets, rules string, stateful bool) []script {
	before := ""
	if stateful {
		before = "ct state established,related accept\n"
	}
	return []script{{[]string{"nft", "-f", "-"}, "table ip perf {\n" + sets +
		"chain forward {\ntype filter hook forward priority filter\n" + before + rules + "}\n}\n"}}
}

func nftVerdict(r bed.Rule) string { return map[bool]string{true: "accept", false: "drop"}[r.Allow] }

func nftLinear(rules []bed.Rule, stateful bool) []script {
	var b strings.Builder
	b.WriteString("chain to-b {\n")
	for _, r := range rules {
		fmt.Fprintf(&b, "ip saddr %s tcp dport %d %s\n", r.Source, r.Port, nftVerdict(r))
	}
	b.WriteString("drop\n}\n")
	return nftTable(b.String(), "oifname calib jump to-b\n", stateful)
}

// nftMap is what somebody would write by hand who knows that no two rules overlap.
func nftMap(rules []bed.Rule, stateful bool) []script {
	var b strings.Builder
	b.WriteString("map rules {\ntype ipv4_addr . inet_service : verdict\nflags interval\nelements = {\n")
	for i, r := range rules {
		if i > 0 {
			b.WriteString(",\n")
		}
		fmt.Fprintf(&b, "%s . %d : %s", r.Source, r.Port, nftVerdict(r))
	}
	b.WriteString("\n}\n}\nchain to-b {\nip saddr . tcp dport vmap @rules\ndrop\n}\n")
	return nftTable(b.String(), "oifname calib jump to-b\n", stateful)
}

func nftSet(nets []netip.Prefix, stateful bool) []script {
	var b strings.Builder
	// auto-merge: networks may lie within others.
	b.WriteString("set blocked {\ntype ipv4_addr\nflags interval\nauto-merge\nelements = {\n")
	for i, p := range nets {
		if i > 0 {
			b.WriteString(",\n")
		}
		b.WriteString(p.String())
	}
	b.WriteString("\n}\n}\n")
	return nftTable(b.String(), "oifname calib ip saddr @blocked drop\n", stateful)
}
