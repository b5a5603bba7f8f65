package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"calico-xdp/pkg/nodeapi"
	"calico-xdp/tools/testbed"
)

// lab is the demo's network with our daemons in it. It is a testbed.T: what it
// registers for clean-up is undone in reverse order.
type lab struct {
	out   io.Writer
	bin   string
	dir   string // of everything that is written
	pins  string
	hosts []*host
	wires []*testbed.Capture // by host: what its port of the fabric sees

	cleanups []func()
	failures []string
}

// host is a namespace with a calico-node.
type host struct {
	*testbed.Host
	name string
	run  string
	node *testbed.Process
}

// workload is a namespace that the CNI plugin has attached.
type workload struct {
	*testbed.Namespace
	name      string
	host      *host
	addresses []netip.Addr
}

func (l *lab) Helper()             {}
func (l *lab) Cleanup(undo func()) { l.cleanups = append(l.cleanups, undo) }

func (l *lab) Logf(format string, args ...any) { fmt.Fprintf(l.out, format+"\n", args...) }

// stopped is what Fatalf panics with.
type stopped struct{ why string }

func (l *lab) Fatalf(format string, args ...any) { panic(stopped{fmt.Sprintf(format, args...)}) }

func (l *lab) close() {
	for i := len(l.cleanups) - 1; i >= 0; i-- {
		l.cleanups[i]()
	}
}

func (l *lab) must(err error, what string) {
	if err != nil {
		l.Fatalf("%s: %v", what, err)
	}
}

// expect notes a failed expectation and goes on.
func (l *lab) expect(ok bool, format string, args ...any) bool {
	if !ok {
		l.failures = append(l.failures, fmt.Sprintf(format, args...))
	}
	return ok
}

func pause() { time.Sleep(100 * time.Millisecond) }

// build makes the hosts: two in one subnet, the third in another.
func (l *lab) build() {
	var err error
	l.dir, err = os.MkdirTemp("", "calico-xdp-demo-")
	l.must(err, "working directory")
	l.Cleanup(func() { os.RemoveAll(l.dir) })
	l.pins = filepath.Join("/sys/fs/bpf", filepath.Base(l.dir))
	l.Cleanup(func() { os.Remove(l.pins) })
	net := testbed.NewHosts(l, 3, 1, 1, 2)
	for i, h := range net.Hosts {
		l.hosts = append(l.hosts, &host{
			Host: h, name: fmt.Sprintf("host%d", i+1), run: filepath.Join(l.dir, fmt.Sprintf("host%d", i+1)),
		})
		l.wires = append(l.wires, testbed.StartCapture(l, net.Fabric, h.Port))
	}
	// The CNI plugin goes by its name.
	for _, name := range []string{"calico", "calico-ipam"} {
		l.must(os.Symlink(filepath.Join(l.bin, "calico-cni"), filepath.Join(l.dir, name)), "CNI plugin")
	}
}

func (l *lab) etcd() string { return "http://" + l.hosts[0].IPv4.Addr().String() + ":2379" }

// startNodes starts the daemons; the first has the etcd in it.
func (l *lab) startNodes() {
	for i, h := range l.hosts {
		l.must(os.MkdirAll(h.run, 0o755), "run directory")
		args := []string{
			"--run-dir", h.run, "--pin-dir", filepath.Join(l.pins, h.name), "--log-dir", filepath.Join(h.run, "log"),
			"--nodename-file", filepath.Join(h.run, "nodename"),
		}
		env := []string{
			"NODENAME=" + h.name, "IP=autodetect", "IP6=autodetect", "NO_DEFAULT_POOLS=true",
			"FELIX_DEFAULTENDPOINTTOHOSTACTION=Return",
		}
		if i == 0 {
			args = append(args, "--datastore=embedded", "--data-dir", filepath.Join(h.run, "etcd"),
				"--etcd-listen-client", "http://127.0.0.1:2379,http://127.0.0.1:4001,"+l.etcd())
		} else {
			env = append(env, "ETCD_ENDPOINTS="+l.etcd())
		}
		cmd := exec.Command(filepath.Join(l.bin, "calico-node"), args...)
		cmd.Env = append(os.Environ(), env...)
		h.node = h.StartCmd(l, cmd)
		detach := exec.Command(filepath.Join(l.bin, "calico-node"), append(args, "--detach")...)
		l.Cleanup(func() {
			h.node.Stop(10 * time.Second)
			done := h.StartCmd(quiet{l}, detach)
			<-done.Exited()
		})
	}
	for _, h := range l.hosts {
		l.must(h.ready(), h.name+" is not ready")
	}
}

// quiet registers no clean-up: it is used during one.
type quiet struct{ *lab }

func (quiet) Cleanup(func()) {}

// ready waits until the daemon says that it is.
func (h *host) ready() error {
	var status nodeapi.Status
	var err error
	ok := testbed.Eventually(func() bool {
		select {
		case <-h.node.Exited():
			return true
		default:
		}
		status, err = nodeapi.NewClient(h.run).Status(context.Background())
		return err == nil && status.InSync
	})
	select {
	case <-h.node.Exited():
		return fmt.Errorf("calico-node has ended:\n%s", tail(h.node.Output(), 10))
	default:
	}
	if !ok {
		return fmt.Errorf("%w %s\n%s", err, status.Error, tail(h.node.Output(), 10))
	}
	return nil
}

func tail(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// calicoctl runs the CLI on the first host.
func (l *lab) calicoctl(stdin string, args ...string) string {
	return l.calicoctlOn(l.hosts[0], stdin, args...)
}

func (l *lab) calicoctlOn(h *host, stdin string, args ...string) string {
	cmd := exec.Command(filepath.Join(l.bin, "calicoctl"), args...)
	cmd.Env = append(os.Environ(), "ETCD_ENDPOINTS="+l.etcd(), "CALICO_RUN_DIR="+h.run)
	cmd.Stdin = strings.NewReader(stdin)
	p := h.StartCmd(quiet{l}, cmd)
	<-p.Exited()
	if !cmd.ProcessState.Success() {
		l.Fatalf("calicoctl %s: %s", strings.Join(args, " "), p.Output())
	}
	return p.Output()
}

// enforced waits until every node enforces an object as it is now.
func (l *lab) enforced(kind, name string) {
	var object struct {
		Metadata struct{ ResourceVersion string }
	}
	l.must(json.Unmarshal([]byte(l.calicoctl("", "get", kind, name, "-o", "json")), &object), name)
	revision, err := strconv.ParseInt(object.Metadata.ResourceVersion, 10, 64)
	l.must(err, name)
	for _, h := range l.hosts {
		last := nodeapi.Status{}
		ok := testbed.Eventually(func() bool {
			last, err = nodeapi.NewClient(h.run).Status(context.Background())
			return err == nil && last.Revision >= revision
		})
		if !ok {
			l.Fatalf("%s does not enforce %s of revision %d: it is at %d (%v) %s", h.name, name, revision, last.Revision, err, last.Error)
		}
	}
}

// attach adds a workload to a network through the CNI plugin.
func (l *lab) attach(h *host, n network, name string) *workload {
	w := &workload{Namespace: testbed.NewNamespace(l, name), name: name, host: h}
	conf, err := json.Marshal(map[string]any{
		"cniVersion": "1.0.0", "name": n.name, "type": "calico",
		"etcd_endpoints": l.etcd(), "nodename": h.name, "run_dir": h.run,
		"labels": map[string]string{"role": strings.SplitN(name, "-", 2)[0], "network": n.name},
		"ipam": map[string]any{
			"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": fmt.Sprint(n.ipv6 != ""),
			"ipv4_pools": []string{n.ipv4}, "ipv6_pools": n.ipv6Pools(),
		},
	})
	l.must(err, "network configuration")
	run := func(command string) []byte {
		var stdout, stderr bytes.Buffer
		cmd := exec.Command(filepath.Join(l.dir, "calico"))
		cmd.Env = append(os.Environ(), "CNI_COMMAND="+command, "CNI_CONTAINERID="+name, "CNI_NETNS="+w.Path(),
			"CNI_IFNAME=eth0", "CNI_PATH="+l.dir)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(conf), &stdout, &stderr
		p := h.StartCmd(quiet{l}, cmd)
		<-p.Exited()
		if !cmd.ProcessState.Success() {
			l.Fatalf("CNI %s %s: %s%s", command, name, stdout.String(), stderr.String())
		}
		return stdout.Bytes()
	}
	var result struct {
		IPs []struct{ Address string }
	}
	l.must(json.Unmarshal(run("ADD"), &result), "CNI result")
	for _, ip := range result.IPs {
		p, err := netip.ParsePrefix(ip.Address)
		l.must(err, "CNI result")
		w.addresses = append(w.addresses, p.Addr())
	}
	return w
}

// address is the workload's first address of a family.
func (w *workload) address(ipv6 bool) netip.Addr {
	for _, a := range w.addresses {
		if a.Is6() == ipv6 {
			return a
		}
	}
	return netip.Addr{}
}
