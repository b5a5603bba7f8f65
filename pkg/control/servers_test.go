package control

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"

	"calico-xdp/pkg/control/desired"
)

// freePort returns a port of loopback that nobody listens on, and keeps it taken
// until release is called.
func freePort(t *testing.T) (port int, release func()) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().(*net.TCPAddr).Port, func() { l.Close() }
}

func TestServers(t *testing.T) {
	var sick error
	s := NewServers(http.NotFoundHandler(), HealthHandler(func() error { return nil }, func() error { return sick }),
		slog.New(slog.NewTextHandler(io.Discard, nil)))
	t.Cleanup(s.Close)
	get := func(path string) int {
		t.Helper()
		_, health := s.Addresses()
		r, err := http.Get("http://" + health + path)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		return r.StatusCode
	}

	port, release := freePort(t)
	want := desired.Servers{Health: desired.Server{Enabled: true, Host: "127.0.0.1", Port: port}}
	s.Set(want)
	if _, health := s.Addresses(); health != "" {
		t.Fatal("listens on a port that is taken")
	}
	release()
	s.Set(want) // the next round tries again
	if code := get("/liveness"); code != http.StatusOK {
		t.Errorf("liveness %d", code)
	}
	if code := get("/readiness"); code != http.StatusOK {
		t.Errorf("readiness %d", code)
	}
	sick = errors.New("sick")
	if code := get("/readiness"); code != http.StatusServiceUnavailable {
		t.Errorf("readiness %d", code)
	}

	other, release := freePort(t)
	release()
	want.Health.Port = other
	s.Set(want)
	if code := get("/liveness"); code != http.StatusOK {
		t.Errorf("after moving: liveness %d", code)
	}
	want.Health.Enabled = false
	s.Set(want)
	if metrics, health := s.Addresses(); metrics != "" || health != "" {
		t.Errorf("listens on %q and %q", metrics, health)
	}

	want.Debug = desired.Server{Enabled: true, Host: "127.0.0.1", Port: other}
	s.Set(want)
	r, err := http.Get("http://" + s.debug.address() + "/debug/pprof/heap?debug=1")
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != http.StatusOK {
		t.Errorf("heap profile %d", r.StatusCode)
	}
}
