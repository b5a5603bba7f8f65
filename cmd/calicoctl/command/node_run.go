package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"calico-xdp/pkg/nodeapi"

	"github.com/spf13/cobra"
)

// startTime is how long calico-node may take to answer after it was started.
const startTime = 30 * time.Second

type nodeRunOptions struct {
	ip, ip6, as, name, method, method6, backend, logDir, runDir string
	noPools, dry, foreground                                    bool
}

// runFlags are Calico's, and those of 2015, which had no "run".
func (o *nodeRunOptions) flags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&o.ip, "ip", "", "IPv4 address of this node, or autodetect, or none")
	flags.StringVar(&o.ip6, "ip6", "", "IPv6 address of this node, or autodetect, or none")
	flags.StringVar(&o.as, "as", "", "AS number of this node")
	flags.StringVar(&o.name, "name", "", "name of this node (default: the host's)")
	flags.StringVar(&o.method, "ip-autodetection-method", "", "how to find the IPv4 address: first-found, can-reach=, interface=, skip-interface=, cidr=")
	flags.StringVar(&o.method6, "ip6-autodetection-method", "", "the same for IPv6")
	flags.StringVar(&o.backend, "backend", "", "bird, vxlan or none")
	flags.StringVar(&o.logDir, "log-dir", "", "directory of the daemon's logs")
	flags.StringVar(&o.runDir, "run-dir", "", "run directory of calico-node (default $CALICO_RUN_DIR, or "+nodeapi.DefaultRunDir+")")
	flags.BoolVar(&o.noPools, "no-default-ippools", false, "create no IP pools")
	flags.BoolVar(&o.dry, "dryrun", false, "show what would be run")
	flags.BoolVar(&o.foreground, "foreground", false, "stay in front and show the daemon's log")
	// What only had to do with containers, or chose what there is no choice of.
	for _, name := range []string{"node-image", "init-system", "detach", "kubernetes", "libnetwork", "disable-docker-networking", "docker-networking-ifprefix", "use-docker-networking-container-labels", "felix-config"} {
		flags.String(name, "", "accepted for compatibility")
		_ = flags.MarkHidden(name)
		if name != "node-image" && name != "docker-networking-ifprefix" && name != "felix-config" {
			flags.Lookup(name).NoOptDefVal = "true"
		}
	}
}

func newNodeRun(a *app) *cobra.Command {
	var o nodeRunOptions
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Start calico-node on this host",
		Long: `Start calico-node on this host, in the background, and wait until it answers. It
uses the same datastore as this command. On hosts with systemd a unit that runs
calico-node is better: it starts the daemon again if it ends.`,
		Example: `  calicoctl node run --ip=10.0.0.1
  calicoctl node run --ip=autodetect --ip-autodetection-method=interface=eth.*
  calicoctl node run --dryrun`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.nodeRun(cmd.Context(), o) },
	}
	o.flags(cmd)
	return cmd
}

func (a *app) nodeRun(ctx context.Context, o nodeRunOptions) error {
	program, err := findDaemon()
	if err != nil {
		return err
	}
	env, err := a.daemonEnvironment(o)
	if err != nil {
		return err
	}
	runDir := cmp.Or(o.runDir, a.Env("CALICO_RUN_DIR"), nodeapi.DefaultRunDir)
	args := []string{}
	if runDir != nodeapi.DefaultRunDir {
		args = append(args, "--run-dir", runDir)
	}
	if o.dry {
		return a.say("Use the following command to start the calico-node daemon:\n\n%s %s %s", strings.Join(env, " "), program, strings.Join(args, " "))
	}
	client := nodeapi.NewClient(runDir)
	if s, err := client.Status(ctx); err == nil {
		return fmt.Errorf("calico-node runs on this host already, as process %d", s.PID)
	}
	if o.foreground {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = append(os.Environ(), env...), a.In, a.Out, a.Err
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		return cmd.Run()
	}
	return a.startDaemon(ctx, client, program, args, env, cmp.Or(o.logDir, "/var/log/calico"))
}

// startDaemon starts calico-node so that it outlives this process, and waits for it.
func (a *app) startDaemon(ctx context.Context, client *nodeapi.Client, program string, args, env []string, logDir string) error {
	if err := os.MkdirAll(logDir, 0o755); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(logDir, "calico-node.out"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(program, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), env...), log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	limit := time.After(startTime)
	for {
		if s, err := client.Status(ctx); err == nil && s.PID == cmd.Process.Pid {
			return a.say("Calico node started successfully")
		}
		select {
		case err := <-ended:
			return fmt.Errorf("calico-node has ended (%v): %s says why", err, log.Name())
		case <-limit:
			return fmt.Errorf("calico-node runs as process %d and does not answer yet: %s says what it waits for", cmd.Process.Pid, log.Name())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// findDaemon returns where calico-node is: beside this program, or in PATH.
func findDaemon() (string, error) {
	if self, err := os.Executable(); err == nil {
		path := filepath.Join(filepath.Dir(self), "calico-node")
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	path, err := exec.LookPath("calico-node")
	if err != nil {
		return "", errors.New("calico-node is neither beside calicoctl nor in PATH")
	}
	return path, nil
}

// daemonEnvironment returns what the daemon is to know, as NAME=value.
func (a *app) daemonEnvironment(o nodeRunOptions) ([]string, error) {
	file, err := a.readConfigFile()
	if err != nil {
		return nil, err
	}
	var env []string
	for name, value := range map[string]string{
		"IP": o.ip, "IP6": o.ip6, "AS": o.as, "NODENAME": o.name, "IP_AUTODETECTION_METHOD": o.method,
		"IP6_AUTODETECTION_METHOD": o.method6, "CALICO_NETWORKING_BACKEND": o.backend, "CALICO_LOG_DIR": o.logDir,
	} {
		if value != "" {
			env = append(env, name+"="+value)
		}
	}
	if o.noPools {
		env = append(env, "NO_DEFAULT_POOLS=true")
	}
	for name, value := range file {
		if value != "" && a.Env(name) == "" {
			env = append(env, name+"="+value)
		}
	}
	slices.Sort(env)
	return env, nil
}

func newNodeStop(a *app) *cobra.Command {
	var force bool
	var runDir string
	cmd := &cobra.Command{
		Use:   "stop",
		Short: "End calico-node on this host; traffic goes on",
		Long: `End the calico-node of this host. Traffic goes on under the policy that is in the
kernel; nothing follows changes any more. It is not done while there are workloads,
unless with --force. 'calico-node --detach' removes every trace.`,
		Example: "  calicoctl node stop --force",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			client := nodeapi.NewClient(cmp.Or(runDir, a.Env("CALICO_RUN_DIR"), nodeapi.DefaultRunDir))
			s, err := client.Status(ctx)
			if errors.Is(err, nodeapi.ErrNotRunning) {
				return a.say("Calico process is not running.")
			}
			if err != nil {
				return err
			}
			if len(s.Endpoints) > 0 && !force {
				return a.say("This host has %d workload endpoints: calico-node is not stopped. Use --force to stop it anyway; their traffic goes on.", len(s.Endpoints))
			}
			if err := syscall.Kill(s.PID, syscall.SIGTERM); err != nil {
				return fmt.Errorf("process %d: %w", s.PID, err)
			}
			for range int(startTime / (100 * time.Millisecond)) {
				if syscall.Kill(s.PID, 0) != nil {
					return a.say("Node stopped; traffic goes on.")
				}
				time.Sleep(100 * time.Millisecond)
			}
			return fmt.Errorf("process %d has not ended yet", s.PID)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also with workloads")
	cmd.Flags().StringVar(&runDir, "run-dir", "", "run directory of calico-node (default $CALICO_RUN_DIR, or "+nodeapi.DefaultRunDir+")")
	return cmd
}
