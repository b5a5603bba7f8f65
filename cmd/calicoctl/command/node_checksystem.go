package command

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// oldest is the first kernel that calico-node runs on.
var oldest = [2]int{6, 1}

func newNodeCheckSystem(a *app) *cobra.Command {
	var c systemCheck
	cmd := &cobra.Command{
		Use:   "checksystem",
		Short: "Check that this host can run calico-node",
		Long: `Check that this host can run calico-node: the kernel's version and options, its
types (BTF), the BPF file system, forwarding. It fails if something is missing.`,
		Example: `  calicoctl node checksystem
  calicoctl node checksystem --fix
  calicoctl node checksystem --kernel-config /boot/config-6.18`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			c.app = a
			return c.run()
		},
	}
	cmd.Flags().StringVarP(&c.config, "kernel-config", "f", "", "file with the kernel's options")
	cmd.Flags().BoolVar(&c.fix, "fix", false, "turn forwarding on")
	cmd.Flags().StringVar(&c.root, "root", "/", "where the host's files are")
	_ = cmd.Flags().MarkHidden("root")
	return cmd
}

type systemCheck struct {
	*app
	config, root string
	fix          bool
	failed       bool
}

func (c *systemCheck) result(what string, ok bool, why string) {
	if ok {
		fmt.Fprintf(c.Out, "\t\t%-20s\t\t\t\t\tOK\n", what)
		return
	}
	c.failed = true
	fmt.Fprintf(c.Out, "\t\t%-20s\t\t\t\t\tFAIL\n", what)
	fmt.Fprintf(c.Err, "WARNING: %s: %s\n", what, why)
}

func (c *systemCheck) path(name string) string { return filepath.Join(c.root, name) }

func (c *systemCheck) run() error {
	fmt.Fprintln(c.Out, "Checking kernel version...")
	release, err := os.ReadFile(c.path("proc/sys/kernel/osrelease"))
	if err != nil {
		return err
	}
	version := strings.TrimSpace(string(release))
	c.result(version, atLeast(version, oldest), fmt.Sprintf("at least %d.%d is needed", oldest[0], oldest[1]))

	fmt.Fprintln(c.Out, "Checking kernel options...")
	options, err := c.options(version)
	if err != nil {
		fmt.Fprintf(c.Out, "\t\tnot known: %v\n", err)
	} else {
		for _, o := range []string{
			"CONFIG_BPF_SYSCALL", "CONFIG_BPF_JIT", "CONFIG_DEBUG_INFO_BTF", "CONFIG_NET_CLS_ACT", "CONFIG_NET_SCH_INGRESS", "CONFIG_NET_CLS_BPF", "CONFIG_VETH",
		} {
			c.result(o, options[o] == "y" || options[o] == "m", "the kernel is built without it")
		}
	}

	fmt.Fprintln(c.Out, "Checking the host...")
	_, err = os.Stat(c.path("sys/kernel/btf/vmlinux"))
	c.result("kernel types (BTF)", err == nil, "/sys/kernel/btf/vmlinux does not exist")
	_, err = os.Stat(c.path("sys/fs/bpf"))
	c.result("BPF file system", err == nil, "/sys/fs/bpf does not exist")
	for _, family := range []struct{ name, file string }{
		{"IPv4 forwarding", "proc/sys/net/ipv4/ip_forward"}, {"IPv6 forwarding", "proc/sys/net/ipv6/conf/all/forwarding"},
	} {
		c.forwarding(family.name, c.path(family.file))
	}
	if c.failed {
		//lint:ignore ST1005 Calico's own words
		return errors.New("System doesn't meet one or more minimum systems requirements to run Calico")
	}
	return c.say("System meets minimum system requirements to run Calico!")
}

func (c *systemCheck) forwarding(name, file string) {
	value, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) && strings.Contains(name, "6") {
		fmt.Fprintf(c.Out, "\t\t%-20s\t\t\t\t\tnone\n", name) // a host without IPv6
		return
	}
	on := err == nil && strings.TrimSpace(string(value)) == "1"
	if !on && err == nil && c.fix {
		if err = os.WriteFile(file, []byte("1"), 0o644); err == nil {
			on = true
		}
	}
	why := "is off; --fix turns it on, and so does calico-node"
	if err != nil {
		why = err.Error()
	}
	if !on && !c.fix && err == nil {
		// The daemon does it: no reason to say that the host will not do.
		fmt.Fprintf(c.Out, "\t\t%-20s\t\t\t\t\toff (calico-node turns it on)\n", name)
		return
	}
	c.result(name, on, why)
}

// options reads the kernel's options from where they may be.
func (c *systemCheck) options(version string) (map[string]string, error) {
	paths := []string{c.config}
	if c.config == "" {
		paths = []string{
			c.path("proc/config.gz"), c.path("boot/config-" + version), c.path("usr/src/linux/.config"),
			c.path("usr/src/linux-headers-" + version + "/.config"), c.path("lib/modules/" + version + "/build/.config"),
		}
	}
	var errs []error
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err == nil && bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
			var z *gzip.Reader
			if z, err = gzip.NewReader(bytes.NewReader(data)); err == nil {
				data, err = io.ReadAll(z)
			}
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out := make(map[string]string)
		lines := bufio.NewScanner(bytes.NewReader(data))
		for lines.Scan() {
			if name, value, ok := strings.Cut(lines.Text(), "="); ok && strings.HasPrefix(name, "CONFIG_") {
				out[name] = value
			}
		}
		return out, nil
	}
	return nil, errs[len(errs)-1]
}

// atLeast compares the first two numbers of a kernel's version.
func atLeast(version string, least [2]int) bool {
	parts := strings.FieldsFunc(version, func(r rune) bool { return r < '0' || r > '9' })
	for i, want := range least {
		if i >= len(parts) {
			return false
		}
		n, err := strconv.Atoi(parts[i])
		if err != nil || n != want {
			return err == nil && n > want
		}
	}
	return true
}
