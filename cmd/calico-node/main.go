// Calico-node is the daemon that makes a host part of the cluster: it watches
// etcd, and keeps BPF, the kernel's routes and BGP as the resources there say.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	// A second signal kills at once: the context lets go of the first.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "calico-node:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var c config
	cmd := &cobra.Command{
		Use:   "calico-node [flags]",
		Short: "Run this host's part of a Calico cluster, on eBPF",
		Long: `Run this host's part of a Calico cluster, on eBPF.

Without ETCD_ENDPOINTS or ETCD_AUTHORITY, etcd runs inside the daemon. The rest
of the configuration is Calico's: NODENAME, IP, IP6, IP_AUTODETECTION_METHOD,
IP6_AUTODETECTION_METHOD, AS, CALICO_ROUTER_ID, CALICO_NETWORKING_BACKEND (bird,
vxlan or none), CALICO_IPV4POOL_CIDR, _IPIP, _VXLAN, _NAT_OUTGOING, _BLOCK_SIZE
and _NODE_SELECTOR, the same for CALICO_IPV6POOL_, NO_DEFAULT_POOLS,
CALICO_K8S_NODE_REF, ETCD_CA_CERT_FILE, ETCD_CERT_FILE, ETCD_KEY_FILE,
ETCD_USERNAME, ETCD_PASSWORD, CALICO_ADVERTISE_CLUSTER_IPS, CALICO_SERVICE_CIDRS
(nets, by commas, that kube-proxy leads to workloads) and FELIX_<parameter>. Felix's
parameters are taken from the environment first, then from the file --felix-config, then
from FelixConfiguration node.<name>, then from FelixConfiguration default.

Where BGPConfiguration says to announce the addresses of Kubernetes services, these are
read from the API server that the file KUBECONFIG tells of, or, in a pod, with the pod's
service account, which must be allowed to list and watch services and endpointslices.

The passwords of BGP sessions are named in resources by secret and key. They are
read from <CALICO_SECRETS_DIR>/<secret>/<key> (CALICO_SECRETS_DIR is /etc/calico/secrets
unless set), from the Secrets in namespace NAMESPACE (kube-system unless set) where there
is Kubernetes, or from the environment: key "tor-1" of secret "bgp" is
CALICO_SECRET_BGP_TOR_1.

A signal to stop leaves traffic running as it is; --detach ends it.`,
		Example: `  # One host, everything inside the daemon:
  calico-node

  # The same, as etcd for other hosts too:
  calico-node --etcd-listen-client http://127.0.0.1:2379,http://10.0.0.1:2379

  # A host of a cluster that has an etcd:
  ETCD_ENDPOINTS=http://10.0.0.1:2379 IP=autodetect calico-node

  # The same with TLS; the certificate must be for 127.0.0.1 as well:
  ETCD_CA_CERT_FILE=ca.pem ETCD_CERT_FILE=node.pem ETCD_KEY_FILE=node-key.pem \\
    calico-node --etcd-listen-client https://127.0.0.1:2379,https://10.0.0.1:2379 \\
    --etcd-cert-file etcd.pem --etcd-key-file etcd-key.pem --etcd-client-ca-file ca.pem

  # Go back to a backup, with the daemon stopped:
  calico-node --restore /var/backups/calico.db

  # Remove every trace of the daemon from this host:
  calico-node --detach`,
		Args:          cobra.NoArgs,
		Version:       buildVersion(),
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.complete(os.Environ()); err != nil {
				return err
			}
			if c.detach {
				return detach(&c, cmd.OutOrStdout())
			}
			if c.restore != "" {
				return restore(cmd.Context(), &c, cmd.OutOrStdout())
			}
			return run(cmd.Context(), &c)
		},
	}
	cmd.SetVersionTemplate("calico-node {{.Version}}\n")
	addFlags(cmd, &c)
	return cmd
}

func addFlags(cmd *cobra.Command, c *config) {
	f := cmd.Flags()
	f.StringVar(&c.datastore, "datastore", "", `"etcd" outside, or "embedded" in the daemon (default: etcd if the environment names one)`)
	f.StringVar(&c.dataDir, "data-dir", "/var/lib/calico-xdp/etcd", "where the embedded etcd keeps its data")
	f.StringSliceVar(&c.etcdListen, "etcd-listen-client", []string{"http://127.0.0.1:2379", "http://127.0.0.1:4001"}, "`URLs` that the embedded etcd serves")
	f.StringVar(&c.etcdCert, "etcd-cert-file", "", "certificate of the embedded etcd, for listen URLs with https://")
	f.StringVar(&c.etcdKey, "etcd-key-file", "", "its key")
	f.StringVar(&c.etcdClientCA, "etcd-client-ca-file", "", "clients of the embedded etcd need a certificate of this authority; the daemon's own is in ETCD_CERT_FILE")
	f.StringVar(&c.restore, "restore", "", "put a backup (calicoctl datastore backup) in the place of the embedded etcd's data, and exit")
	f.StringVar(&c.runDir, "run-dir", "/var/run/calico", "directory of the daemon's socket")
	f.StringVar(&c.pinDir, "pin-dir", "/sys/fs/bpf/calico-xdp", "directory on a bpffs that keeps programs and tables while the daemon is away")
	f.StringVar(&c.logDir, "log-dir", "/var/log/calico", "where calico-node/current is written, unless CALICO_DISABLE_FILE_LOGGING=true; empty: nowhere")
	f.StringVar(&c.logFormat, "log-format", "text", `"text" or "json"`)
	f.StringVar(&c.logLevel, "log-level", "", `"debug", "info", "warn" or "error" (default logSeverityScreen of FelixConfiguration, else info)`)
	f.StringVar(&c.nodenameFile, "nodename-file", "/var/lib/calico/nodename", "where the node's name is written for CNI, and beside it, as mtu, the workloads' MTU; empty: nowhere")
	f.StringVar(&c.felixFile, "felix-config", "/etc/calico/felix.cfg", "Felix's configuration file, if there is one; empty: none")
	f.BoolVar(&c.xdp, "xdp", false, "attach the XDP program to the uplinks")
	f.BoolVar(&c.clsact, "clsact", false, "attach through clsact even where the kernel has tcx")
	f.BoolVar(&c.detach, "detach", false, "remove every trace of the daemon from this host, say what was removed, and exit")
}

// version is set by the build: -ldflags "-X main.version=v1.2.3".
var version string

// buildVersion returns what the binary was built from.
func buildVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	if v == "" || v == "(devel)" {
		v = "devel"
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				v += "-" + s.Value[:min(12, len(s.Value))]
			}
		}
	}
	return v
}
