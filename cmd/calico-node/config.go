package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"calico-xdp/pkg/control"
	"calico-xdp/pkg/control/desired"
	"calico-xdp/pkg/datastore"
	"calico-xdp/pkg/nodeapi"
)

// config is flags and environment.
type config struct {
	datastore    string
	dataDir      string
	etcdListen   []string
	etcdCert     string
	etcdKey      string
	etcdClientCA string
	restore      string
	runDir       string
	pinDir       string
	logDir       string
	logFormat    string
	logLevel     string
	nodenameFile string
	felixFile    string
	xdp, clsact  bool
	detach       bool

	environment *control.Environment
	etcd        datastore.Config
	level       slog.LevelVar
}

// complete reads the environment and checks everything.
func (c *config) complete(environ []string) error {
	vars := make(map[string]string)
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		vars[name] = value
	}
	lookup := func(name string) string { return vars[name] }
	var errs []error

	hostname, err := os.Hostname()
	errs = append(errs, err)
	c.environment, err = control.ReadEnvironment(environ, hostname)
	errs = append(errs, err)
	felix := &c.environment.Config
	felix.FelixFile, err = readFelixFile(c.felixFile)
	errs = append(errs, err)
	if vars["ETCD_ENDPOINTS"]+vars["ETCD_AUTHORITY"]+vars["ETCD_DISCOVERY_SRV"] == "" {
		for name, value := range felixEtcd(felix.Felix, felix.FelixFile) {
			vars[name] = cmp.Or(vars[name], value)
		}
	}

	switch c.datastore {
	case "":
		c.datastore = "embedded"
		if vars["ETCD_ENDPOINTS"] != "" || vars["ETCD_AUTHORITY"] != "" {
			c.datastore = "etcd"
		}
	case "embedded", "etcd":
	default:
		errs = append(errs, fmt.Errorf("--datastore %q: want embedded or etcd", c.datastore))
	}
	switch c.datastore {
	case "etcd":
		c.etcd, err = datastore.ConfigFromEnvironment(lookup)
		errs = append(errs, err)
	case "embedded":
		// With what the daemon itself goes to its etcd, if that wants TLS.
		c.etcd.CAFile, c.etcd.CertFile, c.etcd.KeyFile = vars["ETCD_CA_CERT_FILE"], vars["ETCD_CERT_FILE"], vars["ETCD_KEY_FILE"]
	}
	if c.restore != "" && c.datastore != "embedded" {
		errs = append(errs, errors.New("--restore is for the embedded etcd; for another one there is 'etcdutl snapshot restore'"))
	}

	if strings.EqualFold(vars["CALICO_DISABLE_FILE_LOGGING"], "true") {
		c.logDir = ""
	}
	if c.logFormat != "text" && c.logFormat != "json" {
		errs = append(errs, fmt.Errorf("--log-format %q: want text or json", c.logFormat))
	}
	errs = append(errs, c.setLevel(desired.Compute(desired.Input{Node: c.environment.Node, Config: c.environment.Config}).LogLevel))
	for _, dir := range []struct {
		flag string
		path *string
	}{{"--run-dir", &c.runDir}, {"--pin-dir", &c.pinDir}, {"--data-dir", &c.dataDir}} {
		if *dir.path == "" {
			errs = append(errs, fmt.Errorf("%s is empty", dir.flag))
		} else if *dir.path, err = filepath.Abs(*dir.path); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// setLevel sets what is logged: the flag's word, else what FelixConfiguration says.
func (c *config) setLevel(felix slog.Level) error {
	if c.logLevel == "" {
		c.level.Set(felix)
		return nil
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.logLevel)); err != nil {
		return fmt.Errorf("--log-level %q: want debug, info, warn or error", c.logLevel)
	}
	c.level.Set(level)
	return nil
}

func (c *config) socket() string { return nodeapi.SocketPath(c.runDir) }

// ignoreLooseRPF is Felix's IgnoreLooseRPF. It is needed before the datastore
// is, so only the environment and Felix's file have it.
func (c *config) ignoreLooseRPF() bool {
	felix := &c.environment.Config
	ignore, err := strconv.ParseBool(cmp.Or(felix.Felix["ignorelooserpf"], felix.FelixFile["ignorelooserpf"]))
	return err == nil && ignore
}

// mtuFile is where the MTU of workloads is written, beside the node's name.
func (c *config) mtuFile() string {
	if c.nodenameFile == "" {
		return ""
	}
	return filepath.Join(filepath.Dir(c.nodenameFile), "mtu")
}
