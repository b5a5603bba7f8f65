package macro

import (
	"fmt"
	"net/netip"
	"strings"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"

	"calico-xdp/perf/bed"
	"calico-xdp/tools/testbed"
)

// tunnels are TCP streams between workloads of two hosts.
func tunnels() []Scenario {
	var out []Scenario
	for _, kind := range []string{"plain", "ipip", "vxlan"} {
		out = append(out, Scenario{
			Name:    "stream/" + kind,
			About:   "TCP from a workload to one of another host, one connection; the peer has the kernel's routes and tunnel device",
			Figures: []Figure{{Unit: "Gbit/s"}, {Suffix: "/cpu", Unit: "CPU s/Gbit"}},
			Lanes: func(r *Run, t testbed.T) []lane {
				a, b := oursAcross(t, kind)
				out := []lane{{"calico-xdp", r.streaming(t, a.Namespace, b, 1)}}
				if why := noTunnel(t, kind); why != "" {
					r.miss("stream/%s beside the kernel: %s", kind, why)
					return out
				}
				a, b = kernelAcross(t, kind)
				return append(out, lane{"kernel", r.streaming(t, a.Namespace, b, 1)})
			},
		})
	}
	return out
}

// A tunnel's header has to fit into the hosts' 1500 bytes.
const tunnelMTU = 1450

// far is where one of two hosts and its workload are.
type far struct{ node, address, workload, block string }

var ends = []far{
	{"one", "10.10.1.1", "192.168.0.1", "192.168.0.0/26"},
	{"two", "10.10.1.2", "192.168.1.1", "192.168.1.0/26"},
}

// twoHosts are two hosts with a wire between them.
func twoHosts(t testbed.T, hint string) []*testbed.Host {
	t.Helper()
	var out []*testbed.Host
	for _, e := range ends {
		h := &testbed.Host{Namespace: testbed.NewNamespace(t, hint+e.node), IPv4: netip.MustParsePrefix(e.address + "/24")}
		h.Sysctl(t, "net.ipv4.ip_forward", "1")
		h.Sysctl(t, "net.ipv4.conf.all.rp_filter", "0")
		h.Sysctl(t, "net.ipv4.conf.default.rp_filter", "0")
		out = append(out, h)
	}
	testbed.Veth(t, out[0].Namespace, "eth0", out[1].Namespace, "eth0")
	for i, h := range out {
		h.AddAddress(t, "eth0", ends[i].address+"/24")
		// Proxy ARP answers where there is a way to whom is asked for.
		h.AddRoute(t, "0.0.0.0/0", ends[1-i].address, "eth0")
	}
	return out
}

func oursAcross(t testbed.T, kind string) (a, b *testbed.Workload) {
	t.Helper()
	modes := map[string]struct {
		ipip  v3.IPIPMode
		vxlan v3.VXLANMode
	}{"plain": {v3.IPIPModeNever, v3.VXLANModeNever}, "ipip": {v3.IPIPModeAlways, v3.VXLANModeNever}, "vxlan": {v3.IPIPModeNever, v3.VXLANModeAlways}}[kind]
	var made []*testbed.Workload
	for i, h := range twoHosts(t, "ours") {
		n := bed.New(t, h, ends[i].node, bed.Options{})
		n.Apply(bed.Open(), bed.Pool("pool", "192.168.0.0/16", modes.ipip, modes.vxlan))
		for _, e := range ends {
			n.Apply(bed.NodeAt(e.node, e.address+"/24", ""), bed.Block(e.block, e.node))
		}
		w := n.Workload(t, "w", nil, netip.MustParseAddr(ends[i].workload))
		w.SetMTU(t, "eth0", tunnelMTU)
		if err := n.Sync(); err != nil {
			t.Fatalf("resources: %v", err)
		}
		made = append(made, w)
	}
	return made[0], made[1]
}

func kernelAcross(t testbed.T, kind string) (a, b *testbed.Workload) {
	t.Helper()
	var made []*testbed.Workload
	hosts := twoHosts(t, "kernel")
	for i, h := range hosts {
		here, there := ends[i], ends[1-i]
		w := h.AddWorkload(t, "cali1", netip.MustParseAddr(here.workload))
		w.SetMTU(t, "eth0", tunnelMTU)
		h.Sysctl(t, "net.ipv4.conf.cali1.proxy_arp", "1")
		h.Sysctl(t, "net.ipv4.neigh.cali1.proxy_delay", "0")
		h.AddRoute(t, here.workload+"/32", "", "cali1")
		switch kind {
		case "plain":
			h.AddRoute(t, there.block, there.address, "eth0")
		default:
			for _, command := range tunnelDevice(kind, here, there) {
				h.MustRun(t, strings.Fields(command)...)
			}
		}
		made = append(made, w)
	}
	return made[0], made[1]
}

// tunnelDevice are the commands that make the kernel's device and lead through it.
func tunnelDevice(kind string, here, there far) []string {
	if kind == "ipip" {
		return []string{
			"ip link add tunnel type ipip local " + here.address + " remote " + there.address,
			"ip link set tunnel up", "ip route add " + there.block + " dev tunnel",
		}
	}
	mac := func(f far) string { return "66:00:00:00:00:0" + f.address[len(f.address)-1:] }
	return []string{
		"ip link add tunnel address " + mac(here) + " type vxlan id 4096 dstport 4789 nolearning local " + here.address,
		"ip link set tunnel up",
		"bridge fdb append " + mac(there) + " dev tunnel dst " + there.address,
		"ip neigh add 169.254.2.2 lladdr " + mac(there) + " dev tunnel nud permanent",
		"ip route add " + there.block + " via 169.254.2.2 dev tunnel onlink",
	}
}

// noTunnel says why the kernel has no such device, if so.
func noTunnel(t testbed.T, kind string) string {
	if kind == "plain" {
		return ""
	}
	n := testbed.NewNamespace(t, "probe")
	if out, err := n.Run(strings.Fields(tunnelDevice(kind, ends[0], ends[1])[0])...); err != nil {
		return fmt.Sprintf("this kernel has no %s device: %s", kind, strings.TrimSpace(out))
	}
	return ""
}
