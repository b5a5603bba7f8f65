package testbed

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// Etcd is a throwaway etcd in the test's process. Its data does not reach the
// disk and goes with the test.
type Etcd struct {
	t         T
	configure func(*embed.Config)
	dir       string
	port      int

	server  *embed.Etcd // nil: stopped
	streams context.CancelFunc
}

// StartEtcd starts an etcd on a free port of loopback.
func StartEtcd(t T) *Etcd {
	t.Helper()
	return StartEtcdWith(t, func(*embed.Config) {})
}

// StartEtcdWith is StartEtcd with changes to its configuration, made before
// each start.
func StartEtcdWith(t T, configure func(*embed.Config)) *Etcd {
	t.Helper()
	dir, err := os.MkdirTemp("", "testbed-etcd-")
	if err != nil {
		t.Fatalf("etcd: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	e := &Etcd{t: t, configure: configure, dir: dir}
	t.Cleanup(e.Stop)
	for range 20 {
		e.port = freePort()
		if err = e.start(); err == nil {
			return e
		}
	}
	t.Fatalf("etcd: %v", err)
	return nil
}

// freePort returns a port below those that the kernel gives to clients: a
// client that tries to reach a stopped server on one of those may be given that
// very port and connect to itself.
func freePort() int {
	for {
		port := 20000 + rand.IntN(12000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			l.Close()
			return port
		}
	}
}

// Start starts a stopped etcd again, with its data and on its port.
func (e *Etcd) Start() {
	e.t.Helper()
	if e.server != nil {
		return
	}
	if err := e.start(); err != nil {
		e.t.Fatalf("etcd: %v", err)
	}
}

func (e *Etcd) start() error {
	address := url.URL{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", e.port)}
	c := embed.NewConfig()
	c.Name = "testbed"
	c.Dir = e.dir
	c.TickMs, c.ElectionMs = 10, 100
	c.UnsafeNoFsync = true
	c.ListenPeerUrls = nil // no member but this one
	c.ListenClientUrls = []url.URL{address}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	e.configure(c)
	c.AdvertiseClientUrls = c.ListenClientUrls
	ctx, cancel := context.WithCancel(context.Background())
	c.GRPCAdditionalServerOptions = append(c.GRPCAdditionalServerOptions,
		grpc.ChainStreamInterceptor(func(server any, s grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			streamCtx, end := context.WithCancel(s.Context())
			defer end()
			defer context.AfterFunc(ctx, end)()
			return handle(server, &streamWithContext{s, streamCtx})
		}))
	server, err := embed.StartEtcd(c)
	if err != nil {
		cancel()
		return err
	}
	e.server, e.streams = server, cancel
	select {
	case <-server.Server.ReadyNotify():
		return nil
	case err = <-server.Err():
	case <-time.After(20 * time.Second):
		err = fmt.Errorf("not ready")
	}
	e.Stop()
	return err
}

// streamWithContext makes watches end when the server stops, which otherwise
// waits for them.
type streamWithContext struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (s *streamWithContext) Context() context.Context { return s.ctx }

// Stop stops it; clients see their connections closed and new ones refused.
func (e *Etcd) Stop() {
	if e.server == nil {
		return
	}
	e.streams()
	server, closed := e.server, make(chan struct{})
	go func() {
		defer close(closed)
		server.Close()
	}()
	// It would wait for a client that has connected and not sent anything.
	select {
	case <-closed:
	case <-time.After(time.Second):
		server.Server.Stop()
	}
	e.server = nil
}

// WhileAway lets do change the data of a stopped etcd: it is started on another
// port, so that no client sees it, and stopped again.
func (e *Etcd) WhileAway(do func()) {
	e.t.Helper()
	port := e.port
	e.Stop()
	e.port = freePort()
	e.Start()
	do()
	e.Stop()
	e.port = port
}

// Endpoint returns the URL for clients.
func (e *Etcd) Endpoint() string { return fmt.Sprintf("http://127.0.0.1:%d", e.port) }

// Address returns the endpoint's address and port.
func (e *Etcd) Address() string { return fmt.Sprintf("127.0.0.1:%d", e.port) }

// Revision returns the datastore's revision.
func (e *Etcd) Revision() int64 { return e.server.Server.KV().Rev() }

// Compact drops all history before the present.
func (e *Etcd) Compact() {
	e.t.Helper()
	_, err := e.server.Server.Compact(context.Background(), &pb.CompactionRequest{Revision: e.Revision(), Physical: true})
	if err != nil {
		e.t.Fatalf("etcd: compact: %v", err)
	}
}

// Put writes a key as it is.
func (e *Etcd) Put(key, value string) {
	e.t.Helper()
	_, err := e.server.Server.Put(context.Background(), &pb.PutRequest{Key: []byte(key), Value: []byte(value)})
	if err != nil {
		e.t.Fatalf("etcd: put %s: %v", key, err)
	}
}

// PutAll writes many keys, and is quicker at it than Put.
func (e *Etcd) PutAll(values map[string]string) {
	e.t.Helper()
	var puts []*pb.RequestOp
	flush := func() {
		if _, err := e.server.Server.Txn(context.Background(), &pb.TxnRequest{Success: puts}); err != nil {
			e.t.Fatalf("etcd: %v", err)
		}
		puts = nil
	}
	for key, value := range values {
		puts = append(puts, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{
			RequestPut: &pb.PutRequest{Key: []byte(key), Value: []byte(value)},
		}})
		if len(puts) == 100 { // of the 128 that etcd takes at once
			flush()
		}
	}
	if len(puts) > 0 {
		flush()
	}
}

// Delete removes a key.
func (e *Etcd) Delete(key string) {
	e.t.Helper()
	if _, err := e.server.Server.DeleteRange(context.Background(), &pb.DeleteRangeRequest{Key: []byte(key)}); err != nil {
		e.t.Fatalf("etcd: delete %s: %v", key, err)
	}
}

// Get returns the value of a key, "" if there is none.
func (e *Etcd) Get(key string) string {
	e.t.Helper()
	r, err := e.server.Server.Range(context.Background(), &pb.RangeRequest{Key: []byte(key)})
	if err != nil {
		e.t.Fatalf("etcd: get %s: %v", key, err)
	}
	if len(r.Kvs) == 0 {
		return ""
	}
	return string(r.Kvs[0].Value)
}

// Save keeps a copy of the data as it is now and returns what puts it back, as
// an operator does with a backup. Both restart the server.
func (e *Etcd) Save() (restore func()) {
	e.t.Helper()
	saved, err := os.MkdirTemp("", "testbed-etcd-")
	if err != nil {
		e.t.Fatalf("etcd: %v", err)
	}
	e.t.Cleanup(func() { os.RemoveAll(saved) })
	e.Stop()
	if err := os.CopyFS(filepath.Join(saved, "data"), os.DirFS(e.dir)); err != nil {
		e.t.Fatalf("etcd: save: %v", err)
	}
	e.Start()
	return func() {
		e.t.Helper()
		e.Stop()
		err := os.RemoveAll(e.dir)
		if err == nil {
			err = os.CopyFS(e.dir, os.DirFS(filepath.Join(saved, "data")))
		}
		if err != nil {
			e.t.Fatalf("etcd: restore: %v", err)
		}
		e.Start()
	}
}
