package testbed

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// EtcdCluster is an etcd of several members, each a process in a namespace of its
// own. Members reach each other through one bridge, and clients, who are in the
// test's process, reach them through another one.
type EtcdCluster struct {
	t       T
	hub     *Namespace
	clients *Namespace
	members []*etcdMember
	admin   *clientv3.Client
}

type etcdMember struct {
	spec      memberSpec
	namespace *Namespace
	process   *Process // nil: stopped
	endpoint  string   // for clients in the test's process
}

// memberSpec tells a process which member it is.
type memberSpec struct{ Name, Dir, Client, Peer, Cluster string }

const memberVariable = "TESTBED_ETCD_MEMBER"

// RunEtcdMember makes this process a member of an [EtcdCluster] if it was started
// as one, and does not return then. The TestMain of a package that uses such a
// cluster calls it first.
func RunEtcdMember() {
	text := os.Getenv(memberVariable)
	if text == "" {
		return
	}
	err := runMember(text)
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func runMember(text string) error {
	var spec memberSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return err
	}
	address := func(host string, port int) []url.URL {
		return []url.URL{{Scheme: "http", Host: fmt.Sprintf("%s:%d", host, port)}}
	}
	c := embed.NewConfig()
	c.Name, c.Dir, c.InitialCluster = spec.Name, spec.Dir, spec.Cluster
	c.TickMs, c.ElectionMs = 100, 1000
	c.UnsafeNoFsync = true
	c.ListenClientUrls, c.AdvertiseClientUrls = address(spec.Client, 2379), address(spec.Client, 2379)
	c.ListenPeerUrls, c.AdvertisePeerUrls = address(spec.Peer, 2380), address(spec.Peer, 2380)
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	server, err := embed.StartEtcd(c)
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	select {
	case err := <-server.Err():
		return err
	case <-signals:
		os.Exit(0)
		return nil
	}
}

// StartEtcdCluster starts a cluster of n members.
func StartEtcdCluster(t T, n int) *EtcdCluster {
	t.Helper()
	c := &EtcdCluster{t: t, hub: NewNamespace(t, "hub"), clients: NewNamespace(t, "clients")}
	Bridge(t, c.hub, "peers")
	Bridge(t, c.hub, "users")
	join := func(ns *Namespace, inside, bridge, port, address string) {
		Veth(t, ns, inside, c.hub, port)
		AddPort(t, c.hub, bridge, port)
		ns.AddAddress(t, inside, address)
		ns.SetUp(t, inside)
		c.hub.SetUp(t, port)
	}
	join(c.clients, "eth0", "users", "u-clients", "10.240.0.100/24")
	dir, err := os.MkdirTemp("", "testbed-etcd-")
	if err != nil {
		t.Fatalf("etcd cluster: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var cluster []string
	for i := range n {
		name := fmt.Sprint("m", i)
		m := &etcdMember{namespace: NewNamespace(t, name), spec: memberSpec{
			Name: name, Dir: filepath.Join(dir, name), Client: fmt.Sprint("10.240.0.", i+1), Peer: fmt.Sprint("10.241.0.", i+1),
		}}
		join(m.namespace, "users", "users", "u-"+name, m.spec.Client+"/24")
		join(m.namespace, "peers", "peers", "p-"+name, m.spec.Peer+"/24")
		m.endpoint = c.relay(m.spec.Client + ":2379")
		cluster = append(cluster, name+"=http://"+m.spec.Peer+":2380")
		c.members = append(c.members, m)
	}
	for i, m := range c.members {
		m.spec.Cluster = strings.Join(cluster, ",")
		c.Start(i)
	}
	c.admin, err = clientv3.New(clientv3.Config{Endpoints: c.Endpoints(), Logger: zap.NewNop(), DialTimeout: 2 * time.Second})
	if err != nil {
		t.Fatalf("etcd cluster: %v", err)
	}
	t.Cleanup(func() { c.admin.Close() })
	return c
}

// relay returns a URL on the test's loopback behind which is an address that the
// clients' namespace reaches.
func (c *EtcdCluster) relay(to string) string {
	c.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatalf("etcd cluster: %v", err)
	}
	Serve(c.t, l, Relay(func() (net.Conn, error) { return c.clients.DialTimeout("tcp", to, time.Second) }))
	return "http://" + l.Addr().String()
}

// Endpoints returns the members' URLs for clients in the test's process.
func (c *EtcdCluster) Endpoints() []string {
	var out []string
	for _, m := range c.members {
		out = append(out, m.endpoint)
	}
	return out
}

// Start starts a member, with its data if it has run before.
func (c *EtcdCluster) Start(i int) {
	c.t.Helper()
	m := c.members[i]
	spec, err := json.Marshal(m.spec)
	if err != nil {
		c.t.Fatalf("etcd cluster: %v", err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), memberVariable+"="+string(spec))
	m.process = m.namespace.StartCmd(c.t, cmd)
}

// Kill ends a member as a power cut would.
func (c *EtcdCluster) Kill(i int) { c.members[i].process.Kill() }

// CutPeers takes a member from the others, or brings it back. Clients reach it.
func (c *EtcdCluster) CutPeers(i int, cut bool) { c.cut("p-", i, cut) }

// CutClients takes a member from the clients, or brings it back: packets to and
// from it vanish.
func (c *EtcdCluster) CutClients(i int, cut bool) { c.cut("u-", i, cut) }

func (c *EtcdCluster) cut(prefix string, i int, cut bool) {
	c.t.Helper()
	if port := prefix + c.members[i].spec.Name; cut {
		c.hub.SetDown(c.t, port)
	} else {
		c.hub.SetUp(c.t, port)
	}
}

// Do runs a request again until it is answered: meanwhile members may be away.
func (c *EtcdCluster) Do(request func(context.Context, *clientv3.Client) error) {
	c.t.Helper()
	var err error
	for range 60 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		err = request(ctx, c.admin)
		cancel()
		if err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.t.Fatalf("etcd cluster: %v", err)
}

// Try runs a request once; that it fails is to be expected.
func (c *EtcdCluster) Try(ctx context.Context, request func(context.Context, *clientv3.Client) error) {
	_ = request(ctx, c.admin)
}

// Leader returns which member leads.
func (c *EtcdCluster) Leader() int {
	c.t.Helper()
	for range 100 {
		for i, m := range c.members {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			s, err := c.admin.Status(ctx, m.endpoint)
			cancel()
			if err == nil && s.Leader != 0 && s.Leader == s.Header.MemberId {
				return i
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.t.Fatalf("etcd cluster: no leader")
	return 0
}
