package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/control"
	"calico-xdp/pkg/control/bgp"
	"calico-xdp/pkg/control/dataplane"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/control/host"
	"calico-xdp/pkg/control/nat"
	"calico-xdp/pkg/datastore"
	"calico-xdp/pkg/ipam"
	"calico-xdp/pkg/nodeapi"
	"calico-xdp/pkg/orchestrator/kubernetes"
	"calico-xdp/pkg/policy"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// run is the daemon. It returns when ctx ends, and leaves traffic running.
func run(ctx context.Context, c *config) error {
	log, file := newLogger(c)
	defer file.Close()
	err := runLogged(ctx, c, log)
	if err != nil {
		log.Error("calico-node ends", "error", err)
	} else {
		log.Info("calico-node stops; traffic goes on")
	}
	return err
}

func runLogged(ctx context.Context, c *config, log *slog.Logger) (err error) {
	started := time.Now()
	unlock, err := lockPins(c.pinDir)
	if err != nil {
		return err
	}
	defer unlock()
	node := c.environment.Node
	log.Info("calico-node starts", "version", buildVersion(), "node", node, "datastore", c.datastore)

	// Health answers from the first moment on, so that whoever watches the daemon
	// sees what it waits for.
	var ready, alive check
	ready.set(func() error { return errors.New("starting") })
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	servers := control.NewServers(metricsHandler(registry), control.HealthHandler(alive.do, ready.do), log)
	defer servers.Close()
	servers.Set(desired.Compute(desired.Input{Node: node, Config: c.environment.Config}).Servers)

	network, err := host.New(host.Options{IgnoreLooseRPF: c.ignoreLooseRPF()}, log)
	if err != nil {
		return fmt.Errorf("host: %w", err)
	}
	defer func() { err = errors.Join(err, network.Close()) }()

	client, err := openDatastore(ctx, c, log)
	if err != nil {
		return err
	}
	defer client.Close()
	c.environment.Config.Datastore = c.etcd.Endpoints
	if client.embedded != nil {
		c.environment.Config.DatastoreListen = c.etcdListen
	}

	startup := &control.Startup{Environment: c.environment, Store: client, Host: network, Version: buildVersion(), Logger: log}
	var addresses []nodeapi.Address
	err = patiently(ctx, log, "start-up", func(ctx context.Context) error {
		addresses, err = startup.Run(ctx)
		return err
	})
	if err != nil {
		return err
	}
	if err := writeNodename(c.nodenameFile, node); err != nil {
		return err
	}

	before, _ := filepath.Glob(filepath.Join(c.pinDir, "*")) // of an earlier daemon
	plane, err := dataplane.New(dataplane.Options{PinDir: c.pinDir, XDP: c.xdp, Clsact: c.clsact}, log)
	if err != nil {
		return fmt.Errorf("dataplane: %w", err)
	}
	defer func() { err = errors.Join(err, plane.Close()) }()
	translator, err := nat.New(log)
	if err != nil {
		return err
	}
	speaker := bgp.New(bgp.Options{FirstStart: len(before) == 0}, log)
	defer func() { err = errors.Join(err, speaker.Close()) }()

	allocator := ipam.New(client)
	keeper := control.NewKeeper(startup, &control.Tunnels{Node: node, Store: client, Allocator: allocator}, addresses, log)
	collector := ipam.NewCollector(allocator, node, log)
	watcher := client.Watch(ctx)
	secrets := control.NewSecretFiles(c.environment.SecretsDir, os.Environ(), log)
	cluster, kube := followKubernetes(c.environment, log)
	mtu := &mtuFile{path: c.mtuFile(), log: log}
	var reporter *control.Reporter // before the first round
	var answers *control.Answers   // likewise
	var operations *control.Operations
	controller := control.New(control.Options{
		Node: node, Config: c.environment.Config,
		Datastore: control.NewTrials(ctx, watcher, log), Policy: policy.NewCompiler(node), Links: network, Learner: speaker, Secrets: secrets, Kubernetes: cluster,
		Sinks: []control.NamedSink{
			{Name: "nat", Sink: translator}, {Name: "dataplane", Sink: plane, Vital: true}, {Name: "host", Sink: network}, {Name: "bgp", Sink: speaker},
		},
		Observe: func(changes []api.Change, want *desired.State) {
			keeper.Observe(changes)
			collector.Observe(changes)
			reporter.Observe(changes)
			operations.Observe(changes)
			servers.Set(want.Servers)
			c.setLevel(want.LogLevel) // checked before the start
			mtu.write(want.WorkloadMTU)
			answers.Observe(changes, want)
			if kube != nil {
				kube.Follow(want.BGP.Services, want.BGP.Secrets)
			}
		},
		Logger: log,
	})
	answers = control.NewAnswers(node, controller.Ask, plane, log)
	defer answers.Close()
	registry.MustRegister(watcher, controller, plane, network.Collector(), translator.Collector(), speaker.Collector())
	ready.set(controller.Ready)
	alive.set(controller.Alive)

	self := &control.Node{
		Published: controller.Published,
		Answers:   answers,
		Self: nodeapi.Status{
			Node: node, Version: buildVersion(), PID: os.Getpid(), Started: started,
			Backend: c.environment.Config.Backend, Datastore: c.etcd.Endpoints,
		},
		Addresses: keeper.Addresses,
		Speaker:   speaker,
	}
	reporter = control.NewReporter(self, client, log)
	operations = control.NewOperations(node, controller.Published, client, log)
	stopAPI, err := serveAPI(c, self, log)
	if err != nil {
		return err
	}
	defer stopAPI()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go client.watchEmbedded(cancel)
	var kept sync.WaitGroup
	kept.Go(func() { keeper.Run(ctx) })
	kept.Go(func() { collector.Run(ctx) })
	kept.Go(func() { secrets.Run(ctx) })
	if kube != nil {
		kept.Go(func() { kube.Run(ctx) })
	}
	kept.Go(func() { reporter.Run(ctx) })
	kept.Go(func() { operations.Run(ctx) })
	defer kept.Wait()
	controller.Run(ctx)
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// followKubernetes returns nil, twice, where there is no Kubernetes.
func followKubernetes(e *control.Environment, log *slog.Logger) (control.Kubernetes, *kubernetes.Watcher) {
	if !e.Kubernetes {
		return nil, nil
	}
	w := kubernetes.New(kubernetes.Options{
		Node: cmp.Or(e.K8sNode, e.Node), Namespace: e.Namespace, Connect: kubernetes.Connect,
	}, log)
	return w, w
}

// openDatastore connects to etcd, after starting one where it is to be inside
// the daemon. It fills in where that is.
func openDatastore(ctx context.Context, c *config, log *slog.Logger) (*store, error) {
	s := new(store)
	if c.datastore == "embedded" {
		etcd, err := datastore.StartEmbedded(datastore.EmbeddedConfig{
			Dir: c.dataDir, ListenClients: c.etcdListen, Name: c.environment.Node,
			CertFile: c.etcdCert, KeyFile: c.etcdKey, ClientCAFile: c.etcdClientCA,
		}, log)
		if err != nil {
			return nil, fmt.Errorf("embedded etcd: %w", err)
		}
		s.embedded = etcd
		c.etcd.Endpoints = etcd.Endpoints()
	}
	var err error
	if s.Client, err = datastore.Open(ctx, c.etcd, log); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// restore puts a backup in the place of the embedded etcd's data.
func restore(ctx context.Context, c *config, out io.Writer) error {
	config := datastore.EmbeddedConfig{Dir: c.dataDir}
	n, err := datastore.RestoreEmbedded(ctx, config, c.restore, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "restored %d keys into %s; what was there is beside it\n", n, c.dataDir)
	return err
}

// store is the datastore's client and, where it is inside, the datastore.
type store struct {
	*datastore.Client
	embedded *datastore.Embedded
}

// watchEmbedded ends the daemon when the etcd inside it fails: whoever supervises
// the daemon starts both again.
func (s *store) watchEmbedded(end func(error)) {
	if s.embedded != nil {
		if err, failed := <-s.embedded.Failed(); failed {
			end(fmt.Errorf("embedded etcd: %w", err))
		}
	}
}

func (s *store) Close() {
	if s.Client != nil {
		s.Client.Close()
	}
	if s.embedded != nil {
		s.embedded.Close()
	}
}

// patiently repeats what depends on others until it is done. A reason for
// waiting is logged once, not at each attempt.
func patiently(ctx context.Context, log *slog.Logger, what string, f func(context.Context) error) error {
	said := ""
	for delay := 250 * time.Millisecond; ; delay = min(2*delay, 10*time.Second) {
		attempt, cancel := context.WithTimeout(ctx, 30*time.Second)
		err := f(attempt)
		cancel()
		if err == nil {
			if said != "" {
				log.Info(what + " done")
			}
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err.Error() != said {
			said = err.Error()
			log.Warn(what+" is not possible yet; will keep trying", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(delay):
		}
	}
}

// check is a health check that others may replace.
type check struct{ f atomic.Pointer[func() error] }

func (c *check) set(f func() error) { c.f.Store(&f) }

func (c *check) do() error {
	if f := c.f.Load(); f != nil {
		return (*f)()
	}
	return nil
}

func metricsHandler(r *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{}))
	return mux
}

// serveAPI listens on the daemon's socket.
func serveAPI(c *config, n nodeapi.Node, log *slog.Logger) (stop func(), err error) {
	if err := os.MkdirAll(c.runDir, 0o755); err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	// The lock on the pin directory says that no other daemon is there; what
	// remains is a dead one's. Two daemons may share a run directory by mistake:
	// that must not take the socket from the one that lives.
	if conn, err := net.Dial("unix", c.socket()); err == nil {
		conn.Close()
		return nil, fmt.Errorf("run directory %s: another calico-node uses it", c.runDir)
	}
	if err := os.Remove(c.socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	socket, err := net.Listen("unix", c.socket())
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(c.socket(), 0o600); err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	server := &http.Server{Handler: nodeapi.Handler(n), ReadHeaderTimeout: 10 * time.Second}
	go func() {
		if err := server.Serve(socket); !errors.Is(err, http.ErrServerClosed) {
			log.Error("socket", "error", err)
		}
	}()
	return func() { server.Close() }, nil
}

// mtuFile is where others than our CNI plugin, which asks the daemon, learn the MTU for
// new workloads: the number alone, as Calico's node writes it.
type mtuFile struct {
	path    string // empty: nowhere
	log     *slog.Logger
	written int
}

// write is called with each round's MTU, bytes.
func (f *mtuFile) write(mtu int) {
	if f.path == "" || mtu == f.written {
		return
	}
	f.written = mtu // or complained about
	if err := os.WriteFile(f.path, []byte(strconv.Itoa(mtu)), 0o644); err != nil {
		f.log.Warn("the workloads' MTU is not written down", "error", err)
	}
}

func writeNodename(path, name string) error {
	if path == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("node's name: %w", err)
	}
	if err := os.WriteFile(path, []byte(name), 0o644); err != nil {
		return fmt.Errorf("node's name: %w", err)
	}
	return nil
}
