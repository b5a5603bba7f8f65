package control

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"calico-xdp/pkg/control/desired"

	"github.com/google/go-cmp/cmp"
)

func TestSecretFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "secrets")
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	key := desired.SecretKey{Secret: "bgp-secrets", Key: "rack.1"}
	s := NewSecretFiles(dir, []string{"A=b", key.Variable() + "=tea"}, log)
	if diff := cmp.Diff(map[desired.SecretKey]string{{Secret: "CALICO_SECRET_BGP_SECRETS_RACK_1"}: "tea"}, s.Secrets()); diff != "" {
		t.Error(diff)
	}
	write := func(value string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(dir, key.Secret), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, key.Secret, key.Key), []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
		s.look()
	}
	write("coffee\n")
	if got := s.Secrets()[key]; got != "coffee" {
		t.Errorf("got %q", got)
	}
	select {
	case <-s.Changed():
	default:
		t.Error("changed without a signal")
	}
	write("coffee")
	select {
	case <-s.Changed():
		t.Error("a signal without a change")
	default:
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	s.look()
	if _, there := s.Secrets()[key]; there {
		t.Error("still there")
	}
}
