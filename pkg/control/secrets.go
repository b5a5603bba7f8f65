package control

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"calico-xdp/pkg/control/desired"
)

// DefaultSecretsDir is where passwords are looked for unless told otherwise.
const DefaultSecretsDir = "/etc/calico/secrets"

// secretsPeriod is how often the directory is looked through.
const secretsPeriod = 5 * time.Second

// maxSecret is the size of the largest file that is read, bytes.
const maxSecret = 4096

// SecretFiles takes the place of Kubernetes' Secrets: the value of a key is the file
// <directory>/<secret>/<key>, as where a Secret is mounted, without the newline at
// its end, or else the environment variable that desired.SecretKey.Variable names.
type SecretFiles struct {
	dir         string
	environment map[desired.SecretKey]string
	log         *slog.Logger
	changed     chan struct{}

	mu     sync.Mutex
	values map[desired.SecretKey]string
	failed string // what could not be read, as logged last
}

// NewSecretFiles reads what is there. environ is in the form of os.Environ.
func NewSecretFiles(dir string, environ []string, log *slog.Logger) *SecretFiles {
	s := &SecretFiles{dir: dir, log: log, environment: make(map[desired.SecretKey]string), changed: make(chan struct{}, 1)}
	for _, kv := range environ {
		if name, value, _ := strings.Cut(kv, "="); strings.HasPrefix(name, desired.SecretVariablePrefix) {
			s.environment[desired.SecretKey{Secret: name}] = value
		}
	}
	s.values = s.read()
	return s
}

// Run looks for changes until ctx ends.
func (s *SecretFiles) Run(ctx context.Context) {
	tick := time.NewTicker(secretsPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.look()
		}
	}
}

func (s *SecretFiles) look() {
	now := s.read()
	s.mu.Lock()
	same := maps.Equal(now, s.values)
	s.values = now
	s.mu.Unlock()
	if same {
		return
	}
	s.log.Info("secrets changed", "directory", s.dir)
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// Changed receives when Secrets has changed.
func (s *SecretFiles) Changed() <-chan struct{} { return s.changed }

// Secrets returns all values. It is not to be changed.
func (s *SecretFiles) Secrets() map[desired.SecretKey]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.values
}

func (s *SecretFiles) read() map[desired.SecretKey]string {
	found := maps.Clone(s.environment)
	secrets, err := os.ReadDir(s.dir)
	errs := []error{err}
	for _, secret := range secrets {
		keys, err := os.ReadDir(filepath.Join(s.dir, secret.Name()))
		errs = append(errs, err)
		for _, key := range keys {
			if strings.HasPrefix(key.Name(), ".") {
				continue // Kubernetes' own, behind its links
			}
			path := filepath.Join(s.dir, secret.Name(), key.Name())
			info, err := os.Stat(path)
			if err == nil && (!info.Mode().IsRegular() || info.Size() > maxSecret) {
				continue
			}
			data, err := os.ReadFile(path)
			if errs = append(errs, err); err == nil {
				found[desired.SecretKey{Secret: secret.Name(), Key: key.Name()}] = strings.TrimRight(string(data), "\r\n")
			}
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		errs = nil // nobody has put any there
	}
	text := ""
	if err := errors.Join(errs...); err != nil {
		text = err.Error()
	}
	if text != s.failed && text != "" {
		s.log.Warn("secrets cannot all be read", "error", text)
	}
	s.failed = text
	return found
}
