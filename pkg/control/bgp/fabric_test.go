package bgp

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control/desired"
)

// fabric is one link that hosts are on: this process's namespace, with an address
// for each of our nodes, and hosts with other BGP speakers. On fabric f host n has
// 10.210.f.n/24 and fd00:210:f::n/64; the blocks of node n are 10.65.n.0/26 and
// fd00:65:0:n::/122. Tests with fabrics run at the same time: they mostly wait.
type fabric struct {
	t         *testing.T
	number    int
	bridge    string
	resources *api.Store
}

var fabrics atomic.Int64

func newFabric(t *testing.T) *fabric {
	t.Helper()
	t.Parallel()
	number := int(fabrics.Add(1))
	f := &fabric{t: t, number: number, bridge: fmt.Sprintf("fabric%d", number), resources: api.NewStore()}
	run(t, "ip link add "+f.bridge+" type bridge")
	t.Cleanup(func() { run(t, "ip link del "+f.bridge) })
	run(t, "ip link set "+f.bridge+" up")
	return f
}

func (f *fabric) address4(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 210, byte(f.number), byte(n)})
}

func (f *fabric) address6(n int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd00:210:%d::%d", f.number, n))
}

func block4(n int) string { return fmt.Sprintf("10.65.%d.0/26", n) }
func block6(n int) string { return fmt.Sprintf("fd00:65:0:%d::/122", n) }

// text is what a test says of 10.210.f and fd00:210:f, for this fabric.
func (f *fabric) text(s string) string {
	return strings.NewReplacer("10.210.f.", fmt.Sprintf("10.210.%d.", f.number), "fd00:210:f:", fmt.Sprintf("fd00:210:%d:", f.number)).Replace(s)
}

func (f *fabric) lines(l ...string) string { return f.text(lines(l...)) }

// add takes up resources, as YAML documents.
func (f *fabric) add(documents string) {
	f.t.Helper()
	for doc := range strings.SplitSeq(documents, "---\n") {
		if strings.TrimSpace(doc) == "" {
			continue
		}
		r, err := api.Decode([]byte(doc))
		if err == nil {
			api.Default(r)
			err = api.Validate(r)
		}
		if err != nil {
			f.t.Fatalf("%v in\n%s", err, doc)
		}
		f.resources.Apply(api.Change{Key: api.KeyOf(r), Resource: r})
	}
}

func (f *fabric) delete(kind, name string) {
	f.resources.Apply(api.Change{Key: api.Key{Kind: kind, Name: name}})
}

// addNode adds the Node resource of host n and its blocks.
func (f *fabric) addNode(name string, n int, bgp string) {
	f.t.Helper()
	f.add(fmt.Sprintf(`apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: %s, labels: {%s: "true"}}
spec: {bgp: {ipv4Address: %s/24, ipv6Address: %s/64%s}}
`, name, name, f.address4(n), f.address6(n), bgp))
	affinity := "host:" + name
	for _, cidr := range []string{block4(n), block6(n)} {
		b := &api.IPAMBlock{CIDR: netip.MustParsePrefix(cidr), Affinity: &affinity, Allocations: make([]*int, 64)}
		b.Kind, b.Name = api.KindIPAMBlock, api.BlockName(b.CIDR)
		f.resources.Apply(api.Change{Key: api.KeyOf(b), Resource: b})
	}
}

const pools = `apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: v4}
spec: {cidr: 10.65.0.0/16}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: v6}
spec: {cidr: "fd00:65::/48", blockSize: 122}
`

// ours is a node of ours on the fabric: what it should be follows from the resources.
type ours struct {
	*node
	fabric *fabric
	name   string
	input  desired.Input // all but the resources
}

// start starts a node of ours with host n's addresses.
func (f *fabric) start(name string, n int) *ours {
	f.t.Helper()
	for _, a := range []string{f.address4(n).String() + "/24", f.address6(n).String() + "/64 nodad"} {
		if out, err := exec.Command("ip", strings.Fields("addr add "+a+" dev "+f.bridge)...).CombinedOutput(); err != nil && !strings.Contains(string(out), "File exists") && !strings.Contains(string(out), "already assigned") {
			f.t.Fatalf("%v: %s", err, out)
		}
	}
	o := &ours{fabric: f, name: name, input: desired.Input{Node: name}}
	s := New(Options{ListenAddresses: []netip.Addr{f.address4(n), f.address6(n)}}, testLogger(f.t, name))
	s.transitDeferral = 2
	o.node = &node{Speaker: s, t: f.t}
	f.t.Cleanup(func() {
		if err := s.Close(); err != nil {
			f.t.Error(err)
		}
	})
	return o
}

// round is one round of the control loop.
func (o *ours) round() {
	o.t.Helper()
	in := o.input
	in.Resources = o.fabric.resources
	o.want = *desired.Compute(in)
	o.apply()
}

// until runs rounds until got gives want.
func until(t *testing.T, what, want string, nodes []*ours, got func() string) {
	t.Helper()
	eventually(t, what, want, func() string {
		for _, n := range nodes {
			select {
			case <-n.Changed():
				n.round()
			default:
			}
		}
		return got()
	})
}

// host is another host of the fabric, a network namespace.
type host struct {
	*fabric
	t     *testing.T
	pid   int // of the process that holds the namespace
	n     int
	dir   string
	speak *exec.Cmd
}

func (f *fabric) host(n int) *host {
	f.t.Helper()
	holder := start(f.t, exec.Command("sleep", "infinity"), syscall.CLONE_NEWNET)
	h := &host{fabric: f, t: f.t, pid: holder.Process.Pid, n: n}
	link := fmt.Sprintf("host%d-%d", f.number, n)
	run(f.t, "ip link add "+link+" type veth peer name eth0 netns "+strconv.Itoa(h.pid))
	f.t.Cleanup(func() { run(f.t, "ip link del "+link) })
	run(f.t, "ip link set "+link+" master "+f.bridge+" up")
	h.run("ip link set lo up")
	h.run("ip link set eth0 up")
	h.run("ip addr add " + f.address4(n).String() + "/24 dev eth0")
	h.run("ip addr add " + f.address6(n).String() + "/64 nodad dev eth0")
	// Not t.TempDir: FRR's daemons leave root and must get there.
	dir, err := os.MkdirTemp("/tmp", "bgp-host")
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		f.t.Fatal(err)
	}
	h.dir = dir
	return h
}

func (h *host) command(words ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", h.pid)}, words...)...)
}

func (h *host) run(command string) string {
	h.t.Helper()
	out, err := h.command(strings.Fields(command)...).CombinedOutput()
	if err != nil {
		h.t.Fatalf("%s: %v: %s", command, err, out)
	}
	return string(out)
}

func (h *host) write(name, text string) string {
	h.t.Helper()
	path := filepath.Join(h.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
	return path
}

// bird starts BIRD with protocols besides those that put what BGP learns into the kernel.
func (h *host) bird(protocols string) {
	h.t.Helper()
	path := h.write("bird.conf", h.preamble()+protocols)
	h.speak = h.command("bird", "-f", "-c", path, "-s", filepath.Join(h.dir, "bird.ctl"))
	h.speak.Stderr = h.t.Output()
	start(h.t, h.speak, 0)
	eventually(h.t, "BIRD runs", "true", func() string {
		_, err := os.Stat(filepath.Join(h.dir, "bird.ctl"))
		return fmt.Sprint(err == nil)
	})
}

// preamble is what all of BIRD's configurations begin with.
func (h *host) preamble() string {
	return fmt.Sprintf(`
log stderr { error, bug };
router id %s;
protocol device { scan time 1; }
protocol direct { ipv4; ipv6; interface "eth0"; }
protocol kernel { merge paths on; persist; ipv4 { import none; export where source = RTS_BGP; }; }
protocol kernel { merge paths on; persist; ipv6 { import none; export where source = RTS_BGP; }; }
`, h.address4(h.n))
}

func (h *host) birdc(words ...string) string {
	h.t.Helper()
	out, err := exec.Command("birdc", append([]string{"-s", filepath.Join(h.dir, "bird.ctl")}, words...)...).CombinedOutput()
	if err != nil {
		h.t.Fatalf("birdc %s: %v: %s", words, err, out)
	}
	return string(out)
}

// frr starts FRR's zebra and bgpd with bgpd's configuration.
func (h *host) frr(configuration string) {
	h.t.Helper()
	if _, err := os.Stat("/etc/frr/vtysh.conf"); err != nil {
		if err := os.WriteFile("/etc/frr/vtysh.conf", nil, 0o644); err != nil {
			h.t.Fatal(err)
		}
	}
	if out, err := exec.Command("chown", "frr:frr", h.dir).CombinedOutput(); err != nil {
		h.t.Fatalf("%v: %s", err, out)
	}
	for _, daemon := range []struct{ name, conf string }{{"zebra", "hostname zebra\n"}, {"bgpd", configuration}} {
		conf := h.write(daemon.name+".conf", daemon.conf)
		c := h.command("/usr/lib/frr/"+daemon.name, "-A", "127.0.0.1", "-P", "0", "--vty_socket", h.dir,
			"-z", h.dir+"/z.sock", "-i", h.dir+"/"+daemon.name+".pid", "-f", conf)
		c.Stdout, c.Stderr = h.t.Output(), h.t.Output()
		h.speak = start(h.t, c, 0)
		eventually(h.t, daemon.name+" runs", "true", func() string {
			_, err := os.Stat(h.dir + "/" + daemon.name + ".vty")
			return fmt.Sprint(err == nil)
		})
	}
}

func (h *host) vtysh(command string) string {
	h.t.Helper()
	out, err := exec.Command("vtysh", "--vty_socket", h.dir, "-c", command).CombinedOutput()
	if err != nil {
		h.t.Fatalf("vtysh %s: %v: %s", command, err, out)
	}
	return string(out)
}

// learned are the kernel's routes that BGP has made on the host, as text.
func (h *host) learned() string {
	var found []string
	for _, family := range []string{"-4", "-6"} {
		for _, protocol := range []string{"bird", "bgp"} {
			for _, line := range strings.Split(h.run("ip "+family+" route show proto "+protocol), "\n") {
				words := strings.Fields(line)
				if len(words) == 0 {
					continue
				}
				if strings.HasPrefix(line, "\t") {
					found[len(found)-1] += " " + words[2]
					continue
				}
				text := words[0] + " via"
				for i, w := range words {
					if w == "via" {
						text += " " + words[i+1]
					}
				}
				found = append(found, text)
			}
		}
	}
	return lines(found...)
}

// routesTo is the text of learned for the blocks of nodes, each through itself.
func (f *fabric) routesTo(nodes ...int) string {
	var four, six []string
	for _, n := range nodes {
		four = append(four, block4(n)+" via "+f.address4(n).String())
		six = append(six, block6(n)+" via "+f.address6(n).String())
	}
	return lines(append(four, six...)...)
}

// watchRoutes follows the kernel's routes and notes the prefixes of ours that
// are removed.
func (h *host) watchRoutes() func() string {
	h.t.Helper()
	monitor := h.command("ip", "monitor", "route")
	out, err := monitor.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	start(h.t, monitor, 0)
	var mu sync.Mutex
	var removed []string
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if line := lines.Text(); strings.HasPrefix(line, "Deleted") && (strings.Contains(line, "proto bird") || strings.Contains(line, "proto bgp")) {
				mu.Lock()
				removed = append(removed, strings.Fields(line)[1])
				mu.Unlock()
			}
		}
	}()
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return lines(removed...)
	}
}

// never watches that got stays want, until it is told to stop.
func never(t *testing.T, what, want string, got func() string) (stop func()) {
	t.Helper()
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if now := got(); now != want {
				t.Errorf("%s is at %s\n%s", what, time.Now().Format("15:04:05.000"), now)
				return
			}
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return func() { close(done); <-ended }
}
