package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"
	"calico-xdp/pkg/ipam"
	"calico-xdp/pkg/nodeapi"
	"calico-xdp/tools/testbed"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/spf13/cobra"
)

// beDaemon makes this test's binary be calico-node.
const beDaemon = "CALICO_NODE_TEST_IS_DAEMON"

func TestMain(m *testing.M) {
	if os.Getenv(beDaemon) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// node is a host of the lab with a daemon of its own.
type node struct {
	*testbed.Host
	name, dir, pins string
	environ, args   []string
	process         *testbed.Process
}

func newNode(t *testing.T, h *testbed.Host, name string, environ []string, args ...string) *node {
	n := &node{Host: h, name: name, dir: t.TempDir(), pins: filepath.Join(bpffs, h.Name)}
	n.environ = append([]string{beDaemon + "=1", "NODENAME=" + name, "CALICO_IPV4POOL_CIDR=10.65.0.0/16"}, environ...)
	n.args = append([]string{
		"--data-dir", n.dir + "/etcd", "--run-dir", n.dir + "/run", "--pin-dir", n.pins,
		"--log-dir", n.dir + "/log", "--nodename-file", n.dir + "/nodename",
	}, args...)
	t.Cleanup(func() {
		if t.Failed() && n.process != nil {
			t.Logf("%s: %s", name, n.process.Output())
		}
		os.RemoveAll(n.pins) // what a failed test leaves
	})
	return n
}

func (n *node) command(args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	cmd := exec.Command(self, append(n.args, args...)...)
	cmd.Env = n.environ
	return cmd
}

func (n *node) start(t *testing.T) { n.process = n.StartCmd(t, n.command()) }

// run runs the daemon's binary to its end, for flags that end it.
func (n *node) run(t *testing.T, args ...string) (output string, ok bool) {
	t.Helper()
	p := n.StartCmd(t, n.command(args...))
	<-p.Exited()
	return p.Output(), p.Cmd.ProcessState.Success()
}

// get asks one of the daemon's servers.
func (n *node) get(url string) (int, string) {
	c := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(_ context.Context, network, address string) (net.Conn, error) { return n.Dial(network, address) },
	}}
	r, err := c.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	body, _ := io.ReadAll(r.Body)
	return r.StatusCode, string(body)
}

func (n *node) waitReady(t *testing.T) {
	t.Helper()
	var body string
	for range 600 {
		var code int
		if code, body = n.get("http://127.0.0.1:9099/readiness"); code == http.StatusOK {
			return
		}
		select {
		case <-n.process.Exited():
			t.Fatalf("%s ended: %s", n.name, n.process.Output())
		case <-time.After(50 * time.Millisecond):
		}
	}
	t.Fatalf("%s is not ready: %s", n.name, body)
}

// forwarded returns an address of the test's own loopback that leads to one
// inside the namespace.
func forwarded(t *testing.T, n *testbed.Namespace, to string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	testbed.Serve(t, l, testbed.Relay(func() (net.Conn, error) { return n.Dial("tcp", to) }))
	return "http://" + l.Addr().String()
}

// addWorkload makes a workload and its endpoint, and waits until it is live.
func (n *node) addWorkload(t *testing.T, client *datastore.Client, name string) *testbed.Workload {
	t.Helper()
	got, err := ipam.New(client).AssignAuto(t.Context(), ipam.Request{
		Node: n.name, Handle: name, IPv4: 1, Attributes: map[string]string{ipam.AttributeNode: n.name},
	})
	if err != nil {
		t.Fatal(err)
	}
	w := n.AddWorkload(t, name, got.IPv4[0])
	e := api.NewWorkloadEndpoint()
	e.Namespace, e.Name = "default", api.WorkloadEndpointName(n.name, "test", name, "eth0")
	e.Spec = api.WorkloadEndpointSpec{
		Node: n.name, Orchestrator: "test", Workload: name, Endpoint: "eth0", Profiles: []string{"open"},
		InterfaceName: name, MAC: w.MAC.String(), IPNetworks: []string{got.IPv4[0].String() + "/32"},
	}
	created, err := client.Create(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	revision, err := strconv.ParseInt(created.GetResourceVersion(), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := nodeapi.NewClient(n.dir+"/run").WaitEnforced(ctx, api.KeyOf(created), revision); err != nil {
		t.Fatal(err)
	}
	return w
}

func reaches(w *testbed.Workload, to *testbed.Workload) bool {
	return testbed.Eventually(func() bool {
		received, _ := testbed.Ping(w.Namespace, to.Addresses[0], 1)
		return received == 1
	})
}

func TestDaemons(t *testing.T) {
	testbed.CheckNoLeaks(t)
	lab := testbed.NewHosts(t, 2)
	etcd := netip.AddrPortFrom(lab.Hosts[0].IPv4.Addr(), 2379).String()
	a := newNode(t, lab.Hosts[0], "a", nil, "--etcd-listen-client", "http://"+etcd)
	b := newNode(t, lab.Hosts[1], "b", []string{"ETCD_ENDPOINTS=http://" + etcd, "CALICO_DISABLE_FILE_LOGGING=true"}, "--log-format", "json")

	// b finds no etcd yet: it says so once, is alive, and not ready.
	b.start(t)
	waiting := testbed.Eventually(func() bool { return strings.Contains(b.process.Output(), "will keep trying") })
	if code, body := b.get("http://127.0.0.1:9099/liveness"); !waiting || code != http.StatusOK {
		t.Errorf("b without etcd: liveness %d %s; %s", code, body, b.process.Output())
	}
	if code, _ := b.get("http://127.0.0.1:9099/readiness"); code != http.StatusServiceUnavailable {
		t.Errorf("b without etcd: readiness %d", code)
	}
	a.start(t)
	a.waitReady(t)
	b.waitReady(t)
	if n := strings.Count(b.process.Output(), "will keep trying"); n != 1 {
		t.Errorf("b complained %d times", n)
	}

	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	client, err := datastore.Open(t.Context(), datastore.Config{Endpoints: []string{forwarded(t, a.Namespace, etcd)}}, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	profile := v3.NewProfile()
	profile.Name = "open"
	profile.Spec.Ingress = []api.Rule{{Action: v3.Allow}}
	profile.Spec.Egress = []api.Rule{{Action: v3.Allow}}
	if _, err := client.Create(t.Context(), profile); err != nil {
		t.Fatal(err)
	}
	one, two := a.addWorkload(t, client, "cali1"), b.addWorkload(t, client, "cali2")
	if !reaches(one, two) || !reaches(two, one) {
		t.Fatal("workloads do not reach each other")
	}

	status, err := nodeapi.NewClient(b.dir + "/run").Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// The default pool does IPIP.
	if status.Node != "b" || !status.InSync || status.Revision == 0 || status.WorkloadMTU != 1480 || status.Error != "" ||
		len(status.Endpoints) != 1 || status.Endpoints[0].State != nodeapi.EndpointReady || len(status.Addresses) != 1 ||
		status.Addresses[0].Address != b.IPv4.String() || status.Addresses[0].Interface != "eth0" {
		t.Errorf("status %+v", status)
	}
	established := testbed.Eventually(func() bool {
		s, err := nodeapi.NewClient(b.dir + "/run").BGP(t.Context())
		return err == nil && s.Enabled && len(s.Peers) == 1 && s.Peers[0].State == "up"
	})
	if !established {
		t.Error("no BGP session")
	}
	if code, body := b.get("http://127.0.0.1:9091/metrics"); code != http.StatusOK ||
		!strings.Contains(body, `calico_xdp_workload_endpoints{state="ready"} 1`) || !strings.Contains(body, "calico_xdp_packets_total") {
		t.Errorf("metrics %d %s", code, body)
	}
	for path, want := range map[string]string{a.dir + "/nodename": "a", b.dir + "/nodename": "b"} {
		if got, err := os.ReadFile(path); string(got) != want {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	if _, err := os.Stat(a.dir + "/log/calico-node/current"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(b.dir + "/log"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("b logs to a file: %v", err)
	}

	// One daemon for one pin directory.
	if out, ok := a.run(t); ok || !strings.Contains(out, "another calico-node uses it") {
		t.Errorf("second daemon: %v %s", ok, out)
	}
	if out, ok := a.run(t, "--detach"); ok || !strings.Contains(out, "stop it first") {
		t.Errorf("detach of a running daemon: %v %s", ok, out)
	}

	// What it logs is FelixConfiguration's to say, at once.
	quiet := &api.FelixConfiguration{}
	quiet.Name, quiet.Spec.LogSeverityScreen = "node.a", "Warning"
	written, err := client.Create(t.Context(), quiet)
	if err != nil {
		t.Fatal(err)
	}
	revision, err := strconv.ParseInt(written.GetResourceVersion(), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	took := testbed.Eventually(func() bool {
		s, err := nodeapi.NewClient(a.dir + "/run").Status(t.Context())
		return err == nil && s.Revision >= revision
	})
	if !took {
		t.Error("the daemon does not see its FelixConfiguration")
	}

	// Stopped, and etcd with it: traffic goes on, on both sides.
	if err := a.process.Stop(20 * time.Second); err != nil {
		t.Errorf("stop: %v", err)
	}
	if strings.Contains(a.process.Output(), "calico-node stops") {
		t.Error("it logs what it should not")
	}
	if received, sent := testbed.Ping(one.Namespace, two.Addresses[0], 5); received != sent {
		t.Errorf("without a's daemon: %d of %d", received, sent)
	}
	flood := testbed.StartFlood(t, one.Namespace, two.Namespace, two.Addresses[0], testbed.FloodOptions{})
	a.start(t)
	a.waitReady(t)
	// Killed, it leaves no more of a gap.
	b.process.Kill()
	b.start(t)
	b.waitReady(t)
	if report := flood.Stop(); report.Lost != 0 {
		t.Errorf("restart: %s", report)
	}

	// Removed whole.
	for _, n := range []*node{a, b} {
		if err := n.process.Stop(20 * time.Second); err != nil {
			t.Errorf("stop: %v", err)
		}
		out, ok := n.run(t, "--detach")
		if !ok || !strings.Contains(out, "program from_network from interface") || !strings.Contains(out, "removed route") {
			t.Errorf("detach: %v %s", ok, out)
		}
		if _, err := os.Stat(n.pins); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("pin directory: %v", err)
		}
		if routes := n.MustRun(t, "ip", "route", "show", "proto", "88"); routes != "" {
			t.Errorf("routes: %s", routes)
		}
		if out, ok := n.run(t, "--detach"); !ok || !strings.Contains(out, "nothing to remove") {
			t.Errorf("second detach: %v %s", ok, out)
		}
	}
}

func TestFelixFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "felix.cfg")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	complete := func(environ ...string) (*config, error) {
		t.Helper()
		var c config
		cmd := new(cobra.Command)
		addFlags(cmd, &c)
		if err := cmd.ParseFlags([]string{"--felix-config", path}); err != nil {
			t.Fatal(err)
		}
		return &c, c.complete(environ)
	}
	if c, err := complete(); err != nil || len(c.environment.Config.FelixFile) != 0 || c.datastore != "embedded" {
		t.Errorf("without the file: %v, %v", c.environment.Config.FelixFile, err)
	}

	write("\ufeff[global]\r\n# a comment\nDefaultEndpointToHostAction = RETURN ; for now\n" +
		"FailsafeInboundHostPorts: tcp:22,tcp:[fd00::/8]:80\nLogFilePath = None\n\n[other]\nInterfacePrefix = 'cali,#tap' # quoted\nEtcdAddr=10.0.0.9:4001\nempty =\n")
	c, err := complete()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"defaultendpointtohostaction": "RETURN", "failsafeinboundhostports": "tcp:22,tcp:[fd00::/8]:80", "logfilepath": "None",
		"interfaceprefix": "cali,#tap", "etcdaddr": "10.0.0.9:4001", "empty": "",
	}
	if got := c.environment.Config.FelixFile; !maps.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	if !slices.Equal(c.etcd.Endpoints, []string{"http://10.0.0.9:4001"}) {
		t.Errorf("etcd at %v", c.etcd.Endpoints)
	}
	for environ, at := range map[string]string{
		"ETCD_ENDPOINTS=http://10.0.0.8:2379":       "http://10.0.0.8:2379",
		"FELIX_ETCDENDPOINTS=http://10.0.0.7:2379":  "http://10.0.0.7:2379",
		"FELIX_EtcdAddr=10.0.0.6:2379":              "http://10.0.0.6:2379",
		"FELIX_DefaultEndpointToHostAction=ACCEPT1": "http://10.0.0.9:4001",
	} {
		if c, err := complete(environ); err != nil || !slices.Equal(c.etcd.Endpoints, []string{at}) {
			t.Errorf("%s: etcd at %v, %v", environ, c.etcd.Endpoints, err)
		}
	}
	if c, err := complete("FELIX_ETCDADDR=none"); err != nil || c.datastore != "embedded" {
		t.Errorf("no etcd: %s, %v", c.datastore, err)
	}
	write("IgnoreLooseRPF = true\n")
	if c, err := complete(); err != nil || !c.ignoreLooseRPF() {
		t.Errorf("ignoreLooseRPF: %v", err)
	}
	for text, fault := range map[string]string{"[global]\nnonsense\n": `line 2: "nonsense"`, "a = 'b\n": "line 1: a: the quote"} {
		write(text)
		if _, err := complete(); err == nil || !strings.Contains(err.Error(), path+": "+fault) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestFlags(t *testing.T) {
	for _, c := range []struct {
		args, environ []string
		want          string // of the error; empty: none
	}{
		{},
		{environ: []string{"ETCD_AUTHORITY=127.0.0.1:4001"}},
		{args: []string{"--datastore", "consul"}, want: `--datastore "consul": want embedded or etcd`},
		{args: []string{"--log-format", "xml"}, want: `--log-format "xml"`},
		{args: []string{"--log-level", "loud"}, want: `--log-level "loud"`},
		{args: []string{"--run-dir", ""}, want: "--run-dir is empty"},
		{environ: []string{"IP=nowhere"}, want: `IP "nowhere"`},
		{environ: []string{"FELIX_LOGSEVERITYSCREEN=Verbose"}},
	} {
		var cfg config
		cmd := new(cobra.Command)
		addFlags(cmd, &cfg)
		if err := cmd.ParseFlags(c.args); err != nil {
			t.Fatal(err)
		}
		err := cfg.complete(c.environ)
		switch {
		case c.want == "" && err != nil, c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%v %v: %v", c.args, c.environ, err)
		case err == nil && (len(c.environ) > 0 && strings.HasPrefix(c.environ[0], "ETCD")) != (cfg.datastore == "etcd"):
			t.Errorf("%v %v: datastore %s", c.args, c.environ, cfg.datastore)
		}
	}
}
