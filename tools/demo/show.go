package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	"calico-xdp/tools/testbed"
)

// network is one CNI network with a pool of its own, and so a way of its own
// between hosts.
type network struct {
	name, ipv4, ipv6 string
	pool             string // the v4 pool's modes
}

func (n network) ipv6Pools() []string {
	if n.ipv6 == "" {
		return nil
	}
	return []string{n.ipv6}
}

var networks = []network{
	{name: "ipip", ipv4: "10.65.0.0/16", pool: "ipipMode: Always"},
	{name: "vxlan", ipv4: "10.66.0.0/16", ipv6: "fd66::/48", pool: "vxlanMode: Always"},
	{name: "cross", ipv4: "10.67.0.0/16", pool: "ipipMode: CrossSubnet"},
}

func pools() string {
	var b strings.Builder
	pool := func(name, cidr, modes string) {
		fmt.Fprintf(&b, "---\napiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: %s}\nspec: {cidr: \"%s\", %s}\n", name, cidr, modes)
	}
	for _, n := range networks {
		pool(n.name, n.ipv4, n.pool)
		if n.ipv6 != "" {
			pool(n.name+"-v6", n.ipv6, n.pool)
		}
	}
	return b.String()
}

// The policy: databases talk to web servers only, on their port.
const policy = `apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: databases}
spec:
  order: 10
  selector: role == 'db'
  types: [Ingress]
  ingress:
  - action: Allow
    protocol: TCP
    source: {selector: role == 'web'}
    destination: {ports: [5432]}
`

// check is one connection that is tried before and after the policy.
type check struct {
	from, to      *workload
	port          uint16
	ipv6          bool
	mode          string
	before, after bool // whether it should succeed
	was, is       bool
}

// show does it all and returns how many expectations failed. With keep it calls
// kept before it cleans up.
func show(bin string, out io.Writer, keep bool, kept ...func(failures int)) (failures int) {
	l := &lab{out: out, bin: bin}
	defer l.close()
	defer func() {
		if s, ok := recover().(stopped); ok {
			fmt.Fprintf(out, "\nFAILED: %s\n", s.why)
			failures = max(1, len(l.failures))
		}
	}()
	begin := time.Now()
	l.section("Three hosts: host1 and host2 in 10.10.1.0/24, host3 in 10.10.2.0/24")
	l.build()
	l.startNodes()
	for _, h := range l.hosts {
		l.Logf("  %s  %s  %s", h.name, h.IPv4, h.IPv6)
	}
	l.Logf("  calico-node runs in each; etcd runs inside host1's, at %s", l.etcd())
	l.section("$ calicoctl apply -f pools.yaml")
	l.Logf("%s", strings.TrimSpace(l.calicoctl(pools(), "apply", "-f", "-")))

	checks, local := l.attachAll()
	l.section("$ calicoctl get wep -o wide")
	l.Logf("%s", strings.TrimSpace(l.calicoctl("", "get", "workloadendpoint", "-o", "wide")))

	l.try(checks, false)
	l.section("$ calicoctl apply -f databases.yaml     (role db takes only role web, only on 5432)")
	l.Logf("%s", strings.TrimSpace(l.calicoctl(policy, "apply", "-f", "-")))
	l.enforced("globalnetworkpolicy", "databases")
	l.try(checks, true)
	l.section("Who reaches whom")
	l.table(checks)
	l.section("On the wire, as the fabric sees it")
	l.wire()
	for _, w := range l.wires {
		w.Stop() // before there is traffic in earnest
	}
	l.section("$ calicoctl node status     (host1)")
	l.status()
	l.section("One iperf3 stream each")
	l.throughput(local, checks)
	l.section(fmt.Sprintf("Summary: %d connections tried before and after the policy, %.0f s", len(checks), time.Since(begin).Seconds()))
	if len(l.failures) == 0 {
		l.Logf("  everything was as expected")
	}
	for _, f := range l.failures {
		l.Logf("  FAILED: %s", f)
	}
	if keep {
		l.lookAround()
		kept[0](len(l.failures))
	}
	return len(l.failures)
}

func (l *lab) section(title string) { l.Logf("\n\033[1m%s\033[0m", title) }

// attachAll adds a client, a web server and a database to every network, one on
// each host, and returns the connections to try. local is a second workload beside
// the client of the last network.
func (l *lab) attachAll() (checks []check, local [2]*workload) {
	l.section("Workloads, added by the CNI plugin: role client on host1, web on host2, db on host3")
	members := make(map[string]map[string]*workload)
	for _, n := range networks {
		w := make(map[string]*workload)
		for i, role := range []string{"client", "web", "db"} {
			w[role] = l.attach(l.hosts[i], n, role+"-"+n.name)
			l.serve(w[role])
		}
		members[n.name] = w
		l.Logf("  %-6s %-22s client %s  web %s  db %s", n.name, n.pool,
			w["client"].address(false), w["web"].address(false), w["db"].address(false))
		for _, ipv6 := range []bool{false, true} {
			if ipv6 && n.ipv6 == "" {
				continue
			}
			near, far := strings.ToUpper(n.name), strings.ToUpper(n.name)
			if n.name == "cross" {
				near, far = "plain", "IPIP"
			}
			checks = append(checks,
				check{from: w["client"], to: w["web"], port: 80, ipv6: ipv6, mode: near, before: true, after: true},
				check{from: w["web"], to: w["db"], port: 5432, ipv6: ipv6, mode: far, before: true, after: true},
				check{from: w["web"], to: w["db"], port: 80, ipv6: ipv6, mode: far, before: true, after: false},
				check{from: w["client"], to: w["db"], port: 5432, ipv6: ipv6, mode: far, before: true, after: false},
			)
		}
	}
	// Networks keep to themselves: each has a profile of its own.
	checks = append(checks, check{from: members["ipip"]["client"], to: members["vxlan"]["web"], port: 80, mode: "VXLAN"})
	beside := l.attach(l.hosts[0], networks[2], "web-beside")
	l.serve(beside)
	local = [2]*workload{members["cross"]["client"], beside}
	checks = append(checks, check{from: local[0], to: local[1], port: 80, mode: "local", before: true, after: true})
	return checks, local
}

// serve accepts connections on the demo's ports.
func (l *lab) serve(w *workload) {
	for _, port := range []string{"80", "5432"} {
		listener, err := w.Listen("tcp", net.JoinHostPort("", port))
		l.must(err, w.name)
		l.Cleanup(func() { listener.Close() })
		go func() {
			for {
				c, err := listener.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
	}
}

// try makes every connection once. What must not connect is given as long as what
// must: a dropped packet is silence.
func (l *lab) try(checks []check, after bool) {
	done := make(chan bool)
	for i := range checks {
		go func() {
			c := &checks[i]
			ok := connects(c.from, netip.AddrPortFrom(c.to.address(c.ipv6), c.port))
			if after {
				c.is = ok
			} else {
				c.was = ok
			}
			done <- true
		}()
	}
	for range checks {
		<-done
	}
}

func connects(from *workload, to netip.AddrPort) bool {
	var conn net.Conn
	err := from.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp", to.String(), 1500*time.Millisecond)
		return err
	})
	if err == nil {
		conn.Close()
	}
	return err == nil
}

func (l *lab) table(checks []check) {
	word := func(ok bool) string {
		if ok {
			return "yes"
		}
		return "no"
	}
	l.Logf("  %-12s    %-24s %-6s %-8s %s", "FROM", "TO", "WAY", "BEFORE", "AFTER")
	for _, c := range checks {
		to := fmt.Sprintf("%s:%d", c.to.name, c.port)
		if c.ipv6 {
			to += " (IPv6)"
		}
		note := ""
		if !l.expect(c.was == c.before, "%s -> %s before the policy: %s, want %s", c.from.name, to, word(c.was), word(c.before)) ||
			!l.expect(c.is == c.after, "%s -> %s after the policy: %s, want %s", c.from.name, to, word(c.is), word(c.after)) {
			note = "   <- not as expected"
		}
		l.Logf("  %-12s -> %-24s %-6s %-8s %s%s", c.from.name, to, c.mode, word(c.was), word(c.is), note)
	}
}

// wire shows one packet of each way of travelling.
func (l *lab) wire() {
	for _, want := range []struct {
		what string
		at   int // host whose port is looked at
		has  []string
	}{
		{"IPIP", 0, []string{"> 10.10.1.3: IPIP", " > 10.65.", "TCP"}},
		{"VXLAN", 0, []string{"> 10.10.1.3: VXLAN 4096", " > 10.66.", "TCP"}},
		{"VXLAN, IPv6", 1, []string{"> fd10:10:2::4: VXLAN 4096", " > fd66:", "TCP"}},
		{"plain, same subnet", 0, []string{"IP 10.67.", " > 10.67.", ": TCP"}},
		{"IPIP, other subnet", 1, []string{"> 10.10.2.4: IPIP", " > 10.67.", "TCP"}},
	} {
		line := ""
		for _, got := range l.wires[want.at].Lines() {
			matches := true
			for _, part := range want.has {
				matches = matches && strings.Contains(got, part)
			}
			if matches && (want.what != "plain, same subnet" || strings.HasPrefix(got, "IP 10.67.")) {
				line = got
				break
			}
		}
		if l.expect(line != "", "no packet of the kind %q on the wire of host%d", want.what, want.at+1) {
			l.Logf("  %-19s %s", want.what, line)
		}
	}
}

// status shows the BGP sessions, which take a moment to come up.
func (l *lab) status() {
	text := ""
	for range 300 {
		if text = l.calicoctl("", "node", "status"); strings.Count(text, "Established") >= 4 {
			break
		}
		pause()
	}
	l.expect(strings.Count(text, "Established") >= 4, "the BGP sessions of host1 are not all established")
	l.Logf("%s", strings.TrimSpace(text))
}

func (l *lab) throughput(local [2]*workload, checks []check) {
	streams := []struct {
		name     string
		from, to *workload
	}{{"local", local[0], local[1]}}
	for _, c := range checks {
		if c.port == 80 && !c.ipv6 && c.after && c.mode != "local" {
			streams = append(streams, struct {
				name     string
				from, to *workload
			}{c.mode, c.from, c.to})
		}
	}
	for _, s := range streams {
		server := s.to.Start(quiet{l}, "iperf3", "-s", "-1", "-p", "8001")
		var gbits float64
		testbed.Eventually(func() bool {
			text, err := s.from.Run("iperf3", "-J", "-t", "2", "-p", "8001", "-c", s.to.address(false).String())
			var result struct {
				End struct {
					Received struct {
						BitsPerSecond float64 `json:"bits_per_second"`
					} `json:"sum_received"`
				}
			}
			if err == nil {
				err = json.Unmarshal([]byte(text), &result)
			}
			gbits = result.End.Received.BitsPerSecond / 1e9
			return err == nil && gbits > 0
		})
		server.Kill()
		if l.expect(gbits > 0, "no iperf3 stream %s", s.name) {
			l.Logf("  %-6s %5.1f Gbit/s", s.name, gbits)
		}
	}
}

func (l *lab) lookAround() {
	h := l.hosts[0]
	l.section("It goes on running. To look around:")
	l.Logf("  export ETCD_ENDPOINTS=%s CALICO_RUN_DIR=%s", l.etcd(), h.run)
	l.Logf("  nsenter --net=%s                          # a shell on host1; host2 and host3 are beside it", h.Path())
	l.Logf("  %s/calicoctl get wep -o wide", l.bin)
	l.Logf("  curl -s http://127.0.0.1:9091/metrics | grep calico_xdp_packets")
	if _, err := exec.LookPath("bpftool"); err == nil {
		l.Logf("  bpftool map dump pinned %s/host1/v1/maps/endpoints", l.pins)
	}
	l.Logf("  tail -f %s/log/calico-node/current", h.run)
	l.Logf("\n  make demo-down     # ends it")
}
