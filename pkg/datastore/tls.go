package datastore

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// reloadingTLS makes each connection with the certificates that are in the
// files at that time, so that new ones need no restart.
type reloadingTLS struct {
	credentials.TransportCredentials // all but the handshake

	files certificateFiles
}

// newReloadingTLS reads the files once, so that a wrong path is told at once.
func newReloadingTLS(c Config) (*reloadingTLS, error) {
	t := &reloadingTLS{
		TransportCredentials: credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12}),
		files:                certificateFiles{ca: c.CAFile, cert: c.CertFile, key: c.KeyFile},
	}
	_, err := t.files.config()
	return t, err
}

// ClientHandshake implements credentials.TransportCredentials.
func (t *reloadingTLS) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	config, err := t.files.config()
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(config).ClientHandshake(ctx, authority, raw)
}

// Clone implements credentials.TransportCredentials. The files and what was
// read of them are shared.
func (t *reloadingTLS) Clone() credentials.TransportCredentials { return t }

type certificateFiles struct {
	ca, cert, key string

	mu   sync.Mutex
	read [3]fileState // as of when last was made
	last *tls.Config
}

type fileState struct {
	size    int64
	changed time.Time
}

// config returns the configuration as the files have it. A file that is being
// replaced may not be readable or not fit the other for a moment: what was read
// last is used as long as that is so.
func (f *certificateFiles) config() (*tls.Config, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, err := f.states()
	if err == nil && f.last != nil && now == f.read {
		return f.last, nil
	}
	var c *tls.Config
	if err == nil {
		c, err = f.load()
	}
	if err != nil {
		if f.last != nil {
			return f.last, nil
		}
		return nil, err
	}
	f.last, f.read = c, now
	return c, nil
}

func (f *certificateFiles) states() (states [3]fileState, err error) {
	for i, path := range []string{f.ca, f.cert, f.key} {
		if path == "" {
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			return states, err
		}
		states[i] = fileState{info.Size(), info.ModTime()}
	}
	return states, nil
}

func (f *certificateFiles) load() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.ca != "" {
		pem, err := os.ReadFile(f.ca)
		if err != nil {
			return nil, err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: no certificate in it", f.ca)
		}
	}
	if f.cert != "" {
		pair, err := tls.LoadX509KeyPair(f.cert, f.key)
		if err != nil {
			return nil, fmt.Errorf("client certificate %s: %w", f.cert, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}
