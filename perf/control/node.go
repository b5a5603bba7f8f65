package control

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/nodeapi"
	"calico-xdp/tools/testbed"
)

// Options say where the programs are and what else to do.
type Options struct {
	Bin      string // has calico-node
	Profiles string // a directory for CPU profiles of the daemon; empty: none
}

// nodeName is what the daemon calls its host.
const nodeName = "host1"

// node is a host with a daemon, and the etcd that both have to themselves.
type node struct {
	testbed.T
	Options
	*testbed.Host
	router *testbed.Namespace // its gateway
	etcd   *testbed.Etcd
	dir    string
	pins   string
	daemon *testbed.Process
	starts int
	// The profile of a start is taken until then; there is one at a time.
	startProfiled chan struct{}
}

// newNode makes a host without a running daemon.
func newNode(t testbed.T, o Options) *node {
	t.Helper()
	lab := testbed.NewHosts(t, 1)
	n := &node{T: t, Options: o, Host: lab.Hosts[0], router: lab.Router}
	// The listener is of the namespace: no proxy between the daemon and etcd.
	n.must(n.Do(func() error {
		n.etcd = testbed.StartEtcd(t)
		return nil
	}))
	var err error
	n.dir, err = os.MkdirTemp("", "calico-xdp-perf-")
	n.must(err)
	t.Cleanup(func() { os.RemoveAll(n.dir) })
	n.pins = filepath.Join("/sys/fs/bpf", n.Host.Name)
	t.Cleanup(func() { os.RemoveAll(n.pins) })
	return n
}

func (n *node) must(err error) {
	n.Helper()
	if err != nil {
		n.Fatalf("%v", err)
	}
}

// start starts the daemon and returns how long it took to be in sync.
func (n *node) start() time.Duration {
	n.Helper()
	cmd := exec.Command(filepath.Join(n.Bin, "calico-node"),
		"--run-dir", n.dir+"/run", "--pin-dir", n.pins, "--data-dir", n.dir+"/etcd", "--nodename-file", n.dir+"/nodename")
	cmd.Env = append(os.Environ(),
		"NODENAME="+nodeName, "IP=autodetect", "NO_DEFAULT_POOLS=true", "CALICO_DISABLE_FILE_LOGGING=true",
		"ETCD_ENDPOINTS="+n.etcd.Endpoint(), "FELIX_DEBUGPORT=6060")
	begin := time.Now()
	n.daemon = n.StartCmd(n.T, cmd)
	if n.Profiles != "" {
		n.starts++
		profiled := make(chan struct{})
		n.startProfiled = profiled
		go func() {
			defer close(profiled)
			n.fetch(fmt.Sprintf("start-%d.cpu", n.starts), "profile?seconds=15")
		}()
	}
	for {
		s, err := n.api().Status(context.Background())
		if err == nil && s.InSync {
			return time.Since(begin)
		}
		select {
		case <-n.daemon.Exited():
			n.Fatalf("calico-node has ended:\n%s", n.daemon.Output())
		case <-time.After(5 * time.Millisecond):
		}
		if time.Since(begin) > 5*time.Minute {
			n.Fatalf("calico-node is not in sync: %+v %v\n%s", s, err, n.daemon.Output())
		}
	}
}

// stop ends the daemon; traffic goes on.
func (n *node) stop() {
	n.Helper()
	n.must(n.daemon.Stop(30 * time.Second))
}

func (n *node) api() *nodeapi.Client { return nodeapi.NewClient(n.dir + "/run") }

// settle waits until the daemon says that it enforces what etcd has.
func (n *node) settle() {
	n.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := n.api().WaitEnforced(ctx, api.Key{}, n.etcd.Revision()); err != nil {
		n.Fatalf("%v\n%s", err, n.daemon.Output())
	}
}

// memory returns the daemon's resident memory, now and at most, in MB.
func (n *node) memory() (now, most float64) {
	n.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.daemon.PID()))
	n.must(err)
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		kb := 0.0
		if len(f) > 1 {
			kb, _ = strconv.ParseFloat(f[1], 64) // other lines have no numbers
		}
		switch {
		case strings.HasPrefix(line, "VmRSS:"):
			now = kb / 1024
		case strings.HasPrefix(line, "VmHWM:"):
			most = kb / 1024
		}
	}
	return now, most
}

// processorTime returns how long the daemon has computed so far.
func (n *node) processorTime() time.Duration {
	n.Helper()
	// The first field of each thread's.
	var sum int64
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", n.daemon.PID()))
	n.must(err)
	for _, thread := range threads {
		text, err := os.ReadFile(thread)
		if err != nil {
			continue
		}
		first, _, _ := strings.Cut(string(text), " ")
		ns, _ := strconv.ParseInt(first, 10, 64)
		sum += ns
	}
	return time.Duration(sum)
}

// profiled runs do; while it does, the daemon's processor time is profiled if
// that is asked for.
func (n *node) profiled(name string, limit time.Duration, do func()) {
	n.Helper()
	if n.Profiles == "" {
		do()
		return
	}
	<-n.startProfiled
	done := make(chan error)
	go func() { done <- n.fetch(name+".cpu", fmt.Sprintf("profile?seconds=%d", int(limit.Seconds()))) }()
	time.Sleep(200 * time.Millisecond)
	do()
	if err := <-done; err != nil {
		n.Logf("profile: %v", err)
	}
}

// heap writes a heap profile of the daemon if profiles are asked for.
func (n *node) heap(name string) {
	n.Helper()
	if n.Profiles != "" {
		n.must(n.fetch(name+".heap", "heap?gc=1"))
	}
}

// fetch writes what the daemon says under /debug/pprof/ into a file.
func (n *node) fetch(file, what string) error {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(_ context.Context, network, address string) (net.Conn, error) { return n.Dial(network, address) },
	}}
	var r *http.Response
	var err error
	for range 100 { // it may have started just now
		if r, err = client.Get("http://127.0.0.1:6060/debug/pprof/" + what); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	defer r.Body.Close()
	data, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(n.Profiles, file), data, 0o644)
}

// put writes a resource, defaulted, as Calico's tools do.
func (n *node) put(r api.Resource) {
	n.Helper()
	n.etcd.Put(n.encode(r))
}

// encode returns the etcd key and value of a resource.
func (n *node) encode(r api.Resource) (key, value string) {
	n.Helper()
	api.Default(r)
	data, err := api.Encode(r)
	n.must(err)
	k := api.KeyOf(r)
	if k.Kind == api.KindIPAMBlock {
		return "/calico/ipam/v2/assignment/ipv4/block/" + k.Name, string(data)
	}
	kind, ok := api.FindKind(k.Kind)
	if !ok {
		n.Fatalf("unknown kind %s", k.Kind)
	}
	key = "/calico/resources/v3/projectcalico.org/" + kind.Plural + "/"
	if k.Namespace != "" {
		key += k.Namespace + "/"
	}
	return key + k.Name, string(data)
}

// workload is a namespace with an endpoint of the node.
type workload struct {
	*testbed.Workload
	endpoint *api.WorkloadEndpoint
}

// addWorkload makes a workload and writes its endpoint.
func (n *node) addWorkload(name string, address netip.Addr, labels map[string]string) *workload {
	n.Helper()
	w := &workload{Workload: n.AddWorkload(n.T, "cali"+name, address)}
	w.endpoint = endpoint(nodeName, name, address, labels)
	w.endpoint.Spec.MAC, w.endpoint.Spec.InterfaceName = w.MAC.String(), w.Interface
	n.put(w.endpoint)
	return w
}

// endpoint is one workload endpoint of a node, without an interface's name.
func endpoint(node, name string, address netip.Addr, labels map[string]string) *api.WorkloadEndpoint {
	e := api.NewWorkloadEndpoint()
	e.Namespace, e.Name = "default", api.WorkloadEndpointName(node, "cni", name, "eth0")
	e.Labels = map[string]string{"projectcalico.org/namespace": "default", "projectcalico.org/orchestrator": "cni"}
	for k, v := range labels {
		e.Labels[k] = v
	}
	e.Spec = api.WorkloadEndpointSpec{
		Node: node, Orchestrator: "cni", Workload: name, Endpoint: "eth0", ContainerID: name, InterfaceName: "cali" + name,
		IPNetworks: []string{address.String() + "/32"}, Profiles: []string{"default"},
	}
	return e
}
