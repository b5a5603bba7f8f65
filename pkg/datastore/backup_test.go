package datastore

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"calico-xdp/tools/testbed"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

func TestBackupAndRestore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	config := EmbeddedConfig{Dir: dir, ListenClients: []string{"http://127.0.0.1:0"}}
	e, _ := startEmbedded(t, config)
	c, _ := open(t, Config{Endpoints: e.Endpoints()})
	for i := range 250 { // more than one page
		must(t)(c.Create(t.Context(), set("set-"+string(rune('a'+i/26))+string(rune('a'+i%26)))))
	}
	must(t)(c.Delete(t.Context(), setKey("set-aa"), ""))
	must(t)(c.Update(t.Context(), set("set-ab", "10.0.0.0/8")))
	file := filepath.Join(t.TempDir(), "backup.db")
	if size, err := c.Backup(t.Context(), file); err != nil || size == 0 {
		t.Fatalf("%d, %v", size, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("backup: %v, %v", info.Mode(), err)
	}
	must(t)(c.Create(t.Context(), set("later")))

	restore := func() error {
		_, err := RestoreEmbedded(t.Context(), config, file, slog.New(slog.DiscardHandler))
		return err
	}
	if err := restore(); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("restored under a running server: %v", err)
	}
	e.Close()
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	e, _ = startEmbedded(t, config)
	c, _ = open(t, Config{Endpoints: e.Endpoints()})
	sets, err := c.List(t.Context(), "GlobalNetworkSet", "")
	if err != nil || len(sets) != 249 {
		t.Errorf("%d objects, %v", len(sets), err)
	}
	if _, err := c.Get(t.Context(), setKey("later")); !errors.Is(err, ErrNotFound) {
		t.Errorf("an object that is younger than the backup: %v", err)
	}
	must(t)(c.Update(t.Context(), set("set-ab")))
	e.Close()
	if kept, err := filepath.Glob(filepath.Join(dir, "etcd.before-restore-*")); err != nil || len(kept) != 1 {
		t.Errorf("what was there: %v, %v", kept, err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), ".restore-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}

	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	for name, content := range map[string][]byte{"damaged": data, "cut short": data[:len(data)/2+1], "empty": nil} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := restore(); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "etcd")); err != nil {
		t.Errorf("a backup that is none took the data away: %v", err)
	}
}

func TestEmbeddedTLS(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	ca := newAuthority(t, "authority")
	ca.write(t, path("ca"))
	ca.issue(t, "etcd", path("server"))
	ca.issue(t, "client", path("client"))
	config := EmbeddedConfig{
		Dir: path("data"), ListenClients: []string{"https://127.0.0.1:0"},
		CertFile: path("server.pem"), KeyFile: path("server.key"), ClientCAFile: path("ca.pem"),
	}
	e, _ := startEmbedded(t, config)
	if len(e.Endpoints()) != 1 || !strings.HasPrefix(e.Endpoints()[0], "https://127.0.0.1:") {
		t.Fatalf("endpoints %v", e.Endpoints())
	}
	client := Config{Endpoints: e.Endpoints(), CAFile: path("ca.pem"), CertFile: path("client.pem"), KeyFile: path("client.key")}
	c, _ := open(t, client)
	must(t)(c.Create(t.Context(), set("a")))
	client.CertFile, client.KeyFile = "", ""
	if stranger, _ := open(t, client); stranger != nil {
		if _, err := stranger.Get(t.Context(), setKey("a")); !errors.Is(err, ErrUnreachable) {
			t.Errorf("a client without certificate: %v", err)
		}
	}
}

// A database that is full takes no writes, says so, and goes on after it was
// given room.
func TestQuota(t *testing.T) {
	e := testbed.StartEtcdWith(t, func(c *embed.Config) { c.QuotaBackendBytes = 1 << 20 })
	c := openEtcd(t, e)
	w := watch(t, c)
	w.synced()
	must(t)(c.Create(t.Context(), set("before")))
	admin, err := clientv3.New(clientv3.Config{Endpoints: []string{e.Endpoint()}})
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	filler := strings.Repeat("x", 100<<10)
	for i := 0; err == nil && i < 300; i++ {
		_, err = admin.Put(t.Context(), "/filler", filler)
		time.Sleep(5 * time.Millisecond) // etcd counts what it has written to the file
	}
	if err == nil {
		t.Fatal("the database is never full")
	}
	for name, do := range map[string]func() error{
		"create": func() error { _, err := c.Create(t.Context(), set("full")); return err },
		"update": func() error { _, err := c.Update(t.Context(), set("before", "10.0.0.0/8")); return err },
	} {
		if err := do(); !errors.Is(err, ErrReadOnly) || !strings.Contains(err.Error(), "quota") {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t)(c.Get(t.Context(), setKey("before")))

	e.Compact()
	if _, err := admin.Defragment(t.Context(), e.Endpoint()); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.AlarmDisarm(t.Context(), &clientv3.AlarmMember{}); err != nil {
		t.Fatal(err)
	}
	must(t)(c.Create(t.Context(), set("after")))
	w.until("after", func() bool { return w.store[setKey("after")] != nil })
	w.reaches(e.Revision())
	w.expect("GlobalNetworkSet(after)", "GlobalNetworkSet(before)")
}
