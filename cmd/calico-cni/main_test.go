package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"
	"calico-xdp/pkg/ipam"
	"calico-xdp/pkg/nodeapi"
	"calico-xdp/tools/testbed"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
)

// plugins is where the built binary is, under both its names.
var plugins string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "calico-cni-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		plugins = dir
		build := exec.Command("go", "build", "-o", filepath.Join(dir, "calico"), ".")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v: %s\n", err, out)
			return 1
		}
		if err := os.Symlink("calico", filepath.Join(dir, "calico-ipam")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// world is a host with a datastore, a node that says what the test wants, and
// containers.
type world struct {
	*testing.T
	etcd  *testbed.Etcd
	host  *testbed.Namespace
	store *datastore.Client
	ipam  *ipam.Allocator
	node  *fakeNode
	run   string // the node's run directory

	endpoint string // of etcd, as seen from the host
}

func newWorld(t *testing.T) *world {
	t.Helper()
	testbed.CheckNoLeaks(t)
	w := &world{T: t, etcd: testbed.StartEtcd(t), host: testbed.NewNamespace(t, "host"), run: t.TempDir()}
	var err error
	w.store, err = datastore.Open(context.Background(), datastore.Config{Endpoints: []string{w.etcd.Endpoint()}}, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.store.Close)
	w.ipam = ipam.New(w.store)
	w.endpoint = w.forward()
	w.node = &fakeNode{host: w.host, store: w.store}
	l, err := net.Listen("unix", nodeapi.SocketPath(w.run))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: nodeapi.Handler(w.node)}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })

	for name, cidr := range map[string]string{"v4": "10.65.0.0/24", "v6": "fd65::/112"} {
		p := v3.NewIPPool()
		p.Name, p.Spec.CIDR = name, cidr
		if _, err := w.store.Create(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// forward lets the host reach etcd, which listens on the test's own loopback.
func (w *world) forward() string {
	w.Helper()
	l, err := w.host.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.Fatal(err)
	}
	testbed.Serve(w, l, testbed.Relay(func() (net.Conn, error) { return net.Dial("tcp", w.etcd.Address()) }))
	return "http://" + l.Addr().String()
}

// fakeNode acknowledges endpoints whose interface exists, as the real one does,
// unless told to refuse.
type fakeNode struct {
	nodeapi.Traffic
	host  *testbed.Namespace
	store *datastore.Client

	mu     sync.Mutex
	refuse string
	hang   chan struct{} // closed when somebody waits; nobody is answered
	unsync bool
}

func (n *fakeNode) set(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
}

func (n *fakeNode) Status() nodeapi.Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	return nodeapi.Status{Node: "node-1", InSync: !n.unsync, WorkloadMTU: 1480}
}

func (n *fakeNode) BGP(context.Context) (nodeapi.BGPStatus, error) { return nodeapi.BGPStatus{}, nil }

func (n *fakeNode) BGPRoutes(context.Context) (nodeapi.BGPRoutes, error) {
	return nodeapi.BGPRoutes{}, nil
}

func (n *fakeNode) Wait(ctx context.Context, key api.Key, revision int64) error {
	n.mu.Lock()
	refuse, hang := n.refuse, n.hang
	n.mu.Unlock()
	if hang != nil {
		close(hang)
		<-ctx.Done()
		return &nodeapi.NotEnforcedError{Key: key, Reason: "the kernel is busy"}
	}
	if refuse != "" {
		return &nodeapi.NotEnforcedError{Key: key, Reason: refuse}
	}
	r, err := n.store.Get(ctx, key)
	if err != nil {
		return err
	}
	if r.GetResourceVersion() != fmt.Sprint(revision) {
		return fmt.Errorf("revision %d was asked for, %s is there", revision, r.GetResourceVersion())
	}
	_, err = n.host.Netlink().LinkByName(r.(*api.WorkloadEndpoint).Spec.InterfaceName)
	return err
}

// conf is a network configuration with changes, given as JSON paths' values.
func (w *world) conf(changes map[string]any) map[string]any {
	c := map[string]any{
		"cniVersion": "1.1.0", "name": "net1", "type": "calico",
		"etcd_endpoints": w.endpoint, "nodename": "node-1", "run_dir": w.run,
		"ipam":                         map[string]any{"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "true"},
		"policy_setup_timeout_seconds": 10,
	}
	for k, v := range changes {
		c[k] = v
	}
	return c
}

// call is one invocation of a plugin in the host's namespace.
type call struct {
	plugin  string // "calico" if empty
	command string
	id      string
	ifname  string // "eth0" if empty
	netns   string
	args    string
	conf    map[string]any
	kill    <-chan struct{} // kills the plugin
}

var errKilled = errors.New("killed")

// cniError is what a plugin prints when it fails.
type cniError struct {
	Code    uint   `json:"code"`
	Msg     string `json:"msg"`
	Details string `json:"details"`
}

func (e *cniError) Error() string { return fmt.Sprintf("%d: %s %s", e.Code, e.Msg, e.Details) }

// do runs a plugin and returns what it printed. The error is a *cniError.
func (w *world) do(c call) ([]byte, error) {
	w.Helper()
	if c.plugin == "" {
		c.plugin = "calico"
	}
	if c.ifname == "" {
		c.ifname = "eth0"
	}
	if c.conf == nil {
		c.conf = w.conf(nil)
	}
	stdin, err := json.Marshal(c.conf)
	if err != nil {
		w.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(filepath.Join(plugins, c.plugin))
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+c.command, "CNI_CONTAINERID="+c.id, "CNI_NETNS="+c.netns,
		"CNI_IFNAME="+c.ifname, "CNI_ARGS="+c.args, "CNI_PATH="+plugins)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	if err := w.host.Do(cmd.Start); err != nil {
		w.Fatal(err)
	}
	if c.kill != nil {
		<-c.kill
		cmd.Process.Kill()
		cmd.Wait()
		return nil, errKilled
	}
	err = cmd.Wait()
	if text := stderr.String(); text != "" {
		w.Logf("%s %s: %s", c.command, c.id, text)
	}
	if err == nil {
		return stdout.Bytes(), nil
	}
	e := &cniError{}
	if json.Unmarshal(stdout.Bytes(), e) != nil || e.Code == 0 {
		w.Fatalf("%s %s: %v: %s", c.command, c.id, err, stdout.String())
	}
	return nil, e
}

func (w *world) must(c call) []byte {
	w.Helper()
	out, err := w.do(c)
	if err != nil {
		w.Fatalf("%s %s: %v", c.command, c.id, err)
	}
	return out
}

// refused runs a plugin that must fail with this code and words.
func (w *world) refused(c call, code uint, words ...string) {
	w.Helper()
	_, err := w.do(c)
	e := (*cniError)(nil)
	if !errors.As(err, &e) || e.Code != code {
		w.Fatalf("%s %s: got %v, want code %d", c.command, c.id, err, code)
	}
	for _, word := range words {
		if !strings.Contains(e.Error(), word) {
			w.Errorf("%s %s: %q does not say %q", c.command, c.id, e, word)
		}
	}
}

// inside is a container's network as text.
func (w *world) inside(n *testbed.Namespace, ifname string) string {
	w.Helper()
	var out []string
	add := func(prefix string, command ...string) {
		for line := range strings.Lines(n.MustRun(w, command...)) {
			fields := strings.Fields(line)
			if len(fields) > 0 && strings.HasSuffix(fields[0], ":") {
				fields = fields[1:] // the interface's number is the kernel's choice
			}
			if line = strings.Join(fields, " "); !strings.Contains(line, "fe80::") || strings.Contains(line, "ecee") {
				out = append(out, prefix+line)
			}
		}
	}
	add("", "ip", "-o", "-4", "addr", "show", "dev", ifname)
	add("", "ip", "-o", "-6", "addr", "show", "dev", ifname)
	add("route ", "ip", "-4", "route", "show")
	add("route ", "ip", "-6", "route", "show")
	add("neigh ", "ip", "neigh", "show")
	return sortedLines(strings.Join(out, "\n"))
}

func sortedLines(text string) string {
	return strings.Join(slices.Sorted(strings.SplitSeq(text, "\n")), "\n")
}

// traces is all that attachments leave on the host and in the datastore, as
// text.
func (w *world) traces() string {
	w.Helper()
	var out []string
	links, err := w.host.Netlink().LinkList()
	if err != nil {
		w.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, "cali") {
			out = append(out, "link "+l.Attrs().Alias)
		}
	}
	weps, err := w.store.List(w.Context(), api.KindWorkloadEndpoint, "")
	if err != nil {
		w.Fatal(err)
	}
	for _, r := range weps {
		out = append(out, "endpoint "+r.GetNamespace()+"/"+r.GetName())
	}
	handles, err := w.ipam.Handles(w.Context(), "")
	if err != nil {
		w.Fatal(err)
	}
	for _, h := range handles {
		as, err := w.ipam.AddressesOf(w.Context(), h)
		if err != nil {
			w.Fatal(err)
		}
		out = append(out, fmt.Sprintf("handle %s %d", h, len(as)))
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

func (w *world) leaves(want ...string) {
	w.Helper()
	want = slices.Sorted(slices.Values(want))
	if got := w.traces(); got != strings.Join(want, "\n") {
		w.Errorf("there is:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
	faults, err := w.ipam.Check(w.Context())
	if err != nil || len(faults) > 0 {
		w.Error(faults, err)
	}
}
