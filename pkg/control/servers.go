package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strconv"
	"sync"
	"time"

	"calico-xdp/pkg/control/desired"
)

// Servers are the daemon's own HTTP listeners, kept as FelixConfiguration says.
// A port that is taken is a warning, not the node's end: Set tries again.
type Servers struct {
	logger                 *slog.Logger
	metrics, health, debug *listener
}

// NewServers returns servers that do not listen yet.
func NewServers(metrics, health http.Handler, logger *slog.Logger) *Servers {
	return &Servers{
		logger:  logger,
		metrics: &listener{name: "metrics", handler: metrics},
		health:  &listener{name: "health", handler: health},
		debug:   &listener{name: "debug", handler: debugHandler()},
	}
}

// Set listens where it is wanted and nowhere else.
func (s *Servers) Set(want desired.Servers) {
	s.metrics.set(want.Metrics, s.logger)
	s.health.set(want.Health, s.logger)
	s.debug.set(want.Debug, s.logger)
}

// Addresses returns where the two listen; empty where they do not.
func (s *Servers) Addresses() (metrics, health string) {
	return s.metrics.address(), s.health.address()
}

// Close stops listening.
func (s *Servers) Close() { s.Set(desired.Servers{}) }

type listener struct {
	name    string
	handler http.Handler

	mu     sync.Mutex
	want   desired.Server
	server *http.Server // nil: not listening
	at     string
	failed string // the last error, logged once
}

func (l *listener) address() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.at
}

func (l *listener) set(want desired.Server, logger *slog.Logger) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if want == l.want && (l.server != nil || !want.Enabled) {
		return
	}
	if l.server != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		l.server.Shutdown(ctx)
		cancel()
		l.server, l.at = nil, ""
	}
	l.want = want
	if !want.Enabled {
		return
	}
	host := want.Host
	if host == "localhost" {
		host = "127.0.0.1" // a host without resolver has it too
	}
	address := net.JoinHostPort(host, strconv.Itoa(want.Port))
	socket, err := net.Listen("tcp", address)
	if err != nil {
		if text := err.Error(); text != l.failed {
			l.failed = text
			logger.Warn("cannot listen; will try again", "server", l.name, "address", address, "error", err)
		}
		return
	}
	l.failed, l.at = "", socket.Addr().String()
	server := &http.Server{Handler: l.handler, ReadHeaderTimeout: 10 * time.Second}
	l.server = server
	logger.Info("listening", "server", l.name, "address", l.at)
	go func() {
		if err := server.Serve(socket); !errors.Is(err, http.ErrServerClosed) {
			logger.Error("server stopped", "server", l.name, "error", err)
		}
	}()
}

// debugHandler serves profiles of the daemon, where Go's pprof looks for them.
func debugHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// HealthHandler answers /liveness and /readiness: 200, or 503 with the reason.
func HealthHandler(alive, ready func() error) http.Handler {
	mux := http.NewServeMux()
	for path, check := range map[string]func() error{"/liveness": alive, "/readiness": ready} {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			if err := check(); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			fmt.Fprintln(w, "ok")
		})
	}
	return mux
}
