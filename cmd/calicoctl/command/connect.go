package command

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"calico-xdp/pkg/api"
	"calico-xdp/pkg/datastore"

	"sigs.k8s.io/yaml"
)

const defaultConfigFile = "/etc/calico/calicoctl.cfg"

// apiConfig is Calico's configuration file of clients.
type apiConfig struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Metadata   map[string]any `json:"metadata"`
	Spec       struct {
		DatastoreType  string `json:"datastoreType"`
		EtcdEndpoints  string `json:"etcdEndpoints"`
		EtcdAuthority  string `json:"etcdAuthority"`
		EtcdDiscovery  string `json:"etcdDiscoverySrv"`
		EtcdScheme     string `json:"etcdScheme"`
		EtcdUsername   string `json:"etcdUsername"`
		EtcdPassword   string `json:"etcdPassword"`
		EtcdKeyFile    string `json:"etcdKeyFile"`
		EtcdCertFile   string `json:"etcdCertFile"`
		EtcdCACertFile string `json:"etcdCACertFile"`
	} `json:"spec"`
}

// datastoreConfig joins the environment and the configuration file. Each
// setting of the environment wins over the file's.
func (a *app) datastoreConfig() (datastore.Config, error) {
	file, err := a.readConfigFile()
	if err != nil {
		return datastore.Config{}, err
	}
	env := func(name string) string {
		if v := a.Env("CALICO_" + name); v != "" {
			return v
		}
		return a.Env(name)
	}
	endpointsFromEnv := env("ETCD_ENDPOINTS") != "" || env("ETCD_AUTHORITY") != "" || env("ETCD_DISCOVERY_SRV") != ""
	lookup := func(name string) string {
		if v := env(name); v != "" {
			return v
		}
		switch name {
		case "ETCD_ENDPOINTS", "ETCD_AUTHORITY", "ETCD_DISCOVERY_SRV":
			if endpointsFromEnv {
				return "" // one place says where etcd is, not half each
			}
		}
		return file[name]
	}
	if t := lookup("DATASTORE_TYPE"); t != "" && !strings.EqualFold(t, "etcdv3") {
		return datastore.Config{}, fmt.Errorf("datastore type %q is not supported: resources live in etcd (etcdv3)", t)
	}
	return datastore.ConfigFromEnvironment(lookup)
}

// readConfigFile returns the file's settings by the names of the environment.
func (a *app) readConfigFile() (map[string]string, error) {
	data, err := os.ReadFile(a.configFile)
	if errors.Is(err, fs.ErrNotExist) && !a.configSet {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	var c apiConfig
	if err := yaml.UnmarshalStrict(data, &c); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", a.configFile, err)
	}
	if c.Kind != "" && c.Kind != "CalicoAPIConfig" {
		return nil, fmt.Errorf("configuration %s: kind: %q is not CalicoAPIConfig", a.configFile, c.Kind)
	}
	if c.APIVersion != "" && c.APIVersion != api.GroupVersion {
		return nil, fmt.Errorf("configuration %s: apiVersion: %q is not %s", a.configFile, c.APIVersion, api.GroupVersion)
	}
	return map[string]string{
		"DATASTORE_TYPE":     c.Spec.DatastoreType,
		"ETCD_ENDPOINTS":     c.Spec.EtcdEndpoints,
		"ETCD_AUTHORITY":     c.Spec.EtcdAuthority,
		"ETCD_DISCOVERY_SRV": c.Spec.EtcdDiscovery,
		"ETCD_SCHEME":        c.Spec.EtcdScheme,
		"ETCD_USERNAME":      c.Spec.EtcdUsername,
		"ETCD_PASSWORD":      c.Spec.EtcdPassword,
		"ETCD_KEY_FILE":      c.Spec.EtcdKeyFile,
		"ETCD_CERT_FILE":     c.Spec.EtcdCertFile,
		"ETCD_CA_CERT_FILE":  c.Spec.EtcdCACertFile,
	}, nil
}

// open connects to the datastore, with the first request. The caller closes it.
func (a *app) open(ctx context.Context) (store, error) {
	config, err := a.datastoreConfig()
	if err != nil {
		return store{}, err
	}
	log, err := a.logger()
	if err != nil {
		return store{}, err
	}
	client, err := datastore.Open(ctx, config, log)
	return store{Client: client}, err
}

// explain says what went wrong with one object in Calico's words.
func explain(key api.Key, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, datastore.ErrNotFound):
		return fmt.Errorf("resource does not exist: %s", key)
	case errors.Is(err, datastore.ErrExists):
		return fmt.Errorf("resource already exists: %s", key)
	case errors.Is(err, datastore.ErrConflict):
		return fmt.Errorf("update conflict: %s was changed by someone else; read it again, or leave metadata.resourceVersion out", key)
	}
	return err
}
