package datastore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// EmbeddedConfig says how to run etcd in this process.
type EmbeddedConfig struct {
	// Dir holds the data. It is made if missing, for its owner only.
	Dir string
	// ListenClients are URLs, "http://10.0.0.1:2379". Default: the ports 2379
	// and 4001 on loopback.
	ListenClients []string
	// Name of the etcd member; it only shows in etcd's own tools.
	Name string

	// Files with PEM for listeners with https://, which all have to be then. The
	// certificate is read again when it changes. With ClientCAFile clients need a
	// certificate that this authority has signed.
	CertFile, KeyFile, ClientCAFile string

	// Quota is how large the database may become, bytes; 0: 8 GiB.
	Quota int64
}

const (
	embeddedStart  = 30 * time.Second // for a large data directory on a slow disk
	embeddedLinger = time.Second
	// Of the history etcd keeps this much. A watcher that was away for longer
	// compares a snapshot.
	embeddedHistory = "1h"
	embeddedQuota   = 8 << 30 // bytes; etcd's own advice for the upper limit
)

// Embedded is an etcd of one member that runs in this process. It has no peers
// and listens for none, so several may run on one machine.
type Embedded struct {
	etcd      *embed.Etcd
	endpoints []string
	lock      *os.File
	streams   context.CancelFunc
	zap       *slogCore
	close     sync.Once
}

// StartEmbedded starts etcd and returns when it answers.
func StartEmbedded(config EmbeddedConfig, log *slog.Logger) (*Embedded, error) {
	e := &Embedded{}
	if err := e.start(config, log.With("component", "etcd")); err != nil {
		e.Close()
		return nil, fmt.Errorf("embedded etcd in %s: %w", config.Dir, err)
	}
	return e, nil
}

func (e *Embedded) start(config EmbeddedConfig, log *slog.Logger) error {
	if config.Dir == "" {
		return errors.New("no data directory given")
	}
	listen, err := listenURLs(config.ListenClients)
	if err != nil {
		return err
	}
	if err := config.checkTLS(listen); err != nil {
		return err
	}
	if err := e.lockDir(config.Dir); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	e.zap, e.streams = newSlogCore(log), cancel

	c := embed.NewConfig()
	c.Name = config.Name
	if c.Name == "" {
		c.Name = "calico-node"
	}
	c.Dir = filepath.Join(config.Dir, "etcd")
	c.ListenClientUrls, c.AdvertiseClientUrls = listen, listen
	c.ListenPeerUrls = nil
	// One member waits for nobody's heartbeats: a short election only makes
	// the start quick.
	c.TickMs, c.ElectionMs = 20, 200
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModePeriodic, embeddedHistory
	c.QuotaBackendBytes = embeddedQuota
	if config.Quota > 0 {
		c.QuotaBackendBytes = config.Quota
	}
	c.ClientTLSInfo.CertFile, c.ClientTLSInfo.KeyFile = config.CertFile, config.KeyFile
	c.ClientTLSInfo.TrustedCAFile, c.ClientTLSInfo.ClientCertAuth = config.ClientCAFile, config.ClientCAFile != ""
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(e.zap))
	c.GRPCAdditionalServerOptions = []grpc.ServerOption{grpc.ChainStreamInterceptor(endStreamsWith(ctx))}
	if e.etcd, err = embed.StartEtcd(c); err != nil {
		return err
	}
	select {
	case <-e.etcd.Server.ReadyNotify():
	case err := <-e.etcd.Err():
		return err
	case <-time.After(embeddedStart):
		return fmt.Errorf("not ready within %s", embeddedStart)
	}
	for _, l := range e.etcd.Clients {
		e.endpoints = append(e.endpoints, localEndpoint(listen[0].Scheme, l.Addr()))
	}
	return nil
}

// lockDir makes the directory and locks it for this process. Without that a
// second etcd waits for the first one's database for ever.
func (e *Embedded) lockDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o700); err != nil { // it may have been there
		return err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return errors.New("another process uses this directory")
		}
		return fmt.Errorf("lock: %w", err)
	}
	e.lock = lock
	return nil
}

// Endpoints returns URLs at which this machine reaches the server.
func (e *Embedded) Endpoints() []string { return e.endpoints }

// Failed receives an error if the server ends by itself.
func (e *Embedded) Failed() <-chan error { return e.etcd.Err() }

// Close stops the server. Its data is kept.
func (e *Embedded) Close() { e.close.Do(e.stop) }

func (e *Embedded) stop() {
	if e.streams != nil {
		e.zap.closing.Store(true)
		e.streams()
	}
	if e.etcd != nil {
		e.stopEtcd()
	}
	if e.lock != nil {
		e.lock.Close()
	}
}

// stopEtcd returns when the data is safe and the ports are free. etcd's own
// Close would wait, before all else, for every client that has connected and
// not said a word yet.
func (e *Embedded) stopEtcd() {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		e.etcd.Close()
	}()
	select {
	case <-closed:
	case <-time.After(embeddedLinger):
		e.etcd.Server.Stop()
	}
}

// endStreamsWith ends clients' streams with ctx. Watches never end by
// themselves, and a server waits seconds for its streams before it stops.
func endStreamsWith(ctx context.Context) grpc.StreamServerInterceptor {
	return func(server any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
		streamCtx, cancel := context.WithCancel(stream.Context())
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		return handle(server, &endingStream{stream, streamCtx})
	}
}

type endingStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (s *endingStream) Context() context.Context { return s.ctx }

func listenURLs(texts []string) ([]url.URL, error) {
	if len(texts) == 0 {
		texts = []string{"http://127.0.0.1:2379", "http://127.0.0.1:4001"}
	}
	var out []url.URL
	for _, text := range texts {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" {
			return nil, fmt.Errorf("listen address %q: http://ADDRESS:PORT or https://… expected", text)
		}
		if _, _, err := net.SplitHostPort(u.Host); err != nil {
			return nil, fmt.Errorf("listen address %q: http://ADDRESS:PORT or https://… expected", text)
		}
		out = append(out, *u)
	}
	return out, nil
}

// checkTLS says what does not go together. That the files can be read is checked
// here: etcd would start and refuse every client.
func (c *EmbeddedConfig) checkTLS(listen []url.URL) error {
	secure := listen[0].Scheme == "https"
	for _, u := range listen {
		if (u.Scheme == "https") != secure {
			return errors.New("listen addresses with http and with https cannot be mixed")
		}
	}
	switch {
	case !secure && c.CertFile+c.KeyFile+c.ClientCAFile != "":
		return errors.New("there are certificates, but the listen addresses are http://")
	case !secure:
		return nil
	case c.CertFile == "" || c.KeyFile == "":
		return errors.New("listen addresses with https:// need a certificate and its key")
	}
	files := certificateFiles{ca: c.ClientCAFile, cert: c.CertFile, key: c.KeyFile}
	_, err := files.config()
	return err
}

// localEndpoint returns the URL of a listener. One that takes any address is
// reached on loopback.
func localEndpoint(scheme string, a net.Addr) string {
	host, port, err := net.SplitHostPort(a.String())
	if ip := net.ParseIP(host); err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return scheme + "://" + net.JoinHostPort(host, port)
}
