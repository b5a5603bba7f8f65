package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"calico-xdp/pkg/datastore"

	"github.com/containernetworking/cni/pkg/types"
)

// netConf is a network's configuration, with the fields that Calico's plugin
// has and that mean something here.
type netConf struct {
	types.NetConf

	EtcdEndpoints  string `json:"etcd_endpoints"`
	EtcdAuthority  string `json:"etcd_authority"` // "host:port", of old configurations
	EtcdScheme     string `json:"etcd_scheme"`
	EtcdKeyFile    string `json:"etcd_key_file"`
	EtcdCertFile   string `json:"etcd_cert_file"`
	EtcdCACertFile string `json:"etcd_ca_cert_file"`
	DatastoreType  string `json:"datastore_type"`

	Nodename     string `json:"nodename"`
	NodenameFile string `json:"nodename_file"`
	MTU          int    `json:"mtu"` // bytes; 0: what the node says
	LogLevel     string `json:"log_level"`
	RunDir       string `json:"run_dir"` // of calico-node

	// PolicySetupTimeout is how long ADD waits for the endpoint's policy, in
	// seconds. 0: 30 s.
	PolicySetupTimeout int `json:"policy_setup_timeout_seconds"`

	IPAM ipamConf `json:"ipam"`

	Labels        map[string]string `json:"labels"`
	Args          confArgs          `json:"args"`
	RuntimeConfig struct {
		IPs []string `json:"ips"`
		MAC string   `json:"mac"`
	} `json:"runtimeConfig"`
}

// ipamConf is the "ipam" section. Calico's users write booleans as strings.
type ipamConf struct {
	Type       string   `json:"type"`
	AssignIPv4 flag     `json:"assign_ipv4"`
	AssignIPv6 flag     `json:"assign_ipv6"`
	IPv4Pools  []string `json:"ipv4_pools"` // names or CIDRs
	IPv6Pools  []string `json:"ipv6_pools"`
}

// flag is a boolean that may be written as a string; nil if not written.
type flag struct{ value *bool }

func (f *flag) UnmarshalJSON(data []byte) error {
	switch strings.ToLower(strings.Trim(string(data), `"`)) {
	case "true", "1":
		f.value = new(true)
	case "false", "0":
		f.value = new(false)
	case "", "null":
	default:
		return fmt.Errorf("%s is neither true nor false", data)
	}
	return nil
}

func (f flag) or(otherwise bool) bool {
	if f.value == nil {
		return otherwise
	}
	return *f.value
}

// confArgs is what a runtime puts under "args": labels as a map, by the CNI
// convention, or as Mesos does.
type confArgs struct {
	Labels map[string]string `json:"labels"`
	CNI    struct {
		Labels []pair   `json:"labels"`
		IPs    []string `json:"ips"`
		MAC    string   `json:"mac"`
	} `json:"cni"`
	Mesos struct {
		NetworkInfo struct {
			Labels struct {
				Labels []pair `json:"labels"`
			} `json:"labels"`
		} `json:"network_info"`
	} `json:"org.apache.mesos"`
}

type pair struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// fail makes an error for the runtime. Code is one of the CNI specification's.
func fail(code uint, format string, args ...any) error {
	return types.NewError(code, fmt.Sprintf(format, args...), "")
}

// The codes of ours, and of the specification where the library has no name.
const (
	codeNotAvailable uint = 50  // STATUS: ADD would fail
	codeDrift        uint = 100 // CHECK: something is not as ADD left it
	codeNotEnforced  uint = 101 // the node does not enforce the endpoint's policy
	codeNoAddress    uint = 102
)

func loadConf(data []byte) (*netConf, error) {
	c := &netConf{}
	if err := json.Unmarshal(data, c); err != nil {
		return nil, fail(types.ErrDecodingFailure, "network configuration: %v", err)
	}
	switch c.DatastoreType {
	case "", "etcdv3":
	default:
		return nil, fail(types.ErrUnsupportedField, "datastore_type %q: only etcdv3 is supported", c.DatastoreType)
	}
	if c.MTU < 0 || c.MTU > 65535 {
		return nil, fail(types.ErrInvalidNetworkConfig, "mtu %d: out of range", c.MTU)
	}
	if c.PolicySetupTimeout < 0 {
		return nil, fail(types.ErrInvalidNetworkConfig, "policy_setup_timeout_seconds %d: negative", c.PolicySetupTimeout)
	}
	if c.Nodename == "" {
		name, err := nodename(c.NodenameFile)
		if err != nil {
			return nil, fail(types.ErrInvalidNetworkConfig, "nodename is not set: %v", err)
		}
		c.Nodename = name
	}
	return c, nil
}

const defaultNodenameFile = "/var/lib/calico/nodename"

// nodename returns what calico-node wrote down as this host's name, else the
// host's name.
func nodename(file string) (string, error) {
	data, err := os.ReadFile(cmp.Or(file, defaultNodenameFile))
	if name := strings.TrimSpace(string(data)); name != "" {
		return name, nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	host, err := os.Hostname()
	return strings.ToLower(strings.TrimSpace(host)), err
}

// datastore returns how to reach the datastore: the configuration comes before
// the environment.
func (c *netConf) datastore() (datastore.Config, error) {
	conf := map[string]string{
		"ETCD_ENDPOINTS": c.EtcdEndpoints, "ETCD_AUTHORITY": c.EtcdAuthority, "ETCD_SCHEME": c.EtcdScheme,
		"ETCD_KEY_FILE": c.EtcdKeyFile, "ETCD_CERT_FILE": c.EtcdCertFile, "ETCD_CA_CERT_FILE": c.EtcdCACertFile,
	}
	config, err := datastore.ConfigFromEnvironment(func(name string) string {
		if v := conf[name]; v != "" {
			return v
		}
		if name == "ETCD_ENDPOINTS" && c.EtcdAuthority != "" {
			return "" // the environment must not win over the configuration
		}
		return os.Getenv(name)
	})
	if err != nil {
		return config, fail(types.ErrInvalidNetworkConfig, "%v", err)
	}
	return config, nil
}

// policyTimeout is how long ADD waits for the endpoint's policy.
func (c *netConf) policyTimeout() time.Duration {
	if c.PolicySetupTimeout == 0 {
		return 30 * time.Second
	}
	return time.Duration(c.PolicySetupTimeout) * time.Second
}

// labels returns the labels that the runtime or the user gave the workload.
func (c *netConf) labels() map[string]string {
	out := make(map[string]string)
	for _, from := range []map[string]string{c.Labels, c.Args.Labels} {
		for k, v := range from {
			out[k] = v
		}
	}
	for _, from := range [][]pair{c.Args.CNI.Labels, c.Args.Mesos.NetworkInfo.Labels.Labels} {
		for _, p := range from {
			out[p.Key] = p.Value
		}
	}
	return out
}

// logger writes to standard error, which the runtime keeps or shows.
func (c *netConf) logger() *slog.Logger {
	level := slog.LevelWarn
	switch strings.ToLower(c.LogLevel) {
	case "debug":
		level = slog.LevelDebug
	case "info":
		level = slog.LevelInfo
	case "error", "fatal":
		level = slog.LevelError
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// parseArgs reads CNI_ARGS, "K=V;K2=V2".
func parseArgs(s string) (map[string]string, error) {
	out := make(map[string]string)
	for part := range strings.SplitSeq(s, ";") {
		if part == "" {
			continue
		}
		k, v, ok := strings.Cut(part, "=")
		if !ok {
			return nil, fail(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: %q is no KEY=VALUE", part)
		}
		out[k] = v
	}
	return out, nil
}

// requestedAddresses returns the addresses that runtime or user ask for.
func (c *netConf) requestedAddresses(args map[string]string) ([]netip.Addr, error) {
	texts := append(append([]string{}, c.RuntimeConfig.IPs...), c.Args.CNI.IPs...)
	if ip := args["IP"]; ip != "" {
		texts = strings.Split(ip, ",")
	}
	var out []netip.Addr
	for _, text := range texts {
		text, _, _ = strings.Cut(strings.TrimSpace(text), "/")
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return nil, fail(types.ErrInvalidEnvironmentVariables, "requested address %q: not an address", text)
		}
		out = append(out, a.Unmap())
	}
	return out, nil
}

// requestedMAC returns the MAC that runtime or user ask for, nil if none.
func (c *netConf) requestedMAC(args map[string]string) (net.HardwareAddr, error) {
	for _, text := range []string{args["MAC"], c.RuntimeConfig.MAC, c.Args.CNI.MAC} {
		if text == "" {
			continue
		}
		mac, err := net.ParseMAC(text)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return nil, fail(types.ErrInvalidEnvironmentVariables, "requested MAC %q: not a unicast Ethernet address", text)
		}
		return mac, nil
	}
	return nil, nil
}
