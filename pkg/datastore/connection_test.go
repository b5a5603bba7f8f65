package datastore

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"calico-xdp/tools/testbed"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

func TestConfigFromEnvironment(t *testing.T) {
	for name, test := range map[string]struct {
		env  map[string]string
		want Config
		fail string
	}{
		"nothing": {want: Config{Endpoints: []string{DefaultEndpoint}}},
		"endpoints": {
			env:  map[string]string{"ETCD_ENDPOINTS": "https://a:2379, https://[fd00::1]:2379,", "ETCD_AUTHORITY": "b:1"},
			want: Config{Endpoints: []string{"https://a:2379", "https://[fd00::1]:2379"}},
		},
		"authority is a name": {
			env:  map[string]string{"ETCD_AUTHORITY": "etcd.service.consul:2379"},
			want: Config{Endpoints: []string{"http://etcd.service.consul:2379"}},
		},
		"authority with certificates": {
			env:  map[string]string{"ETCD_AUTHORITY": "10.0.0.1:4001", "ETCD_CA_CERT_FILE": "/ca", "ETCD_CERT_FILE": "/cert", "ETCD_KEY_FILE": "/key"},
			want: Config{Endpoints: []string{"https://10.0.0.1:4001"}, CAFile: "/ca", CertFile: "/cert", KeyFile: "/key"},
		},
		"authority with scheme beside it": {
			env:  map[string]string{"ETCD_AUTHORITY": "10.0.0.1:4001", "ETCD_SCHEME": "https"},
			want: Config{Endpoints: []string{"https://10.0.0.1:4001"}},
		},
		"user": {
			env:  map[string]string{"ETCD_USERNAME": "u", "ETCD_PASSWORD": " p "},
			want: Config{Endpoints: []string{DefaultEndpoint}, Username: "u", Password: " p "},
		},
		"authority with scheme":   {env: map[string]string{"ETCD_AUTHORITY": "http://a:2379"}, fail: "ETCD_AUTHORITY"},
		"authority without port":  {env: map[string]string{"ETCD_AUTHORITY": "a"}, fail: "host and port"},
		"endpoint without scheme": {env: map[string]string{"ETCD_ENDPOINTS": "a:2379"}, fail: "ETCD_ENDPOINTS"},
		"endpoint without port":   {env: map[string]string{"ETCD_ENDPOINTS": "http://a"}, fail: "host and port"},
		"endpoint with path":      {env: map[string]string{"ETCD_ENDPOINTS": "http://a:1/v2"}, fail: "nothing but"},
		"mixed schemes":           {env: map[string]string{"ETCD_ENDPOINTS": "http://a:1,https://b:1"}, fail: "mixed"},
		"only commas":             {env: map[string]string{"ETCD_ENDPOINTS": ","}, fail: "no endpoint"},
		"certificate without key": {env: map[string]string{"ETCD_CERT_FILE": "/cert"}, fail: "key"},
		"user without a password": {env: map[string]string{"ETCD_USERNAME": "u"}, fail: "password"},
	} {
		got, err := ConfigFromEnvironment(func(name string) string { return test.env[name] })
		switch {
		case test.fail != "":
			if err == nil || !strings.Contains(err.Error(), test.fail) {
				t.Errorf("%s: error %v, want one with %q", name, err, test.fail)
			}
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case strings.Join(got.Endpoints, " ") != strings.Join(test.want.Endpoints, " "):
			t.Errorf("%s: endpoints %v, want %v", name, got.Endpoints, test.want.Endpoints)
		default:
			got.Endpoints, test.want.Endpoints = nil, nil
			if got.CAFile != test.want.CAFile || got.KeyFile != test.want.KeyFile || got.CertFile != test.want.CertFile ||
				got.Username != test.want.Username || got.Password != test.want.Password {
				t.Errorf("%s: %+v, want %+v", name, got, test.want)
			}
		}
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel() // it waits most of the time
	e := testbed.StartEtcd(t)
	refused := e.Endpoint()
	e.Stop()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	var calls sync.WaitGroup
	for name, test := range map[string]struct {
		config Config
		reason string
	}{
		"refused":   {Config{Endpoints: []string{refused}}, "connection refused"},
		"with user": {Config{Endpoints: []string{refused}, Username: "u", Password: "p"}, "connection refused"},
		"silent":    {Config{Endpoints: []string{"http://" + silent.Addr().String()}}, ""},
	} {
		c, _ := open(t, test.config)
		for what, call := range map[string]func() error{
			"Get":    func() error { _, err := c.Get(t.Context(), setKey("a")); return err },
			"Create": func() error { _, err := c.Create(t.Context(), set("a")); return err },
		} {
			calls.Go(func() {
				err := call()
				if !errors.Is(err, ErrUnreachable) || !strings.HasPrefix(err.Error(), "datastore "+test.config.Endpoints[0]+": not reachable: ") ||
					!strings.Contains(err.Error(), test.reason) || strings.Contains(err.Error(), "desc =") {
					t.Errorf("%s, %s: %v", name, what, err)
				}
			})
		}
		w := c.Watch(t.Context())
		if w.Take(); w.InSync() {
			t.Errorf("%s: in sync with nothing", name)
		}
	}
	calls.Wait()
}

func TestCancelledCall(t *testing.T) {
	e := testbed.StartEtcd(t)
	c := openEtcd(t, e)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Get(ctx, setKey("a")); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// Calls made while etcd restarts wait for it.
func TestCallsAcrossRestart(t *testing.T) {
	e := testbed.StartEtcd(t)
	c := openEtcd(t, e)
	must(t)(c.Create(t.Context(), set("a")))
	e.Stop()
	done := make(chan error, 2)
	go func() { _, err := c.Create(t.Context(), set("b")); done <- err }()
	go func() { _, err := c.Get(t.Context(), setKey("a")); done <- err }()
	time.Sleep(200 * time.Millisecond)
	e.Start()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestOneOfTwoEndpointsIsDead(t *testing.T) {
	e, other := testbed.StartEtcd(t), testbed.StartEtcd(t)
	dead := other.Endpoint()
	other.Stop()
	named := strings.Replace(e.Endpoint(), "127.0.0.1", "localhost", 1)
	for _, endpoints := range [][]string{{dead, e.Endpoint()}, {e.Endpoint(), dead}, {named}} {
		c, _ := open(t, Config{Endpoints: endpoints})
		if _, _, err := c.Apply(t.Context(), set("a")); err != nil {
			t.Errorf("%v: %v", endpoints, err)
		}
		w := watch(t, c)
		w.synced()
		w.expect("GlobalNetworkSet(a)")
	}
}

func TestUserAndPassword(t *testing.T) {
	e := testbed.StartEtcd(t)
	admin, err := clientv3.New(clientv3.Config{Endpoints: []string{e.Endpoint()}})
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	ctx := t.Context()
	steps := []error{}
	do := func(_ any, err error) { steps = append(steps, err) }
	do(admin.UserAdd(ctx, "root", "secret"))
	do(admin.UserGrantRole(ctx, "root", "root"))
	do(admin.RoleAdd(ctx, "calico"))
	do(admin.RoleGrantPermission(ctx, "calico", "/calico/", "/calico0", clientv3.PermissionType(clientv3.PermReadWrite)))
	do(admin.UserAdd(ctx, "calico", "pass"))
	do(admin.UserGrantRole(ctx, "calico", "calico"))
	do(admin.UserAdd(ctx, "nobody", "pass"))
	do(admin.AuthEnable(ctx))
	if err := errors.Join(steps...); err != nil {
		t.Fatal(err)
	}

	config := Config{Endpoints: []string{e.Endpoint()}, Username: "calico", Password: "pass"}
	c, _ := open(t, config)
	must(t)(c.Create(ctx, set("a")))
	w := watch(t, c)
	w.synced()
	e.Stop() // forgets the tokens that it gave out
	e.Start()
	must(t)(c.Create(ctx, set("b")))
	w.until("b", func() bool { return w.store[setKey("b")] != nil })

	for _, test := range []struct{ user, password, want string }{
		{"calico", "wrong", `user "calico": wrong name or password`},
		{"nobody", "pass", `user "nobody": permission denied`},
		{"", "", "user and password required"},
	} {
		config.Username, config.Password = test.user, test.password
		c, _ := open(t, config)
		if _, err := c.Get(ctx, setKey("a")); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", test.user, err)
		}
	}
}

func TestTLS(t *testing.T) {
	t.Parallel() // it waits most of the time
	dir := t.TempDir()
	ca := newAuthority(t, "first")
	ca.write(t, filepath.Join(dir, "ca"))
	ca.issue(t, "etcd", filepath.Join(dir, "server"))
	ca.issue(t, "client", filepath.Join(dir, "client"))
	e := testbed.StartEtcdWith(t, func(c *embed.Config) {
		c.ListenClientUrls = []url.URL{{Scheme: "https", Host: c.ListenClientUrls[0].Host}}
		c.ClientTLSInfo.CertFile, c.ClientTLSInfo.KeyFile = filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key")
		c.ClientTLSInfo.TrustedCAFile, c.ClientTLSInfo.ClientCertAuth = filepath.Join(dir, "ca.pem"), true
	})
	config := Config{
		Endpoints: []string{"https://" + e.Address()}, CAFile: filepath.Join(dir, "ca.pem"),
		CertFile: filepath.Join(dir, "client.pem"), KeyFile: filepath.Join(dir, "client.key"),
	}
	c, _ := open(t, config)
	ctx := t.Context()
	must(t)(c.Create(ctx, set("a")))
	w := watch(t, c)
	w.synced()

	// Another authority signs everything, as when certificates are rotated.
	e.Stop()
	ca = newAuthority(t, "second")
	ca.write(t, filepath.Join(dir, "ca"))
	ca.issue(t, "etcd", filepath.Join(dir, "server"))
	ca.issue(t, "client", filepath.Join(dir, "client"))
	e.Start()
	must(t)(c.Create(ctx, set("b")))
	w.until("b", func() bool { return w.store[setKey("b")] != nil })

	// While a file is half written, what was read last serves.
	if err := os.WriteFile(config.CertFile, []byte("-----BEGIN"), 0o600); err != nil {
		t.Fatal(err)
	}
	e.Stop()
	e.Start()
	must(t)(c.Get(ctx, setKey("b")))
	ca.issue(t, "client", filepath.Join(dir, "client"))

	stranger := newAuthority(t, "stranger")
	stranger.write(t, filepath.Join(dir, "stranger"))
	stranger.issue(t, "stranger", filepath.Join(dir, "stranger-client"))
	_, port, _ := net.SplitHostPort(e.Address())
	var calls sync.WaitGroup
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"server not trusted": {func(c *Config) { c.CAFile = filepath.Join(dir, "stranger.pem") }, "unknown authority"},
		"name not certified": {func(c *Config) { c.Endpoints = []string{"https://localhost:" + port} }, "wanted to match localhost"},
		// With TLS 1.3 a server refuses a client after the handshake: why may
		// get lost with the connection.
		"no certificate": {func(c *Config) { c.CertFile, c.KeyFile = "", "" }, ""},
		"client not trusted": {func(c *Config) {
			c.CertFile, c.KeyFile = filepath.Join(dir, "stranger-client.pem"), filepath.Join(dir, "stranger-client.key")
		}, ""},
	} {
		other := config
		test.change(&other)
		c, _ := open(t, other)
		calls.Go(func() {
			_, err := c.Get(t.Context(), setKey("b"))
			if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	calls.Wait()
	for name, change := range map[string]func(*Config){
		"missing CA":       func(c *Config) { c.CAFile = filepath.Join(dir, "none.pem") },
		"CA without PEM":   func(c *Config) { c.CAFile = filepath.Join(dir, "ca.key") },
		"key of other":     func(c *Config) { c.KeyFile = filepath.Join(dir, "server.key") },
		"no such key file": func(c *Config) { c.KeyFile = filepath.Join(dir, "none.key") },
	} {
		other := config
		change(&other)
		if _, err := Open(ctx, other, nil); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// authority signs certificates for loopback.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	a := &authority{}
	a.cert, a.key = sign(t, name, nil)
	return a
}

// write stores the authority's certificate in path.pem, and text in path.key.
func (a *authority) write(t *testing.T, path string) {
	writePEM(t, path+".pem", "CERTIFICATE", a.cert.Raw)
	if err := os.WriteFile(path+".key", []byte("no PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// issue stores a certificate in path.pem and its key in path.key.
func (a *authority) issue(t *testing.T, name, path string) {
	cert, key := sign(t, name, a)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, path+".pem", "CERTIFICATE", cert.Raw)
	writePEM(t, path+".key", "PRIVATE KEY", der)
}

// sign makes a certificate by the authority, or one of an authority.
func sign(t *testing.T, name string, by *authority) (*x509.Certificate, *ecdsa.PrivateKey) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, IsCA: by == nil,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	parent, parentKey := c, key
	if by != nil {
		parent, parentKey = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
