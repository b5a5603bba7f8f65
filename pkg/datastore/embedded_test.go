package datastore

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func startEmbedded(t *testing.T, config EmbeddedConfig) (*Embedded, *logBuffer) {
	t.Helper()
	logs := &logBuffer{}
	e, err := StartEmbedded(config, slog.New(slog.NewTextHandler(logs, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e, logs
}

func TestEmbedded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	config := EmbeddedConfig{Dir: dir, ListenClients: []string{"http://127.0.0.1:0", "http://127.0.0.2:0"}}
	start := time.Now()
	e, logs := startEmbedded(t, config)
	t.Log("ready after", time.Since(start))
	if len(e.Endpoints()) != 2 {
		t.Fatalf("endpoints: %v", e.Endpoints())
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", info.Mode(), err)
	}
	for i, endpoint := range e.Endpoints() {
		c, _ := open(t, Config{Endpoints: []string{endpoint}})
		must(t)(c.Create(t.Context(), set("set-"+string(rune('a'+i)))))
		w := watch(t, c) // open streams must not hold up Close
		w.synced()
	}

	idle, err := net.Dial("tcp", strings.TrimPrefix(e.Endpoints()[0], "http://")) // nor must this one
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()

	_, err = StartEmbedded(config, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("second server on the same directory: %v", err)
	}
	other, _ := startEmbedded(t, EmbeddedConfig{Dir: filepath.Join(t.TempDir(), "other"), ListenClients: []string{"http://127.0.0.1:0"}})
	other.Close()

	start = time.Now()
	e.Close()
	t.Log("closed after", time.Since(start))
	if err := os.Chmod(dir, 0o755); err != nil { // as an older release or a backup left it
		t.Fatal(err)
	}
	e, more := startEmbedded(t, config)
	c, _ := open(t, Config{Endpoints: e.Endpoints()})
	must(t)(c.Get(t.Context(), setKey("set-a")))
	must(t)(c.Get(t.Context(), setKey("set-b")))
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", info.Mode(), err)
	}
	if text := logs.String() + more.String(); text != "" {
		t.Errorf("a healthy server complains:\n%s", text)
	}
}

func TestEmbeddedListensOnTheSeedsPorts(t *testing.T) {
	urls, err := listenURLs(nil)
	if err != nil || len(urls) != 2 || urls[0].String() != "http://127.0.0.1:2379" || urls[1].String() != "http://127.0.0.1:4001" {
		t.Errorf("%v, %v", urls, err)
	}
	any := &net.TCPAddr{IP: net.IPv6unspecified, Port: 2379}
	if s := localEndpoint("http", any); s != "http://127.0.0.1:2379" {
		t.Errorf("any address is reached at %s", s)
	}
	if s := localEndpoint("http", &net.TCPAddr{IP: net.ParseIP("fd00::1"), Port: 1}); s != "http://[fd00::1]:1" {
		t.Errorf("IPv6 address is reached at %s", s)
	}
}

func TestEmbeddedStartFails(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dir := t.TempDir()
	for _, test := range []struct {
		config EmbeddedConfig
		want   string
	}{
		{EmbeddedConfig{}, "no data directory"},
		{EmbeddedConfig{Dir: dir, ListenClients: []string{"http://" + taken.Addr().String()}}, "address already in use"},
		{EmbeddedConfig{Dir: dir, ListenClients: []string{"https://127.0.0.1:0"}}, "need a certificate"},
		{EmbeddedConfig{Dir: dir, ListenClients: []string{"https://127.0.0.1:0", "http://127.0.0.1:0"}}, "cannot be mixed"},
		{EmbeddedConfig{Dir: dir, ListenClients: []string{"http://127.0.0.1:0"}, CertFile: "/c"}, "are http://"},
		{EmbeddedConfig{Dir: dir, ListenClients: []string{"https://127.0.0.1:0"}, CertFile: "/none/c", KeyFile: "/none/k"}, "/none/c"},
		{EmbeddedConfig{Dir: dir, ListenClients: []string{"ftp://127.0.0.1:0"}}, "ftp://127.0.0.1:0"},
		{EmbeddedConfig{Dir: dir, ListenClients: []string{"127.0.0.1:2379"}}, "http://ADDRESS:PORT"},
		{EmbeddedConfig{Dir: dir, ListenClients: []string{"http://127.0.0.1"}}, "http://ADDRESS:PORT"},
		{EmbeddedConfig{Dir: "/dev/null/data"}, "not a directory"},
	} {
		e, err := StartEmbedded(test.config, slog.New(slog.DiscardHandler))
		if err == nil {
			e.Close()
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v, want %q", test.config, err, test.want)
		}
	}
	// What failed left the directory free.
	startEmbedded(t, EmbeddedConfig{Dir: dir, ListenClients: []string{"http://127.0.0.1:0"}})
}
