package desired

import (
	"bytes"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/policy"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write what was computed into testdata")

// TestStates goes through the state lists of testdata. Each file is a list of
// states; a state says what changes against the one before it, and after "=>"
// the whole of what this node should then be, as text:
//
//	== title
//	node a | backend vxlan | router-id hash | env vxlanport=8472 | file vxlanport=8472
//	link 2 eth0 device 1500 02:00:00:00:00:01 up 10.0.1.1/24   (or: unlink eth0)
//	link 3 wg0 wireguard 1420 00:00:00:00:00:00 up no-ethernet
//	link 4 eth1 device 1500 02:00:00:00:00:01 up port          (of a bridge)
//	etcd http://10.0.0.9:2379                   (or: etcd-listen)
//	block 10.65.0.0/26 host:a 10.65.0.5=b       (5 is in use on node b)
//	learn 10.9.0.0/24 10.0.1.9 10.0.1.8         (or: learning true)
//	secret bgp/password=tea | cluster-ips 10.96.0.0/12 | service-cidrs 10.96.0.0/12,fd96::/112
//	service ns/name local balancer here4 cluster=10.96.0.1 external=10.8.0.1 lb=10.7.0.1
//	delete Node b
//	---
//	a resource as YAML, and more after further --- lines
//	=>
func TestStates(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no state lists", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			in := Input{Node: "a", Resources: api.NewStore()}
			before, follower := in, newFollower()
			var out bytes.Buffer
			head, states, _ := strings.Cut(string(data), "== ")
			out.WriteString(head)
			for state := range strings.SplitSeq(states, "\n== ") {
				title, rest, _ := strings.Cut("== "+state, "\n")
				rest = "\n" + rest // so that "=>" can follow the title
				changes, want, _ := strings.Cut(rest, "\n=>\n")
				if err := change(&in, changes); err != nil {
					t.Fatalf("%s: %v", title, err)
				}
				want = strings.TrimSpace(want)
				got := stateText(Compute(in))
				if diff := cmp.Diff(want, got); diff != "" && !*update {
					t.Errorf("%s:\n%s", title, diff)
				}
				if again := stateText(Compute(shuffled(in))); again != got {
					t.Errorf("%s: depends on the order of its input:\n%s", title, cmp.Diff(got, again))
				}
				if in.Node != before.Node || !reflect.DeepEqual(in.Config, before.Config) {
					follower = newFollower()
				}
				follower.follow(t, in, changesBetween(before.Resources, in.Resources))
				before = in
				in.Links, in.Learned = slices.Clone(in.Links), slices.Clone(in.Learned)
				before.Resources = in.Resources.Clone()
				before.Config.Felix, before.Config.FelixFile = maps.Clone(in.Config.Felix), maps.Clone(in.Config.FelixFile)
				fmt.Fprintf(&out, "%s%s\n=>\n%s\n\n", title, changes, got)
			}
			if *update {
				if err := os.WriteFile(file, append(bytes.TrimRight(out.Bytes(), "\n"), '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// shuffled is the same input, come about in another order.
func shuffled(in Input) Input {
	resources := api.NewStore()
	var all []api.Resource
	for _, k := range api.Kinds() {
		all = append(all, slices.Collect(maps.Values(api.All[api.Resource](in.Resources, k.Name)))...)
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, r := range all {
		resources.Apply(api.Change{Key: api.KeyOf(r), Resource: r})
	}
	in.Resources = resources
	in.Links = slices.Clone(in.Links)
	slices.Reverse(in.Links)
	in.Learned = slices.Clone(in.Learned)
	slices.Reverse(in.Learned)
	return in
}

func change(in *Input, text string) error {
	lines, documents, _ := strings.Cut("\n"+text, "\n---\n")
	for line := range strings.Lines(lines) {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		if err := directive(in, f); err != nil {
			return fmt.Errorf("%q: %w", strings.TrimSpace(line), err)
		}
	}
	for doc := range strings.SplitSeq(documents, "\n---\n") {
		if strings.TrimSpace(doc) == "" {
			continue
		}
		r, err := api.Decode([]byte(doc))
		if err != nil {
			return fmt.Errorf("%w in\n%s", err, doc)
		}
		api.Default(r)
		in.Resources.Apply(api.Change{Key: api.KeyOf(r), Resource: r})
	}
	return nil
}

func directive(in *Input, f []string) error {
	switch f[0] {
	case "node":
		in.Node = f[1]
	case "backend":
		in.Config.Backend = f[1]
	case "router-id":
		in.Config.RouterID = f[1]
	case "env", "file":
		values := &in.Config.Felix
		if f[0] == "file" {
			values = &in.Config.FelixFile
		}
		if *values == nil {
			*values = make(map[string]string)
		}
		name, value, _ := strings.Cut(f[1], "=")
		(*values)[name] = value
	case "link":
		index, err := strconv.Atoi(f[1])
		if err != nil {
			return err
		}
		mtu, err := strconv.Atoi(f[4])
		if err != nil {
			return err
		}
		mac, err := parseMAC(f[5])
		if err != nil {
			return err
		}
		l := Link{Index: index, Name: f[2], Kind: f[3], MTU: mtu, MAC: mac, Up: f[6] == "up"}
		for _, a := range f[7:] {
			if a == "port" || a == "no-ethernet" {
				l.Port, l.NoEthernet = a == "port", a == "no-ethernet"
				continue
			}
			l.Addresses = append(l.Addresses, netip.MustParsePrefix(a))
		}
		in.Links = slices.DeleteFunc(in.Links, func(o Link) bool { return o.Name == l.Name })
		in.Links = append(in.Links, l)
	case "unlink":
		in.Links = slices.DeleteFunc(in.Links, func(o Link) bool { return o.Name == f[1] })
	case "etcd":
		in.Config.Datastore = f[1:]
	case "etcd-listen":
		in.Config.DatastoreListen = f[1:]
	case "learn":
		r := LearnedRoute{Prefix: netip.MustParsePrefix(f[1])}
		for _, hop := range f[2:] {
			r.NextHops = append(r.NextHops, netip.MustParseAddr(hop))
		}
		in.Learned = append(in.Learned, r)
	case "pending":
		in.Pending = f[1] == "true"
	case "learning":
		in.Learning = f[1] == "true"
	case "secret":
		name, value, _ := strings.Cut(f[1], "=")
		secret, key, _ := strings.Cut(name, "/")
		if in.Secrets == nil {
			in.Secrets = make(map[SecretKey]string)
		}
		in.Secrets[SecretKey{secret, key}] = value
	case "cluster-ips":
		in.Config.AdvertiseClusterIPs = f[1]
	case "service-cidrs":
		in.Config.ServiceCIDRs = f[1]
	case "service":
		return service(in, f[1:])
	case "delete":
		namespace, name, ok := strings.Cut(f[2], "/")
		if !ok {
			namespace, name = "", f[2]
		}
		in.Resources.Apply(api.Change{Key: api.Key{Kind: f[1], Namespace: namespace, Name: name}})
	case "block":
		b := &api.IPAMBlock{CIDR: netip.MustParsePrefix(f[1])}
		b.Kind = api.KindIPAMBlock
		b.Name = api.BlockName(b.CIDR)
		if f[2] != "none" {
			b.Affinity = &f[2]
		}
		b.Allocations = make([]*int, 1<<(b.CIDR.Addr().BitLen()-b.CIDR.Bits()))
		for _, used := range f[3:] {
			text, node, _ := strings.Cut(used, "=")
			n := 0
			for a := b.CIDR.Addr(); a != netip.MustParseAddr(text); a = a.Next() {
				n++
			}
			index := len(b.Attributes)
			b.Allocations[n] = &index
			b.Attributes = append(b.Attributes, api.AllocationAttribute{Secondary: map[string]string{"node": node}})
		}
		in.Resources.Apply(api.Change{Key: api.KeyOf(b), Resource: b})
	default:
		return fmt.Errorf("unknown directive")
	}
	return nil
}

func service(in *Input, f []string) error {
	s := Service{Name: f[0]}
	for _, word := range f[1:] {
		name, value, _ := strings.Cut(word, "=")
		switch name {
		case "local":
			s.Local = true
		case "balancer":
			s.LoadBalancer = true
		case "here4":
			s.Here4 = true
		case "ready4":
			s.Ready4 = true
		case "here6":
			s.Here6 = true
		case "cluster":
			s.ClusterIPs = append(s.ClusterIPs, netip.MustParseAddr(value))
		case "external":
			s.ExternalIPs = append(s.ExternalIPs, netip.MustParseAddr(value))
		case "lb":
			s.BalancerIPs = append(s.BalancerIPs, netip.MustParseAddr(value))
		default:
			return fmt.Errorf("%q of a service", word)
		}
	}
	in.Services = slices.DeleteFunc(in.Services, func(o Service) bool { return o.Name == s.Name })
	in.Services = append(in.Services, s)
	return nil
}

// bgpText adds the speaker's part to the lines.
func bgpText(b BGP, line func(string, ...any)) {
	text := fmt.Sprintf("bgp as %d id %v port %d next-hop %v %v", b.AS, b.RouterID, b.ListenPort, b.NextHop4, b.NextHop6)
	if b.ListenOn != nil {
		text += fmt.Sprintf(" on %v", b.ListenOn)
	}
	if b.ClusterID != "" {
		text += " reflector " + b.ClusterID
	}
	line("%s", text)
	for _, n := range slices.Sorted(maps.Keys(b.Peers)) {
		p := b.Peers[n]
		text := fmt.Sprintf("bgp peer %s: %v port %d as %d from %v, %s", n, p.Address, p.Port, p.AS, p.Local, p.Kind)
		for _, also := range []struct {
			name  string
			value any
			is    bool
		}{
			{"password", p.Password, p.Password != ""}, {"local-as", p.LocalAS, p.LocalAS != 0}, {"passive", "", p.Passive},
			{"client", "", p.Client}, {"next-hop", []string{"auto", "self", "keep"}[p.NextHop], p.NextHop != NextHopAuto},
			{"restart", p.RestartTime, p.RestartTime != 0}, {"hops", p.Hops, p.Hops != 0},
			{"allow-as", p.AllowLocalAS, p.AllowLocalAS != 0}, {"filters", p.Filters, p.Filters != nil},
		} {
			if also.is {
				text += strings.TrimRight(fmt.Sprintf(" %s %v", also.name, also.value), " ")
			}
		}
		line("%s", text)
	}
	for _, n := range slices.Sorted(maps.Keys(b.Filters)) {
		f := b.Filters[n]
		for _, l := range []struct {
			name  string
			rules []BGPRule
		}{{"import v4", f.Import4}, {"export v4", f.Export4}, {"import v6", f.Import6}, {"export v6", f.Export6}} {
			for _, r := range l.rules {
				text := "reject"
				if r.Accept {
					text = "accept"
				}
				if r.Prefix.IsValid() {
					text += fmt.Sprintf(" %s %d-%d", r.Prefix, r.Min, r.Max)
				}
				if r.Outside {
					text += " outside"
				}
				if r.Learned {
					text += " learned"
				}
				if i := r.Interface; i != nil {
					text += fmt.Sprintf(" to %v or %v", i.Nets, i.Own)
				}
				line("bgp filter %s %s: %s", n, l.name, text)
			}
		}
	}
	for _, p := range slices.SortedFunc(maps.Keys(b.Advertise), netip.Prefix.Compare) {
		line("bgp advertise %v", p)
	}
	if b.Offered != nil {
		line("bgp offers to filters %v", b.Offered)
	}
	if b.Hidden != nil {
		line("bgp hides %v", b.Hidden)
	}
	if b.Passed != nil {
		line("bgp passes on %v", b.Passed)
	}
	if b.Services || b.Secrets != nil {
		line("bgp asks for services %v and secrets %v, pending %v", b.Services, b.Secrets, b.Pending)
	}
	for _, c := range b.Communities {
		line("bgp communities of %v: %v %v", c.Prefix, c.Standard, c.Large)
	}
}

// stateText is the state as lines that a person can read.
func stateText(s *State) string {
	var out []string
	line := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	d := s.Dataplane
	line("node %v %v vxlan %v %v port %d vni %d", d.Node.IPv4, d.Node.IPv6, d.Node.VXLANMAC, d.Node.VXLANMACv6, d.VXLANPort, d.VXLANVNI)
	line("to-host %s, workload mtu %d, forward %v %v", []string{"drop", "return", "accept"}[d.ToHost], s.WorkloadMTU, s.Host.ForwardIPv4, s.Host.ForwardIPv6)
	if s.LogLevel != slog.LevelInfo {
		line("log level %s", s.LogLevel)
	}
	if d.WorkloadIPIP || d.WorkloadVXLAN {
		line("workloads may tunnel: IPIP %v, VXLAN %v", d.WorkloadIPIP, d.WorkloadVXLAN)
	}
	if want := defaultSettings().servers; s.Servers != want {
		line("metrics %v health %v", s.Servers.Metrics, s.Servers.Health)
		if s.Servers.Debug.Enabled {
			line("debug %v", s.Servers.Debug)
		}
	}
	if s.NAT.IPv4 || s.NAT.IPv6 || len(d.NATNets) > 0 {
		line("nat %v", s.NAT)
		for _, p := range slices.SortedFunc(maps.Keys(d.NATNets), netip.Prefix.Compare) {
			service := ""
			if d.NATNets[p].Service {
				service = " service"
			}
			line("nat net %v source %v inside %v%s", p, d.NATNets[p].Source, d.NATNets[p].Inside, service)
		}
	}
	if s.NAT.Mark != d.NATMark || s.NAT.Mark == 0 {
		line("nat marks %#x %#x", s.NAT.Mark, d.NATMark)
	}
	if d.RPF != RPFLoose || d.NoXDP {
		line("rpf %d, no XDP %v", d.RPF, d.NoXDP)
	}
	if len(s.Host.Addresses) > 0 {
		line("own %v", s.Host.Addresses)
	}
	for _, i := range slices.Sorted(maps.Keys(d.Uplinks)) {
		line("uplink %s", d.Uplinks[i].Name)
	}
	for _, i := range slices.Sorted(maps.Keys(d.HostEndpoints)) {
		line("host endpoint %s on %d", d.HostEndpoints[i].Name, i)
	}
	if text := failsafeText(d.Failsafe); text != failsafeText(failsafePorts(defaultSettings(), Config{}, BGP{})) {
		line("%s", text)
	}
	for _, k := range slices.SortedFunc(maps.Keys(s.Local), compareKeys) {
		l := s.Local[k]
		text := fmt.Sprintf("endpoint %s on %s %v", k.Name, l.Interface, l.Addresses)
		if e, ok := d.Endpoints[k]; ok {
			text += fmt.Sprintf(" index %d veth %v mac %v host %v", e.Ifindex, e.Veth, e.MAC, e.HostMAC)
		}
		if e := d.Endpoints[k]; len(e.Sources) > 0 {
			text += fmt.Sprintf(" and from %v", e.Sources)
		}
		if l.Missing {
			text += " missing"
		}
		if l.Closed {
			text += " closed"
		}
		if l.Problem != "" {
			text += ": " + l.Problem
		}
		line("%s", text)
	}
	for _, k := range slices.SortedFunc(maps.Keys(d.Endpoints), compareKeys) {
		if e := d.Endpoints[k]; len(e.Addresses) == 0 {
			line("closed %s index %d", e.Interface, e.Ifindex)
		}
	}
	byPrefix := func(a, b netip.Prefix) int { return a.Compare(b) }
	for _, p := range slices.SortedFunc(maps.Keys(d.Routes), byPrefix) {
		r := d.Routes[p]
		text := fmt.Sprintf("route %v %s", p, []string{"", "host", "workload", "block", "peer-host"}[r.Kind])
		if r.Via.IsValid() {
			text += fmt.Sprintf(" via %v %s", r.Via, []string{"plain", "ipip", "vxlan"}[r.Encap])
		}
		line("%s", text)
	}
	for _, p := range slices.SortedFunc(maps.Keys(s.Host.Routes), byPrefix) {
		switch r := s.Host.Routes[p]; r.Kind {
		case KernelLink:
			text := fmt.Sprintf("kernel %v dev %s", p, r.Interface)
			if r.Source.IsValid() {
				text += fmt.Sprintf(" from %v", r.Source)
			}
			line("%s", text)
		case KernelVia:
			text := fmt.Sprintf("kernel %v via %v mtu %d", p, r.Via, r.MTU)
			for _, also := range r.Also {
				text += fmt.Sprintf(" and %v", also)
			}
			if r.Learned {
				text += " learned"
			}
			if r.Source.IsValid() {
				text += fmt.Sprintf(" from %v", r.Source)
			}
			line("%s", text)
		case KernelBlackhole:
			line("kernel %v blackhole", p)
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(d.Peers), netip.Addr.Compare) {
		line("peer %v %s %v", a, d.Peers[a].Name, d.Peers[a].VXLANMAC)
	}
	if s.Host.KeepLearned {
		line("keep what was learned")
	}
	if s.BGP.Enabled {
		bgpText(s.BGP, line)
	}
	for _, p := range s.Problems {
		line("problem %s: %v", p.Object, p.Err)
	}
	return strings.Join(out, "\n")
}

func failsafeText(ports map[FailsafePort]bool) string {
	text := map[bool][]string{}
	for p := range ports {
		text[p.Egress] = append(text[p.Egress], p.String())
	}
	slices.Sort(text[false])
	slices.Sort(text[true])
	return fmt.Sprintf("failsafe in %v out %v", text[false], text[true])
}

func TestPolicyProblemsAreTheStates(t *testing.T) {
	in := Input{Node: "a", Policy: &policy.Tables{Problems: []policy.Problem{
		{Object: api.Key{Kind: api.KindGlobalNetworkPolicy, Name: "x"}, Err: fmt.Errorf("65 rules")},
	}}}
	s := Compute(in)
	if len(s.Problems) != 1 || s.Problems[0].Object.Name != "x" || s.Dataplane.Policy != in.Policy {
		t.Errorf("got %v", s.Problems)
	}
}

func TestVXLANMAC(t *testing.T) {
	// sha1("node-a") and sha1("node-a-v6"), as `sha1sum` says.
	if got := VXLANMAC("node-a", false).String(); got != "66:07:02:c1:cc:60" {
		t.Error(got)
	}
	if got := VXLANMAC("node-a", true).String(); got != "66:d4:d5:51:3d:42" {
		t.Error(got)
	}
}
