// Package whole tests the product as it runs: calico-node processes, each in a
// namespace that stands for a host, a real etcd, the built CNI plugin and
// calicoctl, and packets between workloads.
package whole

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"
	"calico-xdp/pkg/nodeapi"
	"calico-xdp/tools/testbed"
)

// bin has calico-node, calicoctl and, by the names that runtimes know, the CNI
// plugins. TestMain fills it.
var bin string

func TestMain(m *testing.M) {
	code, err := build(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func build(run func() int) (int, error) {
	var err error
	if bin, err = os.MkdirTemp("", "calico-xdp-whole-"); err != nil {
		return 0, err
	}
	defer os.RemoveAll(bin)
	// As `make build` does, so that they share a cache.
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", bin+"/",
		"calico-xdp/cmd/calico-node", "calico-xdp/cmd/calicoctl", "calico-xdp/cmd/calico-cni")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	for _, name := range []string{"calico", "calico-ipam"} {
		if err := os.Symlink("calico-cni", filepath.Join(bin, name)); err != nil {
			return 0, err
		}
	}
	return run(), nil
}

// watchSources looks at what the binaries are made of: `go test` takes an old
// result for the new one until something changes that a test has looked at.
func watchSources(t *testing.T) {
	t.Helper()
	for _, dir := range []string{"../../../cmd", "../../../pkg"} {
		if err := filepath.WalkDir(dir, func(_ string, _ fs.DirEntry, err error) error { return err }); err != nil {
			t.Fatal(err)
		}
	}
}

// cluster is hosts with daemons, and their datastore.
type cluster struct {
	*testing.T
	lab   *testbed.Lab
	etcd  *testbed.Etcd     // nil: inside the first daemon
	store *datastore.Client // nil: same
	nodes []*node
}

// options say what a cluster is like.
type options struct {
	subnets  []int // of each host; its length is the number of hosts
	embedded bool  // etcd in the first daemon
	foreign  int   // how many hosts, the last ones, run nothing of ours
	environ  []string
}

// The networks, each with a pool and so a way of its own between hosts. A
// workload's peers in the same network may reach it, by its profile.
const pools = `
{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: ipip}, spec: {cidr: 10.65.0.0/16, ipipMode: Always, blockSize: 29}}
---
{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: vxlan}, spec: {cidr: 10.66.0.0/16, vxlanMode: Always, blockSize: 29}}
---
{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: vxlan6}, spec: {cidr: "fd66::/48", vxlanMode: Always}}
---
{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: plain}, spec: {cidr: 10.67.0.0/16, blockSize: 29}}
---
{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: plain6}, spec: {cidr: "fd67::/48"}}
`

// newCluster makes hosts, starts their daemons and waits until all are ready.
func newCluster(t *testing.T, o options) *cluster {
	t.Helper()
	watchSources(t)
	testbed.CheckNoLeaks(t)
	c := &cluster{T: t}
	if !o.embedded {
		c.etcd = testbed.StartEtcd(t)
		store, err := datastore.Open(t.Context(), datastore.Config{Endpoints: []string{c.etcd.Endpoint()}}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		c.store = store
		t.Cleanup(store.Close)
	}
	c.lab = testbed.NewHosts(t, len(o.subnets), o.subnets...)
	for i, h := range c.lab.Hosts[:len(o.subnets)-o.foreign] {
		c.nodes = append(c.nodes, newNode(c, h, i, o))
	}
	for _, n := range c.nodes {
		n.start()
	}
	for _, n := range c.nodes {
		n.waitReady()
	}
	c.apply(pools)
	return c
}

// node is a host with a calico-node.
type node struct {
	*testbed.Host
	c         *cluster
	name      string
	dir, pins string
	args      []string
	environ   []string
	etcd      string // its URL, inside
	gate      *gate  // between it and etcd; nil: etcd is embedded
	daemon    *testbed.Process
}

func newNode(c *cluster, h *testbed.Host, i int, o options) *node {
	n := &node{
		Host: h, c: c, name: fmt.Sprintf("host%d", i+1), dir: c.TempDir(),
		pins: filepath.Join("/sys/fs/bpf", h.Name),
	}
	n.args = []string{
		"--run-dir", n.dir + "/run", "--pin-dir", n.pins, "--data-dir", n.dir + "/etcd",
		"--nodename-file", n.dir + "/nodename",
	}
	n.environ = append([]string{
		"PATH=" + os.Getenv("PATH"), "NODENAME=" + n.name, "IP=autodetect", "IP6=autodetect", "NO_DEFAULT_POOLS=true",
		"CALICO_DISABLE_FILE_LOGGING=true",
	}, o.environ...)
	n.etcd = "http://127.0.0.1:2379"
	if o.embedded {
		n.etcd = fmt.Sprintf("http://%s:2379", c.lab.Hosts[0].IPv4.Addr())
	} else {
		n.gate = openGate(c, h.Namespace, "127.0.0.1:2379", c.etcd.Address())
	}
	if o.embedded && i == 0 {
		n.args = append(n.args, "--datastore=embedded", "--etcd-listen-client", "http://127.0.0.1:2379,"+n.etcd)
	} else {
		n.environ = append(n.environ, "ETCD_ENDPOINTS="+n.etcd)
	}
	c.Cleanup(func() {
		if n.daemon != nil {
			n.daemon.Kill()
			if c.Failed() {
				c.Logf("%s:\n%s", n.name, n.daemon.Output())
			}
		}
		os.RemoveAll(n.pins)
	})
	return n
}

func (n *node) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(bin, name), args...)
	cmd.Env = n.environ
	return cmd
}

// start starts the daemon.
func (n *node) start() {
	n.c.Helper()
	n.daemon = n.StartCmd(n.c, n.command("calico-node", n.args...))
}

// restart starts the daemon and waits until it is ready.
func (n *node) restart() {
	n.c.Helper()
	n.start()
	n.waitReady()
}

// stop ends the daemon as systemd does.
func (n *node) stop() {
	n.c.Helper()
	if err := n.daemon.Stop(20 * time.Second); err != nil {
		n.c.Errorf("%s: stop: %v", n.name, err)
	}
}

// finish runs the daemon's binary to its end, for flags that end it.
func (n *node) finish(args ...string) (output string, ok bool) {
	p := n.StartCmd(n.c, n.command("calico-node", append(n.args, args...)...))
	<-p.Exited()
	return p.Output(), p.Cmd.ProcessState.Success()
}

// get asks one of the daemon's servers: the status, 0 if there was no answer,
// and the body.
func (n *node) get(url string) (int, string) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(_ context.Context, network, address string) (net.Conn, error) { return n.Dial(network, address) },
	}}
	r, err := client.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return 0, err.Error()
	}
	return r.StatusCode, string(body)
}

const (
	readiness = "http://127.0.0.1:9099/readiness"
	liveness  = "http://127.0.0.1:9099/liveness"
	metrics   = "http://127.0.0.1:9091/metrics"
)

func (n *node) waitReady() {
	n.c.Helper()
	var code int
	var body string
	ready := n.c.eventually(func() bool {
		select {
		case <-n.daemon.Exited():
			n.c.Fatalf("%s has ended: %s", n.name, n.daemon.Output())
		default:
		}
		code, body = n.get(readiness)
		return code == http.StatusOK
	})
	if !ready {
		n.c.Fatalf("%s is not ready: %d %s", n.name, code, body)
	}
}

func (n *node) api() *nodeapi.Client { return nodeapi.NewClient(n.dir + "/run") }

func (n *node) status() nodeapi.Status {
	n.c.Helper()
	s, err := n.api().Status(n.c.Context())
	if err != nil {
		n.c.Fatalf("%s: status: %v", n.name, err)
	}
	return s
}

// eventually is the testbed's with a longer limit, for a start on a busy machine.
func (c *cluster) eventually(ok func() bool) bool {
	for range 3 {
		if testbed.Eventually(ok) {
			return true
		}
	}
	return false
}

// settle waits until the nodes, all if none is named, enforce what the datastore
// says now.
func (c *cluster) settle(nodes ...*node) {
	c.Helper()
	if len(nodes) == 0 {
		nodes = c.nodes
	}
	revision := c.etcd.Revision()
	for _, n := range nodes {
		ctx, cancel := context.WithTimeout(c.Context(), 30*time.Second)
		err := n.api().WaitEnforced(ctx, api.Key{}, revision)
		cancel()
		if err != nil {
			c.Fatalf("%s: %v", n.name, err)
		}
		if s := n.status(); s.Error != "" {
			c.Fatalf("%s: %s", n.name, s.Error)
		}
	}
}

// ctl runs calicoctl with that input and returns what it prints.
func (c *cluster) ctl(stdin string, args ...string) string {
	c.Helper()
	cmd := c.nodes[0].command("calicoctl", args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out []byte
	var err error
	if c.etcd != nil {
		cmd.Env = append(cmd.Env, "ETCD_ENDPOINTS="+c.etcd.Endpoint())
		out, err = cmd.CombinedOutput()
	} else {
		cmd.Env = append(cmd.Env, "ETCD_ENDPOINTS=http://127.0.0.1:2379")
		p := c.nodes[0].StartCmd(c, cmd)
		<-p.Exited()
		if out = []byte(p.Output()); !cmd.ProcessState.Success() {
			err = fmt.Errorf("%s", cmd.ProcessState)
		}
	}
	if err != nil {
		c.Fatalf("calicoctl %s: %v\n%s%s", strings.Join(args, " "), err, out, stdin)
	}
	return string(out)
}

// apply applies manifests and, where the test can ask, waits until the nodes
// that run enforce them.
func (c *cluster) apply(manifests string) {
	c.Helper()
	c.ctl(manifests, "apply", "-f", "-")
	c.settleRunning()
}

func (c *cluster) delete(kind, name string) {
	c.Helper()
	c.ctl("", "delete", kind, name)
	c.settleRunning()
}

func (c *cluster) settleRunning() {
	c.Helper()
	if c.etcd == nil {
		return
	}
	var running []*node
	for _, n := range c.nodes {
		select {
		case <-n.daemon.Exited():
		default:
			if n.gate.isOpen() {
				running = append(running, n)
			}
		}
	}
	if len(running) > 0 {
		c.settle(running...)
	}
}
