package datastore

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// DefaultEndpoint is where the datastore is if nothing says otherwise.
const DefaultEndpoint = "http://127.0.0.1:2379"

// Config says where the datastore is and how to get in.
type Config struct {
	// Endpoints are URLs, "https://etcd1:2379". All are http or all https.
	Endpoints []string

	// Files with PEM. They are read again when they change. CAFile may be
	// empty: the system's certificates are trusted then.
	CAFile, CertFile, KeyFile string

	Username, Password string

	// AuditInterval is how often a watcher compares what it has handed out
	// with what the datastore holds. 0 means 10 minutes, less than 0 never.
	AuditInterval time.Duration
}

// ConfigFromEnvironment reads the variables that Calico's components read.
// ETCD_ENDPOINTS, URLs separated by commas, wins over ETCD_AUTHORITY,
// "host:port", whose scheme is ETCD_SCHEME or follows from the certificates.
// ETCD_DISCOVERY_SRV is a domain whose DNS says where the members are.
func ConfigFromEnvironment(lookup func(string) string) (Config, error) {
	get := func(name string) string { return strings.TrimSpace(lookup(name)) }
	c := Config{
		CAFile: get("ETCD_CA_CERT_FILE"), CertFile: get("ETCD_CERT_FILE"), KeyFile: get("ETCD_KEY_FILE"),
		Username: get("ETCD_USERNAME"), Password: lookup("ETCD_PASSWORD"),
	}
	if domain := get("ETCD_DISCOVERY_SRV"); domain != "" {
		if get("ETCD_ENDPOINTS")+get("ETCD_AUTHORITY") != "" {
			return c, errors.New("ETCD_DISCOVERY_SRV: not together with ETCD_ENDPOINTS or ETCD_AUTHORITY")
		}
		var err error
		if c.Endpoints, err = discover(domain, net.LookupSRV); err != nil {
			return c, err
		}
		return c, prefixed("ETCD_DISCOVERY_SRV", c.validate())
	}
	if list := get("ETCD_ENDPOINTS"); list != "" {
		for e := range strings.SplitSeq(list, ",") {
			if e = strings.TrimSpace(e); e != "" {
				c.Endpoints = append(c.Endpoints, e)
			}
		}
		return c, prefixed("ETCD_ENDPOINTS", c.validate())
	}
	if authority := get("ETCD_AUTHORITY"); authority != "" {
		scheme := get("ETCD_SCHEME")
		switch {
		case strings.Contains(authority, "://"):
			return c, fmt.Errorf("ETCD_AUTHORITY: %q: host:port expected, without a scheme", authority)
		case scheme == "" && c.CAFile+c.CertFile != "":
			scheme = "https"
		case scheme == "":
			scheme = "http"
		}
		c.Endpoints = []string{scheme + "://" + authority}
		return c, prefixed("ETCD_AUTHORITY", c.validate())
	}
	c.Endpoints = []string{DefaultEndpoint}
	return c, c.validate()
}

// discover asks DNS for the members of a domain: those with TLS, if there are any.
func discover(domain string, lookup func(service, proto, name string) (string, []*net.SRV, error)) ([]string, error) {
	var errs []error
	for _, kind := range []struct{ service, scheme string }{{"etcd-client-ssl", "https"}, {"etcd-client", "http"}} {
		_, records, err := lookup(kind.service, "tcp", domain)
		errs = append(errs, err)
		var endpoints []string
		for _, r := range records {
			endpoints = append(endpoints, fmt.Sprintf("%s://%s", kind.scheme, net.JoinHostPort(strings.TrimSuffix(r.Target, "."), strconv.Itoa(int(r.Port)))))
		}
		if endpoints != nil {
			return endpoints, nil
		}
	}
	return nil, fmt.Errorf("ETCD_DISCOVERY_SRV: no member of %s: %w", domain, errors.Join(errs...))
}

func prefixed(name string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// validate checks all that can be checked without I/O.
func (c *Config) validate() error {
	if len(c.Endpoints) == 0 {
		return errors.New("no endpoint given")
	}
	var schemes []string
	for _, e := range c.Endpoints {
		u, err := url.Parse(e)
		if err != nil {
			return fmt.Errorf("endpoint %q: not a URL", e)
		}
		host, port, err := net.SplitHostPort(u.Host)
		switch {
		case u.Scheme != "http" && u.Scheme != "https":
			return fmt.Errorf("endpoint %q: http:// or https:// expected", e)
		case err != nil || host == "" || port == "":
			return fmt.Errorf("endpoint %q: host and port expected", e)
		case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil:
			return fmt.Errorf("endpoint %q: nothing but scheme, host and port expected", e)
		case len(schemes) > 0 && schemes[0] != u.Scheme:
			return errors.New("endpoints with http and with https cannot be mixed")
		}
		schemes = append(schemes, u.Scheme)
	}
	switch {
	case (c.CertFile == "") != (c.KeyFile == ""):
		return errors.New("a client certificate needs both its file and its key's file")
	case (c.Username == "") != (c.Password == ""):
		return errors.New("user and password are needed both, or none")
	}
	return nil
}

// secure tells whether the endpoints are https.
func (c *Config) secure() bool { return strings.HasPrefix(c.Endpoints[0], "https:") }
